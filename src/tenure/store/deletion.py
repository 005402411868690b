"""Deletes settled jobs, with what belongs to each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

from tenure import failpoints
from tenure.errors import TenureError
from tenure.store.dialect import Statements
from tenure.store.protocol import Database
from tenure.store.refusals import unless_refused

Kind: TypeAlias = tuple[str, str, str]
"""Status, queue and type of jobs."""
Refused: TypeAlias = Sequence[tuple[Any, TenureError]]
"""Jobs (id, status, queue, type) that the database refused to delete, each with its error."""


def delete(db: Database, jobs: Sequence[Any]) -> tuple[Counter[Kind], Refused]:
    """Delete jobs (id, status, queue, type), and what belongs to them.

    Returns how many of a status, queue and type were deleted, and what the database refused.
    """
    some, refused = unless_refused(db, partial(_delete, db), jobs) if jobs else ([], [])
    return sum(some, Counter()), refused


def _delete(db: Statements, jobs: Sequence[Any]) -> Counter[Kind]:
    d = db.dialect
    ids = [id for id, *_ in jobs]
    among = d.ids(len(ids))
    for name in ("job", "transition", "trace", "progress"):
        column = "id" if name == "job" else "job_id"
        db.changed(f"DELETE FROM {d.table(name)} WHERE {column} IN ({among})", ids)
        failpoints.hit("prune.between_job_and_ledger")
    return Counter((status, queue, type) for _, status, queue, type in jobs)
