"""The jobs are in another database: workers end, producers and callers are told where."""

from __future__ import annotations

import asyncio
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from tenure import JobContext, Tenure
from tenure.errors import StoreMoved
from tenure.store.database import ELSEWHERE
from tenure.store.moving.sides import Destination, SqliteSource
from tenure.telemetry import logs
from tenure.worker import webhook_delivery
from tenure.worker.maintenance import MaintenanceThread
from tenure.worker.webhook_delivery import WebhookDelivery
from tests.support.cli import PROGRAM, clean_environment, run_cli
from tests.support.http import api_client, assert_problem
from tests.support.waiting import WAIT_SECONDS, wait_until

MESSAGE = "the jobs were moved to postgresql://new/app; start the programs again with that address"


def hand_over(app: Tenure) -> None:
    """Close the database of `app` as the switch does."""
    app.open()
    source = SqliteSource(app.database)
    source.types = defaultdict(lambda: defaultdict(str))
    source.begin(Destination("id", "postgresql://new/app", moved=False))
    with source.closed():
        source.hand_over(ELSEWHERE + MESSAGE)
    source.close()


@pytest.mark.parametrize("runs", [True, False], ids=["busy", "idle"])
def test_a_worker_ends_and_stops_its_handlers(app: Tenure, runs: bool) -> None:
    """One that runs nothing finds out when it says that it is there."""
    seen: list[str | None] = []

    @app.job
    async def work(context: JobContext) -> None:
        seen.append("started")
        try:
            await asyncio.sleep(WAIT_SECONDS)
        finally:
            seen.append(context.stopped)

    def program() -> None:
        with app.running(lease=1.5) as worker:
            if runs:
                work.enqueue()
                wait_until(lambda: seen == ["started"])
            else:
                wait_until(lambda: app.workers.list() != [])
            hand_over(app)
            wait_until(lambda: worker._failure is not None, "the worker to end")

    with pytest.raises(StoreMoved, match="postgresql://new/app"):
        program()
    assert seen == (["started", "lost"] if runs else [])


def run_to_its_end(app: Tenure, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the database of `app`, which is to end by itself."""
    return subprocess.run(
        (*PROGRAM, *command, "--database", app.database),
        env=clean_environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )


def test_a_worker_process_says_where_the_jobs_are(app: Tenure, tmp_path: Path) -> None:
    hand_over(app)
    ended = run_to_its_end(app, tmp_path, "worker", "--fake-handlers")
    assert ended.returncode == 4
    assert f"Error: {MESSAGE}" in ended.stderr


def test_commands_and_requests_are_told(app: Tenure) -> None:
    hand_over(app)
    refused = run_cli("enqueue", "work", "--database", app.database)
    assert (refused.exit_code, refused.stderr) == (4, f"Error: {MESSAGE}\n")
    with api_client(app) as api:
        answer = api.post("/jobs", json={"type": "work", "payload": {}})
        body = assert_problem(answer, 503, "store_moved")
        assert answer.headers["retry-after"] == "1"
        assert "postgresql" not in body["detail"]
        assert api.get("/jobs").status_code == 200


def test_a_server_is_not_ready(app: Tenure, caplog: pytest.LogCaptureFixture) -> None:
    """It was, so that a load balancer sent it every job, which it refused."""
    with api_client(app) as api:
        assert api.get("/ready").status_code == 200
        hand_over(app)
        unready = api.get("/ready")
        body = assert_problem(unready, 503, "store_unavailable")
        assert "in another database" in body["detail"]
        assert "postgresql" not in unready.text
        page = api.get("/", headers={"Accept": "text/html"}).text
        assert "in another database" in page
        assert "postgresql" not in page
        assert f"says that nothing can be stored: {MESSAGE}" in caplog.text
        assert api.get("/health").status_code == 200
        said = [line for line in caplog.text.splitlines() if "does not answer" in line]
        assert len(said) == 1
        assert f"not ready, the database does not answer or commit: {MESSAGE}" in said[0]
        api.post("/jobs", json={"type": "work", "payload": {}})
        assert f"{MESSAGE}\n" in caplog.text.partition("POST /jobs")[2]


def test_the_sweep_says_once_where_the_jobs_are(
    app: Tenure, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said for ever that it is tried again."""
    monkeypatch.setattr(logs, "REPEAT_SECONDS", 0)
    app.enqueue("work")
    hand_over(app)
    sweeper = MaintenanceThread(app)
    for _ in range(3):
        sweeper._try(app.core.measure)
    assert [one.getMessage() for one in caplog.records] == [
        f"nothing can be written here any more: {MESSAGE}"
    ]


def test_deliveries_wait_quietly(
    app: Tenure, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their worker was started and ended again every two seconds, with a line each time."""
    monkeypatch.setattr(webhook_delivery, "WEBHOOK_CHECK_SECONDS", 0.01)
    monkeypatch.setattr(logs, "REPEAT_SECONDS", 0)
    app.webhooks.create("shop", "https://example.com", ["enqueued"])
    hand_over(app)
    delivery = WebhookDelivery(app, private=False)
    delivery.start()
    try:
        wait_until(lambda: caplog.text.count("deliveries wait") >= 3, "three looks")
    finally:
        delivery.stop()
    assert f"deliveries wait for the database: {MESSAGE}" in caplog.text
    assert "this worker ends" not in caplog.text


def test_a_server_with_a_worker_ends_without_a_traceback(app: Tenure, tmp_path: Path) -> None:
    hand_over(app)
    ended = run_to_its_end(app, tmp_path, "serve", "--fake-handlers", "--port", "0")
    assert ended.returncode == 4
    assert f"Error: {MESSAGE}" in ended.stderr
    assert "so the server stops" in ended.stderr
    assert "Traceback" not in ended.stderr
