"""A worker process: one worker, the sweeper where there is a store to sweep, and the signals.

The first SIGTERM or SIGINT asks the worker to finish within its grace period; the second ends the
process at once, and the leases run out by themselves.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from tenure.app import Tenure
from tenure.handlers import Handlers
from tenure.sweeper import Sweeper
from tenure.worker import Worker, WorkSource

ABORTED = 130


def run_worker(
    source: WorkSource,
    handlers: Handlers,
    *,
    queues: Sequence[str] | None = None,
    concurrency: int = 16,
    lease_seconds: float = 30.0,
    grace_seconds: float = 30.0,
) -> None:
    """Run handlers for jobs from `source` until a signal asks to stop; returns when drained."""
    sweeper = Sweeper(source) if isinstance(source, Tenure) else None

    async def work() -> None:
        worker = Worker(
            source,
            handlers,
            queues=queues,
            concurrency=concurrency,
            lease_seconds=lease_seconds,
            grace_seconds=grace_seconds,
        )
        handle_signals(worker.request_stop)
        await worker.run()

    if sweeper is not None:
        sweeper.start()
    try:
        run_loop(work())
    finally:
        if sweeper is not None:
            sweeper.stop()


def handle_signals(stop: Callable[[], None]) -> None:
    """Call `stop` on the first SIGTERM or SIGINT of this process, end it at once on the second."""
    loop = asyncio.get_running_loop()
    asked = 0

    def on_signal() -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            os._exit(ABORTED)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on uvloop where it is installed, on asyncio's own loop elsewhere."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        asyncio.run(main)
        return
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main)
