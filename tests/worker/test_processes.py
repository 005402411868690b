"""Handlers in child processes: whatever happens to a child, it is a failure of its job alone."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import zipapp
from pathlib import Path
from typing import Any

import pytest

from tenure import Tenure
from tenure.rules.jobs import Options
from tenure.worker.processes import MAX_ANSWER_BYTES
from tests.support.waiting import wait_until
from tests.support.worker_scripts import WorkerScript, is_running, wait_for_exit
from tests.support.workers import (
    running_worker,
    transitions,
    wait_until_completed,
    wait_until_failed,
)
from tests.worker import children


@pytest.fixture
def pool(app: Tenure) -> Tenure:
    """An application whose handlers are those of `children`, and one that needs no child."""
    for job_type in vars(children).values():
        if handler := getattr(job_type, "handler", None):
            app.job(name=handler.name, process=True, max_retries=1, backoff=0)(handler.function)

    @app.job
    async def quick() -> None: ...

    return app


def enqueue(app: Tenure, type: str, **payload: Any) -> str:
    return app.enqueue(type, payload, max_retries=1).id


def written(path: Path, count: int = 1) -> list[int]:
    """The process ids that a handler writes into a file."""

    def read() -> list[int]:
        lines = path.read_text().splitlines() if path.exists() else []
        return [int(line) for line in lines] if len(lines) >= count else []

    return wait_until(read, f"process ids in {path}")


def gone(pid: int) -> None:
    wait_until(lambda: not is_running(pid), f"process {pid} to end")


def test_a_job_that_has_returned_does_not_time_out_while_its_child_exits(pool: Tenure) -> None:
    job = pool.enqueue("leave_slowly", {"seconds": 0.8}, timeout=0.4, max_retries=1)
    with running_worker(pool):
        assert wait_until_completed(pool, job.id).result == "done"
    assert transitions(pool, job.id) == ["enqueued", "claimed", "completed"]


def test_a_job_that_has_returned_is_not_interrupted_while_its_child_exits(pool: Tenure) -> None:
    """It was handed back at the end of the grace, and its handler ran again."""
    job = pool.enqueue("leave_slowly", {"seconds": 5}, max_retries=1)
    with running_worker(pool, grace_seconds=0.01) as worker:
        wait_until(lambda: any(a.child.ending for a in worker._leases.in_slots()), "it returns")
    assert pool.get(job.id).result == "done"
    assert transitions(pool, job.id) == ["enqueued", "claimed", "completed"]


def test_a_child_is_used_again_for_the_next_call(pool: Tenure) -> None:
    jobs = [enqueue(pool, "where") for _ in range(5)]
    with running_worker(pool, concurrency=1):
        places = [json.loads(wait_until_completed(pool, job).result_json or "") for job in jobs]

    assert len({place["pid"] for place in places}) == 1
    assert {place["parent"] for place in places} == {os.getpid()}


def test_a_child_is_replaced_after_so_many_jobs(app: Tenure, tmp_path: Path) -> None:
    app.core.take_over(children.app.core)
    path = tmp_path / "pids"
    jobs = [app.enqueue("two_in_a_child", {"path": str(path)}) for _ in range(4)]
    with running_worker(app, concurrency=1):
        pids, programs = zip(*[wait_until_completed(app, job).result for job in jobs], strict=True)
        assert pids[0] == pids[1] != pids[2] == pids[3]
        assert written(path, 2) == [pids[0], pids[2]], "its exit handlers run"
        for pid in (*pids, *programs):
            gone(pid)


def test_a_child_is_replaced_after_a_job_that_left_too_much_memory(app: Tenure) -> None:
    app.core.take_over(children.app.core)
    jobs = [app.enqueue("keep", {"megabytes": megabytes}) for megabytes in (0, 150, 0)]
    with running_worker(app, concurrency=1):
        pids = [wait_until_completed(app, job).result for job in jobs]
    assert pids[0] == pids[1] != pids[2]


def test_coroutines_and_contexts_are_in_children_as_elsewhere(pool: Tenure) -> None:
    options: Options = {"timeout": "1h", "max_retries": 4, "queue": "far"}
    jobs = [pool.enqueue("look_around", {"name": name}, **options) for name in "ab"]
    with running_worker(pool, concurrency=1):
        seen = [wait_until_completed(pool, job).result for job in jobs]

    first, second = seen
    assert (first["loop"], first["pid"]) == (second["loop"], second["pid"]), "one loop for all"
    for one, job, name in zip(seen, jobs, "ab", strict=True):
        assert one.pop("pid") != os.getpid()
        assert one.pop("loop")
        assert one.pop("token") >= 1, "a job that waited for the child may have been handed back"
        assert 3_590 < one.pop("left") <= 3_600
        facts = {"type": "look_around", "queue": "far", "attempt": 1, "max_retries": 4}
        assert one == {"id": job.id, "name": name, **facts}


def test_errors_of_coroutines_in_children_are_those_of_the_handler(app: Tenure) -> None:
    app.job(process=True, permanent=(LookupError,))(children.look_up_on_the_loop.handler.function)
    job = app.enqueue("look_up_on_the_loop", max_retries=3)
    with running_worker(app, concurrency=1):
        error = wait_until_failed(app, job)
    assert transitions(app, job)[-1] == "gave_up"
    assert error.startswith("LookupError: no such customer, attempt 1")
    assert error.count("File ") == 1, "the traceback begins in the handler"


SLOW = """
import multiprocessing, time
from tenure import Tenure
app = Tenure("sqlite:///never-opened.db")
if multiprocessing.current_process().name == "tenure-child":
    time.sleep(1)
@app.job(process=True, timeout=0.5, max_retries=1)
def work(): ...
"""


def test_a_timeout_begins_when_the_child_has_imported_the_handler(
    app: Tenure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slowly_imported.py").write_text(SLOW)
    monkeypatch.syspath_prepend(str(tmp_path))
    app.core.take_over(importlib.import_module("slowly_imported").app.core)
    job = app.enqueue("work")
    with running_worker(app, concurrency=1):
        wait_until_completed(app, job)


@pytest.mark.scenario(15)
def test_a_killed_child_fails_its_job_alone(pool: Tenure, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    hanging = enqueue(pool, "hang", path=str(path))
    with running_worker(pool, concurrency=2):
        (pid,) = written(path)
        others = [enqueue(pool, "quick") for _ in range(20)] + [enqueue(pool, "add", a=1, b=2)]
        for other in others:
            wait_until_completed(pool, other)
        os.kill(pid, signal.SIGKILL)

        assert wait_until_failed(pool, hanging) == "the child process died: killed by SIGKILL"
        assert wait_until_completed(pool, enqueue(pool, "add", a=2, b=3)).result_json == "5"


def test_a_child_that_ends_itself_fails_its_job_alone(pool: Tenure) -> None:
    with running_worker(pool, concurrency=1):
        assert wait_until_failed(pool, enqueue(pool, "leave", code=7)).endswith("exit code 7")
        assert wait_until_failed(pool, enqueue(pool, "leave", code=0)).endswith("exit code 0")
        assert wait_until_failed(pool, enqueue(pool, "crash")).endswith("killed by SIGSEGV")
        assert wait_until_failed(pool, enqueue(pool, "exit_politely")).startswith("SystemExit: 4")
        assert wait_until_completed(pool, enqueue(pool, "add", a=2, b=3)).result_json == "5"


@pytest.mark.scenario(15)
def test_a_child_out_of_memory_fails_its_job_alone(pool: Tenure) -> None:
    with running_worker(pool, concurrency=1):
        assert wait_until_failed(pool, enqueue(pool, "eat", megabytes=4_096)).startswith(
            "MemoryError"
        )
        assert wait_until_completed(pool, enqueue(pool, "eat", megabytes=1)).result == 2**20


@pytest.mark.scenario(18)
def test_a_death_is_noticed_though_a_copy_of_the_child_lives(pool: Tenure, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    job = enqueue(pool, "leave_a_copy", path=str(path))
    with running_worker(pool, concurrency=1):
        assert "the child process died" in wait_until_failed(pool, job)
        (copy,) = written(path)
        gone(copy)


def test_a_timeout_kills_the_child_and_whatever_it_started(pool: Tenure, tmp_path: Path) -> None:
    path = tmp_path / "pids"
    payload = {"path": str(path)}
    with running_worker(pool, concurrency=1):
        for timeout in (0.7, 3, 12):  # a slow machine gets more time to start the three
            job = pool.enqueue("hang_with_company", payload, max_retries=1, timeout=timeout)
            assert wait_until_failed(pool, job) == f"timed out after {timeout} s"
            if path.exists():
                break
        for pid in written(path, 3):
            gone(pid)
        assert wait_until_completed(pool, enqueue(pool, "add", a=2, b=3)).result_json == "5"


def test_what_a_handler_prints_and_reads_disturbs_nothing(
    pool: Tenure, capfd: pytest.CaptureFixture[str]
) -> None:
    with running_worker(pool, concurrency=1):
        jobs = [enqueue(pool, "chatter"), enqueue(pool, "big", size=64_000)]
        assert wait_until_completed(pool, jobs[0]).result_json == '"done"'
        assert len(wait_until_completed(pool, jobs[1]).result_json or "") == 64_002
        assert wait_until_completed(pool, enqueue(pool, "add", a=2, b=3)).result_json == "5"
    assert "x" * 100_000 in capfd.readouterr().out


def test_many_children_at_once(pool: Tenure) -> None:
    jobs = [enqueue(pool, "add", a=n, b=n) for n in range(40)]
    with running_worker(pool, concurrency=4):
        assert [wait_until_completed(pool, job).result_json for job in jobs] == [
            str(2 * n) for n in range(40)
        ]


def test_a_cancelled_job_frees_its_child(pool: Tenure, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    job = enqueue(pool, "hang", path=str(path))
    with running_worker(pool, concurrency=1, lease_seconds=0.6):
        (pid,) = written(path)
        pool.cancel(job)
        gone(pid)
        assert wait_until_completed(pool, enqueue(pool, "add", a=2, b=3)).result_json == "5"
    assert pool.get(job).status == "cancelled"


HANGING = """
@app.job(process=True, max_retries=1)
def hang():
    log(os.getpid())
    program = subprocess.Popen(["sleep", "1000"])
    log(program.pid)
    threading.Event().wait()


@app.job(process=True)
def idle():
    log(os.getpid())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_do_not_outlive_their_worker(
    sqlite_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    with (
        Tenure(sqlite_url) as app,
        WorkerScript(tmp_path / "meet", sqlite_url, HANGING, grace=0.1) as script,
    ):
        first = app.enqueue("idle")
        worker = script.start()
        wait_until_completed(app, first)
        for _ in range(2):
            app.enqueue("hang")
        pids = [int(line) for line in script.wait_for_lines(5)]
        assert all(is_running(pid) for pid in pids)

        worker.send_signal(number)
        code = wait_for_exit(worker)

        assert code == (0 if number is signal.SIGTERM else -signal.SIGKILL)
        for pid in pids:
            gone(pid)


@pytest.mark.scenario(77)
def test_a_signal_to_the_whole_group_lets_children_finish(sqlite_url: str, tmp_path: Path) -> None:
    handlers = """
@app.job(process=True, max_retries=1)
def finish():
    log(os.getpid())
    wait_for("go on")
    # Programs that a handler starts can be ended as usual.
    program = subprocess.Popen(["sleep", "1000"])
    program.terminate()
    return program.wait()
"""
    with Tenure(sqlite_url) as app, WorkerScript(tmp_path / "meet", sqlite_url, handlers) as script:
        job = app.enqueue("finish")
        worker = script.start()
        (child,) = script.wait_for_lines(1)
        for pid in (worker.pid, int(child)):  # as a service manager stops a service
            os.kill(pid, signal.SIGTERM)
        script.mark("go on")

        assert wait_for_exit(worker) == 0
        assert app.get(job.id).result_json == str(-signal.SIGTERM)


def test_a_script_without_a_main_guard_is_told_so(sqlite_url: str, tmp_path: Path) -> None:
    handlers = """
@app.job(process=True, max_retries=1)
def work(): ...

app.run_worker(lease=1)
"""
    with Tenure(sqlite_url) as app, WorkerScript(tmp_path / "meet", sqlite_url, handlers) as script:
        job = app.enqueue("work", max_retries=1)
        worker = script.start()

        wait_until(lambda: "released" in transitions(app, job), "the job to be handed back")
        worker.kill()
        output, _ = worker.communicate()
        assert "if __name__ == '__main__'" in output
        assert "a child process died before it could run anything: exit code 1" in output


IN_MAIN = """
import sys
from tenure import Tenure
app = Tenure(sys.argv[-1])

@app.job(process=True, max_retries=1)
def work(): ...

if __name__ == "__main__":
    job = work.enqueue()
    with app.running():
        print(app.wait(job.id, timeout=20).status)
"""


@pytest.mark.parametrize("kind", ["archive", "folder", "package", "text"])
def test_a_handler_that_no_child_can_import_is_refused_at_the_start(
    kind: str, sqlite_url: str, tmp_path: Path
) -> None:
    """Its jobs were handed back for ever: `multiprocessing` imports no `__main__.py`."""
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__main__.py").write_text(IN_MAIN)
    zipapp.create_archive(tmp_path / "pack", tmp_path / "pack.pyz")
    started = {
        "archive": ["pack.pyz"],
        "folder": ["pack"],
        "package": ["-m", "pack"],
        "text": ["-c", IN_MAIN],
    }
    ended = run_here(tmp_path, *started[kind], sqlite_url)
    assert "work runs in a child process, which imports no __main__.py" in ended.stderr
    assert ended.returncode == 1


def test_a_child_imports_other_modules_of_an_archive(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "work.py").write_text(IN_MAIN)
    rest = IN_MAIN[IN_MAIN.index("if __name__") :]
    (tmp_path / "pack" / "__main__.py").write_text(f"from work import app, work\n{rest}")
    zipapp.create_archive(tmp_path / "pack", tmp_path / "pack.pyz")
    ended = run_here(tmp_path, "pack.pyz", sqlite_url)
    assert ended.stdout == "completed\n", ended.stderr


def run_here(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    started = [sys.executable, *command]
    return subprocess.run(
        started, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.requirement("C24")
def test_a_child_does_not_get_our_tokens(pool: Tenure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENURE_TOKEN", "canary")
    monkeypatch.setenv("TENURE_TOKEN_FILE", "canary")
    job = enqueue(pool, "secrets_here")
    with running_worker(pool, concurrency=1):
        assert wait_until_completed(pool, job).result_json == "[]"


@pytest.mark.requirement("C1")
@pytest.mark.parametrize("length", [0, 1, 2 * MAX_ANSWER_BYTES])
def test_what_a_child_sends_runs_nothing_in_the_worker(
    pool: Tenure, tmp_path: Path, length: int
) -> None:
    job = enqueue(pool, "attack_the_worker", path=str(tmp_path / "taken"), length=length)
    after = enqueue(pool, "where")
    with running_worker(pool, concurrency=1):
        assert "the child process died" in wait_until_failed(pool, job)
        wait_until_completed(pool, after)
    assert not (tmp_path / "taken").exists()
