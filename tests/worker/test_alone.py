"""After a lost lease a job runs in a child process, where it can end no worker."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from tenure import Job, Tenure
from tenure.client import Client
from tenure.lifecycle import SETTLED
from tenure.worker.child import Lifespans
from tests.support.clock import Clock
from tests.support.http import ServerProcess
from tests.support.store import claim_request
from tests.support.waiting import wait_until
from tests.support.worker_scripts import WorkerScript
from tests.support.workers import (
    running_worker,
    transitions,
    wait_until_completed,
    wait_until_failed,
)
from tests.worker import children

LONGER_THAN_A_LEASE = 31
POISON = """
@app.job
def poison():
    for number in range(10):
        wait_for(f"{number} runs")
    mark("all run")
    os._exit(1)


@app.job
async def innocent(context: JobContext, number: int):
    mark(f"{number} runs")
    await asyncio.to_thread(wait_for, "all run")
    await asyncio.sleep(0.3)
    return context.attempt


@app.job
def innocent_thread(number: int):
    mark(f"{number} runs")
    wait_for("all run")
    time.sleep(0.3)
"""


@pytest.mark.scenario(16)
def test_os_exit_beside_ten_innocent_ones(
    app_on_each_engine: Tenure, clock: Clock, tmp_path: Path
) -> None:
    app = app_on_each_engine
    poison = app.enqueue("poison", max_retries=4, backoff=0)
    kinds = ("innocent", "innocent_thread")
    innocents = [app.enqueue(kinds[n % 2], {"number": n}, backoff=0) for n in range(10)]
    deaths: list[int] = []
    with WorkerScript(tmp_path / "meet", app.database, POISON, concurrency=16) as script:
        worker = script.start()

        def all_settled() -> bool:
            nonlocal worker
            if worker.poll() is not None:
                deaths.append(worker.returncode)
                clock.advance(LONGER_THAN_A_LEASE)
                worker = script.start()
            return all(app.get(job.id).status in SETTLED for job in (poison, *innocents))

        wait_until(all_settled, "all to settle")

    assert deaths == [1], "the worker died once"
    end = app.get(poison.id)
    assert (end.status, end.attempts) == ("failed", 4)
    assert end.last_error == "the child process died: exit code 1"
    assert transitions(app, poison).count("lease_expired") == 1
    ends = [app.get(job.id) for job in innocents]
    assert [(end.status, end.attempts) for end in ends] == [("completed", 2)] * 10
    assert app.verify() == []


def lose_lease(app: Tenure, job: Job) -> None:
    """Take a job as a worker does that then dies."""
    request = claim_request(lease_seconds=0.01)
    (lease,) = app.core.store.exchange((), request).result().leases
    assert lease.id == job.id
    wait_until(lambda: app.core.store.sweep().result(), "the lease to end")


def test_the_attempt_after_a_lost_lease_is_in_a_child(app: Tenure) -> None:
    app.core.take_over(children.app.core)
    usual, late = (app.enqueue("where_coroutines_run", backoff=0) for _ in range(2))
    with running_worker(app, concurrency=1):
        assert wait_until_completed(app, usual).result == [os.getpid(), 1]
        wait_until_completed(app, late)
    lost = app.enqueue("where_coroutines_run", backoff=0)
    lose_lease(app, lost)
    with running_worker(app, concurrency=1):
        pid, attempt = wait_until_completed(app, lost).result
    assert pid != os.getpid()
    assert attempt == 2


def test_so_it_is_for_a_worker_over_http(app: Tenure) -> None:
    app.core.take_over(children.app.core)
    lost = app.enqueue("where_coroutines_run", backoff=0)
    lose_lease(app, lost)
    with (
        ServerProcess(app.database) as server,
        Client(server.url) as client,
        running_worker(app, client, concurrency=1),
    ):
        pid, _ = wait_until_completed(app, lost).result
    assert pid != os.getpid()


NEEDS_A_POOL = """
import os
from contextlib import asynccontextmanager
from tenure import Tenure
app = Tenure("sqlite:///never-opened.db")
open_in = []

@app.lifespan
@asynccontextmanager
async def pool():
    open_in.append(os.getpid())
    yield
    with open({path!r}, "a") as file:
        file.write(f"left by {{os.getpid()}}\\n")

@app.job(permanent=(IndexError,))
async def work():
    return open_in[0]
"""


def test_the_lifespan_of_a_worker_is_entered_in_the_child_too(
    app: Tenure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "left"
    (tmp_path / "needs_a_pool.py").write_text(NEEDS_A_POOL.format(path=str(path)))
    monkeypatch.syspath_prepend(str(tmp_path))
    app.core.take_over(importlib.import_module("needs_a_pool").app.core)
    job = app.enqueue("work", backoff=0)
    lose_lease(app, job)
    with running_worker(app, concurrency=1):
        pid = wait_until_completed(app, job).result
    assert pid != os.getpid()
    wait_until(lambda: path.exists() and str(pid) in path.read_text(), "the child to leave it")


def test_every_lifespan_is_left_where_one_cannot_be() -> None:
    left: list[str] = []

    @contextmanager
    def fails() -> Iterator[None]:
        yield
        raise OSError("not closed")

    @asynccontextmanager
    async def takes_time() -> AsyncIterator[None]:
        yield
        await asyncio.sleep(0.01)
        left.append("the other one")

    with asyncio.Runner() as runner:
        lifespans = Lifespans(runner)
        lifespans.enter([fails])
        lifespans.enter([fails, takes_time])
        with pytest.raises(OSError, match="not closed"):
            lifespans.leave()
        assert left == ["the other one"]


SETS_A_VARIABLE = """
import os
from contextlib import contextmanager
from contextvars import ContextVar
from tenure import Tenure

app = Tenure("sqlite:///never-opened.db")
POOL = ContextVar("POOL", default="-")
REGION = ContextVar("REGION", default="-")
REGION.set("of the module")

@app.lifespan
@contextmanager
def pool():
    POOL.set("open")
    yield

@app.job
async def coroutine():
    return [os.getpid(), POOL.get(), REGION.get()]
"""


def test_a_coroutine_sees_what_a_lifespan_has_set_in_the_child_too(
    app: Tenure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sets_a_variable.py").write_text(SETS_A_VARIABLE)
    monkeypatch.syspath_prepend(str(tmp_path))
    app.core.take_over(importlib.import_module("sets_a_variable").app.core)
    job = app.enqueue("coroutine", backoff=0)
    lose_lease(app, job)
    with running_worker(app, concurrency=1):
        pid, *seen = wait_until_completed(app, job).result
    assert pid != os.getpid()
    assert seen == ["open", "of the module"]


def test_an_attempt_alone_that_overstays_is_followed_by_one_alone(app: Tenure) -> None:
    app.core.take_over(children.app.core)
    job = app.enqueue("overstay", timeout=0.3, max_retries=3, backoff=0)
    lose_lease(app, job)
    with running_worker(app, concurrency=1):
        error = wait_until_failed(app, job)
    assert error == "the child process timed out after 0.3 s"
    errors = [step.detail for step in app.history(job.id) if step.event == "failed"]
    assert errors == 2 * [error]


def test_a_closure_runs_here_after_a_lost_lease(
    app: Tenure, caplog: pytest.LogCaptureFixture
) -> None:
    @app.job
    async def local() -> int:
        return os.getpid()

    job = app.enqueue("local", backoff=0)
    lose_lease(app, job)
    with running_worker(app, concurrency=1):
        assert wait_until_completed(app, job).result == os.getpid()
    assert "still runs in no child process: it cannot be imported by its name" in caplog.text


def test_what_a_child_cannot_import_runs_here_after_a_lost_lease(
    app: Tenure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "gone_tomorrow.py"
    path.write_text(
        "import os\nimport threading\nfrom tenure import Tenure\n"
        "app = Tenure('sqlite:///never-opened.db')\nlet_go = threading.Event()\n"
        "@app.job\ndef work():\n    return os.getpid()\n"
        "@app.job(timeout=0.3, max_retries=2)\ndef overstay():\n    let_go.wait()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = importlib.import_module(path.stem)
    app.core.take_over(module.app.core)
    path.unlink()
    job = app.enqueue("work", backoff=0)
    lose_lease(app, job)
    with running_worker(app, concurrency=1):
        assert wait_until_completed(app, job).result == os.getpid()
    long = app.enqueue("overstay", backoff=0)
    lose_lease(app, long)
    with running_worker(app, concurrency=1):
        assert wait_until_failed(app, long) == "timed out after 0.3 s"
        module.let_go.set()
    assert "gone_tomorrow cannot be imported in a child process" in caplog.text
    assert app.get(job.id).attempts == 2
