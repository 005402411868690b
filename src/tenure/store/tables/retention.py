"""The table of retention rules: empty where every type and queue is kept as the settings say."""

from __future__ import annotations

from collections.abc import Mapping

from tenure.jobs.retention import STATUSES, RetentionRule, Subject
from tenure.store.dialect import Reads, Statements


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
