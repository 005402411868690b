"""When a worker talks to its source: which reports it sends, and how many jobs it asks for.

One exchange reports and claims, unless the source holds claims until there is work. Under a backlog
the next exchange starts while the last one is under way. `Demand` says how many jobs to claim and
when, `ReportBackoff` how long to wait after no answer.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from msgspec.structs import replace

from tenure import errors, failpoints
from tenure.handlers.registry import Handlers
from tenure.rules.reports import ClaimRequest, Exchange, Lease, Outcome, WorkSource, is_full
from tenure.telemetry.logs import Repeats
from tenure.values.text import quantity
from tenure.worker.attempts import Attempts
from tenure.worker.heartbeat import Heartbeat
from tenure.worker.leases import Attempt, LeaseBook, Wakeup, reports_of
from tenure.worker.log import WorkLog

POLL_SECONDS = 0.1
CALM_SECONDS = 0.2
"""A claim asks when the next job falls due once no jobs have come for so long."""
QUIET_SECONDS = 2.0
QUIET_POLL_SECONDS = 0.25
"""How often the source is asked once no jobs have come for `QUIET_SECONDS`. It notifies of new
jobs: polls are for jobs that fall due, and for notifications that got lost."""
SURE_POLL_SECONDS = 2.0
"""The same if the source is sure to notify, and says when the next job falls due."""
MAX_CLAIMED = 1_000
"""Jobs in one claim."""
MIN_BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 5.0


class ReportBackoff:
    """How long to wait before the next exchange with a source that did not answer."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.until = 0.0  # by the monotonic clock
        self._random = secrets.SystemRandom()

    def failed(self) -> float:
        """Wait twice as long as the last time; return the seconds.

        They are partly random: workers that lost the source together return one by one.
        """
        self.seconds = min(max(self.seconds * 2, MIN_BACKOFF_SECONDS), MAX_BACKOFF_SECONDS)
        wait = self.seconds * self._random.uniform(0.5, 1.0)
        self.until = time.monotonic() + wait
        return wait

    def answered(self) -> None:
        """Wait no longer: the source has answered."""
        self.seconds = self.until = 0.0


class Demand:
    """How many jobs to claim, and when.

    Jobs are claimed ahead to keep handlers busy during an exchange. `ahead` grows while handlers
    run out of jobs, and shrinks as soon as jobs have to wait for a slot.
    """

    def __init__(self, concurrency: int) -> None:
        self.ahead = 0
        self.backlogged = False
        """Whether the last claim brought as many jobs as it asked for."""
        self.next_poll = 0.0
        self._concurrency = concurrency
        self._may_be_more = True
        self._busy_at = 0.0  # when jobs were claimed last

    def notify(self) -> None:
        """Note that there may be work. Called from any thread."""
        self._may_be_more = True

    def poll(self, now: float) -> None:
        """Suppose that there is work if the source has not been asked for long."""
        if now >= self.next_poll:
            self._may_be_more = True
            self.next_poll = now + (QUIET_POLL_SECONDS if self.is_quiet(now) else POLL_SECONDS)

    def is_quiet(self, now: float) -> bool:
        """Whether no jobs have come for some time."""
        return now - self._busy_at > QUIET_SECONDS

    def is_calm(self, now: float) -> bool:
        """Whether to ask when the next job falls due."""
        return now - self._busy_at > CALM_SECONDS

    def sleep(self, now: float, seconds: float) -> None:
        """Note that only a notification can bring a job before these seconds are over."""
        self.next_poll = now + min(seconds, SURE_POLL_SECONDS)

    def jobs(self, present: int) -> int:
        """Return how many jobs to ask for where `present` are here or on their way."""
        room = self._concurrency + self.ahead - present
        return min(room, MAX_CLAIMED) if self._may_be_more else 0

    def free(self, present: int) -> int:
        """Return how many handlers have nothing to run, where `present` jobs are here or coming."""
        return max(self._concurrency - present, 0)

    def asked(self) -> None:
        """Note that a claim was sent. Without a backlog, the next one waits for a reason."""
        self._may_be_more = self.backlogged

    def answered(self, asked: int, claimed: int, *, idle: bool, max_ahead: int) -> None:
        """Learn from a claim of `asked` jobs. `idle`: no job was left here when it came."""
        if claimed:
            self._busy_at = time.monotonic()
        self.backlogged = claimed >= asked
        if self.backlogged:
            self._may_be_more = True
            if idle:
                self.ahead = min(max(2 * self.ahead, 2 * self._concurrency), max_ahead)


# --- exchanges ------------------------------------------------------------------------------------

log = logging.getLogger(__name__)

LONG_POLL_SECONDS = 2.0
MAX_REPORTS = 1_000
"""Reports in one exchange."""
OVERLAP_FROM = 250
"""Jobs claimed ahead from which on exchanges overlap; below, jobs start in the order of claims."""
MAX_OVERLAP_SECONDS = 0.2
"""An exchange that takes longer waits for other processes: another one would only be in the way."""
MAX_AHEAD_SECONDS = 1.0
"""A job claimed ahead that has not started by then is handed back for other workers."""
LEAVE_SECONDS = 1.0
BUSY_SECONDS = 1.0
"""After which a report is sent again where a transaction has the job locked."""
SILENT_SECONDS = 5.0
"""How long an exchange may take before the source counts as silent; more than a long poll takes."""
PRESENT_SECONDS = 10.0
"""How often a worker that has no room for jobs says that it is there."""
UNRECORDABLE = "the store could not record that the job"


Room = Callable[[Sequence[str]], tuple[tuple[str, ...], int]]
"""From the queues of the attempts that are here: which queues to claim from, and how many jobs."""


@dataclass(slots=True, eq=False)
class Flight:
    """One exchange under way: the attempts that it reports, and its claim."""

    attempts: list[Attempt]
    claim: ClaimRequest | None
    due_at: float  # by the monotonic clock; without an answer by then the source is silent
    task: asyncio.Task[None] | None = None


class Exchanges:
    """The exchanges of one worker with its source. Lives on the event loop."""

    def __init__(
        self,
        source: WorkSource,
        attempts: Attempts,
        leases: LeaseBook,
        heart: Heartbeat,
        wakeup: Wakeup,
        worklog: WorkLog,
        *,
        handlers: Handlers,
        request: ClaimRequest,
        concurrency: int,
        room: Room | None = None,
    ) -> None:
        """`request` has what all claims have in common, except for the queues if there is `room`.

        Claims with `room` are made one after the other, and not ahead.
        """
        self.demand = Demand(concurrency)
        self.backoff = ReportBackoff()
        self._source = source
        self._attempts = attempts
        self._leases = leases
        self._heart = heart
        self._wakeup = wakeup
        self._worklog = worklog
        self._handlers = handlers
        self._request = request
        self._room = room
        self._flights: set[Flight] = set()
        self._has_answered = False
        self._took = 0.0  # seconds of the last exchange
        self._present_until = 0.0  # by the monotonic clock; then it has to say that it is there
        self._busy = 0  # how many reports wait, since transactions have their jobs locked
        self.moved: errors.StoreMoved | None = None
        """Set once the source has said that its jobs are elsewhere: nothing can be reported."""
        self._repeats = Repeats()
        self._suspects = 0  # how many of the next reports are sent one by one
        self._stop_listening: Callable[[], None] | None = None

    @property
    def under_way(self) -> int:
        """How many exchanges the source has not answered, and reports that wait for a lock."""
        return len(self._flights) + self._busy

    def troubles(self) -> list[str]:
        """Return a sentence if the source does not answer, or has not answered yet."""
        now, under_way = time.monotonic(), tuple(self._flights)
        if self.backoff.seconds or any(flight.due_at < now for flight in under_way):
            return ["the database or server does not answer"]
        return [] if self._has_answered else ["no claim was answered yet"]

    def pause(self) -> float:
        """Return the seconds until there is something to do, if nothing happens."""
        now = time.monotonic()
        if self.backoff.until > now:
            return self.backoff.until - now
        return max(self.demand.next_poll - now, 0.001)

    def notify(self) -> None:
        """Note that there may be work. Called from any thread."""
        self.demand.notify()
        self._wakeup.notify()

    def listen(self) -> None:
        """Be notified of work, unless the last claim brought all that it asked for.

        Then there may be more, and a notification would say nothing new. A source that does not
        answer is no reason not to work.
        """
        if self.demand.backlogged:
            self.stop_listening()
        elif self._stop_listening is None:
            try:
                self._stop_listening = self._source.on_work(self.notify)
            except errors.TenureError as error:
                self._stop_listening = lambda: None  # until the next backlog
                log.warning("no notifications, polling only: %s", error)

    def stop_listening(self) -> None:
        if self._stop_listening is not None:
            self._stop_listening()
            self._stop_listening = None

    def cancel(self, *, held_only: bool = False) -> None:
        """Give up every exchange under way, or only a claim that is held until there is work."""
        for flight in self._flights:
            held = flight.claim is not None and flight.claim.wait_seconds
            if flight.task is not None and (held or not held_only):
                flight.task.cancel()

    async def finish_claims(self) -> None:
        """Wait for the answers of claims under way, if they come soon."""
        claiming = [flight.task for flight in self._flights if flight.claim and flight.task]
        if claiming:
            await asyncio.wait(claiming, timeout=LEAVE_SECONDS)

    async def leave(self) -> None:
        """Have this worker listed no longer; in vain if the source does not answer soon."""
        self._worklog.catch_up(math.inf)
        try:
            future = self._source.exchange((), replace(self._request, limit=1, leaves=True))
            await asyncio.wait_for(asyncio.wrap_future(future), LEAVE_SECONDS)
        except (errors.TenureError, TimeoutError) as error:
            log.info(
                "the list of workers has this one for some minutes more: %s",
                str(error) or "no answer",
            )

    # --- start

    def step(self) -> None:
        """Finish attempts, and start the exchanges that are due: report those, claim what fits."""
        self._attempts.collect()
        if self._leases.oldest_wait() > MAX_AHEAD_SECONDS:
            self.demand.ahead = 0
            self._leases.release_unstarted()
        now = time.monotonic()
        if now < self.backoff.until:
            return
        self.demand.poll(now)
        if self._source.waits:
            self._start_apart()
        else:
            self._start_together()

    def _start_apart(self) -> None:
        """Claims are held for seconds, so reports have exchanges without one."""
        claim = None if self._flights else self._claim()
        if self._leases.unreported and not any(flight.attempts for flight in self._flights):
            self._start(None, report=True)
        if claim is not None:
            self._start(claim, report=False)

    def _start_together(self) -> None:
        while self._another_is_worth_it():
            claim = self._claim()
            if not self._leases.unreported and claim is None:
                return
            self._start(claim, report=True)

    def _another_is_worth_it(self) -> bool:
        """Whether to start an exchange now, perhaps beside others.

        One at a time suffices for jobs that take their time. Where the source is the bottleneck,
        the next one is made ready while it works: as soon as no job is left here, or enough have
        ended for a transaction.
        """
        if not self._flights:
            return True
        if not self.demand.backlogged or self.demand.ahead < OVERLAP_FROM or self._suspects:
            return False
        if self._took > MAX_OVERLAP_SECONDS:
            return False
        if len(self._flights) >= self._source.exchanges:
            return False
        return self._leases.count == 0 or self._leases.unreported >= MAX_REPORTS

    def _claim(self) -> ClaimRequest | None:
        present = self._leases.count
        on_the_way = sum(f.claim.limit for f in self._flights if f.claim is not None)
        limit = self.demand.jobs(present + on_the_way)
        if limit <= 0 or self._leases.is_closed:
            return self._presence()
        idle = present == 0
        wait = LONG_POLL_SECONDS if idle and self._source.waits else 0.0
        queues = self._request.queues
        if self._room is not None:
            queues, most = self._room(self._leases.queues())
            limit = 0 if on_the_way else min(limit, most)
            if limit <= 0:
                return None
        known = self._handlers.types()
        types = self._attempts.fitness.fit(known)
        if types == () and known != ():
            return None
        return replace(
            self._request,
            limit=limit,
            free=min(limit, self.demand.free(present + on_the_way)),
            queues=queues,
            types=types,
            wait_seconds=wait,
            next_due=self.demand.is_calm(time.monotonic()),
        )

    def _presence(self) -> ClaimRequest | None:
        """Ask for no job, only to be listed as alive, or as stopping."""
        stopping = self._leases.is_closed
        if time.monotonic() < self._present_until and stopping == self._request.stopping:
            return None
        self._request = replace(self._request, stopping=stopping)
        return replace(self._request, types=self._handlers.types())

    def _start(self, claim: ClaimRequest | None, *, report: bool) -> None:
        most = 1 if self._suspects else MAX_REPORTS
        attempts = self._leases.take_reports(most) if report else []
        if claim is not None:
            self._present_until = time.monotonic() + PRESENT_SECONDS
            if claim.limit:
                self.demand.asked()
        flight = Flight(attempts, claim, time.monotonic() + SILENT_SECONDS)
        self._flights.add(flight)
        flight.task = asyncio.get_running_loop().create_task(self._fly(flight))
        flight.task.add_done_callback(lambda _: self._flights.discard(flight))

    # --- end

    async def _fly(self, flight: Flight) -> None:
        self._worklog.refresh_level()
        try:
            if flight.attempts:
                failpoints.hit("worker.before_report")
            began = time.monotonic()  # before: it may be answered before the call returns
            future = self._source.exchange(reports_of(flight.attempts), flight.claim)
            future.add_done_callback(partial(self._arrive, began))
            exchange = await asyncio.wrap_future(future)
        except Exception as error:
            self._failed(flight.attempts, error)
        else:
            self._answered(flight, exchange)
        finally:
            self._flights.discard(flight)
            self._wakeup.set()

    def _arrive(self, began: float, future: Future[Exchange]) -> None:
        """Answer for new leases at once, on whatever thread: the loop may be blocked.

        Leases that may have spent a third of their time on the way are renewed without delay, and
        so are leases that a heartbeat may have asked about meanwhile.
        """
        self._took = time.monotonic() - began
        if future.cancelled() or future.exception() is not None:
            return
        if leases := future.result().leases:
            self._leases.hold(leases)
            late = time.monotonic() - began > self._request.lease_seconds / 3
            if late or self._heart.asked_at > began:
                self._heart.beat_now()

    def _answered(self, flight: Flight, exchange: Exchange) -> None:
        self.backoff.answered()
        self._has_answered = True
        self._suspects = max(self._suspects - len(flight.attempts), 0)
        if busy := self._leases.reported(flight.attempts, exchange.verdicts):
            self._busy += len(busy)
            asyncio.get_running_loop().call_later(BUSY_SECONDS, self._report_again, busy)
        self._worklog.answered(flight.attempts, exchange.verdicts)
        if flight.claim is not None and flight.claim.limit:
            self._take(exchange.leases, flight.claim.limit)
            if exchange.next_due is not None:
                self.demand.sleep(time.monotonic(), exchange.next_due)

    def _report_again(self, attempts: list[Attempt]) -> None:
        self._busy -= len(attempts)
        self._leases.put_back(attempts)
        self._wakeup.set()

    def _take(self, arrived: Sequence[Lease], asked: int) -> None:
        """Start what was leased, and tune how much is claimed ahead."""
        self.demand.answered(
            asked,
            asked if len(arrived) < asked and is_full(arrived) else len(arrived),
            idle=self._leases.count == 0,
            max_ahead=MAX_CLAIMED * self._source.exchanges,
        )
        self.listen()
        if self._leases.oldest_wait() > MAX_AHEAD_SECONDS / 4:
            self.demand.ahead //= 2
        if arrived:
            try:
                failpoints.hit("worker.before_start")
                self._worklog.claimed(arrived)
            except BaseException:
                # Heartbeats must not keep what no loop runs.
                self._leases.forget(lease.lease_id for lease in arrived)
                raise
        self._attempts.admit()

    def _failed(self, attempts: list[Attempt], error: Exception) -> None:
        """Keep the outcomes that the store did not record; reporting them again is harmless."""
        if isinstance(error, errors.StoreMoved):
            self.moved = error
            return
        if not isinstance(error, errors.StoreUnavailable | errors.Unauthorized):
            self._doubt(attempts, error)
        self._leases.put_back(attempts)
        self.demand.notify()
        wait = self.backoff.failed()
        if self._repeats.is_due(error):
            expected = isinstance(
                error,
                errors.Unauthorized
                | errors.Forbidden
                | errors.StoreUnavailable
                | errors.WriteRefused,
            )
            log.warning(
                "%s: it keeps %s and tries again in %.1f s: %s",
                _said(error),
                quantity(self._leases.unreported, "outcome"),
                wait,
                error,
                exc_info=None if expected else error,
            )

    def _doubt(self, attempts: list[Attempt], error: Exception) -> None:
        """The store cannot record one of these: send them one by one, so that it fails alone.

        A report that fails alone is sent once more as a plain failure, then given up.
        """
        self._suspects = len(attempts)
        if len(attempts) != 1:
            return
        (attempt,) = attempts
        report = attempt.report
        assert report is not None
        if report.error.startswith(UNRECORDABLE):
            log.error("the outcome of job %s cannot be recorded: its lease runs out", report.job_id)
            self._leases.forget([report.lease_id])
            attempts.clear()
            return
        why = f"{UNRECORDABLE} {report.outcome}: {type(error).__name__}"
        if isinstance(
            error, errors.InvalidInput | errors.WriteRefused
        ):  # of its jobs or its result; of the row
            why = f"{why}: {error}"
        failed = replace(report, outcome=Outcome.FAILED, result=None, error=why, jobs=None)
        attempt.report = failed


def _said(error: Exception) -> str:
    if isinstance(error, errors.Unauthorized | errors.Forbidden):
        return "the server refused this worker"
    if isinstance(error, errors.WriteRefused):
        return "the store refused an outcome of this worker"
    return "the store did not answer this worker"
