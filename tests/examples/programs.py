"""Starts an example as its page says, and reads where it answers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from tests.support.cli import clean_environment
from tests.support.programs import Program
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]


@contextmanager
def program(*command: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """Run `python -m …` in the root of the project; it has to end in order."""
    process = Program(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**clean_environment(), "PYTHONPATH": os.environ.get("PYTHONPATH", ""), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
        print(f"--- {' '.join(command)}, exit {process.returncode}:\n{said}")
    assert process.returncode in (0, 130, -signal.SIGINT)


def line_with(process: subprocess.Popen[str], pattern: str) -> str:
    """Read what a program says until it says this."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(pattern, line):
            return found[1]
    raise AssertionError(f"it ended without saying {pattern}")


@contextmanager
def serving(example: str, says: str, **environ: str) -> Iterator[httpx2.Client]:
    """Serve an example on a free port."""
    with (
        program(example, "0", **environ) as server,
        httpx2.Client(base_url=line_with(server, says), timeout=20) as client,
    ):
        wait_until(lambda: client.get("/").status_code == 200, "the example to answer")
        yield client
