"""What an application puts around its handlers and workers, and who is called of failures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
)
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from tenure.jobs.context import JobContext

if TYPE_CHECKING:
    from tenure.jobs.handlers import Handler

Manager = AbstractContextManager[Any] | AbstractAsyncContextManager[Any]
Around = Callable[[JobContext], Manager]
Lifespan = Callable[[], Manager]


class Failure(Struct, frozen=True):
    """A failed attempt, as the functions of `Tenure.on_failure` get it.

    - `id`, `type`, `queue`: of the job.
    - `attempt`: the number of the attempt; 1 for the first.
    - `max_retries`: how many attempts the job gets in all.
    - `error`: what the store has recorded, as text; redacted values are cut out.
    - `exception`: what the handler raised. None if it raised nothing here: the attempt timed out,
      its lease ran out, it ran in a child process, or its worker stopped.
    - `final`: whether the job has failed for good. False also in the rare case that the worker had
      to report twice and cannot know.
    - `retry_in`: seconds until the next attempt; None if there is none, or if that is not known.
    """

    id: str
    type: str
    queue: str
    attempt: int
    max_retries: int
    error: str
    exception: BaseException | None
    final: bool
    retry_in: float | None


OnFailure = Callable[[Failure], Awaitable[object] | object]


class Hooks(Struct):
    """What the functions of an application are called for beside its jobs, in their order."""

    around: list[Around] = field(default_factory=list)
    lifespans: list[Lifespan] = field(default_factory=list)
    on_failure: list[OnFailure] = field(default_factory=list)


def bound(handler: Handler, context: JobContext) -> Callable[..., Any]:
    """Return the function of a handler for one attempt, inside what the application puts around."""
    function = partial(handler.function, context) if handler.wants_context else handler.function
    if not handler.around:
        return function
    call = _await_within if handler.is_async else _call_within
    return partial(call, handler.around, context, function)


def _call_within(
    around: Sequence[Around], context: JobContext, function: Callable[..., Any], /, **arguments: Any
) -> Any:
    with ExitStack() as stack:
        for make in around:
            stack.enter_context(Passing(make(context)))  # type: ignore[arg-type]
        return function(**arguments)


async def _await_within(
    around: Sequence[Around], context: JobContext, function: Callable[..., Any], /, **arguments: Any
) -> Any:
    async with AsyncExitStack() as stack:
        for make in around:
            await enter(stack, passing(make(context)))
        return await function(**arguments)


class Passing(AbstractContextManager[Any]):
    """A context manager through which exceptions pass, even if it is written to swallow them.

    Else a handler that failed would be one that returned None, and its job would be completed.
    """

    def __init__(self, manager: AbstractContextManager[Any]) -> None:
        self._manager = manager

    def __enter__(self) -> Any:
        return self._manager.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._manager.__exit__(kind, error, trace) and error is not None:
            BaseException.with_traceback(error, trace)  # without the frames of the manager


class AsyncPassing(AbstractAsyncContextManager[Any]):
    """The same for one that is entered on an event loop."""

    def __init__(self, manager: AbstractAsyncContextManager[Any]) -> None:
        self._manager = manager

    async def __aenter__(self) -> Any:
        return await self._manager.__aenter__()

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if await self._manager.__aexit__(kind, error, trace) and error is not None:
            BaseException.with_traceback(error, trace)


WITHIN = (_call_within.__code__, _await_within.__code__)
"""Frames between a worker and a handler, which no traceback shows."""


def passing(manager: Manager) -> Manager:
    """Return a context manager that swallows no exception, of the kind of `manager`."""
    if isinstance(manager, AbstractAsyncContextManager):
        return AsyncPassing(manager)
    return Passing(manager)


async def enter(stack: AsyncExitStack, manager: Manager) -> None:
    """Enter a context manager of either kind."""
    if isinstance(manager, AbstractAsyncContextManager):
        await stack.enter_async_context(manager)
    else:
        stack.enter_context(manager)
