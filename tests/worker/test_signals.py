"""Handlers that wait for signals: kept through suspensions, in time, and typed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from tenure import IllegalTransition, InvalidInput, JobContext, SignalTimeout, Tenure
from tenure.app.signals import by_token, of_token
from tenure.client import Client
from tenure.errors import StoreUnavailable
from tenure.handlers import step_book
from tenure.rules.steps import FindSignal, Load, Record, StepCall
from tenure.store.tables import steps
from tests.support.clock import Clock
from tests.support.http import ServerProcess
from tests.support.outage import lose_one_call
from tests.support.waiting import wait_until
from tests.support.workers import (
    running_sweeper,
    running_worker,
    transitions,
    wait_until_completed,
    wait_until_failed,
)
from tests.worker import children
from tests.worker.children import Approval

DAY = 86_400.0


@pytest.fixture
def app(app_on_each_engine: Tenure) -> Iterator[Tenure]:
    yield app_on_each_engine
    assert app_on_each_engine.verify() == []


def wait_until_suspended(app: Tenure, job_id: str, times: int = 1) -> None:
    wait_until(lambda: app.history(job_id)[-1].event == "suspended", "it is suspended")
    wait_until(lambda: app.get(job_id).snoozes >= times, f"{times} suspensions")


async def order_async(context: JobContext) -> list[Any]:
    first = await context.wait_for_signal_async("approved", type=Approval)
    return [first.by, first.amount, await context.wait_for_signal_async("approved")]


@pytest.mark.parametrize("kind", ["thread", "coroutine", "process"])
def test_a_handler_waits_without_a_slot_and_an_attempt(app: Tenure, kind: str) -> None:
    """One slot: another job runs meanwhile. Each wait takes its signal, whenever it came."""
    other = app.job(name="other", max_retries=1)(lambda: None)
    handler: Any = order_async if kind == "coroutine" else children.order.handler.function
    app.job(name="order", max_retries=1, process=kind == "process")(handler)
    with running_worker(app, concurrency=1):
        job = app.enqueue("order")
        wait_until_suspended(app, job.id)
        wait_until_completed(app, other.enqueue())
        assert app.explain(job.id).text == "It waits for the signal approved."
        assert app.explain(job.id).reason == "suspended"
        app.signal(job, "approved", {"by": "ada", "amount": 3})
        wait_until_suspended(app, job.id, 2)
        app.signal(job, "approved", [1])
        done = wait_until_completed(app, job)
    assert done.result == ["ada", 3, [1]]
    assert (done.attempts, done.snoozes, done.token) == (1, 2, 3)


def test_a_signal_that_does_not_fit_said_nothing_to_do(app: Tenure) -> None:
    """It is on record, so that each attempt met it again; the next wait takes the next signal."""
    said: list[str] = []

    @app.job(max_retries=1)
    def ship(context: JobContext) -> str:
        while True:
            try:
                return context.wait_for_signal("answer", type=Approval).by
            except InvalidInput as error:
                said.append(str(error))

    with running_worker(app):
        job = ship.enqueue()
        app.signal(job, "answer", {"by": 5})
        wait_until_suspended(app, job.id)
        app.signal(job, "answer", {"by": "ada"})
        assert wait_until_completed(app, job).result == "ada"
    assert len(set(said)) == 1
    assert said[0].startswith("$.payload: signal 'answer' does not fit the annotation, ")
    assert said[0].endswith("; catch InvalidInput and wait again, which takes the next signal")


def test_a_signal_that_is_there_costs_nothing(app: Tenure) -> None:
    app.job(name="order", max_retries=1)(children.order.handler.function)
    job = app.enqueue("order")
    app.signal(job, "approved", {"by": "ada"})
    app.signal(job, "approved", None)
    with running_worker(app):
        assert wait_until_completed(app, job).result == ["ada", 0, None]
    assert transitions(app, job) == ["enqueued", "claimed", "completed"]


def test_a_wait_that_times_out_takes_no_signal(app: Tenure, clock: Clock) -> None:
    """Wait, remind, wait again: the one signal that comes late is the answer to the second wait.

    What timed out once does so in every later attempt, although the signal is there now.
    """
    runs: list[str] = []

    def order(context: JobContext) -> str:
        try:
            return str(context.wait_for_signal("approved", "7d"))
        except SignalTimeout as late:
            runs.append(late.name)
        answer = context.wait_for_signal("approved", timeout="2d")
        if context.attempt == 1:
            raise ValueError("again")
        return f"{answer} late"

    app.job(name="order", max_retries=2, backoff=0)(order)
    with running_worker(app), running_sweeper(app):
        job = app.enqueue("order")
        wait_until_suspended(app, job.id)
        until = (clock.now.replace(microsecond=0)).strftime("%Y-%m-")
        assert f"until {until}" in app.explain(job.id).text
        clock.advance(7 * DAY - 60)
        assert app.core.store.time_out().result() == []
        clock.advance(60)
        wait_until_suspended(app, job.id, 2)
        assert transitions(app, job)[-3:] == ["unblocked", "claimed", "suspended"]
        app.signal(job, "approved", "yes")
        done = wait_until_completed(app, job)
    assert done.result == "yes late"
    assert (done.attempts, runs) == (2, ["approved"] * 3)


async def order_in_time_async(context: JobContext) -> list[str]:
    try:
        return ["in time", await context.wait_for_signal_async("approved", "1h")]
    except SignalTimeout:
        return ["too late", await context.wait_for_signal_async("approved")]


@pytest.mark.parametrize("kind", ["thread", "coroutine", "process", "http"])
def test_what_was_sent_after_the_deadline_does_not_count(
    app: Tenure, clock: Clock, kind: str
) -> None:
    """No worker saw it pass: a link that was used four minutes late was taken for an approval.

    Nor is a signal lost that was sent in time, however late a worker comes.
    """
    plain: Any = children.order_in_time.handler.function
    handler = order_in_time_async if kind == "coroutine" else plain
    app.job(name="order", max_retries=1, process=kind == "process")(handler)
    sent = {3_599.999: "in time", 3_600.0: "too late", 3_840.0: "too late"}
    jobs = {seconds: app.enqueue("order") for seconds in sent}
    with ExitStack() as stack:
        client = None
        if kind == "http":
            served = stack.enter_context(ServerProcess(app.database))
            client = stack.enter_context(Client(served.url))
        with running_worker(app, client):
            for job in jobs.values():
                wait_until_suspended(app, job.id)
        started = clock.now
        for seconds, job in jobs.items():
            clock.set(started + timedelta(seconds=seconds))
            app.signal(job, "approved", "yes")
        clock.advance(DAY)
        with running_worker(app, client):
            for seconds, job in jobs.items():
                assert wait_until_completed(app, job).result == [sent[seconds], "yes"]


def test_a_wait_does_not_count_those_for_a_longer_name(app: Tenure) -> None:
    """The wait for `paid` was taken for the second one after a wait for `paid:eur`."""

    @app.job(max_retries=1)
    def order(context: JobContext) -> list[Any]:
        return [context.wait_for_signal(name) for name in ("paid:eur", "paid", "paid:1", "paid")]

    job = order.enqueue()
    for number, name in enumerate(("paid:eur", "paid", "paid:1", "paid")):
        app.signal(job, name, number)
    with running_worker(app):
        assert wait_until_completed(app, job).result == [0, 1, 2, 3]
    assert transitions(app, job) == ["enqueued", "claimed", "completed"]


@pytest.mark.parametrize("lost", [FindSignal, Record])
def test_a_wait_that_an_outage_ended_is_made_again(
    app: Tenure, monkeypatch: pytest.MonkeyPatch, lost: type[StepCall]
) -> None:
    """It was taken for the second wait, for a second signal."""
    lose_one_call(monkeypatch, lost)

    @app.job(max_retries=1)
    def order(context: JobContext) -> Any:
        if context.token == 1:
            with pytest.raises(StoreUnavailable):
                context.wait_for_signal("paid", timeout="1m")
        return context.wait_for_signal("paid", timeout="1m")

    with running_worker(app):
        job = order.enqueue()
        wait_until_suspended(app, job.id)
        app.signal(job, "paid", "yes")
        assert wait_until_completed(app, job).result == "yes"


def test_an_outage_takes_no_time_from_a_wait(
    app: Tenure, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the 10 seconds that were left, the outage had taken 20, before the time was read."""
    answer, passed = steps.answer, [0.0]

    def answer_after_an_outage(*args: Any, call: StepCall, **kwargs: Any) -> Any:
        if isinstance(call, Load) and not passed[0]:
            passed[0] = 20.0
            raise StoreUnavailable("the database failed")
        return answer(*args, call=call, **kwargs)

    monkeypatch.setattr(steps, "answer", answer_after_an_outage)
    watch = SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0])
    monkeypatch.setattr(step_book, "time", watch)
    app.job(name="hurried", max_retries=1)(hurried)
    with running_worker(app):
        job = app.enqueue("hurried")
        wait_until_suspended(app, job.id)
        clock.advance(50)
        app.unblock(job.id)
        wait_until_suspended(app, job.id, 2)
        app.signal(job, "approved")
        wait_until_completed(app, job)
    assert passed == [20.0]


def test_a_timeout_that_nobody_catches_fails_the_attempt(app: Tenure, clock: Clock) -> None:
    app.job(name="hurried", max_retries=1)(hurried)
    with running_worker(app), running_sweeper(app):
        job = app.enqueue("hurried")
        wait_until_suspended(app, job.id)
        clock.advance(61)
        error = wait_until_failed(app, job)
    assert "the signal approved did not come in time" in error


def hurried(context: JobContext) -> None:
    context.wait_for_signal("approved", timeout=60)


def test_what_a_wait_refuses(app: Tenure) -> None:
    def order(context: JobContext, name: str) -> Any:
        return context.wait_for_signal(name, type=Approval)

    app.job(name="order", max_retries=1)(order)
    with running_worker(app):
        job = app.enqueue("order", {"name": "approved"})
        app.signal(job, "approved", {"amount": 3})
        assert "signal 'approved' does not fit" in wait_until_failed(app, job)
        assert "not a name for a signal" in wait_until_failed(
            app, app.enqueue("order", {"name": "a b"})
        )
    with pytest.raises(InvalidInput, match="only a worker's attempt"):
        order(JobContext("1", "order", "default", 1, 1, 1, None), "approved")


@pytest.mark.parametrize("kind", ["thread", "coroutine", "process"])
def test_a_token_for_somebody_outside(app: Tenure, kind: str) -> None:
    """Made in the step that sends it, so that the token that was sent is the one that counts."""
    sent: list[str] = []

    def ask(context: JobContext) -> str:
        token = context.signal_token("answer", {"ok": True}, label="Yes ✓")
        sent.append(token)
        return token

    def order(context: JobContext) -> Any:
        context.step("ask", ask, context)
        return context.wait_for_signal("answer")

    async def ask_async(context: JobContext) -> str:
        sent.append(await context.signal_token_async("answer", {"ok": True}, label="Yes ✓"))
        return sent[-1]

    async def order_async(context: JobContext) -> Any:
        await context.step_async("ask", ask_async, context)
        return await context.wait_for_signal_async("answer")

    handler: Any = {"thread": order, "coroutine": order_async}.get(
        kind, children.ask.handler.function
    )
    app.job(name="order", max_retries=1, process=kind == "process")(handler)
    with running_worker(app):
        job = app.enqueue("order")
        wait_until_suspended(app, job.id)
        kept = steps.of(app.core.store.read, job.id).steps
        (step,) = [one for one in kept if one.name == "ask"]
        assert of_token(app.core, step.result)[1].label == "Yes ✓"
        assert by_token(app.core, step.result, None).name == "answer"
        assert wait_until_completed(app, job).result == {"ok": True}
    assert len(sent) == (0 if kind == "process" else 1)


def test_what_a_label_may_be(app: Tenure) -> None:
    @app.job(max_retries=1)
    def order(context: JobContext) -> None:
        for label in ("", "a\nb", "\x7f", "x" * 101, "\ud800", 7):
            with pytest.raises(InvalidInput, match=r"^label: "):
                context.signal_token("answer", label=label)  # type: ignore[arg-type]

    with running_worker(app):
        wait_until_completed(app, order.enqueue())


def test_a_worker_on_another_machine(app: Tenure, clock: Clock) -> None:
    """Over HTTP it waits, times out and makes tokens as beside the database."""

    def order(context: JobContext) -> Any:
        try:
            context.wait_for_signal("early", timeout="1d")
        except SignalTimeout:
            context.step("ask", context.signal_token, "answer", {"ok": True}, label="Yes ✓")
        return context.wait_for_signal("answer")

    app.job(name="order", max_retries=1)(order)
    with ServerProcess(app.database) as served, Client(served.url) as client:
        with running_worker(app, client):
            job = app.enqueue("order")
            wait_until_suspended(app, job.id)
            client.signal(job.id, "other", {"a": [1]}, key="k")
            assert client.signal(job.id, "other", {"a": [1]}, key="k").payload == {"a": [1]}
            clock.advance(DAY + 1)
            wait_until_suspended(app, job.id, 2)
            kept = steps.of(app.core.store.read, job.id).steps
            (token,) = [one.result for one in kept if one.name == "ask"]
            assert of_token(app.core, token)[1].label == "Yes ✓"
            by_token(app.core, token, None)
            assert wait_until_completed(app, job).result == {"ok": True}
        with pytest.raises(IllegalTransition):
            client.signal(job.id, "other")
