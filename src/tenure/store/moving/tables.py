"""The tables of a database that `tenure move` copies. What follows from jobs is made again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose rows are copied, and the columns by which changed ones are found again."""

    name: str
    key: tuple[str, ...]


JOB = Table("job", ("id",))
OF_JOBS = (
    *(Table(name, ("job_id",)) for name in ("transition", "step", "checkpoint", "signal", "wait")),
    *(Table(name, ("job_id",)) for name in ("signal_token", "trace", "progress")),
    *(Table(name, ("child",)) for name in ("dependency", "gate")),
)
"""Rows that belong to one job. They are copied with it, all of them, whenever one has changed."""
ALONE = (
    *(Table(name, ("name",)) for name in ("access", "type", "queue", "schedule", "webhook")),
    *(Table(name, ("queue",)) for name in ("queue_limit", "limit_change")),
    *(Table(name, ("queue", "partition")) for name in ("partition_limit",)),
    *(Table(name, ("id",)) for name in ("workflow", "bulk")),
    *(Table(name, ("key",)) for name in ("unique_key", "throttle")),
    Table("retention", ("subject", "name")),
    Table("fire", ("schedule", "at", "outcome")),
    Table("line", ("queue", "partition", "id")),
    Table("overdue", ("parent",)),
    Table("revisit", ("job_id",)),
    Table("session", ("digest",)),
    Table("tally", ("status", "queue", "type")),
    Table("activity", ("minute", "type", "queue", "event")),
    Table("total", ("type", "queue", "event")),
    Table("failure", ("type", "queue", "error")),
)
"""The others."""
COPIED = (JOB, *OF_JOBS, *ALONE)

FIXED: Mapping[tuple[str, str], str] = {("transition", "xid"): "'0'", ("webhook", "position"): "''"}
"""Columns that `places` sets, and what they are until then, as SQL."""
OWN = ("move", "move_change", "move_copy")
"""Tables that exist only during `tenure move`: two on the source, the last on the target."""
