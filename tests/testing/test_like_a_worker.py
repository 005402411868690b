"""What the eager modes of other queues get wrong: here a test and a worker do the same.

The cases are played by `inline`, by `drain` and by a real worker. The jobs and their ledger have to
be the same afterwards, but for ids, times and the names of workers.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from tenure import JobContext, PermanentFailure, RetryAfter, Snooze, Tenure, Unique, testing
from tenure.lifecycle import SETTLED
from tests.support.waiting import wait_until
from tests.support.workers import running_sweeper, running_worker
from tests.testing import handlers
from tests.testing.conftest import Enter

NAMES = re.compile(r"(worker|testing)-[0-9a-f]{16}")
IDS = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIMES = re.compile(r"\d{4}-\d\d-\d\dT[\d:.+]+")

Case = Callable[[Tenure], Callable[[], Any]]
CASES: dict[str, Case] = {}


def case(register: Case) -> Case:
    """Add a case: a function that registers handlers and returns what adds the jobs."""
    CASES[register.__name__] = register
    return register


@case
def celery_4008_an_argument_that_is_no_json(app: Tenure) -> Callable[[], Any]:
    """Eager handlers got the very objects, and production their texts."""

    @app.job
    def pay(order: UUID, wait: timedelta) -> list[str]:
        return [type(order).__name__, type(wait).__name__]

    return lambda: pay.enqueue(UUID(int=7), timedelta(seconds=3))


@case
def celery_4661_a_retry(app: Tenure) -> Callable[[], Any]:
    """`retry` raised in eager mode, and nothing ran again."""

    @app.job(backoff="10ms", max_retries=3)
    def flaky(context: JobContext) -> int:
        if context.attempt < 3:
            raise OSError("not yet")
        return context.attempt

    return flaky.enqueue


@case
def dramatiq_57_an_error(app: Tenure) -> Callable[[], Any]:
    """The stub's worker logged it, and the test passed or hung."""

    @app.job(backoff="10ms", max_retries=2)
    def broken() -> None:
        raise ValueError("broken")

    return broken.enqueue


@case
def sidekiq_a_failure_for_good(app: Tenure) -> Callable[[], Any]:
    @app.job
    def refused() -> None:
        raise PermanentFailure("no such account")

    return refused.enqueue


@case
def oban_an_error_that_is_permanent_by_its_class(app: Tenure) -> Callable[[], Any]:
    @app.job(permanent=(LookupError,))
    def find() -> None:
        raise KeyError("x")

    return find.enqueue


@case
def sidekiq_unique_jobs(app: Tenure) -> Callable[[], Any]:
    """Fake queues took duplicates."""

    @app.job(unique=Unique(by=("doc",)))
    def index(doc: int) -> int:
        return doc

    def add() -> None:
        app.enqueue_many([index.new_job(n) for n in (1, 1, 2)])

    return add


@case
def huey_384_a_delay(app: Tenure) -> Callable[[], Any]:
    """Immediate mode ran scheduled tasks at once, or never."""

    @app.job
    def later() -> str:
        return "late"

    return lambda: later.options(delay="50ms").enqueue()


@case
def huey_the_context(app: Tenure) -> Callable[[], Any]:
    @app.job(queue="mail", max_retries=4, timeout="30s")
    def seen(context: JobContext) -> list[Any]:
        context.progress(1, 2, "half")
        return [context.type, context.queue, context.attempt, context.max_retries, context.token]

    return seen.enqueue


@case
def celery_a_result_that_is_too_large(app: Tenure) -> Callable[[], Any]:
    """Eager results were never encoded."""

    @app.job
    def large() -> str:
        return "x" * 100_000

    return large.enqueue


@case
def a_result_that_is_no_json(app: Tenure) -> Callable[[], Any]:
    @app.job
    def odd() -> object:
        return {1: {2, 3}, "x": complex(1, 2)}

    return odd.enqueue


@case
def dramatiq_a_job_that_is_cancelled_while_it_runs(app: Tenure) -> Callable[[], Any]:
    @app.job
    def cancels(context: JobContext) -> str:
        app.cancel(context.id, actor="me", reason="no more")
        return "ignored"

    return cancels.enqueue


@case
def celery_a_job_that_adds_one(app: Tenure) -> Callable[[], Any]:
    """Nested eager calls ran inside of the first."""

    @app.job
    def second(n: int) -> int:
        return n

    @app.job
    def third() -> None: ...

    @app.job
    def first(context: JobContext) -> None:
        second.enqueue(2)
        context.enqueue(third.new_job())

    return first.enqueue


@case
def celery_5072_an_async_handler(app: Tenure) -> Callable[[], Any]:
    @app.job
    async def waits(context: JobContext) -> int:
        await asyncio.sleep(0)
        return await asyncio.to_thread(lambda: context.attempt)

    return waits.enqueue


@case
def a_payload_that_does_not_fit(app: Tenure) -> Callable[[], Any]:
    @app.job
    def typed(n: int) -> None: ...

    return lambda: app.enqueue("typed", {"n": "one"})


@case
def a_snooze_and_a_time_to_try_again(app: Tenure) -> Callable[[], Any]:
    states = iter([Snooze("10ms"), RetryAfter("10ms")] * 3)

    @app.job(max_retries=5)
    def polite(context: JobContext) -> int:
        if context.token < 3:
            raise next(states)
        return context.attempt

    return polite.enqueue


@case
def a_handler_that_takes_too_long(app: Tenure) -> Callable[[], Any]:
    @app.job(timeout=0.05, max_retries=1)
    def slow() -> None:
        time.sleep(1)  # on a busy machine, too, the timeout is noticed before

    return slow.enqueue


@case
def a_coroutine_that_takes_too_long(app: Tenure) -> Callable[[], Any]:
    @app.job(timeout=0.05, max_retries=1)
    async def asleep() -> None:
        await asyncio.sleep(30)

    return asleep.enqueue


@case
def steps_sleeps_and_checkpoints(app: Tenure) -> Callable[[], Any]:
    @app.job
    def durable(context: JobContext) -> int:
        one = context.step("one", lambda: 1)
        context.sleep("10ms")
        return one + context.step("two", lambda: 2)

    return durable.enqueue


@case
def jobs_that_wait_for_others(app: Tenure) -> Callable[[], Any]:
    @app.job(max_retries=1)
    def part(n: int) -> int:
        if n < 0:
            raise ValueError("negative")
        return n

    @app.job
    def whole(context: JobContext) -> int:
        return sum(context.results())

    def add() -> None:
        app.group([part.new_job(1), part.new_job(2)], then=whole.new_job())
        app.group([part.new_job(-1)], then=whole.new_job())

    return add


@case
def a_signal(app: Tenure) -> Callable[[], Any]:
    @app.job
    def asks(context: JobContext) -> object:
        return context.wait_for_signal("answer")

    @app.job
    def answers(id: str) -> None:
        app.signal(id, "answer", 42)

    def add() -> None:
        asked = asks.enqueue()
        answers.options(delay="50ms").enqueue(asked.id)

    return add


@case
def on_its_own_connection(app: Tenure) -> Callable[[], Any]:
    @app.job
    def completes(context: JobContext) -> None:
        with context.transaction() as transaction:
            transaction.result = "in a transaction"

    return completes.enqueue


@case
def a_child_process(app: Tenure) -> Callable[[], Any]:
    app.core.take_over(handlers.app.core)
    return lambda: app.enqueue_many([handlers.divide.new_job(by) for by in (2, 0)])


def play(app: Tenure) -> None:
    """Add the jobs of all cases."""
    for add in [register(app) for register in CASES.values()]:
        add()


def outcomes(app: Tenure) -> dict[str, str]:
    """Return the jobs of each type and their ledger, without what has to differ."""
    found: dict[str, str] = {}
    for job in sorted(app.find(limit=100), key=lambda job: (job.type, job.payload_json, job.id)):
        counts = (job.attempts, job.token, job.snoozes, job.max_retries)
        ended = (job.event, job.actor, job.reason, job.result_json, job.last_error)
        lines = [repr((job.type, job.queue, job.status, *counts, *ended))]
        lines += [
            repr((one.event, one.attempt, one.token, one.actor, one.detail, one.reason))
            for one in app.history(job.id)
        ]
        text = "\n".join(lines)
        for pattern in (NAMES, IDS, TIMES):
            text = pattern.sub("…", text)
        found[job.type] = f"{found.get(job.type, '')}{text}\n"
    return found


def is_settled(app: Tenure) -> bool:
    return all(job.status in SETTLED for job in app.find(limit=100))


@pytest.fixture(scope="module")
def by_a_worker(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a worker makes of the cases."""
    with Tenure(f"sqlite:///{tmp_path_factory.mktemp('worker')}/jobs.db") as app:
        with running_worker(app), running_sweeper(app):
            play(app)
            wait_until(lambda: is_settled(app), "the jobs of all cases")
        return outcomes(app)


@pytest.mark.parametrize("how", ["drain", "inline"])
def test_a_test_does_what_a_worker_does(
    enter: Enter, nowhere: Tenure, by_a_worker: dict[str, str], how: str
) -> None:
    jobs = enter(nowhere)
    if how == "drain":
        play(nowhere)
    else:
        with suppress(Exception), testing.inline(nowhere):
            play(nowhere)
        assert nowhere.count(status="completed").jobs > len(CASES) / 2
    jobs.drain(until="1m", retries=True, raise_errors=False)
    assert is_settled(nowhere)
    assert outcomes(nowhere) == by_a_worker
    assert len(by_a_worker) >= len(CASES)
