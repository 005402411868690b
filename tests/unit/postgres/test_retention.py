"""Where types have rules, retention reads what is due, however many jobs are kept longer."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from tenure.store.postgres import statements as sql
from tenure.store.postgres.writer import Postgres
from tenure.store.tables import workflows
from tests.support.effort import MANY_ROWS
from tests.unit.postgres.connections import ask_in_store_session
from tests.unit.postgres.plans import plan

Connection = psycopg.Connection[Any]
STATUS = "completed"


@pytest.fixture
def kept(raw: Connection) -> Connection:
    """Many kept jobs in rows of ten, of a few types, and as many arrivals that are not due."""
    raw.execute("ALTER TABLE tenure.kept DISABLE TRIGGER USER, SET (autovacuum_enabled = false)")
    raw.execute("ALTER TABLE tenure.arrival DISABLE TRIGGER USER")
    raw.execute(
        "INSERT INTO tenure.kept (status, queue, type, at, ids) SELECT %s, 'default',"
        " 'type' || n %% 7, now() - n * interval '1 minute',"
        " ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 10 + 0 * n))"
        " FROM generate_series(1, %s) AS n",
        (STATUS, MANY_ROWS // 10),
    )
    raw.execute(
        "INSERT INTO tenure.arrival (status, at, ids)"
        " SELECT %s, now() + n * interval '1 minute', ARRAY[gen_random_uuid()]"
        " FROM generate_series(1, %s) AS n",
        (STATUS, MANY_ROWS // 10),
    )
    return raw


def test_the_pairs_are_found_without_reading_what_is_kept(kept: Connection, url: str) -> None:
    now = datetime.now(UTC)
    for _ in ("never analysed", "analysed"):
        found = plan(kept, url, sql.of_status(sql.KEPT, STATUS))
        assert found.count("using kept_at on kept") == 2
        assert "Sort" not in found
        aside = plan(kept, url, sql.of_status(sql.PUT_ASIDE, STATUS), now)
        assert "Scan using arrival_at" in aside
        assert "Seq Scan on arrival" not in aside
        values = ("default", "type1", now, 0, 100, 100, now, 0, "3", 0, 100)
        delete = plan(kept, url, sql.arrived(sql.DELETE_THEM, STATUS, kept=True), *values)
        assert "using kept_at" in delete
        assert "Seq Scan on kept" not in delete
        assert "Seq Scan on job" not in delete
        assert "Seq Scan on transition" not in delete
        kept.execute("ANALYZE tenure.kept, tenure.arrival")
    buffers = kept.execute(
        "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) "  # type: ignore[arg-type]
        + sql.of_status(sql.KEPT, STATUS).replace("{s}", "tenure")
    ).fetchall()
    hit = next(line for (line,) in buffers if "Buffers" in line)
    assert sum(int(part.split("=")[1]) for part in hit.split() if "=" in part) < 100, hit


@pytest.mark.parametrize("statistics", ["missing", "right"])
def test_a_workflow_is_deleted_without_reading_the_others(
    db: Postgres, raw: Connection, statistics: str
) -> None:
    """With 100,000 that were old enough, each step looked at all of them, and deleted one."""
    many, now = MANY_ROWS // 50, datetime.now(UTC)
    raw.execute(
        "ALTER TABLE tenure.workflow SET (autovacuum_enabled = false), DISABLE TRIGGER USER"
    )
    raw.execute(
        "INSERT INTO tenure.workflow (id, statuses, created_at, created_by, finished_at)"
        " SELECT gen_random_uuid(), (ARRAY['completed', 'failed'])[1 + n %% 2], now(), 'me',"
        " now() - n / 10 * interval '1 minute' FROM generate_series(1, %s) AS n",
        (many,),
    )
    if statistics == "right":
        raw.execute("ANALYZE tenure.workflow, tenure.job")
    ends = dict.fromkeys(("completed", "failed", "cancelled"), now)
    read = (
        "SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))"
        " FROM pg_stat_xact_user_tables WHERE relname IN ('workflow', 'job')"
    )
    db.begin()
    workflows.prune(db, ends, (0, 0), 500)
    ((rows,),) = ask_in_store_session(db, read)
    db.commit()
    ((left,),) = raw.execute("SELECT count(*) FROM tenure.workflow").fetchall()
    assert left == many - 1
    assert rows < 100


def test_a_workflow_that_runs_again_meanwhile_is_left(
    db: Postgres, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was chosen, and then one of its jobs was retried before it was locked."""
    raw.execute("ALTER TABLE tenure.workflow DISABLE TRIGGER USER")
    raw.execute(
        "INSERT INTO tenure.workflow (id, statuses, created_at, created_by, finished_at)"
        " VALUES (gen_random_uuid(), 'failed', now(), 'me', now() - interval '1 hour')"
    )
    rows = db.rows

    def rows_and_retry(statement: str, values: Any = ()) -> Any:
        found = rows(statement, values)
        if statement.startswith("WITH word"):
            assert found
            raw.execute("UPDATE tenure.workflow SET statuses = NULL, finished_at = NULL")
        return found

    monkeypatch.setattr(db, "rows", rows_and_retry)
    db.begin()
    workflows.prune(db, {"failed": datetime.now(UTC)}, (0, 0), 500)
    db.commit()
    assert raw.execute("SELECT finished_at FROM tenure.workflow").fetchall() == [(None,)]
