"""Add jobs: one or many, with idempotency keys and queue limits.

These functions run inside the committer's transaction. They are the same for every database.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal

from tenure.errors import KeyConflict, QueueFull, TenureError
from tenure.jobs.enqueue import CheckedJob, Enqueued
from tenure.lifecycle import Job
from tenure.store.protocol import Database


def add(db: Database, checked_jobs: Sequence[CheckedJob]) -> list[Enqueued | TenureError]:
    """Insert jobs; the answer of a refused job is its error, and nothing of it is stored."""
    made = dict(db.insert(checked_jobs))
    others = [a for a in checked_jobs if a.id not in made]
    known = db.known(others) if others else {}
    if gone := [a for a in others if a.id not in known]:  # deleted since the insert met it
        made.update(db.insert(gone))
    traced = [(a.id, a.traceparent) for a in checked_jobs if a.traceparent and a.id in made]
    if traced:
        db.keep_traces(traced)
    return [
        Enqueued(made[a.id], created=True) if a.id in made else answer_known(a, *known[a.id])
        for a in checked_jobs
    ]


def add_each(db: Database, checked_jobs: Sequence[CheckedJob]) -> list[Enqueued | TenureError]:
    """Insert jobs of separate requests, up to the limits of their queues."""
    full = full_queues(db, _per_queue(checked_jobs))
    if not full:
        return add(db, checked_jobs)
    free = [a for a in checked_jobs if a.queue not in full]
    answers = dict(zip((a.id for a in free), add(db, free), strict=True))
    closed: set[str] = set()
    for checked_job in checked_jobs:
        queue = checked_job.queue
        if queue not in full:
            continue
        repeated = bool(db.known([checked_job]))  # a repeated request needs no room
        if not repeated and (queue in closed or full_queues(db, {queue: 1})):
            closed.add(queue)
            answers[checked_job.id] = QueueFull(queue, full[queue])
        else:
            answers[checked_job.id] = add(db, [checked_job])[0]
    return [answers[a.id] for a in checked_jobs]


def add_together(db: Database, checked_jobs: Sequence[CheckedJob]) -> list[Enqueued]:
    """Insert the jobs of one request; if one is refused, raise its error: the caller undoes all."""
    full = full_queues(db, _per_queue(checked_jobs))
    if full:
        known = db.known([a for a in checked_jobs if a.queue in full])
        full = full_queues(db, _per_queue([a for a in checked_jobs if a.id not in known]))
    for queue, limit in full.items():
        raise QueueFull(queue, limit)
    answers = []
    for answer in add(db, checked_jobs):
        if isinstance(answer, TenureError):
            raise answer
        answers.append(answer)
    return answers


def full_queues(db: Database, wanted: Mapping[str, int]) -> Mapping[str, int]:
    """Return name -> limit of the queues (name -> jobs to add) that would exceed it."""
    d = db.dialect
    full = {}
    for name, limit in db.limits(wanted):
        some = f"SELECT 1 FROM {d.pending} WHERE queue = {d.value} LIMIT {d.value}"
        ((pending,),) = db.rows(f"SELECT count(*) FROM ({some}) AS waiting", (name, limit))
        if pending + wanted[name] > limit:
            full[name] = limit
    return full


def _per_queue(checked_jobs: Sequence[CheckedJob]) -> Mapping[str, int]:
    return Counter(checked_job.queue for checked_job in checked_jobs)


def answer_known(
    checked_job: CheckedJob, job: Job, fingerprint: str | None
) -> Enqueued | TenureError:
    """Return the answer to a request whose id or key a stored `job` has.

    A job that SQL has added has no fingerprint: its key stands for type, queue and payload.
    """
    key = checked_job.idempotency_key
    if key is None or fingerprint == checked_job.fingerprint:
        return Enqueued(job, created=job.id == checked_job.id)
    is_same = (checked_job.type, checked_job.queue) == (job.type, job.queue)
    if fingerprint is None and is_same and _are_equal(checked_job.payload, job.payload_json):
        return Enqueued(job, created=False)
    return KeyConflict(key, job.id)


def _are_equal(payload: str, stored: str) -> bool:
    """Whether two JSON texts have the same value: in Python `true` would be equal to 1."""
    try:
        one, other = (
            json.loads(t, parse_int=_number, parse_float=_number) for t in (payload, stored)
        )
    except (ValueError, RecursionError):  # damaged
        return False
    return bool(one == other)


def _number(text: str) -> tuple[Decimal]:
    return (Decimal(text),)
