"""Reads the table of dependencies. `store/borrowed/dependencies.py` writes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenure.errors import Forbidden
from tenure.rules.dependencies import Ties
from tenure.rules.steps import ParentJob, Parents, ReadParents
from tenure.rules.tokens import includes
from tenure.store.database import Database, Reads
from tenure.values.ids import BEFORE_ALL

PAGE = 500
PAGE_LENGTH = 1024 * 1024
"""Characters of results, after which a page ends."""
MAX_ERROR = 1_000
"""Characters of an error that are read."""
MAX_EDGES = 10_000
"""Dependencies that one look goes over."""
_PLACE = "beside.queue = job.queue AND beside.partition = coalesce(job.partition, '')"
BESIDE = {
    "slot": f"{_PLACE} AND beside.job_id = job.id",
    "line": f"{_PLACE} AND beside.id = job.id",
    "unique_key": "beside.key = job.unique_key AND beside.job_id = job.id",
}
"""Table -> the row of a job in it that changes when the job ends."""


def parents(db: Reads, job_id: str) -> list[tuple[str, str, str, str]]:
    """Return each job that a job waits or waited for: id, queue, status, and what meets it."""
    d = db.dialect
    found = db.rows(
        f"SELECT {d.id('job.id')}, job.queue, job.status, meets"
        f" FROM {d.table('dependency')} AS dependency"
        f" JOIN {d.table('job')} AS job ON job.id = dependency.parent"
        f" WHERE dependency.child = {d.id_value} AND meets <> 'past' ORDER BY dependency.parent",
        (job_id,),
    )
    return [(id, queue, status, meets) for id, queue, status, meets in found]


def ties(db: Reads, job_id: str) -> Ties:
    """Return what `borrowed.dependencies.ties` returns, on a connection of the store."""
    from tenure.store.borrowed import dependencies  # they come with the drivers of callers

    return dependencies.run(db, dependencies.ties(db.dialect.engine, job_id))


def page(db: Reads, job_id: str, call: ReadParents) -> Parents:
    """Return what a handler reads of the next jobs that its job depends on.

    Raises Forbidden for one of another queue.
    """
    d = db.dialect
    names = ("type", "queue", "status", "event", "actor", "result")
    columns = ", ".join(f"job.{name}" for name in names)
    named = f"AND tie.name = {d.value}" if call.name is not None else ""
    some = (
        f"SELECT tie.parent, tie.meets, tie.name, {columns},"
        f" substr(job.last_error, 1, {MAX_ERROR}) AS error,"
        f" coalesce(length(job.result), 0) AS size"
        f" FROM {d.table('dependency')} AS tie JOIN {d.table('job')} AS job ON job.id = tie.parent"
        f" WHERE tie.child = {d.id_value} AND tie.parent > {d.id_value} {named}"
        f" ORDER BY tie.parent LIMIT {PAGE}"
    )
    counted = (
        "SELECT *, sum(size) OVER (ORDER BY parent) - size AS before, count(*) OVER () AS found"
        f" FROM ({some}) AS listed"
    )
    rows = db.rows(
        f"SELECT {d.id('parent')}, meets, name, {', '.join(names)}, error, found"
        f" FROM ({counted}) AS one WHERE before < {PAGE_LENGTH} ORDER BY one.parent",
        (job_id, call.after or BEFORE_ALL, *([] if call.name is None else [call.name])),
    )
    for row in rows:
        if not includes(call.within, row[4]):
            raise Forbidden(f"this token is not for queue {row[4]}, where job {row[0]} is")
    found = [ParentJob(*row[:-1]) for row in rows]
    return Parents(found, bool(rows) and (rows[0][-1] == PAGE or len(rows) < rows[0][-1]))


def held_up(db: Database, job_ids: Sequence[str]) -> set[str]:
    """Return the jobs that cannot end, because another transaction has locked what that changes.

    That is the job, its rows in other tables, a job that waits for it, or its gate. Locks the
    others, without waiting.
    """
    d = db.dialect
    busy = db.busy(job_ids)
    if not (ids := [id for id in job_ids if d.is_id(id)]):
        return busy
    some = f"job.id IN ({d.ids(len(ids))})"
    for table, row in BESIDE.items():
        rows = f"{d.table('job')} AS job JOIN {d.table(table)} AS beside ON {row}"
        busy |= {id for (id,) in _locked(db, ("job.id",), f"{rows} WHERE {some}", ids)}
    edges = db.rows(
        f"SELECT {d.id('parent')}, {d.id('child')}, gate FROM {d.table('dependency')}"
        f" WHERE parent IN ({d.ids(len(ids))}) AND meets <> 'past' LIMIT {MAX_EDGES}",
        ids,
    )
    if not (children := sorted({child for _, child, _ in edges})):
        return busy
    waiting = db.busy(children)
    gates = f"{d.table('gate')} WHERE child IN ({d.ids(len(children))})"
    shut = set(_locked(db, ("child", "gate"), gates, children))
    return busy | {id for id, child, gate in edges if child in waiting or (child, gate) in shut}


def _locked(
    db: Database, key: Sequence[str], rows: str, values: Sequence[str]
) -> list[tuple[Any, ...]]:
    """Return the keys, an id first, of the rows of a FROM item that others have locked."""
    d, names = db.dialect, ", ".join(key)
    cells = ", ".join((d.id(key[0]), *key[1:]))
    free = f"WITH free AS (SELECT {names} FROM {rows} {d.skip_locked})"
    left = f"SELECT {cells} FROM {rows} AND ({names}) NOT IN (SELECT * FROM free)"
    return db.rows(f"{free} {left}", [*values, *values])
