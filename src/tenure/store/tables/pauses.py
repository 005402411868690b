"""How long queues and partitions wait because a job met a rate limit outside.

The times are columns of the limits. Where there is no row of limits, one is made that says nothing
else.
"""

from __future__ import annotations

from collections.abc import Sequence

from tenure.jobs.work import Report
from tenure.lifecycle import Job
from tenure.store.dialect import Statements


def extend(db: Statements, paused: Sequence[tuple[Job, Report]]) -> None:
    """Let the queue or partition of each job wait as long as the job, unless it waits longer."""
    d = db.dialect
    queues = sorted({job.queue for job, _ in paused})
    table = d.table("queue_limit")
    divided = db.rows(
        f"SELECT queue FROM {table} WHERE partitioned AND queue IN ({d.values(len(queues))})",
        queues,
    )
    longest: dict[tuple[str, ...], tuple[float, str]] = {}
    for job, report in paused:
        key: tuple[str, ...] = (job.queue,)
        if report.pause == "partition" and key in map(tuple, divided):
            key = (job.queue, job.partition or "")
        longest[key] = max(longest.get(key, (0.0, "")), (report.delay or 0.0, job.id))
    for key in sorted(longest, key=lambda key: (len(key), key)):  # locked in this order everywhere
        table = d.table("queue_limit" if len(key) == 1 else "partition_limit")
        columns = ", ".join(("queue", "partition")[: len(key)])
        db.changed(
            f"INSERT INTO {table} AS known ({columns}, resume_at, paused_for)"
            f" VALUES ({d.values(len(key))}, {d.later(d.value)}, {d.id_value})"
            f" ON CONFLICT ({columns}) DO UPDATE SET resume_at = excluded.resume_at,"
            " paused_for = excluded.paused_for"
            " WHERE coalesce(known.resume_at < excluded.resume_at, true)",
            (*key, *longest[key]),
        )
