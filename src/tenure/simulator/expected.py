"""The store as dictionaries, and an auditor that compares every commit of the real one with it.

`ExpectedStore` says what each call must be answered, and what it must leave behind; `Auditor`
compares the ledger, the rows and the answers. The rules here are those of
docs/reference/lifecycle.md, written again by hand: a check that asked the lifecycle would agree
with its mistakes. Some things the store chooses: ids of leases, jobs of different queues, jitter,
how much it prunes. They are read from the database, and checked.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any

from tenure.errors import IllegalTransition, JobNotFound, KeyConflict, QueueFull, TenureError
from tenure.events import Cancelled, Retried
from tenure.rules.jobs import CheckedJob, Enqueued
from tenure.rules.ledger import Transition
from tenure.rules.reports import Answer, ClaimRequest, Exchange, Outcome, Report
from tenure.simulator.database import UNKNOWN, SimulatedDatabase, StoreCall
from tenure.store.reader import Reader

SETTLED = ("completed", "failed", "cancelled")
RETURNS = ("released", "interrupted", "snoozed")
MAX_RETURNS = 100  # how often a job may be released or interrupted; the next time it fails
JITTER = 0.1


class BrokenRule(Exception):
    """Something happened that must never happen."""

    def __init__(self, what: str, job: ExpectedJob | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.job = job


@dataclass(slots=True, eq=False)
class ExpectedJob:
    """One job as its transitions make it."""

    sent: CheckedJob
    max_retries: int
    run_at: datetime
    status: str = "pending"
    attempts: int = 0
    token: int = 0
    snoozes: int = 0
    lease_id: str | None = None
    lease_expires_at: datetime | None = None
    finished_at: datetime | None = None
    result_json: str | None = None
    ended: dict[str, str] = field(default_factory=dict)  # lease -> how it ended

    @property
    def id(self) -> str:
        return self.sent.id

    @property
    def order(self) -> tuple[int, datetime, str]:
        return self.sent.priority, self.run_at, self.id


class ExpectedStore:
    """Every job that must exist, and the settings of the queues."""

    def __init__(self, database: SimulatedDatabase) -> None:
        self.jobs: dict[str, ExpectedJob] = {}
        self.open: dict[str, ExpectedJob] = {}  # jobs that are not settled
        self.changed: dict[str, list[str]] = {}  # job -> its transitions in the last transaction
        self.missed: list[BrokenRule] = []  # transitions for which it was time in it
        self._database = database
        self._now = database.now
        self._keys: dict[str, ExpectedJob] = {}
        self._paused: set[str] = set()
        self._max_pending: dict[str, int] = {}  # by queue, if it has a limit
        self._chosen: dict[str, deque[Transition]] = {}  # what the store took, by event
        self._gone: set[str] = set()  # jobs that are not in the database any more

    def play(self, calls: Sequence[StoreCall], ledger: Sequence[Transition]) -> list[Any]:
        """Do what one transaction did, in the order of the committer; return the answers."""
        self._now = self._database.now
        self.changed = {}
        self._chosen = {
            event: deque(row for row in ledger if row.event == event)
            for event in ("claimed", "lease_expired")
        }
        if any(call.verb == "prune" for call in calls):
            self._gone = self.jobs.keys() - set(self._database.job_ids())
        exchanges = [call for call in calls if call.verb == "exchange"]
        verdicts = iter(self._settle([r for call in exchanges for r in call.arguments[0]]))
        settled = {id(call): [next(verdicts) for _ in call.arguments[0]] for call in exchanges}
        answers = {}
        for call in sorted(calls, key=_turn):
            if call.verb == "exchange":
                answers[id(call)] = settled[id(call)], self._claim(call.arguments[1])
            else:
                answers[id(call)] = getattr(self, call.verb)(*call.arguments)
        for job_id in self._gone:
            raise BrokenRule("it was deleted, and had to be kept", self.jobs[job_id])
        return [answers[id(call)] for call in calls]

    # --- add

    def enqueue(self, sent: Sequence[CheckedJob]) -> list[tuple[str, bool]] | TenureError:
        """Add all or none; return (id, whether it is new) of each."""
        new = [job for job in sent if self._known(job) is None]
        for queue, most in self._max_pending.items():
            wanted = sum(job.queue == queue for job in new)
            pending = sum(
                job.status == "pending" and job.sent.queue == queue for job in self.open.values()
            )
            if wanted and pending + wanted > most:
                return QueueFull(queue, most)
        first: dict[str, CheckedJob] = {}  # of each key in this batch
        for job in sent:
            if (key := job.idempotency_key) is not None:
                known = self._keys.get(key)
                holder = known.sent if known else first.setdefault(key, job)
                if holder.fingerprint != job.fingerprint:
                    return KeyConflict(key, holder.id)
        return [self._add(job) for job in sent]

    def _known(self, sent: CheckedJob) -> ExpectedJob | None:
        return self.jobs.get(sent.id) or self._keys.get(sent.idempotency_key or "")

    def _add(self, sent: CheckedJob) -> tuple[str, bool]:
        if known := self._known(sent):
            return known.id, known.id == sent.id
        run_at = self._now + timedelta(seconds=sent.delay)
        job = ExpectedJob(sent, sent.max_retries, run_at)
        self.jobs[job.id] = self.open[job.id] = job
        if sent.idempotency_key is not None:
            self._keys[sent.idempotency_key] = job
        self.changed[job.id] = ["enqueued"]
        return job.id, True

    # --- leases

    def _claim(self, request: ClaimRequest | None) -> set[tuple[str, str | None, int, int]]:
        if request is None:
            return set()
        due = self.due(self._now)
        taken = self._taken("claimed", due, request.limit)
        for row, job in taken:
            if row.actor != request.worker or row.lease_id in job.ended:
                raise BrokenRule("claimed by another worker, or under an old lease", job)
            for left in due:
                if left.sent.queue == job.sent.queue and left.order < job.order:
                    raise BrokenRule(f"{job.id} was claimed before it", left)
            self._change(job, "claimed", "processing")
            job.lease_id = row.lease_id
            job.lease_expires_at = self._now + timedelta(seconds=request.lease_seconds)
        return {(job.id, job.lease_id, job.attempts, job.token) for _, job in taken}

    def _taken(
        self, event: str, free: list[ExpectedJob], limit: int
    ) -> list[tuple[Transition, ExpectedJob]]:
        """Take out of `free` the next jobs that the store took, which must be as many as can be."""
        rows = self._chosen[event]
        taken = []
        for _ in range(min(limit, len(free))):
            if not rows:
                self.missed.append(BrokenRule(f"not {event}, though it was time for it", free[0]))
                break
            row = rows.popleft()
            job = self.jobs.get(row.job_id)
            if job is None or job not in free:
                raise BrokenRule(f"{event}, though it was not time for it", job)
            free.remove(job)
            taken.append((row, job))
        return taken

    def due(self, now: datetime) -> list[ExpectedJob]:
        """Return the jobs that could be claimed."""
        return [
            job
            for job in self.open.values()
            if job.status == "pending" and job.run_at <= now and job.sent.queue not in self._paused
        ]

    def renew(self, leases: Sequence[tuple[str, str]], seconds: float) -> set[str]:
        held = set()
        for job_id, lease_id in leases:
            job = self.jobs.get(job_id)
            if job is not None and job.lease_id == lease_id and job.lease_expires_at is not None:
                until = self._now + timedelta(seconds=seconds)
                job.lease_expires_at = max(job.lease_expires_at, until)
                self.changed.setdefault(job.id, [])
                held.add(lease_id)
        return held

    def sweep(self, limit: int) -> set[str]:
        over = [
            job
            for job in self.open.values()
            if job.lease_expires_at is not None and job.lease_expires_at <= self._now
        ]
        swept = [job for _, job in self._taken("lease_expired", over, limit)]
        for job in swept:
            self._fail(job, "lease_expired")
        return {job.id for job in swept}

    # --- reports

    def _settle(self, reports: Sequence[Report]) -> list[tuple[Answer, str]]:
        """Record what completed first, then the rest in order."""
        order = sorted(range(len(reports)), key=lambda n: reports[n].outcome != "completed")
        verdicts = {number: self._report(reports[number]) for number in order}
        return [verdicts[number] for number in range(len(reports))]

    def _report(self, report: Report) -> tuple[Answer, str]:
        """Record a report; return the answer, and the outcome on record if that is another."""
        job = self.jobs.get(report.job_id)
        if job is None:
            return Answer.LOST, ""
        if report.lease_id != job.lease_id:
            end = job.ended.get(report.lease_id, "").replace("gave_up", "failed")
            if end == report.outcome:
                return Answer.ALREADY_RECORDED, ""
            return Answer.CONFLICT if end in tuple(Outcome) else Answer.LOST, end
        if report.outcome == "completed":
            self._change(job, "completed", "completed")
            job.result_json = report.result
        elif report.outcome == "failed":
            self._fail(job, "failed" if report.retryable else "gave_up")
        elif report.outcome == "snoozed":
            job.snoozes += 1
            self._change(job, "snoozed", "pending")
            job.run_at = self._now + timedelta(seconds=report.delay or 0)
        elif job.token - job.attempts - job.snoozes < MAX_RETURNS:
            self._change(job, report.outcome, "pending")
        else:
            self._fail(job, "failed")
            return Answer.CONFLICT, "failed"
        return Answer.RECORDED, ""

    def _fail(self, job: ExpectedJob, event: str) -> None:
        self._change(job, event, "failed")
        if event != "gave_up" and job.attempts < job.max_retries:
            self._change(job, "retried", "pending")
            job.run_at = self._retry_time(job)

    def _retry_time(self, job: ExpectedJob) -> datetime:
        """Return when it is retried: as the store chose, if the policy of the job allows that."""
        policy = job.sent.backoff
        exact = policy.base * policy.factor ** (job.attempts - 1)
        shortest = math.floor(1000 * min(exact * (1 - JITTER), policy.cap))
        longest = math.ceil(1000 * min(exact * (1 + JITTER), policy.cap))
        row = self._database.get(job.id)
        chosen = (row.run_at - self._now) // timedelta(milliseconds=1) if row else 0
        return self._now + timedelta(milliseconds=min(max(chosen, shortest), longest))

    # --- operators

    def apply(self, job_id: str, event: Cancelled | Retried) -> str | TenureError:
        job = self.jobs.get(job_id)
        if job is None:
            return JobNotFound(job_id)
        if isinstance(event, Cancelled) and job.status not in SETTLED:
            self._change(job, "cancelled", "cancelled")
        elif isinstance(event, Retried) and job.status == "failed":
            job.max_retries = max(job.max_retries, job.attempts) + event.more_retries
            self._change(job, "retried", "pending")
            job.run_at = self._now
        else:
            return IllegalTransition(job_id, job.status, event.name, ())
        return job_id

    def set_queue(self, name: str, paused: bool | None, max_pending: int | None) -> None:
        """Pause or limit a queue; None changes nothing, -1 lifts the limit."""
        if paused is not None:
            (self._paused.add if paused else self._paused.discard)(name)
        if max_pending is not None:
            self._max_pending.pop(name, None)
            if max_pending >= 0:
                self._max_pending[name] = max_pending

    def prune(self, settled_before: Mapping[str, datetime]) -> int:
        """Forget the jobs that were deleted, which must have been settled before these times."""
        old = [
            job
            for job in self.jobs.values()
            if job.finished_at is not None and job.finished_at < settled_before[job.status]
        ]
        deleted = [job for job in old if job.id in self._gone]
        if old and not deleted:
            raise BrokenRule("pruning deleted nothing, and this job was due", old[0])
        for job in deleted:
            del self.jobs[job.id]
            self._gone.remove(job.id)
            self._keys.pop(job.sent.idempotency_key or "", None)
        return len(deleted)

    # --- transitions

    def _change(self, job: ExpectedJob, event: str, status: str) -> None:
        """Change the status, and what changes with it whatever the event."""
        job.attempts += {"claimed": 1, **dict.fromkeys(RETURNS, -1)}.get(event, 0)
        job.token += event == "claimed"
        if job.lease_id is not None:
            job.ended[job.lease_id] = event
        job.lease_id = job.lease_expires_at = None
        job.status = status
        if status in SETTLED:
            job.finished_at = self._now
            self.open.pop(job.id, None)
        else:
            job.finished_at = None
            self.open[job.id] = job
        self.changed.setdefault(job.id, []).append(event)


def _turn(call: StoreCall) -> int:
    """Return when a call is done: single jobs, batches, other calls, claims."""
    if call.verb == "enqueue":
        return int(len(call.arguments[0]) > 1)
    return 3 if call.verb == "exchange" else 2


# --- auditor --------------------------------------------------------------------------------------

SHOWN = 12  # lines of the trace, and transitions of the job, that a finding shows

COMPARED = (
    *("status", "attempts", "token", "max_retries", "run_at"),
    *("lease_id", "lease_expires_at", "finished_at", "result_json"),
)
"""The columns of a row that are compared after each commit."""
_columns = attrgetter(*COMPARED)


class Auditor:
    """Raises BrokenRule where the store is not as expected; notes and counts what happens."""

    def __init__(
        self, database: SimulatedDatabase, figures: Counter[str], note: Callable[[str], None]
    ) -> None:
        self._database = database
        self._figures = figures
        self._note = note
        self.expected = ExpectedStore(database)

    def check(self, calls: Sequence[StoreCall], *, committed: bool, crashed: bool) -> None:
        """Check a transaction that has ended, and the answers to its calls."""
        for call in calls:
            answer = call.answer
            self._note(f"{call.caller}: {call.verb} {_short(answer)}")
            if isinstance(answer, BaseException) and not isinstance(answer, TenureError):
                raise BrokenRule(f"the store broke: {type(answer).__name__}: {answer}") from answer
            if committed and not crashed and answer is UNKNOWN:
                self._figures["commits whose answer was an error"] += 1
            if not committed and answer is not UNKNOWN:
                raise BrokenRule(f"{call.caller} was answered before a failed commit")
        ledger = self._database.new_transitions()
        if committed:
            self._check_commit(calls, ledger)
        elif ledger:
            raise BrokenRule("transitions are on record that were rolled back")

    def _check_commit(self, calls: Sequence[StoreCall], ledger: Sequence[Transition]) -> None:
        self._figures["commits"] += 1
        found: dict[str, list[str]] = {}  # job -> its transitions
        for row in ledger:
            found.setdefault(row.job_id, []).append(row.event)
            self._figures["jobs" if row.event == "enqueued" else row.event] += 1
            if row.event == "cancelled":
                self._figures[f"cancelled while {row.source}"] += 1
            self._note(f"{row.job_id} {row.event}, attempt {row.attempt}, token {row.token}")
        answers = self.expected.play(calls, ledger)
        for id in {**self.expected.changed, **found}:
            on_record, must = found.get(id, []), self.expected.changed.get(id, [])
            if on_record != must:
                what = f"its transitions are {_listed(on_record)}; they must be {_listed(must)}"
                raise BrokenRule(what, self.expected.jobs.get(id))
        for broken in self.expected.missed:
            raise broken
        self._compare_rows(self.expected.changed)
        for call, must in zip(calls, answers, strict=True):
            if call.verb == "prune":
                self._figures["jobs pruned"] += must
            if call.answer is not UNKNOWN:
                self._compare_answer(call, must)

    def _compare_rows(self, job_ids: Iterable[str]) -> None:
        for id in job_ids:
            job, row = self.expected.jobs[id], self._database.get(id)
            if row is None:
                raise BrokenRule("the job is gone", job)
            for name, found, must in zip(COMPARED, _columns(row), _columns(job), strict=True):
                if found != must:
                    raise BrokenRule(f"its {name} is {found}, it must be {must}", job)

    def _compare_answer(self, call: StoreCall, must: Any) -> None:
        found = _plain(call.answer)
        if call.verb == "exchange":
            for report, said, true in zip(call.arguments[0], found[0], must[0], strict=True):
                self._figures[f"reports {said[0].replace('_', ' ')}"] += 1
                if said != true:
                    what = f"a report of {report.outcome} was answered {_listed(said)}"
                    job = self.expected.jobs.get(report.job_id)
                    raise BrokenRule(f"{what}; it must be {_listed(true)}", job)
        elif isinstance(must, TenureError):
            must = _plain(must)
        if found != must:
            what = f"{call.caller}: {call.verb} was answered {found}; it must be {must}"
            raise BrokenRule(what)

    def check_everything(self) -> None:
        """Compare every row, and check what `tenure verify` does, except the file."""
        if sorted(self.expected.jobs) != self._database.job_ids():
            raise BrokenRule("the jobs in the database are not the jobs that were added")
        self._compare_rows(self.expected.jobs)
        for invariant, job_id, what in Reader.violations(self._database, 1):
            raise BrokenRule(f"verify: {invariant}: {what}", self.expected.jobs.get(job_id))


def _plain(answer: Any) -> Any:
    """Return what can be known in advance of an answer."""
    match answer:
        case TenureError():
            return type(answer).__name__, getattr(answer, "job_id", "")
        case Exchange():
            return (
                [(verdict.answer, verdict.recorded) for verdict in answer.verdicts],
                {(held.id, held.lease_id, held.attempts, held.token) for held in answer.leases},
            )
        case [Enqueued(), *_]:
            return [(enqueued.job.id, enqueued.created) for enqueued in answer]
    return answer


def _listed(words: Iterable[str]) -> str:
    return ", ".join(filter(None, words)) or "nothing"


def _short(answer: Any) -> str:
    """Return an answer without ids of leases, which the seed does not decide."""
    if answer is UNKNOWN:
        return "unknown"
    if isinstance(answer, TenureError):
        return type(answer).__name__
    if isinstance(answer, Exchange):
        return _listed([f"{len(answer.leases)} leased", *(v.answer for v in answer.verdicts)])
    return str(len(answer)) if isinstance(answer, list | set) else "done"
