"""A store that goes away and comes back: outcomes are kept until it has them, nobody restarts."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tenure import Status, StoreUnavailable, Tenure
from tenure.telemetry import logs
from tests.support.postgres import PostgresServer, PostgresUnavailable
from tests.support.waiting import RECOVERY_SECONDS, WAIT_SECONDS, wait_until
from tests.support.worker_scripts import WorkerScript, wait_for_exit
from tests.support.workers import (
    running_sweeper,
    running_worker,
    transitions,
    wait_until_all_settled,
    wait_until_completed,
    wait_until_settled,
)

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server of our own that can be stopped; what it has committed it keeps."""
    try:
        with PostgresServer(durable=True) as started:
            yield started
    except PostgresUnavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no PostgreSQL: {error}")


@pytest.fixture
def app(server: PostgresServer, request: pytest.FixtureRequest) -> Iterator[Tenure]:
    if server.pid is None:  # a test before this one has failed
        server.start()
    name = f"outage_{abs(hash(request.node.name))}"
    with Tenure(server.create_database(name)) as made:
        yield made
    server.drop_database(name)


@contextlib.contextmanager
def recovering(app: Tenure, server: PostgresServer) -> Iterator[None]:
    """The server starts again, the reading side notices, and what stands inside is done soon."""
    server.start()
    began = time.monotonic()

    def answers() -> bool:
        try:
            app.core.clock()
        except StoreUnavailable:
            return False
        return True

    wait_until(answers, "the store to answer")
    yield
    took = time.monotonic() - began
    assert took < RECOVERY_SECONDS, f"it took {took:.1f} s to recover"


def test_outcomes_are_kept_while_the_tables_are_missing(
    app: Tenure, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As during a restore. They were taken for outcomes that nobody can record, and given up."""
    monkeypatch.setattr(logs, "REPEAT_SECONDS", 0)
    with psycopg.connect(app.database, autocommit=True) as admin:

        @app.job(max_retries=1)
        def work() -> str:
            admin.execute("ALTER SCHEMA tenure RENAME TO aside")
            return "done"

        with running_worker(app):
            job = work.enqueue()
            wait_until(lambda: caplog.text.count("it keeps 1 outcome and") > 1, "it to try twice")
            with pytest.raises(StoreUnavailable, match="does not exist"):
                app.get(job.id)
            admin.execute("ALTER SCHEMA aside RENAME TO tenure")
            assert wait_until_completed(app, job).result == "done"


@pytest.mark.scenario(42)
def test_outcomes_are_kept_and_sent_again_until_the_store_has_them(
    app: Tenure, server: PostgresServer
) -> None:
    go_on = threading.Event()
    running = threading.Semaphore(0)
    runs: list[int] = []

    @app.job(max_retries=1)
    def work(number: int) -> int:
        running.release()
        go_on.wait(WAIT_SECONDS)
        if number % 3 == 0:
            raise ValueError(f"number {number}")
        runs.append(number)
        return number

    with running_worker(app, concurrency=12) as worker:
        jobs = app.enqueue_many([work.new_job(n) for n in range(12)])
        for _ in jobs:
            assert running.acquire(timeout=WAIT_SECONDS)
        server.stop("immediate")
        go_on.set()
        wait_until(lambda: worker._leases.unreported == 12, "every outcome to be kept")
        with recovering(app, server):
            ends = wait_until_all_settled(app, jobs)
            # It works again without having been told.
            later = [wait_until_completed(app, job) for job in [work.enqueue(n) for n in (1, 2)]]

    for number, end in enumerate(ends):
        assert end.attempts == 1
        if number % 3:
            assert (end.status, end.result_json) == (Status.COMPLETED, str(number))
        else:
            assert f"number {number}" in (end.last_error or "")
    assert sorted(runs) == sorted([n for n in range(12) if n % 3] + [1, 2])
    assert {end.worker for end in later} == {worker.id}
    assert app.verify() == []


def test_heartbeats_go_on_after_an_outage(
    app: Tenure, server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage longer than the lease, with nobody to end it meanwhile: the lease goes on."""
    caplog.set_level("WARNING")  # a command run in this process may have silenced the log
    go_on = threading.Event()
    running = threading.Event()

    @app.job
    def work() -> str:
        running.set()
        go_on.wait(WAIT_SECONDS)
        return "done"

    with running_worker(app, lease_seconds=1):
        job = work.enqueue()
        assert running.wait(WAIT_SECONDS)
        before = app.get(job.id).lease_expires_at
        assert before is not None
        server.stop("immediate")
        wait_until(lambda: "the heartbeat failed" in caplog.text, "a heartbeat to fail")

        def renewed() -> bool:
            now = app.get(job.id).lease_expires_at
            return now is not None and now > before

        with recovering(app, server):
            wait_until(renewed, "a heartbeat")
            go_on.set()
            assert wait_until_completed(app, job).attempts == 1
    assert transitions(app, job) == ["enqueued", "claimed", "completed"]


def test_an_outage_is_logged_now_and_then(
    app: Tenure, server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker with jobs wrote a hundred lines a minute, for as long as it lasted."""
    caplog.set_level("WARNING")  # a command run in this process may have silenced the log
    go_on, running = threading.Event(), threading.Event()

    @app.job
    def work() -> None:
        running.set()
        go_on.wait(WAIT_SECONDS)

    with running_worker(app, lease_seconds=1) as worker:
        job = work.enqueue()
        assert running.wait(WAIT_SECONDS)
        server.stop("immediate")
        wait_until(lambda: worker._exchanges.backoff.seconds > 1, "five exchanges to fail")
        # The first error may be that the connection broke.
        args = [(it.name, it.args) for it in caplog.records]
        said = [(name, str(them[-1])) for name, them in args if isinstance(them, tuple) and them]
        assert {name.rpartition(".")[2] for name, _ in said} >= {"heartbeat", "exchanges"}
        assert len(said) == len(set(said))
        with recovering(app, server):
            go_on.set()
            wait_until_completed(app, job)


HANDLERS = """
@app.job
async def work(number: int):
    log(number)
    await asyncio.sleep(0)
"""


def test_a_worker_starts_though_the_store_is_away(
    app: Tenure, server: PostgresServer, tmp_path: Path
) -> None:
    jobs = [app.enqueue("work", {"number": n}) for n in range(3)]
    server.stop("fast")
    with WorkerScript(tmp_path / "meet", app.database, HANDLERS) as script:
        worker = script.start()
        script.wait_for_output(worker, "the store did not answer")
        with recovering(app, server):
            for job in jobs:
                assert wait_until_completed(app, job).attempts == 1
        worker.terminate()
        assert wait_for_exit(worker) == 0


def test_a_worker_can_be_stopped_while_the_store_is_away(
    app: Tenure, server: PostgresServer, tmp_path: Path
) -> None:
    handlers = """
@app.job
def work():
    log("start")
    wait_for("go on")
"""
    job = app.enqueue("work", backoff=0)
    hurry = "import tenure.worker.worker; tenure.worker.worker.FINAL_REPORT_SECONDS = 0.3"
    with WorkerScript(
        tmp_path / "meet", app.database, handlers, before=hurry, lease=1, grace=0.1
    ) as script:
        worker = script.start()
        script.wait_for_lines(1)
        server.stop("immediate")
        worker.send_signal(signal.SIGTERM)
        assert wait_for_exit(worker) == 0
    with (
        recovering(app, server),
        running_sweeper(app),
    ):  # what was not reported is left to the lease
        wait_until(lambda: app.get(job.id).status is Status.PENDING, "the lease to run out")
    assert transitions(app, job) == ["enqueued", "claimed", "lease_expired", "retried"]


@pytest.mark.scenario(56)
def test_cut_connections_lose_nothing(app: Tenure, server: PostgresServer) -> None:
    runs: list[int] = []

    @app.job(max_retries=20, backoff=0)
    async def work(number: int) -> None:
        runs.append(number)

    with (
        running_sweeper(app),
        running_worker(app, concurrency=4, lease_seconds=1),
        psycopg.connect(server.url(), autocommit=True) as admin,
    ):
        jobs = []
        for first in range(0, 300, 50):
            jobs += app.enqueue_many([work.new_job(n) for n in range(first, first + 50)])
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname LIKE 'outage_%'"
            )
        cut_at = time.monotonic()
        ends = [wait_until_settled(app, job) for job in jobs]
        assert time.monotonic() - cut_at < RECOVERY_SECONDS

    # A claim or report whose answer was cut off may have been made: at least once, not lost.
    assert {end.status for end in ends} == {Status.COMPLETED}
    for number, end in enumerate(ends):
        assert 1 <= runs.count(number) <= end.attempts
    assert app.verify() == []


def test_a_sweeper_outlives_an_outage(app: Tenure, server: PostgresServer, tmp_path: Path) -> None:
    handlers = """
@app.job
def work():
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with (
        running_sweeper(app),
        WorkerScript(tmp_path / "meet", app.database, handlers, lease=1) as script,
    ):
        server.stop("immediate")
        with recovering(app, server):
            job = app.enqueue("work", max_retries=1)
            assert wait_for_exit(script.start()) == -signal.SIGKILL
            assert wait_until_settled(app, job).status is Status.FAILED
