"""Worker processes: small scripts that a test writes, starts, freezes and kills.

Script and test meet in a folder of files: `mark(name)` makes one, `wait_for(name)` waits for one,
and `log(line)` adds a line to the file `log`. A worker marks `heard` when it is asked to stop, and
`stopping` when it begins to drain.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from tenure import Tenure
from tests.support.programs import Program
from tests.support.waiting import WAIT_SECONDS, wait_until

HEAD = """
import asyncio, logging, os, pathlib, signal, subprocess, sys, threading, time

from tenure import JobContext; from tenure import PermanentFailure; from tenure import Tenure
from tenure.worker.worker import Worker

FOLDER = pathlib.Path({folder!r})
app = Tenure({url!r})


def mark(name):
    (FOLDER / name).touch()


def wait_for(name):
    while not (FOLDER / name).exists():
        time.sleep(0.003)


def log(line):
    descriptor = os.open(FOLDER / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{{line}}\\n".encode())
    os.close(descriptor)


class MarkStopping(logging.Handler):
    def emit(self, record):
        if record.msg.startswith("stopping"):
            mark("stopping")


def request_stop(self, really=Worker.request_stop):
    mark("heard")
    really(self)


Worker.request_stop = request_stop
logging.basicConfig(level=logging.INFO, handlers=[logging.StreamHandler(), MarkStopping()])

"""

TAIL = """

if __name__ == "__main__":
    print("starting", flush=True)
    {before}
    app.run_worker(concurrency={concurrency}, lease={lease}, grace={grace})
    print("drained", flush=True)
"""


class WorkerScript:
    """Worker processes that run `handlers`, source code; killed when the block ends."""

    def __init__(
        self,
        folder: Path,
        url: str,
        handlers: str,
        *,
        before: str = "",
        concurrency: int = 4,
        lease: float = 30.0,
        grace: float = 10.0,
    ) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.path = folder / "worker_script.py"
        self.path.write_text(
            HEAD.format(folder=str(folder), url=url)
            + handlers
            + TAIL.format(before=before, concurrency=concurrency, lease=lease, grace=grace)
        )
        self._running: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._running:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGCONT)
                process.kill()
            output, _ = process.communicate(timeout=WAIT_SECONDS)
            if error is not None:  # shown with the failure
                print(f"--- worker {process.pid}, exit {process.returncode}:\n{output}")

    def start(self, **environment: str) -> subprocess.Popen[str]:
        """Start one more process of this script, with this added to its environment."""
        process = Program(
            [sys.executable, str(self.path)],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._running.append(process)
        return process

    def mark(self, name: str) -> None:
        """Create a mark, so that handlers that wait for it go on."""
        (self.folder / name).touch()

    def wait_for_mark(self, name: str) -> None:
        """Wait until a handler has created a mark."""
        wait_until((self.folder / name).exists, f"the script to mark {name!r}")

    def wait_for_output(self, process: subprocess.Popen[str], words: str) -> None:
        """Wait until a process has printed a line that contains `words`."""
        assert process.stdout is not None
        assert any(words in line for line in process.stdout), f"the worker did not say {words!r}"

    def wait_until_frozen(self, process: subprocess.Popen[str]) -> None:
        """Wait until a process has stopped at its failpoint."""
        wait_until(lambda: is_stopped(process.pid), "the worker to stop at its place")

    def lines(self) -> list[str]:
        """The lines that the scripts have logged."""
        try:
            return (self.folder / "log").read_text().splitlines()
        except FileNotFoundError:
            return []

    def wait_for_lines(self, count: int) -> list[str]:
        """Wait until there are `count` lines, and return all of them."""
        return wait_until(
            lambda: self.lines() if len(self.lines()) >= count else [], f"{count} lines"
        )


def wait_for_exit(process: subprocess.Popen[str]) -> int:
    """Wait until a process has ended, and return its exit code."""
    return process.wait(timeout=WAIT_SECONDS)


def is_running(pid: int) -> bool:
    """Whether a process runs: exists, and is no zombie."""
    return state(pid) not in ("", "Z", "X")


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped a process."""
    return state(pid) == "T"


def state(pid: int) -> str:
    """The letter of a process's state in /proc: `T` stopped, `Z` zombie; empty if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(")")[2].split()[0]


def has_stopped(pid: int) -> bool:
    """Whether each thread has stopped: the signal reaches them one after the other."""
    threads = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] in ("T", "t") for stat in threads)


def freeze(worker: subprocess.Popen[str], app: Tenure) -> None:
    """Stop a process between its transactions: databases keep the locks of one that is stopped."""
    is_free = sqlite_is_free if app.database.startswith("sqlite") else postgres_is_free

    def froze() -> bool:
        os.kill(worker.pid, signal.SIGSTOP)
        wait_until(lambda: has_stopped(worker.pid), "every thread to stop")
        if is_free(app.database):
            return True
        os.kill(worker.pid, signal.SIGCONT)
        return False

    wait_until(froze, "a moment without a transaction")


def sqlite_is_free(url: str) -> bool:
    path = url.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path, timeout=0.5, isolation_level=None)) as file:
        try:
            file.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
    return True


def postgres_is_free(url: str) -> bool:
    with psycopg.connect(url) as server:
        try:
            server.execute("SELECT 1 FROM tenure.job FOR UPDATE NOWAIT")
        except psycopg.errors.LockNotAvailable:
            return False
    return True
