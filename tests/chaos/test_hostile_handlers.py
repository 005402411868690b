"""Handlers that do what no handler should: their jobs settle, their neighbours get done."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tenure import JobContext, NewJob, PermanentFailure, Status, Tenure
from tenure.handlers.results import failure
from tenure.worker import attempts, heartbeat
from tests.support.clock import Clock
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.support.worker_scripts import WorkerScript, is_running, wait_for_exit
from tests.support.workers import (
    running_sweeper,
    running_worker,
    transitions,
    wait_until_completed,
    wait_until_failed,
)

pytestmark = pytest.mark.chaos

ONCE = ["enqueued", "claimed", "completed"]
TWICE = ["enqueued", "claimed", "lease_expired", "retried", "claimed", "completed"]
SQLITE_AND_IN_FULL_POSTGRES = [
    "sqlite",
    pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.full]),
]
"""For what lies with the worker, where the engine matters little."""


# --- handlers that block -----------------------------------------------------------------------


@pytest.mark.scenario(10)
def test_a_handler_that_blocks_the_loop_keeps_its_lease_and_is_named(
    app: Tenure, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("WARNING")
    monkeypatch.setattr(heartbeat, "BLOCKED_SECONDS", 0.1)
    let_go = threading.Event()
    runs: list[str] = []

    @app.job
    async def block(context: JobContext) -> None:
        runs.append(context.id)
        let_go.wait(WAIT_SECONDS)

    job = block.enqueue()
    name = f"by the handler of job {job.id} (block)"
    with running_sweeper(app), running_worker(app, lease_seconds=0.9):
        wait_until(lambda: name in caplog.text, "the worker to say who blocks")
        let_go.set()
        assert wait_until_completed(app, job).attempts == 1
    assert runs == [job.id]
    assert transitions(app, job) == ONCE


@pytest.mark.scenario(10, 13)
def test_jobs_behind_a_blocked_loop_are_run_elsewhere(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claimed ahead, they wait for a loop that may never come back: the heartbeat returns them."""
    monkeypatch.setattr(heartbeat, "BLOCKED_SECONDS", 0.1)
    blocking = threading.Event()
    let_go = threading.Event()
    runs: list[int] = []

    @app.job
    async def note(number: int) -> None:
        runs.append(number)

    @app.job
    async def block() -> None:
        blocking.set()
        assert let_go.wait(WAIT_SECONDS)

    new_jobs = [note.new_job(n) for n in range(300)]
    with running_worker(app, lease_seconds=1.5, concurrency=1):
        jobs = app.enqueue_many([*new_jobs[:250], block.new_job(), *new_jobs[250:]])
        assert blocking.wait(WAIT_SECONDS)
        with Tenure(app.database) as second:

            @second.job(name="note")
            async def note_too(number: int) -> None:
                runs.append(number)

            with running_worker(second):
                for job in jobs[:250] + jobs[251:]:
                    assert wait_until_completed(app, job).attempts == 1
        let_go.set()
        assert wait_until_completed(app, jobs[250]).attempts == 1
    assert sorted(runs) == list(range(300))
    assert app.verify() == []


@pytest.mark.scenario(13)
@pytest.mark.parametrize("database_url", SQLITE_AND_IN_FULL_POSTGRES, indirect=True)
def test_a_time_limit_holds_though_the_loop_that_should_enforce_it_is_blocked(
    app: Tenure, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can stop the handler: its worker lets the lease run out, and another takes over."""
    monkeypatch.setattr(heartbeat, "BLOCKED_SECONDS", 0.1)
    let_go = threading.Event()
    attempts: list[int] = []

    @app.job(timeout=0.2, backoff=0)
    async def block(context: JobContext) -> str:
        attempts.append(context.attempt)
        if context.attempt == 1:
            let_go.wait(WAIT_SECONDS)
        return "done"

    lease = 0.9
    job = block.enqueue()
    with running_sweeper(app), running_worker(app, lease_seconds=lease):
        wait_until(lambda: attempts, "the first attempt to start")

        def over() -> bool:
            clock.advance(lease / 2)
            time.sleep(lease / 2)  # a living worker has one heartbeat in this time
            return app.get(job.id).status is Status.PENDING

        wait_until(over, "the lease to run out")
        with Tenure(app.database) as second:
            second.job(name="block")(block.handler.function)
            with running_worker(second):
                end = wait_until_completed(app, job)
        let_go.set()
    assert attempts == [1, 2]
    assert end == app.get(job.id)
    assert transitions(app, job) == TWICE
    assert app.verify() == []


HOLDING_THE_GIL = """
import ctypes
from tenure.store.commit import Committer

between_commits = threading.RLock()


def commit(self, *work, really=Committer.commit):
    with between_commits:
        really(self, *work)


Committer.commit = commit


@app.job(backoff=0)
def hold(context: JobContext):
    log(f"start {context.attempt}")
    # What a broken extension does: it keeps the interpreter's lock, here until the test has marked
    # or this process is gone.
    wait = f"[ ! -e '{FOLDER / 'let-go'}' ] && kill -0 $PPID"
    until_marked = f"while {wait}; do sleep 0.01; done"
    for thread in threading.enumerate():
        if thread.name == "tenure-checks":
            thread.join()
    # Within a commit or the check of SQLite's write lock it would keep all of the file, too.
    with between_commits:
        ctypes.PyDLL(None).system(until_marked.encode())
    log(f"end {context.attempt}")
    return f"held {context.attempt}"


@app.job(backoff=0, process=True)
def hold_in_a_child():
    log("start 1")
    ctypes.PyDLL(None).usleep(1_500_000)
    return "held"
"""


@pytest.mark.slow
@pytest.mark.scenario(11)
@pytest.mark.parametrize("swept", [True, False])
@pytest.mark.parametrize("database_url", SQLITE_AND_IN_FULL_POSTGRES, indirect=True)
def test_a_handler_that_keeps_the_interpreter_s_lock_settles_once(
    app: Tenure, tmp_path: Path, swept: bool
) -> None:
    """No thread of its worker can beat. What comes of it is decided by whether a sweep came by."""

    @app.job(name="hold")
    def hold() -> str:
        return "taken over"

    job = app.enqueue("hold", backoff=0)
    with WorkerScript(tmp_path / "meet", app.database, HOLDING_THE_GIL, lease=1) as script:
        script_path = script.folder / "worker_script.py"
        no_sweeper = (
            "from tenure.worker.maintenance import MaintenanceThread\n"
            "assert MaintenanceThread._sweep\n"
            "MaintenanceThread._sweep = lambda self, sweep: None\n"
        )
        script_path.write_text(no_sweeper + script_path.read_text())
        worker = script.start()
        script.wait_for_lines(1)
        wait_until(lambda: app.explain(job.id).reason == "lease_ran_out", "the lease to run out")
        if swept:
            with running_sweeper(app):
                wait_until(lambda: app.get(job.id).status is Status.PENDING, "the sweep")
            with running_worker(app):
                wait_until_completed(app, job)
        script.mark("let-go")
        script.wait_for_lines(2)
        end = wait_until_completed(app, job)
        worker.terminate()
        assert wait_for_exit(worker) == 0
    assert transitions(app, job) == (TWICE if swept else ONCE)
    assert app.get(job.id) == end
    # The second attempt may be taken by either worker; the first one's report came too late.
    assert end.result_json in (('"taken over"', '"held 2"') if swept else ('"held 1"',))
    assert app.verify() == []


@pytest.mark.slow
@pytest.mark.scenario(11)
def test_in_a_child_process_it_keeps_its_lease(app: Tenure, tmp_path: Path) -> None:
    job = app.enqueue("hold_in_a_child", backoff=0)
    with (
        running_sweeper(app),
        WorkerScript(tmp_path / "meet", app.database, HOLDING_THE_GIL, lease=1) as script,
    ):
        script.start()
        assert wait_until_completed(app, job).result_json == '"held"'
    assert transitions(app, job) == ONCE


# --- memory and forks --------------------------------------------------------------------------

GREEDY = """
import resource
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, resource.getrlimit(resource.RLIMIT_AS)[1]))


@app.job(max_retries=2, backoff=0)
def in_a_thread():
    return len(bytearray(2**33))


@app.job(max_retries=2, backoff=0)
async def on_the_loop():
    return len(bytearray(2**33))


@app.job
def modest():
    return len(bytearray(1000))
"""


@pytest.mark.scenario(15)
def test_a_handler_without_memory_fails_alone(app: Tenure, tmp_path: Path) -> None:
    greedy = [
        app.enqueue(name, max_retries=2, backoff=0) for name in ("in_a_thread", "on_the_loop")
    ]
    with WorkerScript(tmp_path / "meet", app.database, GREEDY) as script:
        script.start()
        for job in greedy:
            assert wait_until_failed(app, job).startswith("MemoryError")
            assert app.get(job.id).attempts == 2
        for job in [app.enqueue("modest") for _ in range(5)]:
            assert wait_until_completed(app, job).result_json == "1000"


FORKS = """
@app.job
def thread():
    copy = os.fork()
    log(copy or f"copy {os.getpid()}")
    return copy


@app.job
async def loop():
    copy = os.fork()
    log(copy or f"copy {os.getpid()}")
    return copy


@app.job
def library():
    import multiprocessing
    child = multiprocessing.get_context("fork").Process(target=log, args=("in the child",))
    child.start()
    child.join()
    return child.exitcode


@app.job
async def count(number: int):
    return number
"""


@pytest.mark.scenario(18)
@pytest.mark.parametrize("kind", ["thread", "loop"])
def test_a_copy_that_comes_back_from_the_handler_ends(
    app: Tenure, tmp_path: Path, kind: str
) -> None:
    """The handler forks and returns in both: the job ends once, in the worker, which lives on."""
    with WorkerScript(tmp_path / "meet", app.database, FORKS, lease=3) as script:
        worker = script.start()
        job = wait_until_completed(app, app.enqueue(kind))
        assert job.result_json is not None
        assert int(job.result_json) > 0
        pids = [line for line in script.wait_for_lines(2) if not line.startswith("copy")]
        assert pids == [job.result_json]
        wait_until(lambda: not is_running(int(pids[0])), "the copy to end")
        for number in range(20):
            assert wait_until_completed(app, app.enqueue("count", {"number": number})).attempts == 1
        assert wait_until_completed(app, app.enqueue("library")).result_json == "0"
        worker.terminate()
        assert wait_for_exit(worker) == 0
    assert transitions(app, job) == ONCE
    assert app.verify() == []


# --- exceptions --------------------------------------------------------------------------------


class Unlisted(ExceptionGroup[Exception]):
    @property
    def exceptions(self) -> Any:
        raise SystemExit("no parts")


def untouchables() -> dict[str, BaseException]:
    """Made here, for test runners look at what stands in a module, and do not survive it."""

    class Unclassed(Exception):
        @property
        def __class__(self) -> Any:
            raise SystemExit("no class")

    class Untraceable(Exception):
        @property
        def __traceback__(self) -> Any:
            raise SystemExit("no traceback")

    class Uncuttable(Exception):
        def with_traceback(self, _: Any) -> Any:
            raise SystemExit("no other traceback")

    class Untouchable(Exception):
        def __getattribute__(self, _: str) -> Any:
            raise KeyboardInterrupt

    return {
        "Unclassed": Unclassed(),
        "Untraceable": Untraceable(),
        "Uncuttable": Uncuttable(),
        "Untouchable": Untouchable(),
        "Unlisted": Unlisted("x", [ValueError()]),
    }


@pytest.mark.scenario(19)
@pytest.mark.parametrize("name", untouchables())
def test_an_exception_that_cannot_be_touched_settles_its_job(app: Tenure, name: str) -> None:
    error = untouchables()[name]

    def throw() -> None:
        raise error

    async def throw_later() -> None:
        raise error

    app.job(name="function", max_retries=1)(throw)
    app.job(name="coroutine", max_retries=1)(throw_later)

    @app.job
    async def quick() -> None: ...

    with running_worker(app, concurrency=1):
        for kind in ("function", "coroutine"):
            error_text = wait_until_failed(app, app.enqueue(kind, max_retries=1))
            assert name in error_text
            assert "cannot be read" not in error_text  # that is the last resort
            wait_until_completed(app, quick.enqueue())


@pytest.mark.scenario(19)
def test_a_permanent_failure_in_a_group_is_permanent() -> None:
    """So fails a task group, even if one task alone fails."""
    final, other = PermanentFailure("no such customer"), ValueError("flaky")
    assert not failure(ExceptionGroup("one", [final])).retryable
    assert not failure(ExceptionGroup("both", [other, final])).retryable
    assert not failure(BaseExceptionGroup("deep", [other, ExceptionGroup("", [final])])).retryable
    assert not failure(Unlisted("hidden", [final])).retryable
    assert failure(ExceptionGroup("none", [other, KeyError("k")])).retryable
    told = RuntimeError("said otherwise")
    told.__cause__ = final
    assert failure(told).retryable


@pytest.mark.scenario(19)
def test_a_task_group_in_a_handler_fails_for_good(app: Tenure) -> None:
    runs: list[int] = []

    async def check(number: int) -> None:
        await asyncio.sleep(0)
        if number == 2:
            raise PermanentFailure("no such customer")

    @app.job(max_retries=5, backoff=0)
    async def several(context: JobContext) -> None:
        runs.append(context.attempt)
        async with asyncio.TaskGroup() as tasks:
            for number in range(4):
                tasks.create_task(check(number))

    job = several.enqueue()
    with running_worker(app):
        assert "PermanentFailure: no such customer" in wait_until_failed(app, job)
    assert runs == [1]


# --- handlers that do not let go ---------------------------------------------------------------


@pytest.mark.scenario(20)
def test_a_handler_that_swallows_every_exception_loses_lease_and_slot(
    app: Tenure, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    monkeypatch.setattr(attempts, "UNWIND_SECONDS", 0.05)
    let_go = threading.Event()
    started = threading.Semaphore(0)

    @app.job
    async def coroutine() -> str:
        started.release()
        while not let_go.is_set():
            with contextlib.suppress(BaseException):
                await asyncio.sleep(0.01)
        return "late"

    @app.job
    def function() -> str:
        started.release()
        while not let_go.wait(0.01):
            pass
        return "late"

    @app.job
    async def quick() -> None: ...

    stubborn = [coroutine.enqueue(), function.enqueue()]
    with running_worker(app, concurrency=2, lease_seconds=0.6):
        for _ in stubborn:
            assert started.acquire(timeout=WAIT_SECONDS)
        for job in stubborn:
            app.cancel(job.id)
        for job in [quick.enqueue() for _ in range(4)]:
            wait_until_completed(app, job)
        for job in stubborn:
            left = f"job {job.id} ({job.type}) does not end: its handler is left behind"
            wait_until(lambda left=left: left in caplog.text, left)  # type: ignore[misc]
        let_go.set()
        wait_until_completed(app, quick.enqueue())
    for job in stubborn:
        assert (app.get(job.id).status, app.get(job.id).result_json) == (Status.CANCELLED, None)
        assert transitions(app, job) == ["enqueued", "claimed", "cancelled"]


# --- what handlers leave behind ----------------------------------------------------------------

MESS = """
import contextlib, decimal, gc, locale, resource, sqlite3, tempfile, warnings

kept = []

@app.job
def mess_in_a_thread():
    mess()
    kept.append(threading.Thread(target=threading.Event().wait, daemon=True))
    kept[-1].start()


@app.job
async def mess_on_the_loop():
    mess()
    kept.append(asyncio.create_task(asyncio.Event().wait()))
    asyncio.get_running_loop().set_exception_handler(lambda *_: 1 / 0)
    for number in (signal.SIGALRM, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)


def mess():
    os.chdir(tempfile.mkdtemp())
    os.environ.clear()
    os.environ.update({"TZ": "Asia/Kathmandu", "PGHOST": "nowhere", "PGOPTIONS": "-c nonsense=1"})
    time.tzset()
    with contextlib.suppress(locale.Error):
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
    decimal.getcontext().prec = 1
    sys.setrecursionlimit(200)
    sys.setswitchinterval(0.5)
    sys.stdout = sys.stderr = None
    gc.disable()
    warnings.simplefilter("error")
    import socket
    socket.setdefaulttimeout(0.000001)
    kept.append(sqlite3.connect(FOLDER / f"{len(kept)}.db", isolation_level=None))
    kept[-1].execute("BEGIN IMMEDIATE")


@app.job
def here(number: int):
    log(f"{number} {decimal.Decimal(1) / decimal.Decimal(3)}")
    return number


@app.job(max_retries=1)
async def fail():
    raise ValueError("as usual")
"""


@pytest.mark.scenario(21)
def test_a_mess_harms_no_later_job(app: Tenure, tmp_path: Path) -> None:
    with WorkerScript(tmp_path / "meet", app.database, MESS, concurrency=2, lease=3) as script:
        worker = script.start()
        for kind in ("mess_in_a_thread", "mess_on_the_loop"):
            wait_until_completed(app, app.enqueue(kind))
            jobs = app.enqueue_many([NewJob("here", {"number": n}, {}) for n in range(30)])
            for number, job in enumerate(jobs):
                end = wait_until_completed(app, job)
                assert (end.result_json, end.attempts) == (str(number), 1)
            assert wait_until_failed(app, app.enqueue("fail", max_retries=1)).startswith(
                "ValueError: as usual"
            )
        thirds = {line.split()[1] for line in script.lines()}
        assert thirds == {"0." + "3" * 28}
        worker.terminate()
        assert wait_for_exit(worker) == 0
    assert app.verify() == []
