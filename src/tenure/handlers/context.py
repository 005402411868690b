"""What a handler knows about its attempt, and what it does through it: `JobContext`.

A handler may run again from its begin, after a failure, a sleep or a wait for a signal. What it has
done once is then read from what the job keeps: see `StepBook`. The `Fence` of the attempt ties the
transactions of the handler to its lease.
"""

from __future__ import annotations

import builtins
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Literal, ParamSpec, Protocol, TypeVar, overload

from tenure.errors import (
    InvalidInput,
    JobCancelled,
    JobFailed,
    JobUnsettled,
    ResultTruncated,
    SignalTimeout,
)
from tenure.lifecycle import Status
from tenure.rules.jobs import Duration, NewJob
from tenure.rules.reports import FollowUps, Parked, Wait
from tenure.rules.signals import (
    check_link_label,
    check_signal_name,
    new_token,
    signal_text,
    token_digest,
)
from tenure.rules.steps import (
    FindSignal,
    FoundSignal,
    JobProgress,
    KeepToken,
    Notes,
    ParentJob,
    Parents,
    ReadParents,
    Record,
    Step,
    StepSource,
    Waiting,
    awaited,
    waited,
)
from tenure.values import durations
from tenure.values.names import check_name
from tenure.values.text import UNSTORABLE

if TYPE_CHECKING:
    from tenure.handlers.step_book import StepBook

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

NO_ATTEMPT = "only a worker gives a connection: here no attempt runs, so pass one"
NO_SIGNALS = "only a worker's attempt can wait for signals; this is a plain call of the handler"

Stopped = Literal["cancelled", "timeout", "shutdown", "lost"]
"""Why the outcome of a handler no longer counts."""


@dataclass(slots=True)
class JobTransaction:
    """A transaction on the database of the jobs, as `JobContext.transaction` begins it.

    - `connection`: of psycopg or sqlite3, for your statements. It is committed for you.
    - `result`: set it to the result of the job. Default: None.
    """

    connection: Any
    result: Any = None


class Fence(Protocol):
    """What ties transactions of a handler to the lease of its attempt."""

    def complete(self, connection: Any, result: object) -> None: ...
    async def complete_async(self, connection: Any, result: object) -> None: ...
    def hold(self, connection: Any) -> None: ...
    async def hold_async(self, connection: Any) -> None: ...
    def transaction(self) -> AbstractContextManager[JobTransaction]: ...
    def opened(self) -> AbstractContextManager[Any]: ...
    def record(self, connection: Any, step: Record) -> None: ...
    async def record_async(self, connection: Any, step: Record) -> None: ...
    def park(self, parked: Parked) -> None: ...
    def follow_ups(self) -> FollowUps: ...
    def check_free(self) -> None: ...


@dataclass(slots=True)
class JobContext:
    """What a handler knows about its attempt: annotate its first parameter with `JobContext`.

    - `id`: the id of the job.
    - `type`, `queue`: the job's type and queue.
    - `attempt`: the number of this attempt; 1 for the first.
    - `max_retries`: how many attempts the job gets in all. If this attempt fails and `attempt` is
      not less than `max_retries`, the job has failed for good.
    - `token`: rises with every claim of the job and never falls. Hand it to outside systems as a
      fencing token, so that they refuse a stale attempt.
    - `deadline`: when the timeout of this attempt ends it, by the clock of the worker; None if it
      has no timeout.
    - `stopping`: turns True when the worker was asked to stop. A handler that returns within the
      grace period of the worker is recorded as always. One that takes longer is interrupted, and
      the job runs again elsewhere, without a charge.
    - `stopped`: why the handler should return now, since nothing that it does is recorded any more.
      None as long as its outcome counts, then `cancelled` (the job was, normally within 200 ms),
      `timeout`, `shutdown` (the grace period is over), or `lost` (the lease ran out).

    In a child process, `stopping` and `stopped` never change: when the outcome no longer counts,
    the worker kills the child.

    The worker makes it; a handler only reads it.
    """

    __signature__: ClassVar[inspect.Signature]

    id: str
    type: str
    queue: str
    attempt: int  # 1 for the first
    max_retries: int  # attempts in all
    token: int  # rises with every claim
    deadline: datetime | None  # by the worker's clock
    stopping: bool = False  # the worker is
    stopped: Stopped | None = None  # why the outcome of the handler no longer counts
    _source: StepSource | None = field(default=None, repr=False)
    _fence: Fence | None = field(default=None, repr=False)
    _book: Any = field(default=None, repr=False, compare=False)  # StepBook | None; see `_steps`
    _jobs: FollowUps | None = field(default=None, repr=False)

    # --- steps

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
            lent: AbstractContextManager[Any]
            if connection is not None:
                lent = nullcontext(connection)
            elif fence is not None:
                lent = fence.opened()
            else:
                raise InvalidInput(NO_ATTEMPT, path="connection")
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

    # --- sleep and state

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
            from tenure.handlers.step_book import StepBook  # it reads results, which know handlers

            fence = self._fence
            park, check_free = (None, None) if fence is None else (fence.park, fence.check_free)
            self._book = StepBook(self.token, self._source, park, check_free)
        book: StepBook = self._book
        return book

    # --- signals

    @overload
    def wait_for_signal(self, name: str, timeout: Duration | None = None) -> Any: ...
    @overload
    def wait_for_signal(
        self, name: str, timeout: Duration | None = None, *, type: builtins.type[T]
    ) -> T: ...
    def wait_for_signal(
        self, name: str, timeout: Duration | None = None, *, type: Any = Any
    ) -> Any:
        """Return what the next signal of a name says; without a slot until it comes.

        - `name`: of the signal: 1 to 100 of `A-Z a-z 0-9 _ : - .`.
        - `timeout`: how long to wait, from the first time that the handler comes here: seconds, a
          timedelta or text such as `7d`; 0 to 10 years. A signal that was sent later does not
          count; one that was sent in time does, however late a worker sees it. Default: None, as
          long as it takes.
        - `type`: what the payload is, as an annotation. Default: any JSON.

        If the signal is not there, the handler ends here and runs again from its begin when it has
        come or the time is over. No attempt is charged, and the time counts for no timeout.
        `finally` blocks run at each such end: it is a BaseException, which has to get through.

        The first wait for a name in a run of the handler takes the first signal of that name, the
        second the second, whenever they were sent; a wait that timed out takes none. So a handler
        has to come to its waits for a name in the same order in every run.

        Raises SignalTimeout, in every later run too; InvalidInput if the payload does not fit
        `type`, and where no worker runs the handler; and what `step` raises.
        """
        book = self._steps()
        return book.said(waited(receive(book, name, timeout)), type, name)

    @overload
    async def wait_for_signal_async(self, name: str, timeout: Duration | None = None) -> Any: ...
    @overload
    async def wait_for_signal_async(
        self, name: str, timeout: Duration | None = None, *, type: builtins.type[T]
    ) -> T: ...
    async def wait_for_signal_async(
        self, name: str, timeout: Duration | None = None, *, type: Any = Any
    ) -> Any:
        """Wait for a signal like `wait_for_signal`, without blocking the event loop."""
        book = self._steps()
        return book.said(await awaited(receive(book, name, timeout)), type, name)

    def signal_token(self, name: str, payload: Any = None, *, label: str | None = None) -> str:
        """Return a new token, whose holder can send one signal to this job and do nothing else.

        - `name`: of the signal, as of `wait_for_signal`.
        - `payload`: what the signal says, as plain JSON of at most 64 KiB. Default: None, what its
          sender gives.
        - `label`: what the page of its address and the button there say, such as `Approve`: plain
          text of 1 to 100 characters, no control characters. Default: None, the name.

        The token is the last part of an address of your server: `/signals/{token}`. A POST to it
        sends the signal, and people who open it get a page with one button that does. It works
        once, needs no other token, and ends all tokens of this job and name. Only its digest is
        stored. Each call makes another one, at most 1,000 of a job, so make it in the step that
        sends it. Raises InvalidInput and what `step` raises.
        """
        token, keep = _new_token(name, payload, label)
        waited(self._steps().ask(keep))
        return token

    async def signal_token_async(
        self, name: str, payload: Any = None, *, label: str | None = None
    ) -> str:
        """Return a token like `signal_token`, without blocking the event loop."""
        token, keep = _new_token(name, payload, label)
        await awaited(self._steps().ask(keep))
        return token

    # --- parents

    @property
    def parents(self) -> list[ParentJob]:
        """The jobs that this job depends on: `id`, `type`, `name`, `meets`, `status`, `error`.

        Each use reads them. Raises LeaseLost and StoreUnavailable.
        """
        return [one for page in self._pages() for one in page]

    async def parents_async(self) -> list[ParentJob]:
        """Return the `parents`, without blocking the event loop."""
        return [one async for page in self._pages_async() for one in page]

    @property
    def results(self) -> Results:
        """The results of the jobs that this job depends on.

        `context.results(int)` iterates over those of the jobs that have completed, as values of a
        type (default: as JSON), some hundred at a time, in the order in which the jobs were added.
        Jobs that have not completed, which only a dependency other than on the completion lets
        through, are left out: `parents` has them.

        `context.results["total"]` is the result of the job that is called so, as JSON. It raises
        JobFailed, JobCancelled or JobUnsettled if that job has not completed, and KeyError if there
        is no such name.

        Both raise LeaseLost and StoreUnavailable, and for a result InvalidInput if it does not fit
        the type, or ResultTruncated if it was not stored whole. They block; a coroutine uses
        `results_async` and `result_async`.
        """
        return Results(self)

    @overload
    def results_async(self, type: builtins.type[T]) -> AsyncIterator[T]: ...
    @overload
    def results_async(self, type: Any = Any) -> AsyncIterator[Any]: ...
    async def results_async(self, type: Any = Any) -> AsyncIterator[Any]:
        """Iterate like `results(type)`, for `async for`."""
        async for page in self._pages_async():
            for one in page:
                if one.status == Status.COMPLETED:
                    yield value_of(one, type)

    @overload
    async def result_async(self, name: str, type: builtins.type[T]) -> T: ...
    @overload
    async def result_async(self, name: str, type: Any = Any) -> Any: ...
    async def result_async(self, name: str, type: Any = Any) -> Any:
        """Return the result of the job that is called so, like `results[name]`, as a type."""
        return _only(await awaited(self._ask(ReadParents(name=name))), name, type)

    def _pages(self) -> Iterator[list[ParentJob]]:
        after: str | None = ""
        while after is not None:
            page = waited(self._ask(ReadParents(after=after)))
            yield [*page.jobs]
            after = page.jobs[-1].id if page.more else None

    async def _pages_async(self) -> AsyncIterator[list[ParentJob]]:
        after: str | None = ""
        while after is not None:
            page = await awaited(self._ask(ReadParents(after=after)))
            yield [*page.jobs]
            after = page.jobs[-1].id if page.more else None

    def _ask(self, call: ReadParents) -> Waiting[Parents]:
        return (yield from self._steps().ask(call)) or Parents()

    # --- follow-ups

    def enqueue(self, new_job: NewJob) -> str:
        """Add a job if and only if this run completes the job, in the same transaction.

        - `new_job`: what `new_job(...)` of a job type returns, or a `NewJob`. It may depend on this
          job and on jobs that this run has added.

        A run that fails, sleeps, is cancelled or loses its lease adds nothing, so no idempotency
        key is needed. At most 1,000 jobs in a run, of about 1 MiB as JSON in all. The limit of a
        queue holds none of them back, their `delay` counts from the end of the run, and the history
        names the worker as who added them.

        It only notes the job: nothing waits, and there is no `_async` form. With `complete` or
        `transaction`, the jobs are added in that transaction. Without an attempt, where the handler
        is called as a function, they are not added: see `enqueued`.

        Returns the id that the job will have. Where a job with its idempotency key or unique key is
        there, that one counts and none has this id. Raises InvalidInput at once. What only the
        database can find, KeyConflict, DuplicateJob or JobNotFound, fails the attempt with that
        reason when it ends.
        """
        if self._jobs is None:
            self._jobs = FollowUps() if self._fence is None else self._fence.follow_ups()
        return self._jobs.add(new_job)

    @property
    def enqueued(self) -> Sequence[NewJob]:
        """The jobs that this run adds if it completes, in order; for tests of a handler."""
        return [] if self._jobs is None else self._jobs.given()

    # --- progress

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Say how far this attempt has come; others see it within about a second.

        - `done`: how much is done, in any unit: up to 2**53 - 1, as `total`.
        - `total`: how much there is in all. Default: None, not known.
        - `message`: what is being done, for people; 500 characters are kept. Default: none.

        It only notes this, so call it as often as you like. What was said last is also kept with
        the end of the attempt, and deleted with the job. Raises InvalidInput if a number is
        larger, or none.
        """
        try:
            said = JobProgress(float(done), None if total is None else float(total), str(message))
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidInput(f"not a valid progress: {error}") from error
        if self._source is not None:
            self._source.note(Notes(progress=said))

    # --- transactions

    def complete(self, connection: Any, result: object = None) -> None:
        """Complete this job in the transaction that is open on your connection.

        Your rows and the completion are committed together, or neither is. Whatever crashes, the
        effect is there exactly once. The outcome is then decided by your commit: if the transaction
        was rolled back, the attempt has failed. The handler returns None, or the same result.

        - `connection`: one to the database of the jobs, of a kind that `Tenure.within` takes.
        - `result`: the result of the job, as a handler returns it. Default: None.

        Call it last, so that the job is locked for a short time; under REPEATABLE READ and
        SERIALIZABLE first, since a heartbeat may change the job before. Without an attempt, where
        the handler is called as a function, it does nothing. Raises LeaseLost if this attempt has
        been ended elsewhere: let that roll your transaction back. Raises KeyConflict, DuplicateJob
        or JobNotFound, with nothing written, for a job of `enqueue`. Raises InvalidInput if the job
        is completed by this attempt already, or if the connection is none that `within` takes or
        inside a savepoint of SQLAlchemy; PermanentFailure in a worker that gets its jobs over HTTP.
        """
        if self._fence is not None:
            self._fence.complete(connection, result)

    async def complete_async(self, connection: Any, result: object = None) -> None:
        """Complete this job like `complete`, on an asynchronous connection."""
        if self._fence is not None:
            await self._fence.complete_async(connection, result)

    def hold(self, connection: Any) -> None:
        """Make sure in your transaction that this attempt still has its lease, until it ends.

        No other worker can take the job over before you commit or roll back, so a worker that was
        frozen for too long commits nothing. Call it in each transaction. For `connection`, for the
        errors and for when to call it, see `complete`.
        """
        if self._fence is not None:
            self._fence.hold(connection)

    async def hold_async(self, connection: Any) -> None:
        """Make sure of the lease like `hold`, on an asynchronous connection."""
        if self._fence is not None:
            await self._fence.hold_async(connection)

    def transaction(self) -> AbstractContextManager[JobTransaction]:
        """Begin a transaction on a new connection to the database of the jobs; for `with`.

        A clean end of the block completes the job and commits, an exception rolls back. It blocks,
        so use it in a plain `def`. Returns a context manager that gives a `JobTransaction`. Raises
        InvalidInput without an attempt, and what `complete` raises.
        """
        if self._fence is None:
            raise InvalidInput("a transaction needs an attempt of a worker; none runs here")
        return self._fence.transaction()


_made = inspect.signature(JobContext)
_shown = [each for each in _made.parameters.values() if not each.name.startswith("_")]
JobContext.__signature__ = _made.replace(parameters=_shown)  # what a prompt shows


def meant_context(signature: inspect.Signature, error: Exception) -> str:
    """Return what to write where an argument is missing, if it was to be the context."""
    first = next(iter(signature.parameters.values()), None)
    if first is None or first.name not in {"context", "ctx", "job_context"}:
        return ""
    is_missing = re.search(f"missing .*['`]{first.name}['`]", str(error))
    if not is_missing or first.annotation is not first.empty:
        return ""
    return f"; for the context of the attempt write {first.name}: JobContext"


# --- signals --------------------------------------------------------------------------------------


def _new_token(name: str, payload: Any, label: str | None) -> tuple[str, KeepToken]:
    token = new_token()
    text = None if payload is None else signal_text(payload)
    said = check_link_label(label, "label")
    return token, KeepToken(str(token_digest(token)), check_signal_name(name), text, said)


def receive(book: StepBook, name: str, timeout: Duration | None) -> Waiting[str]:
    """Return the payload of the signal that this wait of a run takes, as JSON text."""
    check_signal_name(name, "name")
    seconds = None if timeout is None else durations.seconds(timeout, "$.timeout")
    if not book.is_attempt:
        raise InvalidInput(NO_SIGNALS)
    place = book.next_place(f"wait:{name}:")
    own = f"wait:{name}:{place}"
    kept = yield from book.begin(own, reserved=True)
    with book.doing(own):
        payload = yield from _received(book, name, place, seconds, kept)
    if payload is None:
        raise SignalTimeout(name)
    return payload


def _received(
    book: StepBook, name: str, place: int, seconds: float | None, kept: Step | None
) -> Waiting[str | None]:
    """Return what the signal says, None if the time of the wait is over."""
    steps = yield from book.steps()
    ends = [f"timeout:{name}:{n}" for n in range(1, place + 1)]
    if ends[-1] in steps:
        return None
    number = place - sum(end in steps for end in ends)
    limit = None if seconds is None else kept
    is_over = limit is not None and book.left(limit) <= 0  # before it looks: nothing is missed
    found: FoundSignal | None = yield from book.ask(FindSignal(name, number))
    if found is not None and (limit is None or found.at < limit.until):
        return found.payload
    if seconds is not None and limit is None:
        limit = yield from book.record(book.new(f"wait:{name}:{place}", seconds))
        is_over = book.left(limit) <= 0
    if found is None and not is_over:
        wait = Wait(name, number, None if limit is None else limit.until)
        book.park(Parked(f"it waits for the signal {name}", wait=wait))
    yield from book.begin(ends[-1], reserved=True)
    with book.doing(ends[-1]):
        yield from book.record(book.new(ends[-1], None))
    return None


# --- parents --------------------------------------------------------------------------------------


class Results:
    """Results of the jobs that a job depends on, as `JobContext.results` says."""

    def __init__(self, context: JobContext) -> None:
        self._context = context

    @overload
    def __call__(self, type: type[T]) -> Iterator[T]: ...
    @overload
    def __call__(self, type: Any = Any) -> Iterator[Any]: ...
    def __call__(self, type: Any = Any) -> Iterator[Any]:
        for page in self._context._pages():
            for one in page:
                if one.status == Status.COMPLETED:
                    yield value_of(one, type)

    def __getitem__(self, name: str) -> Any:
        return _only(waited(self._context._ask(ReadParents(name=name))), name, Any)


def _only(page: Parents, name: str, type: Any) -> Any:
    if not page.jobs:
        raise KeyError(f"this job depends on no job named {name}")
    return value_of(page.jobs[0], type)


def value_of(parent: ParentJob, type: Any) -> Any:
    """Return the result of a job as a type says; raises what `JobContext.results` says."""
    from tenure.handlers.results import read_result  # it knows handlers, which know contexts

    if parent.status == Status.FAILED:
        raise JobFailed(parent.id, parent.error)
    if parent.status == Status.CANCELLED:
        raise JobCancelled(parent.id, parent.event, parent.actor)
    if parent.status != Status.COMPLETED:
        raise JobUnsettled(parent.id, parent.status)
    if (parent.result_json or "").startswith(f'{{"{UNSTORABLE}":'):
        raise ResultTruncated(parent.id, parent.result["reason"])
    return read_result(parent.result_json, type, f"the result of job {parent.id}")
