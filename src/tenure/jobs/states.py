"""The state of queues, workers and the whole database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tenure.jobs.stats import Count, Total


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue's settings and what waits in it; `oldest_due_at` is the longest-waiting due job's."""

    name: str
    paused_at: datetime | None
    max_pending: int | None
    pending: int
    processing: int
    oldest_due_at: datetime | None


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker that asked for jobs lately."""

    id: str
    label: str
    queues: tuple[str, ...] | None
    types: tuple[str, ...] | None
    seen_at: datetime
    leases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """All that a monitoring system asks for, as the database has it."""

    now: datetime
    counts: Sequence[Count]
    queues: Sequence[QueueState]
    workers: int
    late_leases: int
    totals: Sequence[Total]
    measured_until: datetime | None
