"""Whatever a handler does, its job is settled and the worker lives to run the next one."""

from __future__ import annotations

import asyncio
import builtins
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from tenure import Job, JobContext, PermanentFailure, Status, Tenure
from tests.support.workers import (
    running_worker,
    transitions,
    wait_until_all_settled,
    wait_until_completed,
    wait_until_failed,
    wait_until_settled,
)
from tests.worker import children


def test_coroutines_run_on_the_loop_functions_in_threads_processes_in_children(
    app_on_each_engine: Tenure,
) -> None:
    app = app_on_each_engine
    places: dict[str, tuple[str, bool]] = {}

    def note(name: str) -> None:
        thread = threading.current_thread().name
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            places[name] = (thread, False)
        else:
            places[name] = (thread, True)

    @app.job
    async def coroutine() -> None:
        await asyncio.sleep(0)
        note("coroutine")

    @app.job
    def function() -> None:
        note("function")

    app.job(process=True)(children.where)
    jobs = [coroutine.enqueue(), function.enqueue(), app.enqueue("where")]
    with running_worker(app) as worker:
        ends = [wait_until_completed(app, job) for job in jobs]

    assert places["coroutine"][1]
    assert places["function"][0].startswith("tenure-job")
    assert not places["function"][1]
    child = ends[2].result
    assert child["parent"] != child["pid"]
    assert all(end.worker == worker.id for end in ends)
    assert [transitions(app, job) for job in jobs] == 3 * [["enqueued", "claimed", "completed"]]


# --- exceptions of every kind ----------------------------------------------------------------


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Deadly(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)


class Nameless(Exception):
    """Its metaclass, notes and cause are of no help."""

    __notes__ = (1, None)  # type: ignore[assignment]


def raise_system_exit() -> None:
    raise SystemExit(3)


def raise_keyboard_interrupt() -> None:
    raise KeyboardInterrupt


def raise_generator_exit() -> None:
    raise GeneratorExit


def raise_cancelled() -> None:
    raise asyncio.CancelledError


def raise_stop_iteration() -> None:
    raise StopIteration(1)


def raise_bare() -> None:
    raise BaseException("bare")


def raise_group() -> None:
    raise BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError("inner"), SystemExit()])


def raise_speechless() -> None:
    raise Speechless


def raise_deadly() -> None:
    raise Deadly


def raise_nameless() -> None:
    raise Nameless


def raise_unstorable_text() -> None:
    raise ValueError("nul \0 surrogate \ud800 end")


def raise_ten_megabytes() -> None:
    raise ValueError("begin" + "x" * 10_000_000 + "end")


def raise_cycle() -> None:
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    raise first


def raise_deep() -> None:
    def deeper(level: int) -> None:
        deeper(level + 1)

    deeper(0)


def raise_long_chain() -> None:
    error: Exception = ValueError("root")
    for number in range(3_000):
        above = ValueError(f"link {number}")
        above.__cause__ = error
        error = above
    raise error


def leave() -> None:
    builtins.exit(0)


RAISERS: dict[Callable[[], None], str] = {
    raise_system_exit: "SystemExit: 3",
    raise_keyboard_interrupt: "KeyboardInterrupt",
    raise_generator_exit: "GeneratorExit",
    raise_cancelled: "CancelledError",
    raise_stop_iteration: "StopIteration",
    raise_bare: "BaseException: bare",
    raise_group: "ValueError: inner",
    raise_speechless: "Speechless",
    raise_deadly: "Deadly",
    raise_nameless: "Nameless",
    raise_unstorable_text: "nul \N{SYMBOL FOR NULL} surrogate \\ud800 end",
    raise_ten_megabytes: "characters cut",
    raise_cycle: "second",
    raise_deep: "RecursionError",
    raise_long_chain: "link 2999",
    leave: "SystemExit: 0",
}


def as_coroutine(body: Callable[[], None]) -> Callable[..., Any]:
    async def coroutine() -> None:
        await asyncio.sleep(0)
        body()

    return coroutine


def as_function(body: Callable[[], None]) -> Callable[..., Any]:
    return body


@pytest.mark.scenario(19)
@pytest.mark.parametrize("kind", [as_coroutine, as_function])
def test_every_exception_settles_its_job_and_the_worker_goes_on(
    app_on_each_engine: Tenure, kind: Callable[[Callable[[], None]], Callable[..., Any]]
) -> None:
    app = app_on_each_engine

    @app.job
    async def next_one(number: int) -> int:
        return number

    # One at a time, so that the next one is run by what the bad one has left behind.
    jobs: list[tuple[Job, str]] = []
    after: list[Job] = []
    for body, message in RAISERS.items():
        bad = app.job(name=body.__name__, max_retries=1)(kind(body))
        jobs.append((bad.enqueue(), message))
        after.append(next_one.enqueue(len(after)))
    with running_worker(app, concurrency=1):
        for job, message in jobs:
            error = wait_until_failed(app, job)
            assert message in error, (job.type, error[:500])
            assert len(error.encode()) <= 65_536
            history = " ".join(transitions(app, job))  # a busy machine gives back what waits long
            assert history.replace("claimed released ", "") == "enqueued claimed failed"
        for number, job in enumerate(after):
            assert wait_until_completed(app, job).result_json == str(number)
    assert app.verify() == []


# --- results of every kind --------------------------------------------------------------------


class Opaque:
    def __repr__(self) -> str:
        raise RuntimeError("no picture")


class Hostile(dict[str, Any]):
    def __iter__(self) -> Iterator[str]:
        raise SystemExit("hostile")

    def items(self) -> Any:
        raise SystemExit("hostile")


def cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


STORABLE: list[tuple[Any, Any]] = [
    (None, None),
    ("Grüße 🦊", "Grüße 🦊"),
    ([1, {"a": (2, 3)}], [1, {"a": [2, 3]}]),
    (Decimal("1.10"), "1.10"),
    (datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01T00:00:00Z"),
    (False, False),
    ("", ""),
    (Hostile(a=1), {"a": 1}),
]
UNSTORABLE: list[Any] = [
    float("nan"),
    [float("inf")],
    "nul \0",
    "lone \ud800",
    2**64,
    object(),
    Opaque(),
    cycle(),
    "x" * 2_000_000,
    lambda: None,
    ValueError("returned, not raised"),
]


def test_results_that_cannot_be_stored_say_so_and_the_job_is_completed(
    app_on_each_engine: Tenure,
) -> None:
    app = app_on_each_engine
    values = [value for value, _ in STORABLE] + UNSTORABLE

    @app.job
    async def coroutine(number: int) -> Any:
        return values[number]

    @app.job
    def function(number: int) -> Any:
        return values[number]

    new_jobs = [kind.new_job(n) for kind in (coroutine, function) for n in range(len(values))]
    with running_worker(app, concurrency=2):
        ends = wait_until_all_settled(app, app.enqueue_many(new_jobs))

    assert {end.status for end in ends} == {Status.COMPLETED}
    results: list[Any] = [end.result for end in ends]
    for half in (results[: len(values)], results[len(values) :]):
        assert half[: len(STORABLE)] == [written for _, written in STORABLE]
        for result in half[len(STORABLE) :]:
            assert set(result) == {"tenure:unstorable", "reason"}
            assert len(json.dumps(result)) < 10_000


def test_a_coroutine_that_nobody_awaited_has_not_run(app: Tenure) -> None:
    async def work() -> None: ...

    @app.job(max_retries=1)
    def forgot() -> Any:
        return work()

    @app.job(max_retries=1)
    async def forgot_again() -> Any:
        return work()

    for job in (forgot.enqueue(), forgot_again.enqueue()):
        with running_worker(app):
            assert "await it in an `async def`" in wait_until_failed(app, job)


# --- retries: the handler runs are counted, not the column -------------------------------------


@pytest.mark.parametrize("kind", ["coroutine", "function", "process"])
@pytest.mark.parametrize("max_retries", [0, 1, 2, 3])
def test_a_job_that_always_fails_runs_as_often_as_allowed(
    app: Tenure, kind: str, max_retries: int, tmp_path: Any
) -> None:
    runs = tmp_path / "runs"
    runs.touch()

    def function(path: str) -> None:
        children.note(path)
        raise ValueError("flaky")

    async def coroutine(path: str) -> None:
        function(path)

    handlers: dict[str, Callable[[str], Any]] = {
        "coroutine": coroutine,
        "function": function,
        "process": children.note_and_fail,
    }
    app.job(name="flaky", process=kind == "process")(handlers[kind])
    job = app.enqueue("flaky", {"path": str(runs)}, max_retries=max_retries, backoff=0)
    with running_worker(app):
        assert wait_until_failed(app, job).startswith("ValueError: flaky")

    expected = max(max_retries, 1)
    assert len(runs.read_text().splitlines()) == expected
    attempt = ["claimed", "failed"]
    assert transitions(app, job) == [
        "enqueued",
        *attempt,
        *((expected - 1) * ["retried", *attempt]),
    ]


def test_a_job_that_fails_twice_runs_three_times(app_on_each_engine: Tenure) -> None:
    app = app_on_each_engine
    attempts: list[int] = []

    @app.job(max_retries=5, backoff=0)
    async def flaky(context: JobContext) -> str:
        attempts.append(context.attempt)
        if context.attempt < 3:
            raise RuntimeError(f"attempt {context.attempt}")
        return "done"

    job = flaky.enqueue()
    with running_worker(app):
        end = wait_until_completed(app, job)

    assert attempts == [1, 2, 3]
    assert (end.result_json, end.attempts, end.token) == ('"done"', 3, 3)
    details = [
        transition.detail or ""
        for transition in app.history(job.id)
        if transition.event == "failed"
    ]
    assert [detail.splitlines()[0] for detail in details] == [
        "RuntimeError: attempt 1",
        "RuntimeError: attempt 2",
    ]


@pytest.mark.parametrize("kind", ["coroutine", "function", "process"])
def test_a_permanent_failure_is_final_at_once(app: Tenure, kind: str) -> None:
    def function() -> None:
        raise PermanentFailure("no such customer")

    async def coroutine() -> None:
        function()

    handlers: dict[str, Callable[[], Any]] = {
        "coroutine": coroutine,
        "function": function,
        "process": children.fail_for_good,
    }
    app.job(name="hopeless", process=kind == "process")(handlers[kind])
    job = app.enqueue("hopeless", max_retries=10, backoff=0)
    with running_worker(app):
        assert "PermanentFailure: no such customer" in wait_until_failed(app, job)

    assert transitions(app, job) == ["enqueued", "claimed", "gave_up"]
    assert app.get(job.id).attempts == 1


def test_a_retry_waits_as_long_as_the_policy_says(app: Tenure) -> None:
    times: list[float] = []

    @app.job(max_retries=3, backoff={"base": 0.2, "factor": 2})
    async def flaky() -> None:
        times.append(time.monotonic())
        raise RuntimeError

    job = flaky.enqueue()
    with running_worker(app):
        wait_until_settled(app, job)

    assert times[1] - times[0] >= 0.18
    assert times[2] - times[1] >= 0.36
