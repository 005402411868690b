"""The embedded store: SQLite in WAL mode, every commit on disk before it is acknowledged."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from tenure import failpoints
from tenure.jobs.checked_job import CheckedJob
from tenure.jobs.reserved import serves
from tenure.jobs.work import ClaimRequest, Lease, Report
from tenure.lifecycle import Job, Status
from tenure.store import constraints as guards
from tenure.store.protocol import Trouble
from tenure.store.rows import (
    COLUMNS,
    MOVED,
    TIMES,
    added_job,
    job_of,
    write_names,
    write_policy,
)
from tenure.store.sqlite import statements as sql
from tenure.store.sqlite.connection import (
    NOW,
    Checkpoints,
    begin_writing,
    connect_writer,
    kept,
    to_millis,
    to_time,
)
from tenure.store.sqlite.files import Files
from tenure.store.tables import bulk as bulk_table
from tenure.store.tables import stats_sql as measure_words
from tenure.store.tables import webhooks
from tenure.store.tables.bulk import BulkTable
from tenure.store.tables.stats import Measures
from tenure.store.tables.tokens import SQLITE, TokenTable
from tenure.store.tables.webhooks import WebhookTable

_read_picked = msgspec.json.Decoder(
    list[tuple[int, str, str, str, str, int, int, int, float | None]]
).decode
_read_jobs = msgspec.json.Decoder(list[list[Any]]).decode


class Sqlite:
    """The writing connection to one database file; see `Database`."""

    def __init__(
        self, path: Path, connect: Callable[[Path], sqlite3.Connection] = connect_writer
    ) -> None:
        self._path = path
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._files: Files | None = None
        self._in_place = False  # the files were, when the last transaction began
        self._now: datetime | None = None
        self._last_queue = ""
        self._checkpoints = Checkpoints(path)
        self.tokens = TokenTable(SQLITE, self._execute)
        self.measures = Measures(measure_words.SQLITE, self._execute)
        self.bulks = BulkTable(bulk_table.SQLITE, self._execute)
        self.webhooks = WebhookTable(webhooks.SQLITE, self._execute)

    # --- transactions

    def begin(self) -> None:
        if self._connection is None:
            self._connection = self._connect(self._path)
        begin_writing(self._connection)
        self._in_place = False
        if self._files is None:
            self._files = Files(self._path)
        self._files.check()
        self._in_place = True
        self._now = None

    def commit(self) -> None:
        self._db.execute("COMMIT")

    def rollback(self) -> None:
        if self._connection is None:
            return
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
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

    def _execute(self, statement: str, values: Sequence[Any]) -> sqlite3.Cursor:
        return self._db.execute(statement, values)

    def _each(
        self, statement: sql.OverRows, rows: Sequence[tuple[Any, ...]], *values: Any
    ) -> list[bool]:
        """Run a statement over all rows; which of them changed something.

        All at once. Only if some row changed nothing is that undone and told row by row.
        """
        self._db.execute("SAVEPOINT tenure_each")
        if self._changed(statement, rows, *values) == len(rows):
            self._db.execute("RELEASE tenure_each")
            return [True] * len(rows)
        self._db.execute("ROLLBACK TO tenure_each")
        self._db.execute("RELEASE tenure_each")
        return [self._changed(statement, [row], *values) == 1 for row in rows]

    def _changed(
        self, statement: sql.OverRows, rows: Sequence[tuple[Any, ...]], *values: Any
    ) -> int:
        """Run a statement over all rows; how many it changed."""
        return sum(
            self._db.execute(text, parameters).rowcount
            for text, parameters in statement.calls(rows, *values)
        )

    def now(self) -> datetime:
        """The clock, read once per transaction."""
        if self._now is None:
            self._now = to_time(self._db.execute(f"SELECT {NOW}").fetchone()[0])
        return self._now

    # --- adding

    def insert(self, checked_jobs: Sequence[CheckedJob]) -> Mapping[str, Job]:
        now = self.now()
        stored = to_millis(now)
        jobs = [added_job(a, now, _due(a, now)) for a in checked_jobs]
        rows = [
            _insert_row(job, checked_job.fingerprint, now, stored)
            for job, checked_job in zip(jobs, checked_jobs, strict=True)
        ]
        made = self._each(sql.INSERT, rows)
        return {job.id: job for job, new in zip(jobs, made, strict=True) if new}

    def insert_alone(self, checked_jobs: Sequence[CheckedJob], *, whole: bool) -> Mapping[str, Job]:
        """Nothing: here a transaction of several statements costs no round trips."""
        return {}

    def known(self, checked_jobs: Sequence[CheckedJob]) -> Mapping[str, tuple[Job, str | None]]:
        found = {}
        for checked_job in checked_jobs:
            row = self._db.execute(
                f"SELECT {', '.join(COLUMNS)}, fingerprint FROM tenure_job"
                " WHERE idempotency_key = ? OR id = ? ORDER BY id <> ? LIMIT 1",
                (checked_job.idempotency_key, checked_job.id, checked_job.id),
            ).fetchone()
            if row is not None:
                found[checked_job.id] = (job_of(row, to_time), row[-1])
        return found

    def full_queues(self, wanted: Mapping[str, int]) -> Mapping[str, int]:
        limited = self._db.execute(
            "SELECT name, max_pending FROM tenure_queue WHERE max_pending IS NOT NULL"
        ).fetchall()
        full = {}
        for name, limit in limited:
            if name in wanted:
                (pending,) = self._db.execute(
                    "SELECT count(*) FROM (SELECT 1 FROM tenure_job"
                    " WHERE status = 'pending' AND queue = ? LIMIT ?)",
                    (name, limit),
                ).fetchone()
                if pending + wanted[name] > limit:
                    full[name] = limit
        return full

    # --- the hot path

    def complete(self, reports: Sequence[Report]) -> set[str]:
        now = to_millis(self.now())
        rows = [(r.job_id, r.lease_id, r.result, r.actor) for r in reports]
        done = self._each(sql.COMPLETE, rows, now)
        return {r.lease_id for r, accepted in zip(reports, done, strict=True) if accepted}

    def claim(self, request: ClaimRequest) -> list[Lease]:
        now = self.now()
        until = kept(now + timedelta(seconds=request.lease_seconds))
        values = {"now": to_millis(now), "worker": request.worker}
        types = ""
        if request.types is not None:
            types = "AND type IN (SELECT value FROM json_each(:types))"
            values["types"] = _json(request.types)
        pick = sql.PICK.format(types=types)
        leases: list[Lease] = []
        for queue, priority in self._lanes(request.queues):
            values |= {"queue": queue, "priority": priority, "limit": request.limit - len(leases)}
            leased = self._claim_lane(pick, values, until)
            leases += leased
            if leased:
                self._last_queue = queue
            if len(leases) >= request.limit:
                break
        return leases

    def _claim_lane(self, pick: str, values: dict[str, Any], until: datetime) -> list[Lease]:
        try:
            (text,) = self._db.execute(pick, values).fetchone()
        except sqlite3.DataError:  # more payload than one value of SQLite holds: take fewer jobs
            if values["limit"] == 1:
                raise
            fewer = values | {"limit": max(values["limit"] // 8, 1)}
            return self._claim_lane(pick, fewer, until)
        picked = _read_picked(text)
        if not picked:
            return []
        chance = os.urandom(16 * len(picked)).hex()
        secrets = [chance[at : at + 32] for at in range(0, len(chance), 32)]
        taken = [(row[0], lease_id) for row, lease_id in zip(picked, secrets, strict=True)]
        holder = values["worker"]
        self._changed(sql.CLAIM, taken, to_millis(until), values["now"], holder, holder)
        return [
            Lease(id, type, queue, payload, attempts, max_retries, token, timeout, lease_id, until)
            for (
                _,
                id,
                type,
                queue,
                payload,
                attempts,
                max_retries,
                token,
                timeout,
            ), lease_id in zip(picked, secrets, strict=True)
        ]

    def _lanes(self, queues: tuple[str, ...] | None) -> Iterable[tuple[str, int]]:
        """Queues and priorities with pending jobs: urgent first, queues of one urgency in turn."""
        paused = {
            name
            for (name,) in self._db.execute(
                "SELECT name FROM tenure_queue WHERE paused_at IS NOT NULL"
            )
        }
        now = to_millis(self.now())
        lanes: list[tuple[str, int]] = []
        lane = {"queue": "", "priority": 0}
        while found := self._db.execute(sql.NEXT_LANE, lane).fetchone():
            queue, priority, due_at = found
            lane = {"queue": queue, "priority": priority}
            wanted = queue not in paused and serves(queues, queue)
            if wanted and due_at <= now:
                lanes.append((queue, priority))
        return sorted(lanes, key=lambda lane: (lane[1], lane[0] <= self._last_queue, lane[0]))

    def claim_alone(self, request: ClaimRequest) -> list[Lease] | None:
        """None: here a transaction of several statements costs no round trips."""
        return None

    def keep_traces(self, traces: Sequence[tuple[str, str]]) -> None:
        self._db.executemany("INSERT OR IGNORE INTO tenure_trace VALUES (?, ?)", traces)

    def traces(self, job_ids: Sequence[str]) -> Mapping[str, str]:
        statement = (
            "SELECT job_id, traceparent FROM tenure_trace"
            " WHERE job_id IN (SELECT value FROM json_each(?))"
        )
        return dict(self._db.execute(statement, (_json(job_ids),)).fetchall())

    # --- load and save

    def lock(self, job_ids: Sequence[str]) -> Mapping[str, Job]:
        jobs: dict[str, Job] = {}
        for start in range(0, len(job_ids), sql.MAX_LOADED):
            ids = _json(job_ids[start : start + sql.MAX_LOADED])
            (text,) = self._db.execute(sql.LOCK, (ids,)).fetchone()
            loaded = (job_of(row, to_time) for row in _read_jobs(text))
            jobs.update({job.id: job for job in loaded})
        return jobs

    def lock_expired(self, limit: int) -> list[Job]:
        rows = self._db.execute(sql.EXPIRED, (to_millis(self.now()), limit))
        return [job_of(row, to_time) for row in rows]

    def save(self, changes: Sequence[tuple[Job, Job]]) -> int:
        rows = [
            (
                before.id,
                before.status,
                before.token,
                before.lease_id,
                _stored(before.lease_expires_at),
                *_moved(after),
            )
            for before, after in changes
        ]
        return self._changed(sql.SAVE, rows)

    def settled_as(self, leases: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], str]:
        found = {}
        for lease in leases:
            if row := self._db.execute(sql.SETTLED_AS, lease).fetchone():
                found[lease] = row[0]
        return found

    def renew(self, leases: Sequence[tuple[str, str]], lease_seconds: float) -> set[str]:
        until = to_millis(self.now() + timedelta(seconds=lease_seconds))
        held = self._db.execute(sql.RENEW, (until, _json(leases))).fetchall()
        return {lease_id for (lease_id,) in held}

    # --- around jobs

    def see_worker(self, request: ClaimRequest) -> None:
        self._db.execute(
            f"INSERT INTO tenure_worker (id, label, queues, types, seen_at)"
            f" VALUES (?, ?, ?, ?, {NOW}) ON CONFLICT (id) DO UPDATE SET"
            " seen_at = excluded.seen_at, queues = excluded.queues, types = excluded.types",
            (
                request.worker,
                request.label,
                write_names(request.queues),
                write_names(request.types),
            ),
        )

    def set_queue(
        self, name: str, *, paused: bool | None, max_pending: int | None, actor: str
    ) -> None:
        self._db.execute(
            "INSERT INTO tenure_queue (name) VALUES (?) ON CONFLICT DO NOTHING", (name,)
        )
        if paused is not None:
            self._db.execute(
                f"UPDATE tenure_queue SET paused_at = iif(?, {NOW}, NULL), paused_by = ?"
                " WHERE name = ?",
                (paused, actor, name),
            )
        if max_pending is not None:
            self._db.execute(
                "UPDATE tenure_queue SET max_pending = ? WHERE name = ?",
                (None if max_pending < 0 else max_pending, name),
            )

    def prune(self, settled_before: Mapping[str, datetime], limit: int) -> int:
        measured, until = self.measures.catch_up(self.now())
        done_with = min([measured, *map(int, self.webhooks.positions())])
        if done_with < measured:
            no_progress = self._db.execute(sql.UNTOLD, (done_with,)).fetchone()
            until = min([until, *(no_progress or ())])
        removed: Counter[tuple[str, str, str]] = Counter()
        for status, time in settled_before.items():
            statement = sql.PRUNE.replace("{status}", guards.quoted(Status(status)))
            values = (to_millis(time), until, done_with, limit - removed.total())
            gone = self._db.execute(statement, values).fetchall()
            failpoints.hit("prune.between_job_and_ledger")
            ids = [(id,) for id, *_ in gone]
            self._db.executemany("DELETE FROM tenure_transition WHERE job_id = ?", ids)
            self._db.executemany("DELETE FROM tenure_trace WHERE job_id = ?", ids)
            removed.update((status, queue, type) for _, queue, type in gone)
        if removed:
            self.measures.take_out(removed)
        else:
            self._db.execute(f"DELETE FROM tenure_worker WHERE seen_at < {NOW} - 86400000")
        return removed.total()

    # --- housekeeping

    def trouble(self, error: Exception) -> Trouble:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without what SQLite adds in detail
        if code in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
            self._checkpoints.make_due()
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
            return Trouble.BUG
        return Trouble.UNAVAILABLE if isinstance(error, sqlite3.Error) else Trouble.BUG

    def announce(self) -> None:
        """Nothing to do: other processes watch the file (`SqliteReader.watch`)."""

    def tidy(self) -> None:
        """Checkpoint where the library needs us to, or where that may make room."""
        if self._connection is not None and self._in_place:
            self._checkpoints.run(self._connection)

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._checkpoints.close()
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
        self._files, self._in_place = None, False


def _due(checked_job: CheckedJob, now: datetime) -> datetime:
    """When a job that is added now is to run; in bulk nearly all run at once."""
    if checked_job.run_at is None and checked_job.delay == 0:
        return now
    return kept(checked_job.run_at or now + timedelta(seconds=checked_job.delay))


def _insert_row(job: Job, fingerprint: str | None, now: datetime, stored: int) -> tuple[Any, ...]:
    """The values of `INSERTED`; `stored` is what `now` is in the database."""
    return (
        job.id,
        job.type,
        job.queue,
        job.priority,
        job.max_retries,
        stored if job.run_at is now else to_millis(job.run_at),
        stored,
        job.timeout,
        write_policy(job.backoff),
        job.actor,
        job.idempotency_key,
        fingerprint,
        job.payload,
    )


def _json(rows: Any) -> str:
    return msgspec.json.encode(rows).decode()


def _stored(time: datetime | None) -> int | None:
    return None if time is None else to_millis(time)


def _moved(job: Job) -> tuple[Any, ...]:
    return tuple(
        _stored(getattr(job, column)) if column in TIMES else getattr(job, column)
        for column in MOVED
    )
