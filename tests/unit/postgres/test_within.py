"""Jobs in the caller's transaction on PostgreSQL: locks, isolation levels, notifications."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest

from tenure import InvalidInput, JobContext, JobNotFound, KeyConflict, NewJob, Tenure
from tenure.errors import SchemaMismatch
from tenure.store import rows
from tenure.store.borrowed.connections import opened
from tests.support.lenders import POSTGRES, Kind, lent
from tests.support.pgbouncer import PgBouncer
from tests.support.postgres import PostgresServer
from tests.support.waiting import wait_until
from tests.support.workers import running_worker

pytestmark = pytest.mark.postgres


def database_of(app: Tenure) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(app.database)["dbname"])


@contextmanager
def connected(app: Tenure, **options: Any) -> Iterator[psycopg.Connection[Any]]:
    with closing(psycopg.connect(app.database, **options)) as connection:
        yield connection


def test_an_application_that_only_lends_connections_opens_none(app: Tenure) -> None:
    """Also not for the options of a type whose handler is elsewhere."""

    @app.job(queue="slow")
    def mail() -> None: ...

    app.core.declare(app.core.handlers.options())
    other = Tenure(app.database)
    with connected(app) as connection:
        job = other.within(connection).enqueue("mail")
        assert other.within(connection).enqueue("mail").queue == job.queue == "slow"
        connection.commit()
    other.wake()
    assert other.core._opened is None


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_key_that_the_snapshot_does_not_show_is_a_serialization_failure(
    app: Tenure, level: str
) -> None:
    with connected(app) as connection:
        connection.execute(f"SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {level}")
        connection.commit()
        connection.execute("SELECT 1")
        theirs = app.enqueue("mail", idempotency_key="k")
        with pytest.raises(psycopg.errors.SerializationFailure):
            app.within(connection).enqueue("mail", idempotency_key="k")
        connection.rollback()
        assert app.within(connection).enqueue("mail", idempotency_key="k") == theirs
        own = app.within(connection).enqueue("mail")
        connection.commit()
    assert app.get(own.id) == own


@pytest.mark.parametrize("ends", ["COMMIT", "ROLLBACK", "ROLLBACK TO SAVEPOINT mine", "close"])
def test_who_wants_a_key_waits_for_the_one_that_used_it(app: Tenure, ends: str) -> None:
    """As with oban#1087: the key of a transaction that rolled back belongs to nobody."""
    with connected(app) as holder, connected(app) as other, ThreadPoolExecutor(1) as pool:
        holder.execute("SELECT 1")
        holder.execute("SAVEPOINT mine")
        first = app.within(holder).enqueue("mail", idempotency_key="k")
        waiting = pool.submit(app.within(other).enqueue, "mail", idempotency_key="k")
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        with connected(app, autocommit=True) as watcher:
            wait_until(lambda: watcher.execute(waits).fetchone() == (1,))
        holder.close() if ends == "close" else holder.execute(ends)
        job = waiting.result(5)  # a subtransaction would hold it back until the outer end
        assert (job.id == first.id) == (ends == "COMMIT")
        other.commit()


@pytest.mark.parametrize("most", [rows.MAX_SENT, 1])
def test_a_batch_that_loses_a_race_for_a_key_is_undone_whole(
    app: Tenure, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(rows, "MAX_SENT", most)
    with connected(app) as holder, connected(app) as other, ThreadPoolExecutor(1) as pool:
        app.within(holder).enqueue("mail", {"n": 1}, idempotency_key="k")
        batch = [NewJob("mail", {}, {}), NewJob("mail", {"n": 2}, {"idempotency_key": "k"})]
        waiting = pool.submit(app.within(other).enqueue_many, batch)
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        with connected(app, autocommit=True) as watcher:
            wait_until(lambda: watcher.execute(waits).fetchone() == (1,))
        holder.commit()
        with pytest.raises(psycopg.errors.SerializationFailure):
            waiting.result(5)
        other.rollback()
        with pytest.raises(KeyConflict):
            app.within(other).enqueue_many(batch)
        other.commit()
    assert app.count().jobs == 1


def test_a_hundred_jobs_draw_one_transaction_number(app: Tenure) -> None:
    """Subtransactions would draw one each, and overflow the server's cache of them."""
    numbers = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
    with connected(app) as connection, connected(app, autocommit=True) as watcher:
        ((before,),) = watcher.execute(numbers).fetchall()
        for n in range(100):
            app.within(connection).enqueue("mail", idempotency_key=f"k{n}")
        ((after,),) = watcher.execute(numbers).fetchall()
        connection.commit()
    assert after - before < 50  # the server itself draws some


def test_ten_thousand_jobs_take_about_as_long_as_without_the_transaction(app: Tenure) -> None:
    """The server's work for them once grew with the square of their number."""
    new_jobs = [NewJob("mail", {}, {})] * 10_000
    began = time.monotonic()
    app.enqueue_many(new_jobs)
    own = time.monotonic() - began
    with connected(app) as connection:
        connection.execute(f"SET statement_timeout = {round(1000 * (1 + 5 * own))}")
        app.within(connection).enqueue_many(new_jobs)
        connection.commit()


def test_nobody_waits_for_the_limit_of_a_queue(app: Tenure) -> None:
    app.queues.limit("small", max_pending=2)
    with connected(app) as one, connected(app) as two:
        for connection in (one, two):
            connection.execute("SET lock_timeout = '2s'")
            app.within(connection).enqueue("mail", queue="small")
        one.commit()
        two.commit()
    assert app.enqueue("mail").queue == "default"


@pytest.mark.parametrize("what", ["job", "workflow", "SQL"])
@pytest.mark.parametrize("wake", ["later", "commit"])
def test_only_wake_commit_notifies(app: Tenure, wake: Any, what: str) -> None:
    with connected(app) as connection, connected(app, autocommit=True) as listener:
        listener.execute("LISTEN tenure")
        if what == "workflow":
            with app.within(connection, wake=wake).workflow() as flow:
                flow.add(NewJob("mail", {}, {}))
        elif what == "SQL":
            asked = "SELECT tenure.enqueue('mail', notify => %s)"
            connection.execute(asked, (wake == "commit",))
        else:
            app.within(connection, wake=wake).enqueue("mail")
        assert not list(listener.notifies(timeout=0))
        connection.commit()
        heard = list(listener.notifies(timeout=5 * (wake == "commit"), stop_after=1))
        assert len(heard) == (wake == "commit")
        app.wake()
        assert list(listener.notifies(timeout=5, stop_after=1))


def test_a_transaction_of_a_handler_has_the_settings_of_tenure_s_connections(app: Tenure) -> None:
    """With several hosts, any other could lead to a standby."""
    with opened(app.database) as connection:
        assert connection.info.get_parameters()["application_name"] == "tenure"


@pytest.mark.parametrize("encoding", ["latin1", "sql_ascii"])
def test_the_encoding_of_the_client_does_not_matter(app: Tenure, encoding: str) -> None:
    with connected(app, client_encoding=encoding) as connection:
        job = app.within(connection).enqueue("mail", {"text": "é 😀"}, idempotency_key="k")
        connection.commit()
    assert app.get(job.id) == job


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_the_stream_of_events_waits_for_an_open_transaction(app: Tenure, ends: str) -> None:
    """Its entries are older than those that others have committed meanwhile."""
    with connected(app) as connection:
        before = app.enqueue("mail")
        open_one = app.within(connection).enqueue("mail")
        later = [app.enqueue("mail") for _ in range(3)]
        first = app.events.read()
        assert [event.transition.job_id for event in first.events] == [before.id]
        getattr(connection, ends)()
    found = app.events.read(first.position).events
    wanted = [open_one.id] if ends == "commit" else []
    assert [event.transition.job_id for event in found] == wanted + [job.id for job in later]


@pytest.mark.slow
def test_a_job_that_commits_late_is_found_beneath_younger_ones(app: Tenure) -> None:
    """Claims begin where the last one ended while many tokens are dead, which it is before."""
    done: set[str] = set()

    @app.job
    async def mail(context: JobContext) -> None:
        done.add(context.id)

    with connected(app) as connection, running_worker(app, concurrency=200):
        late = [app.within(connection).enqueue("mail") for _ in range(2)]
        for _ in range(10):
            app.enqueue_many([NewJob("mail", {}, {})] * 2_000)
        wait_until(lambda: len(done) >= 19_000, "the younger ones to run")
        connection.commit()
        wait_until(lambda: {job.id for job in late} <= done, "the late ones to run", 5)
        wait_until(lambda: len(done) == 20_002, "all to run")


def test_errors_of_the_transaction_are_those_of_the_driver(app: Tenure) -> None:
    with connected(app) as connection:
        connection.execute("SET TRANSACTION READ ONLY")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            app.within(connection).enqueue("mail")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            app.within(connection).enqueue("mail")


def test_a_connection_without_the_schema_is_refused(app: Tenure, sqlite_url: str) -> None:
    other = Tenure(f"{app.database}{'&' if '?' in app.database else '?'}schema=other")
    with connected(app) as connection:
        for act in (lambda within: within.enqueue("mail"), lambda within: within.get(_ID)):
            with pytest.raises(SchemaMismatch, match="tenure migrate"):
                act(other.within(connection))
            connection.rollback()
        with pytest.raises(InvalidInput, match="a connection to postgres"):
            Tenure(sqlite_url).within(connection).enqueue("mail")
        with pytest.raises(JobNotFound):
            app.within(connection).get(_ID)
    with pytest.raises(InvalidInput, match="pass one of"):
        app.within(object())


_ID = "0190163d-8694-739b-aea5-966c26f8ad90"


@pytest.fixture(scope="module")
def pooler(postgres_server: PostgresServer) -> Iterator[PgBouncer]:
    with PgBouncer(postgres_server, pool_mode="transaction", pool_size=2) as pooler:
        yield pooler


@pytest.mark.parametrize("kind", POSTGRES, ids=lambda kind: kind.name)
def test_a_transaction_pooler_does_not_matter(app: Tenure, pooler: PgBouncer, kind: Kind) -> None:
    """Two clients share two sessions, so that what one prepares is not where the other asks."""
    url = pooler.url(database_of(app))
    with lent(kind, url) as one, lent(kind, url) as two:
        jobs = []
        for n in range(7):  # psycopg prepares a statement at its sixth use
            for lender in (one, two) if n % 2 else (two, one):
                lender.begin()
                jobs.append(lender.call(app, "enqueue", "mail"))
            for lender in (one, two):
                lender.commit()
    assert {job.id for job in app.find()} == {job.id for job in jobs}


def test_a_job_in_the_transaction_takes_one_statement(app: Tenure) -> None:
    """Beside the caller's own: no round trip more, and none on another connection."""
    with connected(app) as connection:
        sent: list[str] = []

        class Counting(psycopg.Connection[Any]):
            def wait(self, *args: Any, **options: Any) -> Any:
                sent.append("")
                return super().wait(*args, **options)

        connection.__class__ = Counting
        app.within(connection).enqueue("mail")  # asks for the options of types, once in a while
        sent.clear()
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s", ("text",)).fetchall()
        one = len(sent)
        sent.clear()
        app.within(connection).enqueue("mail", {"n": 1}, idempotency_key="k")
        assert len(sent) == one
        connection.rollback()
