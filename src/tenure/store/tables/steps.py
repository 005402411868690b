"""The tables of what attempts keep: their steps, their last state, and how far they have come.

Steps and states count only if the attempt has the lease when they are committed. On PostgreSQL a
lock on the job makes sure of that: without it, a statement that began before another worker took
the job over could still record a step. On SQLite the right to write is the lock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from tenure.errors import InvalidInput, LeaseLost
from tenure.rules import steps
from tenure.store.borrowed.drivers import SHARE, ask, spelled
from tenure.store.borrowed.drivers import Steps as Asks
from tenure.store.database import Dialect, Reads, Statements
from tenure.store.tables import dependencies, signals

# --- progress -------------------------------------------------------------------------------------

Entry = tuple[str, str, steps.JobProgress]
"""Job id, lease id, and what its holder says."""


def record(db: Statements, entries: Sequence[Entry]) -> int:
    """Store the progress of attempts whose lease is held; return how many these were.

    Of several entries of an attempt the last one counts.
    """
    d = db.dialect
    # Each attempt once: PostgreSQL changes no row twice in a statement.
    stored = {(job, lease): p for job, lease, p in entries if d.is_id(job) and d.is_id(lease)}
    rows = [[*attempt, p.done, p.total, p.message] for attempt, p in stored.items()]
    job, lease = (d.as_id(f"(new.value ->> {place})") for place in (0, 1))
    done, total = (f"CAST(new.value ->> {place} AS double precision)" for place in (2, 3))
    # In the order of the ids, so that no two wait in a circle. A claim may have been committed
    # since the statement began, hence the look at the token.
    statement = f"""
INSERT INTO {d.table("progress")} AS old (job_id, token, done, total, message, at)
SELECT job.id, job.token, {done}, {total}, new.value ->> 4, {d.now}
FROM {d.json_rows} JOIN {d.table("job")} AS job ON job.id = {job} AND job.lease_id = {lease}
WHERE true ORDER BY job.id
ON CONFLICT (job_id) DO UPDATE SET token = excluded.token, done = excluded.done,
    total = excluded.total, message = excluded.message, at = excluded.at
WHERE old.token <= excluded.token"""
    return db.changed(statement, (json.dumps(rows),))


def progress_of(db: Reads, job_ids: Sequence[str]) -> Mapping[str, steps.JobProgress]:
    """Return the progress of jobs, by id; while one runs, only what this attempt has said."""
    d = db.dialect
    ids = d.ids(len(job_ids))
    statement = f"""
SELECT {d.id("job.id")}, p.done, p.total, p.message, {d.time("p.at")}
FROM {d.table("progress")} AS p JOIN {d.table("job")} AS job ON job.id = p.job_id
WHERE p.job_id IN ({ids}) AND (p.token = job.token OR job.status <> 'processing')"""
    return {
        id: steps.JobProgress(done, total, message, d.to_time(at))
        for id, done, total, message, at in db.rows(statement, job_ids)
    }


# --- steps and states -----------------------------------------------------------------------------

HELD = """
FROM (SELECT {json} AS doc) AS new, {s}job AS job
WHERE job.id = CAST(doc ->> 'job_id' AS {uuid})
    AND job.lease_id = CAST(doc ->> 'lease_id' AS {uuid})
"""
RECORD = f"""
INSERT INTO {{s}}step (job_id, name, number, token, at, result)
SELECT job.id, doc ->> 'name', CAST(doc ->> 'number' AS integer), job.token, {{now}},
    doc ->> 'result'
{HELD}
    AND (SELECT count(*) FROM {{s}}step AS old WHERE old.job_id = job.id) < {steps.MAX_STEPS}
{{share}} ON CONFLICT DO NOTHING RETURNING token, at {{utc}}"""
KEEP = f"""
INSERT INTO {{s}}checkpoint AS old (job_id, token, number, at, state)
SELECT job.id, job.token, CAST(doc ->> 'number' AS integer), {{now}}, doc ->> 'state'
{HELD}
{{share}} ON CONFLICT (job_id) DO UPDATE SET token = excluded.token, number = excluded.number,
    at = excluded.at, state = excluded.state
WHERE (old.token, old.number) < (excluded.token, excluded.number) RETURNING token"""
TOO_MANY = (
    f"this job has {steps.MAX_STEPS} steps on record, the limit: keep a state, or add more jobs"
)
KEPT = ("step", "checkpoint", "signal", "signal_token")
"""The tables that a retry from scratch empties."""


def answer(db: Statements, job_id: str, lease_id: str, call: steps.StepCall) -> steps.StepAnswer:
    """Do what an attempt asks for; raises LeaseLost, and InvalidInput if the job is locked.

    It waits for no lock, which may be that of the handler that waits for this answer.
    """
    d = db.dialect
    if not (d.is_id(job_id) and d.is_id(lease_id)):
        raise LeaseLost(job_id)
    if isinstance(call, steps.Load):
        now, kept = _now(db, job_id, lease_id), of(db, job_id)
        return steps.Loaded(now, kept.steps, kept.state_json)
    if isinstance(call, steps.ReadParents):
        _now(db, job_id, lease_id)
        return dependencies.page(db, job_id, call)
    if isinstance(call, steps.KeepState):
        if not _written(db, KEEP, job_id, lease_id, call):
            _now(db, job_id, lease_id)
            if not db.rows(*_newer(d, job_id, call.number)):
                raise steps.job_locked(job_id)
        return None
    if isinstance(call, steps.FindSignal):
        _now(db, job_id, lease_id)
        return signals.find(db, job_id, call)
    if isinstance(call, steps.KeepToken):
        signals.keep_token(db, job_id, lease_id, call)
        return None
    for token, at in _written(db, RECORD, job_id, lease_id, call):
        return steps.Recorded(steps.Step(call.name, call.number, token, d.to_time(at), call.result))
    _now(db, job_id, lease_id)
    for step in _steps(db, job_id, f"AND name = {d.value}", call.name):
        return steps.Recorded(step)  # the answer before this one got lost
    if len(_steps(db, job_id)) >= steps.MAX_STEPS:
        raise InvalidInput(TOO_MANY)
    raise steps.job_locked(job_id)


def record_within(engine: str, job_id: str, lease_id: str, step: steps.Record) -> Asks[None]:
    """Record a step in the transaction of a caller; raises LeaseLost."""
    if not (yield ask(engine, RECORD, _document(job_id, lease_id, step))):
        raise LeaseLost(job_id)


def write_notes(db: Statements, said: Sequence[tuple[str, str, steps.Notes, bool]]) -> None:
    """Store notes of (job id, lease id) attempts whose lease is held.

    The last of the four says whether to wait for a lock on the job, such as that of a heartbeat.
    Otherwise the notes are left out: the report that brings them is sent again.
    """
    record(db, [(id, lease, n.progress) for id, lease, n, _ in said if n.progress])
    is_id = db.dialect.is_id
    for job_id, lease_id, notes, waits in sorted(said, key=lambda one: one[0]):
        if notes.state is not None and is_id(job_id) and is_id(lease_id):
            _written(db, KEEP, job_id, lease_id, notes.state, waits=waits)


def of(db: Reads, job_id: str) -> steps.JobSteps:
    """Return what the attempts of a job have kept."""
    d = db.dialect
    rows = db.rows(
        f"SELECT state, {d.time('at')} FROM {d.table('checkpoint')} WHERE job_id = {d.id_value}",
        (job_id,),
    )
    state, at = rows[0] if rows else (None, None)
    return steps.JobSteps(tuple(_steps(db, job_id)), state, d.time_or_none(at))


def last_sleep(db: Reads, job_id: str) -> steps.Step | None:
    """Return the sleep that started last in a job."""
    last = "AND name >= 'sleep:' AND name < 'sleep;' ORDER BY at DESC, number DESC LIMIT 1"
    return next(iter(_steps(db, job_id, last)), None)


def forget(db: Statements, job_id: str) -> None:
    """Delete what the attempts of a job have kept, and what was sent to it."""
    d = db.dialect
    for table in KEPT:
        db.changed(f"DELETE FROM {d.table(table)} WHERE job_id = {d.id_value}", (job_id,))


def _written(
    db: Statements,
    statement: str,
    job_id: str,
    lease_id: str,
    call: steps.Record | steps.KeepState,
    *,
    waits: bool = False,
) -> list[Any]:
    d = db.dialect
    statement = spelled(statement, d.engine).replace("{s}", d.prefix).replace("{p}", d.value)
    if not waits:
        statement = statement.replace(SHARE, f"{SHARE} SKIP LOCKED")
    return db.rows(statement, (_document(job_id, lease_id, call),))


def _newer(d: Dialect, job_id: str, number: int) -> tuple[str, tuple[str, int]]:
    """The question whether this attempt has kept a state with this number, or a larger one."""
    return (
        f"SELECT 1 FROM {d.table('checkpoint')} AS one JOIN {d.table('job')} AS job"
        f" ON job.id = one.job_id AND job.token = one.token"
        f" WHERE one.job_id = {d.id_value} AND one.number >= {d.value}",
        (job_id, number),
    )


def _document(job_id: str, lease_id: str, call: steps.Record | steps.KeepState) -> str:
    values = {name: getattr(call, name) for name in call.__struct_fields__}
    return json.dumps({"job_id": job_id, "lease_id": lease_id, **values})


def _now(db: Reads, job_id: str, lease_id: str) -> datetime:
    """Return the time of the store; raises LeaseLost unless the lease is held."""
    d = db.dialect
    held = f"FROM {d.table('job')} WHERE id = {d.id_value} AND lease_id = {d.id_value}"
    for (now,) in db.rows(f"SELECT {d.time(d.now)} {held}", (job_id, lease_id)):
        return d.to_time(now)
    raise LeaseLost(job_id)


def _steps(
    db: Reads, job_id: str, rest: str = "ORDER BY number, name", *values: str
) -> list[steps.Step]:
    d = db.dialect
    rows = db.rows(
        f"SELECT name, number, token, {d.time('at')}, result FROM {d.table('step')}"
        f" WHERE job_id = {d.id_value} {rest}",
        (job_id, *values),
    )
    return [
        steps.Step(name, number, token, d.to_time(at), result)
        for name, number, token, at, result in rows
    ]
