"""Statistics, and the state of queues, workers and the whole database.

The HTTP API answers some of these unchanged. Its OpenAPI description takes their docstrings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from math import inf
from typing import Literal

from msgspec import Struct

from tenure.lifecycle import Status
from tenure.rules.jobs import TypeOptions
from tenure.rules.ledger import EventName, StatusName
from tenure.rules.queues import Limits
from tenure.rules.tokens import Patterns, includes
from tenure.values.durations import Time
from tenure.values.names import RESERVED, may_list, serves
from tenure.values.text import length

BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, inf)
"""Upper bounds, in seconds, of the classes that waiting and run times are counted in."""


class Count(Struct, frozen=True):
    """The number of jobs with one status in one queue and of one type."""

    status: StatusName
    queue: str
    type: str
    jobs: int


def jobs_by_status(counts: Iterable[Count]) -> dict[str, int]:
    """Return the number of jobs by status, in order; a status without jobs is there with 0."""
    found = dict.fromkeys(map(str, Status), 0)
    for count in counts:
        found[count.status] += count.jobs
    return found


def used(by_status: Mapping[str, int]) -> dict[str, int]:
    """Return the jobs by status, without `waiting` where there are none."""
    return {status: jobs for status, jobs in by_status.items() if jobs or status != Status.WAITING}


class Total(Struct, frozen=True):
    """The transitions of one event in one queue and type since the database was made.

    `seconds` and `buckets` measure the time from due to claimed for `claimed`, and run times for
    `completed`, `failed`, `lease_expired` and those `cancelled` while running. Each of `buckets`
    counts the times up to its bound in `BUCKETS` and above the bound before. A transition whose
    time is not known any more is in none of them, so their sum may be less than `transitions`.
    """

    type: str
    queue: str
    event: EventName
    transitions: int
    seconds: float
    buckets: tuple[int, ...]


class Activity(Total, frozen=True):
    """The part of a `Total` that belongs to the minute that begins at `minute`."""

    minute: datetime


class FailureGroup(Struct, frozen=True):
    """Failed attempts of one type in one queue with alike errors.

    `error` is the first line of the error, without numbers, ids and other parts that vary.
    Retention may have deleted the job `last_job_id`.
    """

    type: str
    queue: str
    error: str
    attempts: int
    first_seen_at: datetime
    last_seen_at: datetime
    last_job_id: str


class QueueState(Struct, frozen=True):
    """A queue: its settings and its jobs. `oldest_due_at` is when the oldest due job became due.

    `pause_reason` is what was said when it was paused. `running` is how many jobs its `limits`
    count, None if none is set. No job starts before `resume_at`, if one has met a rate limit
    outside.
    """

    name: str
    paused_at: Time | None
    max_pending: int | None
    pending: int
    processing: int
    oldest_due_at: Time | None
    pause_reason: str | None = None
    limits: Limits | None = None
    running: int | None = None
    resume_at: Time | None = None


QueueOrder = Literal["name", "jobs", "attention"]


class QueueQuery(Struct, frozen=True, kw_only=True):
    """Selects queues; None for every one."""

    name: str | None = None
    search: str | None = None  # a part of the name, without regard to case
    after: str | None = None  # names that come later
    within: Patterns | None = None  # the only queues of who asks
    order: QueueOrder = "name"
    limit: int | None = None


EVERY_QUEUE = QueueQuery()


def rest_of(queue: QueueState, now: datetime) -> float:
    """Return for how many seconds a queue starts no job, since one met a rate limit outside."""
    return max((queue.resume_at - now).total_seconds(), 0.0) if queue.resume_at else 0.0


def limits_of(queue: QueueState, now: datetime | None = None) -> str:
    """Say what limits a queue has, how far they are used, and how long it rests after `now`."""
    limits = queue.limits
    if limits is None:
        return ""
    bound = limits.max_running
    said = [f"starts none for {length(rest)}"] if now and (rest := rest_of(queue, now)) else []
    said += [] if bound is None else [f"{queue.running} of {bound} run"]
    said += [f"starts {limits.rate}"] if limits.rate else []
    if per := limits.per_partition:
        said += [f"per partition {per.max_running}"] if per.max_running is not None else []
        said += [f"per partition starts {per.rate}"] if per.rate else []
        said += [] if per.max_running is not None or per.rate else ["partitions in turn"]
    said += [f"ordered, {limits.ordered}"] if limits.ordered else []
    return ", ".join(said)


class PartitionState(Struct, frozen=True):
    """A partition of a queue with limits: its jobs, and what differs for it.

    `partition` is empty for the jobs without one. `pending` counts those of a queue whose
    partitions take turns. No job starts before `resume_at`, if one has met a rate limit outside.
    `halted_by` is the id of the failed job that the later ones of an ordered queue wait for.
    """

    partition: str
    pending: int
    running: int
    max_running: int | None
    weight: int | None
    paused_at: Time | None
    paused_by: str | None  # who paused or resumed it last
    pause_reason: str | None
    resume_at: Time | None
    halted_by: str | None


class WorkerState(Struct, frozen=True):
    """A worker that asked for jobs lately; None for `queues` or `types` means any.

    Of a worker with many only 20 are kept, and how many more there are: `(and 5 more)`. `slots` is
    how many jobs it runs at once, if it says so; `version` is that of its Tenure.
    """

    id: str
    label: str
    queues: tuple[str, ...] | None
    types: tuple[str, ...] | None
    seen_at: Time
    leases: int
    since_at: Time
    slots: int | None = None
    version: str | None = None
    stopping: bool = False

    def serves(self, queue: str) -> bool:
        """Whether it takes jobs of a queue, as far as is known."""
        return serves(None, queue) if self.queues is None else may_list(self.queues, queue)

    def runs(self, type: str) -> bool:
        """Whether it takes jobs of a type, as far as is known."""
        return self.types is None or may_list(self.types, type)

    @property
    def runs_own(self) -> bool:
        """Whether it runs only jobs of Tenure's own types: it delivers to webhooks."""
        return bool(self.types) and all(name.startswith(RESERVED) for name in self.types or ())


class KnownType(TypeOptions, frozen=True, kw_only=True, gc=False):
    """What a type says about its jobs: options, and the JSON schema of its payloads, as text."""

    schema: str | None = None


class StoredType(KnownType, frozen=True, kw_only=True, gc=False):
    """What the database knows of a type. It counts in the queues of the token that declared it."""

    queues: Patterns | None = None  # None: in every queue

    def is_for(self, queue: str | None) -> bool:
        return queue is None or includes(self.queues, queue)


class TypeState(StoredType, frozen=True, kw_only=True):
    """The options that a worker or a server with the handler of a type has stored.

    They apply to enqueues that do not give them, in programs without the handler: to jobs in every
    queue, or only to those in `queues` if a token for these declared the type. `seen_at` is when a
    worker or a server that has the handler started last, to the day. `schema` is the JSON schema of
    payloads, as text.
    """

    name: str
    seen_at: Time
    paused_at: Time | None = None
    paused_by: str | None = None  # who paused or resumed it last
    pause_reason: str | None = None


def queues_instead(type: str, queue: str, workers: Sequence[WorkerState]) -> list[str]:
    """Return the queues of the workers that run a type, if none of these takes from `queue`."""
    knowing = [worker for worker in workers if worker.types is not None and worker.runs(type)]
    if any(worker.serves(queue) for worker in knowing):
        return []
    return sorted({each for worker in knowing for each in worker.queues or ()})
