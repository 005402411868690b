"""Runs leased jobs one at a time for a caller who waits: tests. What runs them is `Attempts`.

A plain handler runs on the thread of the caller, so that it can use what belongs to that thread: a
connection in the middle of a transaction. Coroutines run on a loop for them alone, or on that of
the caller, who awaits. Neither sees variables of `contextvars` that the caller has set.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Self, TypeVar

from tenure.handlers.registry import Handlers
from tenure.rules.reports import Lease, Verdict, WorkSource
from tenure.telemetry.tracing import Tracing
from tenure.values.redaction import Redaction
from tenure.worker.attempts import Attempts
from tenure.worker.child import Lifespans
from tenure.worker.leases import Attempt, LeaseBook, Wakeup
from tenure.worker.log import FailureCalls, WorkLog
from tenure.worker.note_writer import NoteWriter
from tenure.worker.threads import CallingThread, Threads

T = TypeVar("T")

POLL_SECONDS = 60.0


class SingleRunner:
    """Runs attempts to their end; the caller reports them. For `with` or `async with`.

    The lifespans of the application begin with the first attempt and end with the block.
    """

    def __init__(
        self,
        source: WorkSource,
        handlers: Handlers,
        worker: str,
        redaction: Redaction,
        tracing: Tracing | None,
        *,
        children: bool = False,
    ) -> None:
        """`worker` is the id of the holder of the leases, `children` whether there are processes.

        Other arguments are those of `Worker`.
        """
        self._source = source
        self._handlers = handlers
        self._worker = worker
        self._tracing = tracing
        self._has_children = children
        self._failures = FailureCalls(handlers.hooks.on_failure)
        self._log = WorkLog(worker, redaction, self._failures)
        self._loop = _Loop()
        self._lifespans = Lifespans(self._loop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._lifespans.leave()
        finally:
            self._loop.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._lifespans.leave_async()

    def run(self, lease: Lease) -> Attempt:
        """Run the handler of a lease; return its attempt, which has a report."""
        self._lifespans.enter(self._handlers.hooks.lifespans)
        if self._needs_loop(lease):
            return self._loop.run(self._run_on_loop(lease))
        attempts, book, _ = self._attempts(CallingThread)
        book.hold([lease])
        attempts.admit()
        attempts.collect()
        return book.take_reports()[0]

    def _needs_loop(self, lease: Lease) -> bool:
        handler = self._handlers.find(lease.type)
        if handler is None:
            return False
        return handler.is_async or (self._has_children and (handler.in_process or lease.alone))

    async def run_async(self, lease: Lease) -> Attempt:
        """Do the same on the running loop; a plain handler runs in a thread."""
        await self._lifespans.enter_async(self._handlers.hooks.lifespans)
        return await self._run_on_loop(lease)

    async def _run_on_loop(self, lease: Lease) -> Attempt:
        attempts, book, wakeup = self._attempts(Threads)
        wakeup.attach()
        try:
            book.hold([lease])
            attempts.admit()
            attempts.collect()
            while not book.unreported:
                await wakeup.wait(POLL_SECONDS)
                attempts.collect()
            return book.take_reports()[0]
        finally:
            attempts.close()

    def reported(self, attempt: Attempt, verdict: Verdict) -> None:
        """Log what the store made of a report."""
        self._log.refresh_level()
        self._log.answered([attempt], [verdict])

    def call_failures(self) -> None:
        """Call the functions of `on_failure` for what was reported."""
        contextvars.Context().run(self._failures.call, self._loop.run)

    async def call_failures_async(self) -> None:
        """Do the same: coroutines on the running loop, plain functions on a thread."""
        if self._failures:
            loop, context = asyncio.get_running_loop(), contextvars.Context()
            run = partial(asyncio.run_coroutine_threadsafe, loop=loop)
            call = partial(context.run, self._failures.call, lambda one: run(one).result())
            await loop.run_in_executor(None, call)

    def _attempts(self, threads: type[Threads]) -> tuple[Attempts, LeaseBook, Wakeup]:
        wakeup, book = Wakeup(), LeaseBook(1, self._worker, self._source.database)
        notes = NoteWriter(self._source)
        notes.is_used = True  # so that it starts no thread: reports carry the notes
        attempts = Attempts(
            *(self._handlers, book, 1, wakeup, self._log, notes, self._tracing),
            threads=threads,
            children=self._has_children,
        )
        attempts.start_in(self._lifespans.context)
        return attempts, book, wakeup


class _Loop:
    """A loop for coroutines, on another thread if this one runs a loop already."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return _apart(partial(self._runner.run, coroutine, context=contextvars.Context()))

    def close(self) -> None:
        _apart(self._runner.close)


def _apart(act: Callable[[], T]) -> T:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(act).result()
    return act()  # here, so that what it raises has no other error behind it
