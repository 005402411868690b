"""Graphs of jobs under a storm: killed and frozen workers, jobs that are added while parents end.

No job runs before what it waits for has come, none waits for what has, none is skipped that could
have run. What each waiting job needs is right at every moment, not only in the end.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tenure import Tenure
from tenure.store import audit
from tests.chaos import graphing
from tests.support import fault_counts
from tests.support.programs import Program
from tests.support.raw_sql import RawSql

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]
PROCESSES = 2
EVENTS = {"unblocked", "skipped", "restored", "gave_up", "lease_expired", "cancelled"}
ENDINGS = """SELECT job_id, target, event, actor, at FROM {transition} ORDER BY seq"""


def start(url: str, seconds: float, seed: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", graphing.__name__, url, str(seconds), str(seed)]
    return Program(command, cwd=ROOT, text=True)


def wrong(app: Tenure) -> list[tuple[str, str, str]]:
    """What is wrong with waiting jobs in one committed state."""
    read = app.core.store.read
    found = list[tuple[str, str, str]]()
    for asked in read.questions:
        if asked in (*audit.ON_SQLITE, *audit.ON_POSTGRES):
            for job_id, *said in read.rows(asked.statement(read.dialect)):
                found.append((asked.about, str(job_id), str(said)))
    return found


def storm(app: Tenure, raw: RawSql, chance: random.Random, seconds: float) -> int:
    """Kill one of the processes now and then, freeze another; returns how often it looked."""
    processes = [start(app.database, 600, n) for n in range(PROCESSES)]
    looks, change, over = 0, 0.0, float("inf")
    give_up = time.monotonic() + 120 + seconds
    try:
        while time.monotonic() < over:
            assert wrong(app) == []
            looks += 1
            if over == float("inf"):
                assert time.monotonic() < give_up, "too little happens"
                if raw.value("SELECT count(*) FROM {job}") > 30:  # it has begun
                    over = time.monotonic() + seconds
            elif time.monotonic() > change:
                change = time.monotonic() + chance.uniform(0.3, 2)
                n = chance.randrange(PROCESSES)
                if chance.random() < 0.5:
                    os.kill(processes[n].pid, signal.SIGSTOP)
                    time.sleep(graphing.LEASE_SECONDS * 1.5)
                    os.kill(processes[n].pid, signal.SIGCONT)
                else:
                    processes[n].kill()
                    assert processes[n].wait() == -signal.SIGKILL
                    fault_counts.count("processes killed")
                    processes[n] = start(app.database, 600, chance.random())
            if time.monotonic() > over and not happened(raw):
                assert time.monotonic() < give_up, "too little happens"
                over += 1
    finally:
        for process in processes:
            assert process.poll() is None  # no exception ended it
            process.kill()
            process.wait()
    return looks


def happened(raw: RawSql) -> bool:
    """Whether everything has happened that the storm is about."""
    rows = raw.run("SELECT DISTINCT event FROM {transition}")
    return {event for (event,) in rows} >= EVENTS


def early(raw: RawSql) -> list[str]:
    """The jobs that were claimed before enough of their parents had ended as they should."""
    endings = defaultdict[str, list[Any]](list)  # job -> (when it came to rest, as what)
    started = dict[str, Any]()
    for id, target, event, actor, at in raw.run(ENDINGS):
        if event == "retried" and actor != graphing.OPERATOR:
            endings[str(id)].pop()  # it failed on the way only
        elif target in ("completed", "failed", "cancelled"):
            endings[str(id)].append((at, target))
        elif event == "claimed":
            started.setdefault(str(id), at)
    parents = defaultdict[str, list[tuple[str, str]]](list)
    for parent, child, meets in raw.run("SELECT parent, child, meets FROM {dependency}"):
        parents[str(child)].append((str(parent), meets))
    needs = {str(id): needs for id, needs in raw.run("SELECT id, needs FROM {job}")}
    found = []
    for child, at in started.items():
        met = sum(
            any(
                ended <= at
                and (meets == "settled" or (meets == "completed") == (as_ == "completed"))
                for ended, as_ in endings[parent]
            )
            for parent, meets in parents[child]
        )
        if met < (len(parents[child]) if needs[child] is None else needs[child]):
            found.append(child)
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.scenario(112)
@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.full)])
def test_waiting_jobs_under_a_storm(app: Tenure, chance: random.Random, seconds: int) -> None:
    """As celery#1700, bullmq#3362, sidekiq#3432: counted apart from the ending, or twice."""
    raw = RawSql(app.database)
    assert storm(app, raw, chance, seconds) > seconds
    drain = [start(app.database, 0, n) for n in range(PROCESSES)]
    assert [process.wait() for process in drain] == [0] * PROCESSES
    assert raw.value("SELECT count(*) FROM {job} WHERE finished_at IS NULL") == 0
    assert early(raw) == []
    raw.close()
    assert app.verify() == []
