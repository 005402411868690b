"""Calls the functions that an application registered with `on_failure`."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from queue import SimpleQueue
from typing import Any

from tenure.jobs.hooks import Failure, OnFailure
from tenure.jobs.work import Lease
from tenure.lifecycle import Job

log = logging.getLogger(__name__)

MAX_WAITING = 1_000
"""Failures that wait for slow functions; those beyond are logged only."""
FINISH_SECONDS = 5.0


class FailureCalls:
    """Calls each function for each failure, one after the other, on a thread."""

    def __init__(self, functions: Sequence[OnFailure]) -> None:
        self._functions = functions
        self._waiting: SimpleQueue[Failure | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="tenure-failures", daemon=True)

    def __bool__(self) -> bool:
        return bool(self._functions)

    def add(
        self,
        job: Lease | Job,
        error: str,
        exception: BaseException | None,
        final: bool,
        retry_in: float | None,
    ) -> None:
        """Call the functions soon. Safe from any thread, also before `start`."""
        facts = job.id, job.type, job.queue, job.attempts, job.max_retries
        if self._waiting.qsize() < MAX_WAITING:
            self._waiting.put(Failure(*facts, error, exception, final, retry_in))
        else:
            log.warning("on_failure is too slow: it is not called for job %s", job.id)

    def start(self) -> None:
        """Begin, with the running loop as the one for coroutines."""
        if self._functions:
            self._loop = asyncio.get_running_loop()
            self._thread.start()

    async def finish(self) -> None:
        """Wait until the functions were called for all failures so far, for a few seconds."""
        self._waiting.put(None)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, FINISH_SECONDS)

    def call(self, run: Callable[[Coroutine[Any, Any, Any]], object]) -> None:
        """Call them for all failures so far on this thread; `run` runs the coroutines."""
        self._waiting.put(None)
        self._run(run)

    def _run(self, run: Callable[[Coroutine[Any, Any, Any]], object] | None = None) -> None:
        while (failure := self._waiting.get()) is not None:
            for function in self._functions:
                try:
                    answer = function(failure)
                    if isinstance(answer, Coroutine):
                        (run or self._run_on_loop)(answer)
                except BaseException:  # even SystemExit, because the next function must be called
                    log.exception("on_failure failed for job %s", failure.id)

    def _run_on_loop(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
