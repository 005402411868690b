"""`Tenure`: the object that users hold.

It checks its input and passes it to the store. The store decides what may happen to a job.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack, overload

from tenure import lifecycle
from tenure.app.bulk import BulkActions
from tenure.app.core import Core, checked_query
from tenure.app.events import Events
from tenure.app.maintenance import Maintenance
from tenure.app.queues import Queues, Workers
from tenure.app.stats import Stats
from tenure.app.work import StoreSource
from tenure.jobs import durations, handlers
from tenure.jobs import payload as payloads
from tenure.jobs.decorator import JobType
from tenure.jobs.enqueue import (
    MAX_RETRIES,
    Backoff,
    Duration,
    NewJob,
    Options,
    defaults_of,
    positive,
    whole,
)
from tenure.jobs.explain import RATE_MINUTES, Explanation, Facts, explain, rate
from tenure.jobs.filters import Fields
from tenure.jobs.findings import Check, Violation
from tenure.jobs.handlers import Defaults, JobContext
from tenure.jobs.ledger import Transition
from tenure.jobs.progress import Progress, no_progress
from tenure.jobs.queries import Counted, Filter
from tenure.jobs.redaction import Redaction
from tenure.lifecycle import DEFAULT_MAX_RETRIES, Job, Status
from tenure.retry import DEFAULT_POLICY
from tenure.store import migrate_store, search
from tenure.store.audit import INVARIANTS
from tenure.store.doctor import check_store, schema_version
from tenure.telemetry import logs
from tenure.telemetry.tracing import Tracing
from tenure.tokens.registry import Tokens
from tenure.webhooks.registry import Webhooks

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_DATABASE = "sqlite:///tenure.db"


class Tenure:
    """A job queue over one database: `Tenure("sqlite:///jobs.db")` or `Tenure("postgresql://…")`.

    The database is opened, and its schema created or upgraded, at the first use. Safe to use from
    any thread and any event loop. Not fork-safe: a connection opened before `fork()` raises
    StoreUnavailable in the child. Open it in the child.
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
        self.core = Core(
            database,
            payloads.check_label(actor, "actor", "$.actor"),
            Redaction(payloads.several(redact, "$.redact")),
            Tracing() if tracing else None,
        )
        self._work_source = StoreSource(self.core)

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

    # --- opening

    def open(self, *, make: bool = True) -> Self:
        """Open the database now instead of at the first use.

        - `make`: create the database and its schema if they do not exist. With `make=False`,
          raises StoreUnavailable if the database does not exist or has no Tenure schema.

        Raises StoreUnavailable or SchemaMismatch.
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

        `name` is the job type (default: the function's name); `process=True` runs it in a child
        process, where a crash fails that job alone. `queue`, `priority`, `max_retries`, `timeout`
        (of one attempt) and `backoff` are for its jobs, unless an enqueue says otherwise.
        """
        register = _Register(self, **options)
        return register(*function) if function else register

    # --- enqueue

    def enqueue(
        self, type: str, payload: Mapping[str, Any] | None = None, **options: Unpack[Options]
    ) -> Job:
        """Add a job by type name; when this returns the job is on disk.

        Raises InvalidInput, KeyConflict, QueueFull, or StoreUnavailable when the outcome may be
        unknown: enqueue again then, with an `idempotency_key` if one job must not become two.
        """
        return self.enqueue_many([NewJob(type, {} if payload is None else payload, options)])[0]

    async def enqueue_async(
        self, type: str, payload: Mapping[str, Any] | None = None, **options: Unpack[Options]
    ) -> Job:
        """`enqueue` for async callers."""
        new_job = NewJob(type, {} if payload is None else payload, options)
        return (await self.enqueue_many_async([new_job]))[0]

    def enqueue_many(self, new_jobs: Sequence[NewJob]) -> list[Job]:
        """Add many jobs in one transaction, all or none."""
        return [added.job for added in self.core.add(new_jobs).result()]

    async def enqueue_many_async(self, new_jobs: Sequence[NewJob]) -> list[Job]:
        """`enqueue_many` for async callers."""
        return [added.job for added in await asyncio.wrap_future(self.core.add(new_jobs))]

    # --- jobs

    def get(self, job_id: str) -> Job:
        """The job as it stands; raises JobNotFound."""
        return self.core.get(job_id)

    def find(
        self, *, limit: int = 50, before: str | None = None, **filter: Unpack[Fields]
    ) -> list[Job]:
        """Jobs of a `Filter`, newest first; `before` is the id of the last one of the page before.

        Looks as far as it takes to find `limit` (at most 500) of them.
        """
        return search.all_of(self.core.store.read, checked_query(Filter(**filter), limit, before))

    def count(self, *, at_most: int = 10_000, **filter: Unpack[Fields]) -> Counted:
        """How many jobs match, up to `at_most`, as far as a bounded number of rows can tell."""
        return self.core.count(Filter(**filter), at_most=at_most)

    def history(self, job_id: str) -> list[Transition]:
        """Every transition of a job, oldest first; raises JobNotFound."""
        self.get(job_id)
        return self.core.store.read.history(job_id)

    def explain(self, job_id: str) -> Explanation:
        """Why a job is not running; raises JobNotFound."""
        job = self.get(job_id)
        read = self.core.store.read
        now = read.clock()
        due = job.status is Status.PENDING and job.run_at <= now
        facts = Facts(
            now=now,
            paused=any(q.name == job.queue and q.paused_at is not None for q in read.queues()),
            workers=read.workers(),
            ahead=read.ahead(job) if due else 0,
            rate=rate(read.measured.activity(RATE_MINUTES), job.queue, now) if due else 0.0,
        )
        return explain(job, facts)

    def cancel(self, job_id: str, *, actor: str | None = None) -> Job:
        """Cancel a pending or processing job. Raises JobNotFound or IllegalTransition."""
        event = lifecycle.Cancelled(actor=actor or self.actor)
        return self._apply(job_id, event)

    def retry(self, job_id: str, *, more_retries: int = 1, actor: str | None = None) -> Job:
        """Run a job that failed for good again, with `more_retries` added to its limit."""
        more = whole(more_retries, 1, MAX_RETRIES, "$.more_retries")
        event = lifecycle.Retried(more_retries=more, actor=actor or self.actor)
        return self._apply(job_id, event)

    def _apply(self, job_id: str, event: lifecycle.Event) -> Job:
        job = self.core.store.apply(job_id, event).result()
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
        """Run this application's handlers, `concurrency` at once, until SIGTERM or SIGINT.

        A job whose worker dies is taken over after `lease`; running jobs have `grace` to finish
        when the worker is asked to stop. Also ends leases of dead workers, as the server does, and
        deletes jobs settled longer ago than `keep` says by status, as in `{"completed": "7d"}`, and
        delivers to webhooks, with `webhooks_private` also to addresses that are not public.
        """
        from tenure.worker.process import run_worker

        run_worker(
            self,
            self.core.handlers,
            queues=queues,
            concurrency=concurrency,
            lease_seconds=positive(lease, "$.lease"),
            grace_seconds=durations.seconds(grace, path="$.grace"),
            keep=keep,
            webhooks_private=webhooks_private,
        )

    # --- the database

    def migrate(self, *, progress: Progress | None = None) -> tuple[int, int]:
        """Create or upgrade the database's schema now; its version before (0: none) and after.

        `progress` is called before each step: `progress(done, total, what)`.
        """
        return schema_version(self.database), migrate_store(self.database, progress or no_progress)

    def check(self) -> list[Check]:
        """Whether the database is set up as the promises need it; makes and changes nothing."""
        return check_store(self.database)

    def verify(self, limit: int = 100, *, progress: Progress | None = None) -> list[Violation]:
        """Check the stored data against every invariant; an empty list is good.

        At most `limit` violations of each invariant are listed. Writers are not held up.
        `progress` is called before each check: `progress(done, total, what)`.
        """
        found = self.core.store.read.violations(limit, progress or no_progress)
        return [Violation(*finding, INVARIANTS[finding[0]]) for finding in found]

    # --- everything else, by noun

    @cached_property
    def queues(self) -> Queues:
        """The queues: list, pause, resume, limit."""
        return Queues(self.core)

    @cached_property
    def workers(self) -> Workers:
        """The workers: list."""
        return Workers(self.core)

    @cached_property
    def stats(self) -> Stats:
        """Counts of jobs, transitions and failures."""
        return Stats(self.core)

    @cached_property
    def bulk(self) -> BulkActions:
        """Actions on all jobs that match a filter."""
        return BulkActions(self.core)

    @cached_property
    def events(self) -> Events:
        """The ledger of all jobs, as a stream."""
        return Events(self.core)

    @cached_property
    def tokens(self) -> Tokens:
        """The tokens that callers of the HTTP API send."""
        return Tokens(lambda: self.core.store, self.actor)

    @cached_property
    def webhooks(self) -> Webhooks:
        """The receivers that are notified of transitions by signed requests."""
        return Webhooks(lambda: self.core.store, self.actor)

    # --- internal

    @staticmethod
    def combined(apps: Sequence[Tenure], database: str | None = None) -> Tenure:
        """The first of `apps`, which from now on also runs the handlers of the others. Internal.

        With a `database`, all of them use that one: what their handlers enqueue goes there too.
        """
        first, *others = apps
        if database is not None:
            for app in apps:
                app.close()
                app.database = database
        for other in others:
            first.core.take_over(other.core)
        return first

    def work_source(self) -> StoreSource:
        """What workers claim from and report to. Internal."""
        return self._work_source

    def maintenance(self) -> Maintenance:
        """What servers and workers beside the database do to it. Internal."""
        return Maintenance(self.core)


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
        name = payloads.check_name(self._name or function.__name__, "job type", "$.name")
        handler = handlers.describe(function, name, self._defaults, in_process=self._process)
        self._app.core.handlers.add(handler)
        return JobType[Any, Any](self._app, handler)
