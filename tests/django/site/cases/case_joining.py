"""Calls on the site's `app` and on its job types join the transaction of Django that is open."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

import psycopg
import pytest
from asgiref.sync import async_to_sync
from django.conf import settings as site
from django.db import DatabaseError, connection, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import path
from shop.models import Order
from shop.tasks import count_orders, ship

from tenure import JobNotFound, NewJob, Tenure, testing
from tenure.contrib.django import app
from tenure.contrib.django._api import task_backends
from tenure.contrib.django.databases import _tenure_of
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tenure.store.tables import dependencies

pytestmark = pytest.mark.usefixtures("cleared")
committing = pytest.mark.django_db(transaction=True, databases=["default", "archive"])
on_postgres = pytest.mark.skipif(connection.vendor == "sqlite", reason="the file is locked")

numbers = count(1)
NEW = [NewJob("plain", {}, {})]


class Undo(Exception):
    pass


@contextmanager
def undone(using: str = "default") -> Iterator[None]:
    with suppress(Undo), transaction.atomic(using=using):
        yield
        raise Undo


def seen(job_id: str, of: Tenure = app) -> str:
    """What others see of a job: its status and how many signals it has; `gone` for no job."""
    try:
        return f"{of.core.get(job_id).status.value}, {len(of.signals.list(job_id))} signals"
    except JobNotFound:
        return "gone"


def pending() -> str:
    return app.enqueue("plain").id


def failed() -> str:
    queue = f"to-fail-{next(numbers)}"
    job = app.enqueue("plain", queue=queue, max_retries=1)
    claim = ClaimRequest(worker="w", limit=1, lease_seconds=60, queues=(queue,))
    (lease,) = app.core.claim(claim).leases
    app.core.report([Report(job.id, lease.lease_id, Outcome.FAILED, error="no")])
    return job.id


def in_workflow(_: str) -> str:
    with app.workflow("orders") as flow:
        node = flow.add(NEW[0])
    return node.id


async def in_workflow_async(_: str) -> str:
    async with app.workflow("orders") as flow:
        node = flow.add(NEW[0])
    return node.id


def sent(job_id: str) -> str:
    app.signal(app.get(job_id), "go", {"by": 1})
    return job_id


async def sent_async(job_id: str) -> str:
    await app.signal_async(job_id, "go")
    return job_id


async def id_of(job: Awaitable[Any]) -> str:
    return str((await job).id)


async def node_of(flow: Awaitable[Any]) -> str:
    return str((await flow).nodes[0].id)


async def first_id_of(jobs: Awaitable[list[Any]]) -> str:
    return str((await jobs)[0].id)


FRESH, GONE = "pending, 0 signals", "gone"
VERBS: dict[str, tuple[Callable[[], str], Callable[[str], Any], str, str]] = {
    "enqueue": (pending, lambda _: app.enqueue("plain").id, GONE, FRESH),
    "enqueue_async": (pending, lambda _: id_of(app.enqueue_async("plain")), GONE, FRESH),
    "enqueue_many": (pending, lambda _: app.enqueue_many(NEW)[0].id, GONE, FRESH),
    "enqueue_many_async": (
        *(pending, lambda _: first_id_of(app.enqueue_many_async(iter(NEW)))),
        *(GONE, FRESH),
    ),
    "of a type": (pending, lambda _: count_orders.enqueue(least=1).id, GONE, FRESH),
    "of a type, async": (pending, lambda _: id_of(count_orders.enqueue_async(1)), GONE, FRESH),
    "submit": (pending, lambda _: count_orders.options(tags=["a"]).submit(1).id, GONE, FRESH),
    "run_again": (pending, lambda id: app.run_again(id, priority=3).id, GONE, FRESH),
    "run_again_async": (pending, lambda id: id_of(app.run_again_async(id)), GONE, FRESH),
    "workflow": (pending, in_workflow, GONE, FRESH),
    "workflow, async": (pending, in_workflow_async, GONE, FRESH),
    "chain": (pending, lambda _: app.chain(2 * NEW).nodes[0].id, GONE, FRESH),
    "chain_async": (pending, lambda _: node_of(app.chain_async(NEW)), GONE, FRESH),
    "group": (pending, lambda _: app.group(NEW, then=NEW[0]).nodes[0].id, GONE, FRESH),
    "group_async": (pending, lambda _: node_of(app.group_async(NEW)), GONE, FRESH),
    "batch": (pending, lambda _: app.batch(NEW, on_end=NEW[0]).nodes[0].id, GONE, FRESH),
    "batch_async": (pending, lambda _: node_of(app.batch_async(NEW)), GONE, FRESH),
    "cancel": (pending, lambda id: app.cancel(id).id, FRESH, "cancelled, 0 signals"),
    "cancel_async": (
        *(pending, lambda id: id_of(app.cancel_async(id, reason="no"))),
        *(FRESH, "cancelled, 0 signals"),
    ),
    "retry": (
        *(failed, lambda id: app.retry(id, from_scratch=False).id),
        *("failed, 0 signals", FRESH),
    ),
    "retry_async": (
        *(failed, lambda id: id_of(app.retry_async(id, more_retries=2))),
        *("failed, 0 signals", FRESH),
    ),
    "signal": (pending, sent, FRESH, "pending, 1 signals"),
    "signal_async": (pending, sent_async, FRESH, "pending, 1 signals"),
}
"""What is there before, what is done to it, and what others see before and after the commit."""


def acted(verb: str, job_id: str) -> str:
    """Do it, and return which job to look at."""
    act = VERBS[verb][1]

    async def awaited() -> str:
        return str(await act(job_id))

    return async_to_sync(awaited)() if "async" in verb else str(act(job_id))


@committing
@pytest.mark.parametrize("verb", VERBS)
def test_what_changes_a_job_is_committed_or_undone_with_the_rows(verb: str) -> None:
    """PostgreSQL committed it at once, and SQLite refused it: `app` had a connection of its own."""
    make, _, before, after = VERBS[verb]
    job_id = make()
    with undone():
        at = acted(verb, job_id)
        assert seen(at) == before
    assert seen(at) == before
    with transaction.atomic():
        with undone():
            inner = acted(verb, job_id)
        at = acted(verb, job_id)
        assert seen(at) == before
    assert seen(at) == after
    assert (inner == at) == (before != GONE)
    assert seen(inner) == (after if inner == at else GONE)
    assert app.verify() == []


@committing
def test_the_transaction_sees_its_own_jobs() -> None:
    with undone():
        job = count_orders.enqueue(least=1)
        assert app.get(job.id) == job
        assert async_to_sync(app.get_async)(job.id) == job
        again = app.run_again(job.id)
        assert (again.again_of, again.payload) == (job.id, {"least": 1})
    with pytest.raises(JobNotFound):
        app.get(job.id)


@committing
def test_what_runs_again_depends_on_jobs_of_the_transaction() -> None:
    """It asked a connection of its own, to which a job that is not committed depends on none."""
    with transaction.atomic():
        first, second = app.chain(2 * NEW).nodes
        again = app.run_again(second.id)
        assert again.status == "waiting"
    assert [id for id, *_ in dependencies.parents(app.core.store.read, again.id)] == [first.id]


@committing
def test_a_workflow_with_a_key_is_added_once() -> None:
    flows = []
    with transaction.atomic():
        for _ in range(2):
            with app.workflow("orders", key="of-today") as flow:
                flow.add(NEW[0])
            flows.append(flow)
    assert [flow.created for flow in flows] == [True, False]
    assert flows[0].id == flows[1].id
    assert [node.id for node in flows[0].nodes] == [node.id for node in flows[1].nodes]


@committing
@pytest.mark.parametrize("verb", VERBS)
def test_without_a_transaction_django_is_not_asked(
    verb: str, django_assert_num_queries: Any
) -> None:
    make, _, _, after = VERBS[verb]
    job_id = make()
    with django_assert_num_queries(0):
        at = acted(verb, job_id)
    assert seen(at) == after


@committing
def test_without_a_transaction_django_opens_no_connection() -> None:
    connection.close()
    app.enqueue("plain")
    assert connection.connection is None


@committing
def test_each_application_joins_the_transactions_of_its_own_database() -> None:
    archive: Tenure = task_backends["archive"].app  # type: ignore[attr-defined]
    archive.open()
    try:
        with undone("archive"):
            here, there = app.enqueue("plain"), archive.enqueue("plain")
            assert (seen(here.id), seen(there.id, archive)) == (FRESH, GONE)
        with undone():
            here, there = app.enqueue("plain"), archive.enqueue("plain")
            assert (seen(here.id), seen(there.id, archive)) == (GONE, FRESH)
        assert (seen(here.id), seen(there.id, archive)) == (GONE, FRESH)
        assert archive.cancel(there.id).status == "cancelled"
    finally:
        archive.close()


def buy(request: HttpRequest) -> HttpResponse:
    Order.objects.create(number=int(request.POST["number"]))
    job = count_orders.enqueue(least=1)
    if request.POST["number"] == "2":
        raise Undo
    return HttpResponse(job.id)


urlpatterns = [path("buy", buy)]


@committing
@override_settings(ROOT_URLCONF=__name__)
def test_a_request_that_is_a_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    client = Client(raise_request_exception=False)
    job_id = client.post("/buy", {"number": 1}).text
    assert seen(job_id) == FRESH
    assert client.post("/buy", {"number": 2}).status_code == 500
    assert [job.id for job in app.find(type="count_orders", limit=1)] == [job_id]
    assert Order.objects.count() == 1


@committing
def test_a_transaction_that_is_begun_by_hand() -> None:
    transaction.set_autocommit(False)
    try:
        first = app.enqueue("plain")
        transaction.rollback()
        second = app.enqueue("plain")
        transaction.commit()
    finally:
        transaction.set_autocommit(True)
    assert (seen(first.id), seen(second.id)) == (GONE, FRESH)


@committing
def test_a_transaction_that_is_lost_already() -> None:
    with suppress(Undo), transaction.atomic():
        connection.close()
        with pytest.raises(DatabaseError):
            app.enqueue("lost")
        raise Undo
    assert app.find(type="lost") == []


@committing
@on_postgres
def test_bulk_actions_are_at_once() -> None:
    """They take many transactions. `Within` has none of them, nor a retry that deletes steps."""
    first, job_id = app.enqueue("plain", tags=["old"]), failed()
    with undone():
        assert app.cancel(tag="old").changed == 1
        app.retry(job_id, from_scratch=True)
    assert (seen(first.id), seen(job_id)) == ("cancelled, 0 signals", FRESH)


@committing
def test_an_application_that_a_test_has_moved_elsewhere() -> None:
    with undone(), testing.on(app) as jobs:
        job = app.enqueue("plain")
        assert jobs.enqueued("plain") == [job]
    assert seen(job.id) == GONE


@committing
@on_postgres
def test_the_commit_notifies_workers_as_the_backend_says() -> None:
    with psycopg.connect(app.database.partition("&schema")[0], autocommit=True) as listener:
        listener.execute("LISTEN tenure")
        with transaction.atomic():
            app.enqueue("plain")
            assert list(listener.notifies(timeout=0)) == []
        assert list(listener.notifies(timeout=30, stop_after=1))
        late = {"BACKEND": site.TASKS["default"]["BACKEND"], "OPTIONS": {"wake": "later"}}
        with override_settings(TASKS={"default": late}):
            lazy = _tenure_of.__wrapped__("default", "tenure")
        with transaction.atomic():
            kept = lazy.enqueue("plain")
        with transaction.atomic():
            app.enqueue("plain")
        assert seen(kept.id) == FRESH
        assert len(list(listener.notifies(timeout=30, stop_after=1))) == 1
        assert list(listener.notifies(timeout=0)) == []


@pytest.mark.django_db
def test_a_task_and_a_job_type_in_one_transaction(django_assert_num_queries: Any) -> None:
    """In a TestCase all is in the transaction of the test, which is never committed."""
    result, job = ship.enqueue(1), count_orders.enqueue(least=1)
    assert (app.get(result.id).type, app.get(job.id).type) == ("shop.tasks.ship", "count_orders")
    assert (seen(result.id), seen(job.id)) == (GONE, GONE)
