"""What is listed of workers: also of one without room for jobs, and of one that stops."""

from __future__ import annotations

import os
import socket
import threading

import pytest

import tenure
from tenure import Tenure
from tenure.client import Client
from tenure.rules.stats import WorkerState
from tenure.store.tables import workers
from tenure.worker import exchanges
from tests.support.cli import cli_json, output_of
from tests.support.http import ServerProcess
from tests.support.waiting import wait_until
from tests.support.workers import running_worker, wait_until_completed


@pytest.mark.parametrize("remote", [False, True], ids=["beside the database", "over HTTP"])
def test_b10_a_busy_worker_is_seen_and_its_slots_are_known(
    app_on_each_engine: Tenure, remote: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_on_each_engine
    monkeypatch.setattr(exchanges, "PRESENT_SECONDS", 0.05)
    monkeypatch.setattr(workers, "SEEN_SECONDS", 0.0)
    goes_on = threading.Event()

    @app.job
    def work() -> None:
        goes_on.wait(60)

    def listed() -> WorkerState:
        (worker,) = app.workers.list()
        return worker

    first = work.enqueue()
    with (
        ServerProcess(app.database) as server,
        Client(server.url) as client,
        running_worker(app, client if remote else None, concurrency=1, label="host:7"),
    ):
        wait_until(lambda: app.get(first.id).status == "processing", "the job to run")
        worker = listed()
        assert (worker.label, worker.slots) == ("host:7", 1)
        assert worker.leases >= 1  # it claims ahead
        assert worker.version == tenure.__version__
        assert worker.since_at <= worker.seen_at
        assert not worker.stopping
        if not remote:  # whose server notes it every five seconds
            wait_until(lambda: listed().seen_at > worker.seen_at, "it to be seen again")
        (line,) = output_of("workers", "--database", app.database).splitlines()[1:]
        assert line.split()[0] == "host:7"
        assert line.split()[-1] == "working"
        assert cli_json("workers", "--database", app.database)[0]["slots"] == 1
        goes_on.set()
    assert app.workers.list() == []


@pytest.mark.parametrize("remote", [False, True], ids=["beside the database", "over HTTP"])
@pytest.mark.parametrize("name", ["caf\udce9", "kafé", "\n\x1b[31m ", "\udcff" * 64, ""])
def test_a_machine_may_have_any_name(
    app_on_each_engine: Tenure, remote: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux takes any bytes as a name. No job ran where they were not UTF-8, or over HTTP ASCII."""
    app = app_on_each_engine
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    labels = list[str]()

    @app.job
    def work() -> None:
        labels.extend(worker.label for worker in app.workers.list())

    job = work.enqueue()
    with (
        ServerProcess(app.database) as server,
        Client(server.url) as client,
        running_worker(app, client if remote else None),
    ):
        wait_until_completed(app, job)
    (label,) = labels
    assert label == f"{ascii(name)[1:-1]}:{os.getpid()}"[-len(label) :]
    assert label.isascii()
    assert label.isprintable()


def test_a_worker_that_stops_says_so(
    app_on_each_engine: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_on_each_engine
    monkeypatch.setattr(exchanges, "PRESENT_SECONDS", 3_600)
    started, goes_on = threading.Event(), threading.Event()

    @app.job
    def work() -> None:
        started.set()
        goes_on.wait(60)

    work.enqueue()
    with running_worker(app, concurrency=2) as worker:
        assert started.wait(60)  # a job that has not started would go back, and the worker away
        worker.request_stop()
        wait_until(lambda: any(w.stopping for w in app.workers.list()), "it to say that it stops")
        goes_on.set()
    assert app.workers.list() == []
    assert app.explain(work.enqueue().id).reason == "no_worker"
