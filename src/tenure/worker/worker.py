"""The worker: claims jobs, runs their handlers, reports what happened. It decides nothing else.

It depends on a `WorkSource` only, so the same code works beside the database and over HTTP. One
event loop holds all state; handlers run on it, in threads or in child processes, and the next turn
with the store goes on while they do. Heartbeats have a thread of their own (`heartbeat.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Protocol

from msgspec.structs import replace

from tenure import failpoints
from tenure.errors import StoreUnavailable, TenureError
from tenure.jobs.handlers import Handlers
from tenure.jobs.progress import Progress, no_progress
from tenure.jobs.redaction import NOTHING_HIDDEN, Redaction
from tenure.jobs.work import Answer, ClaimRequest, Exchange, Lease, Outcome, Report
from tenure.telemetry.tracing import Tracing
from tenure.worker.attempts import Attempts
from tenure.worker.heartbeat import Heartbeat
from tenure.worker.log import WorkLog

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
QUIET_SECONDS = 2.0
QUIET_POLL_SECONDS = 0.25
"""How often the store is asked once no jobs have come for `QUIET_SECONDS`. New jobs ring: this is
for those that fall due, and for wake-ups that got lost."""
LONG_POLL_SECONDS = 2.0
MAX_CLAIMED = 1_000
"""Jobs in one claim."""
PATIENCE_SECONDS = 1.0
"""A job claimed ahead that has not started by then is handed back for others to run."""
FIRST_BACKOFF = 0.1
MAX_BACKOFF = 5.0
CANCEL_SECONDS = 1.0
MAX_REPORTS = 1_000
OVERLAP_FROM = 250
"""Jobs claimed ahead from which on turns overlap; below, jobs start in the order of their claim."""
UNRECORDABLE = "the store could not record that the job"
FINAL_REPORT_SECONDS = 5.0
TELL_SECONDS = 5.0
"""How often a worker that stops says how many jobs it waits for."""


class WorkSource(Protocol):
    """What a worker needs of the world: `Tenure` beside the database, `Client` over HTTP."""

    @property
    def waits(self) -> bool:
        """Whether a claim may be held until there is work (a long poll)."""

    @property
    def exchanges(self) -> int:
        """How many turns may usefully be under way at once, where claims are not held."""

    def exchange(self, reports: Sequence[Report], claim: ClaimRequest | None) -> Future[Exchange]:
        """Record reports and lease jobs."""

    def heartbeat(self, leases: Sequence[tuple[str, str]], lease_seconds: float) -> set[str]:
        """Extend leases; the lease ids that are still held. Called from any thread."""

    def on_work(self, notify: Callable[[], None]) -> Callable[[], None]:
        """Have `ring` called, from any thread, when there may be work."""


class Worker:
    """Runs jobs until asked to stop. Make one per event loop; `run()` it once."""

    def __init__(
        self,
        source: WorkSource,
        handlers: Handlers,
        *,
        queues: Sequence[str] | None = None,
        concurrency: int = 16,
        lease_seconds: float = 30.0,
        grace_seconds: float = 30.0,
        label: str = "",
        redaction: Redaction = NOTHING_HIDDEN,
        tracing: Tracing | None = None,
        progress: Progress = no_progress,
    ) -> None:
        """`concurrency` handlers at once; `grace_seconds` to finish them when asked to stop.

        `redaction` is for what is logged of errors; `tracing` makes a span for each attempt. `tell`
        is called while it stops, with how many of the jobs that ran have ended.
        """
        self.id = f"worker-{secrets.token_hex(8)}"  # random per start: names can come back
        self._source = source
        self._handlers = handlers
        self._queues = tuple(queues) if queues else None
        self._concurrency = concurrency
        self._lease_seconds = lease_seconds
        self._grace = grace_seconds
        self._label = label or f"{socket.gethostname()}:{os.getpid()}"
        self._held: dict[str, tuple[str, str]] = {}  # every lease we answer for, until reported
        self._reports: deque[Report] = deque()  # outcomes the store has not acknowledged
        self._wake = asyncio.Event()
        self._signalled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._traces = tracing is not None
        self._tell = progress
        self._log = WorkLog(self.id, redaction)
        self._slots = Attempts(
            handlers,
            concurrency,
            actor=self.id,
            worklog=self._log,
            tracing=tracing,
            report=self._reports.append,
            forget=self._forget,
            wake=self._wake.set,
            notify=self._notify,
        )
        self._heart = Heartbeat(
            self._held,
            self._slots,
            lease_seconds,
            renew=source.heartbeat,
            hand_back=self._hand_back_while_blocked,
            notify=self._notify,
        )
        self._arrived: dict[int, Sequence[Lease]] = {}  # leases that the loop has not yet taken
        self._stop_asked = threading.Event()
        self._under_way = 0  # turns
        self._claiming = 0  # turns that claim
        self._reporting = 0  # turns that report
        self._asked = 0  # jobs that the claims under way may bring
        self._exchanges: set[asyncio.Task[None]] = set()
        self._waiting: asyncio.Task[None] | None = (
            None  # a claim that may be held until there is work
        )
        self._may_be_more = True
        self._backlogged = False  # the last claim brought all that it had asked for
        self._next_poll = 0.0
        self._busy_at = 0.0  # when jobs were claimed last
        self._prefetch = 0
        self._suspects = 0  # reports at the head of the queue to be sent one by one
        self._backoff = 0.0
        self._not_before = 0.0
        self._chance = secrets.SystemRandom()

    def request_stop(self) -> None:
        """Ask the worker to finish; safe from any thread and from a signal handler."""
        self._stop_asked.set()
        self._slots.start_no_more()  # at once: a claim may be about to arrive
        self._notify()

    # --- the loop

    async def run(self) -> None:
        """Work until `request_stop`, then drain: see `_drain`."""
        self._loop = asyncio.get_running_loop()
        stop_listening = self._listen()
        self._heart.start()
        try:
            while not self._stop_asked.is_set():
                self._slots.collect()
                self._hand_back_if_stuck()
                self._start_exchanges()
                await self._sleep(self._pause())
            await self._drain()
        finally:
            self._heart.stop()
            stop_listening()
            self._slots.close()
            for task in self._exchanges:
                task.cancel()
            self._heart.join(5)

    def _listen(self) -> Callable[[], None]:
        """Listen for work; a store that is away is no reason not to start."""
        try:
            return self._source.on_work(self._work_may_be_there)
        except TenureError as error:
            log.warning("no wake-ups, polling only: %s", error)
            return lambda: None

    def _notify(self) -> None:
        """Wake the loop, from any thread; many rings in a row cost one wake-up."""
        if not self._signalled and self._loop is not None:
            self._signalled = True
            try:
                self._loop.call_soon_threadsafe(self._wake.set)
            except RuntimeError:  # the loop is closed: nobody is left to wake
                self._heart.stop()

    def _work_may_be_there(self) -> None:
        self._may_be_more = True
        self._notify()

    async def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            # wait() returns without a task of its own for the event, unlike wait_for
            timer = asyncio.get_running_loop().call_later(seconds, self._wake.set)
            await self._wake.wait()
            timer.cancel()
        else:
            await asyncio.sleep(0)
        self._wake.clear()
        self._signalled = False
        self._heart.rounds += 1

    def _pause(self) -> float:
        """Seconds until there is something to do if nothing happens."""
        now = time.monotonic()
        if self._not_before > now:
            return self._not_before - now
        return max(self._next_poll - now, 0.001)

    # --- turns with the store

    def _start_exchanges(self) -> None:
        """Begin what can be begun: report what ended, claim what fits, in one turn if possible."""
        now = time.monotonic()
        if now < self._not_before:
            return
        if now >= self._next_poll:
            self._may_be_more = True
            quiet = now - self._busy_at > QUIET_SECONDS
            self._next_poll = now + (QUIET_POLL_SECONDS if quiet else POLL_SECONDS)
        if self._source.waits:
            claim = None if self._claiming or self._reporting else self._claim()
            if self._reports and not self._reporting:
                self._begin(reports=True, claim=None)
            if claim is not None:
                self._begin(reports=False, claim=claim)
            return
        while self._exchanges_are_worth_it():
            claim = self._claim()
            if not self._reports and claim is None:
                return
            self._begin(reports=bool(self._reports), claim=claim)

    def _exchanges_are_worth_it(self) -> bool:
        """Whether to begin a turn now, be it beside others.

        One at a time serves jobs that take their time. Where the store is what everything waits
        for, the next turn is made ready while it works: as soon as nothing is left to run here, or
        enough has been run for a commit of its own.
        """
        if not self._under_way:
            return True
        if not self._backlogged or self._prefetch < OVERLAP_FROM or self._suspects:
            return False
        if self._under_way >= self._source.exchanges:
            return False
        return self._slots.count() == 0 or len(self._reports) >= MAX_CLAIMED

    def _claim(self) -> ClaimRequest | None:
        room = self._concurrency + self._prefetch - self._slots.count() - self._asked
        if room <= 0 or not self._may_be_more or self._stop_asked.is_set():
            return None
        idle = self._slots.count() == 0
        return ClaimRequest(
            worker=self.id,
            label=self._label,
            limit=min(room, MAX_CLAIMED),
            lease_seconds=self._lease_seconds,
            queues=self._queues,
            types=self._handlers.types(),
            wait_seconds=LONG_POLL_SECONDS if idle and self._source.waits else 0.0,
            traces=self._traces,
        )

    def _begin(self, *, reports: bool, claim: ClaimRequest | None) -> None:
        batch: list[Report] = []
        if reports:
            self._reporting += 1
            most = 1 if self._suspects else MAX_REPORTS
            with suppress(IndexError):  # the heartbeat sends them while the loop is blocked
                while len(batch) < most:
                    batch.append(self._reports.popleft())
        if claim is not None:
            self._claiming += 1
            self._asked += claim.limit
            self._may_be_more = self._backlogged
        self._under_way += 1
        task = asyncio.get_running_loop().create_task(self._exchange(batch, claim))
        self._exchanges.add(task)
        task.add_done_callback(self._exchanges.discard)
        if claim is not None and claim.wait_seconds:
            self._waiting = task

    async def _exchange(self, reports: list[Report], claim: ClaimRequest | None) -> None:
        self._log.refresh_level()
        try:
            if reports:
                failpoints.hit("worker.before_report")
            future = self._source.exchange(reports, claim)
            asked = time.monotonic()
            future.add_done_callback(lambda future: self._hold(future, asked))
            exchange = await asyncio.wrap_future(future)
        except Exception as error:
            self._keep(reports, error)
            self._may_be_more = True
        else:
            self._backoff = self._not_before = 0.0
            self._suspects = max(self._suspects - len(reports), 0)
            for report, verdict in zip(reports, exchange.verdicts, strict=True):
                self._held.pop(report.lease_id, None)
                if verdict.answer in (Answer.LOST, Answer.CONFLICT):
                    log.warning(
                        "the report of %s for job %s came too late: %s %s",
                        report.outcome,
                        report.job_id,
                        verdict.answer,
                        verdict.recorded,
                    )
            self._log.answered(reports, exchange.verdicts)
            self._take(self._arrived.pop(id(exchange), ()), claim)
        finally:
            self._under_way -= 1
            if reports:
                self._reporting -= 1
            if claim is not None:
                self._claiming -= 1
                self._asked -= claim.limit
            self._wake.set()

    def _keep(self, reports: list[Report], error: Exception) -> None:
        """Keep outcomes that the store did not acknowledge; asking again is harmless."""
        if not isinstance(error, StoreUnavailable):
            reports = self._doubt(reports, error)
        self._reports.extendleft(reversed(reports))
        self._backoff = min(max(self._backoff * 2, FIRST_BACKOFF), MAX_BACKOFF)
        # Not in step with all the others that lost the store at the same moment.
        wait = self._backoff * self._chance.uniform(0.5, 1.0)
        self._not_before = time.monotonic() + wait
        known = isinstance(error, StoreUnavailable)
        log.warning(
            "the store did not answer, trying again in %.1f s with %d outcomes kept: %s",
            wait,
            len(self._reports),
            error,
            exc_info=None if known else error,
        )

    def _doubt(self, reports: list[Report], error: Exception) -> list[Report]:
        """The store cannot digest one of these: send them singly, so that it fails alone.

        A report that fails alone is sent once more as a plain failure, then given up.
        """
        self._suspects = len(reports)
        if len(reports) != 1:
            return reports
        (report,) = reports
        if report.error.startswith(UNRECORDABLE):
            log.error("the outcome of job %s cannot be recorded: its lease runs out", report.job_id)
            self._held.pop(report.lease_id, None)
            self._log.forget(report.lease_id)
            return []
        why = f"{UNRECORDABLE} {report.outcome}: {type(error).__name__}"
        return [replace(report, outcome=Outcome.FAILED, result=None, error=why)]

    def _take(self, leases: Sequence[Lease], claim: ClaimRequest | None) -> None:
        """Queue what was leased, and tune how much is claimed ahead.

        Claiming ahead keeps handlers busy during a turn. It grows while they run dry, and shrinks
        as soon as jobs have to wait for a free slot.
        """
        if claim is None:
            return
        if leases:
            self._busy_at = time.monotonic()
        self._backlogged = len(leases) >= claim.limit
        if self._backlogged:
            self._may_be_more = True
            if self._slots.count() == 0:
                most = MAX_CLAIMED * self._source.exchanges
                self._prefetch = min(max(2 * self._prefetch, 2 * self._concurrency), most)
        if self._slots.oldest_wait() > PATIENCE_SECONDS / 4:
            self._prefetch //= 2
        try:
            if leases:
                failpoints.hit("worker.before_start")
                self._log.claimed(leases)
            self._slots.take(leases)
        except BaseException:
            for lease in leases:  # heartbeats must not keep alive what nobody runs
                if not self._slots.has(lease.lease_id):
                    self._held.pop(lease.lease_id, None)
            raise

    def _hold(self, future: Future[Exchange], asked: float) -> None:
        """Answer for new leases at once, on whatever thread: the loop may be blocked.

        Leases that may have spent a third of their time on the way are renewed without delay.
        """
        if not future.cancelled() and future.exception() is None:
            exchange = future.result()
            if exchange.leases:
                self._arrived[id(exchange)] = exchange.leases
                held = {lease.lease_id: (lease.id, lease.lease_id) for lease in exchange.leases}
                self._held.update(held)
                if time.monotonic() - asked > self._lease_seconds / 3:
                    self._heart.beat_now()

    def _hand_back_if_stuck(self) -> None:
        if self._slots.oldest_wait() > PATIENCE_SECONDS:
            self._prefetch = 0
            self._slots.hand_back()

    def _forget(self, lease_id: str) -> None:
        self._held.pop(lease_id, None)

    def _hand_back_while_blocked(self) -> None:
        """Report what has ended and release what nobody can start, while the loop is blocked.

        Called from the heartbeat's thread. The loop may go on at any moment: each lease goes to one
        of the two.
        """
        reports = self._slots.take_waiting()
        with suppress(IndexError):
            while True:
                reports.append(self._reports.popleft())
        with suppress(KeyError):
            while True:
                _, leases = self._arrived.popitem()
                reports += [self._slots.release(lease) for lease in leases]
        if reports:
            try:
                exchange = self._source.exchange(reports, None).result()
            except Exception:
                self._reports.extend(reports)
                raise
            self._log.answered(reports, exchange.verdicts)
            for report in reports:
                self._forget(report.lease_id)

    # --- stopping

    async def _drain(self) -> None:
        """Hand back what never started, let running handlers finish, then end them; report all.

        Nothing is claimed any more. What the store does not acknowledge in time is left to the
        leases, which run out.
        """
        if self._waiting is not None:
            self._waiting.cancel()
        deadline = time.monotonic() + self._grace
        running = self._slots.running
        progress_at = time.monotonic() + TELL_SECONDS
        were = len(running)
        if were:
            log.info("stopping: %d jobs still run, %.0f s left for them", were, self._grace)
        else:
            log.info("stopping: no job runs")
        while running and time.monotonic() < deadline:
            self._tell(were - len(running), were, "jobs ended")
            await self._drain_step(deadline)
            if running and time.monotonic() >= progress_at:
                progress_at += TELL_SECONDS
                left = max(deadline - time.monotonic(), 0.0)
                log.info("stopping: %d jobs still run, %.0f s left for them", len(running), left)
        self._slots.stop_all("shutdown: the worker stopped before the job had finished")
        deadline = time.monotonic() + CANCEL_SECONDS
        while running and time.monotonic() < deadline:
            await self._drain_step(deadline)
        deadline = time.monotonic() + FINAL_REPORT_SECONDS
        while (
            self._reports or self._exchanges or self._slots.ready
        ) and time.monotonic() < deadline:
            await self._drain_step(deadline)
        if self._reports:
            log.error("%d outcomes could not be reported", len(self._reports))

    async def _drain_step(self, deadline: float) -> None:
        self._slots.collect()
        self._slots.hand_back()
        self._start_exchanges()
        if self._slots.running or self._reports or self._exchanges:
            await self._sleep(min(max(deadline - time.monotonic(), 0.001), POLL_SECONDS))
