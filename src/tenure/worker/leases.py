"""The leases that a worker holds: an `Attempt` for each of them, and the book that keeps them all.

An attempt is claimed, started, ended and reported, in this order. One that is handed back ends
without a start. One whose lease is lost, because the job was cancelled or the lease ran out, is
neither ended nor reported: no outcome of it would be recorded.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

from tenure.jobs.handlers import JobContext
from tenure.jobs.work import Lease, Outcome, Report
from tenure.worker.processes import ChildCall


class AttemptState(Enum):
    """What an attempt has come to."""

    CLAIMED = "claimed"  # leased to this worker, not started
    STARTED = "started"  # its handler runs
    ENDED = "ended"  # its outcome is decided; what its handler still does is ignored
    REPORTED = "reported"  # the store has answered the report of its outcome
    LOST = "lost"  # the lease has ended elsewhere: nothing is reported


CLAIMED, STARTED, ENDED, REPORTED, LOST = AttemptState


class Attempt:
    """One lease being worked on. The `LeaseBook` changes its state."""

    __slots__ = (
        *("claimed_at", "due", "lease", "report", "seconds", "started_at", "state", "worker"),
        *("child", "context", "on_thread", "span", "task", "timer", "trace_context"),
    )

    def __init__(self, lease: Lease, claimed_at: float, worker: str) -> None:
        """`claimed_at` is a time of the monotonic clock, as all times here are."""
        self.lease = lease
        self.worker = worker
        self.state = CLAIMED
        self.claimed_at = claimed_at
        self.started_at: float | None = None
        self.due = math.inf  # when its timeout strikes
        self.seconds: float | None = None  # how long it ran; only known where it is logged
        self.report: Report | None = None  # its outcome, once it has ended
        self.context: JobContext | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None  # where its handler runs: on the loop,
        self.child: ChildCall | None = None  # in a child process,
        self.on_thread = False  # or on a thread
        self.span: Any = None  # of OpenTelemetry, if the worker traces
        self.trace_context: Any = None  # the parent of the spans that its handler makes

    def outcome(
        self, outcome: Outcome, result: str | None = None, error: str = "", retryable: bool = True
    ) -> Report:
        """Return the report of this attempt with the given outcome."""
        lease = self.lease
        return Report(lease.id, lease.lease_id, outcome, result, error, retryable, self.worker)

    def log_fields(self) -> Mapping[str, Any]:
        """Return the fields that are added to what its handler logs."""
        return {
            "job": self.lease.id,
            "type": self.lease.type,
            "queue": self.lease.queue,
            "attempt": self.lease.attempts,
            "worker": self.worker,
        }


class LeaseBook:
    """Every lease that a worker answers for, from the claim until the store has its outcome.

    The event loop, the thread of the heartbeat and the threads of the store call it at once. The
    heartbeat speaks for a loop that is blocked: each attempt goes to one of the two.
    """

    def __init__(self, slots: int) -> None:
        """`slots` is how many attempts may run at once."""
        self._slots = slots
        self._lock = threading.Lock()
        self._held: dict[str, Attempt] = {}  # all of them, by lease id
        self._ready: deque[Attempt] = deque()  # claimed, and waiting for a free slot
        self._running: set[Attempt] = set()  # those whose handler occupies a slot
        self._ended: deque[Attempt] = deque()  # those whose report is to be sent
        self._lost: deque[str] = deque()  # lease ids, for the loop

    # --- numbers

    @property
    def count(self) -> int:
        """How many attempts wait for a slot or occupy one."""
        return len(self._ready) + len(self._running)

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
    def held(self) -> int:
        """How many leases are held, those with an outcome on its way to the store included."""
        return len(self._held)

    @property
    def is_closed(self) -> bool:
        """Whether no further attempt is started."""
        return self._slots == 0

    def oldest_wait(self) -> float:
        """Return the seconds that the first attempt has waited for a slot; 0 if none waits."""
        with self._lock:
            return time.monotonic() - self._ready[0].claimed_at if self._ready else 0.0

    # --- from the claim to the report

    def hold(self, attempts: Iterable[Attempt]) -> None:
        """Answer for new leases, before the loop has seen them: it may be blocked."""
        held = {attempt.lease.lease_id: attempt for attempt in attempts}
        with self._lock:
            self._held.update(held)

    def take(self, attempts: Iterable[Attempt]) -> None:
        """Let attempts wait for a slot, unless they were handed back or lost meanwhile."""
        with self._lock:
            self._ready.extend([attempt for attempt in attempts if attempt.state is CLAIMED])

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
        """Free the slot of an attempt."""
        with self._lock:
            self._running.discard(attempt)

    def forget(self, attempts: Iterable[Attempt]) -> None:
        """Stop answering for leases: they are lost, or run out."""
        with self._lock:
            for attempt in attempts:
                attempt.state = LOST
                self._held.pop(attempt.lease.lease_id, None)
                if attempt in self._ready:
                    self._ready.remove(attempt)

    def release_unstarted(self) -> None:
        """End every attempt that has not started, as one that is handed back."""
        with self._lock:
            self._ready.clear()
            for attempt in self._held.values():
                if attempt.state is CLAIMED:
                    attempt.state = ENDED
                    attempt.report = attempt.outcome(Outcome.RELEASED)
                    self._ended.append(attempt)

    def take_reports(self, limit: int | None = None) -> list[Attempt]:
        """Take the attempts whose reports are to be sent next, at most `limit`."""
        with self._lock:
            count = len(self._ended) if limit is None else min(limit, len(self._ended))
            return [self._ended.popleft() for _ in range(count)]

    def put_back(self, attempts: Sequence[Attempt]) -> None:
        """Queue reports again that the store did not answer."""
        with self._lock:
            self._ended.extendleft(reversed(attempts))

    def reported(self, attempts: Iterable[Attempt]) -> None:
        """Stop answering for leases whose reports the store has answered."""
        with self._lock:
            for attempt in attempts:
                attempt.state = REPORTED
                self._held.pop(attempt.lease.lease_id, None)

    def close(self) -> None:
        """Start no further attempt: what is claimed from now on is handed back."""
        self._slots = 0

    # --- for the heartbeat

    def to_renew(self) -> list[tuple[str, str]]:
        """Return (job id, lease id) of every lease that is held."""
        with self._lock:
            return [(a.lease.id, a.lease.lease_id) for a in self._held.values()]

    def overdue(self, seconds: float) -> set[str]:
        """Return the leases of attempts that run on `seconds` or more after their timeout."""
        before = time.monotonic() - seconds
        return {a.lease.lease_id for a in self.in_slots() if a.due < before and a.state is STARTED}

    def lose(self, lease_ids: Iterable[str]) -> None:
        """Note leases that the store says have ended."""
        with self._lock:
            self._lost.extend([lease_id for lease_id in lease_ids if lease_id in self._held])

    def take_lost(self) -> list[Attempt]:
        """Take the attempts whose leases were noted as lost."""
        if not self._lost:
            return []
        with self._lock:
            lost = [self._held[lease_id] for lease_id in self._lost if lease_id in self._held]
            self._lost.clear()
            return lost

    def in_slots(self) -> list[Attempt]:
        """Return the attempts that occupy a slot."""
        with self._lock:
            return list(self._running)

    def running_as(self, task: asyncio.Task[Any]) -> Attempt | None:
        """Return the attempt whose handler runs as `task`."""
        return next((attempt for attempt in self.in_slots() if attempt.task is task), None)
