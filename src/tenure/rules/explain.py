"""Why a job is not running, and who has it locked, in words. Pure: facts in, reasons out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from msgspec import Struct

from tenure.events import LeaseExpired, Retried, Snoozed
from tenure.lifecycle import ATTEMPT_ENDS, SETTLED, Job, Status, legal_events
from tenure.rules.dependencies import is_met
from tenure.rules.ledger import EventName
from tenure.rules.queues import (
    LimitFacts,
    Reason,
    ReasonName,
    limit_reason,
    limiting_jobs,
    stays_closed,
)
from tenure.rules.reports import Wait
from tenure.rules.schedules import Fire
from tenure.rules.search import MAX_AHEAD
from tenure.rules.stats import Activity, QueueState, TypeState, WorkerState
from tenure.values.names import RESERVED
from tenure.values.text import UNSTORABLE, first_line, length, quantity, shortened, visible

# --- locks ----------------------------------------------------------------------------------------

MAX_NAME = 64
"""Characters of the name of a user or a program that a sentence has."""
MAX_HOLDERS = 3
"""Transactions that a sentence names."""


class LockHolder(Struct, frozen=True, kw_only=True):
    """A transaction that uses the table of jobs.

    `pid` is the number of its session, and `name` that of the program. A prepared transaction has
    no session: `pid` is None, and `name` its identifier. `state` and `since` are None if the
    database role may not read them. `is_sure` is False if it may be another one of those listed.
    """

    pid: int | None
    user: str
    name: str
    state: str | None
    since: datetime | None
    is_sure: bool = True

    def __str__(self) -> str:
        name, user = (visible(shortened(text, MAX_NAME)) for text in (self.name, self.user))
        since = "" if self.since is None else f" since {self.since:%Y-%m-%d %H:%M:%S} UTC"
        if self.pid is None:
            return f"the prepared transaction {name} of {user}, open{since}"
        if self.state is None and self.since is None:
            return f"session {self.pid} of {user} ({name}), of which this role may see no more"
        return f"session {self.pid} of {user} ({name}), {self.state or 'open'}{since}"

    @property
    def end(self) -> str:
        """The statement that ends it."""
        if self.pid is not None:
            return f"SELECT pg_terminate_backend({self.pid})"
        return "ROLLBACK PREPARED '{}'".format(visible(self.name).replace("'", "''"))


def named(holders: Sequence[LockHolder]) -> str:
    """Name transactions, each with the statement that ends it."""
    more = f"; and {len(holders) - MAX_HOLDERS:,} more" if len(holders) > MAX_HOLDERS else ""
    return "; ".join(f"{one}, end it with {one.end}" for one in holders[:MAX_HOLDERS]) + more


def locked_text(holders: Sequence[LockHolder]) -> str:
    """Say who has a job locked; without holders, the caller may not see who."""
    effect = "no worker or sweep takes it, and changes of it wait"
    if not holders:
        return f"Another transaction of the database has it locked: {effect} until that ends."
    if all(one.is_sure for one in holders):
        return f"Another transaction has it locked, so {effect}: {named(holders)}."
    return f"A transaction has it locked, so {effect}. It is one of these: {named(holders)}."


# --- reasons --------------------------------------------------------------------------------------

Parent = tuple[str, str, str]
"""A job that another one depends on: its id, its status, and which ending of it counts."""
ELSEWHERE = "a job of another queue"
"""In place of an id, for a caller who may not see that queue."""
MAX_NAMED = 3
"""Other jobs that a sentence names."""
MAX_FLAW = 300
"""Characters of the reason why a result was not stored whole."""
RATE_MINUTES = 5
"""Minutes, the current one included, over which the speed of a queue is computed."""
WORKER_IS_LIVE = timedelta(seconds=30)
"""A worker that holds no lease counts as dead after this long without a claim."""
SWEEP_IS_LATE = timedelta(seconds=10)
"""How long after its end a lease is swept at the latest, if a worker or a server is alive."""
NO_SWEEP = "No process sweeps; start `tenure worker` or `tenure serve`."
MAY_BE_LOCKED = {"next", "behind_others", "lease_ran_out", "will_expire"}
"""The reasons of jobs that a worker or a sweep takes soon, unless a transaction has them locked."""
COUNTED_SOON = timedelta(seconds=10)
"""How far the statistics may be behind, and count as up to date."""


class Facts(Struct, frozen=True, kw_only=True):
    """What the store knows about the surroundings of a job at `now`."""

    now: datetime
    queue: QueueState | None
    type: TypeState | None
    workers: Sequence[WorkerState]  # seen lately, live or not
    ahead: int  # due jobs of its queue that go first; MAX_AHEAD + 1 means that or more
    counted_until: datetime | None = None  # what ended up to then is in `rate`
    rate: float  # attempts of its queue that end per second, over the last minutes
    fire: Fire | None = None  # of the schedule that added it
    parents: Sequence[Parent] = ()  # the jobs that it depends on, if it waits or was skipped
    wait: Wait | None = None  # if it is suspended
    asleep_until: datetime | None = None  # the end of the sleep that it began last
    holder: str | None = None  # the job that has its unique key, if it failed or was skipped
    limits: LimitFacts | None = None  # of its queue, if it is due
    locked: Sequence[LockHolder] | None = None  # by whom, if so; empty for who may not see that


class Explanation(Struct, frozen=True):
    """A stable `reason` for programs, a sentence for people, and the events that are legal now.

    `jobs` are ids of other jobs of which `text` says that they keep it from running, three at most,
    and `signal` is the name of the one that it waits for.
    """

    reason: ReasonName
    text: str
    legal_events: tuple[EventName, ...]
    jobs: tuple[str, ...] = ()
    signal: str | None = None


def explain(job: Job, facts: Facts) -> Explanation:
    """Return why `job` is not running, or what it is doing, and the events that it can take."""
    if facts.locked is not None:
        reason, text = "locked", locked_text(facts.locked)
    elif job.start_by is None or job.status not in (Status.PENDING, Status.WAITING):
        reason, text = _reason(job, facts)
    elif job.start_by <= facts.now:
        reason, text = "will_expire", f"It had to {_start(job)} before {_at(job.start_by)}. "
        late = facts.now - job.start_by >= SWEEP_IS_LATE
        text += NO_SWEEP if late else "The next sweep cancels it."
    else:
        reason, text = _reason(job, facts)
        text += f" It is cancelled if it has not started by {_at(job.start_by)}."
    if facts.fire is not None:
        text += f" Schedule {facts.fire.schedule} added it for {_at(facts.fire.at)}."
    legal = legal_events(job.status, job.event)
    if refused := _no_retry(job, facts):
        act = "be retried" if job.status is Status.FAILED else "wait again"
        text += f" It cannot {act}: {refused}."
        legal = tuple(event for event in legal if event != Retried.name)
    signal = facts.wait.name if reason == "suspended" and facts.wait is not None else None
    return Explanation(reason, text, legal, _others(facts, reason), signal)


def _others(facts: Facts, reason: str) -> tuple[str, ...]:
    """Return the jobs to look at next."""
    if reason == "blocked":
        found = [id for id, *_ in _open(facts)]
    elif reason in ("will_be_skipped", "skipped"):
        found = [id for id, *_ in _missed(facts)]
    else:
        found = limiting_jobs(reason, facts.limits) if facts.limits else []
    if facts.holder is not None:
        found.append(facts.holder)
    return tuple(dict.fromkeys(id for id in found if id != ELSEWHERE))[:MAX_NAMED]


def _no_retry(job: Job, facts: Facts) -> str | None:
    if job.status is Status.FAILED and job.start_by is not None and job.start_by <= facts.now:
        return f"it had to start before {_at(job.start_by)}"
    if facts.holder is None:
        return None
    who = facts.holder if facts.holder == ELSEWHERE else f"job {facts.holder}"
    return f"{who} holds its unique key"


def rate(activity: Iterable[Activity], queue: str, now: datetime) -> float:
    """Attempts of a queue that workers ended per second, in the last `RATE_MINUTES`."""
    ends = {*ATTEMPT_ENDS} - {LeaseExpired.name}  # a dead worker has no speed
    ended = sum(m.transitions for m in activity if m.queue == queue and m.event in ends)
    start = now.replace(second=0, microsecond=0) - timedelta(minutes=RATE_MINUTES - 1)
    return ended / (now - start).total_seconds()


def _reason(job: Job, facts: Facts) -> tuple[Reason, str]:
    match job.status:
        case Status.COMPLETED:
            said = f"It completed at {_at(job.finished_at)}, attempt {job.attempts}."
            return "completed", said + _flaw(job)
        case Status.CANCELLED:
            if job.event == "expired":
                start = f"{_start(job)} before {_at(job.start_by)}"
                return "expired", f"It was cancelled: it had to {start}."
            if job.event == "skipped":
                return "skipped", f"It was skipped at {_at(job.finished_at)}{_why_missed(facts)}."
            given = job.reason if job.event == "cancelled" else None  # SQL may name no event
            why = f": {given}" if given else "."
            return "cancelled", f"{job.actor} cancelled it at {_at(job.finished_at)}{why}"
        case Status.FAILED:
            return "failed", (
                f"It failed for good at {_at(job.finished_at)} after {job.attempts} of "
                f"{max(job.max_retries, 1)} attempts: {first_line(job.last_error)}"
            )
        case Status.WAITING if facts.wait is not None:
            until = "" if facts.wait.expires_at is None else f" until {_at(facts.wait.expires_at)}"
            return "suspended", f"It waits for the signal {facts.wait.name}{until}."
        case Status.WAITING:
            return _blocked(job, facts)
        case Status.PROCESSING:
            return _processing(job, facts)
        case Status.PENDING:
            return _pending(job, facts)


def _flaw(job: Job) -> str:
    """Say why the result is only a note, if it is: it was too large, or JSON has no form for it."""
    if not (job.result_json or "").startswith(f'{{"{UNSTORABLE}":'):
        return ""
    try:
        reason = job.result.get("reason")
    except (ValueError, RecursionError):  # SQL may write anything
        return ""
    if not isinstance(reason, str):
        return ""
    return f" Its result was not stored whole: {shortened(first_line(reason), MAX_FLAW)}."


def _blocked(job: Job, facts: Facts) -> tuple[Reason, str]:
    if job.spare is not None and job.spare < 0:
        return "will_be_skipped", f"It will be skipped{_why_missed(facts)}."
    open_jobs = _open(facts)
    if not open_jobs:
        return "blocked", f"It waits for {job.need} more before it can run."
    some = f" It needs {job.need} of them." if job.spare and len(facts.parents) <= 256 else ""
    jobs = quantity(len(facts.parents), "job")
    said = f"It waits for {len(open_jobs):,} of {jobs}: {_jobs_named(open_jobs)}."
    return "blocked", said + some


def _open(facts: Facts) -> list[Parent]:
    return [one for one in facts.parents if one[1] not in SETTLED]


def _missed(facts: Facts) -> list[Parent]:
    return [one for one in facts.parents if one[1] in SETTLED and not is_met(one[2], one[1])]


def _why_missed(facts: Facts) -> str:
    """Why a job cannot run: what it depends on has ended in another way."""
    missed = _missed(facts)
    return f": what it depends on has ended otherwise: {_jobs_named(missed)}" if missed else ""


def _jobs_named(jobs: Sequence[Parent]) -> str:
    more = f", and {len(jobs) - MAX_NAMED:,} more" if len(jobs) > MAX_NAMED else ""
    return ", ".join(f"{id} ({status})" for id, status, _ in jobs[:MAX_NAMED]) + more


def _processing(job: Job, facts: Facts) -> tuple[Reason, str]:
    until = job.lease_expires_at
    if until is not None and until <= facts.now:
        late = facts.now - until >= SWEEP_IS_LATE
        return (
            "lease_ran_out",
            f"Worker {_holder(job, facts)} holds it but its lease ran out at "
            + (
                f"{_at(until)}. {NO_SWEEP}"
                if late
                else f"{_at(until)}: the next sweep ends the attempt."
            ),
        )
    limit = "It has no timeout" if job.timeout is None else f"Its timeout is {length(job.timeout)}"
    return "running", (
        f"Worker {_holder(job, facts)} runs attempt {job.attempts} since {_at(job.started_at)}; "
        f"its lease lasts until {_at(until)} unless renewed. {limit}."
    )


def _start(job: Job) -> str:
    return "start again" if job.started_at else "start"


def _holder(job: Job, facts: Facts) -> str:
    """Name the worker of a job; with its host and process number too, if they are known."""
    labels = (worker.label for worker in facts.workers if worker.id == job.worker)
    return f"{job.worker} ({label})" if (label := next(labels, "")) else str(job.worker)


def _pending(job: Job, facts: Facts) -> tuple[Reason, str]:
    if facts.queue is not None and facts.queue.paused_at is not None:
        return "queue_paused", _paused(f"Queue {job.queue}", facts.queue)
    if facts.type is not None and facts.type.paused_at is not None:
        return "type_paused", _paused(f"Type {job.type}", facts.type)
    if job.run_at > facts.now:
        if facts.asleep_until is not None and facts.asleep_until > facts.now:
            return "sleeping", _asleep(max(facts.asleep_until, job.run_at), facts.now)
        wait = length((job.run_at - facts.now).total_seconds())
        if job.event == Retried.name:
            return "not_due", (
                f"It is tried again at {_at(job.run_at)}, in {wait}, as attempt {job.attempts + 1} "
                f"of {job.max_retries}. Attempt {job.attempts} failed: {first_line(job.last_error)}"
            )
        why = " Its handler has snoozed it." if job.event == Snoozed.name else ""
        return "not_due", f"It is not due before {_at(job.run_at)}, in {wait}.{why}"
    closed = limit_reason(job.queue, facts.limits, facts.now) if facts.limits else None
    if closed and facts.limits and stays_closed(closed[0], facts.limits, facts.now):
        return closed  # a worker alone does not help
    alive = [worker for worker in facts.workers if is_live(worker, facts.now)]
    of_queue = [worker for worker in alive if worker.serves(job.queue)]
    if not of_queue and job.type.startswith(RESERVED):
        return _undelivered(job, any(worker.runs_own for worker in alive))
    live = of_queue or [worker for worker in alive if not worker.runs_own]
    if not live:
        return "no_worker", (
            f"No worker is alive; start one for jobs of type {job.type} in queue {job.queue}."
        )
    if not of_queue:
        return "no_worker_for_queue", (
            f"No worker takes jobs from queue {job.queue}, of {len(live)} alive; "
            "start one that does."
        )
    takers = [worker for worker in of_queue if worker.runs(job.type)]
    if not takers:
        return "no_worker_for_type", (
            f"No worker takes jobs of type {job.type}, of {len(of_queue)} alive "
            f"for queue {job.queue}; start one that does."
        )
    if closed is not None:
        return closed
    if facts.limits is not None and facts.limits.ahead:
        jobs = quantity(facts.limits.ahead, "job")
        go = "goes" if facts.limits.ahead == 1 else "go"
        return "behind_others", f"{jobs} of its partition {go} first; partitions take turns."
    if facts.ahead == 0 or (facts.limits is not None and facts.limits.partition is not None):
        return "next", f"It is next in queue {job.queue}: {_room(takers)}."
    return "behind_others", _place_in_queue(facts)


def _asleep(until: datetime, now: datetime) -> str:
    wait = length((until - now).total_seconds())
    return f"It sleeps until {_at(until)}, in {wait}. To run it now does not wake it."


def _undelivered(job: Job, delivers: bool) -> tuple[Reason, str]:
    if delivers:
        return "queue_waits", (
            f"Queue {job.queue} starts no job now: its receiver did not answer several times, or "
            "as many deliveries to it as may be are under way."
        )
    return "no_worker", (
        "No process delivers to webhooks; start `tenure serve`, or `tenure worker` with access to "
        "the database."
    )


def _paused(what: str, state: QueueState | TypeState) -> str:
    why = f" ({state.pause_reason})" if state.pause_reason else ""
    return f"{what} is paused{why}; resume it to continue."


def _room(takers: Sequence[WorkerState]) -> str:
    if not all(worker.slots and worker.leases >= worker.slots for worker in takers):
        return "the first free worker takes it"
    number = quantity(len(takers), "worker")
    return f"all {sum(worker.slots or 0 for worker in takers)} slots of {number} are busy"


def _place_in_queue(facts: Facts) -> str:
    """How many jobs go first, and when the job starts if its queue keeps its speed."""
    many = facts.ahead > MAX_AHEAD
    ahead = f"More than {MAX_AHEAD:,} jobs" if many else f"{facts.ahead:,} jobs"
    goes = "1 job of its queue goes" if facts.ahead == 1 else f"{ahead} of its queue go"
    if facts.rate <= 0:
        until = facts.counted_until
        if until is None or facts.now - until > COUNTED_SOON:
            return f"{goes} first. What ended lately is not counted yet."
        return f"{goes} first, and none is known to have ended in the last {RATE_MINUTES} minutes."
    eta = length(max(facts.ahead / facts.rate, 0.1))
    speed = f"{facts.rate:.1f} per second" if facts.rate >= 1 else f"{facts.rate * 60:.1f} a minute"
    return f"{goes} first; at {speed} its turn comes in {'more than' if many else 'about'} {eta}."


def is_live(worker: WorkerState, now: datetime) -> bool:
    """Whether a worker holds a lease or has claimed within `WORKER_IS_LIVE`."""
    return worker.leases > 0 or now - worker.seen_at < WORKER_IS_LIVE


def _at(time: datetime | None) -> str:
    return "?" if time is None else time.strftime("%Y-%m-%d %H:%M:%S UTC")
