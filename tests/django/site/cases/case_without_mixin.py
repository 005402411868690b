"""Test cases without `TenureTestMixin` that use `app`: `manage.py test` runs them, too."""

from __future__ import annotations

from unittest import skipIf

from django.db import connection
from django.test import TestCase, TransactionTestCase
from shop.tasks import count_orders

from tenure.contrib.django import app


class InTransaction(TestCase):
    def test_what_it_adds_is_gone_at_the_end(self) -> None:
        job = count_orders.enqueue(least=1)
        assert app.get(job.id) == job
        assert app.run_again(job.id).again_of == job.id

    @skipIf(connection.vendor == "sqlite", "Tenure cannot open a file that is locked")
    def test_what_is_read_is_what_is_committed(self) -> None:
        count_orders.enqueue(least=1)
        assert app.count(type="count_orders").jobs == 0


class Committing(TransactionTestCase):
    def test_it_adds_a_job(self) -> None:
        job = count_orders.enqueue(least=1)
        assert app.cancel(job.id).status == "cancelled"
