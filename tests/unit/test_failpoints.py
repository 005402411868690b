"""Failpoints: armed by the environment, each acts once, at the visit that was asked for."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tenure import failpoints
from tests.support.waiting import wait_until
from tests.support.worker_scripts import state

HIT_THRICE = """
from tenure import failpoints
for visit in (1, 2, 3):
    try:
        failpoints.hit("claim.after_commit")
    except failpoints.FailpointReached as reached:
        print(visit, reached)
print("end")
"""

WALK = """
import os, threading
from tenure import failpoints

def walk():
    for name in failpoints.NAMES:
        failpoints.hit(name)
        os.write(1, b".")

thread = threading.Thread(target=walk)
thread.start()
thread.join()
"""


def run(armed: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HIT_THRICE],
        env={failpoints.ENVIRONMENT: armed},
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_nothing_is_armed_here() -> None:
    assert failpoints.ARMED == {}
    failpoints.hit("claim.after_commit")


@pytest.mark.parametrize(
    ("armed", "printed"),
    [
        ("", "end\n"),
        ("claim.before_commit=raise", "end\n"),
        ("claim.after_commit=raise", "1 claim.after_commit\nend\n"),
        ("claim.before_commit=kill; claim.after_commit=raise@3", "3 claim.after_commit\nend\n"),
    ],
)
def test_it_acts_once_at_its_visit(armed: str, printed: str) -> None:
    assert run(armed).stdout == printed


def test_a_killed_process_is_killed() -> None:
    assert run("claim.after_commit=kill@2").returncode == -signal.SIGKILL


def test_a_frozen_process_stands_still_at_the_place() -> None:
    """The thread that got there, too, though the system might stop the main thread first."""
    armed = ";".join(f"{name}=freeze" for name in failpoints.NAMES)
    with subprocess.Popen(
        [sys.executable, "-c", WALK], env={failpoints.ENVIRONMENT: armed}, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        passed = b""
        for number in range(len(failpoints.NAMES)):
            wait_until(lambda: state(process.pid) in {"T", "Z"}, "the process to stop")
            passed += process.stdout.read() or b""
            assert len(passed) == number
            os.kill(process.pid, signal.SIGCONT)
        assert process.wait(30) == 0


@pytest.mark.parametrize("armed", ["claim=kill", "claim.after_commit", "claim.after_commit=kill@0"])
def test_what_means_nothing_is_refused(armed: str) -> None:
    with pytest.raises(ValueError, match="failpoint"):
        failpoints.read(armed)


def test_every_name_stands_in_the_code_and_every_place_has_a_name() -> None:
    source = Path(failpoints.__file__).parent
    text = "\n".join(p.read_text("utf-8") for p in source.rglob("*.py") if p.stem != "failpoints")
    placed = set(re.findall(r'failpoints\.hit\(\s*"([a-z_.]+)"', text))
    works = {
        f"{work}.{moment}"
        for work in failpoints.WORKS
        for moment in ("before_commit", "after_commit")
    }
    assert placed | works == set(failpoints.NAMES)
