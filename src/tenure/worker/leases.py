"""What the threads of a worker share: its leases, and what wakes its event loop.

`LeaseBook` keeps an `Attempt` for each lease. An attempt is claimed, started, ended and reported,
in this order. One that is handed back ends without a start. One whose lease is lost, because the
job was cancelled or the lease ran out, is neither ended nor reported: no outcome of it would be
recorded.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tenure.app.within import LeaseFence
from tenure.handlers.context import JobContext
from tenure.handlers.registry import Handler
from tenure.handlers.results import Ending, failure
from tenure.rules.reports import Answer, Lease, Outcome, Pause, Report, Verdict, Wait
from tenure.worker.processes import ChildCall


class AttemptState(Enum):
    """What an attempt has come to."""

    CLAIMED = "claimed"  # leased to this worker, not started
    STARTED = "started"  # its handler runs
    ENDED = "ended"  # its outcome is decided; what its handler still does is ignored
    REPORTED = "reported"  # the store has answered the report of its outcome
    LOST = "lost"  # the lease has ended elsewhere: nothing is reported


CLAIMED, STARTED, ENDED, REPORTED, LOST = AttemptState
BUSY = Answer.BUSY  # for each report: before Python 3.12 a member takes 0.08 µs to find


@dataclass(slots=True, eq=False)
class Attempt:
    """One lease being worked on. The `LeaseBook` changes its state. Times are monotonic."""

    lease: Lease
    claimed_at: float
    worker: str
    state: AttemptState = CLAIMED
    started_at: float | None = None
    due: float = math.inf  # when its timeout strikes
    seconds: float | None = None  # how long it ran
    report: Report | None = None  # its outcome, once it has ended
    was_busy: bool = False  # the job was locked when that was reported
    exception: BaseException | None = None  # what its handler raised, until that is reported
    context: JobContext | None = None
    fence: LeaseFence | None = None  # of the transactions of its handler
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None  # where its handler runs: on the loop,
    child: ChildCall | None = None  # in a child process,
    on_thread: bool = False  # or on a thread
    span: Any = None  # of OpenTelemetry, if the worker traces
    trace_context: Any = None  # the parent of the spans that its handler makes

    def outcome(
        self,
        outcome: Outcome,
        result: str | None = None,
        error: str = "",
        retryable: bool = True,
        delay: float | None = None,
        pause: Pause | None = None,
        wait: Wait | None = None,
    ) -> Report:
        """Return the report of this attempt with the given outcome."""
        lease, worker = self.lease, self.worker
        uncertain = self.child is not None or (self.fence is not None and self.fence.is_used)
        # fmt: off
        return Report(lease.id, lease.lease_id, outcome, result, error, retryable, worker, delay,
                      None, pause, uncertain, wait)
        # fmt: on

    def failure(self, error: BaseException, handler: Handler | None = None) -> Ending:
        """Return the ending of its handler, which raised; keep the exception if that counts."""
        if self.state is STARTED:
            self.exception = error
        return failure(error, handler)

    def log_fields(self) -> dict[str, Any]:
        """Return the fields that are added to what its handler logs."""
        return log_fields(self.lease, self.worker)


def reports_of(attempts: Iterable[Attempt]) -> list[Report]:
    return [attempt.report for attempt in attempts if attempt.report is not None]


def log_fields(lease: Lease, worker: str) -> dict[str, Any]:
    """Return the fields of the lines about an attempt."""
    return {
        "job": lease.id,
        "type": lease.type,
        "queue": lease.queue,
        "attempt": lease.attempts,
        "worker": worker,
    }


class Wakeup:
    """An event that many threads set and one event loop waits for."""

    def __init__(self) -> None:
        self.rounds = 0
        """How often the loop has woken up; a number that stands still means a blocked loop."""
        self.loop: asyncio.AbstractEventLoop | None = None
        self.loop_is_closed = False
        self._event = asyncio.Event()
        self._notified = False

    def attach(self) -> None:
        """Take the running loop as the one to wake."""
        self.loop = asyncio.get_running_loop()

    def set(self) -> None:
        """Wake the loop; call this on the loop."""
        self._event.set()

    def notify(self) -> None:
        """Wake the loop; call this from any thread. Many calls in a row cost one wake-up."""
        if not self._notified and self.loop is not None:
            self._notified = True
            try:
                self.loop.call_soon_threadsafe(self._event.set)
            except RuntimeError:
                self.loop_is_closed = True

    def call(self, function: Callable[[], object]) -> bool:
        """Have the loop call `function`; from any thread. False if no loop runs."""
        if self.loop is None:
            return False
        try:
            self.loop.call_soon_threadsafe(function)
        except RuntimeError:  # it is closed
            return False
        return True

    async def wait(self, seconds: float) -> None:
        """Wait until the loop is woken, at most for `seconds`."""
        # Unlike asyncio.wait_for, this makes no task for the event.
        timer = asyncio.get_running_loop().call_later(seconds, self._event.set)
        await self._event.wait()
        timer.cancel()
        self._event.clear()
        self._notified = False
        self.rounds += 1


class LeaseBook:
    """Every lease that a worker answers for, from the claim until the store has its outcome.

    The event loop, the thread of the heartbeat and the threads of the store call it at once. The
    heartbeat speaks for a loop that is blocked: each attempt goes to one of the two.
    """

    def __init__(self, slots: int, worker: str, database: str | None = None) -> None:
        """`slots` is how many attempts may run at once, `worker` the id of the holder.

        `database` is the URL where the jobs are, None if only a server knows.
        """
        self.database = database
        self._slots = slots
        self._worker = worker
        self._lock = threading.Lock()
        self._arrived: deque[tuple[float, Sequence[Lease]]] = deque()  # not admitted yet
        self._held: dict[str, Attempt] = {}  # all others, by lease id
        self._ready: deque[Attempt] = deque()  # claimed, and waiting for a free slot
        self._running: set[Attempt] = set()  # those whose handler occupies a slot
        self._ended: deque[Attempt] = deque()  # those whose report is to be sent
        self._lost: dict[str, str] = {}  # lease id -> the event that ended it, for the loop

    # --- numbers

    @property
    def count(self) -> int:
        """How many attempts wait for a slot or occupy one."""
        return len(self._ready) + len(self._running)

    def queues(self) -> list[str]:
        """Return the queue of each of them."""
        with self._lock:
            return [attempt.lease.queue for attempt in (*self._ready, *self._running)]

    @property
    def running(self) -> int:
        """How many attempts occupy a slot."""
        return len(self._running)

    @property
    def ready(self) -> int:
        """How many attempts wait for a slot."""
        return len(self._ready)

    @property
    def unreported(self) -> int:
        """How many outcomes are to be sent."""
        return len(self._ended)

    @property
    def unrecorded(self) -> int:
        """How many outcomes the source has not answered, sent or not."""
        with self._lock:
            return sum(attempt.state is ENDED for attempt in self._held.values())

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to run, to wait for or to report."""
        return not (self._arrived or self._held or self._running)

    @property
    def is_closed(self) -> bool:
        """Whether no further attempt is started."""
        return self._slots == 0

    def oldest_wait(self) -> float:
        """Return the seconds that the first attempt has waited for a slot; 0 if none waits."""
        with self._lock:
            return time.monotonic() - self._ready[0].claimed_at if self._ready else 0.0

    # --- from the claim to the report

    def hold(self, leases: Sequence[Lease]) -> None:
        """Answer for new leases from now on, before the loop has seen them: it may be blocked.

        The thread of the store calls this, so it only notes them.
        """
        self._arrived.append((time.monotonic(), leases))

    def admit(self) -> None:
        """Let the leases that have arrived wait for a slot."""
        with self._lock:
            self._admit()

    def _admit(self) -> None:
        while self._arrived:
            at, leases = self._arrived.popleft()
            new = {lease.lease_id: Attempt(lease, at, self._worker) for lease in leases}
            self._held.update(new)
            self._ready.extend(new.values())

    def start_next(self) -> Attempt | None:
        """Give a slot to the next attempt and return it; None if there is no slot or attempt."""
        if not self._ready or len(self._running) >= self._slots:
            return None
        with self._lock:
            if not self._ready:  # the heartbeat has just handed it back
                return None
            attempt = self._ready.popleft()
            attempt.state = STARTED
            self._running.add(attempt)
            return attempt

    def end(self, attempt: Attempt, report: Report, *, free: bool) -> None:
        """Decide the outcome of an attempt and queue its report; `free` its slot too, or not."""
        with self._lock:
            attempt.state = ENDED
            attempt.report = report
            self._ended.append(attempt)
            if free:
                self._running.discard(attempt)

    def free(self, attempt: Attempt) -> None:
        with self._lock:
            self._running.discard(attempt)

    def forget(self, lease_ids: Iterable[str]) -> None:
        """Stop answering for leases: they are lost, or run out."""
        with self._lock:
            self._admit()
            for lease_id in lease_ids:
                if (attempt := self._held.pop(lease_id, None)) is not None:
                    attempt.state = LOST
                    if attempt in self._ready:
                        self._ready.remove(attempt)

    def release_unstarted(self) -> None:
        """End every attempt that has not started, as one that is handed back."""
        with self._lock:
            self._admit()
            for attempt in self._ready:
                attempt.state = ENDED
                attempt.report = attempt.outcome(Outcome.RELEASED)
            self._ended.extend(self._ready)
            self._ready.clear()

    def take_reports(self, limit: int | None = None) -> list[Attempt]:
        """Take the attempts whose reports are to be sent next, at most `limit`."""
        with self._lock:
            count = len(self._ended) if limit is None else min(limit, len(self._ended))
            return [self._ended.popleft() for _ in range(count)]

    def put_back(self, attempts: Sequence[Attempt]) -> None:
        """Queue reports again that the store did not answer."""
        with self._lock:
            self._ended.extendleft(reversed(attempts))

    def reported(self, attempts: Sequence[Attempt], verdicts: Sequence[Verdict]) -> list[Attempt]:
        """Stop answering for leases whose reports the store has answered.

        Returns the attempts whose job is locked: their reports have to be sent again.
        """
        busy = []
        with self._lock:
            for attempt, verdict in zip(attempts, verdicts, strict=True):
                if verdict.answer is BUSY:
                    busy.append(attempt)
                    continue
                attempt.state = REPORTED
                self._held.pop(attempt.lease.lease_id, None)
        return busy

    def close(self) -> None:
        """Start no further attempt: what is claimed from now on is handed back."""
        self._slots = 0

    # --- for the heartbeat

    def to_renew(self) -> list[tuple[str, str]]:
        """Return (job id, lease id) of every lease, also if its outcome is on its way."""
        with self._lock:
            self._admit()
            return [(a.lease.id, a.lease.lease_id) for a in self._held.values()]

    def overdue(self, seconds: float) -> set[str]:
        """Return the leases of attempts that run on `seconds` or more after their timeout."""
        before = time.monotonic() - seconds
        return {a.lease.lease_id for a in self.in_slots() if a.due < before and a.state is STARTED}

    def claimed_before(self, moment: float) -> list[str]:
        """Return the leases that were claimed before a moment of the monotonic clock."""
        with self._lock:
            return [id for id, attempt in self._held.items() if attempt.claimed_at < moment]

    def lose(self, ended: Mapping[str, str]) -> None:
        """Note the leases that have ended, with the events. Their waiting attempts do not start."""
        with self._lock:
            self._lost.update({id: event for id, event in ended.items() if id in self._held})
            self._ready = deque(a for a in self._ready if a.lease.lease_id not in ended)

    def take_lost(self) -> list[tuple[Attempt, str]]:
        """Take the attempts whose leases were noted as lost, with the events that ended them."""
        if not self._lost:
            return []
        with self._lock:
            lost = [(self._held[id], e) for id, e in self._lost.items() if id in self._held]
            self._lost.clear()
            return lost

    def in_slots(self) -> list[Attempt]:
        with self._lock:
            return list(self._running)
