"""What a worker answers to the probes of its supervisor."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from datetime import timedelta
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tenure import Tenure
from tenure.errors import InvalidInput
from tenure.rules.reports import ClaimRequest, Exchange, Report
from tenure.worker import exchanges, health, worker
from tenure.worker.health import Health, health_served
from tests.support.cli import clean_environment
from tests.support.programs import Program
from tests.support.waiting import wait_until
from tests.support.workers import running_worker

HERE = "127.0.0.1"


def ask(port: int, path: str) -> tuple[int, list[str]]:
    connection = HTTPConnection(HERE, port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    said = json.loads(answer.read())
    assert said["ok"] is (answer.status == 200)
    return answer.status, said["reasons"]


def test_a_worker_lives_and_is_ready_until_it_stops(app: Tenure) -> None:
    running, go_on = threading.Event(), threading.Event()

    @app.job
    def wait() -> None:
        running.set()
        go_on.wait(20)

    wait.enqueue()
    with running_worker(app, grace_seconds=20) as worker, health_served(worker, (HERE, 0)) as port:
        wait_until(running.is_set)
        assert ask(port, "/live") == (200, [])
        assert wait_until(lambda: ask(port, "/ready") == (200, []))
        assert ask(port, "/") == (404, ["ask for /live or /ready"])
        worker.request_stop()
        assert ask(port, "/ready") == (503, ["it is stopping"])
        assert ask(port, "/live") == (200, [])
        go_on.set()


def test_a_worker_without_its_database_lives_and_is_not_ready() -> None:
    app = Tenure("postgresql://nobody@127.0.0.1:1/none")
    with running_worker(app) as worker, health_served(worker, (HERE, 0)) as port:
        why = ["the database or server does not answer"]
        wait_until(lambda: ask(port, "/ready") == (503, why))
        assert ask(port, "/live") == (200, [])


def test_a_worker_is_ready_once_a_claim_was_answered(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, let_through = app.core.exchange, threading.Event()

    def slow(reports: Sequence[Report], claim: ClaimRequest | None) -> Future[Exchange]:
        held: Future[Exchange] = Future()

        def answer() -> None:
            let_through.wait(20)
            if held.set_running_or_notify_cancel():
                held.set_result(real(reports, claim).result())

        threading.Thread(target=answer, daemon=True).start()
        return held

    monkeypatch.setattr(app.core, "exchange", slow)
    with running_worker(app) as worker:
        wait_until(lambda: Health(worker).ready() == ["no claim was answered yet"])
        let_through.set()
        wait_until(lambda: Health(worker).ready() == [])


def test_a_worker_whose_claim_stays_unanswered_is_not_ready(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine of a database that hangs confirms every packet: nothing fails for a minute."""
    monkeypatch.setattr(exchanges, "SILENT_SECONDS", 0.2)
    real, answers = app.core.exchange, threading.Event()
    held: list[Callable[[], None]] = []

    def silent(reports: Sequence[Report], claim: ClaimRequest | None) -> Future[Exchange]:
        if answers.is_set():
            return real(reports, claim)
        never: Future[Exchange] = Future()
        held.append(lambda: never.set_result(real(reports, claim).result()))
        return never

    answers.set()
    monkeypatch.setattr(app.core, "exchange", silent)
    with running_worker(app) as worker:
        wait_until(lambda: Health(worker).ready() == [])
        answers.clear()
        wait_until(lambda: Health(worker).ready() == ["the database or server does not answer"])
        assert Health(worker).live() == []
        answers.set()
        for answer in held:
            answer()
        wait_until(lambda: Health(worker).ready() == [])


def test_a_loop_that_is_blocked_for_a_minute_is_no_life(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "TURN_SECONDS", 0.2)
    running, go_on = threading.Event(), threading.Event()

    @app.job
    async def block() -> None:
        running.set()
        go_on.wait(20)

    now = [0.0]
    with running_worker(app) as blocked:
        about = Health(blocked, lambda: now[0])
        block.enqueue()
        wait_until(running.is_set)
        now[0] += 10 * health.LIVE_SECONDS  # nobody has asked for long, and it may block just now
        assert about.live() == []
        now[0] += health.LIVE_SECONDS - 1
        assert about.live() == []
        assert about.ready() == ["its event loop is blocked or has not started"]
        now[0] += 1
        assert about.live() == ["its event loop has been blocked for 60 s"]
        go_on.set()
        wait_until(lambda: about.live() == [])


def test_clients_that_send_nothing_do_not_keep_probes_out_for_ever(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PROBE_SECONDS", 0.3)
    with (
        running_worker(app) as worker,
        health_served(worker, (HERE, 0)) as port,
        ExitStack() as silent,
    ):
        for _ in range(health.MAX_PROBES + 5):
            silent.enter_context(socket.create_connection((HERE, port), timeout=10))

        def answered() -> bool:
            try:
                return ask(port, "/live") == (200, [])
            except (ConnectionError, OSError):
                return False

        wait_until(answered)


def test_a_port_that_is_taken_is_refused(app: Tenure) -> None:
    with (
        running_worker(app) as worker,
        health_served(worker, (HERE, 0)) as port,
        pytest.raises(InvalidInput, match=f"port {port}"),
        health_served(worker, (HERE, port)),
    ):
        pytest.fail("two servers on one port")


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    return Program(
        [sys.executable, "-m", "tenure", "worker", "--app", "shop:app", *more],
        cwd=folder,
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


SHOP = """
from tenure import Tenure
app = Tenure("sqlite:///shop.db")

@app.job
def version() -> int:
    return 1
"""


def test_the_command_answers_probes(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    process = start(tmp_path, "--health", "0")
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        found = re.search(r"probes are answered on 127.0.0.1 port (\d+)", said)
        assert found, said
        wait_until(lambda: ask(int(found[1]), "/ready") == (200, []))
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0


def test_reload_starts_the_worker_again_with_the_new_code(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    app = Tenure(f"sqlite:///{tmp_path}/shop.db")
    process = start(tmp_path, "--reload")
    try:
        first = app.enqueue("version")
        wait_until(lambda: app.get(first.id).result == 1)
        # Of another length: within a second, Python tells the compiled code apart by that alone.
        (tmp_path / "shop.py").write_text(SHOP.replace("return 1", "return 1 + 1"))

        def has_the_new_code() -> bool:
            return app.get(app.enqueue("version").id).result == 2 or 2 in {
                job.result for job in app.find(type="version")
            }

        wait_until(has_the_new_code)
    finally:
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert "shop.py has changed: the worker starts again" in said
    workers = [each for each in app.workers.list() if time.time() - each.seen_at.timestamp() < 1]
    assert workers == []  # the worker has ended with its parent
    app.close()


def test_reload_lets_handlers_have_their_grace(tmp_path: Path) -> None:
    slow = """
@app.job
def slow() -> None:
    import pathlib, time
    pathlib.Path("started").touch()
    time.sleep(1.5)
"""
    (tmp_path / "shop.py").write_text(SHOP + slow)
    main = "from tenure.cli import main, running; running.STOP_SECONDS = 0.2; main()"
    arguments = ("worker", "--app", "shop:app", "--reload", "--grace", "20s")
    with Tenure(f"sqlite:///{tmp_path}/shop.db") as app:
        job = app.enqueue("slow")
        process = Program(
            [sys.executable, "-c", main, *arguments], cwd=tmp_path, env=clean_environment()
        )
        try:
            # A job that is claimed and has not started goes back when the worker stops.
            wait_until((tmp_path / "started").exists, "the handler to start")
        finally:
            process.terminate()
            process.wait(30)
        assert app.get(job.id).status == "completed"


@pytest.mark.parametrize("options", [(), ("--lease", "40s")])
def test_a_reload_shortens_leases_unless_told_otherwise(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    """So jobs of a worker that a reload has to kill run again soon."""
    slow = "@app.job\ndef slow() -> None:\n    import time\n    time.sleep(60)\n"
    (tmp_path / "shop.py").write_text(f"{SHOP}\n{slow}")
    with Tenure(f"sqlite:///{tmp_path}/shop.db") as app:
        app.enqueue("slow")
        process = start(tmp_path, "--reload", "--grace", "0s", *options)
        try:
            (job,) = wait_until(lambda: app.find(status="processing"))
            assert job.lease_expires_at is not None
            left = job.lease_expires_at - app.core.clock()
        finally:
            process.terminate()
            process.communicate(timeout=30)
    assert (left > timedelta(seconds=5)) is bool(options)


def test_a_machine_without_threads_does_not_lose_room_for_probes(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, refused = threading.Thread.start, iter(range(health.MAX_PROBES + 1))

    def no_thread(thread: threading.Thread) -> None:
        if "process_request_thread" in thread.name and next(refused, None) is not None:
            raise RuntimeError("can't start new thread")
        start(thread)

    with running_worker(app) as worker, health_served(worker, (HERE, 0)) as port:
        monkeypatch.setattr(threading.Thread, "start", no_thread)

        def answered() -> bool:
            try:
                return ask(port, "/live") == (200, [])
            except OSError:
                return False

        wait_until(answered)
        assert next(refused, None) is None
