"""Django's test cases with the jobs of the project."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from tenure import testing
from tenure.contrib.django import handlers
from tenure.contrib.django.databases import IN_MEMORY, backends
from tenure.contrib.django.joining import for_test
from tenure.testing import Jobs

if TYPE_CHECKING:
    from django.test import TransactionTestCase as _Case
else:
    _Case = object


@contextmanager
def jobs_of(backend: Any) -> Iterator[Jobs]:
    """The `Jobs` of a `TenureBackend` in a test of Django: what the mixin and the fixture give."""
    app, connection = backend.app, connections[backend.database]
    if connection.in_atomic_block:
        handlers.lent.append(connection)
        try:
            with testing.within(app, connection) as jobs:
                yield jobs
        finally:
            handlers.lent.remove(connection)
        return
    if app.database == IN_MEMORY:
        raise ImproperlyConfigured(
            "this test commits, which needs a database of tests that is a file: set "
            f"DATABASES[{backend.database!r}]['TEST'] = {{'NAME': ...}}, or test in a transaction"
        )
    with for_test(), testing.on(app, app.database) as jobs:
        jobs.clear(force=True)  # what tests without it have left
        yield jobs
        jobs.clear(force=True)


class TenureTestMixin(_Case):
    """Gives a test case `self.jobs`, the `Jobs` of the first backend of Tenure.

        class OrderTest(TenureTestMixin, TestCase): ...

    In a `TestCase` all of it happens in the transaction of the test: nothing has to be committed,
    and nothing is left. A `TransactionTestCase` and what is derived from it commit, so all jobs are
    deleted before and after each test; on SQLite, the database of tests has to be a file there.
    Your `setUp` calls `super().setUp()` first.
    """

    jobs: Jobs

    def setUp(self) -> None:
        """Let the application use the database of the test."""
        super().setUp()
        self.jobs = self.enterContext(jobs_of(backends()[0]))
