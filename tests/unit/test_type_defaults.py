"""The options of types whose handlers are elsewhere: when the database is asked, and how often."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tenure import StoreUnavailable, Tenure
from tenure.app.type_defaults import STALE_SECONDS, OptionsByType, TypeDefaults
from tenure.rules.jobs import TypeOptions

MAIL = TypeOptions(queue="mail")


def answered(types: OptionsByType) -> Future[OptionsByType]:
    future: Future[OptionsByType] = Future()
    future.set_result(types)
    return future


class Elsewhere:
    """A database that knows some types, a clock, and what is read through them."""

    def __init__(self, handlers: Tenure | None = None) -> None:
        self.now = 100.0
        self.types: Mapping[str, TypeOptions] | None = {"send": MAIL}
        self.asked = 0
        app = handlers or Tenure("sqlite:///never-opened.db")
        self.defaults = TypeDefaults(app.core.handlers, self.ask, lambda: self.now)

    def ask(self, _: bool = False) -> Future[OptionsByType]:
        self.asked += 1
        if self.types is None:
            raise StoreUnavailable("away")
        return answered(self.types)


def test_many_enqueues_ask_once_in_five_seconds() -> None:
    elsewhere = Elsewhere()
    for _ in range(1_000):
        assert elsewhere.defaults.of("send") is MAIL
        assert elsewhere.defaults.of("unknown") == TypeOptions()
    assert elsewhere.asked == 1

    elsewhere.types = {"send": TypeOptions(queue="letters")}
    elsewhere.now += STALE_SECONDS - 0.001
    assert elsewhere.defaults.of("send").queue == "mail"
    elsewhere.now += 0.001
    assert elsewhere.defaults.of("send").queue == "letters"
    assert elsewhere.asked == 2
    assert STALE_SECONDS <= 5


def test_who_has_the_handler_never_asks_and_its_options_win() -> None:
    app = Tenure("sqlite:///never-opened.db")
    app.job(name="send", queue="own")(lambda to: None)
    elsewhere = Elsewhere(app)

    assert elsewhere.defaults.of("send").queue == "own"
    asyncio.run(elsewhere.defaults.look_up(["send"]))
    assert elsewhere.asked == 0


def test_a_coroutine_awaits_the_answer() -> None:
    elsewhere = Elsewhere()
    answer: Future[OptionsByType] = Future()
    app = Tenure("sqlite:///never-opened.db")
    defaults = TypeDefaults(app.core.handlers, lambda _: answer, lambda: elsewhere.now)

    async def enqueue() -> TypeOptions:
        asking = asyncio.create_task(defaults.look_up(["send"]))
        await asyncio.sleep(0)  # the loop is free, or the answer would never come
        answer.set_result({"send": MAIL})
        await asking
        return defaults.of("send")

    assert asyncio.run(asyncio.wait_for(enqueue(), 30)) is MAIL


def test_nothing_is_assumed_of_a_database_that_never_answered() -> None:
    """Else a job would get into the wrong queue, and stay there."""
    elsewhere = Elsewhere()
    elsewhere.types = None
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="away"):
            elsewhere.defaults.of("send")
        with pytest.raises(StoreUnavailable, match="away"):
            asyncio.run(elsewhere.defaults.look_up(["send"]))

    elsewhere.types = {"send": MAIL}
    assert elsewhere.defaults.of("send") is MAIL


def test_while_the_database_is_away_the_last_answer_counts() -> None:
    elsewhere = Elsewhere()
    elsewhere.defaults.of("send")
    elsewhere.types = None
    elsewhere.now += STALE_SECONDS
    for _ in range(3):
        assert elsewhere.defaults.of("send") is MAIL
        elsewhere.now += 0.1
    assert elsewhere.asked == 2


def test_after_a_change_of_the_database_nothing_old_counts() -> None:
    elsewhere = Elsewhere()
    elsewhere.defaults.of("send")
    elsewhere.types = {}
    elsewhere.defaults.forget()
    assert elsewhere.defaults.of("send") == TypeOptions()


def test_one_slow_answer_holds_up_only_who_knows_nothing_yet() -> None:
    elsewhere = Elsewhere()
    asked, may_answer = threading.Semaphore(0), threading.Event()

    def ask(_: bool) -> Future[OptionsByType]:
        elsewhere.asked += 1
        asked.release()
        assert may_answer.wait(30)
        return answered({"send": MAIL})

    slow = TypeDefaults(Tenure("sqlite:///never.db").core.handlers, ask, lambda: elsewhere.now)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.submit(slow.of, "send"), threads.submit(slow.of, "send")
        assert asked.acquire(timeout=30)
        assert asked.acquire(timeout=30)
        may_answer.set()
        assert first.result() is second.result() is MAIL

        elsewhere.now += STALE_SECONDS
        may_answer.clear()
        third = threads.submit(slow.of, "send")
        assert asked.acquire(timeout=30)
        assert slow.of("send") is MAIL  # at once, while the third waits
        may_answer.set()
        assert third.result() is MAIL
    assert elsewhere.asked == 3


def test_a_signal_handler_may_enqueue_while_the_database_is_asked() -> None:
    asked: list[TypeOptions] = []
    depth = 0

    def ask(_: bool) -> Future[OptionsByType]:
        nonlocal depth
        depth += 1
        if depth == 1:
            asked.append(defaults.of("send"))
        return answered({"send": MAIL})

    defaults = TypeDefaults(Tenure("sqlite:///never.db").core.handlers, ask, lambda: 0.0)
    assert defaults.of("send") is MAIL
    assert asked == [MAIL]


def test_an_interrupt_while_the_database_is_asked_does_no_harm() -> None:
    ends = [KeyboardInterrupt(), None]

    def ask(_: bool) -> Future[OptionsByType]:
        if end := ends.pop(0):
            raise end
        return answered({"send": MAIL})

    defaults = TypeDefaults(Tenure("sqlite:///never.db").core.handlers, ask, lambda: 0.0)
    with pytest.raises(KeyboardInterrupt):
        defaults.of("send")
    assert defaults.of("send") is MAIL
