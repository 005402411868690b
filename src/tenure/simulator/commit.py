"""One transaction as the auditor sees it: the calls in it, and what it did to which job."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TypeVar

from tenure.jobs.enqueue import CheckedJob
from tenure.jobs.work import ClaimRequest, Outcome, Report
from tenure.lifecycle import Cancelled, Retried
from tenure.simulator import calls
from tenure.simulator.database import LedgerRow
from tenure.simulator.expected import MAX_RELEASES, BrokenRule, ExpectedJob, ExpectedJobs, forbid

Kind = TypeVar("Kind", calls.HeartbeatCall, calls.PruneCall, calls.QueueCall, calls.SweepCall)
OUTCOMES = tuple(str(outcome) for outcome in Outcome)


class AuditedCommit:
    """The calls of one transaction, and every change that it made."""

    def __init__(
        self, jobs: ExpectedJobs, answered: Sequence[calls.AnsweredCall], now: int
    ) -> None:
        self.jobs = jobs
        self.now = now
        self.touched: dict[ExpectedJob, None] = {}  # in the order in which they were
        self.statuses: defaultdict[str, set[str]] = defaultdict(set)  # that a job left
        self.events: Counter[tuple[str, str]] = Counter()  # (job id, event)
        self.ended_now: set[tuple[str, str]] = set()  # (job id, lease)
        self.claimed: dict[str, ExpectedJob] = {}  # by lease
        self.fullest = dict(jobs.pending)  # most pending jobs of each queue at any moment
        self.added: set[str] = set()
        self.deleted: list[ExpectedJob] = []
        self.prunable = 0
        self._calls = [one.call for one in answered]
        self._kinds = {type(call) for call in self._calls}
        self._checked_jobs: dict[str, CheckedJob] = {}
        self._reports: defaultdict[tuple[str, str], list[Report]] = defaultdict(list)
        self._claims: dict[str, ClaimRequest] = {}
        self._wanted: dict[tuple[str, str], int] = {}  # (job id, event) -> more retries
        for call in self._calls:
            match call:
                case calls.EnqueueCall(checked_jobs):
                    self._checked_jobs |= {job.id: job for job in checked_jobs}
                case calls.ExchangeCall(reports, claim):
                    for report in reports:
                        self._reports[report.job_id, report.lease_id].append(report)
                    if claim is not None:
                        self._claims[claim.worker] = claim
                case calls.OperatorCall(job_id, Cancelled()):
                    self._wanted[job_id, "cancelled"] = 0
                case calls.OperatorCall(job_id, Retried(more_retries=more)):
                    self._wanted[job_id, "retried"] = more
                case _:
                    pass

    def calls(self, kind: type[Kind]) -> Sequence[Kind]:
        if kind not in self._kinds:
            return ()
        return [call for call in self._calls if isinstance(call, kind)]

    # --- transitions

    def follow(self, row: LedgerRow) -> ExpectedJob:
        """Check one row of the ledger, and apply it to its job."""
        if row.event == "enqueued":
            return self._add(row)
        job = self.jobs.all.get(row.job_id)
        if job is None:
            raise BrokenRule(f"{row.event} of a job that is not there")
        held, attempts = job.lease, job.attempts
        forbid(row.source != job.status, f"{row.event} from {row.source}, it was {job.status}", job)
        forbid(row.at != self.now, f"{row.event} is on record at another time", job)
        self._check_cause(job, row)
        self.statuses[job.id].add(job.status)
        self.jobs.transition(job, row.event, row.target, self.now)
        if row.event == "claimed":
            seconds = self._claims[row.actor or ""].lease_seconds
            self.jobs.claim(job, row.lease_id, self.now + round(seconds * 1000))
        elif held is not None and row.lease_id != held:
            raise BrokenRule(f"{row.event} is on record for another lease", job)
        elif row.event == "released":
            job.attempts -= 1
        elif row.event == "retried":
            self._retry(job, row.actor)
        self._remember(job, row.event)
        if (row.attempt, row.token) != (max(attempts, job.attempts), job.token):
            raise BrokenRule(
                f"{row.event} is on record as attempt {row.attempt}, token {row.token}", job
            )
        return job

    def _add(self, row: LedgerRow) -> ExpectedJob:
        checked_job = self._checked_jobs.get(row.job_id)
        if checked_job is None:
            raise BrokenRule("a job that no producer added")
        job = self.jobs.add(checked_job, self.now)
        self.touched[job] = None
        self.added.add(job.id)
        self._fill(job.queue)
        return job

    def _fill(self, queue: str) -> None:
        self.fullest[queue] = max(self.fullest.get(queue, 0), self.jobs.pending[queue])

    def _check_cause(self, job: ExpectedJob, row: LedgerRow) -> None:
        """Check that a call asked for this transition, and that it was time for it."""
        event = row.event
        if event == "claimed":
            forbid(job.queue in self.jobs.paused, "claimed from a queue that is paused", job)
            forbid(row.actor not in self._claims, "claimed by a worker that did not ask", job)
        elif event == "lease_expired":
            forbid(not self.calls(calls.SweepCall), "a lease ended without a sweep", job)
            forbid((job.lease_end or 0) > self.now, "a lease was ended that still ran", job)
        elif event in OUTCOMES:
            reports = self._reports.get((job.id, job.lease or ""), [])
            too_often = job.token - job.attempts >= MAX_RELEASES and event == "failed"
            reported = {str(report.outcome) for report in reports}
            if event not in reported and not (too_often and "released" in reported):
                raise BrokenRule(f"{event}, which its holder did not report", job)
            if event == "completed":
                job.result = reports[0].result
        elif event == "cancelled" and (job.id, event) not in self._wanted:
            raise BrokenRule("cancelled, which no operator wanted", job)

    def _retry(self, job: ExpectedJob, actor: str | None) -> None:
        """The job is pending again: the store retried it after a failure, or an operator did."""
        if actor == "store":
            forbid(not self._failures(job), "retried without a failure", job)
            forbid(job.attempts >= job.limit, "retried with no attempt left", job)
            job.retry_from = self.now
            return
        forbid((job.id, "retried") not in self._wanted, "retried, which no operator wanted", job)
        if more := self._wanted[job.id, "retried"]:
            job.limit = max(job.limit, job.attempts) + more
        job.retry_from, job.run_at = None, self.now

    def _failures(self, job: ExpectedJob) -> int:
        return self.events[job.id, "failed"] + self.events[job.id, "lease_expired"]

    def _remember(self, job: ExpectedJob, event: str) -> None:
        self.touched[job] = None
        self._fill(job.queue)
        self.events[job.id, event] += 1
        if event == "claimed" and job.lease is not None:
            self.claimed[job.lease] = job
        elif event != "retried" and job.ended:
            self.ended_now.add((job.id, next(reversed(job.ended))))

    def renew(self) -> None:
        """Extend the leases that heartbeats renewed; a heartbeat leaves no row in the ledger."""
        for call in self.calls(calls.HeartbeatCall):
            until = self.now + round(call.seconds * 1000)
            for job_id, lease in call.leases:
                job = self.jobs.all.get(job_id)
                if job is not None and job.lease == lease and job.lease_end is not None:
                    job.lease_end = max(job.lease_end, until)
                    self.touched[job] = None

    # --- at its end

    def check_retries(self) -> None:
        """Check that each failure was retried or is final, as its report and its budget say."""
        for job in self.touched:
            if self._failures(job):
                ended = next(reversed(job.ended))
                reports = self._reports.get((job.id, ended), [])
                final = job.ended[ended] == "failed" and any(not r.retryable for r in reports)
                if job.status == "failed" and job.attempts < job.limit and not final:
                    raise BrokenRule("its retry was lost", job)
                again = job.status != "failed" and (job.id, "retried") not in self._wanted
                if final and again and all(not r.retryable for r in reports):
                    raise BrokenRule("a permanent failure was retried", job)
            forbid(job.lease in self.claimed and job.run_at > self.now, "claimed too early", job)
            if job.status == "processing":
                job.retry_from = None

    def check_order(self) -> None:
        """Check that no job was passed over, and that the sweep left no lease that ran out."""
        last: dict[str, ExpectedJob] = {}
        for job in self.claimed.values():
            if job.queue not in last or job.order > last[job.queue].order:
                last[job.queue] = job
        for job in self.jobs.due(self.now) if last else ():
            ahead = last.get(job.queue)
            if ahead is not None and job.id not in self.statuses and job.order < ahead.order:
                raise BrokenRule(f"job {ahead.number} was claimed before it", job)
        limit = max((call.limit for call in self.calls(calls.SweepCall)), default=0)
        ended = sum(n for (_, event), n in self.events.items() if event == "lease_expired")
        for job in self.jobs.open.values() if ended < limit else ():
            forbid(0 < (job.lease_end or 0) <= self.now, "the sweep left an expired lease", job)
