"""A batch of retention goes over a bounded part of what is kept longer, and over it once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tenure.rules.retention import Cutoffs, RetentionRule, RetentionRules
from tenure.store import migrate_store
from tenure.store.sqlite.connection import connect
from tenure.store.sqlite.statements import MAX_PASSED
from tenure.store.sqlite.writer import Sqlite
from tenure.values.ids import EPOCH
from tests.support.effort import MANY_ROWS

STEPS = 100
"""Instructions of SQLite between two counts."""
HOUR = timedelta(hours=1)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Sqlite]:
    """Many settled jobs of a type that is kept for long, and a few of another behind them."""
    path = tmp_path / "jobs.db"
    migrate_store(f"sqlite:///{path}")
    raw = connect(path)
    raw.execute("PRAGMA ignore_check_constraints = ON")  # ids as numbers
    triggers = raw.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        raw.execute(f"DROP TRIGGER {name}")
    add_settled(raw, "kept", MANY_ROWS, 1)
    add_settled(raw, "mail", 10, MANY_ROWS + 1)
    for _, text in triggers:
        raw.execute(text)
    raw.close()
    db = Sqlite(path)
    yield db
    db.close()


def add_settled(raw: sqlite3.Connection, type: str, count: int, first: int) -> None:
    raw.execute(
        "WITH RECURSIVE n (n) AS (SELECT ? UNION ALL SELECT n + 1 FROM n LIMIT ?)"
        " INSERT INTO tenure_job (id, type, status, run_at, created_at, finished_at)"
        " SELECT format('%036d', n), ?, 'completed', n, n, n FROM n",
        (first, count, type),
    )


class Steps:
    """Counts how often it is called."""

    so_far = 0

    def __call__(self) -> None:
        self.so_far += 1


def batches(db: Sqlite, cutoffs: Cutoffs) -> tuple[list[int], int]:
    """Take batches until one finds nothing; the instructions of each in 100, and what went."""
    steps, gone = [], 0
    while True:
        db.begin()
        count = Steps()
        assert db._connection is not None
        db._connection.set_progress_handler(count, STEPS)
        removed, aside, _ = db.delete_settled(cutoffs, 2 * MANY_ROWS, (0,), 500)
        db._connection.set_progress_handler(None, 0)
        db.commit()
        steps.append(count.so_far)
        gone += removed.total()
        if not removed and not aside:
            return steps, gone


def test_what_is_kept_longer_is_gone_over_once_in_an_hour(db: Sqlite) -> None:
    rules = RetentionRules([RetentionRule("type", "kept", completed=1e12)])
    now = EPOCH + timedelta(days=1)
    cutoffs = Cutoffs(rules, "completed", now, now)
    first, gone = batches(db, cutoffs)
    assert gone == 10
    assert len(first) == MANY_ROWS // MAX_PASSED + 2
    assert max(first) < 40 * MAX_PASSED / STEPS  # instructions, for each job that is gone over
    again, gone = batches(db, Cutoffs(rules, "completed", now + 0.9 * HOUR, now))
    assert (len(again), gone) == (1, 0)
    assert again[0] < 5
    later, _ = batches(db, Cutoffs(rules, "completed", now + HOUR, now))
    assert len(later) == MANY_ROWS // MAX_PASSED + 1
    others = RetentionRules([*rules.every, RetentionRule("queue", "q", completed=5)])
    changed, _ = batches(db, Cutoffs(others, "completed", now + HOUR, now))
    assert len(changed) == MANY_ROWS // MAX_PASSED + 1
