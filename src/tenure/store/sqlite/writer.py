"""The writing side of the SQLite store: every commit is on disk before it is acknowledged.

`Marks` say how far retention has come where types or queues have rules, or jobs cannot be deleted.
What stays longer than others lies at the front of the only index of settled jobs. So a batch begins
where the last one ended, and a new round at the front begins every hour, or with other rules. It
finds what has become due, and what was needed by others.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec

from tenure.lifecycle import Job, Status
from tenure.rules.jobs import CheckedJob
from tenure.rules.reports import ClaimRequest, Lease, Report
from tenure.rules.retention import Cutoffs, RetentionRule
from tenure.store.constraints import quoted
from tenure.store.database import ELSEWHERE, Left, Passed, Trouble
from tenure.store.lanes import Lanes, next_due
from tenure.store.refusals import Kind, Refused, delete
from tenure.store.rows import (
    ADDED,
    CHANGED,
    added_job,
    as_json,
    changed_values,
    field_of,
    job_of,
    write_policy,
)
from tenure.store.sqlite import connection
from tenure.store.sqlite import statements as sql
from tenure.store.sqlite.claim import SqliteClaim, SqliteLaneView
from tenure.store.tables.stats import StatsWriter

ROUND = timedelta(hours=1)
Mark = tuple[int, int]
"""The time at which a job settled, and its rowid."""
FRONT: Mark = (0, 0)


class Marks:
    """The place of the last batch, by status and by how much longer jobs were kept."""

    def __init__(self) -> None:
        self._marks: dict[tuple[str, timedelta], Mark] = {}
        self._rules: tuple[RetentionRule, ...] = ()
        self._since: datetime | None = None
        self._refused = False

    def are_needed(self, cutoffs: Cutoffs) -> bool:
        """Whether jobs may lie at the front that stay."""
        return bool(cutoffs.rules.every) or (self._refused and self._is_in_round(cutoffs))

    def refused(self, cutoffs: Cutoffs) -> None:
        """Note that the database refused to delete a job: a new round begins."""
        self._begin(cutoffs)
        self._refused = True

    def start(self, cutoffs: Cutoffs) -> Mark:
        """Return the place after which the next batch begins."""
        if not self._is_in_round(cutoffs):
            self._begin(cutoffs)
        return self._marks.get((cutoffs.status, cutoffs.wait), FRONT)

    def _is_in_round(self, cutoffs: Cutoffs) -> bool:
        if self._since is None or cutoffs.rules.every != self._rules:
            return False
        return self._since <= cutoffs.now < self._since + ROUND

    def _begin(self, cutoffs: Cutoffs) -> None:
        self._marks, self._rules, self._since = {}, cutoffs.rules.every, cutoffs.now
        self._refused = False

    def end(self, cutoffs: Cutoffs, mark: Mark) -> None:
        self._marks[cutoffs.status, cutoffs.wait] = mark


# --- the writer -----------------------------------------------------------------------------------

_read_jobs = msgspec.json.Decoder(list[list[Any]]).decode
_added_values = attrgetter(*ADDED)
_changed_values = attrgetter(*map(field_of, CHANGED))
_guard_values = attrgetter(*sql.GUARD)


class Sqlite:
    """The writing connection to one database file; see `Database`. It connects when it is used."""

    dialect = sql.DIALECT
    alone = None

    def __init__(
        self,
        path: Path,
        connect: Callable[[Path], sqlite3.Connection] = connection.connect_writer,
        patience: float | None = None,
    ) -> None:
        """`patience` is how many seconds an `enqueue_alone` waits for other writers."""
        self.full_at = -math.inf
        self._path = path
        self._connect = connect
        self._patience = patience
        self._connection: sqlite3.Connection | None = None
        self._files: connection.Files | None = None
        self._other: Sqlite | None = None
        self._in_place = False  # the files were, when the last transaction began
        self._now: datetime | None = None
        self._checkpoints = connection.Checkpoints(path)
        self._lanes = Lanes(SqliteLaneView)
        self.stats = StatsWriter(self)
        self._marks = Marks()
        self.passed: dict[Sequence[str], Passed] = {}
        self.left = Left()

    # --- transactions

    def begin(self, *, limits: bool = False) -> None:
        connection.begin_writing(self._connected())
        self._check_files()
        self._now = None

    def beside(self) -> Sqlite:
        """Return a second connection, whose `enqueue_alone` waits for no other writer."""
        other = Sqlite(self._path, self._connect, patience=0)
        self._other, other._other = other, self
        return other

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            if self._other is not None and self._other._files is not None:
                self._other._files.check()  # where there is no file it would begin one
            self._connection = self._connect(self._path)
        return self._connection

    def _check_files(self) -> None:
        self._in_place = False
        if self._files is None:
            self._files = connection.Files(self._path)
        self._files.check()
        self._in_place = True

    def commit(self) -> None:
        self._db.execute("COMMIT")

    def rollback(self) -> None:
        if self._connection is None:
            return
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except connection.AWAY:
            self.close()

    def savepoint(self) -> None:
        self._db.execute("SAVEPOINT tenure")

    def undo_to_savepoint(self) -> None:
        self._db.execute("ROLLBACK TO tenure")

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise sqlite3.OperationalError("not connected")
        return self._connection

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._db.execute(statement, values).fetchall()

    def changed(self, statement: str, values: Sequence[Any] = ()) -> int:
        return self._db.execute(statement, values).rowcount

    def _changed_each(
        self, statement: sql.OverRows, rows: Sequence[tuple[Any, ...]], *values: Any
    ) -> list[bool]:
        """Execute a statement over all rows; return for each of them whether it changed something.

        All at once. Only if one changed nothing, that is undone and repeated row by row.
        """
        self._db.execute("SAVEPOINT tenure_each")
        if self._changed_by(statement, rows, *values) == len(rows):
            self._db.execute("RELEASE tenure_each")
            return [True] * len(rows)
        self._db.execute("ROLLBACK TO tenure_each")
        self._db.execute("RELEASE tenure_each")
        return [self._changed_by(statement, [row], *values) == 1 for row in rows]

    def _changed_by(
        self, statement: sql.OverRows, rows: Sequence[tuple[Any, ...]], *values: Any
    ) -> int:
        """Execute a statement over all rows; return how many it changed."""
        return sum(
            self._db.execute(text, parameters).rowcount
            for text, parameters in sql.calls(statement, rows, *values)
        )

    def now(self) -> datetime:
        """The clock, read once per transaction."""
        if self._now is None:
            self._now = connection.to_time(
                self._db.execute(f"SELECT {connection.NOW}").fetchone()[0]
            )
        return self._now

    # --- adding

    def insert(
        self, checked_jobs: Sequence[CheckedJob], more: Sequence[str] = ()
    ) -> Mapping[str, Job]:
        now = self.now()
        stored = connection.to_millis(now)
        jobs = [added_job(a, now, due(a, now), kept=connection.kept) for a in checked_jobs]
        rows = [
            (
                *_added_values(checked_job),
                write_policy(job.backoff),
                stored,
                stored if job.run_at is now else connection.to_millis(job.run_at),
                job.start_by and connection.to_millis(job.start_by),
            )
            for job, checked_job in zip(jobs, checked_jobs, strict=True)
        ]
        if more:
            added = zip(rows, checked_jobs, strict=True)
            rows = [(*row, *[getattr(a, column) for column in more]) for row, a in added]
        made = self._changed_each(sql.insert_with(tuple(more)), rows)
        return {job.id: job for job, new in zip(jobs, made, strict=True) if new}

    def enqueue_alone(
        self, checked_jobs: Sequence[CheckedJob], *, whole: bool
    ) -> Mapping[str, Job]:
        (checked_job,) = checked_jobs
        if checked_job.traceparent or not checked_job.simple:
            return {}  # that is another table, and so a transaction of several statements
        run_at, start_by = checked_job.run_at, checked_job.start_by
        said = (
            *_added_values(checked_job),
            write_policy(checked_job.backoff),
            run_at and connection.to_millis(run_at),
            None if run_at else round(checked_job.delay * 1000),
            start_by and connection.to_millis(start_by),
            checked_job.start_within and round(checked_job.start_within * 1000),
        )
        given = {n: value for n, value in zip(sql.ONE, said, strict=True) if value is not None}
        values = [*given.values(), checked_job.queue]
        statement = sql.insert_one(tuple(given))
        db = self._connected()

        def insert() -> list[tuple[int, int]]:
            self._check_files()
            # To its end, which is the commit, in one call: nothing interrupts that.
            (found,) = map(list, map(db.execute, [statement], [values]))
            return found

        found = connection.when_free(insert, patience=self._patience, path=self._path)
        added = [
            added_job(checked_job, *map(connection.to_time, times), kept=connection.kept)
            for times in found
        ]
        return {job.id: job for job in added}

    def known(self, checked_jobs: Sequence[CheckedJob]) -> Mapping[str, tuple[Job, str | None]]:
        return {
            a.id: (job_of(row, connection.to_time), row[-1])
            for a in checked_jobs
            for row in self.rows(sql.KNOWN, (a.idempotency_key, a.id, a.id))
        }

    def limits(self, queues: Collection[str]) -> list[tuple[str, int]]:
        return [row for row in self.rows(sql.LIMITED) if row[0] in queues]

    # --- the hot path

    def complete(self, reports: Sequence[Report]) -> set[str]:
        now = connection.to_millis(self.now())
        rows = [(r.job_id, r.lease_id, r.result, r.actor) for r in reports]
        done = self._changed_each(sql.COMPLETE, rows, now)
        return {r.lease_id for r, accepted in zip(reports, done, strict=True) if accepted}

    def claim(self, request: ClaimRequest, *, wary: bool = False) -> list[Lease]:
        view = self._lanes.view(request)
        claim = SqliteClaim(self._db, request, self.now(), view, self if wary else None)
        return self._lanes.claim(request, claim)

    def next_due(self, request: ClaimRequest) -> float | None:
        view = self._lanes.view(request)
        return next_due(request, view, SqliteClaim(self._db, request, self.now(), view))

    def keep_traces(self, traces: Sequence[tuple[str, str]]) -> None:
        self._db.executemany(
            "INSERT OR IGNORE INTO tenure_trace (job_id, traceparent) VALUES (?, ?)", traces
        )

    def traces(self, job_ids: Sequence[str]) -> Mapping[str, str]:
        return dict(self.rows(sql.TRACES, (as_json(job_ids),)))

    # --- load and save

    def hold(self, job_ids: Iterable[str]) -> None:
        """Do nothing: a transaction that writes locks the whole file."""

    def lock(self, job_ids: Sequence[str]) -> Mapping[str, Job]:
        jobs: dict[str, Job] = {}
        for start in range(0, len(job_ids), sql.MAX_LOADED):
            ids = as_json(job_ids[start : start + sql.MAX_LOADED])
            (text,) = self._db.execute(sql.LOCK, (ids,)).fetchone()
            loaded = (job_of(row, connection.to_time) for row in _read_jobs(text))
            jobs.update({job.id: job for job in loaded})
        return jobs

    def busy(self, job_ids: Sequence[str]) -> set[str]:
        return set()  # no other transaction writes while this one does

    def lock_expired(self, limit: int, after: int = 0) -> list[Job]:
        rows = self.rows(sql.EXPIRED, (connection.to_millis(self.now()), limit, after))
        return [job_of(row, connection.to_time) for row in rows]

    def lock_late(self, limit: int, after: int = 0) -> list[Job]:
        rows = self.rows(sql.LATE, (connection.to_millis(self.now()), limit, after))
        return [job_of(row, connection.to_time) for row in rows]

    def save(self, changes: Sequence[tuple[Job, Job]], more: Sequence[str] = ()) -> int:
        waiting = [pair for pair in changes if pair[0].status is Status.WAITING]
        if waiting and len(changes) > 1:
            # Each end changes its followers at once, and one statement would not see that.
            last_first = sorted(waiting, key=lambda pair: pair[0].id, reverse=True)
            others = [pair for pair in changes if pair[0].status is not Status.WAITING]
            return sum(self.save([pair], more) for pair in last_first) + self.save(others, more)
        rows = [
            _stored(
                *(before.id, *_guard_values(before), *_changed_values(after)),
                *changed_values(after, more),
            )
            for before, after in changes
        ]
        return self._changed_by(sql.save_with(tuple(more)), rows)

    def settled_as(self, leases: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], str]:
        return {lease: event for lease in leases for (event,) in self.rows(sql.SETTLED_AS, lease)}

    def renew(self, leases: Sequence[tuple[str, str]], lease_seconds: float) -> set[str]:
        until = connection.to_millis(self.now() + timedelta(seconds=lease_seconds))
        return {lease_id for (lease_id,) in self.rows(sql.RENEW, (until, as_json(leases)))}

    def delete_settled(
        self, cutoffs: Cutoffs, until: int, place: Sequence[int], limit: int
    ) -> tuple[Counter[Kind], int, Refused]:
        if cutoffs.latest is None:
            return Counter(), 0, []
        latest, status = connection.to_millis(cutoffs.latest), quoted(Status(cutoffs.status))
        if not self._marks.are_needed(cutoffs):
            statement = sql.DELETABLE.replace("{status}", status)
            found = self.rows(statement, (latest, until, *place, limit))
            gone, refused = delete(self, found)
            if refused:  # they are at the front of the index
                self._marks.refused(cutoffs)
            return gone, len(refused), refused
        bounds = (latest, until, *self._marks.start(cutoffs))
        rows = self.rows(sql.SETTLED.replace("{status}", status), bounds)
        due = list[int]()
        for number, (finished_at, rowid, queue, type) in enumerate(rows):
            before = cutoffs.of(queue, type)
            if before is not None and finished_at < connection.to_millis(before):
                if len(due) == limit:
                    rows = rows[:number]
                    break
                due.append(rowid)
        found = self.rows(sql.DELETABLE_OF, (as_json(due), *place)) if due else []
        gone, refused = delete(self, found)
        if rows:
            self._marks.end(cutoffs, rows[-1][:2])
        return gone, len(rows) - gone.total(), refused

    # --- after a transaction

    def trouble(self, error: Exception) -> Trouble:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without what SQLite adds in detail
        if code in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
            self._checkpoints.make_due()
            self.full_at = time.monotonic()
        if code == sqlite3.SQLITE_READONLY:
            error.args = (f"{error.args[0]}: {connection.READ_ONLY}",)
        if str(error).startswith(ELSEWHERE):
            return Trouble.MOVED
        if isinstance(error, sqlite3.IntegrityError):
            return Trouble.REFUSED
        if isinstance(error, sqlite3.ProgrammingError):
            return Trouble.BUG
        if code == sqlite3.SQLITE_BUSY:
            return Trouble.BUSY
        if code == sqlite3.SQLITE_FULL:
            return Trouble.FULL
        return Trouble.UNAVAILABLE if isinstance(error, connection.AWAY) else Trouble.BUG

    def announce(self) -> None:
        """Do nothing: other processes watch the file (`SqliteReader.watch`)."""

    def tidy(self, others: int = 0) -> None:
        """Checkpoint where the library needs that, or where it may make room."""
        self._checkpoints.note(others)
        if self._connection is not None and self._in_place:
            self._checkpoints.run(self._connection)

    def rest(self) -> None:
        """Do nothing: an open file costs no server a connection."""

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._checkpoints.close()
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
        self._files, self._in_place = None, False


def due(checked_job: CheckedJob, now: datetime) -> datetime:
    """When a job that is added now is to run; in bulk nearly all run at once."""
    if checked_job.run_at is None and checked_job.delay == 0:
        return now
    return connection.kept(checked_job.run_at or now + timedelta(seconds=checked_job.delay))


def _stored(*values: Any) -> tuple[Any, ...]:
    return tuple([connection.to_millis(v) if isinstance(v, datetime) else v for v in values])
