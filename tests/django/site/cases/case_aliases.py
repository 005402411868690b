"""A task at another backend than its own: `using(backend=...)` is for it, and for no other."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from django.conf import settings
from django.db import connections
from django.test import override_settings
from shop.task_api import (
    InvalidTask,
    TaskResultDoesNotExist,
    TaskResultMismatch,
    task,
    task_finished,
)
from shop.tasks import fail, ship, ship_once, tell

from tenure.contrib.django import TenureBackend, app
from tenure.contrib.django._api import task_backends
from tenure.contrib.django.handlers import send_failed
from tenure.handlers.registry import Failure

pytestmark = pytest.mark.usefixtures("cleared")
DUMMY = f"{task.__module__.rpartition('.')[0]}.backends.dummy.DummyBackend"


def at(alias: str, id: str) -> Any:
    return task_backends[alias].get_result(id)


@pytest.mark.django_db(databases=["default", "archive"])
def test_a_task_is_added_at_the_backend_that_is_asked_for_alone() -> None:
    """django-tasks-db: test_using_correct_backend."""
    result = ship.using(backend="archive").enqueue(1)
    with pytest.raises(TaskResultDoesNotExist):
        at("default", result.id)
    assert at("archive", result.id) == result
    assert (result.backend, result.task.backend) == ("archive", "archive")
    archive: Any = task_backends["archive"]
    job = archive.app.within(connections["archive"]).get(result.id)
    assert (job.type, job.max_retries) == ("shop.tasks.ship:archive", 3)
    other = ship.enqueue(1)
    with pytest.raises(TaskResultDoesNotExist):
        at("archive", other.id)


@pytest.mark.django_db
def test_two_backends_of_a_database_have_their_own_queues_and_options() -> None:
    slow = ship.using(backend="slow", queue_name="slow")
    result = slow.enqueue(1)
    read = at("default", result.id)  # whoever reads it
    assert read == result
    assert read.backend == "slow"
    with pytest.raises(TaskResultMismatch):
        fail.get_result(result.id)
    within = app.within(connections["default"])
    assert within.get(result.id).max_retries == 2
    assert within.get(ship.enqueue(1).id).max_retries == 3
    with pytest.raises(InvalidTask, match="Queue 'default' is not valid"):
        ship.using(backend="slow")
    back = slow.using(backend="default")
    assert within.get(back.enqueue(1).id).type == "shop.tasks.ship"
    option = task_backends["slow"].option  # type: ignore[attr-defined]
    assert (option(ship_once, "atomic"), option(ship_once, "retry_exceptions")) == (None, True)


def test_two_requests_may_be_the_first_that_use_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    both, option = threading.Barrier(2), TenureBackend.option

    def together(*of: Any) -> Any:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)
        return option(*of)

    monkeypatch.setattr(TenureBackend, "option", together)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: tell.using(backend="slow", queue_name="slow"), range(2)))


@pytest.fixture(scope="module")
def running(cleared: None) -> Iterator[None]:
    """A worker on the database of both backends."""
    with app.running(["default", "slow"], concurrency=4):
        yield
    app.close()


@pytest.mark.django_db(transaction=True)
def test_a_worker_runs_a_task_with_the_options_of_its_backend(running: None) -> None:
    results = [fail.using(backend="slow", queue_name="slow").enqueue(), fail.enqueue()]
    for result in results:
        app.wait(result.id, timeout=30)
        result.refresh()
    assert [result.attempts for result in results] == [2, 1]
    assert [result.backend for result in results] == ["slow", "default"]


@pytest.mark.django_db(databases=["default", "archive"])
def test_a_receiver_handles_the_exception_of_a_task_at_the_backend_that_ran_it() -> None:
    """So it is logged with its traceback, which is as it was for who is told next."""
    result = fail.using(backend="archive").enqueue()
    raised = ValueError("no such order")
    seen: list[Any] = []

    def finished(sender: Any, task_result: Any, **_: Any) -> None:
        seen.append((task_result.id, task_result.backend, sys.exc_info()[1]))

    task_finished.connect(finished)
    try:
        for error in (raised, None):  # None: it ran in a child process
            send_failed(
                Failure(
                    *(result.id, "shop.tasks.fail:archive", "default", 1, 1, "no such order"),
                    exception=error,
                    final=True,
                    retry_in=None,
                )
            )
    finally:
        task_finished.disconnect(finished)
    assert [entry[:2] for entry in seen] == 2 * [(result.id, "archive")]
    assert seen[0][2] is raised
    assert (str(seen[1][2]), raised.__traceback__) == ("no such order", None)


def unseen() -> None: ...


@pytest.mark.django_db
def test_a_task_that_no_worker_would_have_is_refused() -> None:
    """Its own backend made it, and that is none of Tenure's: `tenure worker` has never seen it."""
    tasks = {"default": {"BACKEND": DUMMY}, "tenure": settings.TASKS["default"]}
    with override_settings(TASKS=tasks):
        plain = task(unseen).using(backend="tenure")
        with pytest.raises(InvalidTask, match="backend='tenure'"):
            plain.enqueue()
