"""The plugin of pytest: the fixtures `tenure_app` and `jobs`. Nothing else is imported before."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tenure import Tenure
    from tenure.testing import Jobs

OF_DJANGO = {"db", "transactional_db", "live_server", "django_db_reset_sequences"}
"""The fixtures of pytest-django with which a test may use its databases."""
OVERRIDE = (
    "which application is tested? Define the fixture `tenure_app` in conftest.py: `return shop.app`"
)


@pytest.fixture
def tenure_app() -> Tenure:
    """The application under test. Override it, unless it is that of a Django project."""
    if not _backends():
        pytest.fail(OVERRIDE, pytrace=False)
    app: Tenure = sys.modules["tenure.contrib.django"].app
    return app


@pytest.fixture
def jobs(request: pytest.FixtureRequest, tenure_app: Tenure) -> Iterator[Jobs]:
    """The `Jobs` of `tenure_app`, on a database of the test alone.

    For an application of Django it is the database of the test: with `db` in the transaction of the
    test, with `transactional_db` cleared afterwards.
    """
    with _jobs(request, tenure_app) as found:
        yield found


def _jobs(request: pytest.FixtureRequest, app: Tenure) -> AbstractContextManager[Jobs]:
    from tenure import testing

    backends = [one for one in _backends() if one.app is app]
    marker = request.node.get_closest_marker("django_db")
    if not backends or (marker is None and OF_DJANGO.isdisjoint(request.fixturenames)):
        return testing.on(app)
    marked = marker is not None and (marker.kwargs.get("transaction") or marker.args[:1] == (True,))
    commits = marked or not OF_DJANGO.isdisjoint({*request.fixturenames} - {"db"})
    request.getfixturevalue("transactional_db" if commits else "db")
    from tenure.contrib.django.testing import jobs_of

    return jobs_of(backends[0])


def _backends() -> list[Any]:
    """Return the backends for tasks of the Django project under test, if there is one."""
    if "django.conf" not in sys.modules:
        return []
    from django.apps import apps

    if not (apps.ready and apps.is_installed("tenure.contrib.django")):
        return []
    from tenure.contrib.django.databases import backends

    return backends()
