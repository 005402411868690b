"""The jobs are in another database: workers end, producers and callers are told where."""

from __future__ import annotations

import asyncio
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from tenure import JobContext, Tenure
from tenure.errors import StoreMoved
from tenure.store.moving.sides import Destination
from tenure.store.moving.sqlite import SqliteSource
from tenure.store.protocol import ELSEWHERE
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


def test_a_worker_process_says_where_the_jobs_are(app: Tenure, tmp_path: Path) -> None:
    hand_over(app)
    command = (*PROGRAM, "worker", "--fake-handlers", "--database", app.database)
    ended = subprocess.run(
        command,
        env=clean_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
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


def test_a_server_is_not_ready(app: Tenure) -> None:
    """It was, so that a load balancer sent it every job, which it refused."""
    with api_client(app) as api:
        assert api.get("/ready").status_code == 200
        hand_over(app)
        unready = api.get("/ready")
        body = assert_problem(unready, 503, "store_unavailable")
        assert "in another database" in body["detail"]
        assert "postgresql" not in unready.text
        assert "in another database" in api.get("/", headers={"Accept": "text/html"}).text
        assert api.get("/health").status_code == 200
