"""What the players may ask of a store: the verbs of `store.Store`, as values.

As values, so that a request can be lost, sent twice or arrive late, and so that the auditor knows
what was asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tenure.errors import StoreUnavailable
from tenure.jobs.checked_job import CheckedJob
from tenure.jobs.work import ClaimRequest, Report
from tenure.lifecycle import Event
from tenure.store import transitions
from tenure.store.commit import CallWork, EnqueueWork, ExchangeWork, Work


@dataclass(frozen=True, slots=True)
class Enqueue:
    """Jobs to add, all or none."""

    checked_jobs: Sequence[CheckedJob]

    def work(self) -> Work:
        return EnqueueWork(self.checked_jobs)


@dataclass(frozen=True, slots=True)
class TakeExchange:
    """A worker's turn: what finished, and what it can take."""

    reports: Sequence[Report]
    claim: ClaimRequest | None

    def work(self) -> Work:
        return ExchangeWork(self.reports, self.claim)


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat for (job id, lease id) leases."""

    leases: Sequence[tuple[str, str]]
    seconds: float

    def work(self) -> Work:
        return CallWork("heartbeat", lambda db: db.renew(self.leases, self.seconds))


@dataclass(frozen=True, slots=True)
class Sweep:
    """End leases that ran out."""

    limit: int

    def work(self) -> Work:
        return CallWork("sweep", lambda db: transitions.sweep(db, self.limit))


@dataclass(frozen=True, slots=True)
class Prune:
    """Delete what was settled before a time, by status."""

    before: Mapping[str, datetime]
    limit: int

    def work(self) -> Work:
        return CallWork("prune", lambda db: db.prune(self.before, self.limit))


@dataclass(frozen=True, slots=True)
class Apply:
    """One event on one job, as an operator wants it: `Cancelled` or `Retried`."""

    job_id: str
    event: Event

    def work(self) -> Work:
        return CallWork("operator", lambda db: transitions.apply(db, self.job_id, self.event))


@dataclass(frozen=True, slots=True)
class SetQueue:
    """Pause, resume or limit a queue (-1 lifts the limit)."""

    name: str
    paused: bool | None = None
    max_pending: int | None = None

    def work(self) -> Work:
        return CallWork(
            "queue",
            lambda db: db.set_queue(
                self.name, paused=self.paused, max_pending=self.max_pending, actor="operator"
            ),
        )


Ask = Enqueue | TakeExchange | Beat | Sweep | Prune | Apply | SetQueue

UNKNOWN = StoreUnavailable("no answer: what became of it is unknown")

Answer = Any
"""What an ask brought: a result, a refusal (TenureError), UNKNOWN, or a Fault."""


class Fault:
    """An error that no caller should ever see."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asked what of a store, and what it answered."""

    who: str
    ask: Ask
    answer: Answer
