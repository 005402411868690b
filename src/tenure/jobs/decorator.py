"""What `@app.job` makes of a function: still the function, and a typed way to enqueue it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, Unpack

from tenure.jobs.enqueue import NewJob, Options
from tenure.jobs.handlers import Handler, JobContext
from tenure.lifecycle import Job

P = ParamSpec("P")
R = TypeVar("R")


class Enqueues(Protocol):
    """What a job type needs of its application."""

    def enqueue_many(self, new_jobs: Sequence[NewJob]) -> list[Job]:
        """Add jobs in one transaction."""

    async def enqueue_many_async(self, new_jobs: Sequence[NewJob]) -> list[Job]:
        """Add jobs without blocking the loop."""


class JobType(Generic[P, R]):
    """A registered handler, as `@app.job` returns it: the function, and typed ways to enqueue it.

    Calling it runs the function here and now, without a job. A function with a JobContext gets one
    of a first attempt, unless the call passes its own. `enqueue` takes the arguments of the
    function, except the JobContext, and type checkers check them.
    """

    __name__: str

    def __init__(self, app: Enqueues, handler: Handler, options: Options | None = None) -> None:
        self._app = app
        self.handler = handler
        self._options: Options = options or {}
        functools.update_wrapper(self, handler.function)

    @property
    def name(self) -> str:
        """The name of the job type."""
        return self.handler.name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        given: tuple[Any, ...] = args
        if self.handler.wants_context and not (given and isinstance(given[0], JobContext)):
            queue, limit = self.handler.defaults.queue, self.handler.defaults.max_retries
            given = (JobContext("", self.name, queue, 1, limit, token=1, deadline=None), *given)
        result: R = self.handler.function(*given, **kwargs)
        return result

    def options(self, **options: Unpack[Options]) -> JobType[P, R]:
        """Return the same job type with other options: `send.options(delay="5m").enqueue(...)`.

        The options are those of `Tenure.enqueue`: `queue`, `priority`, `max_retries`, `timeout`,
        `backoff`, `delay`, `run_at`, `idempotency_key` and `actor`. The enqueue
        checks them.
        """
        return JobType(self._app, self.handler, {**self._options, **options})

    def new_job(self, *args: P.args, **kwargs: P.kwargs) -> NewJob:
        """Return the job that `enqueue` would add, for `Tenure.enqueue_many`.

        Takes the arguments of the function. Raises TypeError if they do not fit it, InvalidInput if
        one of them cannot be written as JSON.
        """
        handler = self.handler
        return NewJob(handler.name, handler.payload_of(args, kwargs), self._options)

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Add a job that calls the function with these arguments. When this returns, it is on disk.

        Returns the job. Raises what `new_job` and `Tenure.enqueue` raise.
        """
        return self._app.enqueue_many([self.new_job(*args, **kwargs)])[0]

    async def enqueue_async(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Add a job like `enqueue`, without blocking the event loop."""
        return (await self._app.enqueue_many_async([self.new_job(*args, **kwargs)]))[0]

    def __repr__(self) -> str:
        return f"<job type {self.name}>"
