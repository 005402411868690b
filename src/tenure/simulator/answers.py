"""Whether what a caller was told is what is on record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenure.errors import IllegalTransition, JobNotFound, KeyConflict, QueueFull
from tenure.jobs.work import Answer, Exchange, Outcome, Report, Verdict
from tenure.lifecycle import Cancelled
from tenure.simulator.asks import Apply, Asked, Beat, Enqueue, Prune, Sweep, TakeExchange
from tenure.simulator.commit import Commit
from tenure.simulator.lives import SETTLED, Broken

OUTCOMES = tuple(str(outcome) for outcome in Outcome)


def check(commit: Commit, one: Asked) -> None:
    """Raise Broken if the answer is not the truth."""
    match one.ask:
        case Enqueue():
            _enqueue(commit, one.ask, one.answer)
        case TakeExchange():
            _exchange(commit, one.ask, one.answer)
        case Beat():
            _beat(commit, one.ask, one.answer)
        case Apply():
            _apply(commit, one.ask, one.answer)
        case Sweep():
            for steps in one.answer:
                if not commit.events[steps[0].id, "lease_expired"]:
                    raise Broken("the sweep names a job that it did not end")
        case Prune():
            if one.answer > len(commit.deleted):
                raise Broken(f"{one.answer} deleted, it says, but {len(commit.deleted)} are gone")
            if not commit.deleted and commit.prunable:
                raise Broken(f"nothing was deleted, and {commit.prunable} jobs were due for it")
        case _:
            if one.answer is not None:
                raise Broken(f"a queue was not set: {one.answer!r}")


def _enqueue(commit: Commit, ask: Enqueue, answer: Any) -> None:
    lives = commit.lives
    gone = {life.id for life in commit.deleted}
    refused = isinstance(answer, KeyConflict | QueueFull)
    if (
        refused
        and len(ask.checked_jobs) > 1
        and any(a.id in commit.entered for a in ask.checked_jobs)
    ):
        raise Broken("a batch was refused, but some of it is there")
    if isinstance(answer, KeyConflict):
        life = lives.keys.get(answer.key)
        same = {a.fingerprint for a in ask.checked_jobs if a.idempotency_key == answer.key}
        if answer.job_id in gone or len(same) > 1:  # or the jobs of one batch contradict each other
            return
        if life is None or life.id != answer.job_id or same == {life.checked_job.fingerprint}:
            raise Broken(f"{answer}, but that is not so", life)
    elif isinstance(answer, QueueFull):
        room = lives.full_at.get(answer.queue)
        wanted = sum(a.queue == answer.queue for a in ask.checked_jobs)
        if room is None or commit.fullest.get(answer.queue, 0) + wanted <= room:
            raise Broken(f"{answer}, but that is not so")
    elif isinstance(answer, Exception):
        raise Broken(f"an enqueue was answered {answer!r}")
    else:
        for checked_job, added in zip(ask.checked_jobs, answer, strict=True):
            life = lives.all.get(added.job.id)
            if added.job.id in gone:
                continue
            if life is None:
                raise Broken("an enqueue was accepted, but its job is not there")
            if added.created != (life.id == checked_job.id):
                raise Broken("told wrongly whether a job was new", life)
            if life.id != checked_job.id and (
                checked_job.idempotency_key is None
                or life.checked_job.idempotency_key != checked_job.idempotency_key
                or life.checked_job.fingerprint != checked_job.fingerprint
            ):
                raise Broken("an enqueue was answered with somebody else's job", life)


def _exchange(commit: Commit, ask: TakeExchange, answer: Exchange) -> None:
    for report, verdict in zip(ask.reports, answer.verdicts, strict=True):
        _verdict(commit, report, verdict)
    _recorded_once(commit, ask.reports, answer.verdicts)
    if ask.claim is None:
        if answer.leases:
            raise Broken("a turn without a claim brought jobs")
        return
    if len(answer.leases) > ask.claim.limit:
        raise Broken("a claim brought more than it asked for")
    for lease in answer.leases:
        life = commit.claimed.get(lease.lease_id)
        if life is None or life.id != lease.id:
            raise Broken("a worker was given a lease that is not on record", life)
        if ask.claim.queues is not None and lease.queue not in ask.claim.queues:
            raise Broken("a worker was given a job of a queue it did not ask for", life)
        if (lease.attempts, lease.token) != (life.attempts, life.token):
            raise Broken("a worker was told another attempt or token", life)
    if len(answer.leases) < ask.claim.limit:
        for life in commit.lives.due(commit.now):
            wanted = ask.claim.queues is None or life.checked_job.queue in ask.claim.queues
            # What became pending in this very commit did so before the claims, too.
            if wanted:
                raise Broken("a claim left a job that was due", life)


def _verdict(commit: Commit, report: Report, verdict: Verdict) -> None:
    life = commit.lives.all.get(report.job_id)
    if life is None:
        if verdict.answer is not Answer.LOST and not commit.deleted:
            raise Broken(f"a report on a job that is not there was answered {verdict.answer}")
        return
    if life.lease == report.lease_id:
        raise Broken(f"the holder of a lease was told {verdict.answer}, and nothing changed", life)
    end = life.ended.get(report.lease_id, "")
    if end == report.outcome:
        true = verdict.answer in (Answer.RECORDED, Answer.ALREADY_RECORDED)
        if verdict.answer is Answer.RECORDED:
            true = (life.id, report.lease_id) in commit.ended_now
    elif end in OUTCOMES:
        true = verdict == Verdict(Answer.CONFLICT, end)
    else:
        true = verdict == Verdict(Answer.LOST, end)
    if not true:
        said = f"{verdict.answer} {verdict.recorded}".rstrip()
        raise Broken(
            f"a report of {report.outcome} was answered {said}; on record is {end or 'nothing'}",
            life,
        )


def _recorded_once(commit: Commit, reports: Sequence[Report], verdicts: Sequence[Verdict]) -> None:
    told = set()
    for report, verdict in zip(reports, verdicts, strict=True):
        if verdict.answer is Answer.RECORDED:
            if report.lease_id in told:
                life = commit.lives.all.get(report.job_id)
                raise Broken("one lease was answered as recorded twice", life)
            told.add(report.lease_id)


def _beat(commit: Commit, ask: Beat, answer: set[str]) -> None:
    for job_id, lease in ask.leases:
        life = commit.lives.all.get(job_id)
        if life is None:
            continue
        if life.lease == lease and lease not in answer:
            raise Broken("a heartbeat was told that its lease is lost, and it is held", life)
        ended = (life.id, lease) in commit.ended_now
        if life.lease != lease and not ended and lease in answer:
            raise Broken("a heartbeat was told that its lease is held, and it is lost", life)


def _apply(commit: Commit, ask: Apply, answer: Any) -> None:
    life = commit.lives.all.get(ask.job_id)
    cancel = isinstance(ask.event, Cancelled)
    if isinstance(answer, JobNotFound):
        if life is not None:
            raise Broken("an operator was told that a job is not there", life)
    elif isinstance(answer, IllegalTransition):
        if life is None:
            return
        seen = commit.statuses.get(life.id, set()) | {life.status}
        if not (seen & set(SETTLED) if cancel else seen - {"failed"}):
            raise Broken(f"{answer}, but that is not so", life)
    elif isinstance(answer, Exception):
        raise Broken(f"an operator was answered {answer!r}", life)
    elif not commit.events[ask.job_id, "cancelled" if cancel else "retried"]:
        raise Broken("an operator was told of a move that is not on record", life)
