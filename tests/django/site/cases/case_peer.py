"""What django-tasks-db 0.13 tests of itself, where it applies; each test names those it repeats.

Others of it are in `case_aliases.py` (its backends) and `test_worker.py`: what is locked or killed,
Ctrl-C once and twice, several workers, paths that lead to no task. Django's own tests of backends,
which are run with ours, have the rest of `DatabaseBackendTestCase`. What does not apply:

- `test_custom_id_function` and others of ids: an id is a UUIDv7 here, and the database insists.
- `--batch`, `--max-tasks`: a test runs tasks with `jobs.drain()`, and a signal ends a worker.
- `--interval`, the startup delay: workers are notified of tasks, and decide when to look.
- `--worker-id`: ids of workers are random, so that no two are the same.
- `--exclude-queues`: a worker names the queues that it serves, or serves all.
- `--dry-run` of prune: jobs go by rules, which `tenure retention list` shows.
- `test_locks_tasks`, `test_get_locked`, `ExclusiveTransaction`, the order and the index of its
  table: claims are the store's, and `tests/contract` has their tests.
- Counts of queries, columns that its migrations fill in, and how its admin shows a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.conf import settings
from django.core.management import CommandError, call_command
from django.test import override_settings
from shop.models import Order
from shop.task_api import InvalidTask, TaskResultDoesNotExist, task
from shop.tasks import fail, ship

from tenure import InvalidInput
from tenure.contrib.django import app
from tenure.contrib.django.testing import jobs_of
from tenure.rules.reports import ClaimRequest
from tenure.testing import Jobs

pytestmark = [pytest.mark.usefixtures("cleared"), pytest.mark.django_db(transaction=True)]
DUMMY = f"{task.__module__.rpartition('.')[0]}.backends.dummy.DummyBackend"


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    """The jobs of the site, with an order to ship."""
    Order.objects.create(number=1)
    with jobs_of(ship.get_backend()) as found:
        yield found


def is_kept(result: Any) -> bool:
    try:
        result.refresh()
    except TaskResultDoesNotExist:
        return False
    return True


def prune(**keep: str | int) -> None:
    """Delete what is settled for longer, as a worker with these settings does."""
    while app.core.prune(keep):
        pass


def test_a_task_is_validated_again_when_it_is_added() -> None:
    """`test_validate_on_enqueue`, `test_validate_on_aenqueue`."""
    backend = settings.TASKS["default"]
    with override_settings(TASKS={"default": {**backend, "QUEUES": ["unknown"]}}):
        elsewhere = ship.using(queue_name="unknown")
    with override_settings(TASKS={"default": {**backend, "QUEUES": ["default"]}}):
        for add in (elsewhere.enqueue, async_to_sync(elsewhere.aenqueue)):
            with pytest.raises(InvalidTask, match="Queue 'unknown' is not valid"):
                add(1)


def test_a_worker_is_for_a_backend_of_tenures() -> None:
    """`test_unknown_backend`, `test_incorrect_backend`."""
    with override_settings(TASKS={**settings.TASKS, "dummy": {"BACKEND": DUMMY}}):
        for alias in ("unknown", "dummy"):
            with pytest.raises(CommandError, match=f"no backend '{alias}'"):
                call_command("tenure", "--backend", alias, "worker")


def test_a_worker_serves_its_queues_or_all(jobs: Jobs) -> None:
    """`test_doesnt_process_different_queue`, `test_process_all_queues`."""
    other, usual = ship.using(queue_name="queue-1").enqueue(1), ship.enqueue(1)
    with app.running(["queue-1"]):
        app.wait(other.id, timeout=30)
    usual.refresh()
    assert usual.status == "READY"
    with app.running():
        app.wait(usual.id, timeout=30)


def test_what_is_settled_is_pruned_and_nothing_else(jobs: Jobs) -> None:
    """`test_prunes_tasks`, `test_doesnt_prune_new_tasks`, `test_doesnt_prune_running_tasks`."""
    done = ship.enqueue(1)
    jobs.drain()
    running = ship.enqueue(1)
    app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=3600))
    new = ship.enqueue(1)
    jobs.travel("1m")
    prune(completed=0, failed=0, cancelled=0)
    assert [is_kept(one) for one in (done, running, new)] == [False, True, True]
    assert running.status == "RUNNING"


def test_a_queue_may_be_pruned_alone(jobs: Jobs) -> None:
    """`test_only_prunes_specified_queue`, `test_prune_all_queues`, `test_negative_age`."""
    results = [ship.enqueue(1), ship.using(queue_name="queue-1").enqueue(1)]
    jobs.drain()
    with pytest.raises(InvalidInput):
        app.retention.set(queue="queue-1", completed=-1)
    app.retention.set(queue="queue-1", completed="1d")
    try:
        jobs.travel("2d")
        prune()
        assert [is_kept(one) for one in results] == [True, False]
        jobs.travel("2h")  # it looks at what is kept longer once an hour
        prune(completed="1d")
        assert not is_kept(results[0])
    finally:
        app.retention.set(queue="queue-1", completed=None)


def test_failed_tasks_have_an_age_too(jobs: Jobs) -> None:
    """`test_min_age`, `test_failed_min_age`, `test_failed_min_age_zero`."""
    results = [ship.enqueue(1), fail.enqueue(), fail.enqueue()]
    jobs.drain(raise_errors=False)
    jobs.travel("3d")
    results.append(ship.enqueue(1))
    jobs.drain()
    kept = []
    for ages in ({"completed": "14d", "failed": "14d"}, {"completed": "3d", "failed": "5d"}):
        prune(**ages)
        kept.append([is_kept(one) for one in results])
    prune(completed="14d", failed=0)
    kept.append([is_kept(one) for one in results])
    assert kept == [[True] * 4, [False, True, True, True], [False, False, False, True]]
