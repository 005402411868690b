"""Threads that run plain handlers. A thread cannot be stopped, only left behind."""

from __future__ import annotations

import contextvars
import os
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from tenure.handlers.registry import Handler
from tenure.handlers.results import Ending, success
from tenure.telemetry.logs import LOG_FIELDS
from tenure.telemetry.tracing import enter
from tenure.worker.fitness import NotStarted
from tenure.worker.leases import Attempt

Call = Callable[[], Ending | NotStarted]


class Original:
    """The process that this object was made in, as opposed to copies that a handler forks."""

    copies = 0  # grows in every process that is forked

    def __init__(self) -> None:
        self._copies = Original.copies

    def end_if_copy(self) -> None:
        """End this process if it is a copy in which a handler has returned.

        A copy holds no lease and has none of the worker's threads, but the worker's sockets. The
        job ends in the original process, and the copy would never end, or would disturb it.
        """
        if Original.copies != self._copies:
            os._exit(0)

    @classmethod
    def count_copy(cls) -> None:
        """Count a fork; called in every forked process."""
        cls.copies += 1


os.register_at_fork(after_in_child=Original.count_copy)


class Threads:
    """Up to `limit` daemon threads that run calls; a thread calls `deliver(ticket, ending)`."""

    def __init__(self, limit: int, deliver: Callable[[Any, Ending | NotStarted], None]) -> None:
        self._limit = limit
        self._deliver = deliver
        self._calls: SimpleQueue[tuple[Any, Call] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._count = 0
        self._original = Original()

    def submit(self, ticket: Any, call: Call) -> None:
        """Run `call`, which must not raise, in a thread.

        Raises NotStarted, with nothing queued, if a thread is missing and cannot be started.
        """
        if not self._idle.acquire(blocking=False) and self._count < self._limit:
            name = f"tenure-job {self._count + 1}"
            try:
                threading.Thread(target=self._run, name=name, daemon=True).start()
            except RuntimeError as error:  # a limit of the machine
                raise NotStarted(f"no thread for it: {error}") from error
            self._count += 1
        self._calls.put((ticket, call))

    def abandon(self) -> None:
        """Allow one more thread, in place of one that does not return."""
        self._limit += 1

    def close(self) -> None:
        """Let idle threads end now, and the others after their call."""
        for _ in range(self._count):
            self._calls.put(None)

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            ticket, call = item
            ending = call()
            self._original.end_if_copy()
            self._idle.release()  # before delivering: the receiver finds a free thread
            self._deliver(ticket, ending)
            del ticket, call, item, ending  # do not keep a job's objects until the next call


class CallingThread(Threads):
    """No threads: runs each call, of an attempt, at once on the thread that submits it."""

    def submit(self, ticket: Attempt, call: Call) -> None:
        """Run `call`. If it has taken longer than its timeout allows, that is its ending."""
        ending = call()
        if time.monotonic() >= ticket.due:
            ticket.exception, ending = None, Ending(error=timed_out(ticket))
        self._deliver(ticket, ending)


def timed_out(attempt: Attempt) -> str:
    """Return the error of an attempt that took too long."""
    return f"timed out after {attempt.lease.timeout:g} s"


def call_in_thread(
    handler: Handler, function: Callable[..., Any], arguments: dict[str, Any], attempt: Attempt
) -> Ending:
    """Call a plain handler in this thread, in a new context that knows which attempt runs."""
    try:
        context = contextvars.Context()
        context.run(LOG_FIELDS.set, attempt.log_fields)
        if attempt.trace_context is not None:
            context.run(enter, attempt.trace_context)
        return success(context.run(function, **arguments))
    except BaseException as error:
        return attempt.failure(error, handler)
