"""The regular duties beside a database: leases, schedules, retention, bulk actions, statistics,
webhooks.

A look once a second says which of them there is work for, and the others cost nothing.

Any number of processes may do them at once. The store tests each lease again in the write that
ends it, counts each transition once, and makes each delivery once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

from tenure.app.app import Tenure
from tenure.app.bulk import run_batches
from tenure.app.schedules import decide_due, set_right
from tenure.errors import StoreMoved, StoreUnavailable, TenureError
from tenure.lifecycle import Job, Status, retry_in
from tenure.rules.jobs import Duration
from tenure.rules.reports import Duty
from tenure.telemetry import logs
from tenure.telemetry.logs import Repeats
from tenure.values.durations import retention
from tenure.worker.log import FailureCalls

log = logging.getLogger(__name__)

PRUNE_EVERY_SECONDS = 60.0
TIMES_EVERY_SECONDS = 60.0
PRUNE_SHARE = 0.5
FULL_SWEEP = 500
"""Leases or jobs that one call of a sweep ends at most; after so many there may be more."""
BULK_SHARE = 0.5
"""The part of an interval that bulk actions may take, so that the next sweep is not late."""
SCHEDULES_SHARE = 0.5
FOLLOW_SHARE = 0.5
WEBHOOK_SHARE = 0.25
BUSY_SHARE = 0.05
MAX_SHARE = 0.5
"""The part of an interval for statistics: more in quiet times, and if they fall behind."""
MAX_LAG = timedelta(seconds=10)
"""How far the statistics may fall behind before they get more time."""

STOOD_STILL = "this process stood still"
STALL_SECONDS = 1.0
LATE_SECONDS = 3.0
"""After how long an answer is late: longer than the rest before the next look."""
MAX_SPARE_SECONDS = 60.0
"""How long leases are spared at most: workers that renew again take no longer."""


def _uptime() -> float:
    """Return the seconds since the machine started; on Linux with those in which it slept."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class StallWatch:
    """Knows whether heartbeats could not arrive lately, which must not count against leases.

    That is so while this process stands still, because it was stopped, suspended or had no
    processor: its own heartbeats are not sent, and a server does not get those of others. It is so
    for all workers of a store that does not answer.
    """

    def __init__(self, clock: Callable[[], float] = _uptime, *, spare: float = 0.0) -> None:
        """`clock` is in seconds. No lease ends in the first `spare` seconds."""
        self._clock = clock
        self._turned_at: float | None = None
        self._away_since: float | None = None
        self._spare_until = clock() + spare if spare else 0.0

    def turned(self) -> None:
        """Note that the event loop runs; called several times a second."""
        before, self._turned_at = self._turned_at, self._clock()
        self._spare(0.0 if before is None else self._turned_at - before, STOOD_STILL)

    def rest(self, seconds: float, end: threading.Event) -> None:
        """Wait for `end`, at most for `seconds`, and note if that took too long."""
        began = self._clock()
        end.wait(seconds)
        self._spare(self._clock() - began - seconds, STOOD_STILL)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Note whether the store answers what is asked in the block, and how late.

        Of a late answer, the time counts in which no lease was spared. So in a store that is
        always slow, leases end after every other look.
        """
        asked_at = self._clock()
        try:
            yield
        except StoreUnavailable:
            self._away_since = asked_at if self._away_since is None else self._away_since
            raise
        away_since, self._away_since = self._away_since, None
        since = max(asked_at, self._spare_until) if away_since is None else away_since
        seconds = self._clock() - since
        if away_since is not None or seconds > LATE_SECONDS:
            self._spare(seconds, "the database did not answer")

    def _spare(self, seconds: float, why: str) -> None:
        if seconds <= STALL_SECONDS:
            return
        spare = min(seconds, MAX_SPARE_SECONDS)
        until, before = self._clock() + spare, self._spare_until
        self._spare_until = max(until, before)
        if until > before + STALL_SECONDS:  # the loop and the sweep notice the same pause
            log.warning(
                "%s for %.1f s, so this process ends no lease for %.1f s", why, seconds, spare
            )

    def may_end_leases(self) -> bool:
        """Whether heartbeats had the time to arrive that leases give them."""
        now = self._clock()
        stands_still = self._turned_at is not None and now - self._turned_at > STALL_SECONDS
        return not stands_still and now >= self._spare_until


class MaintenanceThread(threading.Thread):
    """Does its duties every `interval` seconds, in its own thread."""

    def __init__(
        self,
        app: Tenure,
        *,
        interval: float = 1.0,
        keep: Mapping[str, Duration] | None = None,
        without_errors: bool = False,
        watch: StallWatch | None = None,
        failures: FailureCalls | None = None,
    ) -> None:
        """`keep` is how long settled jobs are kept, by status; the others are never deleted.

        `without_errors` leaves errors out of what webhooks are sent, because they may hold what is
        redacted. `watch`, by default a new one, says when no lease may end. `failures` gets the
        jobs whose leases were ended. Raises InvalidInput if `keep` names a status that is not
        final.
        """
        super().__init__(name="tenure-maintenance", daemon=True)
        self._core = app.core
        self._interval = interval
        self._watch = watch or StallWatch()
        self._failures = failures
        self._keep = retention(keep or {})
        self._undecided: set[str] = set()  # schedules that are for other processes
        self._repeats = Repeats()
        forward = partial(app.core.forward_to_webhooks, without_errors=without_errors)
        self._found: Collection[Duty] = ()
        self._duties: Sequence[tuple[Duty | None, Callable[[], object]]] = (
            (Duty.LEASES, lambda: self._sweep(self._core.sweep)),
            (Duty.STARTS, lambda: self._sweep(lambda: self._core.store.expire().result())),
            (Duty.WAITS, lambda: self._sweep(lambda: self._core.store.time_out().result())),
            (Duty.DEPENDENCIES, lambda: self._repeat(self._core.follow, FOLLOW_SHARE)),
            (Duty.SCHEDULES, self._decide_ticks),
            (Duty.WORKFLOWS, self._finish_workflows),
            (None, self._set_times_right),
            (None, self._delete_old_jobs),  # at times that are known here
            (Duty.THROTTLES, lambda: self._repeat(self._forget_throttles, PRUNE_SHARE)),
            (Duty.BULKS, lambda: self._repeat(lambda: run_batches(app.core), BULK_SHARE)),
            (Duty.TRANSITIONS, self._count_transitions),
            (Duty.WEBHOOKS, lambda: self._repeat(forward, WEBHOOK_SHARE)),
        )
        self._end = threading.Event()
        self._prune_at = self._times_at = 0.0  # by the monotonic clock
        self._zones_checked = self._behind = False
        self._workflows_before = self._moved = ""
        self._stats_share = BUSY_SHARE
        self._ledger_end: object = None

    def stop(self) -> None:
        """Ask the thread to end, and wait for it."""
        self._end.set()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        """Do the duties until asked to end; called by `start`, on the thread."""
        while not self._end.is_set():
            self.do_once()
            self._watch.rest(0 if self._behind else self._interval, self._end)

    def do_once(self) -> None:
        """Do each duty that there is work for; on any thread."""
        if self._try(self._look):
            for duty, do in self._duties:
                if (duty is None or duty in self._found) and not self._try(do):
                    break

    def _look(self) -> None:
        self._behind = False
        with self._watch.asking():
            self._found = self._core.look()

    def _try(self, duty: Callable[[], object]) -> bool:
        """Do a duty; return False if the database is away. A failure does not stop the others."""
        try:
            duty()
        except Exception as error:
            self._log_failure(error)
            return not isinstance(error, StoreUnavailable)
        return True

    def _log_failure(self, error: Exception) -> None:
        if isinstance(error, StoreMoved):
            if str(error) != self._moved:
                log.error("nothing can be written here any more: %s", error)
            self._moved = str(error)
        elif self._repeats.is_due(error):
            expected = isinstance(error, TenureError)
            log.log(
                logging.WARNING if expected else logging.ERROR,
                "the sweep failed and is tried again every %ss: %s",
                self._interval,
                error,
                exc_info=None if expected else error,
            )

    def _repeat(self, step: Callable[[], object], share: float) -> bool:
        """Call `step` while there is more to do; return whether the share of time was too short."""
        until = time.monotonic() + share * self._interval
        while not self._end.is_set() and step():
            if time.monotonic() > until:
                return True
        return False

    # --- the duties

    def _sweep(self, sweep: Callable[[], Sequence[Sequence[Job]]]) -> None:
        while self._watch.may_end_leases() and not self._end.is_set():
            ended = sweep()
            for steps in ended:
                logs.log_steps(log, steps)
                if self._failures and steps[0].status is Status.FAILED:
                    error, final = steps[0].last_error or "", len(steps) == 1
                    wait = None if final else retry_in(steps)
                    self._failures.add(steps[0], error, None, final, wait)
            if len(ended) < FULL_SWEEP:
                return

    def _decide_ticks(self) -> None:
        decide = partial(decide_due, self._core, self._undecided)
        self._behind = self._repeat(decide, SCHEDULES_SHARE)  # then the other duties, and again

    def _finish_workflows(self) -> None:
        self._workflows_before = self._core.finish_workflows(self._workflows_before)

    def _set_times_right(self) -> None:
        if time.monotonic() >= self._times_at:
            self._undecided.clear()  # try them once a minute
            self._times_at = time.monotonic() + TIMES_EVERY_SECONDS
            set_right(self._core, zones=not self._zones_checked)
            self._zones_checked = True
            for steps in self._core.store.set_times_right().result():
                self._times_at = 0.0  # there may be more
                logs.log_steps(log, steps)

    def _delete_old_jobs(self) -> None:
        wanted = self._keep or Duty.RETENTION in self._found
        if wanted and time.monotonic() >= self._prune_at:
            self._prune_at = time.monotonic() + PRUNE_EVERY_SECONDS
            refused = list[Exception]()
            prune = partial(self._core.prune, self._keep, refused.append)
            if self._repeat(prune, PRUNE_SHARE):
                self._prune_at = 0.0  # there is more
            for error in refused[:1]:  # each batch has another text
                self._log_failure(error)

    def _forget_throttles(self) -> int:
        return self._core.store.forget_throttles().result()

    def _count_transitions(self) -> None:
        share, self._stats_share = self._stats_share, BUSY_SHARE
        if self._repeat(lambda: self._core.measure(yielding=True), share):
            end, lag = self._core.store.stats_reach()
            quiet, self._ledger_end = end == self._ledger_end, end
            if quiet or lag > MAX_LAG:
                self._stats_share = MAX_SHARE
