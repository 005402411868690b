"""`tenure worker --reload`: a worker that starts again when the code changes."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import click

GRACE = "1s"
"""For handlers that run during a change, if the user says nothing else. Their jobs go back
uncharged, and run again with the new code."""
LEASE = "5s"
"""When the jobs of a worker that had to be killed run again, if the user says nothing else."""
STOP_SECONDS = 15.0
"""How long a worker may take to end after its grace."""


def run_again_on_changes(arguments: Sequence[str], grace: float) -> None:
    """Run Python with these arguments until SIGTERM or Ctrl-C; again after each change.

    Watches the Python files below the current folder. `grace` is that of the worker, in seconds.
    """
    from watchfiles import PythonFilter, watch

    from tenure.worker.child import answered_stop_signals

    stopped = threading.Event()
    for number in {*answered_stop_signals()} - {signal.SIGINT}:
        signal.signal(number, lambda *_: stopped.set())
    process = _start(arguments)
    try:
        files = PythonFilter()
        for changes in watch(".", watch_filter=files, stop_event=stopped, raise_interrupt=False):
            path = Path(min(path for _, path in changes))
            click.echo(f"{path.name} has changed: the worker starts again", err=True)
            _stop(process, grace)
            process = _start(arguments)
    finally:
        _stop(process, grace)


def _start(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a worker in a separate group, which Ctrl-C does not reach: it is stopped once."""
    return subprocess.Popen([sys.executable, *arguments], process_group=0)  # noqa: S603


def _stop(process: subprocess.Popen[bytes], grace: float) -> None:
    process.terminate()
    try:
        process.wait(grace + STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
