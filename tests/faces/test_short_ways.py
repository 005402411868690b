"""A call passes through few modules, so that a reader can follow it."""

from __future__ import annotations

import pytest

from tenure import Tenure
from tests.support.http import api_client
from tests.support.short_ways import way_of_a_call

MAX_MODULES = 18


@pytest.mark.parametrize("url", ["sqlite_url", "postgres_url"], ids=["sqlite", "postgres"])
def test_adding_a_job_over_http(url: str, request: pytest.FixtureRequest) -> None:
    new = {"type": "send_email", "payload": {"to": "a@example.com"}, "max_retries": 5}
    database = request.getfixturevalue(url)
    with way_of_a_call() as way, Tenure(database) as app, api_client(app) as client:
        for _ in range(2):  # fills the caches
            assert client.post("/jobs", json=new).status_code == 201
        with way.recorded():
            assert client.post("/jobs", json=new).status_code == 201
    assert "http/api/jobs.py" in way.modules
    assert len(way.modules) <= MAX_MODULES, sorted(way.modules)
