"""Runs jobs for a test: claims, runs and reports them one by one, and moves the store's clock.

Each change that only tests make to a store is one transaction, under the store's rules.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Collection, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple, TypeAlias, TypedDict, TypeVar
from uuid import uuid4

from tenure.app.app import Tenure
from tenure.app.bulk import run_batches
from tenure.app.schedules import declare as declare_schedules
from tenure.app.twins import check_loop
from tenure.app.waiting import ONE_BY_ONE
from tenure.errors import IllegalTransition, InvalidInput, JobFailed, JobNotFound
from tenure.events import Amended, Cancelled, Claimed
from tenure.lifecycle import SETTLED, Job, Status, decide, legal_events
from tenure.rules.jobs import Duration
from tenure.rules.reports import Answer, ClaimRequest, Duty, Lease, Outcome, Report, Verdict
from tenure.store import search, transitions
from tenure.store.borrowed.connections import LENT
from tenure.store.database import Database, Reads
from tenure.store.tables import workers
from tenure.testing.matching import Named, Wanted, name_of
from tenure.values import durations
from tenure.values.ids import EPOCH, id_of
from tenure.values.names import check_kind, check_queues
from tenure.worker.leases import Attempt
from tenure.worker.maintenance import MaintenanceThread
from tenure.worker.single import SingleRunner

ACTOR = "testing"
"""Who acts, in the ledger."""
LEASE_SECONDS = 86_400.0

CLOCK = {
    "sqlite": (
        "DROP VIEW tenure_now",
        "CREATE VIEW tenure_now AS SELECT"
        " CAST((julianday('now') - 2440587.5) * 86400000 + 0.5 AS INTEGER) + {millis} AS at",
    ),
    "postgres": (
        "CREATE OR REPLACE FUNCTION {s}.clock() RETURNS timestamptz LANGUAGE sql STABLE"
        " PARALLEL SAFE AS 'SELECT pg_catalog.clock_timestamp() + interval ''{millis} ms'''",
    ),
}
"""What the clock of each engine is, so many milliseconds ahead."""

CLEARED = (
    *("job", "transition", "trace", "progress", "dependency", "workflow", "fire", "schedule"),
    *("bulk", "throttle", "partition_limit", "queue_limit", "queue", "worker"),
    *("tally", "total", "activity", "failure"),
)
"""The tables that `clear` empties, in this order. Triggers empty the tables that follow jobs."""


def set_clock(db: Database, ahead: timedelta) -> None:
    """Let the store's clock be so far ahead of that of the machine, which makes the ids."""
    search.CLOCKS_APART = max(search.CLOCKS_APART, ahead + timedelta(hours=1))
    millis = str(round(ahead.total_seconds() * 1000))
    for statement in CLOCK[db.dialect.engine]:
        db.changed(statement.replace("{millis}", millis))


def claim(db: Database, job_id: str, worker: str, *, early: bool) -> Lease | None:
    """Lease one job, whatever is before it; an `early` one also before its time and in a pause.

    Otherwise return None in a pause. Raises JobNotFound, or IllegalTransition if it is not pending,
    not due, or refused by a limit.
    """
    job = db.lock([job_id]).get(job_id)
    if job is None:
        raise JobNotFound(job_id)
    now = db.now()
    steps: tuple[Job, ...] = ()
    if job.run_at > now and early:
        steps = (decide(job, Amended(changes={}, delay=0.0, actor=ACTOR), now),)
    if not early and _is_paused(db, job):
        return None
    lease_id = str(uuid4())
    event = Claimed(lease_id=lease_id, lease_seconds=LEASE_SECONDS, actor=worker)
    held = decide((job, *steps)[-1], event, now)
    try:
        transitions.save(db, [(job, (*steps, held))])
    except Exception as error:
        _, _, why = str(error).partition("\n")[0].partition("tenure: ")
        if not why:
            raise
        legal = legal_events(job.status, job.event)
        raise IllegalTransition(job_id, job.status, Claimed.name, legal, why) from error
    assert held.lease_expires_at is not None
    facts = (held.id, held.type, held.queue, held.payload_json, held.attempts, held.max_retries)
    trace = db.traces([job_id]).get(job_id)
    return Lease(*facts, held.token, held.timeout, lease_id, held.lease_expires_at, trace)


def _is_paused(db: Reads, job: Job) -> bool:
    d = db.dialect
    paused = f"name = {d.value} AND paused_at IS NOT NULL"
    statement = f"SELECT 1 FROM {d.table('queue')} WHERE {paused}"
    statement += f" UNION ALL SELECT 1 FROM {d.table('type')} WHERE {paused}"
    return bool(db.rows(statement, (job.queue, job.type)))


def next_times(db: Database) -> list[datetime]:
    """Return when a wait or a lease ends, a schedule is due, or a limit lets a job start.

    A limit that opens with the end of a job has no time.
    """
    d = db.dialect
    queue, part = d.table("queue_limit"), d.table("partition_limit")
    firsts = (
        ("min(expires_at)", d.table("wait")),
        ("min(lease_expires_at)", d.table("job")),
        ("min(next_at)", f"{d.table('schedule')} WHERE paused_at IS NULL"),
        *(("resume_at", table) for table in (queue, part)),
    )
    found = [
        d.time_or_none(time)
        for column, rest in firsts
        for (time,) in db.rows(f"SELECT {d.time(column)} FROM {rest}")
    ]
    opens = db.rows(
        f"SELECT tat - (burst - 1) * every FROM {queue} WHERE every IS NOT NULL UNION ALL"
        f" SELECT part.tat - (per_burst - 1) * per_every FROM {part} AS part"
        f" JOIN {queue} AS own ON own.queue = part.queue WHERE per_every IS NOT NULL"
    )
    rates = [EPOCH + timedelta(microseconds=micros) for (micros,) in opens]
    return [*rates, *(time for time in found if time is not None)]


def clear(db: Database, *, force: bool) -> None:
    """Cancel what is not settled, then delete all jobs and what belongs to them and to queues."""
    d = db.dialect
    others = [one for one in workers.seen(db, None) if not one.id.startswith(ONE_BY_ONE)]
    if others and not force:
        raise InvalidInput(
            f"worker {others[0].label or others[0].id} asked for jobs here in the last ten "
            "minutes: is this a database of tests? clear(force=True) deletes its jobs anyway"
        )
    jobs, now = d.table("job"), db.now()
    unsettled = [
        id for (id,) in db.rows(f"SELECT {d.id('id')} FROM {jobs} WHERE finished_at IS NULL")
    ]
    if unsettled:
        event = Cancelled(actor=ACTOR)
        held = db.lock(sorted(unsettled)).values()
        transitions.save(db, [(job, (decide(job, event, now),)) for job in held])
    for table in CLEARED:
        db.changed(f"DELETE FROM {d.table(table)}")
    db.changed(f"UPDATE {d.table('type')} SET paused_at = NULL WHERE paused_at IS NOT NULL")


# --- runs -----------------------------------------------------------------------------------------

T = TypeVar("T")

LOCKED = (
    "the outcome of job {} ({}) cannot be recorded: another transaction has the job locked, or one "
    "that waits for it. Perhaps its handler has left one open"
)
NOT_STARTED = "job {} ({}) cannot be started here: it has no handler, or the log says why"
NOT_SEEN = (
    "a child process does not see the transaction of a test: use `testing.on`; with Django, a "
    "TransactionTestCase, or the fixture transactional_db"
)
ON_LOOP = (
    "it ran on the thread of an event loop, where synchronous calls may be refused: in a "
    "coroutine, write `await jobs.drain_async()` or `await jobs.run_async(job)`"
)
MILLISECOND = timedelta(milliseconds=1)
TOO_MANY = "{} jobs have run, and there are more: {}. Do they add each other? Else give `most`"


class Run(NamedTuple):
    """One attempt that a test ran.

    - `job`: as it was afterwards.
    - `outcome`: `completed`, `failed` (for good), `retried` (it failed and will run again),
      `cancelled`, or another event of the ledger, such as `snoozed`.
    - `error`: what the handler raised, if it failed; JobFailed if it raised nothing.
    """

    job: Job
    outcome: str
    error: BaseException | None


def raise_error_of(ran: Run) -> None:
    """Raise the error of a run, if there is one, with a note that says whose it is."""
    if ran.error is not None:
        job = ran.job
        number = f"attempt {job.attempts} of {job.max_retries}"
        ran.error.add_note(f"job {job.id} ({job.type}), {number}")
        raise ran.error


@dataclass(frozen=True, slots=True)
class Drained:
    """What `Jobs.drain` did.

    - `completed`, `failed`, `retried`: how many attempts ended so; `failed` is for good.
    - `left`: how many jobs of the same queues and types are waiting or pending still.
    - `runs`: each attempt as a `Run`, in order.
    """

    completed: int
    failed: int
    retried: int
    left: int
    runs: list[Run] = field(repr=False)


class DrainOptions(TypedDict, total=False):
    """The arguments of `Jobs.drain`."""

    until: datetime | Duration | None
    retries: bool
    raise_errors: bool
    queues: Sequence[str] | None
    types: Sequence[Named] | None
    most: int


class Next(NamedTuple):
    """What is to be run, and what to ask for together with the report of a completion."""

    lease: Lease
    claim: ClaimRequest | None = None


Running: TypeAlias = Generator[Next, tuple[Run, Lease | None], T]
"""Yields what to run, and is sent the outcome and what the claim got."""


class Runs:
    """What runs the jobs in the database that an application uses now."""

    def __init__(self, app: Tenure) -> None:
        check_kind(app, Tenure, "a Tenure application", "$.app")
        self._app = app
        self.store = app.core.limited_store  # not one that `inline` puts before it
        self._worker = f"{ONE_BY_ONE}{secrets.token_hex(8)}"
        self._ahead = timedelta()
        self._maintenance = MaintenanceThread(app)
        self._has_declared = False

    # --- drive

    def drive(self, running: Running[T], *, children: bool = False) -> T:
        """Run what is yielded, with `children` in child processes too; return the result."""
        with self._runner(children) as runner:
            try:
                step = next(running)
                while True:
                    done = self._settle(runner, runner.run(step.lease), step.claim)
                    runner.call_failures()
                    step = running.send(done)
            except StopIteration as end:
                result: T = end.value
                return result
            except Exception as error:
                with suppress(RuntimeError):  # no loop runs here
                    check_loop()
                    error.add_note(ON_LOOP)
                raise

    async def drive_async(self, running: Running[T], *, children: bool = False) -> T:
        """Do the same on the running loop."""
        async with self._runner(children) as runner:
            try:
                step = next(running)
                while True:
                    done = self._settle(runner, await runner.run_async(step.lease), step.claim)
                    await runner.call_failures_async()
                    step = running.send(done)
            except StopIteration as end:
                result: T = end.value
                return result

    def _runner(self, children: bool) -> SingleRunner:
        core = self._app.core
        if children and core.database in LENT:
            raise InvalidInput(NOT_SEEN, path="real_processes")
        facts = (core.handlers, self._worker, core.redaction, core.tracing)
        return SingleRunner(core, *facts, children=children)

    def _settle(
        self, runner: SingleRunner, attempt: Attempt, claim: ClaimRequest | None
    ) -> tuple[Run, Lease | None]:
        """Report an attempt; return what became of it, and what the claim got if it completed.

        Like a worker, which reports and claims at once.
        """
        report = attempt.report
        assert report is not None
        claim = claim if report.outcome is Outcome.COMPLETED else None
        exchange = self._app.core.exchange([report], claim).result()
        verdict, claimed = exchange.verdicts[0], next(iter(exchange.leases), None)
        if verdict.answer is Answer.BUSY:
            self._give_back(claimed)
            raise RuntimeError(LOCKED.format(attempt.lease.id, attempt.lease.type))
        return self._run_of(runner, attempt, verdict), claimed

    def _run_of(self, runner: SingleRunner, attempt: Attempt, verdict: Verdict) -> Run:
        core, raised = self._app.core, attempt.exception
        if attempt.report is not None and attempt.report.outcome is Outcome.RELEASED:
            raise RuntimeError(NOT_STARTED.format(attempt.lease.id, attempt.lease.type))
        runner.reported(attempt, verdict)
        if isinstance(raised, KeyboardInterrupt):
            raise raised
        job = core.get(attempt.lease.id)
        outcome = str(job.status) if job.status in SETTLED else job.event
        failed = outcome in ("failed", "retried")
        error = (raised or JobFailed(job.id, job.last_error)) if failed else None
        return Run(job, outcome, error)

    # --- what to run

    def one(self, job: Job | str) -> Running[Job]:
        """Run one job now; return it afterwards, or raise its error."""
        job = job if isinstance(job, Job) else self._app.core.get(id_of(job))
        if self._app.core.handlers.find(job.type) is None:
            raise InvalidInput(f"this application has no handler for {job.type!r}")
        lease = self._claim(job.id, early=True)
        assert lease is not None
        ran, _ = yield Next(lease)
        raise_error_of(ran)
        return ran.job

    def _claim(self, job_id: str, *, early: bool = False) -> Lease | None:
        act = partial(claim, job_id=job_id, worker=self._worker, early=early)
        return self.store.write("claim", act).result()

    def added(self, before: Collection[str]) -> Running[list[Run]]:
        """Run the jobs that may start and are not among those `before`."""
        runs: list[Run] = []
        known = set(before)
        types = self._app.core.handlers.types()
        pending = Wanted(None, None, {"status": "pending"})
        while found := [j for j in pending.candidates(self._app) if j.id not in known]:
            known |= {job.id for job in found}
            for job in sorted(found, key=lambda job: (job.priority, job.run_at, job.id)):
                with suppress(IllegalTransition):  # a limit refuses it, or it has just run
                    if (types is None or job.type in types) and (lease := self._claim(job.id)):
                        ran, _ = yield Next(lease)
                        runs.append(ran)
        return runs

    def due(
        self,
        until: datetime | Duration | None = None,
        retries: bool = False,
        raise_errors: bool = True,
        queues: Sequence[str] | None = None,
        types: Sequence[Named] | None = None,
        most: int = 1_000,
    ) -> Running[Drained]:
        """Run what is due, as `Jobs.drain` says."""
        core = self._app.core
        if isinstance(until, datetime):
            until = durations.check_time(until, "$.until")
        elif until is not None:
            seconds = durations.seconds(until, path="$.until")
            until = core.clock() + timedelta(seconds=seconds)
        request = ClaimRequest(
            worker=self._worker,
            label="test",
            limit=1,
            lease_seconds=LEASE_SECONDS,
            queues=check_queues(queues, "queues"),
            types=core.handlers.types() if types is None else tuple(map(name_of, types)),
            traces=core.tracing is not None,
        )
        self._act_in_bulk()
        runs: list[Run] = []
        idle_at: datetime | None = None
        claimed: Lease | None = None
        while True:
            if len(runs) == most and any(job.run_at <= core.clock() for job in self._left(request)):
                raise RuntimeError(TOO_MANY.format(most, Counter(run.job.type for run in runs)))
            # What falls due during the claim or after it is still to come.
            asked_at = None if claimed else core.clock()
            lease = claimed or next(iter(core.claim(request).leases), None)
            if lease is not None:
                idle_at = None
                ran, claimed = yield Next(lease, request if len(runs) + 1 < most else None)
                runs.append(ran)
                if raise_errors and not (retries and ran.outcome == "retried"):
                    self._raise_error_of(ran, claimed)
            elif idle_at is None:
                idle_at = asked_at
                self.maintain()
            elif (next_at := self._next_at(request, idle_at, until, retries)) is not None:
                self.travel(max(next_at - core.clock(), MILLISECOND))
                idle_at = None
            else:
                break
        if until is not None and until > (now := core.clock()):
            self.travel(until - now)
        ended, left = Counter(run.outcome for run in runs), len(self._left(request, waiting=True))
        return Drained(ended["completed"], ended["failed"], ended["retried"], left, runs)

    def _raise_error_of(self, ran: Run, claimed: Lease | None) -> None:
        """Raise the error of a run, if there is one, and give back what was claimed with it."""
        if ran.error is not None:
            self._give_back(claimed)
        raise_error_of(ran)

    def _give_back(self, claimed: Lease | None) -> None:
        if claimed is not None:
            self._app.core.report([Report(claimed.id, claimed.lease_id, Outcome.RELEASED)])

    def _left(self, request: ClaimRequest, *, waiting: bool = False) -> list[Job]:
        """Return the pending jobs that a request is about, perhaps also the waiting ones."""
        return [
            job
            for job in Wanted(None, None, {}).candidates(self._app)
            if (waiting or job.status is Status.PENDING)
            and (request.queues is None or job.queue in request.queues)
            and (request.types is None or job.type in request.types)
        ]

    # --- time

    def _next_at(
        self, request: ClaimRequest, after: datetime, until: datetime | None, retries: bool
    ) -> datetime | None:
        """Return when something falls due first after a time; None for nothing."""
        left = self._left(request, waiting=True)
        times = [job.run_at for job in left if retries and job.event == "retried"]
        if until is not None:
            others = self.store.write("look", next_times).result()
            others += [job.run_at for job in left]
            others += [job.start_by for job in left if job.start_by is not None]
            times += [time for time in others if time <= until]
        return min((time for time in times if time > after), default=None)

    def maintain(self) -> None:
        """Do what a server does beside the jobs: a duty may leave jobs for another one."""
        self._declare()
        self._act_in_bulk()
        self._maintenance.do_once()
        if Duty.DEPENDENCIES in self._app.core.look():
            self._maintenance.do_once()

    def _act_in_bulk(self) -> None:
        """Carry out the bulk actions that were started, before a job runs that they cancel."""
        while run_batches(self._app.core):
            pass

    def _declare(self) -> None:
        if not self._has_declared:
            self._has_declared = True
            declare_schedules(self._app.core)

    def travel(self, by: timedelta) -> None:
        """Put the store's clock forward."""
        self._declare()  # a schedule has no ticks before it is known
        self._move_clock(by)

    def _move_clock(self, by: timedelta) -> None:
        # Whole milliseconds, as the clock of SQLite, and up: to be early would miss what falls due.
        self._ahead = -(-(self._ahead + by) // MILLISECOND) * MILLISECOND
        self.store.write("clock", partial(set_clock, ahead=self._ahead)).result()

    def reset(self) -> None:
        """Let the store's clock be that of the machine again, and declare schedules again."""
        self._has_declared = False
        if self._ahead:
            self._move_clock(-self._ahead)
