"""What idle processes ask of the server, counted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tenure import Tenure
from tenure.rules.jobs import TypeOptions
from tenure.store import Store, commit, open_store
from tenure.store.notify import WORK
from tenure.store.postgres import reader
from tenure.store.postgres.session import PostgresSession
from tenure.worker import exchanges, maintenance
from tests.support.store import claim_request, new_job, report_completed
from tests.support.waiting import wait_until
from tests.support.workers import running_sweeper, running_worker, wait_until_completed
from tests.unit.postgres.connections import Connection, end_sessions, in_thread, sessions


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = open_store(url)
    yield opened
    opened.close()


def announced(raw: Connection, least: int = 0) -> int:
    """The notifications that have come since the last call, after a wait for some."""
    found = len(list(raw.notifies(timeout=30, stop_after=least))) if least else 0
    return found + len(list(raw.notifies(timeout=0.05)))


@pytest.mark.scenario(65)
def test_only_what_brings_work_is_announced(store: Store, raw: Connection) -> None:
    raw.execute("LISTEN tenure")
    store.add([new_job(max_retries=3) for _ in range(2)]).result()
    assert announced(raw, least=1) == 1
    (first, second) = store.exchange([], claim_request(2)).result().leases
    assert store.sweep().result() == []
    store.exchange([report_completed(first)], None).result()
    store.renew([(second.id, second.lease_id)], 60)
    wait_until(lambda: store.update_stats() > 0, "transitions to be added up")
    assert store.prune({"completed": store.read.clock()}).result() == 1
    assert announced(raw) == 0
    raw.execute(
        "UPDATE tenure.job SET lease_expires_at = tenure.clock() WHERE id = %s", (second.id,)
    )
    assert len(store.sweep().result()) == 1
    assert announced(raw, least=1) == 1


def test_who_only_enqueues_has_one_connection(store: Store, raw: Connection) -> None:
    raw.execute("LISTEN tenure")
    for _ in range(20):
        store.add([new_job()]).result()
        assert announced(raw, least=1) == 1
    assert sessions(raw) == 1


def test_one_caller_after_the_other_needs_one_connection(store: Store, raw: Connection) -> None:
    """Also while the thread notifies workers, or has just answered: it took a second one."""
    for _ in range(200):
        store.add([new_job()]).result()
    assert sessions(raw) == 1


def test_to_wake_workers_takes_no_new_connection(store: Store, raw: Connection) -> None:
    """Each notification once closed the connection first: it was taken for idle."""
    begun = "SELECT backend_start FROM pg_stat_activity WHERE application_name = 'tenure'"
    raw.execute("LISTEN tenure")
    store.add([new_job()]).result()
    assert announced(raw, least=1) == 1
    before = raw.execute(begun).fetchall()
    for _ in range(3):
        store.wake()
        assert announced(raw, least=1) == 1
    assert raw.execute(begun).fetchall() == before


def test_so_has_who_enqueues_by_name(
    url: str, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the database knows of the type is read on the same connection, soon or later."""
    monkeypatch.setattr(commit, "LATE_SECONDS", 30.0)  # else the thread connects on a busy machine
    with Tenure(url) as app:
        app.core.declare({"mail": TypeOptions(queue="letters")})
        app.close()
        wait_until(lambda: sessions(raw) == 0, "the connections of before to be gone")
        for seconds in [commit.CALM_SECONDS, 0.0, 0.0]:
            monkeypatch.setattr(commit, "CALM_SECONDS", seconds)
            app.core.defaults.forget()
            assert app.enqueue("mail").queue == "letters"
            assert sessions(raw) == 1


def test_a_second_writer_comes_with_load_and_goes_with_it(
    store: Store, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_beside_another() -> None:
        runs, goes = threading.Event(), threading.Event()
        held = store.write("held", lambda db: (db.now(), runs.set(), goes.wait(30)))
        assert runs.wait(30)
        store.add([new_job()]).result(20)
        goes.set()
        held.result(30)

    add_beside_another()
    assert sessions(raw) == 2
    monkeypatch.setattr(commit, "IDLE_SECONDS", 0.05)

    def add_and_count() -> tuple[int, int]:
        store.add([new_job()]).result(30)
        return len(store._committer._threads), sessions(raw)

    wait_until(lambda: add_and_count() == (1, 1), "the second thread to end")
    add_beside_another()


def test_connections_are_closed_without_use_and_opened_again(
    url: str, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(reader, "IDLE_SECONDS", 0.05)
    store = open_store(url)
    for _ in range(2):
        (added,) = store.add([new_job()]).result(30)
        store.renew([], 60)
        assert store.read.get(added.job.id) is not None
        wait_until(lambda: sessions(raw) == 0, "the connections to be closed")
    store.close()


def reads(app: Tenure) -> int:
    """How often this application has used a connection for reading."""
    pool = app.core.store.read._pool  # type: ignore[attr-defined]
    return int(pool.get_stats().get("requests_num", 0))


def leases_to_look_at(raw: Connection) -> int:
    ((count,),) = raw.execute("SELECT count(*) FROM tenure.arrival WHERE status = 'processing'")
    return int(count)


LOOKING = "SELECT * FROM {s}.look"
CLAIMING = (
    "SELECT * FROM {s}.exchange",
    *("INSERT INTO {s}.worker", "SELECT *, (SELECT CASE", "SELECT * FROM {s}.lanes", "COMMIT"),
)


def is_expected(statement: str) -> bool:
    """Whether an idle worker may run it."""
    return statement.startswith((LOOKING, *CLAIMING))


def test_an_idle_worker_only_looks_and_claims(
    url: str, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchanges, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(exchanges, "QUIET_POLL_SECONDS", 0.01)
    monkeypatch.setattr(exchanges, "SURE_POLL_SECONDS", 3_600.0)
    ran: list[str] = []
    run = PostgresSession._run

    def noted(self: PostgresSession, statement: str, *given: Any, **options: Any) -> Any:
        ran.append(statement.strip())
        return run(self, statement, *given, **options)

    with Tenure(url) as app:

        @app.job
        async def work() -> None: ...

        with running_worker(app), running_sweeper(app, interval=0.01):
            wait_until_completed(app, work.enqueue())
            # A lease is looked at once more after a second, whatever has become of it.
            wait_until(lambda: leases_to_look_at(raw) == 0, "the sweep to forget the lease")
            wait_until(lambda: not app.core.look(), "all duties to be done")
            monkeypatch.setattr(PostgresSession, "_run", noted)
            wait_until(
                lambda: len(ran) >= 100 and all(map(is_expected, ran[-100:])),
                "what came after the job",
            )
            before = reads(app)
            ran.clear()
            wait_until(lambda: len(ran) >= 300, "a hundred looks")
            monkeypatch.undo()
            assert reads(app) == before
    looks = [statement for statement in ran if statement.startswith(LOOKING)]
    others = [statement for statement in ran if statement not in looks]
    assert [one for one in others if not one.startswith(CLAIMING)] == []
    assert len(others) <= 2 * len(CLAIMING)


def test_a_worker_that_falls_behind_has_four_connections(
    url: str, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One to listen, two to write and one for heartbeats; the statistics need no other."""
    monkeypatch.setattr(maintenance, "BUSY_SHARE", 0)
    with Tenure(url) as app:
        done = threading.Event()

        @app.job
        async def work() -> None: ...

        @app.job
        def wait() -> None:
            done.wait(30)

        app.open()
        with running_worker(app, lease_seconds=3), running_sweeper(app, interval=0.01):
            wait.enqueue()
            for _ in range(20):
                app.enqueue_many([work.new_job() for _ in range(500)])
            wait_until(lambda: sessions(raw) == 4, "the heartbeat")
            done.set()
        assert reads(app) == 0


def test_who_does_not_listen_knows(
    url: str, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "RECONNECT_SECONDS", (0.5, 0.5))
    listening, rung, stop = reader.PostgresReader(url), threading.Event(), threading.Event()
    assert not listening.hears
    thread = in_thread(lambda: listening.watch(lambda _: rung.set(), stop))
    wait_until(lambda: listening.hears, "it to listen")
    end_sessions(raw)
    wait_until(lambda: not listening.hears, "it to notice")
    wait_until(lambda: listening.hears, "it to listen again")
    stop.set()
    thread.join(30)
    listening.close()


def test_who_listens_asks_at_once_when_the_server_has_gone(
    url: str, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So an idle worker knows that it has no database, and does not wait for its next poll."""
    monkeypatch.setattr(reader, "RECONNECT_SECONDS", (3600, 3600))
    listening, stop, heard = reader.PostgresReader(url), threading.Event(), list[str | None]()
    thread = in_thread(lambda: listening.watch(heard.append, stop))
    wait_until(lambda: heard == [None], "it to listen")
    end_sessions(raw)
    wait_until(lambda: heard == [None, WORK], "it to say so")
    stop.set()
    thread.join(30)
    listening.close()
