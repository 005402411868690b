"""How long queues and partitions wait because a job met a rate limit outside.

The times are columns of the limits. Where there is no row of limits, one is made that says nothing
else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
        _extend(db, key, *longest[key])


def _extend(db: Statements, key: tuple[str, ...], delay: float, job_id: str) -> None:
    d = db.dialect
    table = d.table("queue_limit" if len(key) == 1 else "partition_limit")
    columns = ("queue", "partition")[: len(key)]
    mine = " AND ".join(f"{column} = {d.value}" for column in columns)
    until = d.later(d.value)
    values: tuple[Any, ...] = (delay, job_id, *key)
    if db.changed(
        f"UPDATE {table} SET resume_at = {until}, paused_for = {d.id_value}"
        f" WHERE {mine} AND coalesce(resume_at < {until}, true)",
        (*values, delay),
    ):
        return
    db.changed(  # without a row, or with a longer pause
        f"INSERT INTO {table} AS known (resume_at, paused_for, {', '.join(columns)})"
        f" SELECT {until}, {d.id_value}, {d.values(len(key))}"
        f" WHERE NOT EXISTS (SELECT 1 FROM {table} WHERE {mine})"
        f" ON CONFLICT ({', '.join(columns)}) DO UPDATE SET resume_at = excluded.resume_at,"
        " paused_for = excluded.paused_for"
        " WHERE coalesce(known.resume_at < excluded.resume_at, true)",
        (*values, *key),
    )
