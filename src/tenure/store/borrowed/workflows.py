"""Add a workflow with its jobs in the transaction of a caller."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tenure.errors import KeyConflict, TenureError
from tenure.jobs.enqueue import CheckedJob
from tenure.store.borrowed import jobs
from tenure.store.borrowed.drivers import Steps
from tenure.store.borrowed.json_jobs import ask, written
from tenure.store.tables.flow import New, Stored

ADD = """
INSERT INTO {s}workflow (id, name, key, fingerprint, created_by, created_at)
SELECT CAST(r ->> 'id' AS {uuid}), r ->> 'name', r ->> 'key', r ->> 'fingerprint',
    r ->> 'created_by', {now}
FROM (SELECT {json} AS r) AS asked WHERE true ON CONFLICT (key) DO NOTHING RETURNING 1
"""
# The workflow that has the key, and its first jobs.
KNOWN = """
WITH asked AS MATERIALIZED (SELECT {json} AS r)
SELECT CAST({array}(id, fingerprint, {nested}((SELECT {list}(job_id) FROM (
    SELECT job.id AS job_id FROM {s}job AS job WHERE job.workflow = known.id
    ORDER BY job.id LIMIT (SELECT CAST(r ->> 'jobs' AS integer) FROM asked)) AS first))) AS {text})
FROM asked, {s}workflow AS known WHERE known.key = r ->> 'key'
"""
REMOVE = "DELETE FROM {s}workflow WHERE id = {id} RETURNING 1"


def add(
    engine: str, new: New, checked_jobs: Sequence[CheckedJob], *, notify: bool
) -> Steps[Stored]:
    """Add a workflow with jobs, unless one with its key is there; raises KeyConflict.

    Raises what `jobs.add` raises, and then nothing of it is left in the transaction. The row of the
    workflow comes first, so that a transaction that adds one with the same key waits here.
    """
    if engine == "sqlite":
        yield jobs.LOCK_FILE
    if known := (yield from begin(engine, new, len(checked_jobs))):
        return known
    try:
        added = (yield from jobs.add(engine, checked_jobs, notify=notify)) if checked_jobs else []
    except TenureError:
        yield ask(engine, REMOVE, new.id)
        raise
    return Stored(new.id, [one.job.id for one in added], added, created=True)


def begin(engine: str, new: New, jobs: int) -> Steps[Stored | None]:
    """Add the row of a workflow, unless one with its key is there; raises KeyConflict.

    Returns that one with its first so many jobs; None if it was added. Also for a connection of
    the store, where `unique_keys.run` executes it.
    """
    while not (yield ask(engine, ADD, written(new._asdict()))):
        asked = written({"key": new.key, "jobs": jobs})
        for (text,) in (yield ask(engine, KNOWN, asked)):  # none: deleted since
            id, fingerprint, first = json.loads(text)
            if fingerprint != new.fingerprint:
                raise KeyConflict(new.key or "", workflow_id=id)
            return Stored(id, first or [])
    return None
