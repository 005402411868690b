"""How long settled jobs are kept: the table of rules, and the deletion of what is older.

The table is empty where every type and queue is kept as the settings say. Jobs are deleted in
batches: each is one transaction.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from tenure.errors import TenureError, WriteRefused
from tenure.rules.retention import STATUSES, Cutoffs, RetentionRule, RetentionRules, Subject
from tenure.store.database import Database, Reads, Statements
from tenure.store.tables import stats, webhooks, workers, workflows
from tenure.values.text import quantity

log = logging.getLogger(__name__)


def every(db: Reads) -> list[RetentionRule]:
    """Return all rules, by subject and name."""
    columns = ", ".join(("subject", "name", *STATUSES))
    table = db.dialect.table("retention")
    rows = db.rows(f"SELECT {columns} FROM {table} ORDER BY subject, name")
    return [RetentionRule(*row[:2], **dict(zip(STATUSES, row[2:], strict=True))) for row in rows]


def change(
    db: Statements, subject: Subject, name: str, given: Mapping[str, float | None]
) -> RetentionRule:
    """Change how long jobs are kept, by status; None removes what the rule says. Returns the rule.

    A rule that says nothing has no row.
    """
    d = db.dialect
    table, is_it = d.table("retention"), f"subject = {d.value} AND name = {d.value}"
    db.changed(
        f"INSERT INTO {table} (subject, name) VALUES ({d.values(2)}) ON CONFLICT DO NOTHING",
        (subject, name),
    )
    if given:
        sets = ", ".join(f"{status} = {d.value}" for status in given)
        db.changed(f"UPDATE {table} SET {sets} WHERE {is_it}", (*given.values(), subject, name))
    empty = " AND ".join(f"{status} IS NULL" for status in STATUSES)
    db.changed(f"DELETE FROM {table} WHERE {is_it} AND {empty}", (subject, name))
    found = (rule for rule in every(db) if (rule.subject, rule.name) == (subject, name))
    return next(found, RetentionRule(subject, name))


def declare(db: Statements, keeps: Mapping[str, Mapping[str, float]]) -> None:
    """Store what the `@app.job` of each type says, by status, where it says something else now."""
    known = {rule.name: rule for rule in every(db) if rule.subject == "handler"}
    for name, keep in sorted(keeps.items()):
        new = {status: keep.get(status) for status in STATUSES}
        if RetentionRule("handler", name, **new) != known.get(name, RetentionRule("handler", name)):
            change(db, "handler", name, new)


# --- deletion -------------------------------------------------------------------------------------

MAX_WAIT = timedelta(hours=1)
"""How much longer a settled job is kept until each webhook has its transitions."""

Note: TypeAlias = Callable[[TenureError], None]
"""Gets what the database refuses to delete."""
Pass: TypeAlias = tuple[timedelta, int, Sequence[int]]
"""How much longer jobs are kept, and the time and the place in the ledger up to which they go."""


def prune(
    db: Database,
    settled_before: Mapping[str, datetime],
    limit: int,
    note: Note = lambda _: None,
) -> int:
    """Delete up to `limit` jobs of a status (key) settled before its time, or before their rule's.

    Returns how many are deleted, or are put aside as kept longer: 0 if all is done. Calls `note` if
    the database refuses to delete some: they are put aside, too.

    Only jobs whose transitions are all in the statistics, to which the next batch is added first,
    and, for up to MAX_WAIT more, delivered to webhooks. What is so ends at a place in the ledger
    and at a time. The time bounds the search: what settled after it need not be looked at.
    """
    passes, rules = _passes(db), RetentionRules(every(db))
    removed: Counter[tuple[str, str, str]] = Counter()
    refused: list[tuple[Any, TenureError]] = []
    aside = 0
    for status in STATUSES:
        for wait, until, place in passes:
            if (left := limit - removed.total() - aside) > 0:
                cutoffs = Cutoffs(rules, status, db.now(), settled_before.get(status), wait)
                gone, kept, some = db.delete_settled(cutoffs, until, place, left)
                aside += kept
                removed += gone
                refused += some
    for wait, _, place in passes:
        old = {status: time - wait for status, time in settled_before.items()}
        if (left := limit - removed.total()) > 0:
            gone, some = workflows.prune(db, old, place, left)
            aside += len(some)
            removed += gone
            refused += some
    if removed:
        db.stats.take_out(removed)
    else:
        workers.forget(db)
    if refused:
        note(_refusal(refused))
    return removed.total() + aside


def delete_unchanged(db: Database, entries: Mapping[str, int]) -> int:
    """Delete the jobs (id -> entries of its ledger) that have not changed since; return how many.

    Jobs that `prune` would leave are left, and jobs that the database refuses to delete.
    """
    *_, (_, _, place) = _passes(db)
    removed, refused = workflows.prune_unchanged(db, entries, place)
    db.stats.take_out(removed)
    if refused:
        log.warning("%s", _refusal(refused))
    return removed.total()


def _refusal(refused: Sequence[tuple[Any, TenureError]]) -> WriteRefused:
    (job_id, *_), error = refused[0]
    jobs = quantity(len(refused), "settled job")
    return WriteRefused(f"{jobs} cannot be deleted, such as {job_id}: {error}")


def _passes(db: Database) -> list[Pass]:
    *measured, until = db.stats.catch_up(db.now())
    positions = [measured, *(position.split(".") for position in webhooks.positions(db))]
    places = [tuple(map(int, position)) for position in positions]
    done_with = min(places)
    if done_with == places[0]:
        return [(timedelta(0), until, done_with)]
    next_entries = db.rows(stats.next_entry(db.dialect), done_with)
    delivered = min([until, *(at for (at,) in next_entries)])
    return [(timedelta(0), delivered, done_with), (MAX_WAIT, until, places[0])]
