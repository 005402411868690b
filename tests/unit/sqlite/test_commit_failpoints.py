"""On SQLite the failpoints before a commit are inside the transaction, each visited once.

Where one statement is the transaction, they are before it.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tenure import failpoints
from tenure.errors import StoreUnavailable
from tenure.rules.jobs import CheckedJob
from tenure.store.commit import Committer
from tenure.store.sqlite.writer import Sqlite
from tenure.store.work import CallWork, EnqueueWork, ExchangeWork, Work
from tenure.values.ids import new_id
from tests.support.programs import Program
from tests.support.store import claim_request

ENQUEUE_OR_CLAIM = """
import sys
from tenure.rules.jobs import CheckedJob
from tenure.values.ids import new_id
from tenure.store import open_store
from tests.support.store import claim_request

place, path = sys.argv[1:]
if place == "enqueue":
    jobs = [CheckedJob(id=new_id(), type="mail") for _ in range(2)]
    open_store(f"sqlite:///{path}").add(jobs).result()
else:
    open_store(f"sqlite:///{path}").exchange([], claim_request(1)).result()
"""


@pytest.fixture
def db(path: Path) -> Iterator[Sqlite]:
    db = Sqlite(path)
    yield db
    db.close()


def commit(db: Sqlite, work: Work) -> None:
    committer = Committer([db], lambda: None)
    # As if the worker was seen just now: a claim that has nothing else to do.
    committer._sightings._seen["worker"] = committer._clock()
    committer.commit(db, [work])
    work.future.result()


def works() -> dict[str, Work]:
    return {
        "enqueue": EnqueueWork([CheckedJob(id=new_id(), type="mail") for _ in range(2)]),
        "claim": ExchangeWork([], claim_request(1, worker="worker")),
    }


@pytest.mark.parametrize("name", ["enqueue", "claim"])
def test_the_place_before_a_commit_is_inside_the_transaction(
    db: Sqlite, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    commit(db, works()["enqueue"])
    visits: list[tuple[str, bool]] = []

    def hit(place: str) -> None:
        connection = db._connection
        visits.append((place, connection is not None and connection.in_transaction))

    monkeypatch.setattr(failpoints, "ARMED", {"prune.before_commit": ("raise", 1)})
    monkeypatch.setattr(failpoints, "hit", hit)
    commit(db, works()[name])
    assert visits == [(f"{name}.before_commit", True), (f"{name}.after_commit", False)]


@pytest.mark.parametrize("name", ["enqueue", "claim"])
def test_a_process_that_is_stopped_there_holds_the_lock_and_killed_leaves_nothing(
    db: Sqlite, path: Path, name: str
) -> None:
    """The process is frozen at the place: another writer finds the file locked."""
    if name == "claim":
        commit(db, works()["enqueue"])
    before = rows(path)
    process = Program(
        [sys.executable, "-c", ENQUEUE_OR_CLAIM, name, str(path)],
        cwd=Path(__file__).parents[3],
        env={**os.environ, failpoints.ENVIRONMENT: f"{name}.before_commit=freeze"},
    )
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
            process.send_signal(signal.SIGKILL)
            process.wait()
            other.execute("BEGIN IMMEDIATE")  # the lock went with the process
            other.execute("ROLLBACK")
        assert rows(path) == before
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("place", "error", "times"),
    [
        ("before_commit", sqlite3.OperationalError, 2),
        ("commit", sqlite3.OperationalError, 1),
        ("after_commit", sqlite3.OperationalError, 1),
        ("after_commit", RuntimeError, 1),
    ],
)
def test_what_may_be_committed_is_not_done_again(
    db: Sqlite, monkeypatch: pytest.MonkeyPatch, place: str, error: type[Exception], times: int
) -> None:
    """One failure, for two callers. What was surely not committed is done again."""
    done, failed = list[int](), list[str]()

    def fail(at: str) -> None:
        if at.endswith(f".{place}") and not failed:
            failed.append(at)
            raise error("disk I/O error")

    def commit_here() -> None:
        fail(".commit")
        Sqlite.commit(db)

    monkeypatch.setattr(failpoints, "ARMED", {"prune.before_commit": ("raise", 1)})
    monkeypatch.setattr(failpoints, "hit", fail)
    monkeypatch.setattr(db, "commit", commit_here)
    works = [CallWork("prune", lambda _, n=n: done.append(n)) for n in range(2)]  # type: ignore[misc]
    Committer([db], lambda: None).commit(db, works)
    assert done == [0, 1] * times
    for work in works:
        answer = work.future.exception()
        assert isinstance(answer, StoreUnavailable) if times == 1 else answer is None


def rows(path: Path) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT status, token FROM tenure_job").fetchall()
