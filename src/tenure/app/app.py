"""Tenure: the one door. Whatever enqueues, runs, shows or changes jobs goes through here.

Here it registers handlers, takes in jobs and serves workers; what it reads is in reading.py, what
operators change in acting.py. It checks what it is given and passes it to the store. It decides
nothing about a job's state: the store does, by the lifecycle.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import fields
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar, Unpack, overload

from msgspec.structs import replace

from tenure.app.operations import Operations
from tenure.errors import InvalidInput
from tenure.jobs import durations, handlers
from tenure.jobs import payload as payloads
from tenure.jobs.checked_job import CheckedJob, Enqueued
from tenure.jobs.decorator import JobType
from tenure.jobs.enqueue import (
    Backoff,
    Duration,
    NewJob,
    Options,
    check_jobs,
    defaults_of,
    positive,
)
from tenure.jobs.handlers import Defaults, Handlers, JobContext
from tenure.jobs.redaction import Redaction
from tenure.jobs.work import ClaimRequest, Exchange, Report
from tenure.lifecycle import DEFAULT_MAX_RETRIES, Job
from tenure.retry import DEFAULT_POLICY
from tenure.telemetry import logs
from tenure.telemetry.tracing import Tracing

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_DATABASE = "sqlite:///tenure.db"
MAX_JOBS_AT_ONCE = 10_000


class Tenure(Operations):
    """A job queue over one database: `Tenure("sqlite:///jobs.db")` or `Tenure("postgresql://…")`.

    The database is opened, and its schema created or upgraded, at the first use. Safe to use from
    any thread and any event loop. Open it after a fork, not before: a copy refuses everything.
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
        super().__init__(database, actor)
        self.handlers = Handlers()
        self.redaction = Redaction(payloads.several(redact, "$.redact"))
        self.tracing = Tracing() if tracing else None

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

    # --- adding jobs

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
        return [added.job for added in self.add(new_jobs).result()]

    async def enqueue_many_async(self, new_jobs: Sequence[NewJob]) -> list[Job]:
        """`enqueue_many` for async callers."""
        return [added.job for added in await asyncio.wrap_future(self.add(new_jobs))]

    def add(
        self, new_jobs: Sequence[NewJob], *, batch: bool = False, traceparent: str | None = None
    ) -> Future[list[Enqueued]]:
        """Check drafts and hand them to the store; the future also tells which are new.

        In a batch, errors say which job they mean even if it is the only one. `traceparent` names
        the span of whoever asked. Attempts are linked to it, or, where this application traces, to
        the span of this call, which is its child then.
        """
        if len(new_jobs) > MAX_JOBS_AT_ONCE:
            raise InvalidInput(f"{len(new_jobs)} jobs at once; send at most {MAX_JOBS_AT_ONCE}")
        checked_jobs: Sequence[CheckedJob] = check_jobs(
            new_jobs,
            defaults=self.handlers.defaults,
            actor=self.actor,
            several=batch or len(new_jobs) > 1,
        )
        span: Any = None
        if self.tracing is not None and checked_jobs:
            types = [checked_job.type for checked_job in checked_jobs]
            span, traceparent = self.tracing.adding(types, checked_jobs[0].queue, traceparent)
        if traceparent is not None:
            checked_jobs = [
                replace(checked_job, traceparent=traceparent) for checked_job in checked_jobs
            ]
        try:
            added = self._store.add(checked_jobs)
        except BaseException as error:
            if span is not None and self.tracing is not None:
                self.tracing.added(span, [], error)
            raise
        if span is not None:
            added.add_done_callback(partial(self._trace_added, span))
        if log.isEnabledFor(logging.DEBUG):
            added.add_done_callback(_log_added)
        return added

    def _trace_added(self, span: Any, added: Future[list[Enqueued]]) -> None:
        if self.tracing is not None:
            error = None if added.cancelled() else added.exception()
            jobs = [] if error or added.cancelled() else added.result()
            self.tracing.added(span, [one.job.id for one in jobs], error)

    # --- what workers call

    def claim(self, request: ClaimRequest) -> Exchange:
        """Lease jobs for a worker."""
        return self.exchange((), request).result()

    def report(self, reports: Sequence[Report]) -> Exchange:
        """Record what became of leases; a verdict for each."""
        return self.exchange(reports, None).result()

    def exchange(self, reports: Sequence[Report], claim: ClaimRequest | None) -> Future[Exchange]:
        """Report and claim in one transaction."""
        return self._store.exchange(reports, claim)

    def heartbeat(self, leases: Sequence[tuple[str, str]], lease_seconds: float) -> set[str]:
        """Extend (job id, lease id) leases; the lease ids that are still held."""
        return self._store.renew(leases, lease_seconds)

    waits = False
    """Claims answer at once; waiting for work is what `on_work` is for."""

    @property
    def exchanges(self) -> int:
        """How many turns of a worker keep the store busy."""
        return self._store.exchanges

    def on_work(self, notify: Callable[[], None]) -> Callable[[], None]:
        """Have `ring` called when there may be work; returns the function that ends it."""
        return self._store.on_work(notify)

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
        name = payloads.check_name(self._name or function.__name__, "job type", "$.name")
        handler = handlers.describe(function, name, self._defaults, in_process=self._process)
        self._app.handlers.add(handler)
        return JobType[Any, Any](self._app, handler)


def _log_added(added: Future[list[Enqueued]]) -> None:
    if not added.cancelled() and added.exception() is None:
        for one in added.result():
            if one.created:
                log.debug("job_enqueued", extra=logs.fields_of(one.job))
