"""Child processes for handlers with `process=True`. A child can be killed without harm to others.

Every call has exactly one ending, whatever the handler does to its process.
"""

from __future__ import annotations

import contextvars
import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import msgspec

from tenure.jobs.handlers import Handler
from tenure.jobs.results import Ending, failure, success_of_function
from tenure.telemetry import logs
from tenure.telemetry.logs import LOG_FIELDS
from tenure.telemetry.tracing import Tracing, enter
from tenure.worker.fitness import NotStarted

CHILD = "tenure-child"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECRETS = ("TENURE_TOKEN", "TENURE_TOKEN_FILE")
"""Variables of the environment that a process removes before it starts a child, which can read the
environment that it was started with. The address of the database stays: the module of a handler is
imported there and may need it to open its queue."""
MAX_ANSWER_BYTES = 1024 * 1024
"""Longest message from a child; results and errors have far lower limits."""
EXIT_SECONDS = 1.0
"""How long idle children may take to end by themselves. Python's exit handlers run then, which send
the last spans and log lines."""
CHILD_CHECK_SECONDS = 0.5
"""How often a thread that waits for a child checks that the child is alive."""


class Children:
    """Child processes that are reused; each runs one call at a time."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._idle: list[Child] = []
        self._lock = threading.Lock()
        self._closed = False

    def take(self) -> Child:
        """Return a free child."""
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
        """End the idle children now, and the others when they are given back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for child in idle:
            child.pipe.close()  # asks the child to end
        deadline = time.monotonic() + EXIT_SECONDS
        for child in idle:
            wait([child.process.sentinel], max(deadline - time.monotonic(), 0))
            child.end()


class ChildTask(msgspec.Struct, frozen=True):
    """One call for a child: the name of the handler, the payload, and facts of the attempt."""

    module: str
    name: str
    payload: str
    log_fields: Mapping[str, Any]
    traceparent: str | None  # of the attempt's span, if the worker traces


class ChildAnswer(msgspec.Struct, frozen=True):
    """What a child sends after a call: one of these. Neither is set when it is ready for calls."""

    ending: Ending | None = None
    not_started: str | None = None


READY = ChildAnswer()
# Not pickle, which could run code of a child in the worker.
_encode = msgspec.msgpack.encode
_read_task = msgspec.msgpack.Decoder(ChildTask).decode
_read_answer = msgspec.msgpack.Decoder(ChildAnswer).decode


class ChildCall:
    """One call in a child process. `run` blocks; other threads may call `kill` at any time."""

    def __init__(self, children: Children, task: ChildTask) -> None:
        self._children = children
        self._task = task
        self._lock = threading.Lock()
        self._child: Child | None = None  # while it works on this call
        self._killed = False

    def run(self) -> Ending | NotStarted:
        """Run the call in a child. If the child dies, only this call fails."""
        try:
            child = self._children.take()
        except Exception as error:
            return NotStarted(f"no child process could be started: {_said(error)}")
        with self._lock:
            self._child = child
            if self._killed:
                child.kill()
        ready = False
        ending: Ending | NotStarted | None = None
        try:
            ready = child.is_ready()
            ending = child.run(self._task) if ready else None
        except BaseException as error:
            return failure(error)
        finally:
            with self._lock:
                self._child = None
                reusable = isinstance(ending, Ending) and not self._killed
            if reusable:
                self._children.give_back(child)
            else:
                child.end()
        how = _exit(child.process.exitcode)
        if not ready:
            return NotStarted(f"a child process died before it could run anything: {how}")
        return ending or Ending(error=f"the child process died: {how}")

    def kill(self) -> None:
        """Kill the child now, or as soon as it gets this call."""
        with self._lock:
            self._killed = True
            if self._child is not None:
                self._child.kill()


@dataclass(slots=True)
class Child:
    """One child process, which leads its own process group, and the pipe to it."""

    process: BaseProcess
    pipe: Connection
    waits_for_calls: bool = False  # as far as is known

    @classmethod
    def start(cls, context: multiprocessing.context.SpawnContext) -> Child:
        """Start a child that waits for calls."""
        for name in SECRETS:
            os.environ.pop(name, None)
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve_calls, args=(theirs, logs.configured), name=CHILD, daemon=True
        )
        resource_tracker.ensure_running()  # it would unblock the signals
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until the child is ready
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
        return cls(process, ours)

    def is_ready(self) -> bool:
        """Wait until the child is ready for its first call; return False if it dies instead."""
        self.waits_for_calls = self.waits_for_calls or self._receive() == READY
        return self.waits_for_calls

    def run(self, task: ChildTask) -> Ending | NotStarted | None:
        """Run one call; return None if the child dies."""
        try:
            self.pipe.send_bytes(_encode(task))
        except OSError:
            return None
        answer = self._receive()
        if answer is not None and answer.not_started is not None:
            return NotStarted(answer.not_started)
        return None if answer is None else answer.ending

    def _receive(self) -> ChildAnswer | None:
        """Return the next message; None if the child dies or sends what is none."""
        try:
            # The pipe of a dead child stays open while a process that it forked holds it.
            while not self.pipe.poll(CHILD_CHECK_SECONDS):
                if not self.process.is_alive() and not self.pipe.poll():
                    return None
            return _read_answer(self.pipe.recv_bytes(MAX_ANSWER_BYTES))
        except (EOFError, OSError, msgspec.DecodeError):
            return None

    def kill(self) -> None:
        """Kill the child and its process group now."""
        assert self.process.pid is not None
        with suppress(OSError):  # the group does not exist yet, or no longer
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()

    def end(self) -> None:
        """Kill the child and wait for its end. Call it soon: process ids are reused."""
        self.kill()
        self.process.join(5)
        self.pipe.close()


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _exit(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _serve_calls(pipe: Connection, logging: tuple[str, str] | None) -> None:
    """Run calls until the pipe is closed. The parent handles stop signals; logs go where its do."""
    if logging is not None:
        logs.configure(*logging)
    os.setpgid(0, 0)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for number in STOP_SIGNALS:
        signal.signal(number, _ignore)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    with suppress(EOFError, OSError):
        pipe.send_bytes(_encode(READY))
        while True:
            pipe.send_bytes(_encoded(_call(_read_task(pipe.recv_bytes()))))


def _ignore(*_: object) -> None:
    """Ignore a signal. Programs that a handler starts would inherit SIG_IGN, but not this."""


def _end_with_parent() -> None:
    """End this process with its parent, because the leases end with the parent too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os.killpg(0, signal.SIGKILL)


def _encoded(answer: ChildAnswer) -> bytes:
    try:
        return _encode(answer)
    except UnicodeEncodeError as error:  # half of a surrogate pair, as in the name of a file
        return _encode(ChildAnswer(failure(error)))


def _call(task: ChildTask) -> ChildAnswer:
    LOG_FIELDS.set(lambda: task.log_fields)
    try:
        found: Any = importlib.import_module(task.module)
        for part in task.name.split("."):
            found = getattr(found, part)
    except BaseException as error:  # the worker has imported it
        why = f"{task.module} cannot be imported in a child process: {_said(error)}"
        return ChildAnswer(not_started=why)
    handler = getattr(found, "handler", None)
    try:
        if not isinstance(handler, Handler):
            where = f"{task.module}.{task.name}"
            raise TypeError(f"{where} is not a job type: keep the decorated function there")
        context = contextvars.copy_context()  # keeps what the module set
        if task.traceparent is not None:
            context.run(enter, Tracing().context(task.traceparent))
        arguments = handler.arguments(task.payload)
        return ChildAnswer(success_of_function(context.run(handler.function, **arguments)))
    except BaseException as error:
        return ChildAnswer(failure(error, handler if isinstance(handler, Handler) else None))
