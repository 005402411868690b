"""`Tenure`: the object that users hold.

It checks its input and passes it to the store. The store decides what may happen to a job.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack, overload

from tenure.app import jobs, running, upkeep, waiting, workflows
from tenure.app import types as app_types
from tenure.app.bulk import BulkActions
from tenure.app.core import Core, Noun
from tenure.app.queues import Queues, Types, Workers
from tenure.app.retention import Retention
from tenure.app.schedules import Schedules, schedule
from tenure.app.signals import Signals, signal
from tenure.app.stats import Events, Statistics
from tenure.app.tokens import Tokens
from tenure.app.twins import twin
from tenure.app.types import JobOptions, JobType, Register
from tenure.app.webhooks import Webhooks
from tenure.app.workflows import Workflows
from tenure.handlers.context import JobContext
from tenure.rules.tokens import Patterns
from tenure.settings import check_migrate, database_url, default_of
from tenure.telemetry.tracing import Tracing
from tenure.values.names import check_label, list_of_names
from tenure.values.redaction import Redaction

P = ParamSpec("P")
R = TypeVar("R")


class Tenure:
    """A job queue over one database: `Tenure("sqlite:///jobs.db")` or `Tenure("postgresql://…")`.

    The database is opened, and made if there is none, at the first use; `with Tenure(…)` opens it
    at once and closes it at the end. Safe to use from any thread and any event loop. In the
    child of a `fork()` PostgreSQL is opened again at the next use. An SQLite file that was open
    before the fork raises StoreUnavailable in the child: close it before.

    Everyday verbs are methods. The rest is by noun: `queues`, `types`, `workers`, `schedules`,
    `workflows`, `signals`, `stats` (counts, activity, failures), `bulk` (retry or cancel all that
    match), `events` (the ledger as a stream), `tokens` (of the HTTP API), `webhooks` and
    `retention`. `core` is internal.
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

        - `database`: `sqlite:///jobs.db`, `sqlite:////absolute/jobs.db` or `postgresql://…`; URLs
          of SQLAlchemy, such as `postgresql+asyncpg://…`, mean the same. Default: the value of
          `TENURE_DATABASE`, which all commands read, too. Without that variable,
          `sqlite:///tenure.db` in the current folder.
        - `migrate`: `new` makes the schema of a new database and refuses an older one, which
          `tenure migrate` upgrades; `auto` upgrades an older one when it is opened; `never` makes
          none. Default: the value of `TENURE_MIGRATE`, without that variable `new`.
        - `actor`: the name of this application in the ledger, for calls that name no other; 1 to
          255 printable characters. Default: `application`.
        - `redact`: keys of payloads and results whose values are hidden in logs, errors, the API
          and the dashboard. Default: none.
        - `tracing`: make OpenTelemetry spans; needs `pip install 'tenure[otel]'`. Default: False.

        Raises InvalidInput.
        """
        self.core = Core(
            default_of("database", os.environ) if database is None else database_url(database),
            check_migrate(migrate or default_of("migrate", os.environ), "$.migrate"),
            check_label(actor, "actor", "$.actor"),
            Redaction(list_of_names(redact, "$.redact")),
            Tracing() if tracing else None,
        )
        self.queues = Queues(self.core)
        self.types = Types(self.core)
        self.workers = Workers(self.core)
        self.retention = Retention(self.core)
        self.stats = Statistics(self.core)
        self.schedules = Schedules(self.core)
        self.signals = Signals(self.core)
        self.workflows = Workflows(self)
        self.bulk = BulkActions(self.core)
        self.events = Events(self.core)
        self.tokens = Tokens(self.core)
        self.webhooks = Webhooks(self.core)

    @property
    def database(self) -> str:
        """The URL of the database. Assign it before the first use, or after `close`.

        Raises InvalidInput while another database is open.
        """
        return self.core.database

    @database.setter
    def database(self, url: str) -> None:
        self.core.database = database_url(url)

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

    open_async = twin(open)
    close_async = twin(close)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload
    def job(self, function: Callable[Concatenate[JobContext, P], R], /) -> JobType[P, R]: ...
    @overload
    def job(self, function: Callable[P, R], /) -> JobType[P, R]: ...
    @overload
    def job(self, **options: Unpack[JobOptions]) -> Register: ...
    def job(self, *function: Any, **options: Any) -> Any:
        """Register a function as the handler of a job type.

        Use it plain, or with options:

        - `name`: the job type, 1 to 128 of `A-Z a-z 0-9 _ : - .`. Default: the function's name.
        - `queue`, `priority`, `max_retries`, `timeout`, `backoff`: of its jobs, where an enqueue
          gives no others. Values and defaults are those of `enqueue`.
        - `partition_by`: the parameter that divides the queue, such as `"tenant_id"`, a tuple of
          such names, or a function of the payload. Its value is the `partition` of each job that
          a program with the handler adds: a text, or a number as text; None for none.
          Default: None. A program without the handler gives `partition` itself.
        - `unique`: a `Unique`: which of its jobs are the same, where an enqueue does not say.
          Default: None. A program without the handler gives `unique` itself.
        - `process`: run each attempt in a child process, so that a crash fails only that job. The
          child finds the function by its name, so it must be one of a module. Default: False.
        - `max_jobs`: with `process`, replace the child by a new one when it has run so many jobs,
          of any type; 1 to 1,000,000,000. Default: None, no limit.
        - `max_memory`: with `process`, replace the child if it has more memory than this after a
          job: bytes, or text such as `512MiB` or `1.5GB`; up to 1 PiB. Default: None, no limit.
        - `on_interrupt`: if the handler still runs after the grace period of a stopping worker:
          `again` (default) runs it again elsewhere uncharged, `fail` fails the attempt.
        - `permanent`: tuple of exceptions that fail a job for good. Default: `()`. `retry_on`: the
          only ones that do not, beside timeouts and lost workers. Default: None, all others.
        - `keep_completed`, `keep_cancelled`, `keep_failed`: how long its settled jobs are kept: a
          duration, or `"forever"`. Default: as `app.retention` and the settings say.

        An `async def` runs on the worker's event loop, a `def` in a thread. A first parameter
        annotated `JobContext` receives the context of the attempt. The other parameters are the
        payload, by name, converted as their annotations say.

        Returns a `JobType`, which is still callable as the function. Raises InvalidInput if no
        payload could fit the function or the name is taken, TypeError for an unknown option.
        """
        register = Register(self, options)  # type: ignore[arg-type]
        return register(*function) if function else register

    schedule = schedule

    enqueue = jobs.enqueue
    enqueue_async = jobs.enqueue_async
    enqueue_many = jobs.enqueue_many
    enqueue_many_async = jobs.enqueue_many_async
    within = jobs.within
    wake = jobs.wake

    get = jobs.get
    get_async = twin(jobs.get)
    progress = jobs.progress
    progress_async = twin(jobs.progress)
    steps = jobs.steps
    steps_async = twin(jobs.steps)
    find = jobs.find
    find_async = twin(jobs.find)
    count = jobs.count
    count_async = twin(jobs.count)
    history = jobs.history
    history_async = twin(jobs.history)
    explain = jobs.explain
    explain_async = twin(jobs.explain)

    wait = waiting.wait
    wait_async = waiting.wait_async
    as_completed = waiting.as_completed

    cancel = jobs.cancel
    cancel_async = twin(jobs.cancel)
    amend = jobs.amend
    amend_async = twin(jobs.amend)
    run_again = jobs.run_again
    run_again_async = twin(jobs.run_again)
    retry = jobs.retry
    retry_async = twin(jobs.retry)
    unblock = jobs.unblock
    unblock_async = twin(jobs.unblock)

    signal = signal
    signal_async = twin(signal)
    workflow = workflows.workflow
    chain = workflows.chain
    chain_async = workflows.chain_async
    group = workflows.group
    group_async = workflows.group_async
    batch = workflows.batch
    batch_async = workflows.batch_async

    around = app_types.around
    lifespan = app_types.lifespan
    on_failure = app_types.on_failure
    run_worker = running.run_worker
    running = running.running

    migrate = upkeep.migrate
    check = upkeep.check
    check_async = twin(upkeep.check)
    verify = upkeep.verify
    verify_async = twin(upkeep.verify)


def limited_to(app: Tenure, queues: Patterns | None) -> Tenure:
    """Return `app` for callers who may use these queues only; `app` itself if None.

    Its verbs show and change only these queues. Verbs that cannot be limited raise Forbidden.
    """
    if queues is None:
        return app
    limited = copy.copy(app)
    limited.core = app.core.limited_to(queues)
    for name, noun in vars(app).items():
        if isinstance(noun, Noun):
            made: Any = type(noun)
            setattr(limited, name, made(limited if made is Workflows else limited.core))
    return limited
