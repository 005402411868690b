"""What an enqueue asks about unique keys: who holds them, and which job was accepted last.

It is the same for a connection of a caller and for one of the store, where `run` executes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TypeVar

from tenure.jobs.enqueue import CheckedJob
from tenure.jobs.uniqueness import Seen, Throttled
from tenure.store.borrowed.drivers import Ask, Steps
from tenure.store.borrowed.json_jobs import SQLITE_JOB, ask, job_in, time_in, written
from tenure.store.dialect import Reads

T = TypeVar("T")

LOOK = {
    "postgres": "SELECT {s}look_unique({p})",
    "sqlite": f"""
WITH asked AS MATERIALIZED (SELECT {{p}} AS request)
SELECT CAST(json_object('now', now.at, 'held', json((
    SELECT json_group_array(json_object('key', held.key, 'job', {SQLITE_JOB}))
    FROM tenure_unique_key AS held CROSS JOIN tenure_job ON id = held.job_id
    WHERE held.key IN (SELECT value FROM json_each(request, '$.keys'))
)), 'throttled', json((
    SELECT json_group_array(json_object('key', last.key, 'job_id', last.job_id,
        'expires_at', last.expires_at,
        'job', json((SELECT {SQLITE_JOB} FROM tenure_job WHERE id = last.job_id))))
    FROM tenure_throttle AS last
    WHERE last.key IN (SELECT value FROM json_each(request, '$.keys')) AND expires_at > now.at
)), 'known', json((
    SELECT json_group_array(idempotency_key) FROM tenure_job
    WHERE idempotency_key IN (SELECT value FROM json_each(request, '$.known'))
))) AS BLOB)
FROM asked, tenure_now AS now
""",
}
_LATER = {
    "postgres": """
SELECT key, job_id, {s}clock() + within * interval '1 second'
FROM json_to_recordset(CAST({p} AS json)) AS new (key text, job_id uuid, within float)
""",
    "sqlite": """
SELECT value ->> 'key', value ->> 'job_id', at + CAST((value ->> 'within') * 1000 AS INTEGER)
FROM json_each({p}), tenure_now WHERE true
""",
}
KEEP = """
INSERT INTO {s}throttle (key, job_id, expires_at) {later}
ON CONFLICT (key) DO UPDATE SET job_id = excluded.job_id, expires_at = excluded.expires_at
RETURNING 1
"""


KEY_OF = """
SELECT CAST({array}(job.unique_key, held.job_id) AS {text})
FROM {s}job AS job LEFT JOIN {s}unique_key AS held
    ON held.key = job.unique_key AND held.job_id <> job.id
WHERE job.id = {id} AND job.unique_until = 'settled'
"""


def keys_of(engine: str, job_id: str) -> Steps[Mapping[str, tuple[str, str | None]]]:
    """Return what `store/tables/unique_keys.keys_of` returns for one job."""
    rows = yield ask(engine, KEY_OF, job_id)
    if not rows:
        return {}
    key, holder = json.loads(rows[0][0])
    return {job_id: (key, holder)}


def look(engine: str, jobs: Sequence[CheckedJob]) -> Steps[Seen]:
    """Return what is stored about the unique keys of jobs.

    On PostgreSQL it locks the keys until the transaction ends, unless there are many, and the
    holders that may change or must not start before. On SQLite the caller has the right to write.
    """
    unique = [(job, job.unique) for job in jobs if job.unique]
    firm = {one.key for _, one in unique if one.rule.changes or one.rule.until == "started"}
    request = {
        "keys": sorted({one.key for _, one in unique}),
        "firm": sorted(firm),
        "known": [job.idempotency_key for job, _ in unique if job.idempotency_key],
    }
    ((text,),) = yield Ask(LOOK[engine], written(request))
    answer = json.loads(text)
    return Seen(
        now=time_in(engine, answer["now"]),
        held={one["key"]: job_in(engine, one["job"]) for one in answer["held"] or ()},
        throttled={
            one["key"]: Throttled(
                one["job_id"],
                time_in(engine, one["expires_at"]),
                one["job"] and job_in(engine, one["job"]),
            )
            for one in answer["throttled"] or ()
        },
        known=frozenset(answer["known"] or ()),
    )


def keep_throttles(engine: str, jobs: Sequence[CheckedJob]) -> Steps[None]:
    """Note that these jobs were accepted now, where their rules last for a time."""
    rules = [(job.id, job.unique.key, job.unique.rule.within) for job in jobs if job.unique]
    kept = [
        {"key": key, "job_id": job_id, "within": within}
        for job_id, key, within in sorted(rules, key=lambda rule: rule[1])
        if within is not None
    ]
    if kept:
        yield Ask(KEEP.replace("{later}", _LATER[engine]), written(kept))


def run(db: Reads, steps: Steps[T]) -> T:
    """Execute steps on a connection of the store."""
    d, rows = db.dialect, None
    try:
        while True:
            ask = next(steps) if rows is None else steps.send(rows)
            statement = ask.statement.replace("{s}", d.prefix).replace("{p}", d.value)
            rows = db.rows(statement, () if ask.value is None else (ask.value,))
    except StopIteration as end:
        answer: T = end.value
        return answer
