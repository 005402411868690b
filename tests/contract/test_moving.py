"""`tenure move`: everything arrives, whoever works meanwhile, and the source is closed for good."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from typing import Any

import psycopg
import pytest

from tenure import InvalidInput, NewJob, PerPartition, Tenure, failpoints, testing
from tenure.app import moving
from tenure.errors import MoveRefused, StoreMoved, StoreUnavailable
from tenure.store.moving import mover, sides
from tenure.store.moving.mover import opened
from tenure.store.moving.sides import ALONE, JOB, PostgresSource, Source, SqliteSource, digest
from tenure.store.moving.target import FOLLOW, FORGET, Target, deletion
from tests.support.cli import output_of, run_cli
from tests.support.every_table import fill
from tests.support.postgres import PostgresServer
from tests.support.raw_sql import RawSql
from tests.support.store import claim_request, report_completed
from tests.support.waiting import WAIT_SECONDS, wait_until

RECREATED = ("ready", "ended", "arrival", "kept", "slot", "tag", "turn", "limit_edition")
"""What follows from the rows of jobs and limits. The engines keep it in different tables."""
APART = {
    "measured": "its place in the ledger is another one there: see `places`",
    "worker": "the workers of the old database do not work on the new one",
    "schema_version": "each database has its own",
    "schema": "the same on SQLite",
}
"""Tables that are not copied, and why."""


@pytest.fixture
def target_url(postgres_server: PostgresServer) -> Iterator[str]:
    yield from new_database(postgres_server)


@pytest.fixture
def other_url(postgres_server: PostgresServer) -> Iterator[str]:
    yield from new_database(postgres_server)


def new_database(postgres_server: PostgresServer) -> Iterator[str]:
    name = f"tenure_test_{uuid.uuid4().hex}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


@pytest.fixture
def app(database_url: str) -> Iterator[Tenure]:
    with Tenure(database_url, actor="alice") as app:
        yield app


def move(source: str, target: str) -> list[str]:
    notes: list[str] = []
    moving.move(source, target, lambda *_: None, notes.append)
    return notes


def digests(side: Source | Target, of: Target) -> dict[str, str]:
    """What is in the tables that are copied."""
    side.types = of.types = of.tables
    with (
        of.transaction(),
        side.transaction() if isinstance(side, PostgresSource) else nullcontext(),
    ):
        return {table.name: digest(side.read(table)) for table in sides.COPIED}


def test_every_table_is_in_a_list(sqlite_url: str, postgres_url: str) -> None:
    """A new table has to be copied, made again, or left out for a reason."""
    Tenure(sqlite_url).migrate()
    Tenure(postgres_url).migrate()
    listed = [*(table.name for table in sides.COPIED), *RECREATED, *APART]
    assert len(set(listed)) == len(listed)
    with opened(sqlite_url, postgres_url) as (source, target):
        assert isinstance(source, SqliteSource)
        assert {*source.tables, *target.tables} == set(listed)
        for table in sides.COPIED:  # no column is lost
            assert {*source.tables.get(table.name, ())} <= {*target.tables[table.name]}


def test_everything_arrives(app: Tenure, target_url: str) -> None:
    leases = fill(app)
    assert app.verify() == []
    counts = app.stats.counts()
    notes = move(app.database, target_url)
    assert any(note.startswith("transition: the same ") for note in notes)
    with opened(app.database, target_url) as (source, target):
        there = digests(target, target)
        assert there == digests(source, target)
        empty = {name for name, digest in there.items() if digest.startswith("0 rows")}
    on_sqlite = app.database.startswith("sqlite")
    assert empty == ({"gate"} if on_sqlite else set())
    with Tenure(target_url) as after:
        assert after.verify() == []
        assert after.stats.counts() == counts
        report = [report_completed(lease) for lease in leases]
        verdicts = after.core.store.exchange(report, None).result().verdicts
        answer = "lost" if on_sqlite else "recorded"  # SQLite writes the ids of leases otherwise
        assert [verdict.answer for verdict in verdicts] == [answer] * len(leases)
        assert after.verify() == []


def test_attempts_of_a_test_arrive(app: Tenure, target_url: str) -> None:
    """What `tenure.testing` runs has leases that are written as PostgreSQL writes them."""

    @app.job
    def work() -> int:
        return 1

    with testing.on(app, app.database) as jobs:
        job = jobs.run(work.enqueue())
    move(app.database, target_url)
    with Tenure(target_url) as after:
        assert after.get(job.id).result == 1
        assert after.verify() == []


def test_a_database_that_rounds_numbers_is_moved(app: Tenure, target_url: str) -> None:
    """One digit is left at -15: 3,600 seconds would be 4e+03, and the comparison refused it."""
    app.queues.limit("mail", rate="17/1h")
    with psycopg.connect(target_url, autocommit=True) as raw:
        name = raw.info.dbname
        raw.execute(f'ALTER DATABASE "{name}" SET extra_float_digits = -15'.encode())
    move(app.database, target_url)
    with psycopg.connect(target_url) as raw:
        limits = raw.execute("SELECT rate_seconds = 3600 FROM tenure.queue_limit").fetchall()
        assert limits == [(True,)]


def test_the_source_is_closed_for_good(app: Tenure, target_url: str) -> None:
    app.enqueue("plain")
    (lease,) = app.core.store.exchange((), claim_request(1)).result().leases
    move(app.database, target_url)
    store = app.core.store
    acts: dict[str, Callable[[], Any]] = {
        "enqueue": lambda: app.enqueue("plain", {"number": 1}),
        "enqueue many": lambda: app.enqueue_many([NewJob("plain", {"number": 1}, {})] * 2),
        "claim": lambda: store.exchange((), claim_request(1, "new")).result(),
        "report": lambda: store.exchange([report_completed(lease)], None).result(),
        "heartbeat": lambda: store.heartbeat([(lease.id, lease.lease_id)], 30),
        "cancel": lambda: app.cancel(lease.id),
        "pause": lambda: app.queues.pause("default"),
        "sweep": lambda: app.core.prune({"completed": 0}),
    }
    for name, act in acts.items():
        with pytest.raises(StoreMoved, match=r"^the jobs were moved to postgresql://"):
            act()
        print(name)
    assert app.get(lease.id).status == "processing"  # what was is still to be read
    with pytest.raises(MoveRefused, match="nothing can be undone"):
        moving.abort(app.database, target_url)
    with pytest.raises(MoveRefused, match="were moved to"):
        move(app.database, target_url)


class Interrupted(Exception):
    """What stops a mover where the test wants."""


def stop_at(monkeypatch: pytest.MonkeyPatch, place: str, meanwhile: Callable[[], Any]) -> None:
    """Let something happen when a mover gets to a place, then stop it there; once."""
    left = [place]

    def hit(name: str) -> None:
        if name in left:
            left.clear()
            meanwhile()
            raise Interrupted

    monkeypatch.setattr(failpoints, "hit", hit)


PLACES = [name for name in failpoints.NAMES if name.startswith("move.")]


@pytest.mark.parametrize("place", PLACES)
def test_it_goes_on_where_it_was_stopped(
    app: Tenure, target_url: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changes meanwhile arrives, too: rows that are added, changed and deleted."""
    app.queues.limit("mail", max_running=3, per_partition=PerPartition(), ordered="pass")
    app.queues.pause("elsewhere")
    for number in range(12):
        app.enqueue("plain", {"number": number}, queue="mail", partition=str(number % 2))
    app.cancel(app.enqueue("plain").id)
    (lease,) = app.core.store.exchange((), claim_request(1)).result().leases
    old = app.find(status="cancelled", limit=10)

    def meanwhile() -> None:
        if place not in ("move.in_switch", "move.after_switch"):
            app.core.store.exchange([report_completed(lease)], None).result()
            app.enqueue("plain", {"number": 77})
            app.queues.limit("mail", max_running=5, per_partition=None, ordered=None)
            app.queues.resume("elsewhere")
            app.core.prune({"cancelled": 0})

    stop_at(monkeypatch, place, meanwhile)
    with pytest.raises(Interrupted):
        move(app.database, target_url)
    with Tenure(target_url) as early:
        with pytest.raises(StoreMoved):
            early.enqueue("plain", {"number": 1})
        with pytest.raises(StoreUnavailable, match="the jobs are still in"):
            early.core.check_store()
    if place != "move.after_switch":
        app.core.check_store()
    notes = move(app.database, target_url)
    with pytest.raises(StoreUnavailable, match="the jobs were moved to postgresql:"):
        app.core.check_store()
    assert notes[-1].startswith("the jobs are in postgresql://")
    with Tenure(target_url) as after:
        after.core.check_store()
        assert after.verify() == []
        assert ids(target_url) == ids(app.database)
        if place not in ("move.in_switch", "move.after_switch"):
            assert after.find(status="cancelled", limit=1) == [] != old
            assert after.get(lease.id).status == "completed"


@pytest.mark.parametrize("place", PLACES[:-1])
def test_abort_leaves_nothing_behind(
    app: Tenure, target_url: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.enqueue("plain")
    before = schema_of(app.database)
    stop_at(monkeypatch, place, lambda: None)
    with pytest.raises(Interrupted):
        move(app.database, target_url)
    moving.abort(app.database, target_url)
    moving.abort(app.database, target_url)  # there is nothing more to undo
    assert schema_of(app.database) == before
    assert schema_of(target_url) == []
    app.enqueue("plain")
    move(app.database, target_url)
    with Tenure(target_url) as after:
        assert len(after.find(limit=5)) == 2


def test_it_gives_up_if_it_comes_no_closer(
    sqlite_url: str, target_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many rounds it takes while it does."""
    with Tenure(sqlite_url) as app:
        stop_at(
            monkeypatch,
            "move.after_begin",
            lambda: app.enqueue_many([NewJob("plain", {"number": 1}, {})] * 8),
        )
        with pytest.raises(Interrupted):
            move(sqlite_url, target_url)
        monkeypatch.setattr(mover, "MAX_ROUNDS", 3)
        monkeypatch.setattr(mover, "CHANGES_AT_ONCE", 1)
        monkeypatch.setattr(mover, "SHORT_SECONDS", -1)
        with monkeypatch.context() as slow:
            slow.setattr(mover, "LONG_SECONDS", -1)
            with pytest.raises(MoveRefused, match="faster than they are copied, 0 are left"):
                move(sqlite_url, target_url)
        app.enqueue_many([NewJob("plain", {"number": 2}, {})] * 8)
        assert move(sqlite_url, target_url)[-1].startswith("the jobs are in ")


def test_jobs_that_are_added_meanwhile_do_not_hold_the_copy_up(
    app: Tenure, target_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After all that were there, the rounds copy them: else one job in each copy was enough."""
    seen: list[str] = []

    def hit(name: str) -> None:
        if name.startswith("move."):
            seen.append(name)
        if name == "move.after_copy" and len(seen) < 100 and "move.before_switch" not in seen:
            app.enqueue("plain")

    monkeypatch.setattr(failpoints, "hit", hit)
    move(app.database, target_url)
    assert len(seen) < 100


def ids(url: str) -> list[str]:
    sql = RawSql(url)
    try:
        return sorted(str(id) for (id,) in sql.run("SELECT id FROM {job}"))
    finally:
        sql.close()


def schema_of(url: str, schema: str = "tenure") -> list[Any]:
    """All tables and triggers of Tenure."""
    sql = RawSql(url)
    try:
        if url.startswith("sqlite"):
            return sql.run("SELECT name, sql FROM sqlite_schema ORDER BY 1")
        return sql.run(
            "SELECT relname, tgname, tgenabled FROM pg_namespace AS n JOIN pg_class AS c"
            " ON c.relnamespace = n.oid LEFT JOIN pg_trigger ON tgrelid = c.oid"
            f" WHERE nspname = '{schema}' ORDER BY 1, 2, 3"
        )
    finally:
        sql.close()


def test_no_guard_is_off_on_the_target(
    app: Tenure, target_url: str, postgres_server: PostgresServer
) -> None:
    """The schema is that of a new database, with every trigger as it is there."""
    app.enqueue("plain")
    move(app.database, target_url)
    moved = schema_of(target_url)
    Tenure(f"{target_url}&schema=fresh").migrate()
    assert moved == schema_of(target_url, "fresh")


def test_statistics_and_webhooks_go_on_where_they_were(app: Tenure, target_url: str) -> None:
    """Entries of the ledger that were not counted or forwarded are afterwards, and no others."""
    first = app.enqueue("plain")
    app.webhooks.create("early", "https://example.com", ["enqueued"])
    second = app.enqueue("plain")
    while app.core.measure():
        pass
    third = app.enqueue("plain")
    app.webhooks.create("late", "https://example.com", ["enqueued"])
    fourth = app.enqueue("plain")
    move(app.database, target_url)
    with Tenure(target_url) as after:
        fifth = after.enqueue("plain")
        hooks = {hook.name: hook.position for hook in after.webhooks.list()}
        seen = {
            name: [t.job_id for t in after.core.store.read.ledger(position, 10)]
            for name, position in hooks.items()
        }
        assert seen == {
            "early": [second.id, third.id, fourth.id, fifth.id],
            "late": [fourth.id, fifth.id],
        }
        while after.core.measure():
            pass
        assert sum(count.jobs for count in after.stats.counts()) == 5
        assert after.verify() == []
        assert after.get(first.id)


def test_what_is_refused(
    app: Tenure, target_url: str, postgres_url: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.enqueue("plain")
    Tenure(postgres_url).migrate()
    if app.database != postgres_url:
        with pytest.raises(MoveRefused, match="schema tenure has tables"):
            move(app.database, postgres_url)
    with pytest.raises(InvalidInput, match="PostgreSQL only"):
        move(app.database, f"sqlite:///{tmp_path}/other.db")
    with pytest.raises(InvalidInput, match="no database of Tenure"):
        move(f"sqlite:///{tmp_path}/none.db", target_url)
    assert {one.health for one in moving.check_move(app.database, target_url)} == {"ok"}
    assert schema_of(target_url) == []
    with opened(app.database, target_url):
        # Not before: the server ends the session of the check when it comes to it.
        monkeypatch.setattr(mover, "ALONE_SECONDS", 0.05)
        with pytest.raises(InvalidInput, match="another"):
            move(app.database, target_url)


def test_a_text_that_postgresql_cannot_store_is_refused_by_name(
    sqlite_url: str, target_url: str
) -> None:
    """The error was `None, None`, and that a generator was ignored."""
    with Tenure(sqlite_url) as app, closing(RawSql(sqlite_url)) as raw:
        id = app.enqueue("plain").id
        raw.run("UPDATE {job} SET actor = ? WHERE id = ?", "web\0", id)
    with pytest.raises(MoveRefused, match=r"^a row of job cannot be stored there: .* NUL "):
        move(sqlite_url, target_url)


def test_the_copy_of_another_database_was_dropped_with_its_jobs(
    target_url: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the switch, before the target is open, its jobs are nowhere else."""
    first, second = (f"sqlite:///{tmp_path}/{name}.db" for name in ("first", "second"))
    ids = []
    for source in (first, second):
        with Tenure(source) as app:
            ids.append(app.enqueue("plain").id)
    stop_at(monkeypatch, "move.after_switch", lambda: None)
    with pytest.raises(Interrupted):
        move(first, target_url)
    for wrong in (move, moving.abort):
        with pytest.raises(MoveRefused, match=f"copy of {re.escape(first)}"):
            wrong(second, target_url)
    assert move(first, target_url)[-1].startswith("the jobs are in ")
    with Tenure(target_url) as app:
        assert [job.id for job in app.find()] == ids[:1]


def test_abort_with_another_target_stopped_a_move(
    app: Tenure, target_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.enqueue("plain")
    stop_at(monkeypatch, "move.after_begin", lambda: None)
    with pytest.raises(Interrupted):
        move(app.database, target_url)
    with pytest.raises(MoveRefused, match=f"being moved to {re.escape(target_url)}"):
        moving.abort(app.database, f"{target_url}&schema=other")
    assert move(app.database, target_url)[0].startswith("continuing ")


def test_of_two_moves_that_begin_at_once_the_first_goes_on(
    app: Tenure, target_url: str, other_url: str
) -> None:
    """Both saw a source that is not being moved. The second one took the notes of the first."""
    app.enqueue("plain")
    with opened(app.database, target_url) as first, opened(app.database, other_url) as second:
        mover.Mover(*first)._begin(is_copy=False)
        with pytest.raises(MoveRefused, match=f"being moved to {re.escape(target_url)}"):
            mover.Mover(*second)._begin(is_copy=False)
        assert second[1].every_table() == {}
    assert move(app.database, target_url)[0].startswith("continuing ")


def test_who_holds_one_lock_and_waits_for_another_goes_on(
    postgres_url: str, target_url: str
) -> None:
    """The mover gives way before PostgreSQL looks for deadlocks, and tries again."""
    with Tenure(postgres_url) as app:
        app.enqueue("plain")
    with psycopg.connect(postgres_url) as held, psycopg.connect(postgres_url) as looks:
        looks.autocommit = True
        held.execute("LOCK tenure.worker IN ROW EXCLUSIVE MODE")
        with ThreadPoolExecutor(1) as threads:
            moved = threads.submit(move, postgres_url, target_url)
            waits = (
                "SELECT FROM pg_locks WHERE NOT granted AND relation = 'tenure.worker'::regclass"
            )
            wait_until(lambda: looks.execute(waits).fetchone() is not None, "the mover to wait")
            held.execute("SELECT FROM tenure.enqueue('plain')")  # of which the mover has the table
            held.commit()
            assert moved.result(WAIT_SECONDS)[-1].startswith("the jobs are in ")
    assert len(ids(target_url)) == 2


def test_the_command(app: Tenure, target_url: str) -> None:
    app.enqueue("plain")
    names = (app.database, target_url)
    checked = run_cli("move", *names, "--check")
    assert checked.exit_code == 0
    assert [line.split()[1] for line in checked.stdout.splitlines()[1:5]] == ["ok"] * 4
    assert run_cli("move", *names, "--check", "--abort").exit_code == 2
    assert output_of("move", *names, "--abort") == "undone: the jobs are where they were"
    assert output_of("move", *names).splitlines()[-1] == f"the jobs are in {target_url}"
    refused = run_cli("move", *names)
    assert refused.exit_code == 1
    assert "were moved to" in refused.stderr


def test_no_copy_reads_a_table_once_for_each_job(postgres_url: str) -> None:
    """A join by a filter would: 20 million comparisons for 5,000 jobs among 4,000 pending ones."""
    Tenure(postgres_url).migrate()
    target = Target(postgres_url)
    target.types = target.tables
    statements = [one.replace("{jobs}", target.having(JOB)) for one in (FORGET, FOLLOW)]
    statements += [deletion(table.name, target.having(table)) for table in ALONE]
    with target.transaction():
        for statement in statements:
            plan = "\n".join(line for (line,) in target.rows(f"EXPLAIN {statement}", ("[]",)))
            assert "Join Filter" not in plan, plan
    target.close()
