"""Tasks are added and read on Django's connection."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from asgiref.sync import async_to_sync
from django.conf import settings
from django.db import connection, transaction
from django.test import override_settings
from psycopg.conninfo import conninfo_to_dict
from shop import task_api
from shop.models import Order
from shop.tasks import count_orders, fail, ship, ship_async, ship_once

from tenure import DuplicateJob, InvalidInput, KeyConflict, Unique, testing
from tenure.contrib.django import TenureBackend, WorkerLost, app
from tenure.contrib.django.databases import url_of
from tenure.contrib.django.tasks import result_of
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tenure.store.borrowed.drivers import driver_of
from tenure.store.postgres.address import split_schema
from tenure.values.redaction import without_password

InvalidTask, TaskResultDoesNotExist = task_api.InvalidTask, task_api.TaskResultDoesNotExist
pytestmark = pytest.mark.usefixtures("cleared")
BACKEND = "tenure.contrib.django.TenureBackend"
DUMMY = f"{task_api.task.__module__.rpartition('.')[0]}.backends.dummy.DummyBackend"


def job_of(result: Any) -> Any:
    return app.within(connection).get(result.id)


def exists(result: Any) -> bool:
    try:
        return bool(ship.get_backend().get_result(result.id))
    except TaskResultDoesNotExist:
        return False


@pytest.mark.django_db
def test_a_task_in_a_queue_that_the_settings_no_longer_have() -> None:
    """To read it was an InvalidTask, and so was to run it, before its function was called."""
    order = Order.objects.create(number=1)
    result = ship.using(queue_name="old").enqueue(order.number)
    tasks = {"default": {"BACKEND": BACKEND, "QUEUES": ["default"]}}
    with override_settings(TASKS=tasks), testing.within(app, connection) as jobs:
        assert jobs.run(result.id).status == "completed"
        assert ship.get_result(result.id).task.queue_name == "old"
        assert ship.get_result(result.id).status == "SUCCESSFUL"
        with pytest.raises(InvalidTask, match="Queue 'old' is not valid"):
            ship.using(queue_name="old").enqueue(order.number)


class Undo(Exception):
    pass


@contextmanager
def undone() -> Iterator[None]:
    with suppress(Undo), transaction.atomic():
        yield
        raise Undo


@pytest.mark.django_db(transaction=True)
def test_a_task_is_there_if_and_only_if_the_rows_are() -> None:
    """Django's own advice, on_commit, loses the task if the process ends in between."""
    with transaction.atomic():
        Order.objects.create(number=1)
        kept = ship.enqueue(1)
        with undone():
            inner = ship.enqueue(1)
            assert exists(inner)
        assert not exists(inner)
    with undone():
        gone = ship.enqueue(1)
    assert (exists(kept), exists(gone)) == (True, False)
    assert exists(ship.enqueue(1))  # in autocommit, as `save()`
    (job,) = [job for job in app.find(type="shop.tasks.ship") if job.id == kept.id]
    assert app.history(job.id)[0].actor == "django"


@pytest.mark.django_db
def test_a_test_case_sees_its_tasks(django_assert_num_queries: Any) -> None:
    """The test's own transaction is never committed, so `on_commit` would never run."""
    result = ship.enqueue(1, by=2)
    with django_assert_num_queries(2):
        assert ship.get_result(result.id) == result
    assert (result.args, result.kwargs, result.status) == ([1], {"by": 2}, "READY")
    assert "test" in app.database  # not that of the settings
    result.refresh()
    with pytest.raises(TaskResultDoesNotExist):
        ship.get_result("no id")
    with pytest.raises(TaskResultDoesNotExist):
        ship.get_result(result.id[:-4] + "0000")
    with pytest.raises(task_api.TaskResultMismatch):
        fail.get_result(result.id)
    other = count_orders.within(connection).enqueue(least=1)
    with pytest.raises(TaskResultDoesNotExist):
        ship.get_backend().get_result(other.id)


@pytest.mark.django_db
def test_the_name_of_a_job_imports_no_module() -> None:
    """Whoever may add a job says its type, and modules run code when they are imported."""
    job = app.within(connection).enqueue("this.poem", {"args": []})
    assert "this" not in sys.modules
    with pytest.raises(TaskResultDoesNotExist):
        ship.get_backend().get_result(job.id)
    assert "this" not in sys.modules


@pytest.mark.django_db
def test_what_a_task_says_is_what_the_job_has() -> None:
    at = datetime(2090, 1, 2, tzinfo=UTC)
    result = ship.using(priority=7, queue_name="slow", run_after=at).enqueue(1)
    job = job_of(result)
    assert (job.type, job.priority, job.queue, job.run_at) == ("shop.tasks.ship", -7, "slow", at)
    assert job.payload == {"args": [1], "kwargs": {}}
    assert (job.max_retries, job.timeout) == (3, None)
    assert ship.get_result(result.id).task == result.task
    more = ship.using(max_retries=5, timeout="30s", tags=["customer:1"], partition="acme")
    job = job_of(more.enqueue(1))
    assert (job.max_retries, job.timeout, job.tags) == (5, 30, ("customer:1",))
    assert job.partition == "acme"
    options = {"max_retries": 9, "tasks": {"shop.tasks.ship": {"timeout": 5}}}
    with override_settings(TASKS={"default": {"BACKEND": BACKEND, "OPTIONS": options}}):
        job = job_of(ship.enqueue(1))
        assert (job.max_retries, job.timeout) == (9, 5)


@pytest.mark.django_db
def test_a_key_and_a_unique_task_stand_for_one_job() -> None:
    """Afterwards the transaction can go on."""
    keyed = ship.using(idempotency_key="order:1")
    first = keyed.enqueue(1)
    assert keyed.enqueue(1) == first
    with pytest.raises(KeyConflict):
        keyed.enqueue(2)
    unique = fail.using(unique=Unique())
    assert unique.enqueue().id == unique.enqueue().id
    with pytest.raises(DuplicateJob):
        fail.using(unique=Unique(on_conflict="error")).enqueue()
    assert exists(first)


@pytest.mark.django_db
def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(InvalidTask, match="aware"):
        ship.using(run_after=datetime(2090, 1, 1))  # noqa: DTZ001
    with pytest.raises(AttributeError):  # as Django's own backends, whatever the docs say
        ship.using(run_after=timedelta(hours=1))
    with pytest.raises(InvalidTask, match="plain function"):
        ship_async.using(atomic=True)
    with pytest.raises(TypeError):
        ship.enqueue(object())
    with pytest.raises(InvalidInput):
        ship.enqueue("x" * 2_000_000)

    def named() -> None: ...

    for name in (named.__qualname__, "<lambda>", "größer"):  # the first is an inner function
        named.__qualname__ = name
        for process in (True, False):
            with pytest.raises(InvalidTask, match=r"module level|name"):
                replace(ship, func=named, process=process)


@pytest.mark.django_db
def test_a_task_is_added_with_signals_and_from_coroutines() -> None:
    seen: list[Any] = []

    def note(sender: Any, task_result: Any, **_: Any) -> None:
        seen.append((sender, task_result))

    task_api.task_enqueued.connect(note)
    try:
        result = ship.enqueue(1)
    finally:
        task_api.task_enqueued.disconnect(note)
    assert seen == [(TenureBackend, result)]


@pytest.mark.django_db
def test_tasks_are_added_with_others_and_in_workflows() -> None:
    Order.objects.create(number=1)
    with testing.within(app, connection) as jobs:
        with app.workflow("orders") as flow:
            first = flow.add(ship.new_job(1, by=2))
            flow.add(count_orders.new_job(least=2), depends_on=[first])
        slow = ship.using(backend="slow", queue_name="slow", priority=7)
        made, added = app.enqueue_many([slow.new_job(1), count_orders.new_job(1)])
        assert jobs.drain().completed == 4
    assert ship.get_result(first.id).return_value == {"shipped": 3}
    assert added.type == "count_orders"
    usual = job_of(slow.enqueue(1))
    for name in ("type", "payload", "queue", "priority", "max_retries", "backoff"):
        assert getattr(made, name) == getattr(usual, name)


@pytest.mark.parametrize(
    ("detail", "exception", "traceback"),
    [
        (None, Exception, ""),
        ("len", Exception, "len"),  # a name of `builtins`, and no class
        ("ValueError\nOrder: 1", ValueError, "ValueError\nOrder: 1"),
        (
            "ValueError: 1\nTraceback (most recent call last):\n  line 1\n\n",
            *(ValueError, "Traceback (most recent call last):\n  line 1\nValueError: 1\n"),
        ),
    ],
)
def test_what_a_job_says_of_an_exception(detail: Any, exception: type, traceback: str) -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    history = [("failed", "w", at, "failed", detail, None)]
    (error,) = result_of(ship, "id", {}, at, "failed", at, history).errors
    assert (error.exception_class, error.traceback) == (exception, traceback)


def test_a_task_of_another_backend_is_no_job() -> None:
    tasks = {**settings.TASKS, "dummy": {"BACKEND": DUMMY}}
    refused = pytest.raises(InvalidTask, match="'dummy' is none of Tenure's")
    with override_settings(TASKS=tasks), refused:
        ship.using(backend="dummy").new_job(1)


@pytest.mark.django_db(transaction=True)
def test_coroutines_add_and_read_tasks() -> None:
    async def add() -> Any:
        result = await ship.aenqueue(1)
        return await ship.aget_result(result.id)

    assert exists(async_to_sync(add)())


@pytest.mark.django_db(transaction=True)
def test_a_times_zone_is_that_of_the_settings(settings: Any) -> None:
    assert ship.enqueue(1).enqueued_at.tzinfo is not None
    settings.USE_TZ = False
    connection.close()
    try:
        result = ship.using(run_after=datetime(2090, 1, 1)).enqueue(1)  # noqa: DTZ001
        assert result.enqueued_at.tzinfo is None
        assert ship.get_result(result.id).enqueued_at == result.enqueued_at
    finally:
        settings.USE_TZ = True
        connection.close()


@pytest.mark.django_db(transaction=True)
def test_a_task_is_atomic_at_one_level_only() -> None:
    """A savepoint could be undone without the other rows: see `complete`."""
    driver: Any = driver_of(connection)
    assert driver.autocommits()
    with transaction.atomic():
        assert not driver.is_in_savepoint()
        with transaction.atomic():
            assert driver.is_in_savepoint()
        with transaction.atomic(savepoint=False):
            assert not driver.is_in_savepoint()
    assert ship_once.get_backend().option(ship_once, "atomic") is True


@pytest.mark.django_db
def test_the_transaction_of_a_test_is_no_savepoint() -> None:
    driver: Any = driver_of(connection)
    with transaction.atomic(durable=True):
        assert connection.savepoint_ids
        assert not driver.is_in_savepoint()


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_died_is_an_error_of_its_attempt() -> None:
    """Other backends leave such a task running for ever."""
    result = ship.using(queue_name="dead", backoff=0.001).enqueue(1)
    short, longer = (
        ClaimRequest(worker="w", limit=1, lease_seconds=seconds, queues=("dead",))
        for seconds in (0.001, 60)
    )
    app.core.claim(short)
    result.refresh()
    assert (result.status, result.worker_ids) == ("RUNNING", ["w"])
    while not app.core.sweep():
        pass
    result.refresh()
    assert (result.status, result.attempts) == ("READY", 1)
    while not (leases := app.core.claim(longer).leases):
        pass
    died = "the child process died: killed by SIGKILL"
    app.core.report([Report(result.id, leases[0].lease_id, Outcome.FAILED, error=died)])
    result.refresh()
    assert [error.exception_class for error in result.errors] == [WorkerLost] * 2


def test_a_password_of_the_settings_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "vendor", "postgresql", raising=False)
    given = {"dbname": "a/b", "user": "ann", "password": "s/e&c?r@t", "host": "/run", "port": None}
    monkeypatch.setattr(connection, "get_connection_params", lambda: dict(given, context=object()))
    url = url_of("default", "jobs")
    assert conninfo_to_dict(split_schema(url)[1]) == {
        name: value for name, value in given.items() if value
    }
    assert split_schema(url)[0] == "jobs"
    shown = without_password(url)
    assert "ann" in shown
    assert not {"s/e&c?r@t", quote("s/e&c?r@t", safe="")} & set(re.split("[=&]", shown))


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif("connection.vendor == 'sqlite'", reason="workers look at the file")
def test_a_commit_notifies_workers() -> None:
    with psycopg.connect(app.database.partition("&schema")[0], autocommit=True) as listener:
        listener.execute("LISTEN tenure")
        with transaction.atomic():
            ship.enqueue(1)
            assert list(listener.notifies(timeout=0)) == []
        assert list(listener.notifies(timeout=30, stop_after=1))
