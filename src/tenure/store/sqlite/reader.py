"""The reading side of the SQLite store, and how it notices what other processes commit.

SQLite does not announce a commit; it can only be asked (`PRAGMA data_version`). So it is asked when
there is reason to: on Linux the kernel reports writes to the write-ahead log. A write comes before
its commit can be seen, by the time that the flush takes, so the question is repeated until the
answer changes, at intervals that are short at first and grow with the wait. A slow poll runs all
the time: there are file systems whose writes the kernel does not report.

Each process that works on the file sees each commit of every other, and most of these bring it no
work. So workers are notified only if a job is due now or soon. While no worker of this process
waits for work, commits are looked at together, for cancels.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tenure.errors import StoreUnavailable
from tenure.lifecycle import Job, Status
from tenure.rules.search import MAX_AHEAD, Query
from tenure.store import audit
from tenure.store.constraints import quoted
from tenure.store.notify import COMMIT, WORK, Notify
from tenure.store.reader import Reader
from tenure.store.rows import job_of
from tenure.store.search import ENDED, Statement, between, filled, others
from tenure.store.sqlite.connection import AWAY, connect, escaped, to_time
from tenure.store.sqlite.statements import DIALECT
from tenure.values.findings import Progress, no_note, no_progress

log = logging.getLogger(__name__)


class Pace(NamedTuple):
    """A look every `share` of the time since the last sign of a commit, within bounds (seconds)."""

    share: float
    shortest: float
    longest: float


REPORTED = Pace(1 / 8, 0.0002, 0.1)
"""Where writes are reported. The longest pause is the poll for file systems that report none."""
HEARD = REPORTED._replace(longest=0.5)
"""Where the write of the last commit was reported."""
POLLED = Pace(1 / 100, 0.002, 0.01)
LOADED_SECONDS = 0.002
"""The average between looks while commits never pause. Shorter pauses are paid with saved looks."""
MAX_SAVED = 500.0
TRY_AGAIN_SECONDS = 0.1
REST_SECONDS = 0.02
"""The pause after a look while no worker waits for work. It delays the notice of a cancel."""
SOON_SECONDS = 3.0
"""Workers that know when the next job falls due ask again within two seconds."""
MAX_HEADS = 20

CANCELLED = """
SELECT t.seq, job.worker
FROM tenure_transition AS t INDEXED BY tenure_transition_cancelled
JOIN tenure_job AS job ON job.id = t.job_id
WHERE t.source = 'processing' AND t.event = 'cancelled' AND t.seq > ? ORDER BY t.seq
"""

# The head of each lane, a queue at a priority, is its oldest job: two searches in the index for
# each lane, however many jobs wait in it.
HEADS = """
WITH RECURSIVE lane (row) AS (
    SELECT (SELECT rowid FROM tenure_job WHERE status = 'pending' {only}
        ORDER BY queue, priority, run_at LIMIT 1)
    UNION ALL
    SELECT coalesce(
        (SELECT rowid FROM tenure_job
            WHERE status = 'pending' AND queue = last.queue AND priority > last.priority
            ORDER BY queue, priority, run_at LIMIT 1),
        (SELECT rowid FROM tenure_job WHERE status = 'pending' AND queue > last.queue {others}
            ORDER BY queue, priority, run_at LIMIT 1))
    FROM lane CROSS JOIN tenure_job AS last ON last.rowid = lane.row
), head AS (
    SELECT queue, run_at FROM lane CROSS JOIN tenure_job AS job ON job.rowid = lane.row
)
"""
# Whether a job falls due soon, or may: there are too many lanes to know.
SOON = f"""{HEADS.format(only="", others="")}
SELECT max(run_at <= at + {SOON_SECONDS * 1000:.0f}) OR count(*) = {MAX_HEADS}
FROM (SELECT run_at FROM head LIMIT {MAX_HEADS}) CROSS JOIN tenure_now
"""


class Attention:
    """Whether a subscriber in this process waits for work or commits. Set from any thread."""

    def __init__(self) -> None:
        self.is_needed = True
        self.is_new = False
        """Whether a subscriber has started to wait since the watch last looked for work."""
        self._lock = threading.Lock()
        self._wake: Callable[[], None] | None = None

    def set(self, needed: bool) -> None:
        with self._lock:
            before, self.is_needed = self.is_needed, needed
            if needed and not before:
                self.is_new = True
                if self._wake is not None:
                    self._wake()

    def wake_by(self, wake: Callable[[], None] | None) -> None:
        """Call `wake` from now on when a subscriber begins to wait."""
        with self._lock:
            self._wake = wake


class Looks:
    """When to look next. Pure: times are given, in seconds of one clock."""

    def __init__(self, now: float) -> None:
        self._sign = now
        self._looked = now
        self._saved = MAX_SAVED
        self._heard = False  # the write of the last commit

    def pause(
        self, now: float, *, written: bool, changed: bool, reported: bool, heard: bool = False
    ) -> float:
        """Seconds until the next look, after one at `now`.

        `written`: the log was, since the look before. `changed`: the look found a commit, whose
        write was `heard`. `reported`: writes are reported at all.
        """
        if changed:
            self._heard = heard
        if written or (changed and not reported):
            self._sign = now  # a write beside a commit may belong to the next one: look again
        elif changed:
            self._sign = float("-inf")  # whatever was written has become the commit that was seen
        pace = HEARD if self._heard else REPORTED
        share, shortest, longest = pace if reported else POLLED
        pause = min(max((now - self._sign) * share, shortest), longest)
        self._saved = min(self._saved + (now - self._looked) / LOADED_SECONDS, MAX_SAVED) - 1
        self._looked = now
        return pause if self._saved > 0 else max(pause, LOADED_SECONDS)


class LogWrites:
    """Waits for writes to one file, which may go and come back (Linux; OSError elsewhere)."""

    IN_MODIFY = 0x2

    def __init__(self, path: Path) -> None:
        if sys.platform != "linux":
            raise OSError(f"{sys.platform} has no inotify")
        self._path = os.fsencode(path)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify gives out no more instances")
        self._interruption = os.eventfd(0)
        self._interrupted = select.poll()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        for poll in (self._poll, self._interrupted):
            poll.register(self._interruption, select.POLLIN)

    def aim(self) -> bool:
        """Watch the file that has the name now; whether that is possible.

        For the file that is watched already nothing changes; a watch on a deleted file ends itself.
        """
        return bool(self._libc.inotify_add_watch(self._fd, self._path, self.IN_MODIFY) >= 0)

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until a write; whether there was one since the last call.

        Less than a millisecond, too little for poll(), is slept in full.
        """
        if seconds < 0.001:
            time.sleep(seconds)
        else:
            self._wait(self._poll, seconds)
        try:
            return bool(os.read(self._fd, 4096))  # which events they are does not matter
        except BlockingIOError:
            return False

    def rest(self, seconds: float) -> None:
        """Wait so long, whatever is written."""
        self._wait(self._interrupted, seconds)

    def _wait(self, poll: select.poll, seconds: float) -> None:
        if any(fd == self._interruption for fd, _ in poll.poll(int(seconds * 1000))):
            os.eventfd_read(self._interruption)

    def interrupt(self) -> None:
        """End the waiting of another thread, or else its next one."""
        os.eventfd_write(self._interruption, 1)

    def close(self) -> None:
        """Stop watching. No thread may be waiting."""
        os.close(self._fd)
        os.close(self._interruption)


def watch(
    connect: Callable[[], sqlite3.Connection],
    wal: Path,
    notify: Notify,
    stop: threading.Event,
    attention: Attention | None = None,
) -> None:
    """Call `notify` at the start and after every commit, this process's too, until `stop` is set.

    Call it once more if the commit may bring work, and for each worker whose running job it has
    cancelled. While `attention` says that no subscriber waits, call it for cancels only, and later.
    `wal` is the write-ahead log of the file that `connect` opens. Commits in quick succession may
    share one call. Database errors are logged and end nothing.
    """
    attention = attention or Attention()
    try:
        writes = LogWrites(wal)
    except OSError as error:
        log.info("writes to %s are not reported, so it is polled: %s", wal, error)
        _look_until(stop, connect, None, notify, attention)
        return
    given = (stop, connect, writes, notify, attention)
    looking = threading.Thread(target=_look_until, args=given, name="tenure-look", daemon=True)
    attention.wake_by(writes.interrupt)
    try:
        looking.start()
    except RuntimeError as error:  # a limit of the machine
        log.warning("new jobs are noticed by polling only: %s", error)
        attention.wake_by(None)
        writes.close()
        _look_until(stop, connect, None, notify, attention)
        return
    stop.wait()  # here, because poll() cannot wait for an Event as well
    writes.interrupt()
    looking.join()
    attention.wake_by(None)
    writes.close()


def _look_until(
    stop: threading.Event,
    connect: Callable[[], sqlite3.Connection],
    writes: LogWrites | None,
    notify: Notify,
    attention: Attention,
) -> None:
    failing = False
    while not stop.is_set():
        try:
            with closing(connect()) as connection:
                failing = False
                _look_on(stop, connection, writes, notify, attention)
        except AWAY as error:
            if not failing:
                log.warning("cannot see what other processes commit, trying again: %s", error)
            failing = True
            stop.wait(TRY_AGAIN_SECONDS)


def _look_on(
    stop: threading.Event,
    connection: sqlite3.Connection,
    writes: LogWrites | None,
    notify: Notify,
    attention: Attention,
) -> None:
    """Look until `stop` is set, or raise sqlite3.Error. The first look finds a commit, in case."""
    looks = Looks(time.monotonic())
    (place,) = connection.execute("SELECT coalesce(max(seq), 0) FROM tenure_transition").fetchone()
    pause, reported, heard, known = 0.0, False, False, None
    while not stop.is_set():
        if writes and reported and not attention.is_needed:
            writes.rest(REST_SECONDS)
            pause = 0.0 if attention.is_new or stop.is_set() else pause
        written = writes.wait(pause) if writes and reported else stop.wait(pause)
        heard = heard or written
        (version,) = connection.execute("PRAGMA data_version").fetchone()
        changed = version != known
        if changed or attention.is_new:
            _notify_of_work(connection, notify, attention)
        if known is None:
            notify(None)  # also of what came before `place`
        elif changed:
            notify(COMMIT)
            for seq, worker in connection.execute(CANCELLED, (place,)):
                place = seq
                notify(worker)
        known = version
        now = time.monotonic()
        pause = looks.pause(now, written=written, changed=changed, reported=reported, heard=heard)
        if writes and changed and not heard:  # the log is new
            reported = writes.aim()
            pause = 0.0  # something may have come before that
        if changed:
            heard = written


def _notify_of_work(connection: sqlite3.Connection, notify: Notify, attention: Attention) -> None:
    """Notify subscribers who wait for work if there may be some, for them or others."""
    attention.is_new = False  # first: who begins to wait meanwhile needs another look
    if attention.is_needed and connection.execute(SOON).fetchone()[0]:
        notify(WORK)


# --- the reader -----------------------------------------------------------------------------------

T = TypeVar("T")

MAX_IDLE = 8
"""Connections that are kept for later reads: each may hold 64 MiB of the file in memory."""
TABLES = ("tenure_job", "tenure_transition")

# Lane by lane: in each the due jobs come first, so no other job is met.
AHEAD = f"""
WITH RECURSIVE lane (priority) AS (
    SELECT min(priority) FROM tenure_job WHERE status = 'pending' AND queue = :queue
    UNION ALL
    SELECT (SELECT min(priority) FROM tenure_job
        WHERE status = 'pending' AND queue = :queue AND priority > lane.priority)
    FROM lane WHERE lane.priority < :priority
)
SELECT count(*) FROM (
    SELECT 1 FROM lane CROSS JOIN tenure_job AS job
    WHERE lane.priority < :priority AND job.status = 'pending' AND job.queue = :queue
        AND job.priority = lane.priority AND job.run_at <= (SELECT at FROM tenure_now)
    UNION ALL
    SELECT 1 FROM tenure_job AS job
    WHERE job.status = 'pending' AND job.queue = :queue AND job.priority = :priority
        AND (job.run_at, job.id) < (:run_at, :id)
    LIMIT {MAX_AHEAD + 1})
"""


GATHERED_BY = {Status.PENDING: "tenure_job_ready", Status.PROCESSING: "tenure_job_lease"}
"""The index of all jobs in a status, where they may be few."""


TAGGED = "tenure_tag AS tagged CROSS JOIN tenure_job AS job ON job.id = tagged.job_id"


class SqliteReader(Reader):
    """Read connections to one file."""

    dialect = DIALECT
    heads = HEADS
    ahead_sql = AHEAD
    sees_commits = True
    spares_writer = True  # there is one at a time
    questions = (*audit.QUERIES, *audit.ON_SQLITE)
    more_checks = ("tables and indexes",)

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        self._attention = Attention()

    @contextmanager
    def connected(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = connect(self._path)
        try:
            yield connection
        finally:
            with self._lock:
                kept = not self._closed and len(self._idle) < MAX_IDLE
                if kept:
                    self._idle.append(connection)
            if not kept:
                connection.close()

    def rows(self, statement: str, values: Any = ()) -> list[Any]:
        return self._ask(statement, values, list)

    def read_through(self, statement: str, read: Callable[[Iterable[Any]], T]) -> T:
        return self._ask(statement, (), read)

    def _ask(self, statement: str, values: Any, read: Callable[[Iterable[Any]], T]) -> T:
        try:
            with self.connected() as connection:
                try:
                    return read(connection.execute(statement, values))
                except sqlite3.OperationalError as error:
                    if not str(error).startswith("Could not decode"):
                        raise
                    connection.text_factory = escaped  # twice as slow: only where it is needed
                    return read(connection.execute(statement, values))
        except AWAY as error:
            why = str(error) or type(error).__name__
            raise StoreUnavailable(f"the database {self._path} did not answer: {why}") from error

    def some(self, query: Query) -> tuple[list[Job], bool]:
        if query.gather:  # the ids first: SQLite would sort the payloads with them
            ids = self.rows(*self.listing("id", query))
            found = (self.get(id) for (id,) in ids)
            return filled((job for job in found if job is not None), query.limit)
        statement, values = self.listing(self._job, query)
        return self._ask(
            statement,
            values,
            lambda rows: filled((job_of(row, to_time) for row in rows), query.limit),
        )

    @staticmethod
    def listing(what: str, query: Query) -> Statement:
        """Select `what` of the jobs of a query, in its order.

        The status is a literal: partial indexes need it. A plus keeps the planner from using an
        index: that of the ids where the jobs of a status are gathered and sorted, those of the
        status elsewhere.
        """
        parts, values = ["1"], list[Any]()

        def add(part: str, value: Any) -> None:
            if value is not None:
                parts.append(part)
                values.append(value)

        if query.status is not None:
            by_index = query.gather or (query.status in ENDED and not query.is_narrow)
            column = "status" if by_index else "+status"
            parts.append(f"{column} = {quoted(Status(query.status))}")
            if query.status in ENDED:  # SQLite knows a partial index only by its own condition
                parts.append(f"status IN ({quoted(*ENDED)})")
        if query.among:
            parts.append(f"status IN ({quoted(*query.among)})")
        for part, given in others(DIALECT, query):
            parts.append(part)
            values += given
        key = "+id" if query.gather else "id" if query.tag is None else "tagged.job_id"
        add("tagged.tag = ?", query.tag)
        add(f"{'+' if query.tag else ''}workflow = ?", query.workflow)
        after, before = between(query)
        # One bound on each side: SQLite searches by the first and only tests the second.
        down = query.through is not None and not query.oldest_first
        up = query.through is not None and query.oldest_first
        add(f"{key} >= ?" if down else f"{key} > ?", query.through if down else after)
        add(f"{key} <= ?" if up else f"{key} < ?", query.through if up else before)
        table = "tenure_job" if query.tag is None else TAGGED
        if query.gather:
            table = SqliteReader.gathered(Status(query.status or ""))
        order = f"{key} {'ASC' if query.oldest_first else 'DESC'}"
        where = " AND ".join(parts)
        limit = int(query.limit)
        return f"SELECT {what} FROM {table} WHERE {where} ORDER BY {order} LIMIT {limit}", values

    @staticmethod
    def gathered(status: Status) -> str:
        return f"tenure_job INDEXED BY {GATHERED_BY[status]}"

    def violations(
        self, limit: int, progress: Progress = no_progress, seen: Callable[[str], object] = no_note
    ) -> list[tuple[str, str, str]]:
        found = super().violations(limit, progress, seen)
        try:
            with closing(connect(self._path)) as connection:
                return found + _unsound(connection)[:limit]
        except AWAY as error:
            raise StoreUnavailable(f"the database {self._path} did not answer: {error}") from error

    def watch(self, notify: Notify, stop: threading.Event) -> None:
        wal = self._path.with_name(self._path.name + "-wal")
        self.hears = True
        watch(lambda: connect(self._path), wal, notify, stop, self._attention)
        self.hears = False

    def attend(self, needed: bool) -> None:
        self._attention.set(needed)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for connection in self._idle:
                connection.close()
            self._idle.clear()


def _unsound(connection: sqlite3.Connection) -> list[audit.Finding]:
    """What SQLite finds when it compares our tables with their indexes, page by page."""
    connection.execute("PRAGMA ignore_check_constraints = ON")  # the questions say more about rows
    return [
        (audit.SOUND, "", message)
        for table in TABLES
        for (message,) in connection.execute(f"PRAGMA integrity_check({table})")
        if message != "ok"
    ]
