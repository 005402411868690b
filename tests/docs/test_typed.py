"""`tenure`, typed into a shell of the examples, is a process like any other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenure import failpoints
from tests.support.programs import TENURE
from tests.support.typed import Typed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked off")
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}


@pytest.fixture
def typed(tmp_path: Path) -> Iterator[str]:
    """The stand-in for `tenure`."""
    with Typed(tmp_path):
        yield str(tmp_path / "tenure")


@pytest.mark.parametrize(
    "arguments", [["--version"], ["enqueue", "a b", "-"], ["a 'b'", ""], ["worker", "--types", "ä"]]
)
def test_it_prints_and_ends_as_the_program_does(
    arguments: list[str], typed: str, tmp_path: Path
) -> None:
    told = []
    for program in (typed, TENURE):
        (folder := tmp_path / str(len(told))).mkdir()
        environ = {**os.environ, "TENURE_DATABASE": "sqlite:///mine.db", "COLUMNS": "70"}
        done = subprocess.run(
            [program, *arguments],
            check=False,
            input="{not JSON",
            capture_output=True,
            text=True,
            cwd=folder,
            env=environ,
        )
        made = {path.name for path in folder.iterdir()}
        told.append((done.returncode, done.stdout, done.stderr, made))
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_it_hears_signals_and_does_not_outlive_its_stand_in(
    number: signal.Signals, code: int, typed: str, tmp_path: Path
) -> None:
    command = [typed, "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.STDOUT, **PIPES) as process:  # type: ignore[call-overload]
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(number)
        process.stdout.read()  # ends when the program has ended, which holds the pipe
        assert process.wait(30) == code


def test_it_dies_as_the_program_does(typed: str, tmp_path: Path) -> None:
    environ = {**os.environ, failpoints.ENVIRONMENT: "migrate.after_step=kill"}
    done = subprocess.run([typed, "migrate"], check=False, cwd=tmp_path, env=environ)
    assert done.returncode == -signal.SIGKILL
