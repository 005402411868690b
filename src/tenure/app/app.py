"""`Tenure`: the object that users hold.

It checks its input and passes it to the store. The store decides what may happen to a job.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack, overload

from tenure.app.bulk import BulkActions
from tenure.app.core import Core
from tenure.app.queues import Queues, Types, Workers
from tenure.app.register import Register
from tenure.app.stats import Events, Statistics
from tenure.app.tokens import Tokens
from tenure.app.webhooks import Webhooks
from tenure.events import Cancelled, Event, Retried
from tenure.jobs import durations
from tenure.jobs.context import JobContext
from tenure.jobs.enqueue import MAX_RETRIES, Backoff, Duration, NewJob, Options, positive, whole
from tenure.jobs.explain import Explanation, explain
from tenure.jobs.findings import Check, Progress, Violation, no_progress
from tenure.jobs.handlers import Errors, JobType, OnInterrupt
from tenure.jobs.ledger import Transition
from tenure.jobs.names import check_label, check_queues, list_of_names
from tenure.jobs.queries import Counted, Fields, Filter, checked_query
from tenure.jobs.redaction import Redaction
from tenure.lifecycle import DEFAULT_MAX_RETRIES, Job
from tenure.retry import DEFAULT_POLICY
from tenure.settings import check_migrate, default_of
from tenure.store import check_store, migrate_store, schema_of, search
from tenure.store.audit import INVARIANTS
from tenure.telemetry import logs
from tenure.telemetry.tracing import Tracing

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class Tenure:
    """A job queue over one database: `Tenure("sqlite:///jobs.db")` or `Tenure("postgresql://…")`.

    The database is opened, and made if there is none, at the first use; `with Tenure(…)` opens it
    at once and closes it at the end. Safe to use from any thread and any event loop. Not fork-safe:
    a connection opened before `fork()` raises StoreUnavailable in the child. Open it in the child.

    Everyday verbs are methods. The rest is by noun: `queues`, `types`, `workers`, `stats` (counts,
    activity, failures), `bulk` (retry or cancel all that match), `events` (the ledger as a stream),
    `tokens` (of the HTTP API) and `webhooks`. `core` is internal.
    """

    def __init__(
        self,
        database: str | None = None,
        *,
        migrate: str | None = None,
        actor: str = "application",
        redact: Sequence[str] = (),
        tracing: bool = False,
    ) -> None:
        """Name a database; nothing is opened yet.

        - `database`: `sqlite:///jobs.db`, `sqlite:////absolute/jobs.db` or `postgresql://…`.
          Default: the value of `TENURE_DATABASE`, which all commands read, too. Without that
          variable, `sqlite:///tenure.db` in the current folder.
        - `migrate`: `new` makes the schema of a new database and refuses an older one, which
          `tenure migrate` upgrades; `auto` upgrades an older one when it is opened. Default: the
          value of `TENURE_MIGRATE`, without that variable `new`.
        - `actor`: the name of this application in the ledger, for calls that name no other; 1 to
          255 printable characters. Default: `application`.
        - `redact`: keys of payloads and results whose values are hidden in logs, errors, the API
          and the dashboard. Default: none.
        - `tracing`: make OpenTelemetry spans; needs `pip install 'tenure[otel]'`. Default: False.

        Raises InvalidInput.
        """
        self.core = Core(
            default_of("database", os.environ) if database is None else database,
            check_migrate(migrate or default_of("migrate", os.environ), "$.migrate"),
            check_label(actor, "actor", "$.actor"),
            Redaction(list_of_names(redact, "$.redact")),
            Tracing() if tracing else None,
        )
        self.queues = Queues(self.core)
        self.types = Types(self.core)
        self.workers = Workers(self.core)
        self.stats = Statistics(self.core)
        self.bulk = BulkActions(self.core)
        self.events = Events(self.core)
        self.tokens = Tokens(self.core)
        self.webhooks = Webhooks(self.core)

    @property
    def database(self) -> str:
        """The URL of the database. Set it before the first use, or close first."""
        return self.core.database

    @database.setter
    def database(self, url: str) -> None:
        self.core.database = url

    @property
    def actor(self) -> str:
        """The name of this application in the ledger."""
        return self.core.actor

    def open(self, *, make: bool = True) -> Self:
        """Open the database now instead of at the first use.

        - `make`: create the database and its schema if they do not exist. With `make=False`,
          raises StoreUnavailable if the database does not exist or has no Tenure schema.

        Raises StoreUnavailable, or SchemaMismatch if the schema is older and `migrate` is not
        `auto`, or newer by more than one version.
        """
        self.core.open(make=make)
        return self

    def close(self) -> None:
        """Commit what is waiting and close the database. The next use opens it again."""
        self.core.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

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
        on_interrupt: OnInterrupt = "again",
        permanent: Errors = (),
        retry_on: Errors | None = None,
    ) -> Register: ...
    def job(self, *function: Any, **options: Any) -> Any:
        """Register a function as the handler of a job type.

        Use it plain, or with options, of which an enqueue may override `queue` to `backoff`.

        - `name`: the job type, 1 to 128 of `A-Z a-z 0-9 _ : - .`. Default: the function's name.
        - `queue`: the queue of its jobs. Default: `default`.
        - `priority`: -100 to 100; smaller runs first. Default: 0.
        - `max_retries`: attempts of a job in all, 0 to 1,000; 0 and 1 both mean one. Default: 10.
        - `timeout`: limit of one attempt, as seconds, timedelta or text such as `30s`; above 0, up
          to 10 years. An attempt that exceeds it fails. Default: None, no limit.
        - `backoff`: the wait after a failure: a `RetryPolicy`, its `base` alone as a duration, or
          an object of `base`, `factor` and `cap`. Default: `RetryPolicy()`.
        - `process`: run each attempt in a child process, so that a crash fails only that job. The
          function must be a plain `def` of a module, without a JobContext.
        - `on_interrupt`: if the handler still runs after the grace period of a stopping worker:
          `again` (default) runs it again elsewhere uncharged, `fail` fails the attempt.
        - `permanent`: tuple of exceptions that fail a job for good. Default: `()`. `retry_on`: the
          only ones that do not, beside timeouts and lost workers. Default: None, all others.

        An `async def` runs on the worker's event loop, a `def` in a thread. A first parameter
        annotated `JobContext` receives the context of the attempt. The other parameters are the
        payload, by name, converted as their annotations say.

        Returns a `JobType`, which is still callable as the function. Raises InvalidInput if no
        payload could fit the function or the name is taken, TypeError for an unknown option.
        """
        register = Register(self, self.core.handlers, **options)
        return register(*function) if function else register

    def enqueue(
        self, type: str, payload: Mapping[str, Any] | None = None, **options: Unpack[Options]
    ) -> Job:
        """Add a job by type name. When this returns, the job is on disk.

        - `type`: the job type; a handler need not exist yet.
        - `payload`: the handler's arguments by name: values of JSON types, at most 1 MiB as JSON
          and 100 levels deep. Default: `{}`.

        Options, all by keyword:

        - `queue`: the queue, 1 to 128 of `A-Z a-z 0-9 _ : - .`. Default: `default`.
        - `priority`: -100 to 100; smaller runs first. Default: 0.
        - `max_retries`: its attempts in all, 0 to 1,000; 0 and 1 both mean one. Default: 10.
        - `timeout`: limit of one attempt, a duration above 0, or None for no limit. Default: None.
        - `backoff`: the wait after a failure: a `RetryPolicy`, its `base` alone as a duration, or
          an object of `base`, `factor` and `cap`. Default: `RetryPolicy()`.
        - `delay`: run it no earlier than this duration from now. Default: at once.
        - `run_at`: run it no earlier than this time; an aware datetime in the years 1000 to 8999.
          Not together with `delay`.
        - `idempotency_key`: 1 to 255 visible ASCII characters. A second enqueue with the same key,
          type, payload and options returns the first job, with others it raises KeyConflict. Only
          options given in the call count, not the defaults of `@app.job(...)`.
        - `actor`: who adds it, for the ledger. Default: the application's actor.

        A duration is a number of seconds, a timedelta, or text such as `30s`, `1h30m` or `PT5M`, up
        to 10 years. Defaults are those of `@app.job(...)`. If this application does not have the
        handler, they are those that a worker or a server with it has stored in the database, at
        most five seconds old. For a type that is not known there, they are the ones given here.

        Returns the job. Raises InvalidInput (PayloadTooLarge), KeyConflict, QueueFull, or
        StoreUnavailable. After StoreUnavailable the job may exist: enqueue again, with an
        `idempotency_key` if it must not exist twice.
        """
        return self.enqueue_many([NewJob(type, {} if payload is None else payload, options)])[0]

    async def enqueue_async(
        self, type: str, payload: Mapping[str, Any] | None = None, **options: Unpack[Options]
    ) -> Job:
        """Add a job like `enqueue`, without blocking the event loop."""
        new_job = NewJob(type, {} if payload is None else payload, options)
        return (await self.enqueue_many_async([new_job]))[0]

    def enqueue_many(self, new_jobs: Sequence[NewJob]) -> list[Job]:
        """Add many jobs in one transaction, all or none.

        - `new_jobs`: at most 10,000. Make them with `JobType.new_job(...)` or as
          `NewJob(type, payload, options)`.

        Returns the jobs in the same order. Raises what `enqueue` raises; the path of an
        InvalidInput begins with the number of the job, as in `$[3].queue`.
        """
        return [added.job for added in self.core.add(new_jobs, waits=True).result()]

    async def enqueue_many_async(self, new_jobs: Sequence[NewJob]) -> list[Job]:
        """Add many jobs like `enqueue_many`, without blocking the event loop."""
        await self.core.defaults.look_up(new_job.type for new_job in new_jobs)
        return [added.job for added in await asyncio.wrap_future(self.core.add(new_jobs))]

    # --- jobs

    def get(self, job_id: str) -> Job:
        """Return the job with this id, in its current state. Raises JobNotFound."""
        return self.core.get(job_id)

    def find(
        self, *, limit: int = 50, before: str | None = None, **filter: Unpack[Fields]
    ) -> list[Job]:
        """Return jobs that match every filter given, newest first.

        - `limit`: at most this many jobs, 1 to 500. Default: 50.
        - `before`: only jobs older than the one with this id, for the next page. Default: None.

        Filters, all by keyword:

        - `status`: `waiting`, `pending`, `processing`, `completed`, `failed` or `cancelled`.
        - `type`, `queue`: the whole name.
        - `created_after`, `created_before`: aware datetimes, by the store's clock. A job created at
          exactly `created_after` matches, one created at exactly `created_before` does not.
        - `error`: text in the last error, 1 to 200 characters; ASCII case does not matter.
        - `text`: text in the JSON of the payload, likewise.
        - `hidden`: keys whose values `error` and `text` must not find. Default: none.

        Looks at as many rows as it takes to find `limit` jobs. Raises InvalidInput.
        """
        wanted = self.core.limited(Filter(**filter))
        return search.all_of(self.core.limited_store.read, checked_query(wanted, limit, before))

    def count(self, *, at_most: int = 10_000, **filter: Unpack[Fields]) -> Counted:
        """Count the jobs that match every filter given, within bounds.

        - `at_most`: stop counting there, 1 to 1,000,000. Default: 10,000.

        Filters are those of `find`. Returns a `Counted`: `jobs`, and `exact`, which is False if
        there may be more, because `at_most` or the bound of rows looked at was reached. Raises
        InvalidInput.
        """
        return self.core.count(Filter(**filter), at_most=at_most)

    def history(self, job_id: str) -> list[Transition]:
        """Return every transition of a job, oldest first. Raises JobNotFound."""
        self.get(job_id)
        return self.core.limited_store.read.history(job_id)

    def explain(self, job_id: str) -> Explanation:
        """Say why a job is not running, or what happened to it.

        Returns an `Explanation`, with a sentence for people. Raises JobNotFound.
        """
        job = self.get(job_id)
        return explain(job, self.core.facts(job))

    def cancel(self, job_id: str, *, actor: str | None = None) -> Job:
        """Cancel a pending or processing job; return it.

        A handler that is running is asked to stop (`JobContext.stopped`), and its result is not
        recorded.

        - `actor`: who cancels it, for the ledger. Default: the application's actor.

        Raises JobNotFound, or IllegalTransition if the job is settled.
        """
        return self._apply(job_id, Cancelled(actor=actor or self.actor))

    def retry(self, job_id: str, *, more_retries: int = 1, actor: str | None = None) -> Job:
        """Run a failed job again; return it, pending.

        - `more_retries`: how many attempts to add to its `max_retries`, 1 to 1,000. Default: 1.
        - `actor`: who retries it, for the ledger. Default: the application's actor.

        Raises JobNotFound, IllegalTransition if the job is not failed, or InvalidInput.
        """
        more = whole(more_retries, 1, MAX_RETRIES, "$.more_retries")
        return self._apply(job_id, Retried(more_retries=more, actor=actor or self.actor))

    def _apply(self, job_id: str, event: Event) -> Job:
        if self.core.queues is not None:
            self.get(job_id)  # a job of another queue is not found
        job = self.core.limited_store.apply(job_id, event).result()
        logs.log_steps(log, [job])
        return job

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
        """Run this application's handlers until SIGTERM or SIGINT; return when all have ended.

        Call it on the main thread: Python handles signals there only. A second signal ends the
        process at once, and other workers take over its jobs when their leases expire.

        - `queues`: take jobs of these queues only. Default: None, of every queue.
        - `concurrency`: how many handlers run at once. Default: 16.
        - `lease`: a duration. If this worker dies, others take over its jobs after that time; it
          renews its leases while it lives. Default: 30 seconds.
        - `grace`: a duration. Handlers that run at the first signal have that long to finish; jobs
          that have not started go back to the queue. Default: 30 seconds.
        - `keep`: delete jobs that were settled longer ago than this, by status, as in
          `{"completed": "7d", "failed": "90d"}`. Default: None, delete nothing.
        - `webhooks_private`: deliver to webhooks at addresses that are not public, too. Default:
          False.

        Also ends the leases of dead workers, adds up statistics, continues bulk actions and
        delivers to webhooks, as a server does. It starts, and waits, also while the database does
        not answer. Raises InvalidInput, and SchemaMismatch as `open` does.
        """
        from tenure.settings import Settings
        from tenure.worker.process import run_worker

        ages = durations.retention(keep or {})
        settings = Settings(
            queues=check_queues(queues, "queues"),
            concurrency=concurrency,
            lease_seconds=positive(lease, "$.lease"),
            grace_seconds=durations.seconds(grace, path="$.grace"),
            keep_completed=ages.get("completed"),
            keep_cancelled=ages.get("cancelled"),
            keep_failed=ages.get("failed"),
            webhooks_private=webhooks_private,
        )
        run_worker(self, settings)

    # --- the database

    def migrate(self, *, progress: Progress | None = None) -> tuple[int, int]:
        """Create or upgrade the schema of the database now.

        - `progress`: called before each step as `progress(done, total, what)`.

        Returns the version of the schema before (0: none) and after. Raises StoreUnavailable or
        SchemaMismatch.
        """
        before, _ = schema_of(self.database)
        return before, migrate_store(self.database, progress or no_progress)

    def check(self) -> list[Check]:
        """Return what `tenure doctor` finds about the database. Changes nothing."""
        return check_store(self.database)

    def verify(self, limit: int = 100, *, progress: Progress | None = None) -> list[Violation]:
        """Check the stored data against every invariant; return what violates one.

        - `limit`: at most this many violations of each invariant. Default: 100.
        - `progress`: called before each check as `progress(done, total, what)`.

        Reads every job. Writers are not held up. An empty list is good.
        """
        found = self.core.store.read.violations(limit, progress or no_progress)
        return [Violation(*finding, INVARIANTS[finding[0]]) for finding in found]
