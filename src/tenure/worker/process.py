"""A worker process: one worker, a sweeper and a courier where there is a store, and the signals.

The first SIGTERM or SIGINT asks the worker to finish within its grace period; the second ends the
process at once, and the leases run out by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any

from tenure.app.app import Tenure
from tenure.jobs.enqueue import Duration
from tenure.jobs.findings import CheckResult
from tenure.jobs.handlers import Handlers
from tenure.jobs.progress import Progress, no_progress
from tenure.jobs.redaction import NOTHING_HIDDEN
from tenure.jobs.reserved import check_queues
from tenure.worker.executors import CHILD, STOP_SIGNALS
from tenure.worker.maintenance import Sweeper
from tenure.worker.webhook_delivery import WebhookDelivery
from tenure.worker.worker import Worker, WorkSource

log = logging.getLogger(__name__)

GUARDED = "library"
"""What Tenure guards against itself; it is so on most machines, and nobody need act on it."""
ABORTED = 130
UNWIND_SECONDS = 1.0
SWITCH_SECONDS = 0.0001
"""How long a thread may have to wait for Python while another computes. The store's threads come
back from the database some ten times a turn; at Python's default of 5 ms they would mostly wait."""


def run_worker(
    source: WorkSource | Tenure,
    handlers: Handlers,
    *,
    queues: Sequence[str] | None = None,
    concurrency: int = 16,
    lease_seconds: float = 30.0,
    grace_seconds: float = 30.0,
    keep: Mapping[str, Duration] | None = None,
    redact: Sequence[str] = (),
    webhooks_private: bool = False,
    progress: Progress = no_progress,
) -> None:
    """Run handlers for jobs from `source` until a signal asks to stop; returns when drained.

    `keep` is retention by status, applied where `source` is the database itself; without it nothing
    is deleted, for that is the server's matter. `redact` are keys of payloads whose values are not
    logged, and webhooks are not told errors then. Beside the database it delivers to webhooks, with
    `webhooks_private` also to addresses that are not public. `tell` is called while it stops, with
    how many of the jobs that ran have ended. Call this on the main thread: Python
    handles signals there alone.
    """
    if multiprocessing.current_process().name == CHILD:
        raise RuntimeError(
            "a child process imports your main module: run workers only under "
            "`if __name__ == '__main__':`"
        )
    queues = check_queues(queues, "queues")
    app = source if isinstance(source, Tenure) else None
    hidden = NOTHING_HIDDEN if app is None else app.core.redaction
    redaction = hidden.also(redact)
    helpers: list[Sweeper | WebhookDelivery] = []
    if app is not None:
        helpers = [
            Sweeper(app, keep=keep, without_errors=bool(redaction)),
            WebhookDelivery(app, private=webhooks_private, grace_seconds=grace_seconds),
        ]

    work_source = source.work_source() if isinstance(source, Tenure) else source

    async def work() -> None:
        worker = Worker(
            work_source,
            handlers,
            queues=queues,
            concurrency=concurrency,
            lease_seconds=lease_seconds,
            grace_seconds=grace_seconds,
            redaction=redaction,
            tracing=getattr(work_source, "tracing", None),
            progress=progress,
        )

        def stop() -> None:
            worker.request_stop()
            for helper in helpers:
                if isinstance(helper, WebhookDelivery):
                    helper.ask_to_stop()

        with stopped_by_signals(stop):
            await worker.run()

    if app is not None:
        log_checks(app)
    for helper in helpers:
        helper.start()
    try:
        with spared_by_collector():
            run_loop(work())
    finally:
        for helper in helpers:
            helper.stop()


def log_checks(app: Tenure) -> threading.Thread:
    """Log what `tenure doctor` would not call ok; on a thread, for the start need not wait."""

    def look() -> None:
        for check in app.check():
            if check.health is CheckResult.PROBLEM:
                log.error("%s: %s. %s", check.name, check.found, check.advice)
            elif check.health is CheckResult.WARNING and check.name != GUARDED:
                log.warning("%s: %s. %s", check.name, check.found, check.advice)

    thread = threading.Thread(target=look, name="tenure-checks", daemon=True)
    thread.start()
    return thread


@contextlib.contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on the first SIGTERM or SIGINT of this process, end it at once on the second.

    These are Python's signal handlers, not the loop's, so that they are heard while a handler
    blocks the loop.
    """
    asked = False

    def on_signal(*_: object) -> None:
        nonlocal asked
        if asked:
            os._exit(ABORTED)
        asked = True
        stop()

    before = {number: signal.signal(number, on_signal) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextlib.contextmanager
def spared_by_collector() -> Iterator[None]:
    """What there is now will stay: the garbage collector need not look it through time and again.

    That would hold up requests, and took a worker 4 % of its rate.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on uvloop where it is installed, on asyncio's own loop elsewhere.

    What it leaves behind is cancelled, and waited for briefly: unlike `asyncio.run`, this ends even
    if a handler goes on regardless, in a coroutine or in a thread of the loop's own.
    """
    sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
    loop = _new_loop()
    try:
        loop.run_until_complete(main)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=UNWIND_SECONDS))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def end_process() -> None:
    """End this process now if a handler left a thread behind that would keep it for ever.

    Python waits for such threads before it exits. For programs whose work is done and reported.
    """
    deadline = time.monotonic() + UNWIND_SECONDS
    left = [t for t in threading.enumerate() if t is not threading.current_thread()]
    for thread in left:
        if not thread.daemon:
            thread.join(max(deadline - time.monotonic(), 0))
    if any(thread.is_alive() and not thread.daemon for thread in left):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.new_event_loop()
    return new_event_loop()
