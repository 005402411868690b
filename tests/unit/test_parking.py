"""What becomes of the exception by which a handler parks, and of generators that wait."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

from tenure import Snooze
from tenure.handlers.results import failure
from tenure.rules.reports import Parked, Wait
from tenure.rules.steps import Waiting, awaited, waited

PARKED = Parked("sleep", delay=60.0)
WAIT = Wait("approved", 1)


def test_a_parked_handler_has_not_failed() -> None:
    waits, longer = Parked("signal", wait=WAIT), Parked("sleep", delay=90.0)
    group = BaseExceptionGroup("tasks", [waits, longer, PARKED])  # of an asyncio.TaskGroup
    for error in (PARKED, group):
        ending = failure(error)
        assert (ending.snoozed, ending.delay, ending.wait) == (True, 60.0, None)
    assert failure(waits).wait == WAIT


def test_an_error_beside_a_parked_task_decides() -> None:
    failed = failure(BaseExceptionGroup("tasks", [PARKED, ValueError("no")]))
    assert not failed.snoozed
    assert failed.delay is None
    assert failed.retryable  # although a handler may name what it retries on
    assert failure(BaseExceptionGroup("tasks", [PARKED, Snooze(5)])).delay == 5


def test_threads_and_coroutines_wait_for_the_same_things() -> None:
    def steps() -> Waiting[list[Any]]:
        kept, broken = Future[int](), Future[int]()
        kept.set_result(1)
        broken.set_exception(ValueError("no"))
        yield kept
        yield 0.001
        yield broken
        return [kept.result(), type(broken.exception())]

    assert waited(steps()) == asyncio.run(awaited(steps())) == [1, ValueError]


def test_what_waits_ends_with_the_handler_that_is_cancelled() -> None:
    """It ended once its exception was forgotten, so its name was used where that was caught."""
    ended: list[str] = []

    def steps() -> Waiting[None]:
        try:
            yield Future()
        finally:
            ended.append("wait")

    async def handler() -> None:
        try:
            await asyncio.wait_for(awaited(steps()), 0.01)
        except TimeoutError:
            assert ended == ["wait"]

    asyncio.run(handler())
    assert ended
