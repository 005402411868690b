"""What runs in a child process: calls of handlers, one after the other."""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from tenure.app.within import LeaseFence
from tenure.errors import LeaseLost
from tenure.handlers.context import Fence, JobContext
from tenure.handlers.registry import Handler, Lifespan, bound, found_in
from tenure.handlers.registry import enter as enter_manager
from tenure.handlers.results import Ending, failure, success
from tenure.rules.reports import Lease
from tenure.rules.steps import Notes, StepAnswer, StepCall, StepSource
from tenure.telemetry import logs
from tenure.telemetry.logs import LOG_FIELDS
from tenure.telemetry.tracing import Tracing, enter
from tenure.wire import reports
from tenure.wire.problems import error_of, problem_of
from tenure.worker.note_writer import storable

T = TypeVar("T")

HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""The terminal was closed; Windows has no such signal."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([HANGUP] if HANGUP else ()))
PROGRESS_SECONDS = 0.05


class ChildTask(msgspec.Struct, frozen=True):
    """One call for a child: the place of the handler, the lease, and facts of the attempt."""

    module: str
    name: str
    lease: Lease
    log_fields: Mapping[str, Any]
    traceparent: str | None  # of the attempt's span, if the worker traces
    worker: str
    database: str | None  # where the jobs are, if the worker knows


class ChildAnswer(msgspec.Struct, frozen=True):
    """What a child sends. Nothing is set when it is ready: for a call, then to run its handler."""

    ending: Ending | None = None
    not_started: str | None = None
    leaves: bool = False  # the child ends after this
    notes: Notes | None = None  # alone, or with the ending if they were not sent yet
    call: StepCall | None = None  # the child waits for its `ChildReply`


class ChildReply(msgspec.Struct, frozen=True):
    """What a call for steps is answered: with a problem if `status` says so."""

    answer: StepAnswer = None
    status: int = 0
    problem: bytes = b""


READY = ChildAnswer()
# Not pickle, which could run code of a child in the worker.
encode = msgspec.msgpack.encode
read_answer = msgspec.msgpack.Decoder(ChildAnswer).decode
_read_reply = msgspec.msgpack.Decoder(ChildReply).decode
_read_task = msgspec.msgpack.Decoder(ChildTask).decode


def serve_calls(pipe: Connection, logging: tuple[str, str, tuple[str, ...]] | None) -> None:
    """Run calls until the pipe is closed. The parent handles stop signals; logs go where its do."""
    if logging is not None:
        logs.configure(*logging)
        logs.outlast_output()
    os.setpgid(0, 0)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for number in STOP_SIGNALS:
        signal.signal(number, _ignore)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    runner = asyncio.Runner(loop_factory=new_loop)  # one loop, which clients can be kept on
    lifespans = Lifespans(runner)
    jobs, leaves = 0, False
    with suppress(EOFError, OSError):
        pipe.send_bytes(encode(READY))
        while not leaves:
            task = _read_task(pipe.recv_bytes())
            LOG_FIELDS.set(partial(dict, task.log_fields))
            doing = f"{task.module} cannot be imported"
            try:
                module = importlib.import_module(task.module)
                found = found_in(module, task.name, task.lease.type)
                if isinstance(found, Handler) and not found.in_process:
                    doing = "app.lifespan failed"  # it is entered where the handler runs
                    lifespans.enter(found.lifespans)
            except BaseException as error:  # in the worker it did not fail
                why = f"{doing} in a child process: {said(error)}"
                pipe.send_bytes(encode(ChildAnswer(not_started=why)))
                continue
            pipe.send_bytes(encode(READY))
            source = _PipeSource(pipe, task.lease.id)
            fence = LeaseFence(task.lease, task.worker, task.database, task.traceparent)
            ending = _call(found, task, fence, runner, source, lifespans.context)
            if fence.parked and ending.error is None:
                ending = Ending(error=fence.parked)
            elif fence.completes:
                other = None if ending.result == fence.result else ending.result
                ending = replace(ending, result=other, completes=True, flaw=fence.flaw)
            jobs += 1
            leaves = isinstance(found, Handler) and _has_enough(found, jobs)
            last = ChildAnswer(ending, leaves=leaves, notes=source.close())
            pipe.send_bytes(_encoded(last))
    lifespans.leave()


class _PipeSource:
    """Sends the notes of one call to the worker, and asks it for steps.

    Progress goes so often that people see it move, and not more.
    """

    def __init__(self, pipe: Connection, job_id: str) -> None:
        self._pipe: Connection | None = pipe
        self._job_id = job_id
        self._lock = threading.Lock()  # of sending: the handler may have threads
        self._asking = threading.Lock()  # one at a time
        self._next_at = 0.0
        self._left: Notes | None = None

    def note(self, notes: Notes) -> None:
        with self._lock:
            if notes.state is None:
                self._left = notes
                if time.monotonic() < self._next_at:
                    return
                self._left, self._next_at = None, time.monotonic() + PROGRESS_SECONDS
            if self._pipe is not None:
                self._pipe.send_bytes(encode(ChildAnswer(notes=storable(notes))))

    def ask(self, call: StepCall) -> Future[Any]:
        """Return the answer of the worker, for which this waits."""
        future = Future[Any]()
        with self._asking:
            with self._lock:
                if self._pipe is None:  # from a thread that its handler has left behind
                    raise LeaseLost(self._job_id)
                self._pipe.send_bytes(encode(ChildAnswer(call=call)))
            reply = _read_reply(self._pipe.recv_bytes())
        if reply.status:
            future.set_exception(error_of(reply.status, reply.problem))
        else:
            future.set_result(reply.answer)
        return future

    def close(self) -> Notes | None:
        """Send nothing any more; return what was not sent."""
        with self._asking, self._lock:
            self._pipe = None
            return self._left and storable(self._left)


def answered_stop_signals() -> list[signal.Signals]:
    """Return the signals at which a process stops: the hangup only if `nohup` did not start it."""
    return [it for it in STOP_SIGNALS if it != HANGUP or signal.getsignal(it) != signal.SIG_IGN]


def _ignore(*_: object) -> None:
    """Ignore a signal. Programs that a handler starts would inherit SIG_IGN, but not this."""


# What a handler forks off, or a pool of multiprocessing that it uses, would inherit how workers,
# servers and child processes answer a signal, and then not end by it. The signal has to wait
# meanwhile: Python drops in a copy what has come before it is ready.
_mask = threading.local()


def _before_fork() -> None:
    _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask.before)


def _in_copy() -> None:
    for number in STOP_SIGNALS:
        module: str | None = getattr(signal.getsignal(number), "__module__", None)
        if module is not None and module.partition(".")[0] == "tenure":
            signal.signal(number, signal.SIG_DFL)
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_copy)


def _end_with_parent() -> None:
    """End this process with its parent, because the leases end with the parent too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os.killpg(0, signal.SIGKILL)


def said(error: BaseException) -> str:
    """Return the class and the message of an error."""
    return f"{type(error).__name__}: {error}"


def _has_enough(handler: Handler, jobs: int) -> bool:
    if handler.max_jobs is not None and jobs >= handler.max_jobs:
        return True
    return handler.max_memory is not None and _memory() > handler.max_memory


def _memory() -> int:
    """Return the bytes in memory now on Linux, elsewhere the most that there ever were."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * resource.getpagesize()


def _encoded(answer: ChildAnswer) -> bytes:
    try:
        return encode(answer)
    except UnicodeEncodeError as error:  # half of a surrogate pair, as in the name of a file
        return encode(ChildAnswer(failure(error), leaves=answer.leaves))


def context_of(lease: Lease, fence: Fence, source: StepSource) -> JobContext:
    """Return what the handler may know of its attempt, which starts now. Workers use it too."""
    deadline: datetime | None = None
    if lease.timeout is not None:  # by the clock of this machine, for the handler to compare with
        deadline = datetime.now(UTC) + timedelta(seconds=lease.timeout)  # noqa: TID251
    return JobContext(
        id=lease.id,
        type=lease.type,
        queue=lease.queue,
        attempt=lease.attempts,
        max_retries=lease.max_retries,
        token=lease.token,
        deadline=deadline,
        _source=source,
        _fence=fence,
    )


class RunsCoroutines(Protocol):
    """A loop that stands still between two coroutines."""

    def run(self, coroutine: Coroutine[Any, Any, T], /) -> T:
        """Return what the coroutine returns."""


class Lifespans:
    """What applications keep open around a worker's life, for handlers that are alone here."""

    def __init__(self, runner: RunsCoroutines) -> None:
        self._runner = runner
        self.context = contextvars.Context()
        """Has the variables that they have set."""
        self._leave = asyncio.Event()
        self._entered: list[Lifespan] = []
        self._tasks: list[asyncio.Task[None]] = []

    def enter(self, lifespans: Sequence[Lifespan]) -> None:
        """Enter each that is not entered yet; raise what it raises."""
        if any(make not in self._entered for make in lifespans):
            self._runner.run(self.enter_async(lifespans))

    async def enter_async(self, lifespans: Sequence[Lifespan]) -> None:
        """Do the same on the running loop."""
        if new := [make for make in lifespans if make not in self._entered]:
            self._tasks.append(await self._begin(new))
            self._entered += new

    def leave(self) -> None:
        if self._tasks:
            self._runner.run(self.leave_async())

    async def leave_async(self) -> None:
        """Leave all; raise what the first raises that cannot be left."""
        self._leave.set()
        for error in await asyncio.gather(*self._tasks, return_exceptions=True):
            if error is not None:
                raise error

    async def _begin(self, lifespans: Sequence[Lifespan]) -> asyncio.Task[None]:
        """Return the task that holds them open: some can be left only by the task that entered."""
        entered = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._hold(lifespans, entered), context=self.context)
        await asyncio.wait([task, entered], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        return task

    async def _hold(self, lifespans: Sequence[Lifespan], entered: asyncio.Future[None]) -> None:
        async with AsyncExitStack() as stack:
            for make in lifespans:
                await enter_manager(stack, make())
            entered.set_result(None)
            await self._leave.wait()


def _call(
    handler: Any,
    task: ChildTask,
    fence: LeaseFence,
    runner: asyncio.Runner,
    source: StepSource,
    kept: contextvars.Context,
) -> Ending:
    """Run a handler; a coroutine also sees the variables that are `kept`, as in the worker."""
    try:
        if not isinstance(handler, Handler):
            where = f"{task.module}.{task.name}"
            raise TypeError(f"{where} is not a job type: keep the decorated function there")
        context = contextvars.copy_context()  # keeps what the module set
        for variable, value in kept.items() if handler.is_async else ():
            context.run(variable.set, value)
        if task.traceparent is not None:
            context.run(enter, Tracing().context(task.traceparent))
        function = bound(handler, context_of(task.lease, fence, source))
        arguments = handler.arguments(task.lease.payload)
        if handler.is_async:
            running = _run_coroutine(handler, partial(function, **arguments))
            ending = runner.run(running, context=context)
        else:
            ending = success(context.run(function, **arguments))
        if ending.error is None and fence.jobs is not None and not fence.completes:
            ending = replace(ending, jobs=reports.written(fence.jobs))
        return ending
    except BaseException as error:
        return failure(error, handler if isinstance(handler, Handler) else None)


async def _run_coroutine(handler: Handler, function: partial[Any]) -> Ending:
    """Return how a coroutine ended; no error may reach the loop, where some would end it."""
    try:
        return success(await function())
    except BaseException as error:
        return failure(error, handler)


def reply_to(future: Future[Any]) -> ChildReply:
    """Wait for the answer to a child's call; an error travels as it does over HTTP."""
    try:
        return ChildReply(future.result())
    except Exception as error:
        body, _ = problem_of(error, "", ())
        return ChildReply(None, body.status, msgspec.json.encode(body))


def new_loop() -> asyncio.AbstractEventLoop:
    """Return a loop of uvloop where it is installed, else one of asyncio."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.new_event_loop()
    return new_event_loop()
