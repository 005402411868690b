"""Jobs in the transaction of a caller: add them, read one, change one.

What is sent and answered is JSON, which every driver carries as one text. On SQLite answers are
bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from tenure.errors import DuplicateJob, JobNotFound, KeyConflict, LeaseLost, QueueFull, TenureError
from tenure.events import Event, Retried
from tenure.lifecycle import Job, Status, follow
from tenure.rules.jobs import CheckedJob, Enqueued, LinkedJob
from tenure.rules.stats import StoredType
from tenure.rules.unique_keys import plan
from tenure.store.borrowed import dependencies, drivers
from tenure.store.borrowed.dependencies import Looked
from tenure.store.enqueue import answer_known, answers_of
from tenure.store.rows import CHANGED, CHANGED_BY, TIMED, UNIQUE, added_job, changed_values
from tenure.store.sqlite.connection import kept
from tenure.store.sqlite.statements import INSERTED
from tenure.store.sqlite.writer import due
from tenure.store.tables import types
from tenure.store.transitions import check_retry

ADD = "SELECT {s}add({p})"
ADD_ONE = {
    notify: f"SELECT CAST({{s}}add_one(CAST(CAST({{p}} AS text) AS json), {notify}) AS text)"
    for notify in (False, True)
}
GET = "SELECT CAST({row} AS {text}) FROM {s}job AS job WHERE id = {id}"
HOLD = """
SELECT CAST({object}('now', {now}, 'job', {row}) AS {text})
FROM (SELECT * FROM {s}job WHERE id = {id} {lock}) AS job
"""
SAVE = """
UPDATE {s}job AS job SET {set}
FROM json_populate_record(CAST(NULL AS {s}job), CAST(CAST({p} AS text) AS json)) AS new
WHERE job.id = new.id RETURNING 1
"""
END_WAIT = "DELETE FROM {s}wait WHERE job_id = {id} RETURNING 1"
TYPES = f"SELECT CAST({{list}}({{array}}({', '.join(types.NAMED)})) AS {{text}}) FROM {{s}}type"

# Takes the right to write, and waits for it, so that what follows is one look. It also begins the
# transaction, if Python's module has not yet.
LOCK_FILE = drivers.Ask("UPDATE tenure_queue SET name = name WHERE false")
SQLITE_LOOK = f"""
WITH doc AS MATERIALIZED (
    SELECT value ->> 'idempotency_key' AS key, value ->> 'queue' AS queue FROM json_each({{p}}))
SELECT CAST(json_object('now', (SELECT at FROM tenure_now), 'known', json((
    SELECT json_group_array({drivers.SQLITE_JOB}) FROM tenure_job
    WHERE idempotency_key IN (SELECT key FROM doc)
)), 'full', json((
    SELECT json_array(name, max_pending)
    FROM (SELECT queue, count(*) AS jobs FROM doc GROUP BY queue) JOIN tenure_queue ON name = queue
    WHERE max_pending < jobs + (SELECT count(*) FROM tenure_job AS waiting
        WHERE waiting.status = 'pending' AND waiting.queue = name)
    ORDER BY name LIMIT 1
))) AS BLOB)
"""
STORED = (*INSERTED, *UNIQUE)
SQLITE_TRACE = """
INSERT INTO tenure_trace (job_id, traceparent)
SELECT value ->> 'id', value ->> 'traceparent' FROM json_each({p})
WHERE value ->> 'traceparent' IS NOT NULL
"""
SQLITE_SAVE = """
UPDATE tenure_job SET {set} FROM json_each({p}) AS new
WHERE tenure_job.id = new.value ->> 'id' RETURNING 1
"""


def add(
    engine: str, checked_jobs: Sequence[CheckedJob], *, notify: bool, limited: bool = True
) -> drivers.Steps[list[Enqueued]]:
    """Add jobs, all or none, and answer in the same order; up to the limits of queues if `limited`.

    Raises KeyConflict, DuplicateJob or QueueFull before anything is written, so the transaction can
    continue. Limits count the jobs that the transaction can see, and lock nothing for others.
    """
    if all(checked_job.simple for checked_job in checked_jobs):
        return (yield from _add_all(engine, checked_jobs, notify, limited))
    if engine == "sqlite":
        yield LOCK_FILE
    if not any(checked_job.unique for checked_job in checked_jobs):
        return (yield from _add_all(engine, checked_jobs, notify, limited, {}))
    made = plan(checked_jobs, (yield from dependencies.look(engine, checked_jobs)))
    for refusal in made.answers:
        if isinstance(refusal, DuplicateJob):
            raise refusal
    linked: dict[str, str] | None = None
    if any(type(checked_job) is LinkedJob for checked_job in checked_jobs):
        holders = [made.fresh[to].id if isinstance(to, int) else str(to) for to in made.answers]
        linked = {a.id: id for a, id in zip(checked_jobs, holders, strict=True) if a.id != id}
    added = yield from _add_all(engine, made.fresh, notify, limited, linked)
    for _, after in made.changed.values():
        yield saved(engine, after)
    new = {one.job.id for one in added if one.created}
    yield from dependencies.keep_throttles(engine, [a for a in made.fresh if a.id in new])
    return [one for one in answers_of(made, added) if isinstance(one, Enqueued)]


def _add_all(
    engine: str,
    checked_jobs: Sequence[CheckedJob],
    notify: bool,
    limited: bool,
    linked: dict[str, str] | None = None,
) -> drivers.Steps[list[Enqueued]]:
    """Add jobs. If some are linked, `linked` has the ids of the jobs that stand for others."""
    left: dict[str, CheckedJob] = {}
    for checked_job in checked_jobs:
        first = left.setdefault(_key(checked_job), checked_job)
        if first.fingerprint != checked_job.fingerprint:
            raise KeyConflict(_key(checked_job), first.id)
        if linked is not None and first is not checked_job:
            linked[checked_job.id] = first.id
    found: dict[str, tuple[Job, str | None]] = {}
    while left:
        ordered = [left[key] for key in sorted(left)]  # two that wait for keys go the same way
        on_sqlite = engine == "sqlite"
        added = _add_on_sqlite(ordered, limited) if on_sqlite else _add(ordered, notify, limited)
        if linked is not None:
            added = dependencies.add(engine, ordered, linked, limited=limited)
        looked: Looked = yield from added
        if looked.full:
            raise QueueFull(*looked.full)
        for job, fingerprint in looked.known:
            key = str(job.idempotency_key)
            _answer(asked := left.pop(key), job, fingerprint)
            found[key] = job, fingerprint
            if linked is not None:
                linked |= {id: job.id for id, to in linked.items() if to == asked.id}
                linked[asked.id] = job.id
        for checked_job, job in zip(ordered, looked.made, strict=False):
            found[_key(left.pop(_key(checked_job)))] = job, checked_job.fingerprint
        if looked.made and linked is not None and notify and engine == "postgres":
            yield drivers.Ask(
                ADD, drivers.written({"jobs": [], "keyed": False, "notify": True, "limited": False})
            )
    return [_answer(a, *found[_key(a)]) for a in checked_jobs]


def _key(checked_job: CheckedJob) -> str:
    return checked_job.idempotency_key or checked_job.id


def _answer(checked_job: CheckedJob, job: Job, fingerprint: str | None) -> Enqueued:
    answer = answer_known(checked_job, job, fingerprint)
    if isinstance(answer, TenureError):
        raise answer
    return answer


def _add(checked_jobs: Sequence[CheckedJob], notify: bool, limited: bool) -> drivers.Steps[Looked]:
    docs = [drivers.document(checked_job) for checked_job in checked_jobs]
    first = checked_jobs[0]
    if limited and len(docs) == 1 and first.simple and first.traceparent is None:
        ((text,),) = yield drivers.Ask(ADD_ONE[notify], drivers.written(docs[0]))
        return _looked(json.loads(text), checked_jobs)
    keyed = any(checked_job.idempotency_key for checked_job in checked_jobs)
    asked: dict[str, Any] = {"jobs": docs, "keyed": keyed, "limited": limited}
    requests = [asked]
    if (
        len(several := list(drivers.sent(docs))) > 1
    ):  # what refuses one is found before the first is added
        look = asked | {"jobs": [_looked_for(doc) for doc in docs], "adds": False}
        requests = [look, *({"jobs": part, "limited": False} for part in several)]
    requests[-1]["notify"] = notify
    made: list[Job] = []
    for request in requests:
        ((text,),) = yield drivers.Ask(ADD, drivers.written(request))
        looked = _looked(json.loads(text), checked_jobs)
        if looked.known or looked.full:
            return looked
        made += looked.made
    return Looked(made=made)


def _looked(answer: dict[str, Any], checked_jobs: Sequence[CheckedJob]) -> Looked:
    """Read what the database answers: what prevents it, or the jobs that it added."""
    known = [
        (drivers.job_in("postgres", row), row["fingerprint"]) for row in answer.get("known") or ()
    ]
    runs = {id: drivers.time_in("postgres", at) for id, at in (answer.get("runs") or {}).items()}
    if not runs:
        return Looked(known, answer.get("full"))
    created = drivers.time_in("postgres", answer["created"])
    return Looked(made=[added_job(a, created, runs[a.id]) for a in checked_jobs if a.id in runs])


def _looked_for(doc: dict[str, Any]) -> dict[str, Any]:
    """What refuses a job: its key may be used, and its queue full."""
    return {"idempotency_key": doc["idempotency_key"], "queue": doc["queue"]}


def _add_on_sqlite(checked_jobs: Sequence[CheckedJob], limited: bool) -> drivers.Steps[Looked]:
    docs = [drivers.document(checked_job) for checked_job in checked_jobs]
    yield LOCK_FILE
    ((text,),) = yield drivers.Ask(SQLITE_LOOK, drivers.written([_looked_for(doc) for doc in docs]))
    look = json.loads(text)
    full = look["full"] if limited else None
    if look["known"] or full:
        known = [
            (drivers.job_in("sqlite", values), values["fingerprint"]) for values in look["known"]
        ]
        return Looked(known, full)
    now = drivers.time_in("sqlite", look["now"])
    jobs = [added_job(a, now, due(a, now), kept=kept) for a in checked_jobs]
    for doc, job in zip(docs, jobs, strict=True):
        doc |= {name: drivers.millis(getattr(job, name)) for name in ("created_at", *TIMED)}
    yield from dependencies.insert("sqlite", "job", STORED, docs)
    if any(checked_job.traceparent for checked_job in checked_jobs):
        traces = [{name: doc[name] for name in ("id", "traceparent")} for doc in docs]
        yield drivers.Ask(SQLITE_TRACE, drivers.written(traces))
    return Looked(made=jobs)


def get(engine: str, job_id: str) -> drivers.Steps[Job]:
    """Return a job as the transaction sees it; raises JobNotFound."""
    rows = yield drivers.ask(engine, GET, job_id)
    for (text,) in rows:
        return drivers.job_in(engine, json.loads(text))
    raise JobNotFound(job_id)


def apply(engine: str, job_id: str, event: Event) -> drivers.Steps[Job]:
    """Apply an event to a job, which stays locked until the caller's transaction ends.

    Raises JobNotFound, IllegalTransition, or LeaseLost for an event of a lease holder.
    """
    job, now = yield from locked(engine, job_id)
    steps = follow(job, event, now)
    if isinstance(event, Retried):
        check_retry(job, (yield from dependencies.keys_of(engine, job_id)), set(), now)
    for after in steps:
        yield saved(engine, after)
    if job.status is Status.WAITING and job.token:  # it was suspended
        yield drivers.ask(engine, END_WAIT, job_id)
    return steps[-1]


def saved(engine: str, after: Job) -> drivers.Ask:
    """Write a locked job's row after a transition."""
    columns = (*CHANGED, *CHANGED_BY[after.event])
    values = dict(zip(columns, changed_values(after, columns), strict=True))
    return _save(engine, {"id": after.id, **values})


def hold(engine: str, job_id: str, lease_id: str) -> drivers.Steps[None]:
    """Lock a job until the transaction ends; raises LeaseLost unless this is its lease."""
    job, _ = yield from locked(engine, job_id)
    if job.lease_id != lease_id:
        raise LeaseLost(job_id)


def locked(engine: str, job_id: str) -> drivers.Steps[tuple[Job, datetime]]:
    """Lock a job; return it and the time. Raises JobNotFound."""
    if engine == "sqlite":
        yield LOCK_FILE
    rows = yield drivers.ask(engine, HOLD, job_id)
    if not rows:
        raise JobNotFound(job_id)
    held = json.loads(rows[0][0])
    now = drivers.time_in(engine, held["now"])
    return drivers.job_in(engine, held["job"]), now


def _save(engine: str, values: dict[str, Any]) -> drivers.Ask:
    if engine == "sqlite":
        changes = ", ".join(f"{name} = new.value ->> '{name}'" for name in values)
        stored = {name: drivers.millis(value) for name, value in values.items()}
        return drivers.Ask(SQLITE_SAVE.replace("{set}", changes), drivers.written([stored]))
    changes = ", ".join(f"{name} = new.{name}" for name in values)
    return drivers.Ask(SAVE.replace("{set}", changes), drivers.written(values))


def options_of_types(engine: str) -> drivers.Steps[dict[str, StoredType]]:
    """Return the options of types that the database knows, by name."""
    rows = yield drivers.ask(engine, TYPES)
    return types.read(json.loads(rows[0][0] or "[]"))
