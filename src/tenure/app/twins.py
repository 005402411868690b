"""The `_async` twin of a verb that waits for the database."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def twin(verb: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Return a coroutine function that runs the verb in a thread, off the event loop."""

    @functools.wraps(verb)
    async def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.to_thread(verb, *args, **kwargs)

    run.__name__ = run.__qualname__ = f"{verb.__name__}_async"
    run.__doc__ = f"Do what `{verb.__name__}` does, without blocking the event loop."
    return run
