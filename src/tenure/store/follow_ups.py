"""Reports that add the jobs that a handler enqueued with `JobContext.enqueue`.

The jobs are added if and only if the completion is recorded, in its transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from tenure.errors import TenureError
from tenure.jobs.enqueue import LinkedJob
from tenure.jobs.follow_ups import unknown_types, with_options
from tenure.jobs.work import Answer, Outcome, Report, Verdict
from tenure.store import transitions
from tenure.store.enqueue import add_follow_ups
from tenure.store.protocol import Database
from tenure.store.tables import types

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
