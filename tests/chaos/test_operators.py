"""Operators at work beside workers: every report twice, nothing lost, and no deadlock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tenure import PerPartition, Tenure
from tenure.app.bulk import run_batches
from tests.chaos import operating
from tests.support.programs import Program
from tests.support.raw_sql import RawSql

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]
PROCESSES = 2
EVENTS = {
    "claimed",
    "completed",
    "failed",
    "retried",
    "cancelled",
    "amended",
    "released",
    "snoozed",
}
ENDS = """SELECT lease_id, count(*) FROM {transition}
WHERE lease_id IS NOT NULL AND source = 'processing' GROUP BY lease_id HAVING count(*) > 1"""


def run(url: str, seconds: float) -> list[str]:
    """Let the processes work to their end; what each printed, nothing if all is well."""
    command = [sys.executable, "-m", operating.__name__, url, str(seconds)]
    processes = [
        Program([*command, str(n)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for n in range(PROCESSES)
    ]
    try:
        return [process.communicate(timeout=seconds + 120)[0].strip() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=pytest.mark.full)])
def test_operators_beside_workers(app: Tenure, seconds: int) -> None:
    """They pause, limit, cancel, retry, amend and hasten what workers claim, report and sweep."""
    app.queues.limit(operating.QUEUE, max_running=10, per_partition=PerPartition())
    assert run(app.database, seconds) == [""] * PROCESSES
    app.queues.resume(operating.QUEUE)
    app.queues.limit(operating.QUEUE, max_running=None, per_partition=None)
    while run_batches(app.core):
        pass
    assert run(app.database, 0) == [""] * PROCESSES
    raw = RawSql(app.database)
    assert raw.deadlocks() == 0
    assert raw.run(ENDS) == []
    assert {event for (event,) in raw.run("SELECT DISTINCT event FROM {transition}")} >= EVENTS
    assert not raw.value(operating.UNSETTLED)
    raw.close()
    assert app.verify() == []
