"""A worker that cannot start handlers hands their jobs back, and runs them once it can."""

from __future__ import annotations

import importlib
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest

from tenure import Job, NewJob, Tenure
from tenure.rules.reports import ClaimRequest, Exchange, Report
from tenure.worker import fitness
from tenure.worker.health import Health
from tests.support.no_threads import no_new_threads
from tests.support.waiting import wait_until
from tests.support.worker_scripts import WorkerScript
from tests.support.workers import running_worker, transitions, wait_until_completed

CHILD = """
from tenure import Tenure
app = Tenure("sqlite:///never-opened.db")
@app.job(process=True)
def work(): ...
"""


def handed_back(app: Tenure, job: Job) -> bool:
    return "released" in transitions(app, job)


@pytest.mark.scenario(102)
@pytest.mark.parametrize("threads", [0, 1])
def test_without_a_thread_jobs_are_handed_back_and_run_once_there_is_one(
    app_on_each_engine: Tenure,
    threads: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = app_on_each_engine
    monkeypatch.setattr(fitness, "MAX_UNFIT_SECONDS", 0.2)
    ran: list[int] = []

    @app.job(max_retries=1)
    def work(number: int) -> None:
        ran.append(number)

    @app.job
    async def on_the_loop() -> None: ...

    first = [work.enqueue(-1) for _ in range(threads)]
    with running_worker(app, concurrency=8):
        for job in (on_the_loop.enqueue(), *first):
            wait_until_completed(app, job)
        ran.clear()
        with no_new_threads():
            jobs = app.enqueue_many([NewJob("work", {"number": n}, {}) for n in range(10)])
            wait_until(lambda: "jobs of type work cannot be started here" in caplog.text)
            wait_until_completed(app, on_the_loop.enqueue())
        for job in jobs:
            assert wait_until_completed(app, job).attempts == 1
    assert sorted(ran) == list(range(10))
    assert "fit again for jobs of type work" in caplog.text


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The module of a handler that runs in a child process."""
    path = tmp_path / "handlers_of_a_release.py"
    path.write_text(CHILD)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield path
    sys.modules.pop(path.stem, None)


@pytest.mark.scenario(103)
def test_a_child_that_does_not_find_the_module_fails_no_job(
    app: Tenure, module: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitness, "MIN_UNFIT_SECONDS", 3)
    app.core.take_over(importlib.import_module(module.stem).app.core)
    module.unlink()
    job = app.enqueue("work", max_retries=1)
    with running_worker(app) as worker:
        wait_until(lambda: handed_back(app, job), "the job to be handed back")
        assert Health(worker).ready() == ["jobs of type work cannot be started here"]
        assert f"{module.stem} cannot be imported in a child process: Module" in caplog.text
        module.write_text(CHILD)
        assert wait_until_completed(app, job).attempts == 1


def test_who_can_start_nothing_asks_for_nothing(
    app: Tenure, module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server would hold a claim of no types, and list the worker as one that has none."""
    monkeypatch.setattr(fitness, "MIN_UNFIT_SECONDS", 1)
    app.core.take_over(importlib.import_module(module.stem).app.core)
    module.unlink()
    exchange, asked = app.core.exchange, list[ClaimRequest]()

    def note(reports: Sequence[Report], claim: ClaimRequest | None) -> Future[Exchange]:
        asked.extend([claim] if claim else [])
        return exchange(reports, claim)

    monkeypatch.setattr(app.core, "exchange", note)
    job = app.enqueue("work", max_retries=1)
    with running_worker(app):
        wait_until(lambda: handed_back(app, job), "the job to be handed back")
        module.write_text(CHILD)
        wait_until_completed(app, job)
    assert {claim.types for claim in asked if claim.limit and not claim.leaves} == {("work",)}


@pytest.mark.scenario(103)
def test_without_file_descriptors_no_job_fails(
    app: Tenure, module: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitness, "MAX_UNFIT_SECONDS", 0.2)
    app.core.take_over(importlib.import_module(module.stem).app.core)

    @app.job
    async def on_the_loop() -> None: ...

    with running_worker(app, concurrency=4):
        wait_until_completed(app, on_the_loop.enqueue())  # every connection is open
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
        holes = [os.open(os.devnull, os.O_RDONLY) for _ in range(highest)]
        while (fd := os.open(os.devnull, os.O_RDONLY)) < highest:
            holes.append(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 1, before[1]))
        try:
            jobs = [app.enqueue("work", max_retries=1) for _ in range(4)]
            wait_until(lambda: handed_back(app, jobs[0]), "the job to be handed back")
            assert "no child process could be started: OSError" in caplog.text
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for one in (*holes, fd):
                os.close(one)
        for job in jobs:
            assert wait_until_completed(app, job).attempts == 1


@pytest.mark.scenario(103)
def test_a_child_that_dies_while_it_starts_fails_no_job(app: Tenure, tmp_path: Path) -> None:
    handlers = "@app.job(process=True)\ndef work(): ...\n"
    with WorkerScript(tmp_path / "meet", app.database, handlers) as script:
        worker = script.start()
        wait_until(app.workers.list, "the worker to ask for jobs")
        source = script.path.read_text()
        script.path.unlink()
        job = app.enqueue("work", max_retries=1)
        script.wait_for_output(worker, "a child process died before it could run anything")
        wait_until(lambda: handed_back(app, job), "the job to be handed back")
        script.path.write_text(source)
        assert wait_until_completed(app, job).attempts == 1
