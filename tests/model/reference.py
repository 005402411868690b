"""The store as dictionaries: what every real store must agree with, answer for answer.

It asks the lifecycle (`follow`) what happens to a job; all the rest, which jobs a claim takes, what
a late report is told, what a key means, is written here a second time, as plainly as possible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from tenure.errors import IllegalTransition, KeyConflict, LeaseLost, TenureError
from tenure.events import (
    Claimed,
    Completed,
    Event,
    Failed,
    GaveUp,
    Interrupted,
    LeaseExpired,
    Released,
    Snoozed,
)
from tenure.lifecycle import Job, decide, follow
from tenure.rules.jobs import CheckedJob
from tenure.rules.reports import Answer, Lease, Outcome, Report, Verdict

FINAL = ("completed", "failed", "cancelled")
OUTCOMES = tuple(outcome for outcome in Outcome if outcome is not Outcome.SUSPENDED)
"""What the workers of the model report. Signals are tested by themselves."""


class Entry(NamedTuple):
    """One line of the ledger."""

    at: datetime
    source: str | None
    target: str
    event: str
    attempt: int
    token: int
    lease_id: str | None
    actor: str | None
    detail: str | None


class Reference:
    """The whole state, and one method per verb of the store."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.jobs: dict[str, Job] = {}
        self.ledger: dict[str, list[Entry]] = {}
        self.fingerprints: dict[str, str | None] = {}
        self.ended: dict[tuple[str, str], str] = {}  # (job id, lease id) -> how the lease ended

    # --- adding

    def add(self, checked_jobs: Sequence[CheckedJob]) -> list[tuple[Job, bool]] | TenureError:
        """(job, whether it is new) for each, or the refusal that undoes them all."""
        new: dict[str, Job] = {}
        fingerprints: dict[str, str | None] = {}
        answers: list[tuple[Job, bool]] = []
        for checked_job in checked_jobs:
            there = self._there({**self.jobs, **new}, checked_job)
            if there is None:
                there = self._made(checked_job)
                new[checked_job.id] = there
                fingerprints[checked_job.id] = checked_job.fingerprint
            elif checked_job.idempotency_key is not None:
                kept = {**self.fingerprints, **fingerprints}[there.id]
                if kept != checked_job.fingerprint:
                    return KeyConflict(checked_job.idempotency_key, there.id)
            answers.append((there, there.id == checked_job.id))
        self.jobs |= new
        self.fingerprints |= fingerprints
        for id, job in new.items():
            entry = Entry(self.now, None, "pending", "enqueued", 0, 0, None, job.actor, None)
            self.ledger[id] = [entry]
        return answers

    def _there(self, jobs: dict[str, Job], checked_job: CheckedJob) -> Job | None:
        if checked_job.id in jobs:
            return jobs[checked_job.id]
        key = checked_job.idempotency_key
        same = (job for job in jobs.values() if key is not None and job.idempotency_key == key)
        return next(same, None)

    def _made(self, checked_job: CheckedJob) -> Job:
        return Job(
            id=checked_job.id,
            type=checked_job.type,
            payload_json=checked_job.payload,
            priority=checked_job.priority,
            max_retries=checked_job.max_retries,
            backoff=checked_job.backoff,
            idempotency_key=checked_job.idempotency_key,
            created_at=self.now,
            run_at=self.now + timedelta(seconds=checked_job.delay),
            actor=checked_job.actor,
        )

    # --- leases

    def due(self, limit: int) -> list[str]:
        """The jobs that a claim must take, in order."""
        waiting = [j for j in self.jobs.values() if j.status == "pending" and j.run_at <= self.now]
        waiting.sort(key=lambda job: (job.priority, job.run_at, job.id))
        return [job.id for job in waiting[:limit]]

    def claim(self, leases: Iterable[Lease], worker: str, seconds: float) -> None:
        """Take over the leases that the store gave: their ids are the one thing it may choose."""
        for lease in leases:
            event = Claimed(lease_id=lease.lease_id, lease_seconds=seconds, actor=worker)
            self._keep(self.jobs[lease.id], [decide(self.jobs[lease.id], event, self.now)])

    def report(self, reports: Sequence[Report]) -> list[Verdict]:
        """Successes of a batch are recorded first, then the rest in order."""
        verdicts: dict[int, Verdict] = {}
        order = sorted(range(len(reports)), key=lambda n: reports[n].outcome != "completed")
        for number in order:
            verdicts[number] = self._report(reports[number])
        return [verdicts[number] for number in range(len(reports))]

    def _report(self, report: Report) -> Verdict:
        job = self.jobs.get(report.job_id)
        if job is None:
            return Verdict(Answer.LOST)
        try:
            path = follow(job, event_of(report), self.now)
        except (LeaseLost, IllegalTransition):
            ended = self.ended.get((report.job_id, report.lease_id), "")
            ended = "failed" if ended == "gave_up" else ended
            if ended == report.outcome:
                return Verdict(Answer.ALREADY_RECORDED)
            if ended in tuple(Outcome):
                return Verdict(Answer.CONFLICT, ended)
            return Verdict(Answer.LOST, ended)
        self._keep(job, path)
        event = "failed" if path[0].event == "gave_up" else path[0].event
        if event != report.outcome:
            return Verdict(Answer.CONFLICT, event)
        if len(path) == 1:
            return Verdict(Answer.RECORDED)
        wait = (path[-1].run_at - self.now).total_seconds()
        return Verdict(Answer.RECORDED, retry_in=wait)

    def renew(self, leases: Iterable[tuple[str, str]], seconds: float) -> set[str]:
        held = set()
        for job_id, lease_id in leases:
            job = self.jobs.get(job_id)
            if job is None or job.lease_id != lease_id or job.lease_expires_at is None:
                continue
            until = max(job.lease_expires_at, self.now + timedelta(seconds=seconds))
            self.jobs[job_id] = changed(job, lease_expires_at=until)
            held.add(lease_id)
        return held

    def sweep(self) -> list[Job]:
        over = [
            job
            for job in self.jobs.values()
            if job.lease_expires_at is not None and job.lease_expires_at <= self.now
        ]
        return [self._keep(job, follow(job, LeaseExpired(), self.now)) for job in over]

    # --- operators

    def apply(self, job_id: str, event: Event) -> Job:
        job = self.jobs[job_id]
        return self._keep(job, follow(job, event, self.now))

    def apply_matching(self, fits: Callable[[Job], bool], event: Event) -> list[Job]:
        done = []
        for job in [job for job in self.jobs.values() if fits(job)]:
            try:
                done.append(self._keep(job, follow(job, event, self.now)))
            except IllegalTransition:
                continue
        return done

    def prune(self, statuses: Iterable[str], before: datetime) -> int:
        gone = [
            job.id
            for job in self.jobs.values()
            if job.status in statuses and job.finished_at is not None and job.finished_at < before
        ]
        for id in gone:
            del self.jobs[id], self.ledger[id], self.fingerprints[id]
        self.ended = {lease: how for lease, how in self.ended.items() if lease[0] in self.jobs}
        return len(gone)

    # --- keeping

    def _keep(self, before: Job, path: Sequence[Job]) -> Job:
        for after in path:
            lease_id = after.lease_id or before.lease_id
            self.ledger[after.id].append(
                Entry(
                    self.now,
                    str(before.status),
                    str(after.status),
                    after.event,
                    max(before.attempts, after.attempts),
                    after.token,
                    lease_id,
                    after.actor,
                    after.last_error if after.status == "failed" else None,
                )
            )
            if before.lease_id is not None:
                self.ended[before.id, before.lease_id] = after.event
            before = after
        self.jobs[before.id] = before
        return before


def event_of(report: Report) -> Event:
    """What a report says, in the words of the lifecycle."""
    lease_id, actor = report.lease_id, report.actor
    if report.outcome is Outcome.COMPLETED:
        return Completed(lease_id=lease_id, result=report.result, actor=actor)
    if report.outcome is Outcome.SNOOZED:
        return Snoozed(lease_id=lease_id, delay=report.delay or 0, actor=actor)
    if report.outcome is Outcome.INTERRUPTED:
        return Interrupted(lease_id=lease_id, actor=actor)
    if report.outcome is Outcome.RELEASED:
        return Released(lease_id=lease_id, actor=actor)
    if not report.retryable:
        return GaveUp(lease_id=lease_id, error=report.error, actor=actor)
    return Failed(lease_id=lease_id, error=report.error, delay=report.delay, actor=actor)


def changed(job: Job, **fields: object) -> Job:
    """The job with other values in some fields."""
    values = {name: getattr(job, name) for name in job.__struct_fields__}
    return Job(**{**values, **fields})
