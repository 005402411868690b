"""Load, decide, save: every change of a job that is not the plain claim or completion.

These functions run inside the committer's transaction. They load rows under lock, ask the lifecycle
what happens, and save what it answered, guarded. They are the same for every database.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

from tenure import failpoints
from tenure.errors import (
    IllegalTransition,
    JobNotFound,
    KeyConflict,
    LeaseLost,
    QueueFull,
    TenureError,
)
from tenure.jobs.checked_job import CheckedJob, Enqueued
from tenure.jobs.webhook import Webhook
from tenure.jobs.work import ALREADY_RECORDED, RECORDED, Answer, Outcome, Report, Verdict
from tenure.lifecycle import (
    Completed,
    Event,
    Failed,
    Job,
    LeaseExpired,
    Released,
    follow,
)
from tenure.store.protocol import Database


def add(db: Database, checked_jobs: Sequence[CheckedJob]) -> list[Enqueued | TenureError]:
    """Insert jobs; a refused one is answered with its error and leaves no trace."""
    made = dict(db.insert(checked_jobs))
    others = [a for a in checked_jobs if a.id not in made]
    known = db.known(others) if others else {}
    if gone := [a for a in others if a.id not in known]:  # pruned after it was in the way
        made.update(db.insert(gone))
    traced = [(a.id, a.traceparent) for a in checked_jobs if a.traceparent and a.id in made]
    if traced:
        db.keep_traces(traced)
    return [
        Enqueued(made[a.id], created=True) if a.id in made else _known(a, *known[a.id])
        for a in checked_jobs
    ]


def add_each(db: Database, checked_jobs: Sequence[CheckedJob]) -> list[Enqueued | TenureError]:
    """Insert jobs that have nothing to do with each other, up to the limits of their queues."""
    full = db.full_queues(_per_queue(checked_jobs))
    if not full:
        return add(db, checked_jobs)
    free = [a for a in checked_jobs if a.queue not in full]
    answers = dict(zip((a.id for a in free), add(db, free), strict=True))
    closed: set[str] = set()
    for checked_job in checked_jobs:
        queue = checked_job.queue
        if queue not in full:
            continue
        repeated = bool(db.known([checked_job]))  # asking for the same job again needs no room
        if not repeated and (queue in closed or db.full_queues({queue: 1})):
            closed.add(queue)
            answers[checked_job.id] = QueueFull(queue, full[queue])
        else:
            answers[checked_job.id] = add(db, [checked_job])[0]
    return [answers[a.id] for a in checked_jobs]


def add_together(db: Database, checked_jobs: Sequence[CheckedJob]) -> list[Enqueued] | TenureError:
    """Insert the jobs of one request. If one is refused the caller must undo them all."""
    full = db.full_queues(_per_queue(checked_jobs))
    if full:
        known = db.known([a for a in checked_jobs if a.queue in full])
        full = db.full_queues(_per_queue([a for a in checked_jobs if a.id not in known]))
    for queue, limit in full.items():
        return QueueFull(queue, limit)
    answers = []
    for answer in add(db, checked_jobs):
        if isinstance(answer, TenureError):
            return answer
        answers.append(answer)
    return answers


def forward(db: Database, hook: Webhook, deliveries: Sequence[CheckedJob], position: str) -> bool:
    """Add the deliveries of the moves up to `position`; False if somebody else has done so.

    The position moves in the same transaction and from where it was read, so that of two who follow
    side by side one adds them, and a crash leaves both done or neither. A limit of the queue does
    not hold here: moves that are not told now would be forgotten.
    """
    if not db.webhooks.advance(hook, position):
        return False
    failpoints.hit("webhook.between_position_and_jobs")
    if deliveries:
        add(db, deliveries)
    return True


def _per_queue(checked_jobs: Sequence[CheckedJob]) -> Mapping[str, int]:
    return Counter(checked_job.queue for checked_job in checked_jobs)


def _known(checked_job: CheckedJob, job: Job, fingerprint: str | None) -> Enqueued | TenureError:
    if checked_job.idempotency_key is not None and fingerprint != checked_job.fingerprint:
        return KeyConflict(checked_job.idempotency_key, job.id)
    return Enqueued(job, created=job.id == checked_job.id)


def settle(db: Database, reports: Sequence[Report]) -> list[Verdict]:
    """Record what workers report; one verdict per report, in order."""
    verdicts: dict[int, Verdict] = {}
    completed = [r for r in reports if r.outcome is Outcome.COMPLETED]
    done = db.complete(completed) if completed else set()
    if len(done) == len(reports):  # each of them, and none twice
        return [RECORDED] * len(reports)
    rest: list[tuple[int, Report]] = []
    for index, report in enumerate(reports):
        if report.outcome is Outcome.COMPLETED and report.lease_id in done:
            done.discard(report.lease_id)  # a second report of the same lease is a repetition
            verdicts[index] = RECORDED
        else:
            rest.append((index, report))
    if rest:
        _settle_others(db, rest, verdicts)
    return [verdicts[index] for index in range(len(reports))]


def _settle_others(
    db: Database, rest: Sequence[tuple[int, Report]], verdicts: dict[int, Verdict]
) -> None:
    jobs = dict(db.lock(sorted({report.job_id for _, report in rest})))
    now = db.now()
    steps: list[tuple[Job, ...]] = []
    late: list[tuple[int, Report]] = []
    for index, report in rest:
        job = jobs.get(report.job_id)
        if job is None:
            verdicts[index] = Verdict(Answer.LOST)
            continue
        try:
            after = follow(job, _event(report), now)
        except (LeaseLost, IllegalTransition):
            late.append((index, report))
            continue
        steps.append((job, *after))
        jobs[job.id] = after[-1]
        verdicts[index] = _verdict(report, after, now)
    save(db, steps)
    if late:
        _answer_late(db, late, verdicts)


def _verdict(report: Report, after: Sequence[Job], now: datetime) -> Verdict:
    """The answer to a report that moved its job along `after`."""
    event = after[0].event
    if event != report.outcome:  # a job handed back too often fails
        return Verdict(Answer.CONFLICT, event)
    if len(after) == 1:
        return RECORDED
    return Verdict(Answer.RECORDED, retry_in=(after[-1].run_at - now).total_seconds())


def _answer_late(
    db: Database, late: Sequence[tuple[int, Report]], verdicts: dict[int, Verdict]
) -> None:
    ended = db.settled_as([(report.job_id, report.lease_id) for _, report in late])
    for index, report in late:
        event = ended.get((report.job_id, report.lease_id), "")
        verdicts[index] = late_verdict(report.outcome, event)


def late_verdict(outcome: Outcome, event: str) -> Verdict:
    """The answer to a report whose lease ended earlier, by `event`; "" if no such lease is known.

    Pure, so that the model tests can ask it too.
    """
    if event == outcome:
        return ALREADY_RECORDED
    if event in tuple(Outcome):
        return Verdict(Answer.CONFLICT, event)
    return Verdict(Answer.LOST, event)


def _event(report: Report) -> Event:
    match report.outcome:
        case Outcome.COMPLETED:
            return Completed(lease_id=report.lease_id, result=report.result, actor=report.actor)
        case Outcome.FAILED:
            return Failed(
                lease_id=report.lease_id,
                error=report.error or "(no message)",
                retryable=report.retryable,
                actor=report.actor,
            )
        case Outcome.RELEASED:
            return Released(lease_id=report.lease_id, actor=report.actor)


def apply(db: Database, job_id: str, event: Event) -> Job:
    """One event on one job, as an operator or the application asks for it."""
    job = db.lock([job_id]).get(job_id)
    if job is None:
        raise JobNotFound(job_id)
    after = follow(job, event, db.now())
    save(db, [(job, *after)])
    return after[-1]


def sweep(db: Database, limit: int) -> list[Job]:
    """End up to `limit` leases that have run out; the jobs as they stand after."""
    expired = db.lock_expired(limit)
    failpoints.hit("sweep.between_read_and_write")
    now = db.now()
    steps = []
    for job in expired:
        try:
            steps.append((job, *follow(job, LeaseExpired(), now)))
        except IllegalTransition:  # it was renewed between the reading and the clock
            continue
    save(db, steps)
    return [step[-1] for step in steps]


def save(db: Database, steps: Sequence[tuple[Job, ...]]) -> None:
    """Write each job's rows one after the other, so that the ledger sees every move.

    The rows are locked, so a guard that does not match is a broken promise of the database: it
    raises and the whole transaction is undone.
    """
    depth = max((len(step) for step in steps), default=0)
    for number in range(1, depth):
        pairs = [(step[number - 1], step[number]) for step in steps if len(step) > number]
        written = db.save(pairs)
        if written != len(pairs):
            raise RuntimeError(f"{len(pairs) - written} locked rows changed under the lock")
