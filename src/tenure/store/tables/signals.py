"""The tables of signals, of what suspended jobs wait for, and of one-use tokens.

`store/borrowed/workflows.py` stores a signal. A row of `wait` counts only while its job is waiting.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from tenure.errors import InvalidInput, LeaseLost
from tenure.lifecycle import Job, Status
from tenure.rules.reports import Wait
from tenure.rules.signals import MAX_SIGNAL_TOKENS, NewSignal, Signal, TokenSignal
from tenure.rules.steps import FindSignal, FoundSignal, KeepToken
from tenure.store.database import Reads, Statements
from tenure.store.rows import read_rows

if TYPE_CHECKING:
    from tenure.store.database import Database

COLUMNS = ("job_id", "name", "number", "at", "key", "payload", "actor")


def send(db: Database, job_id: str, signal: NewSignal) -> Signal:
    """Store a signal and release the job that waits for it, as `borrowed.workflows.send` says."""
    from tenure.store.borrowed import (
        dependencies,  # they come with the drivers of callers
        workflows,
    )

    return dependencies.run(db, workflows.send(db.dialect.engine, job_id, signal))


def send_by_token(db: Database, digest: str, payload: str | None, actor: str) -> Signal:
    """Send the signal of a one-use token, as `borrowed.workflows.send_by_token` says."""
    from tenure.store.borrowed import dependencies, workflows

    steps = workflows.send_by_token(db.dialect.engine, digest, payload, actor)
    return dependencies.run(db, steps)


def of_job(db: Reads, job_id: str) -> list[Signal]:
    """Return the signals of a job in the order in which they came; those of one time by name."""
    d = db.dialect
    of = f"{d.table('signal')} AS one WHERE one.job_id = {d.id_value}"
    found = read_rows(db, COLUMNS, f"{of} ORDER BY one.at, one.name, one.number", (job_id,), "one")
    return [Signal(payload_json=one.pop("payload") or "null", **one) for one in found]


def wait_of(db: Reads, job_id: str) -> Wait | None:
    d = db.dialect
    columns, of = ("name", "number", "expires_at"), f"{d.table('wait')} WHERE job_id = {d.id_value}"
    return next((Wait(**fields) for fields in read_rows(db, columns, of, (job_id,))), None)


def find(db: Reads, job_id: str, wanted: FindSignal) -> FoundSignal | None:
    """Return a signal to a job, if it is there."""
    d = db.dialect
    rows = db.rows(
        f"SELECT payload, {d.time('at')} FROM {d.table('signal')}"
        f" WHERE job_id = {d.id_value} AND name = {d.value} AND number = {d.value}",
        (job_id, wanted.name, wanted.number),
    )
    return next((FoundSignal(text or "null", d.to_time(at)) for text, at in rows), None)


# --- suspensions


def senders(db: Reads, waits: Sequence[tuple[str, Wait]]) -> Mapping[str, str]:
    """Return who sent what jobs are about to wait for, by job, where it is there already."""
    d = db.dialect
    id, number = d.as_id("(new.value ->> 0)"), "CAST(new.value ->> 2 AS integer)"
    statement = (
        f"SELECT {d.id('one.job_id')}, one.actor FROM {d.json_rows}"
        f" JOIN {d.table('signal')} AS one ON one.job_id = {id}"
        f" AND one.name = new.value ->> 1 AND one.number = {number}"
    )
    rows = [(id, wait.name, wait.number) for id, wait in waits]
    return dict(db.rows(statement, (json.dumps(rows),)))


def begin_waits(db: Statements, waits: Iterable[tuple[str, Wait]]) -> None:
    """Note what jobs wait for that are suspended in this transaction."""
    d = db.dialect
    statement = (
        f"INSERT INTO {d.table('wait')} (job_id, name, number, expires_at)"
        f" VALUES ({d.id_value}, {d.values(3)}) ON CONFLICT (job_id) DO UPDATE SET"
        " name = excluded.name, number = excluded.number, expires_at = excluded.expires_at"
    )
    for id, wait in waits:
        db.changed(statement, (id, wait.name, wait.number, d.to_bound(wait.expires_at)))


def end_waits(db: Statements, jobs: Iterable[Job]) -> None:
    """Delete what these jobs, as they were, waited for: they wait no longer."""
    if ids := [job.id for job in jobs if _is_suspended(job)]:
        _delete(db, ids)


def _is_suspended(job: Job) -> bool:
    """Whether a job waits for a signal: one that waits for other jobs was never claimed."""
    return job.status is Status.WAITING and job.token > 0


def _delete(db: Statements, ids: Sequence[str]) -> None:
    d = db.dialect
    db.changed(f"DELETE FROM {d.table('wait')} WHERE job_id IN ({d.ids(len(ids))})", ids)


def lock_expired(db: Database, limit: int, after: int = 0) -> list[Job]:
    """Lock up to `limit` suspended jobs whose wait has expired, and pass over locked ones.

    The first ones are left out, as many as `after` says.
    """
    d = db.dialect
    over = f"SELECT {d.id('job_id')} FROM {d.table('wait')} WHERE expires_at <= {d.now}"
    first = f"{over} ORDER BY expires_at LIMIT {limit} OFFSET {after}"
    asked = sorted(id for (id,) in db.rows(first))
    free = sorted(set(asked) - db.busy(asked)) if asked else []
    if not free:
        return []
    jobs = db.lock(free)
    # A signal may have come before the locks, and the job may have been suspended again since.
    again = db.rows(f"{over} AND job_id IN ({d.ids(len(free))})", free)
    expired = {id for (id,) in again}
    found = [job for id, job in jobs.items() if id in expired and _is_suspended(job)]
    if left := expired - {job.id for job in found}:  # by raw SQL that has changed the job
        _delete(db, sorted(left))
    return found


# --- one-use tokens


def of_token(db: Reads, digest: str) -> TokenSignal:
    """Return what a token sends; raises SignalTokenNotFound."""
    from tenure.store.borrowed import dependencies, workflows

    return dependencies.run(db, workflows.of_token(db.dialect.engine, digest))


def keep_token(db: Statements, job_id: str, lease_id: str, token: KeepToken) -> None:
    """Keep a one-use token of a job.

    Raises LeaseLost, or InvalidInput if there are too many, or if it is the token of another job.
    """
    d = db.dialect
    table = d.table("signal_token")
    where = f"job_id = {d.id_value} OR digest = {d.value}"
    found = db.rows(
        f"SELECT digest = {d.value}, job_id <> {d.id_value} FROM {table} WHERE {where}",
        (token.digest, job_id, job_id, token.digest),
    )
    if any(of_other for _, of_other in found):
        raise InvalidInput("this is the token of another job: make a new one", path="$.digest")
    if any(same for same, _ in found):  # the answer before this one got lost
        return
    if len(found) >= MAX_SIGNAL_TOKENS:
        raise InvalidInput(
            f"the job has {MAX_SIGNAL_TOKENS} unused tokens, which is the limit: make them in the"
            " step that sends them",
            path="$.name",
        )
    added = db.changed(
        f"INSERT INTO {table} (digest, job_id, name, payload, label, at)"
        f" SELECT {d.value}, id, {d.values(3)}, {d.now} FROM {d.table('job')}"
        f" WHERE id = {d.id_value} AND lease_id = {d.id_value} ON CONFLICT (digest) DO NOTHING",
        (token.digest, token.name, token.payload, token.label, job_id, lease_id),
    )
    if not added:
        raise LeaseLost(job_id)
