"""Everything that ends a claim, what operators do to one job, and what follows for other jobs.

These functions run inside the committer's transaction. They lock the rows, ask the lifecycle what
happens, and save what it answered under guards. They are the same for every database. Only a plain
claim and a plain completion are statements of the database itself.

The triggers of the jobs count each ending, and release each job for which it was the last one. Two
tables say what is left: `revisit` has jobs for which this module decides whether they can still
run, and `overdue` has jobs with more followers than one statement counts.

`set_right` is for what a clock that was ahead has left behind, once it has been put back.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import TypeAlias

from msgspec.structs import replace

from tenure import events, failpoints, lifecycle
from tenure.errors import IllegalTransition, JobNotFound, LeaseLost, TenureError, WriteRefused
from tenure.events import SWEEP, Amended, Restored, Retried, Skipped, Unblocked
from tenure.rules.dependencies import Edge, Numbers, Tally, met_sql, restored_by, skipped_by
from tenure.rules.reports import (
    ALREADY_RECORDED,
    RECORDED,
    Answer,
    ClaimRequest,
    Lease,
    Outcome,
    Report,
    Verdict,
    Wait,
)
from tenure.store.database import DROPPED_CHANGE, Database
from tenure.store.refusals import unless_refused
from tenure.store.rows import CHANGED_BY
from tenure.store.tables import queues, signals, unique_keys
from tenure.store.tables.steps import write_notes
from tenure.values.names import RESERVED
from tenure.values.text import quantity

log = logging.getLogger(__name__)

Steps: TypeAlias = tuple[lifecycle.Job, ...]
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
    changes: list[tuple[lifecycle.Job, Steps]] = []
    late: list[tuple[int, Report]] = []
    paused: list[tuple[lifecycle.Job, Report]] = []
    for index, report in others:
        job = jobs.get(report.job_id)
        if job is None:
            is_busy = report.job_id in busy
            verdicts[index] = Verdict(Answer.BUSY if is_busy else Answer.LOST)
            continue
        try:
            steps = lifecycle.follow(job, _event(report), now)
            if report.wait is not None and steps[-1].status is lifecycle.Status.WAITING:
                if job.id in there:
                    steps += (
                        lifecycle.decide(steps[-1], events.Unblocked(actor=there[job.id]), now),
                    )
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
        queues.begin_waits(db, paused)
    return late


def _may_wait(report: Report) -> bool:
    """Whether a report is left for later if its job is locked."""
    return report.uncertain and report.outcome is not Outcome.COMPLETED


def _verdict(report: Report, steps: Steps) -> Verdict:
    event = steps[0].event
    if _outcome(event) != report.outcome:  # the job was returned too often and failed
        return Verdict(Answer.CONFLICT, _outcome(event))
    return (
        RECORDED
        if len(steps) == 1
        else Verdict(Answer.RECORDED, retry_in=lifecycle.retry_in(steps))
    )


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
    return Outcome.FAILED if event == lifecycle.FINAL_FAILURE else event


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


def apply(db: Database, job_id: str, event: events.Event) -> lifecycle.Job:
    """Apply an operator's or the application's event to one job; return the job afterwards.

    An amendment that changes nothing is not recorded.

    Raises JobNotFound or IllegalTransition.
    """
    job = db.lock([job_id]).get(job_id)
    if job is None:
        raise JobNotFound(job_id)
    now = db.now()
    steps = lifecycle.follow(job, event, now)
    if not is_changed(job, steps[-1]):
        return job
    if isinstance(event, events.Retried):
        check_retry(job, unique_keys.keys_of(db, [job_id]), set(), now)
    if steps[-1].payload != job.payload and job.type.startswith(RESERVED):  # or it would be signed
        legal = lifecycle.legal_events(job.status, job.event)
        reason = f"Tenure writes the payload of a {job.type}"
        raise IllegalTransition(job.id, job.status, event.name, legal, reason)
    save(db, [(job, steps)])
    signals.end_waits(db, [job])
    return steps[-1]


def check_retry(
    job: lifecycle.Job, keys: Mapping[str, tuple[str, str | None]], taken: set[str], now: datetime
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
        legal = lifecycle.legal_events(job.status, job.event)
        raise IllegalTransition(job.id, job.status, events.Retried.name, legal, reason)
    if key:
        taken.add(key)


def is_changed(before: lifecycle.Job, after: lifecycle.Job) -> bool:
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
    db: Database, lock: Callable[[int, int], list[lifecycle.Job]], limit: int, event: events.Event
) -> list[Steps]:
    jobs = lock(limit, db.left.of(event.name))
    failpoints.hit("sweep.between_read_and_write")
    now = db.now()
    changes: list[tuple[lifecycle.Job, Steps]] = []
    for job in jobs:
        try:
            changes.append((job, lifecycle.follow(job, event, now)))
        except IllegalTransition:  # the lease was renewed between the read and `now`
            continue
    saved, refused = save_unless_refused(db, changes)
    db.left.note(event.name, refused=len(refused), full=len(jobs) >= limit)
    for _, refusal in [] if saved else refused:
        raise refusal
    signals.end_waits(db, [job for job, _ in saved])
    return [steps for _, steps in saved]


def save_unless_refused(
    db: Database, changes: Sequence[tuple[lifecycle.Job, Steps]]
) -> tuple[
    list[tuple[lifecycle.Job, Steps]], list[tuple[tuple[lifecycle.Job, Steps], TenureError]]
]:
    """Save the steps of each job, unless the database refuses them.

    Returns what was saved, and the others, each with its error.
    """

    def write(some: Sequence[tuple[lifecycle.Job, Steps]]) -> Sequence[tuple[lifecycle.Job, Steps]]:
        save(db, some)
        return some

    saved, refused = unless_refused(db, write, changes) if changes else ([], [])
    return [change for some in saved for change in some], refused


def save(db: Database, changes: Sequence[tuple[lifecycle.Job, Steps]]) -> None:
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


# --- jobs that wait -------------------------------------------------------------------------------

AT_ONCE = 1_000
"""Jobs of which one transaction decides."""
DOOMED = "job.status = 'waiting' AND job.token = 0 AND edge.meets = 'completed'"
"""What a job that is skipped can doom: it will not complete."""
Refused: TypeAlias = list[tuple[str, TenureError]]
"""Jobs that the database refuses to change, each with its error."""
SKIPPED = "job.status = 'cancelled' AND job.event = 'skipped'"


def advance(db: Database) -> bool:
    """Count what is overdue and decide what is to be decided, some of it; return if any was left.

    Call again while it is. What the database refuses stays for a later call; its error is raised
    if nothing else was left.
    """
    counted, refused = _count_on(db)
    decided, more = decide_some(db)
    for _, refusal in [] if counted or decided else (*refused, *more):
        raise refusal
    return counted or bool(decided)


def _count_on(db: Database) -> tuple[bool, Refused]:
    """Count for more followers of jobs with overdue ones; return if there was such a job."""
    d = db.dialect
    some_of = f"LIMIT {AT_ONCE} OFFSET {db.left.of('overdue')}"
    overdue = f"{d.table('overdue')} AS one"
    named = f"SELECT {d.id('parent')} FROM {overdue} ORDER BY one.parent {some_of}"
    parents = [id for (id,) in db.rows(named)]
    refused: Refused = []
    for some in [parents] * bool(parents) if d.engine == "sqlite" else [[id] for id in parents]:
        counted, more = unless_refused(db, partial(_count, db), some)
        refused += more
        if any(counted):
            return True, refused
    db.left.note("overdue", refused=len(refused), full=len(parents) == AT_ONCE)
    return False, refused


def _count(db: Database, parents: Sequence[str]) -> bool:
    d = db.dialect
    if d.engine == "sqlite":
        among = f"parent IN ({d.ids(len(parents))})"
        return db.changed(f"DELETE FROM {d.table('overdue')} WHERE {among}", parents) > 0
    ((counted,),) = db.rows(f"SELECT {d.table('follow_on')}({AT_ONCE}, {d.id_value})", parents)
    return int(counted) >= 0


def decide_some(db: Database) -> tuple[list[str], Refused]:
    """Skip and restore what `revisit` names, and what is behind it.

    Returns what was named and decided, and what the database refuses to change. If it refuses a job
    behind one, that one is decided without those behind, which `revisit` then names.
    """
    d = db.dialect
    some_of = f"LIMIT {AT_ONCE} OFFSET {db.left.of('revisit')}"
    revisit = f"{d.table('revisit')} AS one"
    named = f"SELECT {d.id('job_id')} FROM {revisit} ORDER BY one.job_id {some_of}"
    ids = [id for (id,) in db.rows(named)]
    decided, refused = unless_refused(db, partial(_decide, db), ids) if ids else ([], [])
    for id, _ in [*refused]:
        more, still = unless_refused(db, partial(_decide, db, alone=True), [id])
        decided += more
        refused = [one for one in refused if one[0] != id] + still
    db.left.note("revisit", refused=len(refused), full=len(ids) == AT_ONCE)
    return [id for some in decided for id in some], refused


def _decide(db: Database, ids: Sequence[str], *, alone: bool = False) -> Sequence[str]:
    failpoints.hit("dependencies.before_decide")
    _forget(db, {*ids, *_skip(db, ids, alone=alone), *_restore(db, ids, alone=alone)})
    return ids


def retry(db: Database, job_id: str, event: Retried) -> lifecycle.Job:
    """Do what `apply` does, and restore what was skipped because of the failure."""
    job = apply(db, job_id, event)
    restore_behind(db, [job_id], event.actor)
    return job


def restore_behind(db: Database, parents: Sequence[str], actor: str) -> None:
    """Restore what was skipped because of jobs that are tried again: the first ones of it."""
    d = db.dialect
    if not parents:
        return
    children = db.rows(
        f"SELECT DISTINCT {d.id('job.id')} FROM {d.table('dependency')} AS edge"
        f" JOIN {d.table('job')} AS job ON job.id = edge.child AND {SKIPPED}"
        f" WHERE edge.parent IN ({d.ids(len(parents))}) LIMIT {AT_ONCE}",
        parents,
    )
    if children:
        _forget(db, _restore(db, [id for (id,) in children], actor))


def _skip(db: Database, roots: Sequence[str], *, alone: bool) -> Iterable[str]:
    jobs = _lock(db, sorted(roots) if alone else _behind(db, roots, DOOMED))
    # One that was claimed waits for a signal.
    waiting = [j for j in jobs.values() if j.status is lifecycle.Status.WAITING and not j.token]
    spare = {job.id: job.spare or 0 for job in waiting}
    doomed = [id for id in roots if spare.get(id, 0) < 0]
    if doomed:
        links = [link for link in _links(db, spare) if link.gate is None]
        now, skipped = db.now(), skipped_by(doomed, spare, links)
        events = {id: Skipped(spare=left) for id, left in skipped.items()}
        # Children first: a parent would be counted for them.
        save(db, [(jobs[id], lifecycle.follow(jobs[id], it, now)) for id, it in events.items()])
    return doomed


def _restore(
    db: Database, roots: Sequence[str], actor: str = "store", *, alone: bool = False
) -> Iterable[str]:
    reached = sorted(roots) if alone else _behind(db, roots, SKIPPED)
    jobs = {
        job.id: job
        for job in _lock(db, reached).values()
        if job.status is lifecycle.Status.CANCELLED and job.event == Skipped.name
    }
    taken = set[str]()
    for id, (key, holder) in unique_keys.keys_of(db, list(jobs)).items():
        if holder is not None or key in taken:
            del jobs[id]
        taken.add(key)
    if jobs:
        counts = restored_by(_needs(db, jobs), _tallies(db, jobs), _links(db, jobs))
        now = db.now()
        # Parents first: a trigger counts each change for the children that wait already.
        changes = [(jobs[id], _restored(jobs[id], it, actor, now)) for id, it in counts.items()]
        _set_gates(db, counts)
        save(db, changes)
    return reached


def _restored(job: lifecycle.Job, count: Numbers, actor: str, now: datetime) -> Steps:
    """The steps of a job that waits again, and of one for which by now enough has come."""
    back = lifecycle.decide(
        job, Restored(need=max(count.need, 1), spare=count.spare, actor=actor), now
    )
    if count.need > 0:
        return (back,)
    return (back, lifecycle.decide(back, Unblocked(need=count.need), now))


# --- SQL ------------------------------------------------------------------------------------------


def _behind(db: Database, roots: Sequence[str], which: str) -> list[str]:
    """Return jobs and the jobs behind them by dependencies that match `which`, ordered by id."""
    d = db.dialect
    rows = db.rows(
        f"WITH RECURSIVE behind (id) AS (SELECT id FROM {d.table('job')} WHERE id IN"
        f" ({d.ids(len(roots))}) UNION SELECT edge.child FROM behind"
        f" JOIN {d.table('dependency')} AS edge ON edge.parent = behind.id"
        f" JOIN {d.table('job')} AS job ON job.id = edge.child AND {which})"
        f" SELECT {d.id('id')} FROM behind LIMIT {AT_ONCE}",
        roots,
    )
    return sorted(id for (id,) in rows)


def _lock(db: Database, ids: Sequence[str]) -> Mapping[str, lifecycle.Job]:
    """Lock jobs and return them; before them their gates, as endings do."""
    d = db.dialect
    if d.engine == "postgres" and ids:
        gates = f"SELECT 1 FROM {d.table('gate')} WHERE child IN ({d.ids(len(ids))})"
        db.rows(f"{gates} ORDER BY child, gate {d.hold}", ids)
    return db.lock(ids)


def _links(db: Database, jobs: Collection[str]) -> list[Edge]:
    """The dependencies between jobs."""
    d = db.dialect
    gate = "NULL" if d.engine == "sqlite" else "gate"
    among, ids = d.ids(len(jobs)), list(jobs)
    rows = db.rows(
        f"SELECT {d.id('edge.parent')}, {d.id('child')}, meets, {gate}, NULL,"
        f" late.parent IS NOT NULL FROM {d.table('dependency')} AS edge {_late(db)}"
        f" WHERE edge.parent IN ({among}) AND (child IN ({among})) IS TRUE AND meets <> 'past'",
        (*ids, *ids),
    )
    return [Edge(*row) for row in rows]


def _late(db: Database) -> str:
    """Join what says that the ending of a parent counts later for a child."""
    overdue = db.dialect.table("overdue")
    return f"LEFT JOIN {overdue} AS late ON late.parent = edge.parent AND late.after < edge.child"


def _needs(db: Database, jobs: Collection[str]) -> dict[str, int | None]:
    d = db.dialect
    needs = f"SELECT {d.id('id')}, needs FROM {d.table('job')} WHERE id IN ({d.ids(len(jobs))})"
    return dict(db.rows(needs, [*jobs]))


def _tallies(db: Database, jobs: Collection[str]) -> dict[str, dict[int | None, Tally]]:
    """What the parents of jobs that are not among them have come to, by gate.

    A deleted parent had ended in a way that is not known. An overdue parent counts later.
    """
    d = db.dialect
    gate = "NULL" if d.engine == "sqlite" else "gate"
    ids, given = d.ids(len(jobs)), list(jobs)
    sums = ", ".join(
        f"CAST(sum(CASE WHEN {which} THEN 1 ELSE 0 END) AS int)" for which in ("met", "NOT met")
    )
    rows = db.rows(
        f"SELECT {d.id('child')}, gate, count(*), {sums} FROM (SELECT edge.child, {gate} AS gate,"
        f" CASE WHEN parent.id IS NULL THEN edge.meets = 'settled'"
        f" WHEN late.parent IS NULL AND {lifecycle.rest_sql('parent.')}"
        f" THEN {met_sql('edge', 'parent')} END AS met"
        f" FROM {d.table('dependency')} AS edge"
        f" LEFT JOIN {d.table('job')} AS parent ON parent.id = edge.parent"
        f" {_late(db)} WHERE edge.child IN ({ids}) AND edge.parent NOT IN ({ids})"
        " AND edge.meets <> 'past'"
        ") AS one GROUP BY child, gate",
        (*given, *given),
    )
    tallies: dict[str, dict[int | None, Tally]] = {}
    for child, number, *counts in rows:
        tallies.setdefault(child, {})[number] = Tally(*counts)
    return tallies


def _set_gates(db: Database, counts: Mapping[str, Numbers]) -> None:
    gates = [
        {"child": child, "gate": gate, "need": need, "spare": spare}
        for child, count in counts.items()
        for gate, (need, spare) in count.gates.items()
    ]
    if gates:
        d, columns = db.dialect, ("child", "gate", "need", "spare")
        db.changed(
            f"UPDATE {d.table('gate')} AS old SET need = new.need, spare = new.spare"
            f" FROM {d.objects('gate', columns)}"
            " WHERE old.child = new.child AND old.gate = new.gate",
            (json.dumps(gates),),
        )


def _forget(db: Database, job_ids: Iterable[str]) -> None:
    """Remove decided jobs from `revisit`. The triggers keep jobs that still have to be skipped."""
    ids, d = sorted(job_ids), db.dialect
    if ids:
        db.changed(f"DELETE FROM {d.table('revisit')} WHERE job_id IN ({d.ids(len(ids))})", ids)


# --- the clock ------------------------------------------------------------------------------------

MIN_STEP_SECONDS = 60
"""Smaller steps back are waited for."""
MAX_LEFT_SECONDS = 3_600
"""How long a lease may still last after a step back. Its holder renews it as always."""


def set_right(db: Database, limit: int) -> list[Steps]:
    """Shorten up to `limit` leases, and make up to `limit` jobs due; return the steps of the jobs.

    That the clock was put back shows in the statistics, which have reached a time still to come.
    A job was not delayed if it was to run when it was added, or was retried by the clock by which
    it was claimed. Others may have been delayed by the application, and wait. Rates are set right
    without such a sign, and rows of limits that limit nothing are deleted.
    """
    queues.tidy(db)
    d = db.dialect
    ahead = f"millis > {d.millis.format(time=d.now)} + {MIN_STEP_SECONDS * 1000}"
    if not db.rows(f"SELECT 1 FROM {d.table('measured')} WHERE {ahead}"):
        return []
    job, end = d.table("job"), d.later(MAX_LEFT_SECONDS)
    lasting = (
        f"SELECT {d.id('id')} FROM {job} AS job"
        f" WHERE status = 'processing' AND lease_expires_at > {end}"
        f" ORDER BY job.id LIMIT {d.value} OFFSET {d.value} {d.skip_locked}"
    )

    def shorten(ids: Sequence[str]) -> int:
        these = f"id IN ({d.ids(len(ids))})"
        shortened = db.changed(f"UPDATE {job} SET lease_expires_at = {end} WHERE {these}", ids)
        if shortened < len(ids):
            raise WriteRefused(DROPPED_CHANGE)
        return shortened

    ids = [id for (id,) in db.rows(lasting, (limit, db.left.of("lasting")))]
    shortened, unshortened = unless_refused(db, shorten, ids) if ids else ([], [])
    db.left.note("lasting", refused=len(unshortened), full=len(ids) >= limit)
    if shortened:
        leases = quantity(sum(shortened), "lease")
        log.warning("the clock was put back: %s shortened to an hour", leases)
    late = (
        f"SELECT {d.id('id')} FROM {job} WHERE status = 'pending' AND run_at > {d.now}"
        f" AND (run_at = created_at OR event = 'retried'"
        f" AND started_at > {d.now} AND run_at >= started_at)"
        f" LIMIT {d.value} OFFSET {d.value} {d.skip_locked}"
    )
    jobs = db.lock([id for (id,) in db.rows(late, (limit, db.left.of("late")))])
    due = Amended(changes={"run_at": db.now()}, actor=SWEEP)
    changes = [(job, lifecycle.follow(job, due, db.now())) for job in jobs.values()]
    saved, unsaved = save_unless_refused(db, changes)
    db.left.note("late", refused=len(unsaved), full=len(jobs) >= limit)
    for _, refusal in [] if shortened or saved else [*unshortened, *unsaved]:
        raise refusal
    return [steps for _, steps in saved]
