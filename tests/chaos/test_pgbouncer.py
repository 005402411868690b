"""Behind a pooler that lends a session for one transaction at a time, all works, by polling."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from tenure import Tenure
from tests.chaos import checker
from tests.chaos.history import History, Recorded
from tests.chaos.load import Load
from tests.support import fault_counts
from tests.support.pgbouncer import PgBouncer
from tests.support.postgres import PostgresServer
from tests.support.postgres_servers import durable_server

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]

CLIENTS = 50
SIZE = 5


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with durable_server() as started:
        yield started


@pytest.mark.slow
@pytest.mark.scenario(63)
def test_fifty_clients_share_five_sessions(server: PostgresServer, tmp_path: Path) -> None:
    server.create_database("jobs")
    folder = tmp_path / "record"
    with PgBouncer(server, pool_mode="transaction", pool_size=SIZE) as pooler:
        url = pooler.url("jobs")

        def enqueue(number: int) -> None:
            with Tenure(url) as app:
                client = Recorded(app, History(folder, f"client {number}"))
                for each in range(3):
                    client.enqueue("work", {"number": 100 * number + each}, backoff=0)

        with Load(url, folder, producers=1) as load:
            with ThreadPoolExecutor(CLIENTS) as pool:
                list(pool.map(enqueue, range(CLIENTS)))
            load.flows_again()
            with psycopg.connect(server.url("jobs"), autocommit=True) as admin:
                # Whatever session a client got, nothing of another client's was left in it, and
                # killed ones are replaced.
                sessions = admin.execute(
                    "SELECT pid FROM pg_stat_activity"
                    " WHERE datname = 'jobs' AND pid <> pg_backend_pid()"
                    " AND backend_type = 'client backend'"
                ).fetchall()
                assert 1 <= len(sessions) <= SIZE
                for (pid,) in sessions:
                    admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
                    fault_counts.count("connections cut")
            load.flows_again()
    assert checker.check(folder, server.url("jobs")) == []
