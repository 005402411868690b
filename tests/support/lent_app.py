"""Fixtures of tests that are run with each kind of connection: name this in `pytest_plugins`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tenure import Tenure
from tests.support.lenders import KINDS, SQLITE, Kind, Lender, lent


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    return kind


@pytest.fixture
def app_for_kind(request: pytest.FixtureRequest, kind: Kind) -> Iterator[Tenure]:
    """An application on a new database that the kind of connection is for."""
    url = request.getfixturevalue("sqlite_url" if kind in SQLITE else "postgres_url")
    with Tenure(url) as made:
        yield made
        assert made.verify() == []


@pytest.fixture
def lender(app_for_kind: Tenure, kind: Kind) -> Iterator[Lender]:
    with lent(kind, app_for_kind.database) as lender:
        yield lender
