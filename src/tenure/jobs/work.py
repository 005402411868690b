"""What workers and the store exchange: claims, leases, reports and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum

import msgspec


class ClaimRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A worker asking for up to `limit` jobs; None for `queues` or `types` means any.

    Deliveries to webhooks are not among "any", see `serves`.
    """

    worker: str
    limit: int
    lease_seconds: float
    queues: tuple[str, ...] | None = None
    types: tuple[str, ...] | None = None
    label: str = ""  # host and pid, for people; never identity
    wait_seconds: float = 0.0  # how long a server may hold the request until there is work
    traces: bool = False  # whether the leases are to tell from which span their jobs were added


class Lease(msgspec.Struct, frozen=True, gc=False):
    """A claimed job, as narrow as a worker can use it."""

    id: str
    type: str
    queue: str
    payload: str
    attempts: int
    max_retries: int
    token: int
    timeout: float | None
    lease_id: str  # a secret of its holder
    lease_expires_at: datetime
    traceparent: str | None = None  # if it was asked for

    def __repr__(self) -> str:
        return f"<lease on {self.id} {self.type} attempt {self.attempts}>"


class Outcome(StrEnum):
    """What a worker can say of an attempt; the names are the lifecycle's events."""

    COMPLETED = "completed"
    FAILED = "failed"
    RELEASED = "released"


class Report(msgspec.Struct, frozen=True, gc=False):
    """What became of one lease."""

    job_id: str
    lease_id: str  # a secret of its holder
    outcome: Outcome
    result: str | None = None  # JSON text, of a completed attempt
    error: str = ""  # of a failed attempt
    retryable: bool = True
    actor: str | None = None

    def __repr__(self) -> str:
        return f"<report on {self.job_id}: {self.outcome}>"


class Answer(StrEnum):
    """What the store did with a report."""

    RECORDED = "recorded"
    ALREADY_RECORDED = "already_recorded"
    CONFLICT = "conflict"
    LOST = "lost"


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """The answer to a report; `recorded` names the outcome on record when it is another one.

    `retry_in`: seconds until the job may run again, where this failure brought a retry.
    """

    answer: Answer
    recorded: str = ""
    retry_in: float | None = None


RECORDED = Verdict(Answer.RECORDED)


ALREADY_RECORDED = Verdict(Answer.ALREADY_RECORDED)


class Exchange(msgspec.Struct, frozen=True):
    """What a worker's turn brought: a verdict per report, in order, and the jobs now leased."""

    verdicts: Sequence[Verdict]
    leases: Sequence[Lease]
