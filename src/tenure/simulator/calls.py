"""The calls that simulated clients send to a store.

They are values, so that a call can be lost, sent twice or arrive late, and so that the auditor
knows what each transaction was about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from tenure.errors import StoreUnavailable
from tenure.jobs.enqueue import CheckedJob
from tenure.jobs.work import ClaimRequest, Report
from tenure.lifecycle import Event
from tenure.store import transitions
from tenure.store.commit import CallWork, EnqueueWork, ExchangeWork, Work
from tenure.store.tables import queues


class EnqueueCall(NamedTuple):
    checked_jobs: Sequence[CheckedJob]  # all or none


class ExchangeCall(NamedTuple):
    reports: Sequence[Report]
    claim: ClaimRequest | None


class HeartbeatCall(NamedTuple):
    leases: Sequence[tuple[str, str]]  # (job id, lease id)
    seconds: float


class SweepCall(NamedTuple):
    limit: int


class PruneCall(NamedTuple):
    before: Mapping[str, datetime]  # by status
    limit: int


class OperatorCall(NamedTuple):
    job_id: str
    event: Event  # Cancelled or Retried


class QueueCall(NamedTuple):
    name: str
    paused: bool | None = None
    max_pending: int | None = None  # -1 lifts the limit


SimulatedCall = (
    EnqueueCall | ExchangeCall | HeartbeatCall | SweepCall | PruneCall | OperatorCall | QueueCall
)
UNKNOWN = StoreUnavailable("no answer came: what became of the call is unknown")


class AnsweredCall(NamedTuple):
    """A call and its answer: a result, a TenureError, UNKNOWN, or an unexpected error."""

    caller: str
    call: SimulatedCall
    answer: Any


def work_of(call: SimulatedCall) -> Work:
    """Make the work that a store does for a call."""
    match call:
        case EnqueueCall(checked_jobs):
            return EnqueueWork(checked_jobs)
        case ExchangeCall(reports, claim):
            return ExchangeWork(reports, claim)
        case HeartbeatCall(leases, seconds):
            return CallWork("heartbeat", lambda db: db.renew(leases, seconds))
        case SweepCall(limit):
            return CallWork("sweep", lambda db: transitions.sweep(db, limit))
        case PruneCall(before, limit):
            return CallWork("prune", lambda db: db.prune(before, limit))
        case OperatorCall(job_id, event):
            return CallWork("operator", lambda db: transitions.apply(db, job_id, event))
        case QueueCall(name, paused, most):
            return CallWork(
                "queue",
                lambda db: queues.set_queue(
                    db, name, paused=paused, max_pending=most, actor="operator"
                ),
            )
