"""Where handlers run when not on the event loop: threads, and child processes.

Both deliver exactly one outcome per call, whatever the handler does. A thread cannot be stopped, so
a call that overstays is abandoned with its thread; a child process can be killed, alone.
"""

from __future__ import annotations

import contextvars
import importlib
import multiprocessing
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any, TypeAlias

from tenure.errors import PermanentFailure
from tenure.handlers import BadArguments, Handler
from tenure.payload import describe_exception, result_text


@dataclass(frozen=True, slots=True)
class Success:
    """The handler returned; `result` is what it returned, as JSON text."""

    result: str | None


@dataclass(frozen=True, slots=True)
class Failure:
    """The handler did not return; `error` says why, for people."""

    error: str
    retryable: bool = True


Ending: TypeAlias = Success | Failure
Deliver: TypeAlias = Callable[[Any, Ending], None]


def success(value: object) -> Success:
    """The ending of a handler that returned `value`."""
    return Success(None if value is None else result_text(value))


def failure(error: BaseException) -> Failure:
    """The ending of a handler that raised."""
    if isinstance(error, BadArguments):
        return Failure(str(error), retryable=False)
    return Failure(describe_exception(error), retryable=not isinstance(error, PermanentFailure))


class Threads:
    """Daemon threads that run calls; `deliver(ticket, ending)` is called from the thread."""

    def __init__(self, limit: int, deliver: Deliver, name: str) -> None:
        self._limit = limit
        self._deliver = deliver
        self._name = name
        self._calls: SimpleQueue[tuple[Any, Callable[[], Ending]] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._count = 0

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
            self._deliver(ticket, call())
            del ticket, call, item  # what a job used is not kept until the next one
            self._idle.release()


def call_in_thread(function: Callable[..., Any], arguments: dict[str, Any]) -> Ending:
    """Run a plain handler in this thread, in a context of its own."""
    try:
        return success(contextvars.Context().run(function, **arguments))
    except BaseException as error:
        return failure(error)


class Children:
    """Child processes for handlers with `process=True`: one call each at a time, reused."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._idle: list[Child] = []
        self._lock = threading.Lock()

    def call(self, handler: Handler, payload: str, started: Callable[[Child], None]) -> Ending:
        """Run a handler in a child; `started` gets the child, to kill it. Blocks until the end."""
        with self._lock:
            child = self._idle.pop() if self._idle else None
        try:
            if child is None or not child.process.is_alive():
                child = Child.start(self._context)
            started(child)
            ending = child.run(handler, payload)
        except BaseException as error:
            return failure(error)
        if child.process.is_alive():
            with self._lock:
                self._idle.append(child)
        return ending

    def close(self) -> None:
        """End the idle children."""
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            child.kill()


@dataclass(slots=True)
class Child:
    """One child process and the pipe to it."""

    process: BaseProcess
    pipe: Connection

    @classmethod
    def start(cls, context: multiprocessing.context.SpawnContext) -> Child:
        """Start a child that waits for calls."""
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve_calls, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return cls(process, ours)

    def run(self, handler: Handler, payload: str) -> Ending:
        """Run one call; a child that dies in it is a failure of this call alone."""
        try:
            self.pipe.send((handler.function.__module__, handler.function.__qualname__, payload))
            ending: Ending = self.pipe.recv()
            return ending
        except (EOFError, OSError):
            self.process.join(5)
            self.pipe.close()
            return Failure(f"the child process died: {_exit(self.process.exitcode)}")

    def kill(self) -> None:
        """Kill the child now."""
        with suppress(Exception):
            self.process.kill()


def _exit(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _serve_calls(pipe: Connection) -> None:
    """The child's main loop: signals are the parent's matter, a closed pipe is the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with suppress(EOFError, OSError):
        while True:
            module, name, payload = pipe.recv()
            pipe.send(_call(module, name, payload))


def _call(module: str, name: str, payload: str) -> Ending:
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        handler: Handler = found.handler
        return success(handler.function(**handler.arguments(payload)))
    except BaseException as error:
        return failure(error)
