"""What waits for the database without blocking the event loop.

Modules that every application imports import asyncio where they use it: its import costs as much as
half of the others together, and many applications do without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

NO_LOOP = (
    "no event loop of asyncio runs here: call the method without _async, in a thread if another"
    " loop runs, as by trio.to_thread.run_sync"
)


def twin(verb: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Return the `_async` twin of a verb, a coroutine function that runs it in a thread."""

    @functools.wraps(verb)
    async def run(*args: P.args, **kwargs: P.kwargs) -> R:
        import asyncio

        check_loop()
        return await asyncio.to_thread(verb, *args, **kwargs)

    run.__name__ = run.__qualname__ = f"{verb.__name__}_async"
    run.__doc__ = f"Do what `{verb.__name__}` does, without blocking the event loop."
    return run


def check_loop() -> None:
    """Raise RuntimeError unless asyncio runs here: nothing may be done that cannot be awaited."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(NO_LOOP) from None


async def answer_of(future: Future[R]) -> R:
    """Await what the store answers; cancel it with the caller.

    Does what `asyncio.wrap_future` does, in half the time.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def answered(_: Future[R]) -> None:
        with suppress(RuntimeError):  # the loop is closed, so nothing waits on it
            loop.call_soon_threadsafe(wake)

    future.add_done_callback(answered)
    try:
        await waiter
    except asyncio.CancelledError:
        future.cancel()
        raise
    return future.result()
