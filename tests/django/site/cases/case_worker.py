"""Tasks run in a worker of this process, on connections like those of requests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from threading import Thread, current_thread, main_thread
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS, OperationalError, connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from shop import task_api
from shop.models import Order
from shop.tasks import (
    broken,
    count_orders,
    fail,
    flaky,
    linger,
    odd,
    session,
    ship,
    ship_async,
    ship_once,
    ship_slowly,
    tell,
    wait,
)

from tenure import RetryAfter
from tenure.contrib.django import TaskCancelled, TenureBackend, app, handlers, tasks
from tenure.contrib.django.tasks import read_result
from tests.support.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)
READY, RUNNING, SUCCESSFUL, FAILED = "READY", "RUNNING", "SUCCESSFUL", "FAILED"


@pytest.fixture
def order() -> Order:
    return Order.objects.create(number=1)


@pytest.fixture(scope="module")
def running(cleared: None) -> Iterator[None]:
    """A worker on the database of the tests."""
    with app.running(["default"], concurrency=4):
        yield
    app.close()


def done(result: Any) -> Any:
    """The result once its job is settled."""
    app.wait(result.id, timeout=30)
    return ship.get_backend().get_result(result.id)


def test_plain_functions_and_coroutines_run(running: None, order: Order) -> None:
    result = done(ship.enqueue(1, by=2))
    assert (result.status, result.return_value) == (SUCCESSFUL, {"shipped": 2})
    assert result.attempts == len(result.worker_ids) == 1
    assert result.enqueued_at <= result.started_at == result.last_attempted_at
    assert result.started_at <= result.finished_at
    assert done(ship_async.enqueue(1)).return_value == 3
    job = count_orders.within(connection).enqueue(least=1)
    assert app.wait(job.id, timeout=30).result == 1


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (fail.enqueue, ValueError),
        (lambda: odd.enqueue("exit"), SystemExit),
        (lambda: odd.enqueue("set"), TypeError),
        (lambda: ship.enqueue(404), Order.DoesNotExist),
    ],
)
def test_an_exception_fails_a_task_at_once(running: None, make: Any, error: Any) -> None:
    result = done(make())
    assert (result.status, result.attempts) == (FAILED, 1)
    (found,) = result.errors
    assert found.exception_class_path == f"{error.__module__}.{error.__qualname__}"
    assert "Traceback" in found.traceback
    with pytest.raises(ValueError, match="failed"):
        result.return_value  # noqa: B018


def test_exceptions_are_retried_where_the_task_says_so(running: None, tmp_path: Any) -> None:
    result = done(flaky.enqueue(str(tmp_path / "times")))
    assert (result.status, result.attempts, result.return_value) == (SUCCESSFUL, 3, 3)
    assert [error.exception_class for error in result.errors] == [ConnectionError] * 2


def test_a_task_knows_its_attempt(running: None) -> None:
    assert done(tell.enqueue("attempt")).return_value == 1
    assert done(tell.enqueue("ids")).return_value == [True, RUNNING]


def test_a_task_may_be_put_off(running: None) -> None:
    """Which is no attempt."""
    result = odd.enqueue("snooze")
    while not app.get(result.id).snoozes:
        app.wake()
    result.refresh()
    assert (result.status, result.attempts, result.errors) == (READY, 0, [])
    app.cancel(result.id, reason="no longer wanted")
    result.refresh()
    assert result.status == FAILED
    assert result.errors[0].exception_class is TaskCancelled
    assert result.errors[0].traceback == "no longer wanted"


def test_signals_say_what_becomes_of_a_task(running: None, order: Order, tmp_path: Any) -> None:
    """A failure that is retried is not the end; receivers that fail change nothing."""
    seen: list[Any] = []

    def started(sender: Any, task_result: Any, **_: Any) -> None:
        seen.append((sender, task_result.id, task_result.status))

    def finished(sender: Any, task_result: Any, **_: Any) -> None:
        seen.append((sender, task_result.id, task_result.status))
        raise RuntimeError

    task_api.task_started.connect(started)
    task_api.task_finished.connect(finished)
    try:
        calls = [(ship, 1), (ship_async, 1), (fail,), (flaky, str(tmp_path / "times"))]
        results = []
        for (task, *arguments), entries in zip(calls, (2, 4, 6, 10), strict=True):
            results.append(done(task.enqueue(*arguments)))
            wait_until(lambda entries=entries: len(seen) == entries, "the signal")
    finally:
        task_api.task_started.disconnect(started)
        task_api.task_finished.disconnect(finished)
    expected = [
        *([0, RUNNING], [0, SUCCESSFUL], [1, RUNNING], [1, SUCCESSFUL], [2, RUNNING], [2, FAILED]),
        *([3, RUNNING], [3, RUNNING], [3, RUNNING], [3, SUCCESSFUL]),
    ]
    assert seen == [(TenureBackend, results[one].id, status) for one, status in expected]
    statuses = [result.status for result in results]
    assert statuses == [SUCCESSFUL, SUCCESSFUL, FAILED, SUCCESSFUL]


def test_no_signal_told_of_a_task_that_asked_again_without_attempts_left(running: None) -> None:
    seen: list[Any] = []

    def finished(sender: Any, task_result: Any, **_: Any) -> None:
        seen.append((task_result.status, task_result.errors[0].exception_class))

    task_api.task_finished.connect(finished)
    try:
        assert done(odd.using(max_retries=2).enqueue("again")).status == FAILED
        wait_until(lambda: seen, "the signal")
    finally:
        task_api.task_finished.disconnect(finished)
    assert seen == [(FAILED, RetryAfter)]


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_a_signal_tells_of_a_task_that_timed_out(running: None, tmp_path: Any, kind: str) -> None:
    """There was none of a coroutine; a function that went on had been successful."""
    seen: list[Any] = []

    def finished(sender: Any, task_result: Any, **_: Any) -> None:
        seen.append((task_result.status, [error.exception_class for error in task_result.errors]))

    own, arguments = (wait, [str(tmp_path / "runs")]) if kind == "plain" else (linger, [])
    task_api.task_finished.connect(finished)
    try:
        result = done(own.using(timeout=0.2, max_retries=1).enqueue(*arguments))
        (tmp_path / "runs").unlink(missing_ok=True)
        wait_until(lambda: seen, "the signal")
    finally:
        task_api.task_finished.disconnect(finished)
    assert seen == [(FAILED, [TimeoutError])]
    assert [error.exception_class for error in result.errors] == [TimeoutError]


def test_a_signal_told_of_the_end_of_a_task_that_was_put_off_by_a_group(running: None) -> None:
    """As `asyncio.TaskGroup` raises it."""
    seen: list[Any] = []

    def finished(sender: Any, task_result: Any, **_: Any) -> None:
        seen.append(task_result.status)

    task_api.task_finished.connect(finished)
    try:
        result = odd.enqueue("snoozes")
        while not app.get(result.id).snoozes:
            app.wake()
    finally:
        task_api.task_finished.disconnect(finished)
    app.cancel(result.id)
    assert seen == []


def test_an_atomic_task_is_completed_with_its_rows(running: None, order: Order) -> None:
    result = done(ship_once.enqueue(1))
    assert (result.status, result.return_value) == (SUCCESSFUL, 1)
    assert done(ship_once.enqueue(1, fails=True)).status == FAILED
    order.refresh_from_db()
    assert order.shipped == 1
    assert app.verify() == []


@pytest.mark.skipif("connection.vendor == 'sqlite'", reason="it has one isolation level")
def test_an_atomic_task_outlives_heartbeats_when_serializable(
    cleared: None, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heartbeat changes the row of the job, which the transaction would then fail to change."""
    level = psycopg.IsolationLevel.SERIALIZABLE
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "isolation_level", level)
    with app.running(["slow"], lease=3):
        result = done(ship_slowly.using(queue_name="slow").enqueue(1, 1.5))
    assert (result.status, result.return_value, result.errors) == (SUCCESSFUL, 1, [])


@pytest.mark.skipif("connection.vendor == 'sqlite'", reason="it has one isolation level")
def test_an_atomic_task_begins_again_if_a_heartbeat_was_faster(
    cleared: None, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the begin of the transaction and its lock on the job."""
    level = psycopg.IsolationLevel.REPEATABLE_READ
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "isolation_level", level)
    threads: list[Thread] = []

    def commit(heart: Any) -> None:
        waits = "SELECT 1 FROM pg_locks WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"
        wait_until(lambda: heart.execute(waits).fetchone(), "the task to wait for the heartbeat")
        heart.commit()
        heart.close()

    def beat(sender: Any, task_result: Any, **_: Any) -> None:
        heart = psycopg.connect(app.database.partition("&schema")[0])
        later = "UPDATE tenure.job SET lease_expires_at = lease_expires_at + interval '1 second'"
        heart.execute(f"{later} WHERE id = %s", [task_result.id])
        threads.append(Thread(target=commit, args=[heart]))
        threads[-1].start()

    task_api.task_started.connect(beat)
    try:
        with app.running(["slow"]):
            result = done(ship_slowly.using(queue_name="slow").enqueue(1, 0))
    finally:
        task_api.task_started.disconnect(beat)
    (thread,) = threads
    thread.join()
    assert (result.status, result.return_value, result.errors) == (SUCCESSFUL, 1, [])


@pytest.mark.skipif("connection.vendor == 'sqlite'", reason="its connections cannot be cut")
@pytest.mark.parametrize(("checks", "attempts"), [(True, 1), (False, 2)])
def test_a_kept_connection_may_be_cut_between_two_tasks_at_no_cost_with_health_checks(
    cleared: None, monkeypatch: pytest.MonkeyPatch, checks: bool, attempts: int
) -> None:
    monkeypatch.setattr(handlers, "AGAIN_SECONDS", 0)
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", 60)
    monkeypatch.setitem(connection.settings_dict, "CONN_HEALTH_CHECKS", checks)
    task = session.using(queue_name="one")
    with app.running(["one"], concurrency=1):
        kept = done(task.enqueue()).return_value
        assert done(task.enqueue()).return_value == kept
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s, 10000)", [kept])
        monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", 0)  # of the one after it
        result = done(task.enqueue())
    assert (result.status, result.attempts) == (SUCCESSFUL, attempts)


def test_a_task_had_failed_for_good_before_it_began(
    running: None, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the server had no connection left for Django, all tasks that were claimed were lost."""
    errors = [OperationalError("too many clients already")]

    def read(*given: Any) -> Any:
        if errors:
            raise errors.pop()
        return read_result(*given)

    monkeypatch.setattr(tasks, "read_result", read)
    monkeypatch.setattr(handlers, "AGAIN_SECONDS", 0)
    result = done(ship.enqueue(1))
    assert (result.status, result.attempts, len(result.errors)) == (SUCCESSFUL, 2, 1)
    assert "too many clients already" in result.errors[0].traceback


def test_an_atomic_task_whose_transaction_cannot_begin_runs_again(
    running: None, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy SQLite, 15 of 245 failed for good, though their function was not called."""
    errors = [OperationalError("database is locked")]
    begin = BaseDatabaseWrapper.set_autocommit

    def locked(self: Any, autocommit: bool, *given: Any, **more: Any) -> None:
        if errors and not autocommit and current_thread() is not main_thread():
            raise errors.pop()
        begin(self, autocommit, *given, **more)

    monkeypatch.setattr(BaseDatabaseWrapper, "set_autocommit", locked)
    monkeypatch.setattr(handlers, "AGAIN_SECONDS", 0)
    result = done(ship_once.enqueue(1))
    assert (result.status, result.attempts, result.return_value) == (SUCCESSFUL, 2, 1)
    assert "database is locked" in result.errors[0].traceback


def test_queries_that_debug_notes_go_with_their_task(settings: Any) -> None:
    """They fill the memory of a worker else."""
    settings.DEBUG = True
    Order.objects.count()
    with handlers._clean():
        assert connection.queries == []
        Order.objects.count()
    assert connection.queries == []


def test_the_connection_of_a_coroutine_is_closed_with_it() -> None:
    async def count() -> BaseDatabaseWrapper:
        async with handlers._clean_async():
            await Order.objects.acount()
            return await sync_to_async(lambda: connections[DEFAULT_DB_ALIAS])()

    used = asyncio.run(count())
    assert (used is not connections[DEFAULT_DB_ALIAS], used.connection) == (True, None)


def test_each_task_begins_with_a_connection_that_is_usable(running: None, order: Order) -> None:
    """As each request: django-tasks-db and procrastinate kept dead ones until a restart."""
    killed = broken.enqueue()
    assert done(killed).status == FAILED
    results = [done(ship.enqueue(1)) for _ in range(8)]
    assert {result.status for result in results} == {SUCCESSFUL}
