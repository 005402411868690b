"""`TenureTestMixin`: a view adds tasks, the test looks at them and runs them."""

from __future__ import annotations

import os
import unittest
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.test import TestCase, TransactionTestCase
from django.test.client import RequestFactory
from shop import task_api
from shop.models import Order
from shop.tasks import apart, fail, hosts, ship, ship_async, ship_once

from tenure import InvalidInput, testing
from tenure.contrib.django import app
from tenure.contrib.django.testing import TenureTestMixin

IN_MEMORY = "cannot be drained: the database is in memory"


def order_view(request: HttpRequest) -> HttpResponse:
    order = Order.objects.create(number=int(request.POST["number"]))
    return HttpResponse(ship.enqueue(order.number).id)


def order(number: int) -> str:
    return order_view(RequestFactory().post("/", {"number": number})).text


class InTransaction(TenureTestMixin, TestCase):
    def test_a_view_adds_a_task_that_runs(self) -> None:
        """pytest-django#752: what waits for a commit never runs in a TestCase."""
        task_id = order(7)
        job = self.jobs.assert_enqueued("shop.tasks.ship", {"args": [7]}, count=1)
        assert job.id == task_id
        assert self.jobs.drain().completed == 1
        assert Order.objects.get(number=7).shipped == 1
        result = ship.get_backend().get_result(task_id)
        assert (result.status, result.return_value) == ("SUCCESSFUL", {"shipped": 1})

    def test_b_nothing_is_left_of_the_test_before(self) -> None:
        assert not Order.objects.exists()
        self.jobs.assert_none_enqueued()
        assert app.find() == []

    def test_a_coroutine_has_the_connection_of_the_test(self) -> None:
        """On a thread of its own it would not see what the test has not committed."""
        Order.objects.create(number=1)
        result = ship_async.enqueue(1)
        self.jobs.drain()
        assert Order.objects.get(number=1).shipped == 1
        assert ship.get_backend().get_result(result.id).return_value == 1
        assert connection.in_atomic_block

    async def test_a_coroutine_can_drain(self) -> None:
        await Order.objects.acreate(number=1)
        await ship_async.aenqueue(1)
        await ship.aenqueue(1)
        await self.jobs.drain_async()
        assert (await Order.objects.aget(number=1)).shipped == 2

    def test_the_error_of_a_task_is_that_of_the_test(self) -> None:
        fail.enqueue()
        with self.assertRaisesMessage(ValueError, "no such order"):
            self.jobs.drain()

    def test_a_task_names_the_type_of_its_jobs(self) -> None:
        order(7)
        slow = ship.using(backend="slow", queue_name="slow")
        slow.enqueue(8)
        self.jobs.assert_enqueued(ship, {"args": [7]}, count=1)
        self.jobs.assert_enqueued(slow, {"args": [8]}, count=1)
        self.jobs.assert_none_enqueued(fail)
        with self.assertRaisesMessage(TypeError, "is no job type"):
            self.jobs.assert_enqueued(ship.func)

    def test_an_atomic_task_runs_at_once_in_the_block_of_the_caller(self) -> None:
        """There it was refused: "A durable atomic block cannot be nested"."""
        with testing.inline(app), transaction.atomic():
            Order.objects.create(number=1)
            result = ship_once.enqueue(1)
            assert Order.objects.get(number=1).shipped == 1
        result.refresh()
        assert result.return_value == 1

    def test_a_child_process_would_not_see_the_test(self) -> None:
        apart.enqueue()
        with self.assertRaisesMessage(InvalidInput, "a TransactionTestCase"):
            self.jobs.drain(real_processes=True)


class Committed(TenureTestMixin, TransactionTestCase):
    def setUp(self) -> None:
        if getattr(connection, "is_in_memory_db", bool)():
            with pytest.raises(ImproperlyConfigured, match="needs a database of tests"):
                super().setUp()
            raise unittest.SkipTest(IN_MEMORY)
        super().setUp()

    def test_a_view_adds_a_task_that_runs(self) -> None:
        order(7)
        assert self.jobs.drain().completed == 1
        assert Order.objects.get(number=7).shipped == 1

    test_b_again = test_a_view_adds_a_task_that_runs

    def test_child_processes_use_the_database_of_the_test(self) -> None:
        """In a child, the settings name the database of the site; the rows are not there."""
        Order.objects.create(number=1)
        result = ship_async.using(backend="slow", queue_name="slow").enqueue(1)
        others = [apart.enqueue(), hosts.enqueue()]
        assert self.jobs.drain(real_processes=True).completed == 3
        assert Order.objects.get(number=1).shipped == 1
        assert ship.get_backend().get_result(result.id).return_value == 1
        where, allowed = [ship.get_backend().get_result(id.id).return_value for id in others]
        assert (where[0], where[1] != os.getpid()) == (os.getpid(), True)
        assert "testserver" in allowed, "a child process of a test must send no mail"

    def test_no_signal_told_of_a_child_process_that_ended(self) -> None:
        """It would have had to send the signal itself."""
        seen: list[Any] = []

        def finished(sender: Any, task_result: Any, **_: Any) -> None:
            seen.append((task_result.id, task_result.status, task_result.errors))

        once = apart.using(timeout=2.0, max_retries=1)
        results = [once.enqueue(end) for end in ("dies", "raises", "times out")]
        task_api.task_finished.connect(finished)
        try:
            assert self.jobs.drain(real_processes=True, raise_errors=False).failed == 3
        finally:
            task_api.task_finished.disconnect(finished)
        for result in results:
            result.refresh()
        assert seen == [(result.id, "FAILED", result.errors) for result in results]

    def test_c_the_jobs_are_those_of_this_test(self) -> None:
        assert app.find() == []
        assert app.verify() == []
