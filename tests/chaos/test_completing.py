"""Workers are killed while handlers complete their jobs in the transaction of their effects."""

from __future__ import annotations

import os
import random
from collections import Counter
from functools import partial
from pathlib import Path

import psycopg
import pytest

from tenure import JobContext, NewJob, Tenure
from tests.support import fault_counts
from tests.support.effects import effects, make_effects, own_connection
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until
from tests.support.worker_scripts import WorkerScript, wait_for_exit
from tests.support.workers import running_sweeper, running_worker, transitions, wait_until_completed

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(3_600)]
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
    quiet = "logging.disable(logging.INFO)"  # nobody reads what they print
    script = WorkerScript(folder / "worker", url, SHIP, before=quiet, concurrency=4, lease=1.0)
    with Tenure(url) as app, script, running_sweeper(app):
        make_effects(url)
        app.enqueue_many([NewJob("ship", {"way": way}, {}) for _ in range(jobs)])
        for _ in range(kills):
            worker = script.start(PYTHONPATH=str(ROOT))
            before = len(script.lines())
            more = chance.randrange(jobs // kills)
            wait_until(lambda at=before + more: len(script.lines()) > at, "some effects")
            worker.kill()
            worker.wait()
            fault_counts.count("processes killed")
        script.start(PYTHONPATH=str(ROOT))
        done = partial(app.count, status="completed")
        wait_until(lambda: done().jobs == jobs, "every job to complete", 30 + jobs / 10)
        assert app.verify() == []
        found = effects(url)
        assert len(found) == jobs
        return found


@pytest.mark.scenario(110)
@pytest.mark.parametrize(
    ("jobs", "kills"), [(100, 4), pytest.param(10_000, 200, marks=pytest.mark.full)]
)
def test_every_completed_job_has_one_effect(
    database_url: str, tmp_path: Path, jobs: int, kills: int
) -> None:
    found = kill_workers(database_url, tmp_path, "together", jobs, kills)
    assert set(found.values()) == {1}


MOMENTS = """
import signal

from tests.support.effects import own_connection


@app.job(backoff=0)
def thank(order: str): ...


@app.job(backoff=0)
def ship(context: JobContext, moment: str):
    def reach(here):
        if here == moment and "DIES" in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)

    with own_connection(app.database) as connection:
        connection.execute(f"INSERT INTO effect VALUES ('{context.id}')")
        thank.within(connection).enqueue(context.id)
        reach("before the completion")
        context.complete(connection)
        reach("before the commit")
        connection.commit()
    reach("after the commit")
"""
ONCE = ["enqueued", "claimed", "completed"]
LOST = " lease_expired retried claimed"


@pytest.mark.scenario(110)
@pytest.mark.each_engine
@pytest.mark.parametrize(
    ("moment", "runs_again"),
    [("before the completion", True), ("before the commit", True), ("after the commit", False)],
)
def test_a_kill_at_the_commit_leaves_all_or_nothing(
    database_url: str, tmp_path: Path, moment: str, runs_again: bool
) -> None:
    """The first worker dies at its moment; the second one completes what is left, if anything.

    A machine that stood still for the five seconds of a lease ends it, and a busy one may start a
    child too late. So a job may be claimed more often. There is one job in a database: what a
    killed worker asked for last may still claim the next one.
    """
    script = WorkerScript(tmp_path / "worker", database_url, MOMENTS, concurrency=1, lease=5.0)
    with Tenure(database_url) as app, script, running_sweeper(app):
        make_effects(database_url)
        job = app.enqueue("ship", {"moment": moment})
        wait_for_exit(script.start(PYTHONPATH=str(ROOT), DIES="yes"))
        script.start(PYTHONPATH=str(ROOT))
        wait_until_completed(app, job)
        history = " ".join(transitions(app, job)).replace(" released claimed", "")
        assert history.replace(LOST, "").split() == ONCE
        assert not runs_again or LOST in history
        followed = Counter(job.payload["order"] for job in app.find(type="thank"))
        assert followed == effects(database_url) == {job.id: 1}
        assert app.verify() == []


@pytest.mark.postgres
@pytest.mark.scenario(110)
def test_a_commit_without_an_answer_is_as_the_server_decided(postgres_url: str) -> None:
    with Proxy(postgres_url) as proxy, Tenure(postgres_url) as app:
        make_effects(postgres_url)

        @app.job(backoff=0)
        def ship(context: JobContext, lost: str) -> None:
            url = proxy.url_of(postgres_url) if context.attempt == 1 else postgres_url
            with own_connection(url) as connection:
                connection.execute(f"INSERT INTO effect VALUES ('{context.id}')")
                context.complete(connection)
                if context.attempt == 1 and lost == "the answer":
                    proxy.drop_answers(b"COMMIT")
                elif context.attempt == 1:
                    with psycopg.connect(postgres_url) as other:
                        end = "SELECT pg_terminate_backend(%s, 10000)"
                        other.execute(end, (connection.info.backend_pid,))
                connection.commit()

        with running_worker(app, concurrency=1):
            ends = {lost: ship.enqueue(lost) for lost in ("the answer", "the request")}
            for job in ends.values():
                wait_until_completed(app, job)
        assert transitions(app, ends["the answer"]) == ONCE
        failed = ["failed", "retried"]
        assert transitions(app, ends["the request"]) == [*ONCE[:2], *failed, *ONCE[1:]]
        assert effects(postgres_url) == {job.id: 1 for job in ends.values()}
        assert app.verify() == []


@pytest.mark.full
def test_the_control_reports_after_the_commit(sqlite_url: str, tmp_path: Path) -> None:
    """What the test above would find: a handler that returns after its commit has effects twice."""
    found = kill_workers(sqlite_url, tmp_path, "apart", 1_000, 40)
    assert max(found.values()) > 1
