"""A caller who waits adds its one job on its own thread and needs one connection for everything."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import psycopg
import pytest

from tenure import NewJob, StoreUnavailable, Tenure
from tenure.store import commit
from tenure.store.database import Database
from tests.support.no_threads import no_new_threads
from tests.support.store import new_job
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.unit.postgres.connections import (
    Connection,
    end_sessions,
    in_thread,
    sessions,
    wait_until_a_session_is_blocked,
)


@pytest.fixture
def app(url: str) -> Iterator[Tenure]:
    """An application that knows its type and has been left alone since."""
    with Tenure(url) as app:
        app.job(name="mail")(lambda: None)
        app.open()
        app.close()
        yield app


@pytest.fixture
def never_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine an announcement may be so late that a thread connects for it."""
    monkeypatch.setattr(commit, "LATE_SECONDS", WAIT_SECONDS)


def connected(app: Tenure) -> list[bool]:
    """Which connection there is: that of the first thread, that of the second or of callers."""
    databases = app.core.store._committer._databases
    return [db._connection is not None for db in databases]  # type: ignore[attr-defined]


@pytest.mark.usefixtures("never_late")
def test_one_job_after_the_other_is_added_by_the_caller(app: Tenure, raw: Connection) -> None:
    for _ in range(200):
        app.enqueue("mail")
    assert connected(app) == [False, True]
    assert sessions(raw) == 1


@pytest.mark.usefixtures("never_late")
def test_the_last_job_of_a_burst_is_announced_too(app: Tenure, raw: Connection) -> None:
    """It comes so soon after the first that a thread has to do it, on the same connection."""
    raw.execute("LISTEN tenure")
    for _ in range(20):
        for _ in range(3):
            app.enqueue("mail")
        wait_until(
            lambda: app.core.store._committer._announcements.pause() is None, "the announcement"
        )
    assert len(list(raw.notifies(timeout=30, stop_after=20))) >= 20
    assert connected(app) == [False, True]
    assert sessions(raw) == 1


def test_a_caller_who_waits_for_a_lock_keeps_no_announcement_back(
    app: Tenure, url: str, raw: Connection
) -> None:
    """The thread would use its connection, and announces over its own one after a while."""
    app.enqueue("mail")
    with psycopg.connect(url) as holder, Tenure(url) as other:
        other.within(holder).enqueue("mail", idempotency_key="same")
        thread = in_thread(lambda: app.enqueue("mail", idempotency_key="same"))
        with psycopg.connect(url, autocommit=True) as watching:
            wait_until_a_session_is_blocked(watching)
        raw.execute("LISTEN tenure")
        app.enqueue("mail")
        assert len(list(raw.notifies(timeout=5, stop_after=1))) == 1
        assert thread.is_alive()
        holder.rollback()
        thread.join(30)


def test_a_connection_that_callers_use_no_longer_is_closed(
    app: Tenure, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "IDLE_SECONDS", 0.05)
    for _ in range(2):
        app.enqueue("mail")
        wait_until(lambda: sessions(raw) == 0, "the connection to be closed")


def test_a_lost_connection_loses_no_job(app: Tenure, raw: Connection) -> None:
    app.enqueue("mail")
    end_sessions(raw)
    app.enqueue("mail")
    assert app.count().jobs == 2


def test_a_statement_that_cannot_be_prepared_says_why(app: Tenure, raw: Connection) -> None:
    """A producer whose role lost its rights read that a prepared statement does not exist."""
    app.enqueue("mail")
    raw.execute("ALTER FUNCTION tenure.enqueue_one RENAME TO away")
    for _ in range(2):
        end_sessions(raw)
        with pytest.raises(StoreUnavailable, match=r"function tenure\.enqueue_one\(.*not exist"):
            app.enqueue("mail")
    raw.execute("ALTER FUNCTION tenure.away RENAME TO enqueue_one")
    app.enqueue("mail")
    assert app.count().jobs == 2


def test_what_is_prepared_already_is_used(app: Tenure) -> None:
    app.enqueue("mail")
    app.core.store._committer._databases[1].rollback()  # deallocates what psycopg has prepared
    app.enqueue("mail")
    assert app.count().jobs == 2


def test_where_there_is_work_for_two_threads_callers_queue(
    app: Tenure, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second thread has taken their connection."""
    runs, goes = threading.Event(), threading.Event()
    held = app.core.store.write("held", lambda db: (db.now(), runs.set(), goes.wait(30)))
    assert runs.wait(30)
    app.enqueue_many([NewJob("mail", {}, {})] * 2)
    committer = app.core.store._committer
    assert not committer._direct.use(lambda db: True)
    app.enqueue("mail")
    goes.set()
    held.result(30)
    assert sessions(raw) == 2
    monkeypatch.setattr(commit, "IDLE_SECONDS", 0.05)

    def threads() -> int:
        app.core.store.add([new_job("mail")]).result(30)
        return len(committer._threads)

    wait_until(lambda: threads() == 1, "the second thread to end")
    wait_until(lambda: committer._direct.use(lambda db: True), "callers to have it again")


class _Gap(list[Any]):
    """The connection of callers, with a step of the test after a look that did not find it."""

    def __init__(self, free: list[Any], step: Callable[[], None]) -> None:
        super().__init__(free)
        self._step = step

    def pop(self, *at: Any) -> Any:
        try:
            return super().pop(*at)
        except IndexError:
            self._step()
            raise


@pytest.mark.usefixtures("never_late")
def test_who_looks_while_the_connection_is_given_back_takes_no_other_one(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look for it and the question whether it is lent, it was lent no more."""
    monkeypatch.setattr(commit, "CALM_SECONDS", 0.0)
    app.enqueue("mail")
    lent, ends = threading.Event(), threading.Event()
    shared = app.core.store._committer._direct

    def give_back() -> None:
        ends.set()
        lender.join(WAIT_SECONDS)

    def hold(db: Database) -> None:
        lent.set()
        ends.wait(WAIT_SECONDS)

    shared._free = _Gap(shared._free, give_back)
    lender = in_thread(lambda: shared.lend(hold))
    assert lent.wait(WAIT_SECONDS)
    app.enqueue("mail")
    assert ends.is_set()
    assert connected(app) == [False, True]


def test_without_a_second_thread_work_waits_for_the_first_and_callers_go_on(app: Tenure) -> None:
    runs, goes = threading.Event(), threading.Event()
    store = app.core.store
    with no_new_threads(), pytest.raises(StoreUnavailable, match="nothing was written"):
        store.add([new_job("mail"), new_job("mail")])
    assert store._committer._direct._free == [store._committer._lent], "no other connection"
    held = store.write("held", lambda _: (runs.set(), goes.wait(WAIT_SECONDS)))
    assert runs.wait(WAIT_SECONDS)
    with no_new_threads():
        waiting = store.add([new_job("mail"), new_job("mail")])
    wait_until(
        lambda: store._committer._direct.use(lambda _: True), "callers to have their connection"
    )
    goes.set()
    held.result(WAIT_SECONDS)
    assert [one.created for one in waiting.result(WAIT_SECONDS)] == [True, True]


def test_ctrl_c_ends_the_wait_for_a_key(app: Tenure, url: str, raw: Connection) -> None:
    """A call of libpq that waits for its result would not hear it."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    app.enqueue("mail")
    raw.execute("BEGIN")
    with Tenure(url) as other:
        other.within(raw).enqueue("mail", idempotency_key="same")
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with psycopg.connect(url, autocommit=True) as watching:

            def press() -> None:
                wait_until_a_session_is_blocked(watching)
                signal.raise_signal(signal.SIGINT)

            thread = in_thread(press)
            with pytest.raises(KeyboardInterrupt):
                app.enqueue("mail", idempotency_key="same")
            thread.join(30)
    finally:
        signal.signal(signal.SIGINT, before)
    raw.execute("ROLLBACK")
    assert app.enqueue("mail", idempotency_key="same").idempotency_key == "same"
