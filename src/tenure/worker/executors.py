"""Where handlers run when not on the event loop: threads, and child processes.

Both deliver exactly one outcome per call, whatever the handler does. A thread cannot be stopped, so
a call that overstays is abandoned with its thread; a child process can be killed, alone.
"""

from __future__ import annotations

import contextvars
import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from types import CoroutineType
from typing import Any, TypeAlias

import msgspec

from tenure.errors import PermanentFailure
from tenure.jobs.handlers import BadArguments, Handler
from tenure.jobs.results import describe_exception, result_text
from tenure.telemetry import logs
from tenure.telemetry.logs import RUNNING, Given, Running
from tenure.telemetry.tracing import Tracing, enter

CHILD = "tenure-child"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECRETS = ("TENURE_TOKEN", "TENURE_TOKEN_FILE")
"""Of the environment: not for handlers in child processes, nor for what they start. The database's
address stays, since the module of a handler is imported there and may need it to open its queue."""
LAST_WORDS_SECONDS = 1.0
"""What idle children get to end by themselves, so that Python's exit handlers run there: they send
off the last spans and log lines, for one."""
LOOK_SECONDS = 0.5
"""How often a thread looks whether the child it waits for still lives."""


class Success(msgspec.Struct, frozen=True, gc=False):
    """The handler returned; `result` is what it returned, as JSON text."""

    result: str | None


class Failure(msgspec.Struct, frozen=True, gc=False):
    """The handler did not return; `error` says why, for people."""

    error: str
    retryable: bool = True


Ending: TypeAlias = Success | Failure
Deliver: TypeAlias = Callable[[Any, Ending], None]


def success(value: object) -> Success:
    """The ending of a handler that returned `value`."""
    return Success(None if value is None else result_text(value))


def failure(error: BaseException) -> Failure:
    """The ending of a handler that raised; its traceback begins with the handler's own frame.

    Never raises, whatever the class of the error defines: the job must settle.
    """
    try:
        ours = _traceback_of(error)
        if ours is not None and ours.tb_next is not None:
            _cut_traceback(error, ours.tb_next)
        if issubclass(type(error), BadArguments):
            return Failure(str(error), retryable=False)
        return Failure(describe_exception(error), retryable=not _is_permanent(error))
    except BaseException:
        return Failure(f"{type.__repr__(type(error))} was raised, and cannot be read")


# As BaseException defines them, not as a class of a handler's own may: those may raise.
_traceback_of = vars(BaseException)["__traceback__"].__get__
_cut_traceback = BaseException.with_traceback
_parts_of = vars(BaseExceptionGroup)["exceptions"].__get__


def _is_permanent(error: BaseException) -> bool:
    """Whether the handler said that trying again cannot help: by itself, or in a part of a group.

    A task group raises a group even if one task failed. One part that cannot be mended is enough:
    the next attempt would come to it again.
    """
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if issubclass(type(one), PermanentFailure):
            return True
        if issubclass(type(one), BaseExceptionGroup):
            waiting += _parts_of(one)
    return False


class Original:
    """The process that this was made in, as opposed to copies that a handler forks off."""

    copies = 0  # rises in every process that is forked off

    def __init__(self) -> None:
        self._copies = Original.copies

    def end_if_copy(self) -> None:
        """End a copy in which a handler has come to its end.

        It holds no lease and has none of the worker's threads, but the worker's sockets: the job
        ends in the original, and this process would stay for ever, or disturb it.
        """
        if Original.copies != self._copies:
            os._exit(0)

    @classmethod
    def count_copy(cls) -> None:
        """Called in every process that is forked off."""
        cls.copies += 1


os.register_at_fork(after_in_child=Original.count_copy)


class Threads:
    """Daemon threads that run calls; `deliver(ticket, ending)` is called from the thread."""

    def __init__(self, limit: int, deliver: Deliver, name: str) -> None:
        self._limit = limit
        self._deliver = deliver
        self._name = name
        self._calls: SimpleQueue[tuple[Any, Callable[[], Ending]] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._count = 0
        self._original = Original()

    def submit(self, ticket: Any, call: Callable[[], Ending]) -> None:
        """Run `call` in a thread; it must not raise."""
        self._calls.put((ticket, call))
        if not self._idle.acquire(blocking=False) and self._count < self._limit:
            self._count += 1
            name = f"{self._name} {self._count}"
            threading.Thread(target=self._run, name=name, daemon=True).start()

    def abandon(self) -> None:
        """One thread will not come back: allow another in its place."""
        self._limit += 1

    def close(self) -> None:
        """Let idle threads end; those that run a call end after it."""
        for _ in range(self._count):
            self._calls.put(None)

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            ticket, call = item
            ending = call()
            self._original.end_if_copy()
            self._idle.release()  # first, so that whoever gets the ending finds a thread free
            self._deliver(ticket, ending)
            del ticket, call, item, ending  # what a job used is not kept until the next one


def call_in_thread(
    function: Callable[..., Any], arguments: dict[str, Any], running: Running, spans_here: Any
) -> Ending:
    """Run a plain handler in this thread, in a context of its own that knows what is running.

    `spans_here` is where spans that it makes belong, if anybody traces.
    """
    try:
        context = contextvars.Context()
        context.run(RUNNING.set, running)
        if spans_here is not None:
            context.run(enter, spans_here)
        return success(_ran(context.run(function, **arguments)))
    except BaseException as error:
        return failure(error)


def _ran(value: object) -> object:
    """What a plain handler returned, if that means that it has run."""
    if isinstance(value, CoroutineType):
        value.close()
        raise TypeError("the handler returned a coroutine, which nobody runs: make it `async def`")
    return value


class Children:
    """Child processes for handlers with `process=True`: one call each at a time, reused."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._idle: list[Child] = []
        self._lock = threading.Lock()
        self._closed = False

    def take(self) -> Child:
        """A child that is free."""
        while True:
            with self._lock:
                child = self._idle.pop() if self._idle else None
            if child is None:
                return Child.start(self._context)
            if child.process.is_alive():
                return child
            child.pipe.close()

    def give_back(self, child: Child) -> None:
        """Keep a child for the next call."""
        with self._lock:
            if not self._closed:
                self._idle.append(child)
                return
        child.end()

    def close(self) -> None:
        """End the idle children, and the others when they are given back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for child in idle:
            child.pipe.close()  # which asks them to end
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        for child in idle:
            wait([child.process.sentinel], max(deadline - time.monotonic(), 0))
            child.end()


@dataclass(frozen=True, slots=True)
class Task:
    """What a child is to do: the handler by its name, its payload, and the attempt it is for."""

    module: str
    name: str
    payload: str
    log_fields: Mapping[str, Any]
    traceparent: str | None  # the span of the attempt, where somebody traces


def place_of(handler: Handler) -> tuple[str, str]:
    """The module of a handler and its name there, by which a child finds it."""
    return handler.function.__module__, handler.function.__qualname__


class ChildCall:
    """One call in a child process. `run` blocks; `kill` is for other threads, at any time."""

    def __init__(self, children: Children, task: Task) -> None:
        self._children = children
        self._task = task
        self._lock = threading.Lock()
        self._child: Child | None = None  # while it is at work for this call
        self._killed = False

    def run(self) -> Ending:
        """Call the handler in a child; a child that dies is a failure of this call alone."""
        try:
            child = self._children.take()
        except BaseException as error:
            return failure(error)
        with self._lock:
            self._child = child
            if self._killed:
                child.kill()
        ending: Ending | None = None
        try:
            ending = child.run(self._task)
        except BaseException as error:
            return failure(error)
        finally:
            with self._lock:
                self._child = None
                reusable = ending is not None and not self._killed
            if reusable:
                self._children.give_back(child)
            else:
                child.end()
        return ending or Failure(f"the child process died: {_exit(child.process.exitcode)}")

    def kill(self) -> None:
        """Kill the child if it is at work for this call, or as soon as it is."""
        with self._lock:
            self._killed = True
            if self._child is not None:
                self._child.kill()


@dataclass(slots=True)
class Child:
    """One child process, the head of a process group of its own, and the pipe to it."""

    process: BaseProcess
    pipe: Connection

    @classmethod
    def start(cls, context: multiprocessing.context.SpawnContext) -> Child:
        """Start a child that waits for calls."""
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve_calls, args=(theirs, logs.configured()), name=CHILD, daemon=True
        )
        resource_tracker.ensure_running()  # it would undo the next line
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until the child is ready
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
        return cls(process, ours)

    def run(self, task: Task) -> Ending | None:
        """Run one call; None if the child dies in it."""
        try:
            self.pipe.send(task)
            # The pipe of a dead child stays open where a process that it forked holds it.
            while not self.pipe.poll(LOOK_SECONDS):
                if not self.process.is_alive() and not self.pipe.poll():
                    return None
            ending: Ending = self.pipe.recv()
            return ending
        except (EOFError, OSError):
            return None

    def kill(self) -> None:
        """Kill the child now, and whatever it has started."""
        assert self.process.pid is not None
        with suppress(OSError):  # no such group: it is not there yet, or nothing is left of it
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()

    def end(self) -> None:
        """Kill the child, and wait for its end. Not long after it ended: its number comes back."""
        self.kill()
        self.process.join(5)
        self.pipe.close()


def _exit(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _serve_calls(pipe: Connection, logging: tuple[str, str] | None) -> None:
    """The child's main loop: signals are the parent's matter, a closed pipe is the end.

    It logs as its parent does.
    """
    if logging is not None:
        logs.configure(*logging)
    os.setpgid(0, 0)
    for name in SECRETS:
        os.environ.pop(name, None)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for number in STOP_SIGNALS:
        signal.signal(number, _disregard)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    with suppress(EOFError, OSError):
        while True:
            pipe.send(_call(pipe.recv()))


def _disregard(*_: object) -> None:
    """Unlike SIG_IGN, not inherited by the programs that a handler starts."""


def _end_with_parent() -> None:
    """However the parent ends: nothing that runs here has a lease any more."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os.killpg(0, signal.SIGKILL)


def _call(task: Task) -> Ending:
    try:
        RUNNING.set(Given(task.log_fields))
        found: Any = importlib.import_module(task.module)
        for part in task.name.split("."):
            found = getattr(found, part)
        handler = getattr(found, "handler", None)
        if not isinstance(handler, Handler):
            where = f"{task.module}.{task.name}"
            raise TypeError(f"{where} is no job type: leave the decorated function there")
        context = contextvars.copy_context()  # with what the module set; what the call sets ends
        if task.traceparent is not None:
            context.run(enter, Tracing().context(task.traceparent))
        return success(_ran(context.run(handler.function, **handler.arguments(task.payload))))
    except BaseException as error:
        return failure(error)
