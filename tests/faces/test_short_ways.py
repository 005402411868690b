"""A call passes through few modules, so that a reader can follow it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading

import pytest

from tenure import Tenure
from tests.support.http import api_client
from tests.support.short_ways import way_of_a_call
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.support.workers import running_worker

MAX_MODULES = 19
"""It was 14 before bodies were read apart, damaged rows shown, and claims taken in steps, and
19 before `within` shared the checks of an enqueue."""


@pytest.mark.parametrize("url", ["sqlite_url", "postgres_url"], ids=["sqlite", "postgres"])
def test_adding_a_job_over_http(url: str, request: pytest.FixtureRequest) -> None:
    new = {"type": "send_email", "payload": {"to": "a@example.com"}, "max_retries": 5}
    database = request.getfixturevalue(url)
    with way_of_a_call() as way, Tenure(database) as app, api_client(app) as client:
        for _ in range(2):  # fills the caches
            assert client.post("/jobs", json=new).status_code == 201
        ways = []
        for _ in range(3):  # other threads have something to do now and then, not each time
            with way.recorded():
                assert client.post("/jobs", json=new).status_code == 201
            ways.append(set(way.modules))
    modules = set.intersection(*ways)
    assert "http/jobs.py" in modules
    assert len(modules) <= MAX_MODULES, " ".join(sorted(modules))


MAX_MODULES_OF_A_FAILURE = 16
"""It was 13 before tracebacks were logged. An engine counts as one: it is one to the reader, and
its other threads come and go."""


@pytest.mark.parametrize("url", ["sqlite_url", "postgres_url"], ids=["sqlite", "postgres"])
def test_a_failing_handler(url: str, request: pytest.FixtureRequest) -> None:
    """From the exception to the retry on disk, and back to the line in the worker's log."""
    database = request.getfixturevalue(url)
    with contextlib.ExitStack() as stack:
        way = stack.enter_context(way_of_a_call())
        app = stack.enter_context(Tenure(database))
        recording = contextlib.ExitStack()
        added, raised = threading.Event(), threading.Event()

        @app.job(max_retries=9, backoff=60)
        async def fail(number: int) -> None:
            await asyncio.to_thread(added.wait, WAIT_SECONDS)
            if number:
                recording.enter_context(way.recorded())
            raised.set()
            raise ValueError("no")

        with running_worker(app) as worker:
            for number in range(2):  # the first one fills the caches
                added.clear()
                raised.clear()
                fail.enqueue(number)
                added.set()
                assert raised.wait(WAIT_SECONDS)
                wait_until(lambda: not worker._leases.to_renew())
                recording.close()
    modules = {re.sub("^store/(sqlite|postgres)/.*", r"store/\1", path) for path in way.modules}
    # Of the claim that the report brings along, of the heartbeat, the maintenance and the wake-ups,
    # which come at times.
    modules -= {"store/lanes.py", "store/refusals.py"}
    modules -= {"worker/heartbeat.py", "store/__init__.py", "store/commit.py", "store/notify.py"}
    assert {"lifecycle.py", "retry.py", "worker/attempts.py"} <= modules
    assert len(modules) <= MAX_MODULES_OF_A_FAILURE, " ".join(sorted(modules))
