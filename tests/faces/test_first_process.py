"""A program as the first process of a container, to which the kernel gives no default signals."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import PROGRAM, clean_environment
from tests.support.waiting import WAIT_SECONDS, wait_until

CONTAINER = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")
STARTING = """
import time
from pathlib import Path
from tenure import Tenure

Path("starting").touch()
while not Path("go").exists():
    time.sleep(0.01)
app = Tenure()

@app.job
def greet() -> None: ...

if __name__ == "__main__":
    app.run_worker()
"""
OPENING = """
from pathlib import Path
from tenure import Tenure

class Waiting(Tenure):
    def open(self, make=True):
        Path("starting").touch()
        while not Path("go").exists():
            pass
        return super().open(make=make)

Waiting().run_worker()
"""
TENURE = [sys.executable, *PROGRAM[1:]]


@pytest.mark.parametrize(
    "command",
    [
        [*TENURE, "worker", "--app", "starting:app"],
        [*TENURE, "serve", "--port", "0", "--app", "starting:app"],
        [sys.executable, "opening.py"],
    ],
    ids=["worker", "serve", "script"],
)
def test_a_stop_is_not_lost_while_it_starts(
    sqlite_url: str, tmp_path: Path, command: list[str]
) -> None:
    """It went on, took jobs, and was killed with them at the end of its time to stop."""
    in_container = contained()
    (tmp_path / "starting.py").write_text(STARTING)
    (tmp_path / "opening.py").write_text(OPENING)
    with subprocess.Popen(
        [*in_container, "--kill-child", *command],
        cwd=tmp_path,
        env=clean_environment(TENURE_DATABASE=sqlite_url),
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            wait_until((tmp_path / "starting").exists, "it to start")
            send(process, signal.SIGTERM)
            assert process.wait(WAIT_SECONDS) == 128 + signal.SIGTERM
        finally:
            process.kill()


def contained() -> tuple[str, ...]:
    """The beginning of a command that runs in its own space of processes."""
    tried = shutil.which("unshare") and subprocess.run(
        [*CONTAINER, "true"], check=False, capture_output=True
    )
    if not tried or tried.returncode:
        pytest.skip("no spaces of processes for this user: allow `unshare -Urpf --mount-proc`")
    return CONTAINER


def send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to the first process in the space that `unshare` has made."""
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    subprocess.run(["kill", f"-{number}", child], check=True)
