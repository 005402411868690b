"""Every write transaction is one from its beginning: none starts as a read and becomes a write.
The enqueue of one job is a transaction of one statement, which writes from its beginning.

SQLite refuses such an upgrade at once, whatever the busy timeout, if somebody wrote in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

import tenure.sqlite
from tenure import NewJob, StoreUnavailable, Tenure
from tenure.rules.jobs import CheckedJob
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tenure.store import enqueue
from tenure.store.commit import Committer
from tenure.store.sqlite import connection as sqlite_connection
from tenure.store.sqlite.connection import Connection, connect, connect_writer
from tenure.store.sqlite.schema import upgrade
from tenure.store.sqlite.writer import Sqlite
from tenure.store.tables import queues
from tenure.store.work import CallWork
from tenure.values.ids import new_id
from tests.support.programs import Program

WRITES = {"INSERT", "UPDATE", "DELETE", "REPLACE"}


class Traced(Connection):
    """A connection whose statements are noted, with whether a transaction was open before each."""

    seen: ClassVar[list[tuple[str, bool]]] = []

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        self.seen.append((sql.strip(), self.in_transaction))
        return super().execute(sql, *values)

    def executemany(self, sql: str, *values: Any) -> sqlite3.Cursor:
        self.seen.append((sql.strip(), self.in_transaction))
        return super().executemany(sql, *values)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    connect = sqlite3.connect
    monkeypatch.setattr(Traced, "seen", [])
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k | {"factory": Traced}))
    return Traced.seen


@pytest.mark.scenario(45)
def test_every_transaction_takes_the_right_to_write_at_its_beginning(
    seen: list[tuple[str, bool]], tmp_path: Path
) -> None:
    app = Tenure(f"sqlite:///{tmp_path}/jobs.db")
    jobs = [app.enqueue("t", max_retries=1) for _ in range(4)]
    request = ClaimRequest(worker="w", limit=3, lease_seconds=60)
    leases = app.core.exchange([], request).result().leases
    outcomes = (Outcome.COMPLETED, Outcome.FAILED, Outcome.RELEASED)
    reports = [Report(x.id, x.lease_id, o) for x, o in zip(leases, outcomes, strict=True)]
    app.core.exchange(reports, None).result()
    app.cancel(jobs[3].id)
    app.retry(leases[1].id)
    app.queues.pause("default")
    app.core.sweep()
    app.core.prune({"completed": timedelta(0)})
    app.verify()
    app.stats.counts()
    app.close()

    begun = {text for text, _ in seen if text.upper().startswith("BEGIN")}
    assert begun == {"BEGIN IMMEDIATE"}
    writes = [(text, inside) for text, inside in seen if WRITES & set(text.upper().split())]
    assert len(writes) > 10
    alone = [text for text, inside in writes if not inside]
    assert len(alone) == len(jobs)
    assert all(text.startswith("INSERT INTO tenure_job ") for text in alone)


def test_the_enqueue_of_one_job_is_one_statement(
    seen: list[tuple[str, bool]], tmp_path: Path
) -> None:
    app = Tenure(f"sqlite:///{tmp_path}/jobs.db")
    app.job(name="t")(lambda: None)  # the look for an unknown type is a statement, too
    app.enqueue("t")
    seen.clear()
    app.enqueue("t", delay="5m", priority=3, idempotency_key="k")
    assert len(seen) == 1
    app.close()


def test_one_statement_waits_for_the_writer_before_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = Sqlite(path)
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        looks = iter((lambda: None, lambda: None, other.commit))
        monkeypatch.setattr(sqlite_connection.time, "sleep", lambda _: next(looks)())
        made = db.enqueue_alone([CheckedJob(id=new_id(), type="t")], whole=True)
        assert next(looks, None) is None
        assert [(id,) for id in made] == other.execute("SELECT id FROM tenure_job").fetchall()
    db.close()


class MadeUpTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def test_a_writer_that_has_waited_long_looks_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 workers that looked every 0.3 ms took the processor from the one that was writing."""
    clock = MadeUpTime()
    monkeypatch.setattr(sqlite_connection, "time", clock)

    def write() -> float:
        if clock.now < 0.2:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error
        return clock.now

    late = sqlite_connection.when_free(write) - 0.2
    assert late <= sqlite_connection.MAX_LOOK_SECONDS
    assert clock.pauses[0] == sqlite_connection.LOOK_SECONDS
    assert clock.pauses == sorted(clock.pauses)
    assert len(clock.pauses) < 250  # 667 of 0.3 ms


def test_what_one_statement_added_is_committed_when_it_is_answered(path: Path) -> None:
    db = Sqlite(path)
    checked_job = CheckedJob(id=new_id(), type="t", delay=60)
    (job,) = db.enqueue_alone([checked_job], whole=True).values()
    assert db._connection is not None
    assert not db._connection.in_transaction
    with contextlib.closing(sqlite3.connect(path)) as other:
        found = other.execute("SELECT id, run_at - created_at FROM tenure_job").fetchall()
        assert found == [(job.id, 60_000)]
        other.execute("BEGIN IMMEDIATE")  # nothing holds the file
    db.close()


# --- the end of a transaction that failed -----------------------------------------------------


class Failing(Connection):
    """A connection whose ROLLBACK fails, as on a broken disk."""

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if sql == "ROLLBACK":
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(sql, *values)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    upgrade(tmp_path / "jobs.db")
    return tmp_path / "jobs.db"


def test_undoing_what_never_began_is_no_error_and_keeps_the_connection(path: Path) -> None:
    def away(path: Path) -> sqlite3.Connection:
        raise sqlite3.OperationalError("unable to open database file")

    unconnected = Sqlite(path, away)
    with pytest.raises(sqlite3.OperationalError):
        unconnected.begin()
    unconnected.rollback()  # a raised error here would end the writing thread

    db = Sqlite(path)
    db.begin()
    connection = db._connection
    db.commit()
    db.rollback()
    assert db._connection is connection
    db.close()


def test_a_transaction_that_cannot_be_undone_goes_with_its_connection(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, made = sqlite3.connect, []

    def failing_once(path: Path) -> sqlite3.Connection:
        with monkeypatch.context() as patch:
            if not made:
                patch.setattr(
                    sqlite3, "connect", lambda *a, **k: connect(*a, **k | {"factory": Failing})
                )
            made.append(connect_writer(path))
        return made[-1]

    db = Sqlite(path, failing_once)
    db.begin()
    queues.set_queue(db, "small", paused=None, max_pending=1, actor="ada")
    db.rollback()
    db.begin()  # anew: the lock is free again, and nothing of before is there
    assert len(made) == 2
    assert enqueue.full_queues(db, {"small": 2}) == {}
    db.rollback()
    db.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_file_that_is_no_database_is_not_kept_open(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    path.write_text("a letter" * 1_000)
    with pytest.raises(sqlite3.DatabaseError) as caught:
        connect(path)
    open_files = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of this very loop
            open_files.add(descriptor.readlink())
    assert path not in open_files, f"by {caught.value}"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(
    ("verb", "connect"),
    [
        *(
            (verb, sqlite3.connect)
            for verb in ("enqueue", "known", "enqueue_many", "enqueue_async", "pause")
        ),
        ("enqueue", tenure.sqlite.connect),
    ],
)
def test_an_enqueue_inside_the_callers_own_transaction_says_what_to_do(
    app: Tenure, verb: str, connect: Callable[[str], sqlite3.Connection]
) -> None:
    """A newcomer waited 20 seconds for himself, and 10 for one job whose options are known."""
    app.open()
    known = app.job(name="known")(lambda: None)
    verbs: dict[str, Callable[[], object]] = {
        "enqueue": lambda: app.enqueue("email"),
        "known": known.enqueue,
        "enqueue_many": lambda: app.enqueue_many([NewJob("email", {}, {})] * 2),
        "enqueue_async": lambda: asyncio.run(app.enqueue_async("email")),
        "pause": lambda: app.queues.pause("mail"),
    }
    with contextlib.closing(connect(app.database.removeprefix("sqlite:///"))) as mine:
        mine.execute("CREATE TABLE customer (name)")
        mine.execute("INSERT INTO customer VALUES ('ann')")
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"of this program .* `app\.within\(conn"):
            verbs[verb]()
        assert time.monotonic() - began < 5, "half of what it waits for other processes"
        mine.commit()
        verbs[verb]()


HOLD = """
import sqlite3, sys, time
mine = sqlite3.connect(sys.argv[1], isolation_level=None)
mine.execute("BEGIN IMMEDIATE")
print("held", flush=True)
time.sleep(2 * float(sys.argv[2]))
mine.execute("COMMIT")
"""


@pytest.mark.parametrize("holder", ["a process", "a thread", "ours"])
def test_a_transaction_that_will_end_is_waited_for(
    app: Tenure, monkeypatch: pytest.MonkeyPatch, holder: str
) -> None:
    """Longer than for one of its own, if it is of another process or of Tenure itself."""
    own = 0.4
    monkeypatch.setattr(sqlite_connection, "OWN_SECONDS", own)
    monkeypatch.setattr(sqlite_connection, "OWN_LOOKS", 1)
    app.open()
    path = app.database.removeprefix("sqlite:///")
    if holder == "a process":
        command = [sys.executable, "-c", HOLD, path, str(own)]
        with Program(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            app.enqueue("email")
        return
    made: sqlite3.Connection = connect_writer(Path(path))
    if holder == "a thread":
        made.close()
        made = sqlite3.connect(path, check_same_thread=False)
    with contextlib.closing(made) as other:
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.1 if holder == "a thread" else 2 * own, other.rollback)
        timer.start()
        app.enqueue("email")
        timer.join()


def test_a_file_that_may_not_be_written_is_said_with_what_to_do(tmp_path: Path) -> None:
    """The error was only that of SQLite."""

    def connect(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{path}?mode=ro", uri=True)

    path = tmp_path / "jobs.db"
    Tenure(f"sqlite:///{path}").open().close()
    db = Sqlite(path, connect)
    delete = CallWork("a", lambda db: db.rows("DELETE FROM tenure_job"))
    committer = Committer([db], lambda: None)
    try:
        with pytest.raises(StoreUnavailable, match="readonly database: this process may not write"):
            committer.submit(delete).future.result()
    finally:
        committer.close()
