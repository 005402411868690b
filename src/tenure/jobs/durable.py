"""The part of `JobContext` that remembers across attempts: steps, sleep, state."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from tenure.errors import InvalidInput
from tenure.jobs import durations
from tenure.jobs.enqueue import Duration
from tenure.jobs.names import check_name
from tenure.jobs.steps import StepSource, awaited, waited

if TYPE_CHECKING:
    from tenure.jobs.step_book import StepBook

P = ParamSpec("P")
R = TypeVar("R")

NO_ATTEMPT = "only a worker gives a connection: here no attempt runs, so pass one"


class DurableContext:
    """What a handler does once, although it may run again."""

    __slots__ = ()
    id: str
    token: int
    _source: StepSource | None
    _fence: Any
    _book: StepBook | None

    def step(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function once, and return what it returned in every attempt of this job.

        - `name`: of the step, unique in the job: 1 to 128 characters, as a job type. A step in a
          loop has what distinguishes it in its name: `f"charge:{order}"`.
        - `function`, then its arguments. What it returns is stored as a result of a handler is, at
          most 64 KiB of JSON, and read back as its return annotation says; also in the attempt that
          calls it.

        If it raises, nothing is recorded. A process that dies between the effect of the function
        and the commit of its result calls it again: hand `step_key` to systems outside, or use
        `step_within` for your database. A job has at most 1,000 steps, with results of 8 MiB in
        all; for longer loops there is `checkpoint`.

        Raises InvalidInput, before the function is called, in a `transaction` or a `step_within` of
        the same thread that has the job locked, as every one has on SQLite. Raises DuplicateStep if
        this attempt has used the name; LeaseLost if the job is no longer this attempt's, and then
        the result does not count; PermanentFailure if the result cannot be stored; InvalidInput if
        a stored result does not fit the annotation; StoreUnavailable if the database does not
        answer for 30 seconds, or if a transaction of this program holds the SQLite file for 5.
        """
        book = self._steps()
        returns = book.returned_by(function)
        step = waited(book.begin(name))
        if step is None:
            with book.doing(name):
                book.check_free()
                step = waited(book.record(book.new(name, function(*args, **kwargs))))
        value: R = book.value(step, returns)
        return value

    async def step_async(
        self, name: str, function: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Await a function once, like `step`. For a plain one that blocks: `asyncio.to_thread`."""
        book = self._steps()
        returns = book.returned_by(function, *args)
        step = await awaited(book.begin(name))
        if step is None:
            with book.doing(name):
                book.check_free()
                new = book.new(name, await book.to_await(name, function(*args, **kwargs)))
                step = await awaited(book.record(new))
        value: R = book.value(step, returns)
        return value

    def step_key(self, name: str) -> str:
        """Return a key of a step that is the same in every attempt, for idempotency outside.

        - `name`: of the step, as of `step`.

        Raises InvalidInput.
        """
        return f"{self.id}:{check_name(name, 'step', 'name')}"

    def step_within(
        self, name: str, function: Callable[..., R], /, *args: Any, connection: Any = None
    ) -> R:
        """Call a function that writes to the database of the jobs, exactly once.

        Its writes and the record of the step are committed together, or neither is.

        - `name`: of the step, as of `step`.
        - `function`: called with a connection, then with `args`. What it returns is stored.
        - `connection`: one as `Tenure.within` takes, in a transaction, which you commit. Default:
          None, a new connection of psycopg or sqlite3, whose transaction is committed at the end.

        Raises what `step` and `complete` raise: LeaseLost is to roll your transaction back.
        """
        book, fence = self._steps(), self._fence
        returns = book.returned_by(function)
        step = waited(book.begin(name))
        if step is None:
            if fence is None and connection is None:
                raise InvalidInput(NO_ATTEMPT, path="connection")
            lent = nullcontext(connection) if connection is not None else fence.opened()
            with book.doing(name), lent as used:
                new = book.new(name, function(used, *args))
                if fence is not None:
                    fence.record(used, new)
            step = book.noted(new)
        value: R = book.value(step, returns)
        return value

    async def step_within_async(
        self, name: str, function: Callable[..., Awaitable[R]], /, *args: Any, connection: Any
    ) -> R:
        """Await a function like `step_within`, with your own asynchronous `connection`."""
        book = self._steps()
        returns = book.returned_by(function)
        step = await awaited(book.begin(name))
        if step is None:
            with book.doing(name):
                new = book.new(name, await book.to_await(name, function(connection, *args)))
                if self._fence is not None:
                    await self._fence.record_async(connection, new)
            step = book.noted(new)
        value: R = book.value(step, returns)
        return value

    def sleep(self, duration: Duration, *, name: str | None = None) -> None:
        """Sleep as long, also if the worker is restarted meanwhile; without a slot, and at no cost.

        - `duration`: seconds, a timedelta or text such as `3d`; 0 to 10 years.
        - `name`: by which later runs know this sleep, unique in the job: 1 to 100 characters, as a
          job type, and not a number. Default: None, the n-th sleep without a name in a run is that
          of the runs before. So if a deploy removes or adds one, those after it get other times.

        From 5 seconds on, the handler ends here and runs again from its begin afterwards, when
        this sleep is over. No attempt is charged, and the time counts for no timeout. `finally`
        blocks run at each such end: it is a BaseException, which has to get through. Counts as a
        step and, from 5 seconds on, as a snooze, of which a job has 10,000. In a handler that is
        called as a function it returns at once. Raises InvalidInput, and what `step` raises.
        """
        waited(self._steps().sleep(durations.seconds(duration, "$.duration"), name))

    async def sleep_async(self, duration: Duration, *, name: str | None = None) -> None:
        """Sleep like `sleep`, without blocking the event loop."""
        await awaited(self._steps().sleep(durations.seconds(duration, "$.duration"), name))

    def state(self, default: Any = None) -> Any:
        """Return what `checkpoint` was given last, in this attempt or an earlier one, as JSON.

        - `default`: what to return if there is no checkpoint. Default: None.

        Raises LeaseLost and StoreUnavailable.
        """
        return waited(self._steps().state(default))

    async def state_async(self, default: Any = None) -> Any:
        """Return the last checkpoint like `state`, without blocking the event loop."""
        return await awaited(self._steps().state(default))

    def checkpoint(self, value: Any, *, flush: bool = False) -> None:
        """Keep a value from which the next attempt can continue; it replaces the one before.

        - `value`: anything that a handler can return, at most 64 KiB of JSON.
        - `flush`: whether to wait until it is on disk. Default: False, it is written within about a
          second and at the end of the attempt, however that ends, so call it as often as you like.

        Raises PermanentFailure if it cannot be stored; with `flush` also LeaseLost and
        StoreUnavailable.
        """
        waited(self._steps().keep_state(value, flush=flush))

    async def checkpoint_async(self, value: Any, *, flush: bool = False) -> None:
        """Keep a value like `checkpoint`, without blocking the event loop."""
        await awaited(self._steps().keep_state(value, flush=flush))

    def _steps(self) -> StepBook:
        if self._book is None:
            from tenure.jobs.step_book import StepBook  # it reads results, which know handlers

            fence = self._fence
            hooks = (None, None) if fence is None else (fence.park, fence.check_free)
            self._book = StepBook(self.token, self._source, *hooks)  # type: ignore[misc]
        return self._book
