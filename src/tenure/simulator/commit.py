"""One transaction as the auditor sees it: what was asked in it, and what it did to which job."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

from tenure.jobs.checked_job import CheckedJob
from tenure.jobs.work import ClaimRequest, Outcome, Report
from tenure.lifecycle import Cancelled, Retried
from tenure.simulator.asks import Apply, Asked, Beat, Enqueue, Prune, SetQueue, Sweep, TakeExchange
from tenure.simulator.lives import RELEASES, Broken, Life, Lives

Kind = TypeVar("Kind", Beat, Prune, SetQueue, Sweep)


class Commit:
    """What one transaction was asked, and what it did."""

    def __init__(self, lives: Lives, asked: Sequence[Asked], now: int) -> None:
        self.lives = lives
        self.now = now
        self.asked = asked
        self.touched: dict[Life, None] = {}  # in the order in which they were
        self.statuses: dict[str, set[str]] = {}  # every status that a job moved from
        self.events: defaultdict[tuple[str, str], int] = defaultdict(int)  # (job id, event)
        self.ended_now: set[tuple[str, str]] = set()  # (job id, lease)
        self.claimed: dict[str, Life] = {}  # by lease
        self.fullest = dict(lives.pending)  # most pending jobs of each queue on the way
        self.entered: set[str] = set()
        self.deleted: list[Life] = []
        self.prunable = 0
        self.new_limits: dict[str, int] = {}
        self.checked_jobs: dict[str, CheckedJob] = {}
        self.reports: dict[tuple[str, str], list[Report]] = {}
        self.claims: dict[str, ClaimRequest] = {}
        self.wanted: dict[tuple[str, str], int] = {}  # (job id, event) -> more retries
        self._kinds = {type(one.ask) for one in asked}
        for one in asked:
            match one.ask:
                case Enqueue(checked_jobs):
                    self.checked_jobs |= {a.id: a for a in checked_jobs}
                case TakeExchange(reports, claim):
                    for report in reports:
                        key = (report.job_id, report.lease_id)
                        self.reports.setdefault(key, []).append(report)
                    if claim is not None:
                        self.claims[claim.worker] = claim
                case Apply(job_id, Cancelled()):
                    self.wanted[job_id, "cancelled"] = 0
                case Apply(job_id, Retried(more_retries=more)):
                    self.wanted[job_id, "retried"] = more
                case _:
                    pass

    def asks(self, kind: type[Kind]) -> Sequence[Kind]:
        """The asks of one kind."""
        if kind not in self._kinds:
            return ()
        return [one.ask for one in self.asked if isinstance(one.ask, kind)]

    def touch(self, life: Life) -> None:
        """Something about the job may have changed."""
        self.touched[life] = None

    def enter(self, life: Life) -> None:
        """A job was added."""
        self.touch(life)
        self.entered.add(life.id)
        self._fill(life)

    def _fill(self, life: Life) -> None:
        queue = life.checked_job.queue
        self.fullest[queue] = max(self.fullest.get(queue, 0), self.lives.pending[queue])

    # --- moves

    def allow(self, life: Life, event: str, actor: str | None) -> None:
        """Whether anybody asked for this move, and it is time for it."""
        self.statuses.setdefault(life.id, set()).add(life.status)
        if event == "claimed":
            if life.checked_job.queue in self.lives.paused:
                raise Broken("claimed from a queue that is paused", life)
            if actor not in self.claims:
                raise Broken("claimed by a worker that did not ask", life)
        elif event == "lease_expired":
            if not self.asks(Sweep):
                raise Broken("a lease ended and nobody swept", life)
            if life.lease_end is not None and life.lease_end > self.now:
                raise Broken("a lease was ended that still ran", life)
        elif event in tuple(Outcome):
            reports = self.reports.get((life.id, life.lease or ""), [])
            too_often = life.token - life.attempts >= RELEASES and event == "failed"
            said = {str(report.outcome) for report in reports}
            if event not in said and not (too_often and "released" in said):
                raise Broken(f"{event}, which its holder did not report", life)
            if event == "completed":
                life.result = reports[0].result
        elif event == "cancelled" and (life.id, event) not in self.wanted:
            raise Broken("cancelled, which nobody wanted", life)

    def claim_until(self, life: Life, actor: str | None) -> int:
        """When the lease ends that a worker takes now."""
        return self.now + round(self.claims[actor or ""].lease_seconds * 1000)

    def retry(self, life: Life, actor: str | None) -> None:
        """It goes back to pending: because its failure may be tried again, or by hand."""
        if actor == "store":
            if self.events[life.id, "failed"] + self.events[life.id, "lease_expired"] == 0:
                raise Broken("tried again without a failure", life)
            if life.status == "pending" and life.attempts >= life.limit:
                raise Broken("tried again with no attempt left", life)
            life.retry_from = self.now
            return
        if (life.id, "retried") not in self.wanted:
            raise Broken("tried again, which nobody wanted", life)
        if more := self.wanted[life.id, "retried"]:
            life.limit = max(life.limit, life.attempts) + more
        life.retry_from, life.run_at = None, self.now

    def moved(self, life: Life, event: str, actor: str | None) -> None:
        """Remember the move for the answers."""
        self.touch(life)
        self._fill(life)
        self.events[life.id, event] += 1
        if event == "claimed" and life.lease is not None:
            self.claimed[life.lease] = life
        elif event != "retried" and life.ended:
            self.ended_now.add((life.id, next(reversed(life.ended))))

    # --- at its end

    def check_retries(self) -> None:
        """No failure that may be tried again rests, and none rests that was called permanent."""
        for life in self.touched:
            failed = self.events[life.id, "failed"] + self.events[life.id, "lease_expired"]
            if failed:
                ended = next(reversed(life.ended))
                reports = self.reports.get((life.id, ended), [])
                final = life.ended[ended] == "failed" and any(not r.retryable for r in reports)
                if life.status == "failed" and life.attempts < life.limit and not final:
                    raise Broken("its retry was lost", life)
                again = life.status != "failed" and (life.id, "retried") not in self.wanted
                if final and again and all(not r.retryable for r in reports):
                    raise Broken("a permanent failure was tried again", life)
            if life.lease in self.claimed and life.run_at > self.now:
                raise Broken("claimed before its time", life)
            if life.status != "processing":
                continue
            life.retry_from = None

    def check_order(self) -> None:
        """What was claimed stood before what is left, and nothing that ran out is left."""
        last: dict[str, Life] = {}
        for life in self.claimed.values():
            queue = life.checked_job.queue
            if queue not in last or life.order > last[queue].order:
                last[queue] = life
        for life in self.lives.due(self.now) if last else ():
            ahead = last.get(life.checked_job.queue)
            if ahead is not None and life.id not in self.statuses and life.order < ahead.order:
                raise Broken(f"job {ahead.number} was claimed before it", life)
        sweeps = self.asks(Sweep)
        if sweeps:
            ended = sum(n for (_, event), n in self.events.items() if event == "lease_expired")
            for life in self.lives.open.values():
                over = life.lease_end is not None and life.lease_end <= self.now
                if over and ended < max(sweep.limit for sweep in sweeps):
                    raise Broken("the sweep left a lease that had run out", life)
