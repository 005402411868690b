"""Everything that ends a claim, and what operators do to one job.

These functions run inside the committer's transaction. They lock the rows, ask the lifecycle what
happens, and save what it answered under guards. They are the same for every database. Only a plain
claim and a plain completion are statements of the database itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import TypeAlias

from msgspec.structs import replace

from tenure import events, failpoints
from tenure.errors import IllegalTransition, JobNotFound, LeaseLost, TenureError, WriteRefused
from tenure.jobs.names import RESERVED
from tenure.jobs.postpone import Wait
from tenure.jobs.work import (
    ALREADY_RECORDED,
    RECORDED,
    Answer,
    ClaimRequest,
    Lease,
    Outcome,
    Report,
    Verdict,
)
from tenure.lifecycle import FINAL_FAILURE, Job, Status, decide, follow, legal_events, retry_in
from tenure.store.protocol import DROPPED_CHANGE, Database
from tenure.store.refusals import unless_refused
from tenure.store.rows import CHANGED_BY
from tenure.store.tables import limits, signals, unique_keys
from tenure.store.tables.steps import write_notes

Steps: TypeAlias = tuple[Job, ...]
"""The rows that one job passes through in one transaction, as `follow` returns them."""


def hold(db: Database, reports: Sequence[Report], others: Sequence[str]) -> None:
    """Lock every job that a transaction will change, before it changes the first.

    `others` are jobs that change without a report. Completions alone are not locked before: one
    statement makes them, in the order of the ids. Claims and the sweep wait for no lock, and
    neither do uncertain reports.
    """
    outcomes = {report.outcome is Outcome.COMPLETED for report in reports}
    if len(outcomes) + len(others) > 1:
        db.hold({*(report.job_id for report in reports if not _may_wait(report)), *others})


def settle(db: Database, reports: Sequence[Report]) -> list[Verdict]:
    """Record the reports of workers; return one verdict per report, in order."""
    if said := [
        (r.job_id, r.lease_id, r.notes, not _may_wait(r)) for r in reports if r.notes is not None
    ]:
        write_notes(db, said)
    verdicts: dict[int, Verdict] = {}
    completed = [r for r in reports if r.outcome is Outcome.COMPLETED]
    done = db.complete(completed) if completed else set()
    if len(done) == len(reports):  # each report once
        return [RECORDED] * len(reports)
    others: list[tuple[int, Report]] = []
    late: list[tuple[int, Report]] = []
    for index, report in enumerate(reports):
        if report.outcome is not Outcome.COMPLETED:
            others.append((index, report))
        elif report.lease_id in done:
            done.discard(report.lease_id)  # a second report of this lease is a repetition
            verdicts[index] = RECORDED
        else:
            late.append((index, report))
    if others:
        late += _settle_others(db, others, verdicts)
    if late:
        _answer_late(db, late, verdicts)
    return [verdicts[index] for index in range(len(reports))]


def _settle_others(
    db: Database, others: Sequence[tuple[int, Report]], verdicts: dict[int, Verdict]
) -> list[tuple[int, Report]]:
    """Record reports that are no completions; return those whose lease has already ended."""
    jobs = dict(db.lock(sorted({r.job_id for _, r in others if not _may_wait(r)})))
    # Those behind a lock are passed over: it may be that of a handler that hangs before its commit,
    # and every other report of its process would wait for it.
    asked = {report.job_id for _, report in others} - jobs.keys()
    busy = db.busy(sorted(asked)) if asked else set()
    jobs |= db.lock(sorted(asked - busy)) if asked - busy else {}
    now = db.now()
    waits = [(r.job_id, r.wait) for _, r in others if r.wait and r.job_id in jobs]
    there = signals.senders(db, waits) if waits else {}  # under the locks that senders take
    waiting: list[tuple[str, Wait]] = []
    changes: list[tuple[Job, Steps]] = []
    late: list[tuple[int, Report]] = []
    paused: list[tuple[Job, Report]] = []
    for index, report in others:
        job = jobs.get(report.job_id)
        if job is None:
            is_busy = report.job_id in busy
            verdicts[index] = Verdict(Answer.BUSY if is_busy else Answer.LOST)
            continue
        try:
            steps = follow(job, _event(report), now)
            if report.wait is not None and steps[-1].status is Status.WAITING:
                if job.id in there:
                    steps += (decide(steps[-1], events.Unblocked(actor=there[job.id]), now),)
                else:
                    waiting.append((job.id, report.wait))
        except (LeaseLost, IllegalTransition):
            late.append((index, report))
            continue
        changes.append((job, steps))
        if report.pause is not None and report.outcome is Outcome.SNOOZED:
            paused.append((job, report))
        jobs[job.id] = steps[-1]
        verdicts[index] = _verdict(report, steps)
    save(db, changes)
    if waiting:
        signals.begin_waits(db, waiting)
    if paused:
        limits.begin_waits(db, paused)
    return late


def _may_wait(report: Report) -> bool:
    """Whether a report is left for later if its job is locked."""
    return report.uncertain and report.outcome is not Outcome.COMPLETED


def _verdict(report: Report, steps: Steps) -> Verdict:
    event = steps[0].event
    if _outcome(event) != report.outcome:  # the job was returned too often and failed
        return Verdict(Answer.CONFLICT, _outcome(event))
    return RECORDED if len(steps) == 1 else Verdict(Answer.RECORDED, retry_in=retry_in(steps))


def _answer_late(
    db: Database, late: Sequence[tuple[int, Report]], verdicts: dict[int, Verdict]
) -> None:
    ended = db.settled_as([(report.job_id, report.lease_id) for _, report in late])
    for index, report in late:
        event = ended.get((report.job_id, report.lease_id), "")
        verdicts[index] = late_verdict(report.outcome, event)
    _refuse_dropped(db, [r for _, r in late if (r.job_id, r.lease_id) not in ended])


def _refuse_dropped(db: Database, unknown: Sequence[Report]) -> None:
    """Raise WriteRefused if a lease is still held that a completion should have ended."""
    d = db.dialect
    named = {r.job_id: r.lease_id for r in unknown if r.outcome is Outcome.COMPLETED}
    ids = [id for id in named if d.is_id(id)]
    if not ids:
        return
    held = f"SELECT {d.id('id')}, {d.id('lease_id')} FROM {d.table('job')} WHERE id"
    if any(named[id] == lease for id, lease in db.rows(f"{held} IN ({d.ids(len(ids))})", ids)):
        raise WriteRefused(DROPPED_CHANGE)


def late_verdict(outcome: Outcome, event: str) -> Verdict:
    """Return the answer to a report whose lease has already ended.

    `event` is the transition that ended the lease, "" if no such lease is known. Pure: the model
    tests call it too.
    """
    event = _outcome(event)
    if event == outcome:
        return ALREADY_RECORDED
    if event in tuple(Outcome):
        return Verdict(Answer.CONFLICT, event)
    return Verdict(Answer.LOST, event)


def _outcome(event: str) -> str:
    """The outcome that a worker reports for an event: both failures are one to it."""
    return Outcome.FAILED if event == FINAL_FAILURE else event


def _event(report: Report) -> events.Event:
    match report.outcome:
        case Outcome.COMPLETED:
            return events.Completed(
                lease_id=report.lease_id, result=report.result, actor=report.actor
            )
        case Outcome.FAILED:
            error = report.error or "(no message)"
            if not report.retryable:
                return events.GaveUp(lease_id=report.lease_id, error=error, actor=report.actor)
            return events.Failed(
                lease_id=report.lease_id, error=error, actor=report.actor, delay=report.delay
            )
        case Outcome.SNOOZED:
            delay = report.delay or 0.0
            return events.Snoozed(lease_id=report.lease_id, delay=delay, actor=report.actor)
        case Outcome.SUSPENDED:
            return events.Suspended(lease_id=report.lease_id, need=1, actor=report.actor)
        case Outcome.INTERRUPTED:
            return events.Interrupted(lease_id=report.lease_id, actor=report.actor)
        case Outcome.RELEASED:
            return events.Released(lease_id=report.lease_id, actor=report.actor)


def apply(db: Database, job_id: str, event: events.Event) -> Job:
    """Apply an operator's or the application's event to one job; return the job afterwards.

    An amendment that changes nothing is not recorded.

    Raises JobNotFound or IllegalTransition.
    """
    job = db.lock([job_id]).get(job_id)
    if job is None:
        raise JobNotFound(job_id)
    now = db.now()
    steps = follow(job, event, now)
    if not is_changed(job, steps[-1]):
        return job
    if isinstance(event, events.Retried):
        check_retry(job, unique_keys.keys_of(db, [job_id]), set(), now)
    if steps[-1].payload != job.payload and job.type.startswith(RESERVED):  # or it would be signed
        legal = legal_events(job.status, job.event)
        reason = f"Tenure writes the payload of a {job.type}"
        raise IllegalTransition(job.id, job.status, event.name, legal, reason)
    save(db, [(job, steps)])
    signals.end_waits(db, [job])
    return steps[-1]


def check_retry(
    job: Job, keys: Mapping[str, tuple[str, str | None]], taken: set[str], now: datetime
) -> None:
    """Raise IllegalTransition if another one has a failed job's unique key, or it is too late.

    After its `start_by` a job that an operator retries would be cancelled, and for good. `keys`
    come from `unique_keys.keys_of`. The job's key is added to `taken`.
    """
    key, holder = keys.get(job.id, ("", None))
    reason = ""
    if holder is not None or key in taken:
        # Whether the caller may see that job's queue is not known here.
        reason = "another job holds its unique key; explain says which"
    elif job.start_by is not None and job.start_by <= now:
        reason = f"it had to start before {job.start_by.isoformat()}; run it again as a new job"
    if reason:
        legal = legal_events(job.status, job.event)
        raise IllegalTransition(job.id, job.status, events.Retried.name, legal, reason)
    if key:
        taken.add(key)


def is_changed(before: Job, after: Job) -> bool:
    """Whether a transition changed more than its own name, so that the ledger has it."""
    return replace(after, event=before.event, actor=before.actor, reason=before.reason) != before


def sweep(db: Database, limit: int) -> list[Steps]:
    """End up to `limit` leases that have run out; return the steps of each job."""
    return _sweep(db, db.lock_expired, limit, events.LeaseExpired())


def expire(db: Database, limit: int) -> list[Steps]:
    """Cancel up to `limit` jobs that had to start before now; return the steps of each."""
    return _sweep(db, db.lock_late, limit, events.Expired())


def time_out(db: Database, limit: int) -> list[Steps]:
    """Let up to `limit` jobs run whose wait for a signal has expired; return the steps of each."""
    lock = partial(signals.lock_expired, db)
    return _sweep(db, lock, limit, events.Unblocked(actor=events.SWEEP))


def _sweep(
    db: Database, lock: Callable[[int, int], list[Job]], limit: int, event: events.Event
) -> list[Steps]:
    jobs = lock(limit, db.left.of(event.name))
    failpoints.hit("sweep.between_read_and_write")
    now = db.now()
    changes: list[tuple[Job, Steps]] = []
    for job in jobs:
        try:
            changes.append((job, follow(job, event, now)))
        except IllegalTransition:  # the lease was renewed between the read and `now`
            continue
    saved, refused = save_unless_refused(db, changes)
    db.left.note(event.name, refused=len(refused), full=len(jobs) >= limit)
    for _, refusal in [] if saved else refused:
        raise refusal
    signals.end_waits(db, [job for job, _ in saved])
    return [steps for _, steps in saved]


def save_unless_refused(
    db: Database, changes: Sequence[tuple[Job, Steps]]
) -> tuple[list[tuple[Job, Steps]], list[tuple[tuple[Job, Steps], TenureError]]]:
    """Save the steps of each job, unless the database refuses them.

    Returns what was saved, and the others, each with its error.
    """

    def write(some: Sequence[tuple[Job, Steps]]) -> Sequence[tuple[Job, Steps]]:
        save(db, some)
        return some

    saved, refused = unless_refused(db, write, changes) if changes else ([], [])
    return [change for some in saved for change in some], refused


def save(db: Database, changes: Sequence[tuple[Job, Steps]]) -> None:
    """Write the steps of each job, one after the other: the ledger gets every transition.

    `changes` has the locked row of each job as it was, and its steps. Raises WriteRefused if a row
    is not written: under the lock only a trigger that is not from Tenure can drop the change.
    """
    paths = [(job, *steps) for job, steps in changes]
    depth = max((len(path) for path in paths), default=0)
    for number in range(1, depth):
        pairs = [(path[number - 1], path[number]) for path in paths if len(path) > number]
        kinds = {CHANGED_BY[after.event] for _, after in pairs}
        for more in kinds:
            some = [pair for pair in pairs if CHANGED_BY[pair[1].event] == more]
            written = db.save(some, more)
            if written != len(some):
                raise WriteRefused(DROPPED_CHANGE)


def claim(db: Database, request: ClaimRequest, *, wary: bool = False) -> Sequence[Lease]:
    """Lease jobs, with the trace of each if the request wants that."""
    leases = db.claim(request, wary=wary) if request.limit > 0 and not request.leaves else []
    if not leases or not request.traces:
        return leases
    traces = db.traces([lease.id for lease in leases])
    return [replace(lease, traceparent=traces.get(lease.id)) for lease in leases]


def next_due(db: Database, request: ClaimRequest | None, leases: Sequence[Lease]) -> float | None:
    """Return the seconds until the next job is due, where a claim found none and asks."""
    return db.next_due(request) if request and request.next_due and not leases else None
