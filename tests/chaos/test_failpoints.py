"""Every failpoint, with a process killed, frozen or broken there: nothing is lost or doubled.

One process passes all of them (`every_failpoint.py`), and one of them is armed. Meanwhile and
afterwards a second process, without faults, runs what is there. In `make test` each place sees one
of the three faults on one engine, in turn; `make chaos` tries them all.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tenure import Tenure, failpoints
from tenure.errors import StoreUnavailable
from tenure.events import Cancelled, Retried
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tenure.store.sqlite.connection import resets_wal_unsafely
from tests.chaos import checker, every_failpoint
from tests.support import fault_counts
from tests.support.programs import Program
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.support.worker_scripts import is_stopped
from tests.support.workers import wait_until_all_settled

ENGINES = ("sqlite", "postgres")
SERVER = "http.before_answer"
MOVING = "move."
"""Such a process has `tests/chaos/moving.py`."""
SQLITE_ONLY = {*("checkpoint.before", "checkpoint.after", "prune.between_job_and_ledger")}
"""Elsewhere there is no such moment: checkpoints are the server's, pruning is one statement."""
POSTGRES_ONLY = {"look.before_commit", "look.after_commit"}
"""On SQLite a look is no transaction of the writer."""
FROZEN_SECONDS = 2 * every_failpoint.LEASE_SECONDS


def cases() -> list[Any]:
    """Every place, fault and engine; of each place, all but one are `full`."""
    found = []
    for place, name in enumerate(failpoints.NAMES):
        for side, engine in enumerate(ENGINES):
            if name == SERVER or name.startswith(MOVING):
                continue
            if name in (POSTGRES_ONLY if engine == "sqlite" else SQLITE_ONLY):
                continue
            only = name in SQLITE_ONLY | POSTGRES_ONLY
            for exchange, action in enumerate(failpoints.ACTIONS):
                usual = exchange == place % 3 and (only or side == place // 3 % 2)
                marks = [] if usual else [pytest.mark.full]
                if engine == "postgres":
                    marks.append(pytest.mark.postgres)
                if name.startswith("checkpoint."):
                    marks.append(by_hand)
                found.append(pytest.param(name, action, engine, marks=marks))
    return found


by_hand = pytest.mark.skipif(
    not resets_wal_unsafely(sqlite3.sqlite_version_info),
    reason="this SQLite checkpoints by itself; the place exists on older libraries",
)


class Victim:
    """A process armed at one place; `frozen` and thawed, if that is what happens there."""

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self._process = process
        self.frozen = threading.Event()
        self._thread = threading.Thread(target=self._thaw, daemon=True)

    def _thaw(self) -> None:
        """Let it stand still for two leases once it has stopped."""
        while self._process.poll() is None:
            if is_stopped(self._process.pid):
                self.frozen.set()
                fault_counts.count("processes frozen")
                time.sleep(FROZEN_SECONDS)  # the fault itself
                os.kill(self._process.pid, signal.SIGCONT)
                return
            time.sleep(0.003)

    def suffer(self, action: str) -> None:
        """Wait until the fault is there, or over where it does not last."""
        if action == "freeze":
            self._thread.start()
            assert self.frozen.wait(WAIT_SECONDS), "the place was never reached"
        elif action == "kill":
            assert self._process.wait(WAIT_SECONDS) == -signal.SIGKILL
            fault_counts.count("processes killed")
        else:
            assert self._process.wait(WAIT_SECONDS) == 0


@pytest.mark.chaos
@pytest.mark.scenario(2, 3, 4, 16, 17)
@pytest.mark.parametrize(("name", "action", "engine"), cases())
def test_nothing_is_lost_or_doubled(
    name: str, action: str, engine: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = request.getfixturevalue(f"{engine}_url")
    record = tmp_path / "record"
    log = tmp_path / "log"
    with log.open("w") as output:
        process = Program(
            [sys.executable, "-m", every_failpoint.__name__, url, str(record), name],
            cwd=Path(__file__).parents[2],
            env={**os.environ, failpoints.ENVIRONMENT: f"{name}={action}"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        Victim(process).suffer(action)
        with every_failpoint.taking_part(url, record, "healthy") as app:
            wait_until(lambda: app.open() or True, "the store to open")
            jobs = every_failpoint.add_jobs(app, first=1000)
            with every_failpoint.serving(app):
                if action == "freeze":
                    assert process.wait(WAIT_SECONDS) == 0, log.read_text()
                wait_until_all_settled(app.source, jobs)
                wait_until(
                    lambda: every_failpoint.all_settled(app), "what the victim left to settle"
                )
    except BaseException:
        print(log.read_text())
        raise
    finally:
        process.kill()
        process.wait()
    assert checker.check(record, url) == []


@pytest.mark.parametrize("action", ["cancel", "retry"])
def test_what_is_committed_is_not_done_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """A batch that fails after its commit: its outcome is unknown, and never "it cannot be"."""
    with Tenure(database_url) as app:
        jobs = [app.enqueue("work", max_retries=1) for _ in range(4)]
        monkeypatch.setattr(failpoints, "ARMED", {"operator.after_commit": ("raise", 1)})
        monkeypatch.setattr(failpoints, "_visits", Counter())
        if action == "retry":
            request = ClaimRequest(worker="w", limit=4, lease_seconds=60)
            leases = app.core.claim(request).leases
            app.core.report([Report(one.id, one.lease_id, Outcome.FAILED) for one in leases])
        event = Cancelled() if action == "cancel" else Retried(more_retries=1, actor="test")
        held = threading.Event()
        threads = app.core.store.exchanges - 1
        for _ in range(threads):  # so that what follows is one batch
            app.core.store.write("queue", lambda db: held.wait(WAIT_SECONDS))
        acting = [app.core.store.apply(job.id, event) for job in jobs]
        held.set()
        errors = [future.exception(WAIT_SECONDS) for future in acting]
        assert StoreUnavailable in {type(error) for error in errors}
        assert {type(error) for error in errors} <= {StoreUnavailable, type(None)}
        for job in jobs:
            assert [transition.event for transition in app.history(job.id)][-1] == event.name
        assert app.verify() == []
