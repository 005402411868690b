"""The heartbeat of a worker: a thread that keeps its leases, even while its event loop is blocked.

It is also what notices a blocked loop. Then it logs whose handler blocks, hands back the jobs that
wait, and no longer renews leases of attempts whose timeout passed long ago: the loop would have
ended those, and nothing else can.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time

from tenure.errors import Forbidden, Unauthorized
from tenure.events import LeaseExpired
from tenure.rules.reports import WorkSource
from tenure.telemetry.logs import Repeats
from tenure.worker.leases import LeaseBook, Wakeup, reports_of
from tenure.worker.log import WorkLog

log = logging.getLogger(__name__)

BLOCKED_SECONDS = 1.0
"""How long the loop may leave a wake-up unanswered before its waiting jobs are handed back."""


class Heartbeat(threading.Thread):
    """Renews the leases of a worker every third of `lease_seconds`, from `start` to `stop`."""

    def __init__(
        self,
        source: WorkSource,
        leases: LeaseBook,
        lease_seconds: float,
        wakeup: Wakeup,
        worklog: WorkLog,
    ) -> None:
        super().__init__(name="tenure-heartbeat", daemon=True)
        self._source = source
        self._leases = leases
        self._lease_seconds = lease_seconds
        self._wakeup = wakeup
        self._worklog = worklog
        self._repeats = Repeats()
        self._end = threading.Event()
        self._now = threading.Event()
        self._renewed_at = 0.0
        self.asked_at = 0.0
        """When it was last asked to renew without delay, by the monotonic clock."""

    def stop(self) -> None:
        """Ask the thread to end, without waiting for it."""
        self._end.set()
        self._now.set()

    def beat_now(self) -> None:
        """Renew without delay, which also finds leases that have ended. Called from any thread."""
        self.asked_at = time.monotonic()
        self._now.set()

    def run(self) -> None:
        """Renew leases until asked to end; called by `start`, on the thread."""
        interval = self._lease_seconds / 3
        rounds, since = -1, time.monotonic()
        while True:
            self._now.wait(interval)
            self._now.clear()
            if self._end.is_set() or self._wakeup.loop_is_closed:
                return
            if rounds != self._wakeup.rounds:
                rounds, since = self._wakeup.rounds, time.monotonic()
            silent = time.monotonic() - since  # the loop was woken at `since`
            blocked = silent > BLOCKED_SECONDS
            try:
                interval = self._renew(blocked)
                if blocked:
                    self._log_who_blocks(silent)
                    self._hand_back()
            except Exception as error:
                if isinstance(error, Unauthorized | Forbidden):
                    self._lose_expired()
                interval = min(1.0, self._lease_seconds / 10)
                if self._repeats.is_due(error):
                    log.warning("the heartbeat failed, trying again in %.1f s: %s", interval, error)
            self._wakeup.notify()

    def _renew(self, blocked: bool) -> float:
        """Renew what is held; return the seconds until the next time."""
        third = self._lease_seconds / 3
        given_up = self._leases.overdue(self._lease_seconds) if blocked else set()
        leases = [lease for lease in self._leases.to_renew() if lease[1] not in given_up]
        if not leases:
            return third
        began = time.monotonic()
        ended = self._source.heartbeat(leases, self._lease_seconds)
        self._renewed_at = began
        took = time.monotonic() - began
        if took > third:
            log.warning(
                "a heartbeat took %.1f s, which is long for leases of %g s: jobs may run "
                "twice. Use a longer lease, or find out why the store is slow",
                took,
                self._lease_seconds,
            )
        self._leases.lose(ended)
        return max(third - took, 0.0)

    def _lose_expired(self) -> None:
        """Lose the leases that have ended while the server refused to renew them."""
        over = time.monotonic() - self._lease_seconds
        if self._renewed_at < over:
            ended = dict.fromkeys(self._leases.claimed_before(over), LeaseExpired.name)
            self._leases.lose(ended)

    def _hand_back(self) -> None:
        """Release what the loop cannot start, and report what has ended."""
        self._leases.release_unstarted()
        attempts = self._leases.take_reports()
        if not attempts:
            return
        try:
            exchange = self._source.exchange(reports_of(attempts), None).result()
        except Exception:
            self._leases.put_back(attempts)
            raise
        self._leases.put_back(self._leases.reported(attempts, exchange.verdicts))
        self._worklog.answered(attempts, exchange.verdicts)

    def _log_who_blocks(self, seconds: float) -> None:
        loop = self._wakeup.loop
        task = None if loop is None else asyncio.current_task(loop)
        what = "something that is not a handler"
        for attempt in self._leases.in_slots():
            if task is not None and attempt.task is task:
                what = f"the handler of job {attempt.lease.id} ({attempt.lease.type})"
        log.warning(
            "the event loop has been blocked for %.0f s by %s: meanwhile this worker starts and"
            " stops nothing. Write a handler that blocks as `def`, or with `process=True` if it"
            " computes",
            seconds,
            what,
        )
