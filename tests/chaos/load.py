"""Producers, a worker and a sweeper that go on whatever happens to their database, all on record.

with Load(url, folder) as load:
    ...a fault...
    load.flows_again()
assert checker.check(folder, url) == []
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from pathlib import Path
from typing import Self

from tenure import JobContext, Status, StoreUnavailable, Tenure
from tests.chaos.history import History, Recorded, record_handlers
from tests.support.waiting import RECOVERY_SECONDS, WAIT_SECONDS, wait_until
from tests.support.workers import running_sweeper, running_worker


class Load:
    """Work under way in this process; on exit it is drained, with nothing left pending."""

    def __init__(
        self,
        url: str,
        folder: Path,
        *,
        producers: int = 2,
        lease: float = 2.0,
        pause: float = 0.005,
    ) -> None:
        self.url = url
        self.app = Tenure(url)
        self.accepted = 0
        self.outages = 0
        """Calls of producers that ended without an answer."""
        self._lease = lease
        self._history = History(folder, "load")
        self._recorded = Recorded(self.app, self._history)
        record_handlers(self.app, self._history)
        self._number = itertools.count()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._produce) for _ in range(producers)]
        self._stack = contextlib.ExitStack()

        @self.app.job(max_retries=50, backoff=0)
        async def work(context: JobContext, number: int) -> int:
            if number % 10 == 0 and context.attempt < 3:
                raise ValueError(f"number {number}")
            return number

    def __enter__(self) -> Self:
        self.app.open()
        self._stack.callback(self.app.close)
        self._stack.enter_context(running_sweeper(self.app, interval=0.1))
        self._stack.enter_context(
            running_worker(self.app, self._recorded, lease_seconds=self._lease)
        )
        for thread in self._threads:
            thread.start()
        self.goes_on(20)
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(WAIT_SECONDS)
        try:
            if raised[0] is None:
                wait_until(self._is_empty, "every job to settle")
        finally:
            self._stack.close()

    def goes_on(self, count: int = 20) -> None:
        """Wait until so many more jobs have been accepted."""
        goal = self.accepted + count
        wait_until(lambda: self.accepted >= goal, f"{count} more jobs to be accepted")

    def flows_again(self, seconds: float = RECOVERY_SECONDS) -> float:
        """After an outage: jobs are accepted and run within so many seconds; the seconds taken."""
        began = time.monotonic()
        self.goes_on(1)

        def runs() -> bool:
            try:
                newest = self.app.find(status=Status.COMPLETED, limit=1)
            except StoreUnavailable:
                return False
            return bool(newest) and newest[0].created_at > mark

        def clock() -> object:
            with contextlib.suppress(StoreUnavailable):
                return self.app.core.clock()
            return None

        mark = wait_until(clock, "the store to answer")
        wait_until(runs, "a new job to be run")
        took = time.monotonic() - began
        assert took < seconds
        return took

    def _produce(self) -> None:
        """Enqueue job after job, each until it is accepted."""
        while not self._stop.is_set():
            number = next(self._number)
            while True:
                try:
                    self._recorded.enqueue(
                        "work", {"number": number}, idempotency_key=f"n{number}", max_retries=50
                    )
                except StoreUnavailable:
                    self.outages += 1
                    if self._stop.wait(0.05):
                        return
                else:
                    self.accepted += 1
                    break
            self._stop.wait(0.005)

    def _is_empty(self) -> bool:
        try:
            waiting = (Status.PENDING, Status.PROCESSING)  # in one look: jobs move between them
            return not any(
                count.jobs for count in self.app.stats.counts() if count.status in waiting
            )
        except StoreUnavailable:
            return False
