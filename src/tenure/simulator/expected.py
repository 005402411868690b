"""What must be true of each job, computed from the ledger and the calls, not from the job's row.

The rules here are those of docs/reference/lifecycle.md, written again by hand: a check that asked
the lifecycle would agree with its mistakes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tenure.jobs.enqueue import CheckedJob

LEGAL = frozenset(
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
MAX_RELEASES = 100  # how often a job may be handed back; the next time it fails
JITTER = 0.1


class BrokenRule(Exception):
    """Something happened that must never happen."""

    def __init__(self, what: str, job: ExpectedJob | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.job = job


def forbid(condition: object, what: str, job: ExpectedJob | None = None) -> None:
    if condition:
        raise BrokenRule(what, job)


@dataclass(slots=True, eq=False)
class ExpectedJob:
    """One job as its transitions make it. Times are milliseconds of the store's clock."""

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
    retry_from: int | None = None  # time of its last failure, if its pause is not known yet
    started: set[int] = field(default_factory=set)  # tokens under which a handler ran

    @property
    def id(self) -> str:
        return self.checked_job.id

    @property
    def queue(self) -> str:
        return self.checked_job.queue

    @property
    def order(self) -> tuple[int, int, str]:
        return self.checked_job.priority, self.run_at, self.id

    def pause(self) -> tuple[float, float]:
        """Return the shortest and the longest wait that its policy allows now, in seconds."""
        policy = self.checked_job.backoff
        exact = policy.base * policy.factor ** (self.attempts - 1)
        return min(exact * (1 - JITTER), policy.cap), min(exact * (1 + JITTER), policy.cap)


class ExpectedJobs:
    """Every job that must exist, and the settings of the queues."""

    def __init__(self) -> None:
        self.all: dict[str, ExpectedJob] = {}
        self.open: dict[str, ExpectedJob] = {}  # jobs that are not settled
        self.keys: dict[str, ExpectedJob] = {}
        self.pending: Counter[str] = Counter()  # by queue
        self.paused: set[str] = set()
        self.full_at: dict[str, int] = {}  # queue -> most pending jobs
        self._added = 0

    def add(self, checked_job: CheckedJob, now: int) -> ExpectedJob:
        forbid(checked_job.id in self.all, "a job was added twice", self.all.get(checked_job.id))
        self._added += 1
        run_at = now + round(checked_job.delay * 1000)
        job = ExpectedJob(self._added, checked_job, checked_job.max_retries, run_at)
        if (key := checked_job.idempotency_key) is not None:
            forbid(key in self.keys, "one idempotency key made two jobs", job)
            self.keys[key] = job
        self.all[job.id] = self.open[job.id] = job
        self.pending[job.queue] += 1
        room = self.full_at.get(job.queue)
        if room is not None and self.pending[job.queue] > room:
            raise BrokenRule(f"a job was added to a queue that holds its {room} already", job)
        return job

    def transition(self, job: ExpectedJob, event: str, target: str, now: int) -> None:
        """Change the status, and what changes with it whatever the event."""
        if (job.status, event, target) not in LEGAL:
            raise BrokenRule(f"illegal transition {job.status} -> {target} as {event}", job)
        self.pending[job.queue] += (target == "pending") - (job.status == "pending")
        if job.status == "processing":
            if job.lease is None or job.lease in job.ended:
                raise BrokenRule("a lease ended twice", job)
            job.ended[job.lease] = event
            job.lease = job.lease_end = None
        job.status = target
        if target in SETTLED:
            job.finished_at = now
            self.open.pop(job.id, None)
        else:
            job.finished_at = None
            self.open[job.id] = job

    def claim(self, job: ExpectedJob, lease: str | None, until: int) -> None:
        forbid(job.attempts >= max(job.limit, 1), f"claimed after all {job.attempts} attempts", job)
        if lease is None or lease in job.ended:
            raise BrokenRule("a claim without a new lease", job)
        job.attempts += 1
        job.token += 1
        job.lease, job.lease_end = lease, until

    def due(self, now: int) -> list[ExpectedJob]:
        return [
            job
            for job in self.open.values()
            if job.status == "pending" and job.run_at <= now and job.queue not in self.paused
        ]

    def any_held(self) -> bool:
        return any(job.lease is not None for job in self.open.values())

    def delete(self, job: ExpectedJob, before: Mapping[str, int]) -> None:
        """Forget a job; it must have been settled before the time for its status."""
        if job.finished_at is None or job.finished_at >= before.get(job.status, 0):
            raise BrokenRule("a job was deleted that had to be kept", job)
        del self.all[job.id]
        if job.checked_job.idempotency_key is not None:
            del self.keys[job.checked_job.idempotency_key]

    def start(self, job_id: str, token: int) -> None:
        job = self.all.get(job_id)
        if job is None:  # it was cancelled and deleted while its worker was frozen
            return
        forbid(token in job.started, f"a second run under token {token}", job)
        forbid(token > job.token, f"a run under token {token}, which no worker claimed", job)
        job.started.add(token)
        if len(job.started) > max(job.limit, 1):
            raise BrokenRule(f"{len(job.started)} runs of a job that may have {job.limit}", job)
