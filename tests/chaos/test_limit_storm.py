"""Limits under a storm of claimers, sweepers, vandals and an operator: never one over."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tenure import PerPartition, Tenure
from tests.chaos import storming
from tests.support.raw_sql import RawSql

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]
PROCESSES = 2
RUNNING = """
SELECT coalesce(sum(jobs), 0), coalesce(max(jobs), 0), (SELECT count(*) FROM {slot}) FROM (
    SELECT count(*) AS jobs FROM {job} WHERE status = 'processing' AND queue = 'q'
    GROUP BY coalesce(partition, '')) AS one"""


def settings(chance: random.Random) -> tuple[int, int, dict[str, Any]]:
    """New limits, and how many jobs of the queue, and of a partition, they let run at once."""
    of_one = chance.choice((1, 2, 2))
    per = PerPartition(max_running=of_one, rate=chance.choice((None, None, "30/1s")))
    if chance.random() < 0.5:  # then nobody locks the queue
        given = {"max_running": None, "rate": None, "per_partition": per}
        return of_one * len(storming.PARTITIONS), of_one, given
    most, rate = chance.choice((1, 3, 5, 5)), chance.choice((None, None, "60/1s"))
    return most, of_one, {"max_running": most, "rate": rate, "per_partition": per}


def watch(
    app: Tenure, chance: random.Random, storm: Sequence[subprocess.Popen[str]]
) -> list[tuple[int, int]]:
    """Look at the committed state every 2 ms, and change the limits now and then.

    Returns how many of the queue, and how many of a partition, ran in each look. More than a limit
    are those only that ran before it was lowered.
    """
    seen, change, (most, of_one) = list[tuple[int, int]](), 0.0, (0, 0)
    bounds = (0, 0)
    with closing(RawSql(app.database)) as raw:
        while any(process.poll() is None for process in storm):
            if time.monotonic() > change:
                before = (most, of_one)
                most, of_one, given = settings(chance)
                app.queues.limit("q", **given)
                change = time.monotonic() + 0.2 + chance.random()
                bounds = (max(before[0], most), max(before[1], of_one))
            ((running, fullest, slots),) = raw.run(RUNNING)
            assert running <= bounds[0]
            assert fullest <= bounds[1]
            assert running == slots
            seen.append((running, fullest))
            bounds = (max(most, running), max(of_one, fullest))
            time.sleep(0.002)
    return seen


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.scenario(111)
@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=pytest.mark.full)])
def test_no_committed_state_is_over_a_limit(
    app_on_each_engine: Tenure, chance: random.Random, seconds: int
) -> None:
    """As pgqueuer#761, hatchet#4778, solid_queue#761, kestra#13211: all counted without a lock."""
    app = app_on_each_engine
    app.queues.limit("q", max_running=0)
    app.enqueue_many(storming.jobs(100))
    storm = [
        subprocess.Popen(
            [sys.executable, "-m", storming.__name__, app.database, str(seconds), str(n)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(PROCESSES)
    ]
    try:
        seen = watch(app, chance, storm)
        figures = [json.loads(process.communicate(timeout=60)[0]) for process in storm]
    finally:
        for process in storm:
            process.kill()
            process.wait()
    assert any(running >= 3 for running, _ in seen)
    assert sum(one["refused"] for one in figures) > 0
    assert app.verify() == []
