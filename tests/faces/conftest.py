"""Clients of the application of a test, which most tests define."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tenure import Tenure
from tests.support.http import api_client


@pytest.fixture
def api(app: Tenure) -> Iterator[TestClient]:
    """A client of the API."""
    with api_client(app) as api:
        yield api


@pytest.fixture
def web(app: Tenure) -> Iterator[TestClient]:
    """A browser on the dashboard."""
    with api_client(app) as web:
        yield web
