"""Tenure: the one door. Whatever enqueues, runs, shows or changes jobs goes through here.

It registers handlers, checks what it is given, and passes it to the store. It decides nothing about
a job's state: the store does, by the lifecycle.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import fields
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar, Unpack, overload

from tenure import durations, filters, handlers, ids, lifecycle, logs, payload
from tenure.drafts import (
    MOST_RETRIES,
    Backoff,
    Draft,
    Duration,
    Options,
    additions_of,
    defaults_of,
    positive,
    whole,
)
from tenure.errors import BulkNotFound, InvalidInput, JobNotFound
from tenure.explain import RATE_MINUTES, Explanation, Facts, explain, rate
from tenure.filters import Fields
from tenure.handlers import Defaults, Handlers, JobContext
from tenure.jobtype import JobType
from tenure.lifecycle import DEFAULT_MAX_RETRIES, Job, Status
from tenure.records import (
    Action,
    Activity,
    Added,
    Addition,
    Bulk,
    Check,
    ClaimRequest,
    Count,
    Counted,
    FailureGroup,
    Filter,
    Moves,
    Page,
    Query,
    QueueState,
    Report,
    Total,
    Transition,
    Turn,
    Violation,
    Wanted,
    WorkerState,
    query_of,
)
from tenure.redaction import Redaction
from tenure.retry import DEFAULT_POLICY
from tenure.store import Store, migrate_store, open_store, schema_of, search
from tenure.store.audit import INVARIANTS
from tenure.store.bulk import about
from tenure.store.checks import check_store, schema_version
from tenure.tokens import Tokens
from tenure.tracing import Tracing
from tenure.webhooks import Webhooks

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_DATABASE = "sqlite:///tenure.db"
MOST_JOBS_AT_ONCE = 10_000
MOST_LISTED = 500
EVERYTHING = Wanted()
MOST_BACK = 10_000
MOST_MINUTES = 24 * 60
MOST_COUNTED = 1_000_000


class Tenure:
    """A job queue over one database: `Tenure("sqlite:///jobs.db")` or `Tenure("postgresql://…")`.

    The database is opened, and its schema created or upgraded, at the first use. Safe to use from
    any thread and any event loop; after a fork, make a new one in the child.
    """

    def __init__(
        self,
        database: str = DEFAULT_DATABASE,
        *,
        actor: str = "application",
        redact: Sequence[str] = (),
        tracing: bool = False,
    ) -> None:
        """`actor` names this application in the ledger, where a call does not name one.

        `redact` are keys of payloads and results whose values its server does not show. `tracing`
        makes spans of OpenTelemetry; it needs `pip install 'tenure[otel]'`.
        """
        self.database = database
        self.actor = payload.check_label(actor, "actor", "$.actor")
        self.handlers = Handlers()
        self.redaction = Redaction(redact)
        self.tracing = Tracing() if tracing else None
        self._opened: Store | None = None

    @property
    def _store(self) -> Store:
        return self._opened or self.open()._store

    def open(self, *, make: bool = True) -> Tenure:
        """Open the database now; raises StoreUnavailable or SchemaMismatch if that fails.

        Without `make`, also where there is no database of Tenure yet.
        """
        if self._opened is None:
            self._opened = open_store(self.database, make=make)
        return self

    def close(self) -> None:
        """Commit what is waiting and close the database; the next use opens it again."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def __enter__(self) -> Tenure:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- handlers

    @overload
    def job(self, function: Callable[Concatenate[JobContext, P], R], /) -> JobType[P, R]: ...
    @overload
    def job(self, function: Callable[P, R], /) -> JobType[P, R]: ...
    @overload
    def job(
        self,
        *,
        name: str | None = None,
        queue: str = "default",
        priority: int = 0,
        max_retries: int = DEFAULT_MAX_RETRIES,
        timeout: Duration | None = None,
        backoff: Backoff = DEFAULT_POLICY,
        process: bool = False,
    ) -> _Register: ...
    def job(self, *function: Any, **options: Any) -> Any:
        """Register a handler: `@app.job` or `@app.job(queue="mail", max_retries=5)`.

        `name` is the job type (default: the function's name), `timeout` limits one attempt,
        `process=True` runs it in a child process, where a crash fails that job alone.
        """
        register = _Register(self, **options)
        return register(*function) if function else register

    # --- adding jobs

    def enqueue(
        self, type: str, payload: Mapping[str, Any] | None = None, **options: Unpack[Options]
    ) -> Job:
        """Add a job by type name; when this returns the job is on disk.

        Raises InvalidInput, KeyConflict, QueueFull, or StoreUnavailable when the outcome may be
        unknown: enqueue again then, with an `idempotency_key` if one job must not become two.
        """
        return self.enqueue_many([Draft(type, {} if payload is None else payload, options)])[0]

    async def enqueue_async(
        self, type: str, payload: Mapping[str, Any] | None = None, **options: Unpack[Options]
    ) -> Job:
        """`enqueue` for async callers."""
        draft = Draft(type, {} if payload is None else payload, options)
        return (await self.enqueue_many_async([draft]))[0]

    def enqueue_many(self, drafts: Sequence[Draft]) -> list[Job]:
        """Add many jobs in one transaction, all or none."""
        return [added.job for added in self.add(drafts).result()]

    async def enqueue_many_async(self, drafts: Sequence[Draft]) -> list[Job]:
        """`enqueue_many` for async callers."""
        return [added.job for added in await asyncio.wrap_future(self.add(drafts))]

    def add(
        self, drafts: Sequence[Draft], *, batch: bool = False, traceparent: str | None = None
    ) -> Future[list[Added]]:
        """Check drafts and hand them to the store; the future also tells which are new.

        In a batch, errors say which job they mean even if it is the only one. `traceparent` names
        the span of whoever asked, if this application traces.
        """
        if len(drafts) > MOST_JOBS_AT_ONCE:
            raise InvalidInput(f"{len(drafts)} jobs at once; send at most {MOST_JOBS_AT_ONCE}")
        additions: Sequence[Addition] = additions_of(
            drafts,
            defaults=self.handlers.defaults,
            actor=self.actor,
            several=batch or len(drafts) > 1,
        )
        if self.tracing is not None and additions:
            additions, span = self.tracing.adding(additions, traceparent)
            added = self._store.add(additions)
            added.add_done_callback(partial(self.tracing.added, span))
        else:
            added = self._store.add(additions)
        if log.isEnabledFor(logging.DEBUG):
            added.add_done_callback(_log_added)
        return added

    # --- what workers call

    def claim(self, request: ClaimRequest) -> Turn:
        """Lease jobs for a worker."""
        return self.turn((), request).result()

    def report(self, reports: Sequence[Report]) -> Turn:
        """Record what became of leases; a verdict for each."""
        return self.turn(reports, None).result()

    def turn(self, reports: Sequence[Report], claim: ClaimRequest | None) -> Future[Turn]:
        """Report and claim in one transaction."""
        return self._store.turn(reports, claim)

    def heartbeat(self, leases: Sequence[tuple[str, str]], lease_seconds: float) -> set[str]:
        """Extend (job id, lease id) leases; the lease ids that are still held."""
        return self._store.renew(leases, lease_seconds)

    waits = False
    """Claims answer at once; waiting for work is what `on_work` is for."""

    @property
    def turns(self) -> int:
        """How many turns of a worker keep the store busy."""
        return self._store.turns

    def on_work(self, ring: Callable[[], None]) -> Callable[[], None]:
        """Have `ring` called when there may be work; returns the function that ends it."""
        return self._store.on_work(ring)

    # --- what the sweeper calls

    def sweep(self) -> list[Job]:
        """End leases that have run out; the jobs concerned, as they stand after."""
        return self._store.sweep().result()

    def measure(self) -> int:
        """Add moves that are not in the measures yet, up to 2,000; how many there were.

        Call again while the answer is not 0. It is no haste: `stats` is exact at any time.
        """
        return self._store.measure()

    def prune(self, keep: Mapping[str, Duration]) -> int:
        """Delete jobs settled longer ago than `keep` says by status; how many were deleted.

        Works in bites; call again while the answer is not 0. Jobs whose moves are not measured yet
        stay until they are.
        """
        now = self._store.read.clock()
        before: dict[str, datetime] = {
            Status(status): now - timedelta(seconds=durations.seconds(age))
            for status, age in keep.items()
        }
        return self._store.prune(before).result()

    # --- what operators call

    def cancel(self, job_id: str, *, actor: str | None = None) -> Job:
        """Cancel a pending or processing job. Raises JobNotFound or IllegalMove."""
        event = lifecycle.Cancelled(actor=actor or self.actor)
        return self._logged("job_cancelled", self._store.apply(job_id, event).result())

    def retry(self, job_id: str, *, more_retries: int = 1, actor: str | None = None) -> Job:
        """Run a job that failed for good again, with `more_retries` added to its limit."""
        more = whole(more_retries, 1, MOST_RETRIES, "$.more_retries")
        event = lifecycle.Retried(more_retries=more, actor=actor or self.actor)
        return self._logged("job_retried", self._store.apply(job_id, event).result())

    def _logged(self, event: str, job: Job) -> Job:
        log.info(event, extra=logs.fields_of(job))
        return job

    def start_bulk(
        self,
        action: str,
        filter: Filter,
        *,
        more_retries: int = 1,
        actor: str | None = None,
    ) -> Bulk:
        """Begin to `retry` or `cancel` all jobs that fit now, as one action on record.

        `step_bulk` goes on with it, and so does every sweeper, until it has been at all of them.
        Jobs that are added or fail from now on are left alone. Raises InvalidInput.
        """
        total = self.count_matching(filter, action=action, at_most=MOST_COUNTED)
        bulk_id = ids.new_id()
        self._store.start_bulk(
            id=bulk_id,
            action=Action(action),
            filter=filter,
            more_retries=whole(more_retries, 1, MOST_RETRIES, "$.more_retries"),
            actor=payload.check_label(actor or self.actor, "actor", "$.actor"),
            total=total,
        ).result()
        return self.bulk(bulk_id)

    def sample(self, filter: Filter, action: str, limit: int = 5) -> list[Job]:
        """A few of the jobs that an action would change, after a bounded look."""
        query = about(
            filters.checked(filter), filters.sources(filters.action_of(action)), limit=limit
        )
        return list(search.page(self._store.read, query).jobs)

    def step_bulk(self, bulk_id: str) -> Bulk:
        """One bite of a bulk action, if it has not ended; the action as it stands then."""
        found = self.bulk(bulk_id)
        if found.finished_at is None:
            self._store.step_bulk(found, filters.sources(found.action))
        return self.bulk(bulk_id)

    def step_bulks(self) -> int:
        """One bite of every bulk action that has not ended; how many there were."""
        unfinished = self._store.read.bulks(MOST_LISTED, unfinished=True)
        for one in unfinished:
            self._store.step_bulk(one, filters.sources(one.action))
        return len(unfinished)

    def bulk(self, bulk_id: str) -> Bulk:
        """A bulk action as it stands; raises BulkNotFound."""
        found = self._store.read.bulk(bulk_id) if ids.is_id(bulk_id) else None
        if found is None:
            raise BulkNotFound(bulk_id)
        return found

    def bulks(self, limit: int = 50) -> list[Bulk]:
        """Bulk actions, newest first; the last 1,000 are on record."""
        return self._store.read.bulks(whole(limit, 1, MOST_LISTED, "$.limit"))

    def stop_bulk(self, bulk_id: str, *, actor: str | None = None) -> Bulk:
        """End a bulk action where it is; what it has changed stays. Raises BulkNotFound."""
        self.bulk(bulk_id)
        self._store.stop_bulk(bulk_id, actor or self.actor).result()
        return self.bulk(bulk_id)

    def pause(self, queue: str, *, actor: str | None = None) -> None:
        """Stop handing out jobs of a queue; those that run go on."""
        self._set_queue(queue, paused=True, actor=actor)

    def resume(self, queue: str, *, actor: str | None = None) -> None:
        """Hand out jobs of a queue again."""
        self._set_queue(queue, paused=False, actor=actor)

    def limit(self, queue: str, max_pending: int | None, *, actor: str | None = None) -> None:
        """Refuse jobs (QueueFull) that would make more than `max_pending` wait; None lifts it."""
        wanted = -1 if max_pending is None else whole(max_pending, 0, 2**53, "$.max_pending")
        self._set_queue(queue, max_pending=wanted, actor=actor)

    def _set_queue(
        self,
        queue: str,
        *,
        actor: str | None,
        paused: bool | None = None,
        max_pending: int | None = None,
    ) -> None:
        name = payload.check_name(queue, "queue", "$.queue")
        self._store.set_queue(
            name, paused=paused, max_pending=max_pending, actor=actor or self.actor
        ).result()

    # --- what everybody reads

    def get(self, job_id: str) -> Job:
        """The job as it stands; raises JobNotFound."""
        job = self._store.read.get(job_id) if ids.is_id(job_id) else None
        if job is None:
            raise JobNotFound(job_id)
        return job

    def find(
        self, *, limit: int = 50, before: str | None = None, **filter: Unpack[Fields]
    ) -> list[Job]:
        """Jobs of a `Filter`, newest first; `before` is the id of the last one of the page before.

        Looks as far as it takes to find `limit` (at most 500) of them; `page` answers sooner.
        """
        return search.all_of(self._store.read, _query(Filter(**filter), limit, before))

    def page(self, filter: Filter, *, limit: int = 50, before: str | None = None) -> Page:
        """Jobs of a filter, newest first, after a look at a bounded number of rows.

        Where jobs that fit are rare, a page has fewer than `limit`, or none, and still a `next`:
        the `before` of the page that goes on there.
        """
        return search.page(self._store.read, _query(filter, limit, before))

    def count_matching(
        self, filter: Filter, *, action: str | None = None, at_most: int = 10_000
    ) -> Counted:
        """How many jobs fit, up to `at_most`, as far as a bounded number of rows can tell.

        With an `action` (`retry`, `cancel`), those whose status allows it.
        """
        count = whole(at_most, 1, MOST_COUNTED, "$.at_most")
        query = _query(filter)
        if action is not None:
            query = about(filter, filters.sources(filters.action_of(action)))
        return search.count(self._store.read, query, count)

    def history(self, job_id: str) -> list[Transition]:
        """Every move of a job, oldest first; raises JobNotFound."""
        self.get(job_id)
        return self._store.read.history(job_id)

    def ledger(self, after: str = "", limit: int = MOST_LISTED) -> list[Transition]:
        """Moves of all jobs after a position, in an order that never changes, without gaps."""
        return self._store.read.ledger(after, limit)

    def moves(
        self, after: str = "", limit: int = MOST_LISTED, wanted: Wanted = EVERYTHING
    ) -> Moves:
        """The next `limit` moves after a position, of which only those `wanted` are told.

        Each comes with the type and queue of its job. `position` of the answer is where to go on,
        also when nothing was told.
        """
        return self._store.read.moves(after, limit, wanted)

    def ledger_end(self, back: int = 0) -> str:
        """The position of the newest move, or of the one `back` moves before it."""
        return self._store.read.ledger_end(whole(back, 0, MOST_BACK, "$.back"))

    def stats(self) -> list[Count]:
        """Jobs by status, queue and type, at this moment."""
        return self._store.read.counts()

    def activity(self, minutes: int = 60) -> list[Activity]:
        """Moves by minute, type, queue and event; only minutes in which there were some.

        Reaches as far as `measured_until` says. What exceeds 200 pairs of type and queue is added
        up under the name `(other)`.
        """
        return self._store.read.activity(whole(minutes, 1, MOST_MINUTES, "$.minutes"))

    def totals(self) -> list[Total]:
        """The same since the beginning; no number in it ever falls."""
        return self._store.read.totals()

    def failures(self, limit: int = 50) -> list[FailureGroup]:
        """Failed attempts by type and kind of error, those seen last first.

        Reaches as far as `measured_until` says; of all kinds, the 200 seen last are kept.
        """
        return self._store.read.failures(whole(limit, 1, MOST_LISTED, "$.limit"))

    def measured_until(self) -> datetime | None:
        """How far `activity`, `totals` and `failures` reach; None if nothing was measured yet.

        About now, unless there is more to do than can be measured beside it.
        """
        return self._store.read.measured_until()

    def queues(self) -> list[QueueState]:
        """Every queue with jobs waiting or running, or with settings."""
        return self._store.read.queues()

    def late_leases(self) -> int:
        """How many leases have run out and are yet to be ended by a sweep."""
        return self._store.read.late_leases()

    def workers(self) -> list[WorkerState]:
        """Workers that asked for jobs lately."""
        return self._store.read.workers()

    def explain(self, job_id: str) -> Explanation:
        """Why a job is not running; raises JobNotFound."""
        job = self.get(job_id)
        read = self._store.read
        now = read.clock()
        due = job.status is Status.PENDING and job.run_at <= now
        facts = Facts(
            now=now,
            paused=any(q.name == job.queue and q.paused_at is not None for q in read.queues()),
            workers=read.workers(),
            ahead=read.ahead(job) if due else 0,
            rate=rate(read.activity(RATE_MINUTES), job.queue, now) if due else 0.0,
        )
        return explain(job, facts)

    def recount(self) -> int:
        """Make `stats` agree with the jobs where `verify` found otherwise; how many differed.

        Nobody needs this who leaves the tables to Tenure. It reads every job; on SQLite writers
        wait for that.
        """
        return self._store.recount().result()

    def verify(self, limit: int = 100) -> list[Violation]:
        """Check the stored data against every invariant; an empty list is good.

        At most `limit` violations of each invariant are listed. Writers are not held up.
        """
        found = self._store.read.violations(limit)
        return [Violation(*finding, INVARIANTS[finding[0]]) for finding in found]

    @property
    def tokens(self) -> Tokens:
        """The tokens that callers of the HTTP API send."""
        return Tokens(lambda: self._store, self.actor)

    @property
    def webhooks(self) -> Webhooks:
        """Who is told of moves by signed requests."""
        return Webhooks(lambda: self._store, self.actor)

    def ping(self) -> datetime:
        """The store's clock; raises if the store does not answer."""
        return self._store.read.clock()

    def checks(self) -> list[Check]:
        """Whether the database is set up as the promises need it; makes and changes nothing."""
        return check_store(self.database)

    def is_current(self) -> bool:
        """Whether the database is there with this version's schema; makes and changes nothing."""
        found, needed = schema_of(self.database)
        return found == needed

    def migrate(self) -> tuple[int, int]:
        """Create or upgrade the database's schema now; its version before (0: none) and after."""
        return schema_version(self.database), migrate_store(self.database)

    # --- running jobs

    def run_worker(
        self,
        queues: Sequence[str] | None = None,
        *,
        concurrency: int = 16,
        lease: Duration = 30,
        grace: Duration = 30,
        keep: Mapping[str, Duration] | None = None,
        webhooks_private: bool = False,
    ) -> None:
        """Run this application's handlers, `concurrency` at once, until SIGTERM or SIGINT.

        A job whose worker dies is taken over after `lease`; running jobs have `grace` to finish
        when the worker is asked to stop. Also ends leases of dead workers, as the server does, and
        deletes jobs settled longer ago than `keep` says by status, as in `{"completed": "7d"}`, and
        delivers to webhooks, with `webhooks_private` also to addresses that are not public.
        """
        from tenure.run import run_worker

        run_worker(
            self,
            self.handlers,
            queues=queues,
            concurrency=concurrency,
            lease_seconds=positive(lease, "$.lease"),
            grace_seconds=durations.seconds(grace, path="$.grace"),
            keep=keep,
            webhooks_private=webhooks_private,
        )


class _Register:
    """The decorator that `app.job(...)` returns."""

    def __init__(
        self,
        app: Tenure,
        *,
        name: str | None = None,
        process: bool = False,
        **options: Any,
    ) -> None:
        self._app = app
        self._name = name
        self._process = process
        if unknown := options.keys() - {field.name for field in fields(Defaults)}:
            raise TypeError(f"@app.job has no option {', '.join(sorted(unknown))}")
        self._defaults = defaults_of(options, Defaults())

    @overload
    def __call__(self, function: Callable[Concatenate[JobContext, P], R]) -> JobType[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> JobType[P, R]: ...
    def __call__(self, function: Callable[..., Any]) -> Any:
        name = payload.check_name(self._name or function.__name__, "job type", "$.name")
        handler = handlers.describe(function, name, self._defaults, in_process=self._process)
        self._app.handlers.add(handler)
        return JobType[Any, Any](self._app, handler)


def _log_added(added: Future[list[Added]]) -> None:
    if not added.cancelled() and added.exception() is None:
        for one in added.result():
            if one.created:
                log.debug("job_enqueued", extra=logs.fields_of(one.job))


def _query(filter: Filter, limit: int = 50, before: str | None = None) -> Query:
    """What the store is asked for; raises InvalidInput."""
    if before is not None:
        ids.check_id(before, "$.before")
    count = whole(limit, 1, MOST_LISTED, "$.limit")
    return query_of(filters.checked(filter), limit=count, before=before)
