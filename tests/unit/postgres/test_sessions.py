"""Sessions of the PostgreSQL store: what they leave behind, and what happens when they break."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import closing, suppress
from typing import Any

import psycopg
import pytest
from psycopg.pq import ExecStatus

from tenure import Tenure, failpoints
from tenure.errors import StoreUnavailable
from tenure.events import Cancelled
from tenure.lifecycle import Status
from tenure.rules.jobs import CheckedJob, Enqueued
from tenure.rules.reports import Answer
from tenure.store import POSTGRES_WRITERS, Store, open_store, transitions
from tenure.store.commit import ANNOUNCE_SECONDS
from tenure.store.database import Trouble
from tenure.store.postgres import connection
from tenure.store.postgres import session as postgres
from tenure.store.postgres.doctor import check_postgres
from tenure.store.postgres.reader import PostgresReader
from tenure.store.postgres.session import error_of
from tenure.store.postgres.writer import Postgres
from tenure.store.tables import queues, retention, workers
from tenure.values.ids import new_id
from tests.support.http import api_client, assert_problem
from tests.support.postgres import PostgresServer
from tests.support.proxy import Proxy
from tests.support.store import claim_request, new_job, report_completed, report_failed
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.unit.postgres.connections import (
    Connection,
    add,
    ask_in_store_session,
    committed,
    end_sessions,
    in_thread,
    take,
    wait_until_a_session_is_blocked,
)

WAIT_FOR_A_STANDBY = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'"

# --- poolers ----------------------------------------------------------------------------------


def test_no_verb_leaves_anything_in_the_session(db: Postgres) -> None:
    db._connect()
    assert db._connection is not None
    db._connection.prepare_threshold = None  # as behind a pooler
    leases = take(db, 4)
    with committed(db):
        db.savepoint()
        workers.see(db, claim_request(1, queues=("default",), types=("mail",)), new=True)
        queues.set_queue(db, "other", paused=True, max_pending=5, actor="me")
        db.undo_to_savepoint()
        db.savepoint()
        transitions.settle(
            db, [report_completed(leases[0]), report_failed(leases[1], retryable=False)]
        )
        transitions.sweep(db, 10)
        db.claim(claim_request(3, queues=("default",), types=("mail",)))
        db.renew([(leases[2].id, leases[2].lease_id)], 30)
        retention.prune(db, {Status.COMPLETED: db.now()}, 10)
    db.announce()
    for _ in range(10):  # psycopg names a statement on the server when it comes again
        with committed(db):
            db.claim(claim_request(1))
    changed = ask_in_store_session(db, "SELECT name FROM pg_settings WHERE source = 'session'")
    assert changed == [("search_path",)]  # of a session that no pooler lends
    assert ask_in_store_session(db, "SELECT name FROM pg_prepared_statements") == []
    assert ask_in_store_session(db, "SELECT pg_listening_channels()") == []
    assert (
        ask_in_store_session(db, "SELECT locktype FROM pg_locks WHERE locktype = 'advisory'") == []
    )
    assert ask_in_store_session(db, "SELECT relname FROM pg_class WHERE relpersistence = 't'") == []


def test_the_database_s_defaults_do_not_weaken_a_transaction(url: str, raw: Connection) -> None:
    for setting in (
        "synchronous_commit = off",
        "default_transaction_isolation = 'serializable'",
        "timezone = 'Asia/Kathmandu'",
        "datestyle = 'German, DMY'",
        "search_path = ''",
        "bytea_output = escape",
    ):
        raw.execute(f'ALTER DATABASE "{raw.info.dbname}" SET {setting}')
    db, reader = Postgres(url), PostgresReader(url)
    try:
        db.begin()
        assert ask_in_store_session(db, "SHOW synchronous_commit") == [("on",)]
        assert ask_in_store_session(db, "SHOW transaction_isolation") == [("read committed",)]
        id = new_id()
        made = db.insert([CheckedJob(id=id, type="mail")])[id]
        db.commit()
        assert reader.get(id) == made
        assert made.created_at.utcoffset() == (made.created_at - made.created_at)
        checked = {check.name: check.health for check in check_postgres(url)}
        assert checked["clock"] == "ok"
    finally:
        db.close()
        reader.close()


@pytest.mark.own_database
def test_a_statement_alone_has_not_the_database_s_level_of_isolation(
    url: str, raw: Connection
) -> None:
    """At a stricter one, callers and workers beside it would get serialization failures."""
    level = "default_transaction_isolation = 'repeatable read'"
    raw.execute(f'ALTER DATABASE "{raw.info.dbname}" SET {level}')
    with Tenure(url) as app:
        app.open()
        raw.execute("CREATE TABLE seen (level text)")
        raw.execute(
            "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO"
            " public.seen SELECT current_setting('transaction_isolation'); RETURN NULL; END $$"
        )
        raw.execute(
            "CREATE TRIGGER see AFTER INSERT OR UPDATE ON tenure.job EXECUTE FUNCTION see()"
        )
        app.enqueue("mail")
        (lease,) = app.core.claim(claim_request(1)).leases
        app.core.report([report_completed(lease)])
    assert raw.execute("SELECT level, count(*) FROM seen GROUP BY 1").fetchall() == [
        ("read committed", 3)
    ]


@pytest.mark.own_database
def test_a_server_that_cannot_write_is_not_ready(url: str, raw: Connection) -> None:
    """As beside a former primary: it answered, and each enqueue was refused."""
    raw.execute(f'ALTER DATABASE "{raw.info.dbname}" SET default_transaction_read_only = on')
    with Tenure(url) as app, api_client(app) as api:
        unready = assert_problem(api.get("/ready"), 503, "store_unavailable")
    assert unready["detail"].startswith("the database can only be read")


@pytest.mark.own_database
def test_a_check_of_all_jobs_may_take_its_time(url: str, raw: Connection) -> None:
    """The server ended what took longer than its limit, and `verify` with it."""
    known = (
        "SELECT name FROM pg_settings WHERE name IN ('statement_timeout', 'transaction_timeout')"
    )
    limits = [name for (name,) in raw.execute(known)]  # the latter from PostgreSQL 17 on
    for limit in limits:
        raw.execute(f"ALTER DATABASE \"{raw.info.dbname}\" SET {limit} = '1min'")
    with closing(PostgresReader(url)) as reader:
        for limit in limits:
            assert reader.read_through(f"SHOW {limit}", list) == [("0",)]


# --- when things break ------------------------------------------------------------------------


def test_a_killed_session_undoes_its_transaction_and_the_next_one_connects_anew(
    db: Postgres, raw: Connection
) -> None:
    db.begin()
    db.insert([new_job()])
    end_sessions(raw)
    with pytest.raises(psycopg.OperationalError) as caught:
        db.commit()
    db.rollback()
    assert db.trouble(caught.value) is Trouble.UNAVAILABLE
    assert raw.execute("SELECT count(*) FROM tenure.job").fetchone() == (0,)
    add(db)


def test_a_claim_is_answered_also_if_the_reports_beside_it_cannot_be_recorded(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is committed before them, and nobody would know of the lease until it runs out."""
    store = open_store(url)
    try:
        store.add([new_job(), new_job()]).result()
        (first,) = store.exchange([], claim_request(1)).result().leases
        store.apply(first.id, Cancelled()).result()
        late = report_completed(first)
        monkeypatch.setattr(failpoints, "ARMED", {"report.before_commit": ("raise", 2)})
        monkeypatch.setattr(failpoints, "_visits", Counter())

        busy = store.exchange([late], claim_request(1)).result()

        (lease,) = busy.leases
        assert [verdict.answer for verdict in busy.verdicts] == [Answer.BUSY]
        again = store.exchange([late, report_completed(lease)], None).result()
        assert [verdict.answer for verdict in again.verdicts] == [Answer.LOST, Answer.RECORDED]
    finally:
        store.close()


def test_a_read_outlives_all_connections_of_the_pool(
    reader: PostgresReader, raw: Connection
) -> None:
    reader.clock()
    with reader._pool.connection():
        assert reader.get(new_id()) is None  # on a second connection
    end_sessions(raw)
    assert reader.get(new_id()) is None


def test_a_closed_reader_opens_nothing_again(reader: PostgresReader, raw: Connection) -> None:
    reader.clock()
    reader.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        reader.clock()


def test_callers_do_not_notice_a_session_that_died_while_idle(url: str, raw: Connection) -> None:
    store = open_store(url)
    try:
        (first,) = store.add([new_job()]).result()
        assert store.read.get(first.job.id) == first.job
        end_sessions(raw)
        assert store.read.get(first.job.id) == first.job
        (second,) = store.add([new_job()]).result()
        assert second.created
        end_sessions(raw)
        assert store.renew([], 30) == set()
    finally:
        store.close()


def test_a_server_that_became_read_only_is_left_for_a_new_connection(
    url: str, raw: Connection
) -> None:
    raw.execute(f'ALTER DATABASE "{raw.info.dbname}" SET default_transaction_read_only = on')
    db = Postgres(url)
    try:
        db.begin()
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as caught:
            db.insert([new_job()])
        db.rollback()
        assert db.trouble(caught.value) is Trouble.UNAVAILABLE
        raw.execute(f'ALTER DATABASE "{raw.info.dbname}" RESET default_transaction_read_only')
        add(db)
    finally:
        db.close()


def test_a_commit_of_nothing_is_no_commit(db: Postgres) -> None:
    add(db)
    with pytest.raises(psycopg.OperationalError, match="COMMIT"):
        db.commit()  # there is no transaction: whatever was to be committed is not there
    db.begin()
    with suppress(psycopg.Error):
        ask_in_store_session(db, "SELECT 1 / 0")
    with pytest.raises(psycopg.OperationalError, match="ROLLBACK"):
        db.commit()


@pytest.mark.scenario(36)
def test_a_job_whose_answer_was_cut_off_is_found_again(url: str, raw: Connection) -> None:
    with Proxy(url) as proxy:
        store = open_store(proxy.url_of(url))
        store.add([new_job()]).result()
        proxy.drop_answers(b"enqueue_one")
        (added,) = store.add([new_job()]).result()  # neither an error nor a second job
        assert proxy.counts["answers dropped"] == 1
        assert store.read.get(added.job.id) == added.job
        assert raw.execute("SELECT count(*) FROM tenure.job").fetchone() == (2,)
        store.close()


def test_an_error_without_a_code_is_a_lost_connection(db: Postgres, raw: Connection) -> None:
    """libpq can hand one out before it calls the connection bad itself."""
    lost = error_of(raw.pgconn.make_empty_result(ExecStatus.FATAL_ERROR))
    assert db.trouble(lost) is Trouble.UNAVAILABLE
    wrong = error_of(raw.pgconn.exec_(b"SELECT 1 / 0"))
    assert isinstance(wrong, psycopg.errors.DivisionByZero)


@pytest.mark.scenario(66)
def test_a_deadlock_is_tried_again(db: Postgres, other: Postgres, raw: Connection) -> None:
    first, second = add(db, 2)
    errors: list[Exception] = []
    db.begin()
    db.lock([first])
    other.begin()
    other.lock([second])

    def lock_the_other_one() -> None:
        try:
            other.lock([first])
        except Exception as error:
            errors.append(error)
            other.rollback()

    thread = in_thread(lock_the_other_one)
    wait_until_a_session_is_blocked(raw)
    try:
        db.lock([second])
    except Exception as error:
        errors.append(error)
        db.rollback()
    thread.join(30)
    (error,) = errors
    assert db.trouble(error) is Trouble.RETRY


def test_a_lock_that_somebody_keeps_is_not_waited_for_without_end(
    db: Postgres, raw: Connection
) -> None:
    (id,) = add(db)
    raw.execute("BEGIN")
    raw.execute("SELECT FROM tenure.job FOR UPDATE")
    db.begin()
    ask_in_store_session(db, "SELECT set_config('lock_timeout', '10ms', true)")
    with pytest.raises(psycopg.errors.LockNotAvailable) as caught:
        db.lock([id])
    assert db.trouble(caught.value) is Trouble.RETRY
    db.rollback()
    db.begin()
    assert ask_in_store_session(db, "SHOW lock_timeout") == [("10s",)]


def test_a_transaction_whose_process_is_frozen_lets_go_of_its_locks(
    db: Postgres, other: Postgres, raw: Connection
) -> None:
    (id,) = add(db)
    db.begin()
    assert ask_in_store_session(db, "SHOW idle_in_transaction_session_timeout") == [("5s",)]
    db.lock([id])
    ask_in_store_session(
        db, "SELECT set_config('idle_in_transaction_session_timeout', '10ms', true)"
    )
    with committed(other):
        assert other.lock([id])[id].id == id  # waits for less than its lock_timeout
    with pytest.raises(psycopg.Error) as caught:
        db.commit()
    db.rollback()
    assert db.trouble(caught.value) is Trouble.UNAVAILABLE
    add(db)


def test_what_cannot_succeed_is_refused(db: Postgres) -> None:
    db.begin()
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        ask_in_store_session(
            db, "INSERT INTO tenure.queue (name, max_pending) VALUES ('q', -1) RETURNING 1"
        )
    assert db.trouble(caught.value) is Trouble.REFUSED
    db.rollback()
    db.begin()
    with pytest.raises(psycopg.Error, match="tenure:") as refused:
        ask_in_store_session(db, "INSERT INTO tenure.transition DEFAULT VALUES RETURNING seq")
    assert db.trouble(refused.value) is Trouble.REFUSED
    assert db.trouble(ValueError()) is Trouble.BUG


# --- waking up --------------------------------------------------------------------------------


def test_the_watch_rings_for_other_processes_and_comes_back_when_its_session_dies(
    db: Postgres, other: Postgres, reader: PostgresReader, raw: Connection
) -> None:
    rung, stop = threading.Event(), threading.Event()
    thread = in_thread(lambda: reader.watch(lambda _: rung.set(), stop))

    def wait() -> None:
        assert rung.wait(30)
        rung.clear()

    wait()  # once it listens
    db.announce()
    wait()
    end_sessions(raw)
    wait()  # it listens again, and may have missed something
    other.announce()
    wait()
    stop.set()
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.scenario(65)
def test_new_jobs_are_announced_soon_and_seldom(url: str, raw: Connection) -> None:
    store = open_store(url)
    try:
        raw.execute("LISTEN tenure")
        store.add([new_job()]).result()
        assert len(list(raw.notifies(timeout=30, stop_after=1))) == 1
        assert list(raw.notifies(timeout=0.1)) == []  # an idle store says nothing
        began = time.monotonic()
        for added in [store.add([new_job()]) for _ in range(500)]:
            added.result()
        store.close()  # from here on nobody announces anything
        most = 1 + store.exchanges * (time.monotonic() - began) / ANNOUNCE_SECONDS
        assert 1 <= len(list(raw.notifies(timeout=0.1))) <= most
    finally:
        store.close()


def test_an_announcement_that_fails_waits_for_the_next_commit(
    url: str, raw: Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A producer wrote 20 lines a second while its role had no connection left for it."""
    tries: list[Postgres] = []

    def fail(self: Postgres) -> None:
        tries.append(self)
        raise psycopg.OperationalError("the server is away")

    store = open_store(url)
    try:
        raw.execute("LISTEN tenure")
        with monkeypatch.context() as broken:
            broken.setattr(Postgres, "announce", fail)
            store.add([new_job()]).result()
            assert list(raw.notifies(timeout=0.1)) == []
            assert len(tries) == 1
            store.wake()
            wait_until(lambda: len(tries) == 2, "it to be tried again")
        assert caplog.text.count("were not notified") == 1
        store.add([new_job()]).result()
        assert len(list(raw.notifies(timeout=30, stop_after=1))) == 1
    finally:
        store.close()


def held_up(
    store: Store, raw: psycopg.Connection[Any], count: int = 1
) -> tuple[list[CheckedJob], Future[list[Enqueued]]]:
    """Make commits wait for a standby that is not there; an enqueue that does.

    Which standbys to wait for is told to those who commit by another process of the server, and no
    query shows how far that is: those that come before it do not wait.
    """
    raw.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    raw.execute("SELECT pg_reload_conf()")

    def add() -> tuple[list[CheckedJob], Future[list[Enqueued]]] | None:
        wanted = [new_job() for _ in range(count)]
        added = store.add(wanted)
        wait_until(lambda: added.done() or raw.execute(f"SELECT {WAIT_FOR_A_STANDBY}").fetchall())
        return None if added.done() else (wanted, added)

    found = wait_until(add, "a commit to wait for the standby")
    assert found
    return found


@pytest.mark.usefixtures("postgres_url")  # skips where there is no PostgreSQL
@pytest.mark.scenario(61)
@pytest.mark.parametrize(
    ("count", "level"),
    [(1, "notice"), (2, "notice"), (1, "error"), (2, "error")],
    ids=["one job", "a batch", "one job, warnings are off", "a batch, warnings are off"],
)
def test_a_commit_that_no_standby_has_is_not_acknowledged(count: int, level: str) -> None:
    """Nor is it tried again: a second commit of nothing would be acknowledged at once."""
    with PostgresServer(settings={"client_min_messages": level}) as server:
        server.create_database("jobs")
        url = server.url("jobs")
        store = open_store(url)
        with psycopg.connect(url, autocommit=True) as raw:
            store.add([new_job()]).result()
            (lease,) = store.exchange([], claim_request()).result().leases
            _, added = held_up(store, raw, count)
            cancel = f"SELECT pg_cancel_backend(pid) {WAIT_FOR_A_STANDBY}"
            raw.execute(cancel)
            with pytest.raises(StoreUnavailable, match="synchronous"):
                added.result(30)
            reported = store.exchange([report_completed(lease)], None)  # by a COMMIT on its own
            wait_until(lambda: raw.execute(cancel).fetchall(), "it to wait for the standby")
            with pytest.raises(StoreUnavailable, match="synchronous"):
                reported.result(30)
            raw.execute("ALTER SYSTEM RESET synchronous_standby_names")
            raw.execute("SELECT pg_reload_conf()")
            assert store.add([new_job()]).result(30)[0].created
            again = store.exchange([report_completed(lease)], None).result(30).verdicts
            assert [verdict.answer for verdict in again] == ["already_recorded"]
        store.close()


@pytest.mark.usefixtures("postgres_url")  # skips where there is no PostgreSQL
@pytest.mark.scenario(61)
def test_a_missing_standby_holds_up_writers_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Callers are told that the outcome is unknown; asked again, there is one job."""
    monkeypatch.setattr(postgres, "ANSWER_SECONDS", 0.5)
    with PostgresServer() as server:
        server.create_database("jobs")
        url = server.url("jobs")
        store = open_store(url)
        with psycopg.connect(url, autocommit=True) as raw:
            before = store.add([new_job()]).result()[0].job
            [wanted], added = held_up(store, raw)
            with pytest.raises(StoreUnavailable):
                added.result(30)
            assert store.read.get(before.id) == before
            assert store.read.get(wanted.id) is None, "not before the standby has it"
            raw.execute("ALTER SYSTEM RESET synchronous_standby_names")  # or it comes back
            raw.execute("SELECT pg_reload_conf()")
            wait_until(lambda: store.read.get(wanted.id), "the commit to be through")
            assert store.add([wanted]).result()[0].job == store.read.get(wanted.id)
            assert [entry.event for entry in store.read.history(wanted.id)] == ["enqueued"]
        store.close()


@pytest.mark.usefixtures("postgres_url")  # skips where there is no PostgreSQL
@pytest.mark.scenario(105)
def test_a_missing_standby_takes_a_bounded_number_of_sessions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgres, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(connection, "MAX_HANG_SECONDS", 0.2)
    with PostgresServer() as server, Tenure(server.create_database("jobs")) as app:
        store = app.core.store
        with api_client(app) as probe, psycopg.connect(app.database, autocommit=True) as raw:
            store.add([new_job()]).result()
            (lease,) = store.exchange([], claim_request()).result().leases
            held_up(store, raw)
            for _ in range(5):
                with suppress(StoreUnavailable):
                    store.renew([(lease.id, lease.lease_id)], 1.0)
                for count in (1, 2):
                    with pytest.raises(StoreUnavailable):
                        store.add([new_job() for _ in range(count)]).result(WAIT_SECONDS)
            hanging = f"SELECT count(*) {WAIT_FOR_A_STANDBY}"
            assert (raw.execute(hanging).fetchone() or (9,))[0] <= POSTGRES_WRITERS + 1
            assert probe.get("/ready").status_code == 503
            raw.execute("ALTER SYSTEM RESET synchronous_standby_names")
            raw.execute("SELECT pg_reload_conf()")
            wait_until(lambda: probe.get("/ready").status_code == 200, "the server to be ready")
            assert store.add([new_job()]).result(WAIT_SECONDS)[0].created


def test_an_error_behind_the_answer_is_the_answer(
    db: Postgres, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler may add that the connection ends. libpq answers with the last result, too."""
    db.enqueue_alone([CheckedJob(id=new_id(), type="mail")], whole=True)
    failed = raw.pgconn.exec_(b"SELECT 1 / 0")
    wait = psycopg.Connection.wait

    def wait_and_add(connection: Connection, results: Any) -> Any:
        return [*wait(connection, results), failed]

    monkeypatch.setattr(psycopg.Connection, "wait", wait_and_add)
    with pytest.raises(psycopg.errors.DivisionByZero):
        db.enqueue_alone([CheckedJob(id=new_id(), type="mail")], whole=True)


@pytest.mark.own_database
def test_a_function_that_is_named_without_its_schema_is_known(postgres_url: str) -> None:
    """As behind a pooler, where a role's search path leads to the schema: an outage was refused."""
    with Tenure(postgres_url) as app:
        app.open()
    db = Postgres(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as sql:
        sql.execute("SET search_path = tenure, public")
        sql.execute("ALTER TABLE wait RENAME TO elsewhere")
        sql.execute(
            "CREATE FUNCTION public.mylook() RETURNS bigint LANGUAGE plpgsql AS"
            " $$ BEGIN RETURN (SELECT count(*) FROM nowhere); END $$"
        )
        for call, trouble in (("look", Trouble.UNAVAILABLE), ("mylook", Trouble.REFUSED)):
            with pytest.raises(psycopg.errors.UndefinedTable) as failed:
                sql.execute(f"SELECT * FROM {call}()".encode())
            assert f" {call}()" in (failed.value.diag.context or "")
            assert db.trouble(failed.value) is trouble
