"""The searches of the PostgreSQL store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenure.errors import InvalidInput
from tenure.jobs.queries import Query
from tenure.lifecycle import Status
from tenure.store.constraints import quoted
from tenure.store.postgres.connection import is_uuid
from tenure.store.postgres.statements import DIALECT
from tenure.store.search import ENDED, Statement, between, others


def listing(what: str, query: Query) -> Statement:
    """Select `what` of the jobs of a query, in its order.

    A subquery with a limit is a fence: what is inside decides on the index, whatever the
    planner thinks of the conditions outside. The status is a literal: partial indexes need it.
    """
    inside, outside, values = list[str](), list[str](), list[Any]()

    def add(part: str, value: Any, parts: list[str]) -> None:
        if value is not None:
            parts.append(part)
            values.append(value)

    if query.status is not None:
        decides = query.gather or query.status in ENDED
        (inside if decides else outside).append(f"status = {quoted(Status(query.status))}")
    if query.gather and query.status == Status.PENDING:
        add("queue = %s", query.queue, inside)
    after, before = between(query)
    along = outside if query.gather else inside
    add("id > %s::uuid", _uuid(after), along)
    add("id < %s::uuid", _uuid(before), along)
    add(f"id {'<=' if query.oldest_first else '>='} %s::uuid", _uuid(query.through), along)
    order = f"ORDER BY job.id {'ASC' if query.oldest_first else 'DESC'}"
    if query.among:
        outside.append(f"status IN ({quoted(*query.among)})")
    for part, value in others(DIALECT, query):
        add(part, value, outside)
    if query.gather:
        table = f"(SELECT * FROM {{s}}.job{_where(inside)} OFFSET 0) AS job"
    elif query.most is not None:
        some = f"SELECT * FROM {{s}}.job{_where(inside)} {order} LIMIT {int(query.most)}"
        table = f"({some}) AS job"
    else:
        table, outside = "{s}.job", [*inside, *outside]
    where, limit = _where(outside), int(query.limit)
    return f"SELECT {what} FROM {table}{where} {order} LIMIT {limit}", values


def gathered(status: Status) -> str:
    return "{s}.job"


def _where(parts: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(parts)}" if parts else ""


def _uuid(id: str | None) -> str | None:
    if id is not None and not is_uuid(id):
        raise InvalidInput("not the id of a job", path="$.before")
    return id
