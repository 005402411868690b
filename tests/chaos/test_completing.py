"""Workers are killed while handlers complete their jobs in the transaction of their effects."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from tenure import NewJob, Tenure
from tests.support import fault_counts
from tests.support.effects import effects, make_effects
from tests.support.waiting import wait_until
from tests.support.worker_scripts import WorkerScript
from tests.support.workers import running_sweeper

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(1_200)]
ROOT = Path(__file__).parents[2]

SHIP = """
from tests.support.effects import own_connection


@app.job(max_retries=1000, backoff=0)
def ship(context: JobContext, way: str):
    with own_connection(app.database) as connection:
        connection.execute(f"INSERT INTO effect VALUES ('{context.id}')")
        if way == "together":
            context.complete(connection)
        connection.commit()
    log("committed")
"""


def kill_workers(url: str, folder: Path, way: str, jobs: int, kills: int) -> Counter[str]:
    """Run jobs while workers are killed; how many effects each completed job has."""
    chance = random.Random(os.environ.get("TENURE_CHAOS_SEED"))
    script = WorkerScript(folder / "worker", url, SHIP, concurrency=4, lease=1.0)
    with Tenure(url) as app, script, running_sweeper(app):
        make_effects(url)
        app.enqueue_many([NewJob("ship", {"way": way}, {}) for _ in range(jobs)])
        for _ in range(kills):
            worker = script.start(PYTHONPATH=str(ROOT))
            before = len(script.lines())
            more = chance.randrange(jobs // (2 * kills))
            wait_until(lambda at=before + more: len(script.lines()) > at, "some effects")
            worker.kill()
            worker.wait()
            fault_counts.count("processes killed")
        script.start(PYTHONPATH=str(ROOT))
        wait_until(lambda: app.count(status="completed").jobs == jobs, "every job to complete")
        assert app.verify() == []
        found = effects(url)
        assert len(found) == jobs
        return found


@pytest.mark.scenario(110)
@pytest.mark.parametrize(
    ("jobs", "kills"), [(300, 8), pytest.param(10_000, 200, marks=pytest.mark.full)]
)
def test_every_completed_job_has_one_effect(
    database_url: str, tmp_path: Path, jobs: int, kills: int
) -> None:
    found = kill_workers(database_url, tmp_path, "together", jobs, kills)
    assert set(found.values()) == {1}


@pytest.mark.full
def test_the_control_reports_after_the_commit(sqlite_url: str, tmp_path: Path) -> None:
    """What the test above would find: a handler that returns after its commit has effects twice."""
    found = kill_workers(sqlite_url, tmp_path, "apart", 1_000, 40)
    assert max(found.values()) > 1
