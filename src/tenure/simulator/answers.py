"""Whether the answer to a call agrees with what is on record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenure.errors import IllegalTransition, JobNotFound, KeyConflict, QueueFull
from tenure.jobs.enqueue import CheckedJob, Enqueued
from tenure.jobs.work import Answer, ClaimRequest, Exchange, Report, Verdict
from tenure.lifecycle import Cancelled
from tenure.simulator import calls
from tenure.simulator.commit import OUTCOMES, AuditedCommit
from tenure.simulator.expected import SETTLED, BrokenRule, forbid


def check(commit: AuditedCommit, one: calls.AnsweredCall) -> None:
    """Raise BrokenRule if the answer is not true."""
    answer = one.answer
    match one.call:
        case calls.EnqueueCall(checked_jobs):
            _check_enqueue(commit, checked_jobs, answer)
        case calls.ExchangeCall(reports, claim):
            _check_verdicts(commit, reports, answer.verdicts)
            _check_leases(commit, claim, answer)
        case calls.HeartbeatCall():
            _check_heartbeat(commit, one.call, answer)
        case calls.OperatorCall():
            _check_operator(commit, one.call, answer)
        case calls.SweepCall():
            if any(not commit.events[steps[0].id, "lease_expired"] for steps in answer):
                raise BrokenRule("the sweep names a job that it did not end")
        case calls.PruneCall():
            forbid(answer > len(commit.deleted), f"{answer} deleted, not {len(commit.deleted)}")
            if not commit.deleted and commit.prunable:
                raise BrokenRule(f"nothing was deleted, and {commit.prunable} jobs were due for it")
        case _:
            forbid(answer is not None, f"a queue was not set: {answer!r}")


def _check_enqueue(commit: AuditedCommit, sent: Sequence[CheckedJob], answer: Any) -> None:
    refused = isinstance(answer, KeyConflict | QueueFull)
    if refused and len(sent) > 1 and any(job.id in commit.added for job in sent):
        raise BrokenRule("a batch was refused, but some of it is there")
    if isinstance(answer, KeyConflict):
        job = commit.jobs.keys.get(answer.key)
        same = {job.fingerprint for job in sent if job.idempotency_key == answer.key}
        gone = any(deleted.id == answer.job_id for deleted in commit.deleted)
        if gone or len(same) > 1:  # or the jobs of one batch contradict each other
            return
        if job is None or job.id != answer.job_id or same == {job.checked_job.fingerprint}:
            raise BrokenRule(f"{answer}, not so", job)
    elif isinstance(answer, QueueFull):
        room = commit.jobs.full_at.get(answer.queue)
        wanted = sum(job.queue == answer.queue for job in sent)
        if room is None or commit.fullest.get(answer.queue, 0) + wanted <= room:
            raise BrokenRule(f"{answer}, not so")
    elif isinstance(answer, Exception):
        raise BrokenRule(f"an enqueue was answered {answer!r}")
    else:
        for checked_job, enqueued in zip(sent, answer, strict=True):
            _check_enqueued(commit, checked_job, enqueued)


def _check_enqueued(commit: AuditedCommit, checked_job: CheckedJob, enqueued: Enqueued) -> None:
    if any(deleted.id == enqueued.job.id for deleted in commit.deleted):
        return
    job = commit.jobs.all.get(enqueued.job.id)
    if job is None:
        raise BrokenRule("an enqueue was accepted, but its job is not there")
    forbid(enqueued.created != (job.id == checked_job.id), "wrong on whether the job was new", job)
    key, known = checked_job.idempotency_key, job.checked_job
    same = known.idempotency_key == key and known.fingerprint == checked_job.fingerprint
    if job.id != checked_job.id and (key is None or not same):
        raise BrokenRule("an enqueue was answered with a job of another request", job)


def _check_leases(commit: AuditedCommit, claim: ClaimRequest | None, answer: Exchange) -> None:
    if claim is None:
        forbid(answer.leases, "an exchange without a claim brought jobs")
        return
    forbid(len(answer.leases) > claim.limit, "a claim brought more than it asked for")
    for lease in answer.leases:
        job = commit.claimed.get(lease.lease_id)
        if job is None or job.id != lease.id:
            raise BrokenRule("a worker was given a lease that is not on record", job)
        if (lease.attempts, lease.token) != (job.attempts, job.token):
            raise BrokenRule("a worker was given another attempt or token", job)
    if len(answer.leases) < claim.limit:
        for job in commit.jobs.due(commit.now):  # also if it became pending in this very commit
            raise BrokenRule("a claim left a job that was due", job)


def _check_verdicts(
    commit: AuditedCommit, reports: Sequence[Report], verdicts: Sequence[Verdict]
) -> None:
    recorded = set()
    for report, verdict in zip(reports, verdicts, strict=True):
        _check_verdict(commit, report, verdict)
        if verdict.answer is Answer.RECORDED:
            if report.lease_id in recorded:
                job = commit.jobs.all.get(report.job_id)
                raise BrokenRule("one lease was answered as recorded twice", job)
            recorded.add(report.lease_id)


def _check_verdict(commit: AuditedCommit, report: Report, verdict: Verdict) -> None:
    job = commit.jobs.all.get(report.job_id)
    if job is None:
        if verdict.answer is not Answer.LOST and not commit.deleted:
            raise BrokenRule(f"a report on a job that is not there was answered {verdict.answer}")
        return
    forbid(job.lease == report.lease_id, f"a held lease, its report answered {verdict.answer}", job)
    end = job.ended.get(report.lease_id, "")
    if end == report.outcome:
        true = verdict.answer in (Answer.RECORDED, Answer.ALREADY_RECORDED)
        if verdict.answer is Answer.RECORDED:
            true = (job.id, report.lease_id) in commit.ended_now
    else:
        true = verdict == Verdict(Answer.CONFLICT if end in OUTCOMES else Answer.LOST, end)
    if not true:
        found = f"{verdict.answer} {verdict.recorded}".rstrip()
        raise BrokenRule(
            f"a report of {report.outcome} was answered {found}; on record is {end or 'nothing'}",
            job,
        )


def _check_heartbeat(commit: AuditedCommit, call: calls.HeartbeatCall, answer: set[str]) -> None:
    for job_id, lease in call.leases:
        job = commit.jobs.all.get(job_id)
        if job is None:
            continue
        if job.lease == lease and lease not in answer:
            raise BrokenRule("a heartbeat was answered that its lease is lost; it is held", job)
        ended = (job.id, lease) in commit.ended_now
        if job.lease != lease and not ended and lease in answer:
            raise BrokenRule("a heartbeat was answered that its lease is held; it is lost", job)


def _check_operator(commit: AuditedCommit, call: calls.OperatorCall, answer: Any) -> None:
    job = commit.jobs.all.get(call.job_id)
    cancel = isinstance(call.event, Cancelled)
    if isinstance(answer, JobNotFound):
        forbid(job is not None, "an operator was answered that a job is not there", job)
    elif isinstance(answer, IllegalTransition):
        if job is None:
            return
        seen = commit.statuses.get(job.id, set()) | {job.status}
        forbid(not (seen & set(SETTLED) if cancel else seen - {"failed"}), f"{answer}, not so", job)
    elif isinstance(answer, Exception):
        raise BrokenRule(f"an operator was answered {answer!r}", job)
    elif not commit.events[call.job_id, "cancelled" if cancel else "retried"]:
        raise BrokenRule("an operator was answered with a change that is not on record", job)
