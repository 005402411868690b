"""What one test did in a database that is kept is no matter for the next one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest

from tenure import NewJob, Tenure
from tests.support.kept_databases import LENT, MOST_ENTRIES, RELATIONS, Keeper
from tests.support.postgres import PostgresServer


@pytest.fixture
def keeper(postgres_server: PostgresServer, postgres_template: str) -> Iterator[Keeper]:
    with closing(Keeper(postgres_server, postgres_template)) as made:
        yield made


def contents(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of every table, and where every sequence is."""
    with psycopg.connect(url, autocommit=True) as connection:
        names = [connection.execute(RELATIONS, (kind,)).fetchall() for kind in ("r", "S")]
        return {
            name: connection.execute(f"SELECT * FROM {name}".encode()).fetchall()
            for (name,) in (*names[0], *names[1])
        }


def do_much(url: str) -> None:
    with Tenure(url) as app:
        app.queues.limit("default", max_running=1)
        job = app.enqueue("mail", {"to": 1}, tags=["a"])
        app.enqueue("mail", {"to": 2}, idempotency_key="k", depends_on=[job])
        app.cancel(job.id)


def test_nothing_is_left_of_a_test(keeper: Keeper) -> None:
    url = keeper.lend()
    before = contents(url)
    do_much(url)
    assert contents(url) != before
    keeper.take_back(url)
    assert keeper.lend() == url
    assert contents(url) == before
    keeper.take_back(url)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE tenure.job DISABLE TRIGGER job_moved",
        "ALTER TABLE tenure.job ALTER priority SET DEFAULT 1",
        "CREATE TABLE another (id int)",
        "DROP INDEX tenure.job_key",
        "GRANT SELECT ON tenure.job TO PUBLIC",
        "INSERT INTO tenure.queue (name) VALUES ('a'); ANALYZE tenure.queue",
        "CREATE OR REPLACE FUNCTION tenure.clock() RETURNS timestamptz LANGUAGE sql STABLE"
        " PARALLEL SAFE AS 'SELECT now()'",
    ],
)
def test_a_database_whose_schema_was_touched_is_used_no_more(keeper: Keeper, change: str) -> None:
    url = keeper.lend()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(change.encode())
    keeper.take_back(url)
    assert keeper.lend() != url


def test_a_database_that_many_rows_were_in_is_used_no_more(keeper: Keeper) -> None:
    url = keeper.lend()
    with Tenure(url) as app:
        app.enqueue_many([NewJob("mail", {"n": n}, {}) for n in range(MOST_ENTRIES)])
    keeper.take_back(url)
    assert keeper.lend() != url


def test_what_a_test_forgot_to_close_is_ended(keeper: Keeper) -> None:
    url = keeper.lend()
    with closing(psycopg.connect(url)) as forgotten:
        forgotten.execute("LOCK TABLE tenure.job")
        keeper.take_back(url)
        assert keeper.lend() == url
        with pytest.raises(psycopg.OperationalError):
            forgotten.execute("SELECT 1")


def test_its_audit_finds_what_verify_finds(keeper: Keeper) -> None:
    url = keeper.lend()
    do_much(url)
    assert LENT[url].violations() == []
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("DELETE FROM tenure.tag")
    with Tenure(url) as app:
        found = app.verify()
    assert len(found) == len(LENT[url].violations()) == 1
