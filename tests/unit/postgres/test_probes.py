"""What `tenure doctor` learns about the surroundings of a PostgreSQL database."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tenure.store import migrate_store
from tenure.store.postgres import doctor
from tenure.store.postgres.connection import address_of, connect, pools_transactions
from tenure.store.postgres.doctor import holds_back, locked
from tenure.store.postgres.writer import Postgres
from tenure.values.findings import Check, CheckResult
from tests.support.pgbouncer import PgBouncer
from tests.support.postgres import PostgresServer
from tests.support.postgres_servers import durable_server
from tests.support.proxy import Proxy
from tests.support.store import claim_request, new_job
from tests.support.waiting import wait_until
from tests.unit.postgres.connections import ask_in_store_session, claim_alone

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server with slots and prepared transactions."""
    with durable_server({"wal_level": "logical", "max_prepared_transactions": "2"}) as started:
        yield started


@pytest.mark.scenario(63)
def test_no_pooler_no_pooling(server: PostgresServer) -> None:
    with connect(address_of(server.url())) as connection:
        assert not pools_transactions(connection)


@pytest.mark.scenario(63)
@pytest.mark.parametrize(
    ("mode", "size", "round_robin", "pools"),
    [
        ("transaction", 5, False, True),
        ("transaction", 5, True, True),
        ("transaction", 1, False, True),
        ("session", 5, False, False),
        ("session", 1, False, False),
    ],
)
def test_a_pooler_is_known_by_what_it_lends(
    server: PostgresServer,
    mode: str,
    size: int,
    round_robin: bool,
    pools: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if size == 1 and not pools:  # nothing comes, however long it is waited for
        monkeypatch.setattr("tenure.store.postgres.connection.POOLER_SECONDS", 0.2)
    with (
        PgBouncer(server, pool_mode=mode, pool_size=size, round_robin=round_robin) as pooler,
        connect(address_of(pooler.url("postgres"))) as connection,
    ):
        assert pools_transactions(connection) is pools
        assert pools_transactions(connection) is pools  # asking leaves nothing behind


@pytest.mark.scenario(63)
@pytest.mark.parametrize("size", [1, 2])
def test_a_pooler_whose_sessions_are_all_in_use_is_known(
    server: PostgresServer, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others always wait for a session, so a second client gets none in time."""
    monkeypatch.setattr("tenure.store.postgres.connection.POOLER_SECONDS", 0.05)
    enough = threading.Event()

    def use(url: str) -> None:
        with psycopg.connect(url, autocommit=True) as client:
            while not enough.is_set():
                client.execute("SELECT pg_sleep(0.2)")

    with (
        PgBouncer(server, pool_mode="transaction", pool_size=size) as pooler,
        connect(address_of(pooler.url("postgres"))) as connection,
        ThreadPoolExecutor() as pool,
    ):
        others = [pool.submit(use, pooler.url("postgres")) for _ in range(size + 1)]
        try:
            assert pools_transactions(connection)
        finally:
            enough.set()
        assert connection.execute("SELECT 1").fetchone() == (1,)
        for each in others:
            each.result()


@pytest.mark.scenario(63)
def test_a_pooler_with_one_other_client_is_known(server: PostgresServer) -> None:
    """Each of the two clients was lent the session that it had before, again and again."""
    enough = threading.Event()

    def use(url: str) -> None:
        with psycopg.connect(url, autocommit=True) as client:
            while not enough.is_set():
                client.execute("SELECT pg_sleep(0.05)")

    with (
        PgBouncer(server, pool_mode="transaction", pool_size=2) as pooler,
        connect(address_of(pooler.url("postgres"))) as connection,
        ThreadPoolExecutor() as pool,
    ):
        other = pool.submit(use, pooler.url("postgres"))
        try:
            assert [pools_transactions(connection) for _ in range(5)] == [True] * 5
        finally:
            enough.set()
        other.result()


@pytest.mark.scenario(63)
@pytest.mark.parametrize(("mode", "pools"), [("transaction", True), ("session", False)])
def test_a_second_client_that_is_answered_late_decides(
    server: PostgresServer, mode: str, pools: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine the pool counted as one that lends no session."""
    monkeypatch.setattr("tenure.store.postgres.connection.POOLER_SECONDS", 0.5)
    with (
        PgBouncer(server, pool_mode=mode, pool_size=2) as pooler,
        Proxy(pooler.url("postgres")) as proxy,
        connect(address_of(proxy.url_of(pooler.url("postgres")))) as connection,
    ):
        proxy.hold(b"BEGIN")
        release = threading.Timer(0.75, proxy.let_go)
        release.start()
        assert pools_transactions(connection) is pools
        release.join()


def test_behind_a_pooler_nothing_is_prepared(server: PostgresServer) -> None:
    server.create_database("prepared")
    migrate_store(server.url("prepared"))
    with PgBouncer(server, pool_mode="transaction", pool_size=1) as pooler:
        for url, prepares in ((pooler.url("prepared"), False), (server.url("prepared"), True)):
            db = Postgres(url)
            for _ in range(3):
                assert len(db.enqueue_alone([new_job()], whole=True)) == 1
                assert len(claim_alone(db, claim_request(1)) or []) == 1
            asked = "SELECT name FROM pg_prepared_statements ORDER BY name"
            assert bool(ask_in_store_session(db, asked)) is prepares
            db.close()


@pytest.mark.own_database
def test_roles_that_may_add_functions_are_named(postgres_url: str) -> None:
    """What they add to a schema of the search path could be called with our rights."""
    migrate_store(postgres_url)

    def schemas() -> Check:
        return {one.name: one for one in doctor.check_postgres(postgres_url)}["schemas"]

    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        assert schemas().health is CheckResult.OK
        connection.execute("GRANT CREATE ON SCHEMA public, tenure TO PUBLIC")
        connection.execute("GRANT CREATE ON SCHEMA tenure TO pg_monitor, CURRENT_USER")
    warned = schemas()
    assert warned.health is CheckResult.WARNING
    _, _, revokes = warned.advice.partition("application: ")
    assert revokes.split("; ") == [
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        "REVOKE CREATE ON SCHEMA tenure FROM PUBLIC",
        "REVOKE CREATE ON SCHEMA tenure FROM pg_monitor",
    ]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(revokes.encode())
    assert schemas().health is CheckResult.OK


@pytest.mark.scenario(64)
def test_what_holds_vacuum_back_is_named(server: PostgresServer) -> None:
    with (
        psycopg.connect(server.url(), autocommit=True) as asking,
        psycopg.connect(server.url(), autocommit=True, application_name="reports") as culprit,
    ):
        assert holds_back(asking, 0) is None

        culprit.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        found = holds_back(asking, 0) or ""
        assert f"session {culprit.info.backend_pid} of postgres (reports)" in found
        assert f"pg_terminate_backend({culprit.info.backend_pid})" in found
        assert holds_back(asking, 3600) is None  # not for that long
        culprit.execute("COMMIT")
        assert holds_back(asking, 0) is None

        culprit.execute("BEGIN; CREATE TABLE kept (); PREPARE TRANSACTION 'it''s gone'")
        found = holds_back(asking, 0) or ""
        statement = found.partition("end it with ")[2]
        assert statement == "ROLLBACK PREPARED 'it''s gone'"
        assert holds_back(asking, 3600) is None
        asking.execute(statement)
        assert holds_back(asking, 0) is None

        asking.execute("SELECT pg_create_logical_replication_slot('left_behind', 'pgoutput')")
        assert "replication slot left_behind" in (holds_back(asking) or "")
        asking.execute("SELECT pg_drop_replication_slot('left_behind')")
        assert holds_back(asking, 0) is None


@pytest.mark.parametrize("restarts", [False, True])
def test_a_prepared_transaction_that_locks_a_table_is_named(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch, restarts: bool
) -> None:
    """No session has its locks: nobody finds it among the sessions, also not after a restart."""
    monkeypatch.setattr(doctor, "LOCK_SECONDS", 0.1)
    url = server.create_database(f"locked_{restarts}")
    migrate_store(url)
    with psycopg.connect(url, autocommit=True) as culprit:
        culprit.execute("BEGIN; LOCK TABLE tenure.job; PREPARE TRANSACTION 'it''s gone'")
    if restarts:
        server.stop()
        server.start()
    with psycopg.connect(url, autocommit=True) as asking:
        found = locked(asking, "tenure") or ""
        about, _, statement = found.partition("; end it with ")
        assert about.startswith(
            "the prepared transaction 'it''s gone' of postgres has the table job locked since "
        )
        assert statement == "ROLLBACK PREPARED 'it''s gone'"
        asking.execute(statement)
        assert locked(asking, "tenure") is None


@pytest.mark.scenario(64)
def test_a_role_that_may_not_look_into_others_sees_their_age(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        psycopg.connect(server.url(), autocommit=True) as owner,
        psycopg.connect(server.url(), autocommit=True) as culprit,
    ):
        owner.execute("CREATE ROLE shop LOGIN")
        culprit.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        monkeypatch.setattr("tenure.store.postgres.doctor.MAX_TRANSACTIONS", 2)
        with psycopg.connect(f"{server.url()}&user=shop", autocommit=True) as asking:
            assert holds_back(asking, 0) is None
            for _ in range(5):
                owner.execute("SELECT pg_current_xact_id()")
            wait_until(lambda: holds_back(asking, 0), "the age to be seen")
            found = holds_back(asking, 0) or ""
        assert f"session {culprit.info.backend_pid} of postgres" in found
        assert "since" not in found
