"""Steps, sleep and checkpoints in workers: what a job remembers across its attempts."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from tenure import JobContext, Tenure
from tenure.errors import DuplicateStep, InvalidInput, LeaseLost, StoreUnavailable
from tenure.handlers import step_book
from tenure.rules import steps
from tenure.worker import note_writer
from tests.support.clock import Clock
from tests.support.effects import effects, make_effects
from tests.support.outage import lose_one_call
from tests.support.raw_sql import RawSql
from tests.support.waiting import wait_until
from tests.support.workers import (
    running_worker,
    transitions,
    wait_until_completed,
    wait_until_failed,
)
from tests.worker import children

Calls = list[Any]


def charge(amount: int, calls: Calls) -> tuple[int, str]:
    calls.append(amount)
    return amount, "eur"


@dataclass
class Price:
    cents: int

    @classmethod
    def of(cls, text: str) -> Self:
        return cls(int(text))

    def doubled(self) -> Self:
        return type(self)(self.cents * 2)


def price_of(order: int) -> Decimal:
    return Decimal(order)


@pytest.mark.parametrize("kind", ["thread", "coroutine"])
def test_a_step_is_done_once_in_all_attempts(app_on_each_engine: Tenure, kind: str) -> None:
    app = app_on_each_engine
    calls: Calls = []
    seen: Calls = []

    def order(context: JobContext) -> None:
        seen.extend(context.step(f"charge:{n}", charge, n, calls) for n in range(2))
        seen.append(context.step("nothing", lambda: None))
        if context.attempt < 3:
            raise ValueError("later")

    async def order_async(context: JobContext) -> None:
        for n in range(2):
            thread = context.step_async(f"charge:{n}", asyncio.to_thread, charge, n, calls)
            seen.append(await thread)
        seen.append(await context.step_async("nothing", asyncio.sleep, 0))
        if context.attempt < 3:
            raise ValueError("later")

    app.job(name="order", backoff=0)(order_async if kind == "coroutine" else order)
    with running_worker(app):
        job = wait_until_completed(app, app.enqueue("order"))
    assert calls == [0, 1]
    assert len(seen) == 9
    assert seen[:3] == seen[3:6] == seen[6:]
    assert job.attempts == 3
    steps = [(one.name, one.token, one.result) for one in app.steps(job.id).steps]
    assert steps == [("charge:0", 1, [0, "eur"]), ("charge:1", 1, [1, "eur"]), ("nothing", 1, None)]


@pytest.mark.parametrize("type", ["order_in_steps", "order_in_steps_on_the_loop"])
def test_steps_in_a_child_process(
    app_on_each_engine: Tenure,
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    type: str,
) -> None:
    app = app_on_each_engine
    monkeypatch.setenv("TENURE_TEST_CALLS", str(tmp_path / "calls"))
    app.job(process=True, backoff=0)(getattr(children, type).handler.function)
    job = app.enqueue(type)
    with running_worker(app):
        wait_until(lambda: "snoozed" in transitions(app, job), "the job to sleep")
    clock.advance(3600)
    with running_worker(app):
        end = wait_until_completed(app, job)
    assert end.result == ["Decimal('0')", "Decimal('1')", "3"]
    assert (tmp_path / "calls").read_text().split() == ["0", "1"]
    assert (end.attempts, end.token, end.snoozes) == (3, 4, 1)


@pytest.mark.parametrize("kind", ["thread", "coroutine"])
def test_sleep_takes_no_slot_and_no_attempt(
    app_on_each_engine: Tenure, clock: Clock, kind: str
) -> None:
    app = app_on_each_engine
    passed: Calls = []

    def nap(context: JobContext) -> str:
        try:
            passed.append(context.step("first", lambda: "first"))
            context.sleep("2d")
            passed.append("second")
            context.sleep(60)
            return "awake"
        finally:
            passed.append("finally")

    async def nap_async(context: JobContext) -> str:
        try:
            passed.append(await context.step_async("first", asyncio.sleep, 0, "first"))
            await context.sleep_async("2d")
            passed.append("second")
            await context.sleep_async(60)
            return "awake"
        finally:
            passed.append("finally")

    app.job(name="nap", retry_on=(OSError,))(nap_async if kind == "coroutine" else nap)
    job = app.enqueue("nap", max_retries=1)
    for snoozes, seconds in ((1, 2 * 86_400), (2, 60)):
        began = clock.now
        with running_worker(app, concurrency=1):
            wait_until(lambda n=snoozes: app.get(job.id).snoozes == n, "the job to sleep")
            asleep = app.get(job.id)
        assert (asleep.status, asleep.attempts) == ("pending", 0)
        assert (asleep.run_at - began).total_seconds() == pytest.approx(seconds, abs=0.001)
        clock.advance(seconds)
    with running_worker(app):
        end = wait_until_completed(app, job)
    assert (end.result, end.attempts, end.token) == ("awake", 1, 3)
    assert passed == [
        "first",
        "finally",
        "first",
        "second",
        "finally",
        "first",
        "second",
        "finally",
    ]


@pytest.mark.parametrize("kind", ["thread", "coroutine"])
def test_a_sleep_with_a_name_keeps_its_time_when_a_deploy_removes_another(
    app_on_each_engine: Tenure, clock: Clock, kind: str
) -> None:
    """By its number it was the one that was removed, whose time is over: it did not sleep on."""
    app = app_on_each_engine
    sleeps = {"trial": "7d", "cooling": "2d"}

    def nap(context: JobContext) -> None:
        for name, length in sleeps.items():
            context.sleep(length, name=name)

    async def nap_async(context: JobContext) -> None:
        for name, length in sleeps.items():
            await context.sleep_async(length, name=name)

    app.job(name="nap", max_retries=1)(nap_async if kind == "coroutine" else nap)
    job = app.enqueue("nap")
    for snoozes, seconds in ((1, 7 * 86_400), (2, 86_400), (3, 86_400)):
        with running_worker(app):
            wait_until(lambda n=snoozes: app.get(job.id).snoozes == n, "the job to sleep")
        clock.advance(seconds)
        if snoozes == 2:
            sleeps.pop("trial")
            app.amend(job.id, delay=0)
    with running_worker(app):
        wait_until_completed(app, job)
    assert [step.name for step in app.steps(job.id).steps] == ["sleep:trial", "sleep:cooling"]


def test_sleeps_with_and_without_a_name(app: Tenure) -> None:
    """Those without one have the same numbers whatever others are called."""

    @app.job(max_retries=1)
    def nap(context: JobContext) -> None:
        context.sleep(0)
        context.sleep(0, name="n" * 100)
        context.sleep(0)
        with pytest.raises(DuplicateStep, match="sleep:n"):
            context.sleep(0, name="n" * 100)
        for name in ("7", "a b", "", "n" * 101, 7):
            with pytest.raises(InvalidInput, match=r"^name: "):
                context.sleep(0, name=name)  # type: ignore[arg-type]
        context.sleep(0, name="day:7")

    with running_worker(app):
        job = wait_until_completed(app, nap.enqueue())
    names = [step.name for step in app.steps(job.id).steps]
    assert names == ["sleep:1", f"sleep:{'n' * 100}", "sleep:2", "sleep:day:7"]
    nap(JobContext("1", "nap", "default", 1, 1, 1, None))


def test_an_attempt_that_died_in_its_sleep_sleeps_the_rest(
    app_on_each_engine: Tenure, clock: Clock
) -> None:
    """The step that keeps the time is there, and the worker died before it could say so."""
    app = app_on_each_engine

    @app.job(backoff=0)
    def nap(context: JobContext) -> None:
        try:
            context.sleep(600)
        except BaseException:
            if context.attempt == 1:
                raise ValueError("died") from None
            raise

    job = nap.enqueue()
    with running_worker(app):
        wait_until(lambda: "snoozed" in transitions(app, job), "the second attempt to sleep")
    assert (app.get(job.id).run_at - clock.now).total_seconds() == pytest.approx(600, abs=2)
    clock.advance(400)  # and the job is amended to run at once
    app.amend(job.id, delay=0)
    with running_worker(app):
        wait_until(lambda: app.get(job.id).snoozes == 2, "the third run to sleep")
    assert (app.get(job.id).run_at - clock.now).total_seconds() == pytest.approx(200, abs=5)
    clock.advance(200)
    with running_worker(app):
        wait_until_completed(app, job)


def test_a_short_sleep_stays_where_it_is(app: Tenure) -> None:
    @app.job
    def blink(context: JobContext) -> None:
        context.sleep(0.05)

    with running_worker(app):
        job = wait_until_completed(app, blink.enqueue())
    assert transitions(app, job) == ["enqueued", "claimed", "completed"]
    assert [step.name for step in app.steps(job.id).steps] == ["sleep:1"]


def bare(context: JobContext) -> str:
    try:
        context.sleep(60)
    except:  # noqa: E722
        return "done"
    return "never"


def suppressed(context: JobContext) -> str:
    with contextlib.suppress(BaseException):
        context.sleep(60)
    return "done"


async def bare_on_the_loop(context: JobContext) -> str:
    try:
        await context.sleep_async(60)
    except BaseException:
        return "done"
    return "never"


def completes_all_the_same(context: JobContext) -> None:
    with contextlib.suppress(BaseException):
        context.sleep(60)
    with context.transaction():
        pass


FORMS = (
    *(bare, suppressed, bare_on_the_loop, completes_all_the_same),
    children.swallow_parking.handler.function,
)


def test_a_handler_that_keeps_its_parking_fails_and_says_so(app: Tenure) -> None:
    for form in FORMS:
        app.job(name=form.__name__, max_retries=1, process=form is FORMS[-1])(form)
    with running_worker(app):
        for form in FORMS:
            error = wait_until_failed(app, app.enqueue(form.__name__))
            assert "parked (it sleeps for" in error, form
            assert "let BaseException pass" in error


def test_what_comes_after_a_parking_that_was_kept_parks_again(app: Tenure) -> None:
    calls: Calls = []

    @app.job
    def stubborn(context: JobContext) -> None:
        with contextlib.suppress(BaseException):
            context.sleep(60)
        context.step("charge", charge, 1, calls)

    with running_worker(app):
        job = stubborn.enqueue()
        wait_until(lambda: "snoozed" in transitions(app, job), "the job to sleep")
    assert calls == []


def test_a_task_group_parks_as_a_whole(app: Tenure) -> None:
    @app.job
    async def several(context: JobContext) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(60))
            group.create_task(context.sleep_async("1h"))

    with running_worker(app):
        job = several.enqueue()
        wait_until(lambda: "snoozed" in transitions(app, job), "the job to sleep")


def test_a_sleep_too_many_is_a_failure(app: Tenure, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 10,001st: the number itself is tested where the table of transitions is."""
    from tenure import lifecycle

    monkeypatch.setattr(lifecycle, "MAX_SNOOZES", 3)
    monkeypatch.setattr(step_book, "SLEEP_HERE_SECONDS", 0.0)

    @app.job(max_retries=1)
    def restless(context: JobContext) -> None:
        for _ in range(5):
            context.sleep(0.01)

    with running_worker(app):
        assert "it was snoozed or suspended 3 times" in wait_until_failed(app, restless.enqueue())


# --- checkpoints


@pytest.mark.parametrize("flush", [False, True])
def test_a_checkpoint_is_where_the_next_attempt_goes_on(
    app_on_each_engine: Tenure, monkeypatch: pytest.MonkeyPatch, flush: bool
) -> None:
    app = app_on_each_engine
    monkeypatch.setattr(note_writer, "PAUSE_SECONDS", 60)
    asked: Calls = []
    ask = app.core.ask

    def count(*call: Any) -> Any:
        asked.append(call)
        return ask(*call)

    monkeypatch.setattr(app.core, "ask", count)

    @app.job(backoff=0)
    def count_up(context: JobContext) -> list[int]:
        start = context.state(default=0)
        for n in range(start, start + 100):
            context.checkpoint(n, flush=flush and n == start)
        if flush:
            assert app.steps(context.id).state == start
        if context.attempt == 1:
            raise ValueError("no")
        return [start, context.state()]

    with running_worker(app):
        job = wait_until_completed(app, count_up.enqueue())
    assert job.result == [99, 198]
    assert app.steps(job.id).state == 198
    assert len(asked) <= 4 + 2 * flush  # two attempts: one write at most of each, one load


def test_a_checkpoint_is_written_without_the_end_of_the_attempt(
    app_on_each_engine: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(note_writer, "PAUSE_SECONDS", 0.05)
    app, release = app_on_each_engine, threading.Event()

    @app.job
    def busy(context: JobContext) -> None:
        context.checkpoint(1)
        wait_until(lambda: app.steps(context.id).state == 1, "the first to be stored")
        context.checkpoint(2)
        release.wait(30)

    with running_worker(app):
        job = busy.enqueue()
        wait_until(lambda: app.steps(job.id).state == 2, "the second to be stored")
        release.set()
        wait_until_completed(app, job)


# --- together with the writes of the handler


def test_a_step_and_its_writes_are_one(app_on_each_engine: Tenure) -> None:
    app = app_on_each_engine
    make_effects(app.database)

    def insert(connection: Any, job: str) -> int:
        connection.execute(f"INSERT INTO effect VALUES ('{job}')")
        return 1

    def insert_and_fail(connection: Any, job: str) -> int:
        insert(connection, job)
        raise ValueError("no")

    @app.job(backoff=0)
    def debit(context: JobContext) -> list[int]:
        if context.attempt == 1:
            context.step_within("debit", insert_and_fail, context.id)
        found = [context.step_within("debit", insert, context.id)]
        if context.attempt == 2:
            raise ValueError("no")
        return found

    with running_worker(app):
        job = wait_until_completed(app, debit.enqueue())
    assert (job.result, job.attempts) == ([1], 3)
    assert effects(app.database) == {job.id: 1}
    assert [(step.name, step.token) for step in app.steps(job.id).steps] == [("debit", 2)]


def test_a_step_of_the_other_kind_is_done_once_at_most_and_says_what_to_write(app: Tenure) -> None:
    runs: list[str] = []

    async def later() -> None:
        runs.append("later")

    wrong: Any = (later, runs.append)

    @app.job(backoff=0)
    def plain(context: JobContext) -> None:
        context.step("ask", wrong[0])

    @app.job(backoff=0)
    async def coroutine(context: JobContext) -> None:
        await context.step_async("charge", wrong[1], "charge")

    with running_worker(app):
        assert "is a coroutine, which is not run: await step_async" in wait_until_failed(
            app, plain.enqueue()
        )
        assert "asyncio.to_thread, function" in wait_until_failed(app, coroutine.enqueue())
    assert runs == ["charge"]


def test_a_step_on_a_thread_returned_what_its_type_did_not_say(app: Tenure) -> None:
    """The annotation of `asyncio.to_thread` was read, which has none, and not the function's."""
    seen: Calls = []

    @app.job(backoff=0)
    async def price(context: JobContext) -> None:
        seen.append(await context.step_async("price", asyncio.to_thread, price_of, 7))
        seen.append(await context.step_async("later", asyncio.to_thread, partial(price_of, 8)))
        if context.attempt == 1:
            raise ConnectionError

    with running_worker(app):
        wait_until_completed(app, price.enqueue())
    assert seen == [Decimal(7), Decimal(8)] * 2
    assert {type(one) for one in seen} == {Decimal}


def test_a_class_as_a_step_returned_a_dict(app: Tenure) -> None:
    """And a method that returns Self failed each attempt, after its effect."""
    seen: Calls = []

    @app.job(max_retries=1)
    def price(context: JobContext) -> None:
        seen.append(context.step("class", Price, 7))
        seen.append(context.step("class_method", Price.of, "8"))
        seen.append(context.step("method", Price(8).doubled))

    with running_worker(app):
        wait_until_completed(app, price.enqueue())
    assert seen == [Price(7), Price(8), Price(16)]


def test_a_step_that_no_longer_fits_said_nothing_to_do(app: Tenure) -> None:
    """After a deploy that changes what a step returns, its result on record is the old one."""

    def measured() -> str:
        return "3 m"

    def measured_now() -> int:
        return 3

    @app.job(backoff=0, max_retries=2)
    def build(context: JobContext) -> int:
        if context.attempt == 1:
            context.step("measure", measured)
            raise ConnectionError
        return context.step("measure", measured_now)

    with running_worker(app):
        error = wait_until_failed(app, build.enqueue())
    assert "step 'measure' does not fit the annotation, <class 'int'>: " in error
    assert (
        "let the annotation accept what is on record, or give the step another name, "
        "by which it runs again" in error
    )


def test_names_are_used_once(app: Tenure) -> None:
    calls: Calls = []

    def boom() -> None:
        calls.append("boom")
        raise LookupError

    @app.job(max_retries=1)
    def twice(context: JobContext) -> None:
        for _ in range(2):  # one that failed may be tried again
            with contextlib.suppress(LookupError):
                context.step("boom", boom)
        context.step("a", charge, 1, calls)
        with pytest.raises(DuplicateStep):
            context.step("a", charge, 1, calls)
        with pytest.raises(InvalidInput, match="names with sleep:"):
            context.step("sleep:1", charge, 2, calls)

    with running_worker(app):
        wait_until_completed(app, twice.enqueue())
    assert calls == ["boom", "boom", 1]


@pytest.mark.parametrize("lost", [steps.Load, steps.Record])
def test_what_an_outage_ended_can_be_tried_again(
    app_on_each_engine: Tenure,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    lost: type[steps.StepCall],
) -> None:
    """A step was refused as done twice; a sleep became the second one, and was slept again."""
    app = app_on_each_engine
    calls: Calls = []
    lose_one_call(monkeypatch, lost)

    @app.job(max_retries=2, backoff=0)
    def order(context: JobContext) -> None:
        if lost is steps.Load:  # the first attempt has nothing to read
            if context.attempt == 1:
                raise ValueError("again")
            if context.token == 2:
                with pytest.raises(StoreUnavailable):
                    context.step("charge", charge, 1, calls)
        elif context.token == 1:
            with pytest.raises(StoreUnavailable):
                context.sleep("1h")
        context.step("charge", charge, 1, calls)
        context.sleep("1h")

    with running_worker(app):
        job = order.enqueue()
        wait_until(lambda: app.get(job.id).snoozes, "it sleeps")
        clock.advance(3600)
        wait_until_completed(app, job)
    assert calls == [1]
    assert [step.name for step in app.steps(job.id).steps] == ["charge", "sleep:1"]


def test_steps_are_bounded_before_they_are_done(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the size of a result, which nobody knows before: to do it again would not help."""
    monkeypatch.setattr(step_book, "MAX_STEPS", 2)
    monkeypatch.setattr(step_book, "MAX_STEPS_BYTES", 20)
    calls: Calls = []

    @app.job(max_retries=1)
    def many(context: JobContext) -> None:
        for n in range(3):
            context.step(f"charge:{n}", charge, n, calls)

    @app.job(max_retries=5)
    def large(context: JobContext) -> None:
        for _ in range(2):
            context.step(f"large:{len(calls)}", lambda: calls.append(0) or "x" * 10)

    with running_worker(app):
        assert "2 steps on record, the limit" in wait_until_failed(app, many.enqueue())
        assert calls == [0, 1]
        job = large.enqueue()
        assert "have 20 bytes at most" in wait_until_failed(app, job)
    assert len(calls) == 4
    assert (app.get(job.id).attempts, len(app.steps(job.id).steps)) == (1, 1)


def test_who_has_lost_the_job_writes_nothing_in_a_step(app_on_each_engine: Tenure) -> None:
    app = app_on_each_engine
    make_effects(app.database)
    ends: Calls = []

    def insert(connection: Any, job: str) -> None:
        connection.execute(f"INSERT INTO effect VALUES ('{job}')")

    @app.job
    def debit(context: JobContext) -> None:
        app.cancel(context.id)
        try:
            ends.append(context.step_within("debit", insert, context.id))
        except LeaseLost:
            ends.append("lost")

    with running_worker(app):
        job = debit.enqueue()
        wait_until(lambda: ends, "the step to end")
    assert ends == ["lost"]
    assert effects(app.database) == {}
    assert app.steps(job.id).steps == ()
    assert app.get(job.id).status == "cancelled"


@pytest.mark.each_engine
def test_a_step_is_asked_for_again_while_the_job_is_locked(
    app_on_each_engine: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_on_each_engine
    if app.database.startswith("sqlite"):
        pytest.skip("there a transaction locks all jobs, and all wait for it")
    calls: Calls = []
    with contextlib.closing(RawSql(app.database)) as other:

        def unlock(seconds: float) -> None:
            calls.append(seconds)
            if len(calls) == 4:
                other.run("ROLLBACK")

        monkeypatch.setattr(steps, "time", SimpleNamespace(sleep=unlock))

        @app.job
        def order(context: JobContext) -> None:
            other.run("BEGIN")
            other.run("SELECT 1 FROM {job} WHERE id = ? FOR UPDATE", context.id)
            context.step("charge", charge, 1, calls)

        with running_worker(app):
            job = wait_until_completed(app, order.enqueue())
    assert calls[:4] == [1, *[step_book.ASK_AGAIN_SECONDS] * 3]
    assert set(calls[4:]) <= {step_book.ASK_AGAIN_SECONDS}  # a heartbeat locks the job, too
    assert [(step.name, step.token) for step in app.steps(job.id).steps] == [("charge", 1)]


@pytest.mark.each_engine
def test_a_step_meets_the_lock_of_its_own_handler(
    app_on_each_engine: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for a transaction that waits for it."""
    app = app_on_each_engine
    monkeypatch.setattr(step_book, "ASK_SECONDS", 3_600.0)  # it is not asked again
    calls: Calls = []

    @app.job(max_retries=1)
    def stuck(context: JobContext) -> None:
        with context.transaction() as own:
            context.hold(own.connection)
            context.step("charge", charge, 1, calls)

    @app.job(max_retries=1)
    def flushed(context: JobContext) -> None:
        with context.transaction() as own:
            context.hold(own.connection)
            context.checkpoint(1, flush=True)

    @app.job(max_retries=1)
    def nested(context: JobContext) -> None:
        def outer(connection: Any) -> None:
            context.hold(connection)
            context.step_within("inner", lambda connection: None)

        context.step_within("outer", outer)

    @app.job(max_retries=1)
    def freed(context: JobContext) -> None:
        with suppress(InvalidInput), context.transaction() as own:
            context.hold(own.connection)
            context.step("charge", charge, 1, calls)
        context.step("charge", charge, 1, calls)

    with running_worker(app):
        for handler in (stuck, flushed, nested):
            assert "use `step_within`" in wait_until_failed(app, handler.enqueue())
        assert calls == [], "nothing was done that cannot be recorded"
        wait_until_completed(app, freed.enqueue())
    assert len(calls) == 1


def test_a_step_does_not_wait_for_another_connection_of_its_handler(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_book, "ASK_SECONDS", 3_600.0)
    monkeypatch.setattr(step_book, "HELD_SECONDS", 0.0)
    file = app.database.removeprefix("sqlite:///")

    @app.job(max_retries=1)
    def stuck(context: JobContext) -> None:
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as own:
            own.execute("BEGIN IMMEDIATE")
            context.step("charge", charge, 1, [])

    with running_worker(app):
        error = wait_until_failed(app, stuck.enqueue())
    assert "a write transaction of this program holds the file" in error
    assert "`context.step_within` for steps" in error
