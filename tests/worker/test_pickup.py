"""A job enqueued on an idle queue is picked up, whoever enqueued it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from tenure import Tenure
from tenure.worker import exchanges as worker_exchanges
from tests.support.programs import Program
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.support.workers import running_worker, wait_until_completed

ENQUEUE = """
import sys
from tenure import Tenure

with Tenure(sys.argv[1]) as app:
    for line in sys.stdin:
        print(app.enqueue("work", {"number": int(line)}).id, flush=True)
"""


@pytest.fixture
def never_asks(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From then on, workers ask for jobs only if they are notified."""

    def set_pauses() -> None:
        for name in ("POLL_SECONDS", "QUIET_POLL_SECONDS", "SURE_POLL_SECONDS"):
            monkeypatch.setattr(worker_exchanges, name, 3_600)

    return set_pauses


def test_from_the_same_process(app_on_each_engine: Tenure, never_asks: Callable[[], None]) -> None:
    app = app_on_each_engine

    @app.job
    async def work(number: int) -> int:
        return number

    with running_worker(app):
        for number in range(20):  # each when the one before has ended: the queue is idle
            assert wait_until_completed(app, work.enqueue(number)).result_json == str(number)
            never_asks()


def test_the_end_of_a_handler_on_a_thread_is_reported_at_once(
    app: Tenure, never_asks: Callable[[], None]
) -> None:
    rests = threading.Event()

    @app.job
    def work() -> None:
        rests.wait(WAIT_SECONDS)

    never_asks()
    with running_worker(app, lease_seconds=600) as worker:
        job, exchanges = work.enqueue(), worker._exchanges
        wait_until(lambda: worker._leases.running == 1 and not exchanges.under_way, "the start")
        wait_until(lambda: exchanges.pause() > WAIT_SECONDS, "the worker to rest")
        rests.set()
        wait_until_completed(app, job)


def test_from_another_process(app_on_each_engine: Tenure) -> None:
    app = app_on_each_engine

    @app.job
    async def work(number: int) -> int:
        return number

    app.open()
    process = Program(
        [sys.executable, "-c", ENQUEUE, app.database],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with running_worker(app):
        for number in range(20):
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            id = process.stdout.readline().strip()
            assert wait_until_completed(app, id).result_json == str(number)
    process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0


def test_a_job_whose_time_comes_on_an_idle_queue(app_on_each_engine: Tenure) -> None:
    app = app_on_each_engine

    @app.job
    async def work() -> None: ...

    with running_worker(app):
        job = work.options(delay=0.2).enqueue()
        wait_until_completed(app, job)


def test_a_retry_whose_time_comes_on_an_idle_queue(app_on_each_engine: Tenure) -> None:
    app = app_on_each_engine
    runs: list[int] = []

    @app.job(backoff=0.2)
    async def work() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError

    with running_worker(app):
        wait_until_completed(app, work.enqueue())
        wait_until(lambda: not app.find(status="processing"))
