"""A worker and a server outlast what they print to: a full disk, a reader that left, a terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

import pytest

from tenure import Tenure
from tests.support.cli import PROGRAM, clean_environment
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.support.workers import wait_until_completed

PRINTING = """
import logging
import time
from pathlib import Path

from tenure import JobContext, Tenure

app = Tenure()

@app.job
def greet(name: str) -> None:
    print("Hello", name, flush=True)
    logging.getLogger("greetings").warning("Hello %s", name)

@app.job
def last(context: JobContext) -> None:
    Path("started").touch()
    while not context.stopping:
        time.sleep(0.01)
    Path("stopping").touch()
    while not Path("go").exists():
        time.sleep(0.01)

@app.job(process=True)
def greet_apart(name: str) -> None:
    greet(name)
"""
COMMANDS = (("worker", "--app", "printing:app"), ("serve", "--port", "0", "--app", "printing:app"))
RELOADING = (*COMMANDS[0], "--reload", "--grace", "30s")


@contextmanager
def full() -> Iterator[IO[str]]:
    with Path("/dev/full").open("w") as file:
        yield file


@contextmanager
def broken() -> Iterator[IO[str]]:
    """A pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        yield pipe


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("where", [full, broken])
@pytest.mark.parametrize("command", COMMANDS, ids=["worker", "serve"])
def test_jobs_run_where_nothing_can_be_printed(
    sqlite_url: str,
    tmp_path: Path,
    command: tuple[str, ...],
    where: Callable[[], AbstractContextManager[IO[str]]],
) -> None:
    """The first line, which says what it does, ended it; so did the print of a handler a job."""
    (tmp_path / "printing.py").write_text(PRINTING)
    with Tenure(sqlite_url) as app, where() as output:
        jobs = [app.enqueue(type, {"name": "ada"}) for type in ("greet", "greet_apart")]
        with start(command, tmp_path, sqlite_url, output) as process:
            for job in jobs:
                wait_until_completed(app, job.id)
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_SECONDS) == 0


@pytest.mark.parametrize("command", [*COMMANDS, RELOADING], ids=["worker", "serve", "reload"])
def test_a_terminal_that_is_closed_ends_it_in_order(
    sqlite_url: str, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """The job of a worker that its user left had to wait until its lease ran out."""
    (tmp_path / "printing.py").write_text(PRINTING)
    with Tenure(sqlite_url) as app:
        job = app.enqueue("last")
        with start(command, tmp_path, sqlite_url) as process:
            # One that is claimed and has not started would be handed back.
            wait_until((tmp_path / "started").exists, "the job to run")
            process.send_signal(signal.SIGHUP)
            wait_until((tmp_path / "stopping").exists, "the worker to stop")
            process.send_signal(signal.SIGHUP)  # one comes from the shell, one from the kernel
            (tmp_path / "go").touch()
            assert process.wait(WAIT_SECONDS) == 0
        assert app.get(job.id).status == "completed"


@pytest.mark.parametrize("command", COMMANDS, ids=["worker", "serve"])
def test_with_nohup_it_outlasts_its_terminal(
    sqlite_url: str, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "printing.py").write_text(PRINTING)
    with (
        Tenure(sqlite_url) as app,
        start(command, tmp_path, sqlite_url, hangup="ignore") as process,
    ):
        for _ in range(2):
            job = app.enqueue("greet", {"name": "ada"})
            wait_until_completed(app, job.id)
            process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS) == 0


@contextmanager
def start(
    command: tuple[str, ...],
    folder: Path,
    url: str,
    output: IO[str] | int = subprocess.DEVNULL,
    hangup: str = "default",
) -> Iterator[subprocess.Popen[bytes]]:
    """A program of its own interpreter, whose streams are those that Python makes.

    What a hangup does to it does not depend on what it does to the tests: they may run under nohup.
    """
    process = subprocess.Popen(
        ["env", f"--{hangup}-signal=HUP", sys.executable, *PROGRAM[1:], *command],
        cwd=folder,
        env=clean_environment(TENURE_DATABASE=url),
        stdout=output,
        stderr=output,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
