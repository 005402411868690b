"""Wake-ups on a SQLite file: commits of other processes, found by events or by looking."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tenure import Tenure
from tenure.rules.reports import ClaimRequest
from tenure.store import migrate_store
from tenure.store.notify import COMMIT as COMMITTED
from tenure.store.notify import WORK, Notify, Watch
from tenure.store.sqlite import reader as sqlite_watch
from tenure.store.sqlite.reader import SqliteReader
from tests.support.no_threads import no_new_threads
from tests.support.programs import Program
from tests.support.waiting import WAIT_SECONDS, wait_until

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs inotify")

RUN_EACH_LINE = """
import sqlite3, sys

connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for line in sys.stdin:
    connection.execute(line)
    print("done", flush=True)
connection.close()
"""
COMMIT = "INSERT INTO tenure_queue (name) VALUES (hex(randomblob(8)))"


class Other:
    """Another process with a connection to the file."""

    def __init__(self, path: Path) -> None:
        self._process = Program(
            [sys.executable, "-c", RUN_EACH_LINE, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, statement: str) -> None:
        """Run one statement there; it is done when this returns."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(statement + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def close(self) -> None:
        self._process.communicate(timeout=WAIT_SECONDS)
        assert self._process.returncode == 0


class Watching:
    """The watch on a thread of its own, with its rings and looks counted."""

    def __init__(self, watch: Watch) -> None:
        self.about: list[str | None] = []
        self.rung = threading.Event()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=watch, args=(self._ring, self.stop), daemon=True)
        self.thread.start()

    def _ring(self, about: str | None) -> None:
        self.about.append(about)
        self.rung.set()

    def notify(self) -> None:
        """Wait for a ring."""
        assert self.rung.wait(WAIT_SECONDS), "nobody rang"
        self.rung.clear()

    def end(self) -> None:
        """Stop it, and see that it has stopped."""
        self.stop.set()
        self.thread.join(WAIT_SECONDS)
        assert not self.thread.is_alive()


class Breakable(sqlite3.Connection):
    """A connection whose disk may stop answering."""

    broken = False

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if self.broken:
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(sql, *values)


class Connections:
    """Opens the connections of a watch and counts what it asks on them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.opened: list[Breakable] = []
        self.tries = 0
        self.looks = 0

    def __call__(self) -> sqlite3.Connection:
        self.tries += 1
        connection = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False, factory=Breakable
        )
        connection.set_trace_callback(self._count)
        self.opened.append(connection)
        return connection

    def _count(self, statement: str) -> None:
        self.looks += "data_version" in statement

    def more_looks(self, number: int) -> None:
        """Wait for so many more looks."""
        goal = self.looks + number
        wait_until(lambda: self.looks >= goal, f"{number} more looks")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with the schema in it."""
    migrate_store(f"sqlite:///{tmp_path}/jobs.db")
    return tmp_path / "jobs.db"


@pytest.fixture
def wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


@pytest.fixture
def other(path: Path) -> Iterator[Other]:
    process = Other(path)
    yield process
    process.close()


@pytest.fixture
def connections(path: Path) -> Connections:
    return Connections(path)


@contextlib.contextmanager
def watching(
    connections: Connections, wal: Path, attention: sqlite_watch.Attention | None = None
) -> Iterator[Watching]:
    """A watch that is at it: its first ring is over."""
    watch = Watching(
        lambda notify, stop: sqlite_watch.watch(connections, wal, notify, stop, attention)
    )
    watch.notify()
    yield watch
    watch.end()


def only_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the slow poll so slow that whatever rings must have been told."""
    monkeypatch.setattr(sqlite_watch, "REPORTED", sqlite_watch.REPORTED._replace(longest=3600.0))


def watched_files() -> set[int]:
    """The inodes that this process watches."""
    found: set[int] = set()
    for info in Path("/proc/self/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            lines = info.read_text().splitlines()
            words = [line.split() for line in lines if line.startswith("inotify")]
            found |= {int(w[2].removeprefix("ino:"), 16) for w in words}
    return found


def kernel_objects() -> int:
    """How many files without a name this process has open: a watch is one, its interruption too."""
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum(link.startswith("anon_inode:") for link in links)


# --- commits of other processes -----------------------------------------------------------------


def test_the_reader_rings_at_its_beginning_and_for_commits_of_other_processes(
    path: Path, other: Other
) -> None:
    reader = SqliteReader(path)
    watch = Watching(reader.watch)
    watch.notify()
    for _ in range(5):
        other.run(COMMIT)
        watch.notify()
    watch.end()
    reader.close()


@linux
def test_events_alone_are_enough(
    connections: Connections, wal: Path, other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_events(monkeypatch)
    with watching(connections, wal) as watch:
        wait_until(lambda: wal.stat().st_ino in watched_files())
        for _ in range(50):
            other.run(COMMIT)
            watch.notify()


def test_where_the_kernel_keeps_silent_the_slow_poll_rings(
    connections: Connections, path: Path, other: Other
) -> None:
    silent = path.with_name("nobody-writes-here")
    silent.touch()
    with watching(connections, silent) as watch:
        for _ in range(3):
            other.run(COMMIT)
            watch.notify()


def test_without_a_second_thread_looking_goes_on(
    connections: Connections, wal: Path, other: Other
) -> None:
    go = threading.Event()

    def later(notify: Notify, stop: threading.Event) -> None:
        go.wait(WAIT_SECONDS)
        sqlite_watch.watch(connections, wal, notify, stop)

    watch = Watching(later)
    with no_new_threads():
        go.set()
        for _ in range(3):
            other.run(COMMIT)
            watch.notify()
    watch.end()


@pytest.mark.parametrize("lacking", ["inotify", "a watch on the log"])
def test_without_events_looking_goes_on(
    lacking: str, connections: Connections, wal: Path, other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lacking == "inotify":
        monkeypatch.setattr(sys, "platform", "plan9")
    else:
        wal = wal.parent / "no such folder" / wal.name
    only_events(monkeypatch)  # none come
    with watching(connections, wal) as watch:
        for _ in range(5):
            other.run(COMMIT)
            watch.notify()


def emptied(connection: sqlite3.Connection) -> bool:
    """Whether the log could be emptied; not while the watch asks something by this connection."""
    try:
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.OperationalError:
        return False
    return not busy


@linux
def test_a_log_that_was_deleted_and_made_anew_is_watched_again(
    connections: Connections, wal: Path, other: Other
) -> None:
    with watching(connections, wal) as watch:
        wait_until(lambda: wal.stat().st_ino in watched_files())
        (connection,) = connections.opened
        wait_until(lambda: emptied(connection))
        wal.rename(old := wal.with_name("old"))  # kept, so that its inode is not given out again
        assert old.stat().st_ino in watched_files()
        for _ in range(5):  # the first may pass for what emptying the log had announced
            other.run(COMMIT)
            watch.notify()
        assert wal.stat().st_ino in watched_files()


# --- what they bring ----------------------------------------------------------------------------


def test_commits_ring_for_work_only_if_a_job_is_due_soon(
    connections: Connections, path: Path, wal: Path
) -> None:
    with watching(connections, wal) as watch, Tenure(f"sqlite:///{path}") as app:

        def heard(act: Callable[[], object]) -> set[str | None]:
            watch.about.clear()
            act()
            wait_until(lambda: COMMITTED in watch.about)
            connections.more_looks(3)
            return set(watch.about)

        assert heard(lambda: app.enqueue("far", delay=3600)) == {COMMITTED}
        soon = sqlite_watch.SOON_SECONDS - 1
        assert heard(lambda: app.enqueue("due", delay=soon, queue="z")) == {WORK, COMMITTED}


def test_with_many_lanes_every_commit_rings_for_work(
    connections: Connections, path: Path, wal: Path
) -> None:
    with Tenure(f"sqlite:///{path}") as app:
        for n in range(sqlite_watch.MAX_HEADS - 1):
            app.enqueue("far", delay=3600, queue=f"queue{n}")
        with watching(connections, wal) as watch:
            watch.about.clear()
            app.queues.pause("queue1")
            wait_until(lambda: COMMITTED in watch.about)
            assert WORK not in watch.about
            app.enqueue("far", delay=3600, queue="one-more")
            wait_until(lambda: WORK in watch.about)


@linux
def test_while_nobody_waits_for_work_commits_are_looked_at_together(
    connections: Connections, wal: Path, other: Other
) -> None:
    attention = sqlite_watch.Attention()
    with watching(connections, wal, attention) as watch:
        wait_until(lambda: wal.stat().st_ino in watched_files())
        attention.set(False)
        connections.more_looks(2)  # it has noticed
        begun, looks = time.monotonic(), connections.looks
        for _ in range(200):
            other.run(COMMIT)
        rests = (time.monotonic() - begun) / sqlite_watch.REST_SECONDS
        assert connections.looks - looks <= rests + 2
        assert WORK not in watch.about


@linux
def test_who_begins_to_wait_for_work_is_told_of_what_came_before(
    connections: Connections, path: Path, wal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention, rests, rest = sqlite_watch.Attention(), list[float](), sqlite_watch.LogWrites.rest

    def noted(writes: sqlite_watch.LogWrites, seconds: float) -> None:
        rests.append(seconds)
        rest(writes, seconds)

    monkeypatch.setattr(sqlite_watch.LogWrites, "rest", noted)
    with Tenure(f"sqlite:///{path}") as app, watching(connections, wal, attention) as watch:
        wait_until(lambda: wal.stat().st_ino in watched_files())
        attention.set(False)
        app.enqueue("due")
        wait_until(lambda: COMMITTED in watch.about)  # it has seen the commit, and told nobody
        monkeypatch.setattr(sqlite_watch, "REST_SECONDS", 3600.0)
        assert WORK not in watch.about
        wait_until(lambda: 3600.0 in rests, "the long rest")
        attention.set(True)
        wait_until(lambda: WORK in watch.about)


@linux
def test_a_cancel_rings_though_nobody_waits_for_work(
    connections: Connections, path: Path, wal: Path
) -> None:
    attention = sqlite_watch.Attention()
    with Tenure(f"sqlite:///{path}") as app, watching(connections, wal, attention) as watch:
        wait_until(lambda: wal.stat().st_ino in watched_files())
        attention.set(False)
        job = app.enqueue("due")
        app.core.claim(ClaimRequest(worker="me", limit=1, lease_seconds=60))
        app.cancel(job.id)
        wait_until(lambda: "me" in watch.about)


# --- quiet --------------------------------------------------------------------------------------


def test_nobody_rings_without_a_commit(connections: Connections, wal: Path, other: Other) -> None:
    with watching(connections, wal) as watch:
        other.run("SELECT count(*) FROM tenure_queue")
        other.run("PRAGMA cache_size = 1")
        other.run("BEGIN")
        size = wal.stat().st_size
        other.run(
            "INSERT INTO tenure_queue (name) WITH n (i) AS (SELECT 1 UNION ALL"
            " SELECT i + 1 FROM n WHERE i < 2000) SELECT 'queue' || i FROM n"
        )
        assert wal.stat().st_size > size  # written to the log already
        other.run("ROLLBACK")
        connections.more_looks(50)
        assert not watch.rung.is_set()


@linux
def test_an_idle_watch_seldom_looks(connections: Connections, wal: Path) -> None:
    with watching(connections, wal):
        connections.more_looks(70)  # the search after the beginning is over
        begun = time.monotonic()
        connections.more_looks(6)
        assert time.monotonic() - begun > 4.5 * sqlite_watch.REPORTED.longest


# --- the end, and errors ------------------------------------------------------------------------


@linux
def test_stopping_does_not_wait_for_the_next_look_and_leaves_nothing_open(
    connections: Connections, wal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_watch, "REPORTED", sqlite_watch.Pace(0, 3600.0, 3600.0))
    before = kernel_objects()
    with watching(connections, wal):
        wait_until(lambda: connections.looks == 2)
        assert kernel_objects() > before
    assert kernel_objects() == before
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connections.opened[0].execute("SELECT 1")


def test_errors_are_logged_once_and_end_nothing(
    connections: Connections, path: Path, wal: Path, other: Other, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="tenure.store.sqlite.reader")
    away = path.parent / "away"
    other.run("SELECT 1 FROM tenure_queue")  # it has the file open from here on
    with watching(connections, wal) as watch:
        for ended in (1, 2):
            path.rename(away)
            path.mkdir()
            connections.opened[-1].broken = True  # on its next look, a thread's of its own
            goal = connections.tries + 3
            wait_until(lambda goal=goal: connections.tries >= goal)  # type: ignore[misc]
            path.rmdir()
            away.rename(path)
            watch.notify()  # something may have been committed meanwhile
            other.run(COMMIT)
            watch.notify()
            assert [r.message[:10] for r in caplog.records] == ["cannot see"] * ended
