"""Behind a pooler that lends sessions by transaction nothing listens, and nothing piles up."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest

from tenure.store import migrate_store
from tenure.store.postgres.reader import PostgresReader
from tenure.store.postgres.writer import Postgres
from tests.support.pgbouncer import PgBouncer
from tests.support.postgres import PostgresServer
from tests.support.postgres_servers import durable_server
from tests.support.waiting import WAIT_SECONDS
from tests.unit.postgres.connections import add, in_thread

pytestmark = [pytest.mark.postgres, pytest.mark.scenario(63)]

NOTIFICATIONS = 20


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with durable_server() as started:
        migrate_store(started.create_database("jobs"))
        yield started


def test_nothing_listens_in_a_session_that_is_lent_by_transaction(server: PostgresServer) -> None:
    with PgBouncer(server, pool_mode="transaction", pool_size=1) as pooler:
        reader = PostgresReader(pooler.url("jobs"))
        watch = in_thread(lambda: reader.watch(lambda _: None, threading.Event()))
        watch.join(WAIT_SECONDS)
        assert not watch.is_alive()
        reader.close()
        with psycopg.connect(pooler.url("jobs")) as next_client:
            assert next_client.execute("SELECT pg_listening_channels()").fetchall() == []


def test_a_pooler_that_lends_whole_sessions_is_listened_through(server: PostgresServer) -> None:
    heard, stop = threading.Event(), threading.Event()
    with PgBouncer(server, pool_mode="session", pool_size=5) as pooler:
        reader, db = PostgresReader(pooler.url("jobs")), Postgres(server.url("jobs"))
        watch = in_thread(lambda: reader.watch(lambda _: heard.set(), stop))
        assert heard.wait(WAIT_SECONDS)  # it listens from now on
        heard.clear()
        db.announce()
        assert heard.wait(WAIT_SECONDS)
        stop.set()
        watch.join(WAIT_SECONDS)
        reader.close()
        db.close()


@pytest.mark.filterwarnings("ignore:using .notifies")
def test_notifications_that_others_asked_for_are_not_kept(server: PostgresServer) -> None:
    """As left behind in a pooled session by a program that listens there."""
    with PgBouncer(server, pool_mode="transaction", pool_size=1) as pooler:
        with psycopg.connect(pooler.url("jobs"), autocommit=True) as careless:
            careless.execute("LISTEN tenure")
        db, reader = Postgres(pooler.url("jobs")), PostgresReader(pooler.url("jobs"))
        with psycopg.connect(server.url("jobs"), autocommit=True) as others:
            for _ in range(NOTIFICATIONS):
                others.execute("NOTIFY tenure")
                add(db)
                reader.clock()
        with reader._pool.connection() as read:
            for connection in (db._connection, read):
                assert connection is not None
                assert list(connection.notifies(timeout=0)) == []
        db.close()
        reader.close()
