"""Asked to stop, a worker claims nothing more, finishes or hands back what it has, and exits."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import product
from pathlib import Path

import pytest

from tenure import Job, JobContext, NewJob, Status, Tenure, failpoints
from tenure.rules.reports import ClaimRequest, Exchange, Report
from tenure.settings import Settings
from tenure.worker.process import maintained, stopped_by_signals
from tests.support.cli import PROGRAM, clean_environment
from tests.support.clock import Clock
from tests.support.effort import on_either_engine
from tests.support.programs import Program
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.support.worker_scripts import WorkerScript, wait_for_exit
from tests.support.workers import (
    SlowAnswers,
    running_sweeper,
    running_worker,
    transitions,
    wait_until_completed,
    wait_until_settled,
)

NO_UVLOOP = 'sys.modules["uvloop"] = None'

HANDLERS = """
@app.job
async def coroutine():
    log("coroutine")
    while not (FOLDER / "go on").exists():
        await asyncio.sleep(0.003)
    return "done"


@app.job
def function():
    log("function")
    wait_for("go on")
    return "done"


@app.job(process=True)
def process():
    log("process")
    wait_for("go on")
    return "done"


@app.job
async def step_by_step(context: JobContext):
    log("step by step")
    while not context.stopping:
        await asyncio.sleep(0.003)
    return f"stopped early, {context.stopped}"


@app.job
def step_on_a_thread(context: JobContext):
    log("step on a thread")
    while not context.stopping:
        time.sleep(0.003)
    return f"stopped early, {context.stopped}"


@app.job(on_interrupt="fail")
def not_twice():
    log("not twice")
    wait_for("go on")


@app.job
async def swallow():
    log("swallow")
    while True:
        try:
            await asyncio.sleep(1_000)
        except BaseException:
            pass


@app.job
async def in_a_thread_of_the_loop():
    log("in a thread of the loop")
    await asyncio.to_thread(threading.Event().wait)


@app.job
async def block():
    log("block")
    while True:  # in turns: a signal that comes just before a sleep is heard only after it
        time.sleep(0.01)


@app.job
async def count(number: int):
    log(number)
    await asyncio.sleep(0.001)


@app.job
async def hang():
    log("hang")
    await asyncio.Event().wait()
"""


def stop(script: WorkerScript, worker: subprocess.Popen[str]) -> None:
    """Ask it to stop, and wait until it has heard that."""
    worker.terminate()
    script.wait_for_mark("stopping")


def processing(app: Tenure) -> list[Job]:
    return app.find(status="processing")


@pytest.mark.parametrize("before", ["", NO_UVLOOP], ids=["uvloop", "asyncio"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_worker_stops_at_once(
    app: Tenure, tmp_path: Path, number: signal.Signals, before: str
) -> None:
    job = app.enqueue("coroutine")
    with WorkerScript(tmp_path / "meet", app.database, HANDLERS, before=before) as script:
        script.mark("go on")
        worker = script.start()
        wait_until_completed(app, job)
        worker.send_signal(number)

        assert wait_for_exit(worker) == 0
        assert (worker.stdout.read() if worker.stdout else "").endswith("drained\n")
    assert app.explain(app.enqueue("coroutine").id).text.startswith("No worker is alive")


@pytest.mark.scenario(75)
@pytest.mark.parametrize("before", ["", NO_UVLOOP], ids=["uvloop", "asyncio"])
def test_running_handlers_finish_and_nothing_new_is_claimed(
    app_on_each_engine: Tenure, tmp_path: Path, before: str
) -> None:
    app = app_on_each_engine
    jobs = [app.enqueue(name) for name in ("coroutine", "function", "process")]
    with WorkerScript(
        tmp_path / "meet", app.database, HANDLERS, before=before, concurrency=8, grace=60
    ) as script:
        worker = script.start()
        script.wait_for_lines(3)
        stop(script, worker)
        late = [app.enqueue("count", {"number": n}) for n in range(5)]
        script.mark("go on")

        assert wait_for_exit(worker) == 0
    assert [app.get(job.id).result_json for job in jobs] == 3 * ['"done"']
    assert [transitions(app, job) for job in late] == 5 * [["enqueued"]]


@pytest.mark.scenario(75)
def test_handlers_that_do_not_finish_in_time_are_interrupted_and_run_elsewhere_uncharged(
    app_on_each_engine: Tenure, tmp_path: Path
) -> None:
    app = app_on_each_engine
    names = ("coroutine", "function", "process", "swallow", "in_a_thread_of_the_loop")
    jobs = [app.enqueue(name, max_retries=1) for name in names]
    once = app.enqueue("not_twice", max_retries=1)
    with WorkerScript(
        tmp_path / "meet", app.database, HANDLERS, concurrency=8, grace=0.2
    ) as script:
        worker = script.start()
        script.wait_for_lines(6)
        stop(script, worker)
        wait_until(lambda: not processing(app), "every job to be reported")

        # The thread that asyncio made for a handler cannot be ended but with the process.
        worker.terminate()
        wait_for_exit(worker)
    for job in jobs:
        now = app.get(job.id)
        assert (now.status, now.attempts, now.last_error) == (Status.PENDING, 0, None)
        assert transitions(app, job) == ["enqueued", "claimed", "interrupted"]
    failed = app.get(once.id)
    assert failed.status is Status.FAILED
    assert (failed.last_error or "").startswith("shutdown: ")
    assert transitions(app, once) == ["enqueued", "claimed", "failed"]
    (again,) = app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=60)).leases
    assert (again.attempts, again.token) == (1, 2)


def test_a_deploy_during_a_long_job_costs_no_attempt(
    app_on_each_engine: Tenure, tmp_path: Path
) -> None:
    app = app_on_each_engine
    job = app.enqueue("coroutine", max_retries=1)
    with (
        WorkerScript(tmp_path / "old", app.database, HANDLERS, grace=0.2) as old,
        WorkerScript(tmp_path / "new", app.database, HANDLERS) as new,
    ):
        worker = old.start()
        old.wait_for_lines(1)
        worker.terminate()
        assert wait_for_exit(worker) == 0
        new.mark("go on")
        new.start()
        end = wait_until_completed(app, job)
    assert (end.attempts, end.token, end.last_error) == (1, 2, None)
    path = ["enqueued", "claimed", "interrupted", "claimed", "completed"]
    assert transitions(app, job) == path


def test_a_handler_that_returns_when_its_worker_stops_is_recorded(
    app_on_each_engine: Tenure, tmp_path: Path
) -> None:
    app = app_on_each_engine
    jobs = [app.enqueue(name) for name in ("step_by_step", "step_on_a_thread")]
    with WorkerScript(tmp_path / "meet", app.database, HANDLERS, concurrency=2, grace=60) as script:
        worker = script.start()
        script.wait_for_lines(2)
        worker.terminate()
        assert wait_for_exit(worker) == 0
    assert [app.get(job.id).result_json for job in jobs] == 2 * ['"stopped early, None"']


@pytest.mark.parametrize("before", ["", NO_UVLOOP], ids=["uvloop", "asyncio"])
@pytest.mark.parametrize(
    "names", [("coroutine", "function", "process", "swallow"), ("swallow",)], ids=["all", "one"]
)
def test_handlers_that_never_end_do_not_keep_the_process(
    app: Tenure, tmp_path: Path, before: str, names: tuple[str, ...]
) -> None:
    for name in names:
        app.enqueue(name)
    with WorkerScript(
        tmp_path / "meet", app.database, HANDLERS, before=before, grace=0.1
    ) as script:
        worker = script.start()
        script.wait_for_lines(len(names))
        worker.terminate()

        assert wait_for_exit(worker) == 0
    assert processing(app) == []


@pytest.mark.scenario(75)
def test_claimed_jobs_that_have_not_started_are_handed_back_uncharged(
    app_on_each_engine: Tenure, tmp_path: Path
) -> None:
    """Many quick jobs make the worker claim ahead; then one stays, and others wait behind it."""
    app = app_on_each_engine
    quick = [NewJob("count", {"number": n}, {}) for n in range(600)]
    jobs = app.enqueue_many([*quick[:400], NewJob("hang", {}, {"max_retries": 1}), *quick[400:]])
    with WorkerScript(
        tmp_path / "meet", app.database, HANDLERS, concurrency=1, grace=0.05
    ) as script:
        worker = script.start()
        wait_until(lambda: "hang" in script.lines(), "the last job to start")
        worker.terminate()

        assert wait_for_exit(worker) == 0
    assert processing(app) == []
    ran = set(script.lines())
    waiting = jobs[401:]
    assert not ran & {str(number) for number in range(400, 600)}
    for job in waiting:
        now = app.get(job.id)
        assert (now.status, now.attempts) == (Status.PENDING, 0)
    released = [transitions(app, job) for job in waiting if len(transitions(app, job)) > 1]
    assert released
    assert all(each[:3] == ["enqueued", "claimed", "released"] for each in released)
    assert app.verify() == []


@pytest.mark.scenario(75)
def test_jobs_that_arrive_when_the_worker_is_stopping_are_handed_back(app: Tenure) -> None:
    runs: list[int] = []

    @app.job
    async def work(number: int) -> None:
        runs.append(number)

    jobs = app.enqueue_many([work.new_job(n) for n in range(3)])
    source = SlowAnswers(app)
    with running_worker(app, source) as worker:
        assert source.claimed.wait(WAIT_SECONDS)
        worker.request_stop()
        wait_until(lambda: worker._leases.is_closed, "the worker to drain")
        source.let_through.set()

    assert runs == []
    for job in jobs:
        assert app.get(job.id).attempts == 0
        assert transitions(app, job) == ["enqueued", "claimed", "released"]


class HeldClaims(SlowAnswers):
    """Claims reach the application when the test lets them, once `hold` is set."""

    hold = False

    def exchange(self, reports: Sequence[Report], claim: ClaimRequest | None) -> Future[Exchange]:
        real = self._app.core.exchange
        if not self.hold or claim is None or not claim.limit:
            return real(reports, claim)
        held: Future[Exchange] = Future()

        def answer() -> None:
            self.claimed.set()
            self.let_through.wait(WAIT_SECONDS)
            held.set_result(real(reports, claim).result())

        threading.Thread(target=answer, daemon=True).start()
        return held


@pytest.mark.scenario(75)
def test_what_says_that_it_stops_has_no_claim_under_way(
    app: Tenure, caplog: pytest.LogCaptureFixture
) -> None:
    """On a loaded machine, a job that was added after that line was claimed and handed back."""
    source, is_stopping = HeldClaims(app), threading.Event()

    @app.job
    def work(context: JobContext) -> None:
        source.hold = True
        while not context.stopping:
            time.sleep(0.003)
        is_stopping.set()

    def says_so() -> bool:
        return any(record.message.startswith("stopping") for record in caplog.records)

    caplog.set_level("INFO", "tenure")
    work.enqueue()
    with running_worker(app, source, concurrency=2) as worker:
        assert source.claimed.wait(WAIT_SECONDS)
        worker.request_stop()
        assert is_stopping.wait(WAIT_SECONDS)
        assert worker.turns()
        assert not says_so()
        source.let_through.set()
        wait_until(says_so, "the worker to say that it stops")
        late = work.enqueue()

    assert transitions(app, late) == ["enqueued"]


@pytest.mark.scenario(75)
@on_either_engine(
    "place",
    ["claim.before_commit"],
    ["claim.after_commit"],
    ["worker.before_start"],
    ["worker.before_report"],
    ["report.before_commit"],
    ["report.after_commit"],
)
def test_asked_to_stop_at_any_place(app_on_each_engine: Tenure, tmp_path: Path, place: str) -> None:
    """The signal waits for a process that stands still there, and is heard as it goes on."""
    app = app_on_each_engine
    jobs = app.enqueue_many([NewJob("count", {"number": n}, {}) for n in range(60)])
    with WorkerScript(tmp_path / "meet", app.database, HANDLERS, concurrency=1) as script:
        worker = script.start(**{failpoints.ENVIRONMENT: f"{place}=freeze"})
        script.wait_until_frozen(worker)
        before = len(script.lines())
        worker.terminate()
        os.kill(worker.pid, signal.SIGCONT)
        script.wait_for_mark("heard")
        late = app.enqueue("count", {"number": 99})

        assert wait_for_exit(worker) == 0
    ran = list(map(int, script.lines()))
    assert len(ran) == len(set(ran))
    # One may have been on its way: the system says when a signal reaches which thread.
    assert len(ran) <= before + 1
    assert ran or not place.startswith(("worker.before_report", "report"))
    for number, job in enumerate(jobs):
        now = app.get(job.id)
        if number in ran:
            assert (now.status, now.attempts) == (Status.COMPLETED, 1)
            assert transitions(app, job) == ["enqueued", "claimed", "completed"]
        else:
            assert (now.status, now.attempts) == (Status.PENDING, 0)
            assert transitions(app, job) in (["enqueued"], ["enqueued", "claimed", "released"])
    assert transitions(app, late) == ["enqueued"]
    assert app.verify() == []


@pytest.mark.scenario(76)
@on_either_engine("before, handler", *product(["", NO_UVLOOP], ["hang", "function", "block"]))
def test_a_second_signal_ends_the_process_at_once_and_the_leases_run_out(
    app_on_each_engine: Tenure, clock: Clock, tmp_path: Path, handler: str, before: str
) -> None:
    app = app_on_each_engine
    job = app.enqueue(handler, backoff=0)
    with WorkerScript(
        tmp_path / "meet", app.database, HANDLERS, before=before, grace=1_000
    ) as script:
        worker = script.start()
        script.wait_for_lines(1)
        worker.terminate()
        script.wait_for_mark("heard")
        worker.send_signal(signal.SIGINT)

        assert wait_for_exit(worker) == 130
    assert [found.id for found in processing(app)] == [job.id]
    clock.advance(31)
    with running_sweeper(app):
        wait_until(lambda: not processing(app), "the lease to be ended")
    assert transitions(app, job) == ["enqueued", "claimed", "lease_expired", "retried"]


@pytest.mark.parametrize("command", [["worker"], ["serve", "--port", "0"]], ids=["worker", "serve"])
def test_signals_are_answered_as_long_as_deliveries_finish(
    app: Tenure, command: list[str], tmp_path: Path
) -> None:
    """Worker and server are done by then; the second hangup of a closed terminal ended it."""
    options = ["--fake-handlers", "--webhooks-private", "--grace", "1h"]
    log = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as receiver, log.open("w") as output:
        receiver.settimeout(WAIT_SECONDS)
        app.webhooks.create("shop", f"http://127.0.0.1:{receiver.getsockname()[1]}", ["enqueued"])
        app.enqueue("mail")
        process = Program(
            [*PROGRAM, *command, *options, "--database", app.database],
            stdout=subprocess.DEVNULL,
            stderr=output,
            env=clean_environment(),
        )
        try:
            with receiver.accept()[0]:  # it is answered nothing
                wait_until(lambda: len(app.workers.list()) == 2, "both workers to be there")
                process.send_signal(signal.SIGHUP)
                wait_until(lambda: "no job runs" in log.read_text(), "one worker to stop")
                for _ in range(100):  # until it and the server are done, which nothing shows
                    process.send_signal(signal.SIGHUP)
                    wait_until(lambda: not signals_wait(process), "the hangup to be answered")
                process.terminate()
                assert wait_for_exit(process) == 130
        finally:
            process.kill()
            process.wait()


def signals_wait(process: subprocess.Popen[str]) -> bool:
    """Whether a signal to the process has not reached it yet."""
    assert process.poll() is None, "it has ended"
    status = Path(f"/proc/{process.pid}/status").read_text()
    pending = next(line for line in status.splitlines() if line.startswith("ShdPnd:"))
    return int(pending.split()[1], 16) != 0


def test_a_hangup_that_interrupts_a_hangup_stops_nothing_again() -> None:
    """The second waited for a lock that the first one held: 1 of 48 servers never ended."""
    stops: list[int] = []

    def stop() -> None:
        stops.append(1)
        if len(stops) < 9:
            signal.raise_signal(signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        with stopped_by_signals(stop):
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert stops == [1]


@pytest.mark.scenario(75)
def test_workers_that_come_and_go_lose_and_repeat_nothing(
    app_on_each_engine: Tenure, tmp_path: Path
) -> None:
    app = app_on_each_engine
    jobs = app.enqueue_many([NewJob("count", {"number": n}, {}) for n in range(400)])
    with WorkerScript(tmp_path / "meet", app.database, HANDLERS) as script:
        for share in (1, 100, 200, 300):
            workers = [script.start(), script.start()]
            wait_until(lambda: len(app.workers.list()) == 2, "both workers to be there")
            script.wait_for_lines(share)
            for worker in workers:
                worker.terminate()
            assert [wait_for_exit(worker) for worker in workers] == [0, 0]
            assert processing(app) == app.workers.list() == []
        script.start()
        ends = [wait_until_settled(app, job) for job in jobs]

    assert {(end.status, end.attempts) for end in ends} == {(Status.COMPLETED, 1)}
    assert sorted(map(int, script.lines())) == list(range(400))
    assert app.verify() == []


def test_run_worker_gives_signals_back(app: Tenure, tmp_path: Path) -> None:
    """After a worker the program is as before: it can run on, and be interrupted."""
    handlers = (
        HANDLERS
        + """
old = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
"""
    )
    check = "assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == old"
    with WorkerScript(tmp_path / "meet", app.database, handlers) as script:
        path = script.folder / "worker_script.py"
        path.write_text(path.read_text().replace('print("drained"', f'{check}; print("drained"'))
        script.mark("go on")
        job = app.enqueue("coroutine")
        worker = script.start()
        wait_until_completed(app, job)
        worker.terminate()
        assert wait_for_exit(worker) == 0


def test_maintenance_stops_while_a_delivery_finishes(app: Tenure) -> None:
    """A delivery under way gets the grace period; sweeps do not go on that long."""

    def runs(thread: str) -> bool:
        return any(one.name == thread for one in threading.enumerate())

    beside = maintained(app, Settings(webhooks_private=True, grace_seconds=WAIT_SECONDS), [])
    with socket.create_server(("127.0.0.1", 0)) as receiver:
        receiver.settimeout(WAIT_SECONDS)
        url = f"http://127.0.0.1:{receiver.getsockname()[1]}"
        app.webhooks.create("shop", url, ["enqueued"])
        app.enqueue("mail")
        beside.__enter__()
        connection, _ = receiver.accept()
        stopping = threading.Thread(target=beside.__exit__, args=(None, None, None))
        with connection:  # the receiver answers nothing
            stopping.start()
            wait_until(lambda: not runs("tenure-maintenance"), "maintenance to stop")
            assert runs("tenure-webhooks")
        stopping.join(WAIT_SECONDS)
        assert not runs("tenure-webhooks")


def test_a_job_that_returned_in_the_grace_period_is_not_run_again(app: Tenure) -> None:
    """Also if the loop was blocked until that was over."""
    started = threading.Barrier(3)

    @app.job
    def quick() -> None:
        started.wait(WAIT_SECONDS)
        time.sleep(0.15)

    @app.job
    async def blocks() -> None:
        await asyncio.to_thread(started.wait, WAIT_SECONDS)
        await asyncio.sleep(0.05)
        time.sleep(0.8)  # noqa: ASYNC251 - it blocks the loop

    job = quick.enqueue()
    blocks.enqueue()
    with running_worker(app, grace_seconds=0.4):
        started.wait(WAIT_SECONDS)
    assert transitions(app, job) == ["enqueued", "claimed", "completed"]
