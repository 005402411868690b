"""Job types, `@app.job`: how their jobs are enqueued, and what runs around handlers and workers.

The verbs at the end, `around`, `lifespan` and `on_failure`, hold for all types of an application.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

from tenure.app.waiting import Handle
from tenure.errors import InvalidInput
from tenure.handlers.arguments import By
from tenure.handlers.context import JobContext
from tenure.handlers.registry import (
    Around,
    Errors,
    Handler,
    Lifespan,
    OnFailure,
    OnInterrupt,
    describe,
)
from tenure.lifecycle import Job
from tenure.rules.jobs import (
    OPTIONS,
    Backoff,
    Duration,
    NewJobOf,
    Options,
    TypeOptions,
    Wake,
    defaults_of,
)
from tenure.rules.retention import KEEPS, declared
from tenure.rules.unique_keys import Unique
from tenure.values.names import check_function, check_open, misspelt, no_option

if TYPE_CHECKING:
    from tenure.app.app import Tenure
    from tenure.app.within import Within

P = ParamSpec("P")
R = TypeVar("R", covariant=True)  # pyright: `async def` returns a CoroutineType
V = TypeVar("V")


class JobOptions(TypedDict, total=False):
    """What `@app.job(...)` may say about a type. `Tenure.job` has the limits and defaults."""

    name: str
    queue: str
    priority: int
    max_retries: int
    timeout: Duration | None
    backoff: Backoff
    partition_by: By | None
    unique: Unique | None
    process: bool
    max_jobs: int | None
    max_memory: int | str | None
    on_interrupt: OnInterrupt
    permanent: Errors
    retry_on: Errors | None
    keep_completed: Duration
    keep_cancelled: Duration
    keep_failed: Duration


class Register:
    """The decorator that `app.job(...)` returns: registers a function under its options."""

    def __init__(self, app: Tenure, options: JobOptions) -> None:
        if unknown := options.keys() - JobOptions.__annotations__.keys():
            known = ", ".join(sorted(JobOptions.__annotations__))
            wrong = misspelt(unknown, JobOptions.__annotations__)
            raise TypeError(f"@app.job has no option {wrong}; it has {known}")
        self._app = app
        self._name = options.get("name")
        self._defaults = defaults_of(options, TypeOptions())
        self._keep = declared(options)
        own = {"name", *TypeOptions.__struct_fields__, *KEEPS}
        others = options.keys() - own
        self._how: Any = {name: value for name, value in options.items() if name in others}

    @overload
    def __call__(self, function: Callable[Concatenate[JobContext, P], R]) -> JobType[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> JobType[P, R]: ...
    def __call__(self, function: Any) -> Any:
        if isinstance(function, JobType):  # its handler gets another name, for jobs that have it
            function = function.handler.function
        if not (callable(function) and hasattr(function, "__name__")):
            raise InvalidInput(f"a handler is a function, as def makes it, not {function!r}")
        if (given := self._name or function.__name__) == "<lambda>":
            raise InvalidInput("a lambda has no name: give it one, as in @app.job(name=...)")
        name = check_open(given, "job type", "$.name")
        registry = self._app.core.handlers
        handler = describe(function, name, self._defaults, hooks=registry.hooks, **self._how)
        handler = replace(handler, keep=self._keep)
        registry.add(handler)
        return JobType[Any, Any](self._app, handler)


class JobType(Generic[P, R]):
    """A registered handler, as `@app.job` returns it: the function, and typed ways to enqueue it.

    Calling it runs the function here and now, without a job. A function with a JobContext gets one
    of a first attempt, unless the call passes its own. `enqueue` takes the arguments of the
    function, except the JobContext, and type checkers check them.
    """

    __name__: str

    def __init__(
        self,
        app: Tenure,
        handler: Handler,
        options: Options | None = None,
        adds: Tenure | Within | None = None,
    ) -> None:
        self._app = app
        self._adds = adds or app
        self.handler = handler
        self._options: Options = options or {}
        functools.update_wrapper(self, handler.function)

    @property
    def name(self) -> str:
        """The name of the job type."""
        return self.handler.name

    @overload
    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __call__(self, __context: JobContext, /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def __call__(self, /, *args: Any, **kwargs: Any) -> R:
        given: tuple[Any, ...] = args
        if self.handler.wants_context and not (given and isinstance(given[0], JobContext)):
            queue, limit = self.handler.defaults.queue, self.handler.defaults.max_retries
            given = (JobContext("", self.name, queue, 1, limit, token=1, deadline=None), *given)
        result: R = self.handler.function(*given, **kwargs)
        return result

    def options(self, **options: Unpack[Options]) -> JobType[P, R]:
        """Return the same job type with other options: `send.options(delay="5m").enqueue(...)`.

        The options are those of `Tenure.enqueue`: `queue`, `priority`, `max_retries`, `timeout`,
        `backoff`, `delay`, `run_at`, `start_by`, `tags`, `partition`, `unique`, `depends_on`,
        `needs`, `idempotency_key` and `actor`. The enqueue checks their values. Raises InvalidInput
        for an unknown option.
        """
        if unknown := options.keys() - OPTIONS:
            raise InvalidInput(no_option(unknown, OPTIONS), path="$")
        return JobType(self._app, self.handler, {**self._options, **options}, self._adds)

    def within(self, connection: Any, *, wake: Wake = "later") -> JobType[P, R]:
        """Return the same job type on a connection: `send.within(connection).enqueue(...)`.

        The job exists when you commit. The arguments and errors are those of `Tenure.within`.
        """
        adds = self._app.within(connection, wake=wake)
        return JobType(self._app, self.handler, self._options, adds)

    @overload
    def new_job(
        self: JobType[P, Coroutine[Any, Any, V]], /, *args: P.args, **kwargs: P.kwargs
    ) -> NewJobOf[V]: ...
    @overload
    def new_job(self, /, *args: P.args, **kwargs: P.kwargs) -> NewJobOf[R]: ...
    def new_job(self, /, *args: P.args, **kwargs: P.kwargs) -> NewJobOf[Any]:
        """Return the job that `enqueue` would add, for `Tenure.enqueue_many` and workflows.

        Takes the arguments of the function. Raises TypeError if they do not fit it, InvalidInput if
        one of them cannot be written as JSON, or not be read by its annotation.
        """
        handler = self.handler
        return NewJobOf(handler.name, handler.payload_of(args, kwargs), self._options)

    def enqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Add a job that calls the function with these arguments. When this returns, it is on disk.

        After `within` it is in your transaction instead. Returns the job. Raises what `new_job`
        and `Tenure.enqueue` raise.
        """
        return self._adds.enqueue_many([self.new_job(*args, **kwargs)])[0]

    async def enqueue_async(self, /, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Add a job like `enqueue`, without blocking the event loop."""
        return (await self._adds.enqueue_many_async([self.new_job(*args, **kwargs)]))[0]

    @overload
    def submit(
        self: JobType[P, Coroutine[Any, Any, V]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Handle[V]: ...
    @overload
    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[Any]:
        """Add a job like `enqueue`; return its `Handle`, which waits for the result."""
        return Handle(self._app, self.enqueue(*args, **kwargs).id, self.handler.returns)

    @overload
    async def submit_async(
        self: JobType[P, Coroutine[Any, Any, V]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Handle[V]: ...
    @overload
    async def submit_async(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    async def submit_async(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[Any]:
        """Add a job like `submit`, without blocking the event loop."""
        job = await self.enqueue_async(*args, **kwargs)
        return Handle(self._app, job.id, self.handler.returns)

    def __repr__(self) -> str:
        return f"<job type {self.name}>"


# --- hooks ----------------------------------------------------------------------------------------

A = TypeVar("A", bound=Around)
L = TypeVar("L", bound=Lifespan)
F = TypeVar("F", bound=OnFailure)


def _check_manager(manager: object) -> None:
    check_function(manager, "a function that returns a context manager", "$.manager")
    if inspect.isgeneratorfunction(manager) or inspect.isasyncgenfunction(manager):
        how = "asynccontextmanager" if inspect.isasyncgenfunction(manager) else "contextmanager"
        said = f"a generator is no context manager: write @{how} of contextlib above it"
        raise InvalidInput(said, path="$.manager")


def around(app: Tenure, manager: A) -> A:
    """Run every handler inside a context manager: connections, application contexts, timers.

    - `manager`: a function that takes the `JobContext` of the attempt and returns a context
      manager, sync or async; use it as a decorator above `@contextmanager`. It is entered where the
      handler runs: in its thread, on its event loop or in its child process. A sync one around an
      `async def` must not block. Around a plain `def` an async one fails each attempt.

    Several nest in the order of registration, the first one outermost. The exception of the handler
    passes through them, also if they swallow it, and one that they raise fails the attempt. Returns
    the function.
    """
    _check_manager(manager)
    app.core.handlers.hooks.around.append(manager)
    return manager


def lifespan(app: Tenure, manager: L) -> L:
    """Keep a context manager open while a worker of this application runs: pools, clients.

    - `manager`: a function without arguments that returns a context manager, sync or async. Each
      worker enters it on its event loop before it asks for the first job, and leaves it after its
      last handler. A child process enters it only for a job that lost its lease. An exception
      in it ends the worker.

    Several nest in the order of registration. Returns the function.
    """
    _check_manager(manager)
    app.core.handlers.hooks.lifespans.append(manager)
    return manager


def on_failure(app: Tenure, function: F) -> F:
    """Call a function after each failed attempt, once the failure is recorded.

    - `function`: takes a `Failure`. An `async def` runs on the worker's event loop, a `def` on a
      thread, one call after the other. An exception in it is logged and changes nothing.

    It also learns of timeouts and of payloads that fit no handler. A lease that ran out is reported
    by the process whose sweep ended it, if that runs a worker with this application. Each failure
    is reported once at most; for what must not get lost, use webhooks or `events`. Returns the
    function.
    """
    check_function(function, "a function that takes a Failure", "$.function")
    app.core.handlers.hooks.on_failure.append(function)
    return function
