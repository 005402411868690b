"""The writing side of the SQLite store: every commit is on disk before it is acknowledged."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from tenure import failpoints
from tenure.jobs.enqueue import CheckedJob
from tenure.jobs.work import ClaimRequest, Lease, Report
from tenure.lifecycle import Job, Status
from tenure.store import constraints
from tenure.store.rows import CHANGED, COLUMNS, TIMES, added_job, job_of, write_policy
from tenure.store.sqlite import statements as sql
from tenure.store.sqlite.connection import connect_writer, kept, to_millis, to_time
from tenure.store.sqlite.dialect import DIALECT
from tenure.store.sqlite.lanes import SqliteLanes
from tenure.store.sqlite.session import SqliteSession
from tenure.store.tables import webhooks, workers
from tenure.store.tables.stats import StatsWriter

_read_picked = msgspec.json.Decoder(
    list[tuple[int, str, str, str, str, int, int, int, float | None]]
).decode
_read_jobs = msgspec.json.Decoder(list[list[Any]]).decode


class Sqlite(SqliteSession):
    """The writing connection to one database file; see `Database`."""

    dialect = DIALECT
    alone = None

    def __init__(
        self, path: Path, connect: Callable[[Path], sqlite3.Connection] = connect_writer
    ) -> None:
        super().__init__(path, connect)
        self._lanes = SqliteLanes()
        self.stats = StatsWriter(self)

    # --- adding

    def insert(self, checked_jobs: Sequence[CheckedJob]) -> Mapping[str, Job]:
        now = self.now()
        stored = to_millis(now)
        jobs = [added_job(a, now, _due(a, now)) for a in checked_jobs]
        rows = [
            _insert_row(job, checked_job.fingerprint, now, stored)
            for job, checked_job in zip(jobs, checked_jobs, strict=True)
        ]
        made = self._changed_each(sql.INSERT, rows)
        return {job.id: job for job, new in zip(jobs, made, strict=True) if new}

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
        done = self._changed_each(sql.COMPLETE, rows, now)
        return {r.lease_id for r, accepted in zip(reports, done, strict=True) if accepted}

    def claim(self, request: ClaimRequest) -> list[Lease]:
        now = self.now()
        until = kept(now + timedelta(seconds=request.lease_seconds))
        values: dict[str, Any] = {"now": to_millis(now), "worker": request.worker}
        types = ""
        if request.types is not None:
            types = "AND type IN (SELECT value FROM json_each(:types))"
            values["types"] = _json(request.types)
        pick = sql.PICK.format(types=types)
        leases: list[Lease] = []
        for queue, priority in self._lanes.due(self._db, request.queues, values["now"]):
            values |= {"queue": queue, "priority": priority, "limit": request.limit - len(leases)}
            leased = self._claim_lane(pick, values, until)
            leases += leased
            if leased:
                self._lanes.last_queue = queue
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
        self._changed_by(sql.CLAIM, taken, to_millis(until), values["now"], holder, holder)
        return [
            Lease(*row[1:], lease_id, until) for row, lease_id in zip(picked, secrets, strict=True)
        ]

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
                *_changed_values(after),
            )
            for before, after in changes
        ]
        return self._changed_by(sql.SAVE, rows)

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

    def prune(self, settled_before: Mapping[str, datetime], limit: int) -> int:
        measured, until = self.stats.catch_up(self.now())
        done_with = min([measured, *map(int, webhooks.positions(self))])
        if done_with < measured:
            until = min([until, *(at for (at,) in self.rows(sql.NEXT_ENTRY, (done_with,)))])
        removed: Counter[tuple[str, str, str]] = Counter()
        for status, time in settled_before.items():
            statement = sql.PRUNE.replace("{status}", constraints.quoted(Status(status)))
            values = (to_millis(time), until, done_with, limit - removed.total())
            gone = self._db.execute(statement, values).fetchall()
            failpoints.hit("prune.between_job_and_ledger")
            ids = [(id,) for id, *_ in gone]
            self._db.executemany("DELETE FROM tenure_transition WHERE job_id = ?", ids)
            self._db.executemany("DELETE FROM tenure_trace WHERE job_id = ?", ids)
            removed.update((status, queue, type) for _, queue, type in gone)
        if removed:
            self.stats.take_out(removed)
        else:
            workers.forget(self)
        return removed.total()


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


def _changed_values(job: Job) -> tuple[Any, ...]:
    return tuple(
        _stored(getattr(job, column)) if column in TIMES else getattr(job, column)
        for column in CHANGED
    )
