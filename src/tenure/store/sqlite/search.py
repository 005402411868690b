"""The searches of the SQLite store."""

from __future__ import annotations

from typing import Any

from tenure.jobs.queries import Query
from tenure.lifecycle import Status
from tenure.store.constraints import quoted
from tenure.store.search import ENDED, Statement, between, others
from tenure.store.sqlite.statements import DIALECT

GATHERED_BY = {Status.PENDING: "tenure_job_ready", Status.PROCESSING: "tenure_job_lease"}
"""The index of all jobs in a status, where they may be few."""


def listing(what: str, query: Query) -> Statement:
    """Select `what` of the jobs of a query, in its order.

    The status is a literal: partial indexes need it. A plus keeps the planner from using an
    index: that of the ids where the jobs of a status are gathered and sorted, those of the
    status elsewhere.
    """
    parts, values = ["1"], list[Any]()

    def add(part: str, value: Any) -> None:
        if value is not None:
            parts.append(part)
            values.append(value)

    if query.status is not None:
        by_index = query.gather or query.status in ENDED
        column = "status" if by_index else "+status"
        parts.append(f"{column} = {quoted(Status(query.status))}")
        if query.status in ENDED:  # SQLite knows a partial index only by its own condition
            parts.append(f"status IN ({quoted(*ENDED)})")
    if query.among:
        parts.append(f"status IN ({quoted(*query.among)})")
    for part, value in others(DIALECT, query):
        add(part, value)
    key = "+id" if query.gather else "id"
    after, before = between(query)
    # One bound on each side: SQLite searches by the first and only tests the second.
    down = query.through is not None and not query.oldest_first
    up = query.through is not None and query.oldest_first
    add(f"{key} >= ?" if down else f"{key} > ?", query.through if down else after)
    add(f"{key} <= ?" if up else f"{key} < ?", query.through if up else before)
    table = gathered(Status(query.status or "")) if query.gather else "tenure_job"
    order = f"{key} {'ASC' if query.oldest_first else 'DESC'}"
    where = " AND ".join(parts)
    limit = int(query.limit)
    return f"SELECT {what} FROM {table} WHERE {where} ORDER BY {order} LIMIT {limit}", values


def gathered(status: Status) -> str:
    return f"tenure_job INDEXED BY {GATHERED_BY[status]}"
