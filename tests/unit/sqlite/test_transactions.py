"""Every write transaction is one from its beginning: none starts as a read and becomes a write.

SQLite refuses such an upgrade at once, whatever the busy timeout, if somebody wrote in between.
"""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tenure import Tenure
from tenure.records import ClaimRequest, Outcome, Report

WRITES = {"INSERT", "UPDATE", "DELETE", "REPLACE"}


class Traced(sqlite3.Connection):
    """A connection whose statements are noted, with whether a transaction was open before each."""

    seen: ClassVar[list[tuple[str, bool]]] = []

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        self.seen.append((sql.strip(), self.in_transaction))
        return super().execute(sql, *values)

    def executemany(self, sql: str, *values: Any) -> sqlite3.Cursor:
        self.seen.append((sql.strip(), self.in_transaction))
        return super().executemany(sql, *values)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    connect = sqlite3.connect
    monkeypatch.setattr(Traced, "seen", [])
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=Traced, **k))
    return Traced.seen


@pytest.mark.scenario(45)
def test_every_transaction_takes_the_right_to_write_at_its_beginning(
    seen: list[tuple[str, bool]], tmp_path: Path
) -> None:
    app = Tenure(f"sqlite:///{tmp_path}/jobs.db")
    jobs = [app.enqueue("t", max_retries=1) for _ in range(4)]
    request = ClaimRequest(worker="w", limit=3, lease_seconds=60)
    leases = app.turn([], request).result().leases
    outcomes = (Outcome.COMPLETED, Outcome.FAILED, Outcome.RELEASED)
    reports = [Report(x.id, x.lease_id, o) for x, o in zip(leases, outcomes, strict=True)]
    app.turn(reports, None).result()
    app.cancel(jobs[3].id)
    app.retry(leases[1].id)
    app.pause("default")
    app.sweep()
    app.prune({"completed": timedelta(0)})
    app.verify()
    app.stats()
    app.close()

    begun = {text for text, _ in seen if text.upper().startswith("BEGIN")}
    assert begun == {"BEGIN IMMEDIATE"}
    writes = [(text, inside) for text, inside in seen if WRITES & set(text.upper().split())]
    assert len(writes) > 10
    assert [text for text, inside in writes if not inside] == []
