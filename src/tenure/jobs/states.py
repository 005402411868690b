"""The state of queues, workers and the whole database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tenure.jobs.stats import Count, Time, Total


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue: its settings and its jobs. `oldest_due_at` is when the oldest due job became due."""

    name: str
    paused_at: Time | None
    max_pending: int | None
    pending: int
    processing: int
    oldest_due_at: Time | None


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker that asked for jobs lately; None for `queues` or `types` means any."""

    id: str
    label: str
    queues: tuple[str, ...] | None
    types: tuple[str, ...] | None
    seen_at: Time
    leases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseState:
    """Everything that a monitoring system asks for, read in one transaction."""

    now: datetime
    counts: Sequence[Count]
    queues: Sequence[QueueState]
    workers: int
    late_leases: int
    totals: Sequence[Total]
    measured_until: datetime | None
