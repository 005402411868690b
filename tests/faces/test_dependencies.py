"""Jobs that depend on others, over HTTP and from the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tenure import JobNotFound, NewJob, Tenure
from tenure.values.ids import new_id
from tenure.wire import requests
from tests.support.cli import output_of, run_cli
from tests.support.http import assert_problem


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Tenure]:
    with Tenure(f"sqlite:///{tmp_path / 'jobs.db'}") as app:
        yield app


def test_a_job_says_over_http_what_it_depends_on(app: Tenure, api: TestClient) -> None:
    one, two = app.enqueue("a"), app.enqueue("a")
    body: dict[str, Any] = {
        "type": "sum",
        "depends_on": [one.id, {"job_id": two.id, "meets": "settled", "name": "two"}],
    }
    job = api.post("/jobs", json=body).json()
    assert (job["status"], api.post("/jobs", json=body | {"needs": "any"}).status_code) == (
        "waiting",
        201,
    )
    batch = api.post("/jobs/batch", json=[body, body | {"needs": 1}]).json()
    assert [one["status"] for one in batch] == ["waiting"] * 2
    assert f"{one.id} (pending)" in api.get(f"/jobs/{job['id']}/explain").json()["text"]
    missing = body | {"depends_on": [new_id()]}
    assert_problem(api.post("/jobs", json=missing), 404, "job_not_found")
    for wrong in ({"needs": 3}, {"depends_on": "x"}, {"depends_on": [{"job_id": one.id, "x": 1}]}):
        assert api.post("/jobs", json=body | wrong).status_code == 400
    app.cancel(one.id)
    app.cancel(two.id)
    released = api.post(f"/jobs/{job['id']}/unblock").json()
    assert (released["status"], app.history(job["id"])[-1].event) == ("pending", "unblocked")
    assert_problem(api.post(f"/jobs/{job['id']}/unblock"), 409, "illegal_transition")


def test_a_client_sends_what_python_takes(app: Tenure) -> None:
    one, two = app.enqueue("a"), app.enqueue("a")
    options: Any = {"depends_on": {"left": one, "right": two.failed}, "needs": "any"}
    assert requests.new_job(NewJob("sum", {}, options), "$")["depends_on"] == [
        {"job_id": one.id, "meets": "completed", "name": "left"},
        {"job_id": two.id, "meets": "failed", "name": "right"},
    ]


def test_a_job_says_on_the_command_line_what_it_depends_on(app: Tenure) -> None:
    here = {"TENURE_DATABASE": app.database}
    one, two = app.enqueue("a"), app.enqueue("a")
    on = ("--depends-on", one.id, "--depends-on", f"{two.id}:settled")
    id = output_of("enqueue", "sum", *on, "--needs", "1", **here).strip()
    job = app.get(id)
    assert (job.status, job.need, job.spare) == ("waiting", 1, 1)
    assert run_cli("enqueue", "sum", "--depends-on", f"{one.id}:past", **here).exit_code == 2
    assert "pending" in output_of("jobs", "unblock", id, **here)
    with pytest.raises(JobNotFound):
        app.enqueue("sum", depends_on=[new_id()])
