"""The switch of `tenure move`: writes wait for nothing that could be done before, or by others."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from tenure import Tenure, failpoints
from tenure.app import moving
from tenure.errors import MoveRefused
from tenure.store.moving import mover, sides
from tenure.store.moving.mover import opened
from tenure.store.moving.sides import PostgresSide, PostgresSource, Side, Source, SqliteSource
from tenure.store.moving.target import Target
from tenure.values.findings import no_note, no_progress
from tests.support.postgres import PostgresServer
from tests.support.waiting import wait_until


@pytest.fixture
def target_url(postgres_server: PostgresServer) -> Iterator[str]:
    name = f"tenure_test_{uuid.uuid4().hex}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


@pytest.fixture(params=[SqliteSource, PostgresSource])
def of(request: pytest.FixtureRequest) -> type[Source]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def source_url(of: type[Source], sqlite_url: str, postgres_url: str) -> str:
    return sqlite_url if of is SqliteSource else postgres_url


def move(source: str, target: str) -> None:
    with Tenure(source) as app:
        job = app.enqueue("plain")
    moving.move(source, target, no_progress, no_note)
    with Tenure(target) as app:
        assert app.get(job.id).status == "pending"
        assert app.verify() == []


def test_who_only_reads_holds_nothing_up(postgres_url: str, target_url: str) -> None:
    """A backup, for example, reads for minutes."""
    Tenure(postgres_url).migrate()
    with psycopg.connect(postgres_url) as reads:
        for (table,) in reads.execute(
            "SELECT oid::regclass::text FROM pg_class"
            " WHERE relnamespace = 'tenure'::regnamespace AND relkind = 'r'"
        ).fetchall():
            reads.execute(f"SELECT FROM {table}".encode())
        move(postgres_url, target_url)


def test_what_waits_there_waits_before_writes_do(
    of: type[Source], source_url: str, target_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autovacuum, after so many new rows, has a table for a second before it is ended."""
    seen: list[str] = []
    closed = of.closed

    @contextmanager
    def looked_at(self: Source) -> Iterator[None]:
        with psycopg.connect(target_url) as other:
            try:
                other.execute("LOCK tenure.job IN SHARE UPDATE EXCLUSIVE MODE NOWAIT")
                seen.append("free")
            except psycopg.errors.LockNotAvailable:
                seen.append("locked")
            except psycopg.errors.UndefinedTable:
                seen.append("not there yet")
        with closed(self):
            yield

    monkeypatch.setattr(of, "closed", looked_at)
    move(source_url, target_url)
    assert seen[-1] == "locked"


def test_no_row_that_has_not_changed_is_read_while_writes_wait(
    of: type[Source], source_url: str, target_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To count a million jobs takes a second, to place entries that nothing has measured five."""
    is_closed, run = [False], []
    closed = of.closed

    @contextmanager
    def marked(self: Source) -> Iterator[None]:
        with closed(self):
            is_closed[0] = True
            yield
            is_closed[0] = False

    def noting(side: type[Side]) -> None:
        rows = side.rows

        def noted(self: Any, statement: str, values: Sequence[Any] = ()) -> list[Any]:
            if is_closed[0]:
                run.append(statement)
            return rows(self, statement, values)

        monkeypatch.setattr(side, "rows", noted)

    violations = mover._violations

    def while_a_job_comes(url: str) -> list[str]:
        with Tenure(source_url) as app:
            app.enqueue("late")
        return violations(url)

    monkeypatch.setattr(mover, "_violations", while_a_job_comes)
    monkeypatch.setattr(of, "closed", marked)
    noting(SqliteSource)
    noting(PostgresSide)
    move(source_url, target_url)
    assert len(run) > 10
    assert [statement for statement in run if "count(*)" in statement] == []
    assert [statement for statement in run if "UPDATE {s}.transition" in statement] == []


def test_limits_of_time_of_a_role_do_not_end_it(
    postgres_url: str, target_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One side is idle while the other reads a million rows."""
    Tenure(postgres_url).migrate()
    for url in (postgres_url, target_url):
        with psycopg.connect(url, autocommit=True) as connection:
            name = connection.info.dbname
            for limit in ("idle_in_transaction_session_timeout", "statement_timeout"):
                connection.execute(f"ALTER DATABASE {name} SET {limit} = 300".encode())
    read = Target.read

    def slow(self: Target, *of: Any) -> Iterator[Any]:
        self.rows("SELECT pg_sleep(0.4)")
        yield from read(self, *of)
        monkeypatch.setattr(Target, "read", read)

    monkeypatch.setattr(Target, "read", slow)
    move(postgres_url, target_url)


@pytest.fixture
def begun_url(postgres_url: str, target_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The source of a move that was killed after its beginning."""
    Tenure(postgres_url).migrate()

    def killed(place: str) -> None:
        if place == "move.after_begin":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "hit", killed)
        with pytest.raises(KeyboardInterrupt):
            moving.move(postgres_url, target_url, no_progress, no_note)
    yield postgres_url
    moving.abort(postgres_url, target_url)


def test_an_abort_lets_others_work_while_it_waits_for_who_reads(
    begun_url: str, target_url: str
) -> None:
    """All who wrote waited with it for a minute, and then it failed."""
    with ThreadPoolExecutor(1) as pool, Tenure(begun_url) as app:
        with psycopg.connect(begun_url) as reads:
            reads.execute("SELECT FROM tenure.job")
            aborted = pool.submit(moving.abort, begun_url, target_url)
            waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"
            with psycopg.connect(begun_url, autocommit=True) as watcher:
                wait_until(lambda: watcher.execute(waits).fetchone() == (True,))
            app.enqueue("plain")
            assert not aborted.done()
        aborted.result(30)


@pytest.mark.parametrize("side", ["source", "target"])
def test_an_abort_says_whom_it_waits_for(
    begun_url: str, target_url: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sides, "LOCK_TRIES", 2)
    with psycopg.connect(begun_url if side == "source" else target_url) as reads:
        reads.execute("SELECT FROM tenure.job")
        with pytest.raises(MoveRefused, match=r"reads or writes the tables of .* again after it"):
            moving.abort(begun_url, target_url)
    with opened(begun_url, target_url) as (source, _):
        assert (source.state() is None) == (side == "target")


def test_a_move_says_that_it_waits_for_who_writes(
    begun_url: str, target_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sides, "LOCK_TRIES", 2)
    with psycopg.connect(begun_url) as writes:
        writes.execute("UPDATE tenure.queue SET name = name")
        with pytest.raises(MoveRefused, match=r"writes to the tables of .* again after it"):
            moving.move(begun_url, target_url, no_progress, no_note)
