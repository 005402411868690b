"""Add jobs: one or many, with idempotency keys, unique keys and queue limits.

These functions run inside the committer's transaction. They are the same for every database. The
jobs that a handler enqueued with `JobContext.enqueue` are in its report: they are added if and only
if the completion is recorded, in its transaction.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any

from msgspec.structs import replace

from tenure.errors import InvalidInput, KeyConflict, QueueFull, TenureError, WriteRefused
from tenure.lifecycle import Job
from tenure.rules.jobs import CheckedJob, Enqueued, LinkedJob
from tenure.rules.reports import Answer, Outcome, Report, Verdict, unknown_types, with_options
from tenure.rules.unique_keys import Plan, plan
from tenure.store import transitions
from tenure.store.database import DROPPED, Database
from tenure.store.rows import UNIQUE
from tenure.store.tables import types
from tenure.store.work import EnqueueWork, Work, undoing

Known = Mapping[str, tuple[Job, str | None]]
"""By the id of a job to add: the job that has its id or its key, and that one's fingerprint."""


def add(
    db: Database, checked_jobs: Sequence[CheckedJob], more: Sequence[str] = (), *, new: bool = False
) -> list[Enqueued | TenureError]:
    """Insert jobs; the answer of a refused job is its error, and nothing of it is stored.

    Unique keys must be free. `more` are columns that only jobs with one have. With `new`, raise
    InvalidInput if another job has the id of one of them: a report brings its ids. An enqueue makes
    them, so what has one is its own job, stored before the answer got lost.
    """
    made = dict(db.insert(checked_jobs, more))
    others = [a for a in checked_jobs if a.id not in made]
    known = db.known(others) if others else {}
    if new:
        _check_new(known)
    if gone := [a for a in others if a.id not in known]:  # deleted since the insert met it
        made.update(db.insert(gone, more))
        if any(a.id not in made for a in gone):
            raise WriteRefused(DROPPED)
    traced = [(a.id, a.traceparent) for a in checked_jobs if a.traceparent and a.id in made]
    if traced:
        db.keep_traces(traced)
    return [
        Enqueued(made[a.id], created=True) if a.id in made else answer_known(a, *known[a.id])
        for a in checked_jobs
    ]


def add_each(db: Database, checked_jobs: Sequence[CheckedJob]) -> list[Enqueued | TenureError]:
    """Insert jobs of separate requests, up to the limits of their queues."""
    if all(checked_job.simple for checked_job in checked_jobs):
        return _add_each(db, checked_jobs)
    linked = {a.id: _linked_answer(db, a) for a in checked_jobs if type(a) is LinkedJob}
    others = [a for a in checked_jobs if a.id not in linked]
    answers = iter(_add_unique(db, others, _add_each) if others else ())
    return [linked.get(a.id) or next(answers) for a in checked_jobs]


def _linked_answer(db: Database, checked_job: CheckedJob) -> Enqueued | TenureError:
    try:
        return add_linked(db, [checked_job])[0]
    except TenureError as refusal:  # before anything was written
        return refusal


def add_together(db: Database, checked_jobs: Sequence[CheckedJob]) -> list[Enqueued]:
    """Insert the jobs of one request; if one is refused, raise its error: the caller undoes all."""
    if all(checked_job.simple for checked_job in checked_jobs):
        answers = _add_together(db, checked_jobs)
    elif any(type(checked_job) is LinkedJob for checked_job in checked_jobs):
        return add_linked(db, checked_jobs)
    else:
        answers = _add_unique(db, checked_jobs, _add_together)
    added = []
    for answer in answers:
        if isinstance(answer, TenureError):
            raise answer
        added.append(answer)
    return added


def add_follow_ups(db: Database, checked_jobs: Sequence[CheckedJob]) -> None:
    """Insert the jobs that a run adds, whatever the limits of their queues.

    If one is refused, raise its error: the caller undoes all.
    """
    if any(type(checked_job) is LinkedJob for checked_job in checked_jobs):
        _check_new(db.known(checked_jobs))
        add_linked(db, checked_jobs, limited=False)
        return
    unique = any(checked_job.unique for checked_job in checked_jobs)
    add_new = partial(add, new=True)
    answers = _add_unique(db, checked_jobs, add_new) if unique else add_new(db, checked_jobs)
    for checked_job, answer in zip(checked_jobs, answers, strict=True):
        if isinstance(answer, TenureError):
            raise answer
        if not answer.created:
            _check_new({checked_job.id: (answer.job, None)})


def _check_new(known: Known) -> None:
    if any(job.id == id for id, (job, _) in known.items()):
        raise InvalidInput(
            "another job has this id already: leave ids out, or use new ones", path="$.id"
        )


def add_linked(
    db: Database, checked_jobs: Sequence[CheckedJob], *, limited: bool = True
) -> list[Enqueued]:
    """Insert jobs that may depend on others, all or none; raise the error if one is refused.

    `limited`: up to the limits of their queues.
    """
    from tenure.store.borrowed import dependencies, jobs  # they come with the drivers of callers

    if limited:
        db.limits({checked_job.queue for checked_job in checked_jobs})  # locks them
    added = jobs.add(db.dialect.engine, checked_jobs, notify=False, limited=limited)
    return dependencies.run(db, added)


Add = Callable[[Database, Sequence[CheckedJob], Sequence[str]], list[Enqueued | TenureError]]


def _add_unique(
    db: Database, checked_jobs: Sequence[CheckedJob], add_all: Add
) -> list[Enqueued | TenureError]:
    """Add jobs that may have unique keys. `add_all` adds the jobs whose place is free."""
    from tenure.store.borrowed import dependencies  # it comes with the drivers of callers

    engine = db.dialect.engine
    made = plan(checked_jobs, dependencies.run(db, dependencies.look(engine, checked_jobs)))
    transitions.save(db, [(before, (after,)) for before, after in made.changed.values()])
    added = add_all(db, made.fresh, UNIQUE) if made.fresh else []
    new = {one.job.id for one in added if isinstance(one, Enqueued) and one.created}
    accepted = [checked_job for checked_job in made.fresh if checked_job.id in new]
    dependencies.run(db, dependencies.keep_throttles(engine, accepted))
    return answers_of(made, added)


def answers_of(made: Plan, added: Sequence[Enqueued | TenureError]) -> list[Enqueued | TenureError]:
    """Return the answer to each request of a plan, given those of its `fresh` jobs."""
    answers: list[Enqueued | TenureError] = []
    answered: set[int] = set()
    for answer in made.answers:
        if isinstance(answer, str):
            answers.append(Enqueued(made.holders[answer], created=False))
        elif isinstance(answer, TenureError):
            answers.append(answer)
        else:
            one = added[answer]
            if isinstance(one, Enqueued) and answer in answered:
                one = replace(one, created=False)
            answers.append(one)
            answered.add(answer)
    return answers


def _add_each(
    db: Database, checked_jobs: Sequence[CheckedJob], more: Sequence[str] = ()
) -> list[Enqueued | TenureError]:
    full = full_queues(db, _per_queue(checked_jobs))
    if not full:
        return add(db, checked_jobs, more)
    free = [a for a in checked_jobs if a.queue not in full]
    answers = dict(zip((a.id for a in free), add(db, free, more), strict=True))
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
            answers[checked_job.id] = add(db, [checked_job], more)[0]
    return [answers[a.id] for a in checked_jobs]


def _add_together(
    db: Database, checked_jobs: Sequence[CheckedJob], more: Sequence[str] = ()
) -> list[Enqueued | TenureError]:
    full = full_queues(db, _per_queue(checked_jobs))
    if full:
        known = db.known([a for a in checked_jobs if a.queue in full])
        full = full_queues(db, _per_queue([a for a in checked_jobs if a.id not in known]))
    for queue, limit in full.items():
        raise QueueFull(queue, limit)
    return add(db, checked_jobs, more)


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


def add_works(db: Database, works: Sequence[EnqueueWork]) -> list[tuple[Work, Any]]:
    """Do the enqueues of a transaction; return the answer to each."""
    singles = [work for work in works if len(work.checked_jobs) == 1]
    if len(works) > 1 and len(singles) < len(works):
        db.limits({a.queue for work in works for a in work.checked_jobs})  # locks all of them
    added = add_each(db, [work.checked_jobs[0] for work in singles]) if singles else []
    answers: list[tuple[Work, Any]] = [
        (work, answer if isinstance(answer, TenureError) else [answer])
        for work, answer in zip(singles, added, strict=True)
    ]
    for work in works:
        if len(work.checked_jobs) != 1:
            together = partial(add_together, checked_jobs=work.checked_jobs)
            answers.append((work, undoing(db, together)))
    return answers


# --- reports that add jobs ------------------------------------------------------------------------

REFUSED = "a job that the handler added with context.enqueue was refused:"


def hold(db: Database, reports: Sequence[Report], others: Sequence[str]) -> None:
    """Lock like `transitions.hold`: what adds jobs locks more than its own job afterwards."""
    found = [r for r in reports if r.jobs is not None]
    others = [*others, *(r.job_id for r in found), *(id for r in found for id in _parents(r))]
    transitions.hold(db, reports, others)


def _parents(report: Report) -> Iterator[str]:
    """Return the jobs that those of a report name as what they depend on."""
    if report.jobs is not None and not isinstance(report.jobs, TenureError):
        for one in report.jobs:
            if isinstance(one.checked, LinkedJob):
                yield from (edge.job_id for edge in one.checked.edges)


def settle(db: Database, reports: Sequence[Report]) -> list[Verdict]:
    """Record the reports of workers like `transitions.settle`, and add the jobs of some."""
    plain = [report for report in reports if report.jobs is None]
    verdicts = iter(transitions.settle(db, plain))
    return [next(verdicts) if r.jobs is None else _settle_adding(db, r) for r in reports]


def _settle_adding(db: Database, report: Report) -> Verdict:
    db.savepoint()
    (verdict,) = transitions.settle(db, [report])
    if verdict.answer is not Answer.RECORDED or report.outcome is not Outcome.COMPLETED:
        return verdict
    try:
        _add(db, report)
    except TenureError as refusal:
        db.undo_to_savepoint()
        error = f"{REFUSED} {type(refusal).__name__}: {refusal}"
        failed = replace(report, outcome=Outcome.FAILED, result=None, error=error)
        (verdict,) = transitions.settle(db, [failed])
        return Verdict(Answer.CONFLICT, Outcome.FAILED, verdict.retry_in, error)
    return verdict


def _add(db: Database, report: Report) -> None:
    if isinstance(report.jobs, TenureError):
        raise report.jobs
    jobs = report.jobs or ()
    options = types.every(db, types.PLAIN) if unknown_types(jobs) else {}
    checked_jobs = with_options(jobs, options)
    if report.actor is None:  # over HTTP, where only the store knows which worker it is
        actor = db.lock([report.job_id])[report.job_id].actor
        checked_jobs = [replace(checked_job, actor=actor) for checked_job in checked_jobs]
    add_follow_ups(db, checked_jobs)
