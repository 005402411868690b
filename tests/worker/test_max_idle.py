"""A worker that ends once there was no job to run for some time (`--burst` of RQ)."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from tenure import JobContext, Status, Tenure
from tenure.client import Client
from tenure.errors import InvalidInput
from tests.support.cli import PROGRAM, clean_environment
from tests.support.programs import run
from tests.support.store import claim_request
from tests.support.waiting import wait_until
from tests.support.workers import running_worker

STOPS = ["it is stopping"]
MAX_IDLE = 0.2
HANDLERS = """
from tenure import Tenure

app = Tenure()


@app.job
def charge(order_id: int) -> str:
    return f"order {order_id} is paid"
"""


def test_a_worker_ends_when_the_jobs_that_are_due_have_run(
    app_on_each_engine: Tenure, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(HANDLERS)
    jobs = [app_on_each_engine.enqueue("charge", {"order_id": n}) for n in range(40)]
    later = app_on_each_engine.enqueue("charge", {"order_id": 40}, delay="1h")
    ended = run(
        [*PROGRAM, "worker", "--app", "shop:app", "--max-idle", "100ms"],
        env=clean_environment(TENURE_DATABASE=app_on_each_engine.database),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, "no job to run for 0.1 s" in ended.stderr) == (0, True)
    ends = [app_on_each_engine.get(job.id) for job in jobs]
    assert {(end.status, end.attempts) for end in ends} == {(Status.COMPLETED, 1)}
    assert app_on_each_engine.get(later.id).status is Status.PENDING
    assert app_on_each_engine.workers.list() == []


def test_it_takes_over_the_jobs_of_a_worker_that_died(app: Tenure, tmp_path: Path) -> None:
    """Though it ends before any other worker would have ended their leases."""
    (tmp_path / "shop.py").write_text(HANDLERS)
    job = app.enqueue("charge", {"order_id": 1}, backoff=0)
    (lease,) = app.core.claim(claim_request(lease_seconds=0.1)).leases
    wait_until(lambda: app.core.clock() > lease.lease_expires_at, "the lease to end")
    args = [*PROGRAM, "worker", "--app", "shop:app", "--max-idle", "2s"]
    run(args, env=clean_environment(TENURE_DATABASE=app.database), cwd=tmp_path, timeout=60)
    assert app.get(job.id).attempts == 2


def test_it_is_not_idle_while_a_handler_runs(app_on_each_engine: Tenure) -> None:
    """What a long job adds at its end is run, too."""
    app = app_on_each_engine

    @app.job
    def split(context: JobContext) -> None:
        time.sleep(3 * MAX_IDLE)
        context.enqueue(summarize.new_job())

    @app.job
    def summarize() -> str:
        return "done"

    split.enqueue()
    with running_worker(app, max_idle_seconds=MAX_IDLE) as worker:
        wait_until(lambda: worker.troubles() == STOPS, "the worker to end")
    assert app.count(status=Status.COMPLETED).jobs == 2


def test_nor_while_the_source_does_not_answer(app: Tenure) -> None:
    """Whether there are jobs is not known then."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with (
        Client(f"http://127.0.0.1:{port}", "unused") as server,
        running_worker(app, server, max_idle_seconds=MAX_IDLE) as worker,
    ):
        wait_until(lambda: worker._exchanges.backoff.seconds > 4 * MAX_IDLE, "several tries")
        assert worker.troubles() == ["the database or server does not answer"]


def test_a_time_of_nothing_is_refused(app: Tenure) -> None:
    with pytest.raises(InvalidInput, match="give a time above 0"):
        app.run_worker(max_idle=0)
