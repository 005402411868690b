"""What must be true of each job, kept beside the store and written without looking into it.

The rules here are those of docs/reference/lifecycle.md, once more and by hand: a check that asked
the lifecycle would agree with its mistakes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tenure.jobs.checked_job import CheckedJob

TRANSITIONS = frozenset(
    {
        ("pending", "claimed", "processing"),
        ("processing", "completed", "completed"),
        ("processing", "failed", "failed"),
        ("processing", "lease_expired", "failed"),
        ("failed", "retried", "pending"),
        ("processing", "released", "pending"),
        ("pending", "cancelled", "cancelled"),
        ("processing", "cancelled", "cancelled"),
    }
)
SETTLED = ("completed", "failed", "cancelled")
RELEASES = 100
"""Handed back more often than that, a job fails."""
JITTER = 0.1


class Broken(Exception):
    """Something happened that must never happen."""

    def __init__(self, what: str, life: Life | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.life = life


@dataclass(slots=True, eq=False)
class Life:
    """One job as its moves make it. Times in milliseconds of the store's clock."""

    number: int
    checked_job: CheckedJob
    limit: int
    run_at: int
    status: str = "pending"
    attempts: int = 0
    token: int = 0
    lease: str | None = None
    lease_end: int | None = None
    finished_at: int | None = None
    result: str | None = None
    ended: dict[str, str] = field(default_factory=dict)  # lease -> how it ended
    retry_from: int | None = None  # when its last failure was, if its pause is not known yet
    started: set[int] = field(default_factory=set)  # tokens under which a handler ran

    @property
    def id(self) -> str:
        return self.checked_job.id

    @property
    def order(self) -> tuple[int, int, str]:
        """Its place in its queue."""
        return self.checked_job.priority, self.run_at, self.id

    def pause(self) -> tuple[float, float]:
        """The shortest and the longest wait that its policy allows now, in seconds."""
        policy = self.checked_job.backoff
        exact = policy.base * policy.factor ** (self.attempts - 1)
        return min(exact * (1 - JITTER), policy.cap), min(exact * (1 + JITTER), policy.cap)


class Lives:
    """Every job that is there."""

    def __init__(self) -> None:
        self.all: dict[str, Life] = {}
        self.open: dict[str, Life] = {}  # those that are not settled
        self.keys: dict[str, Life] = {}
        self.pending: Counter[str] = Counter()  # by queue
        self.paused: set[str] = set()
        self.full_at: dict[str, int] = {}  # queue -> most pending jobs
        self.added = 0

    def enter(self, checked_job: CheckedJob, now: int) -> Life:
        """A new job."""
        if checked_job.id in self.all:
            raise Broken("a job was added twice", self.all[checked_job.id])
        self.added += 1
        run_at = now + round(checked_job.delay * 1000)
        life = Life(self.added, checked_job, checked_job.max_retries, run_at)
        if (key := checked_job.idempotency_key) is not None:
            if key in self.keys:
                raise Broken("one idempotency key made two jobs", life)
            self.keys[key] = life
        self.all[life.id] = self.open[life.id] = life
        self.pending[checked_job.queue] += 1
        room = self.full_at.get(checked_job.queue)
        if room is not None and self.pending[checked_job.queue] > room:
            raise Broken(f"a job was added to a queue that holds its {room} already", life)
        return life

    def transition(self, life: Life, event: str, target: str, now: int) -> None:
        """One legal move: what it always changes."""
        if (life.status, event, target) not in TRANSITIONS:
            raise Broken(f"illegal move {life.status} -> {target} as {event}", life)
        queue = life.checked_job.queue
        self.pending[queue] += (target == "pending") - (life.status == "pending")
        if life.status == "processing":
            if life.lease is None or life.lease in life.ended:
                raise Broken("a lease ended twice", life)
            life.ended[life.lease] = event
            life.lease = life.lease_end = None
        life.status = target
        if target in SETTLED:
            life.finished_at = now
            self.open.pop(life.id, None)
        else:
            life.finished_at = None
            self.open[life.id] = life

    def claim(self, life: Life, lease: str | None, until: int) -> None:
        """What a claim changes beside the status."""
        if life.attempts >= max(life.limit, 1):
            raise Broken(f"claimed after all its {life.attempts} attempts", life)
        if lease is None or lease in life.ended:
            raise Broken("a claim without a lease of its own", life)
        life.attempts += 1
        life.token += 1
        life.lease, life.lease_end = lease, until

    def due(self, now: int) -> list[Life]:
        """Jobs that a claim can have."""
        return [
            life
            for life in self.open.values()
            if life.status == "pending"
            and life.run_at <= now
            and life.checked_job.queue not in self.paused
        ]

    def held(self) -> bool:
        """Whether there is a lease."""
        return any(life.lease is not None for life in self.open.values())

    def prune(self, life: Life, before: Mapping[str, int]) -> None:
        """It was deleted, as it may be when it was settled before the time for its status."""
        if life.finished_at is None or life.finished_at >= before.get(life.status, 0):
            raise Broken("a job was deleted that had to be kept", life)
        del self.all[life.id]
        if life.checked_job.idempotency_key is not None:
            del self.keys[life.checked_job.idempotency_key]

    def start(self, job_id: str, token: int) -> None:
        """A handler starts to run the job."""
        life = self.all.get(job_id)
        if life is None:  # it was cancelled and deleted while its worker was frozen
            return
        if token in life.started:
            raise Broken(f"a second run under token {token}", life)
        if token > life.token:
            raise Broken(f"a run under token {token} that nobody claimed", life)
        life.started.add(token)
        if len(life.started) > max(life.limit, 1):
            raise Broken(f"{len(life.started)} runs of a job that may have {life.limit}", life)
