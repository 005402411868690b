"""Fake handlers that succeed and fail on purpose, for any job type. Nothing about them is random.

Rules for every type: `fail_types` names types of which every attempt fails. `fail_every=N` fails
the first attempt of every Nth job that this process starts.

Some types behave in a special way, beside the rules:

    fake.flaky   {"fail_times": k}   fails the first k attempts
    fake.sleep   {"seconds": s}      sleeps
    fake.fail                        fails every attempt
    fake.crash   {"crash_times": k}  kills its worker process with SIGKILL in the first k attempts
                                     (default 1): the lease runs out, and another worker takes over

Every other type succeeds at once, whatever its payload.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Collection
from itertools import count
from typing import Any

from tenure.errors import InvalidInput
from tenure.jobs.context import JobContext
from tenure.jobs.handlers import Handler, Handlers, describe
from tenure.jobs.names import check_name

Check = Callable[[JobContext], None]


class FakeFailure(Exception):
    """A fake handler fails on purpose."""


def add_fake_handlers(
    handlers: Handlers, *, fail_types: Collection[str] = (), fail_every: int | None = None
) -> None:
    """Add fake handlers for every type that has no handler.

    Raises InvalidInput for a type that is no name, or `fail_every` below 1.
    """
    failing = frozenset(check_name(type, "job type", "fail_types") for type in fail_types)
    if fail_every is not None and fail_every < 1:
        raise InvalidInput("give a whole number from 1, or leave it out", path="fail_every")
    fakes = _fakes(_rules(failing, fail_every))
    handlers.add_for_any(lambda type: fakes.get(type, fakes[""]))


def _rules(failing: frozenset[str], fail_every: int | None) -> Check:
    first_attempts = count(1)

    def check(context: JobContext) -> None:
        number = next(first_attempts) if context.attempt == 1 else 0
        if context.type in failing:
            raise FakeFailure(f"--fail-type {context.type}: every attempt fails")
        if fail_every is not None and number and number % fail_every == 0:
            raise FakeFailure(f"--fail-every {fail_every}: the first attempt of job {number} fails")

    return check


def _fakes(check: Check) -> dict[str, Handler]:
    """Return the fake handlers by type; the empty name is for every other type."""

    async def succeed(context: JobContext, /, **_: object) -> None:
        check(context)

    async def flaky(context: JobContext, /, fail_times: int) -> None:
        check(context)
        if context.attempt <= fail_times:
            raise FakeFailure(f"fail_times {fail_times}: attempt {context.attempt} fails")

    async def sleep(context: JobContext, /, seconds: float) -> None:
        check(context)
        await asyncio.sleep(seconds)

    async def fail(context: JobContext, /, **_: object) -> None:
        check(context)
        raise FakeFailure("every attempt fails")

    async def crash(context: JobContext, /, crash_times: int = 1) -> None:
        check(context)
        if context.attempt <= crash_times:
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    functions: dict[str, Callable[..., Any]] = {
        "": succeed,
        "fake.flaky": flaky,
        "fake.sleep": sleep,
        "fake.fail": fail,
        "fake.crash": crash,
    }
    return {name: describe(function, name) for name, function in functions.items()}
