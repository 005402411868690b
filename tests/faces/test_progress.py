"""How far a job has come is shown by every face, without what is redacted."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator

import pytest

from tenure import JobContext, Tenure
from tenure.client import Client
from tenure.dashboard.site import FILES
from tenure.rules.reports import ClaimRequest, Lease, Outcome, Report
from tenure.rules.steps import JobProgress
from tenure.server import build
from tests.support.cli import cli_json, output_of
from tests.support.http import JSON, Exchange, ServerProcess, api_client
from tests.support.workers import running_worker, wait_until_completed


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Tenure]:
    with Tenure(sqlite_url, redact=["card"]) as app:
        yield app


def running(app: Tenure, done: float = 63.0, total: float | None = 100) -> Lease:
    """A running job with progress."""
    app.enqueue("pay", {"card": "4111-1111"})
    (lease,) = app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=60)).leases
    said = JobProgress(done, total, "charging <b>4111-1111</b>")
    app.core.record_progress([(lease.id, lease.lease_id, said)])
    return lease


SHOWN = {"done": 63.0, "total": 100.0, "message": "charging <b>[redacted]</b>"}


def test_http_shows_it_with_the_job_and_with_running_jobs(app: Tenure) -> None:
    lease = running(app)
    waiting = app.enqueue("pay", {"card": "1"})
    with api_client(app) as api:
        one = api.get(f"/jobs/{lease.id}").json()["progress"]
        assert one.pop("at").endswith("Z")
        assert one == SHOWN
        listed = {job["id"]: job["progress"] for job in api.get("/jobs").json()}
        assert listed[waiting.id] is None
        assert listed[lease.id]["done"] == 63.0
        app.core.report([Report(lease.id, lease.lease_id, Outcome.FAILED, error="no")])
        assert api.get(f"/jobs/{lease.id}").json()["progress"]["done"] == 63.0


def test_workers_send_it_over_http(app: Tenure) -> None:
    @app.job
    def count(context: JobContext) -> None:
        context.progress(3, 4, "\udcff nearly")

    job = count.enqueue()
    with ServerProcess(app.database) as server, Client(server.url) as client:
        with running_worker(app, client):
            wait_until_completed(app, job)
        lease = running(app)
        stale = (lease.id, "0" * 32, JobProgress(1))
        assert client.record_progress([(lease.id, lease.lease_id, JobProgress(64)), stale]) == 1
    found = app.progress(job.id)
    assert found is not None
    assert (found.done, found.total, found.message) == (3, 4, "\\udcff nearly")


BAD = ['{"done": "many"}', '{"total": 1}', '{"done": 1e999}', '{"done": 1, "total": -1e999}']
TOO_LARGE = [f'{{"done": {n}}}' for n in (2**53, -(2**53), 10**25, int(sys.float_info.max) + 1)]


def test_bad_progress_is_refused(app: Tenure) -> None:
    """An integer of 26 digits was stored as another number: a body's integers have 64 bits."""
    with api_client(app) as api:
        for said in [*BAD, *TOO_LARGE]:
            entry = f'[{{"lease_id": "x.y", {said[1:]}]'
            report = f'[{{"lease_id": "x.y", "outcome": "completed", "progress": {said}}}]'
            assert api.post("/progress", content=entry, headers=JSON).status_code == 400, said
            assert api.post("/reports", content=report, headers=JSON).status_code == 400, said


@pytest.mark.anyio
async def test_the_events_of_one_job_have_it(app: Tenure) -> None:
    lease = await asyncio.to_thread(running, app)
    async with Exchange(build(app), "GET", "/events", query=f"after=&job={lease.id}") as stream:
        await stream.wait_for(b"event: progress")
        moved = [(lease.id, lease.lease_id, JobProgress(80, 100))]
        await asyncio.to_thread(app.core.record_progress, moved)
        await stream.wait_for(b'"done":80.0')
        blocks = stream.answered.decode().split("\n\n")
    sent = [block.split("data: ")[1] for block in blocks if block.startswith("event: progress")]
    first, second = map(json.loads, sent)
    assert first["message"] == "charging [redacted]" or first["done"] == 63.0
    assert second["done"] == 80.0


def test_the_dashboard_draws_a_bar(app: Tenure) -> None:
    lease = running(app)
    with api_client(app) as web:
        for path in (f"/ui/jobs/{lease.id}", "/ui/jobs"):
            page = web.get(path).text
            assert '<progress max="1" value="0.63"' in page
            assert "63 %" in page
            said = "charging &lt;b&gt;[redacted]&lt;/b&gt;" in page
            assert said is (path != "/ui/jobs")  # a cell of the list has no room for it
        other = running(app, 5, None)
        assert "5.0 done" in web.get(f"/ui/jobs/{other.id}").text


def test_the_command_line_shows_it(app: Tenure) -> None:
    lease = running(app)
    where = ("--database", app.database)
    shown = output_of("jobs", "show", lease.id, *where)
    assert "progress          63 of 100 charging <b>4111-1111</b>" in shown
    found = cli_json("jobs", "show", lease.id, *where)
    assert found["job"]["progress"]["total"] == 100


def test_only_a_page_with_a_bar_is_fetched_each_second(app: Tenure) -> None:
    """By the class that live.js looks for."""
    (name,) = re.findall(r'querySelector\("\.(\S+)"\) \? MOVES', FILES["live.js"].decode())
    lease, still = running(app), app.enqueue("still", delay="1h")
    with api_client(app) as web:
        assert f'class="{name}"' in web.get(f"/ui/jobs/{lease.id}").text
        assert f'class="{name}"' not in web.get(f"/ui/jobs/{still.id}").text
