"""Limits under a storm of claimers, sweepers, vandals and an operator: never one over."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tenure import NewJob, PerPartition, Tenure, failpoints
from tenure.rules.reports import ClaimRequest, Lease, Outcome, Report
from tests.chaos import storming
from tests.support.clock import Clock
from tests.support.programs import Program, run
from tests.support.raw_sql import RawSql
from tests.support.waiting import wait_until

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
        return 2 * len(storming.PARTITIONS), of_one, given
    most, rate = chance.choice((1, 3, 5, 5)), chance.choice((None, None, "60/1s"))
    return most, of_one, {"max_running": most, "rate": rate, "per_partition": per}


def watch(
    app: Tenure, chance: random.Random, storm: Sequence[subprocess.Popen[str]]
) -> list[tuple[int, int]]:
    """Look at the committed state every 2 ms, and change the limits now and then.

    Returns how many of the queue, and how many of a partition, ran in each look. More than a limit
    are those only that ran before it was lowered.
    """
    seen, change, bounds = list[tuple[int, int]](), 0.0, (0, 0)
    with closing(RawSql(app.database)) as raw:
        while any(process.poll() is None for process in storm):
            if time.monotonic() > change:
                most, of_one, given = settings(chance)
                app.queues.limit("q", **given)
                change = time.monotonic() + 0.2 + chance.random()
                bounds = (max(bounds[0], most), max(bounds[1], of_one))
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
    app: Tenure, chance: random.Random, seconds: int
) -> None:
    """As pgqueuer#761, hatchet#4778, solid_queue#761, kestra#13211: all counted without a lock."""
    app.queues.limit("q", max_running=0)
    app.enqueue_many(storming.jobs(100))
    storm = [
        Program(
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
    with closing(RawSql(app.database)) as raw:
        assert raw.deadlocks() == 0
    assert app.verify() == []


@pytest.mark.parametrize("size", [1, 5, 50])
def test_shares_over_many_workers_are_as_the_weights(
    app: Tenure, chance: random.Random, size: int
) -> None:
    """Each has a turn of its own. An open partition waits for one round of each of them at most."""
    app.queues.limit("q", per_partition=PerPartition())
    app.queues.limit_partition("q", "b", weight=4)
    options = {"queue": "q"}
    app.enqueue_many(
        [NewJob(name, {}, {**options, "partition": name}) for name in "abc" for _ in range(700)]
    )
    started, late = list[str](), ""
    with ExitStack() as opened:
        workers = [opened.enter_context(Tenure(app.database)) for _ in range(4)]
        while len(started) < 900:
            if not late and len(started) >= 600:
                late, before = app.enqueue("late", **options, partition="bb").id, len(started)
            request = ClaimRequest(worker="w", limit=size, lease_seconds=600)
            leases = chance.choice(workers).core.claim(request).leases
            started += [lease.type for lease in leases]
    shares = Counter(started)
    for name, weight in (("a", 1), ("b", 4), ("c", 1)):
        assert abs(shares[name] / shares.total() - weight / 6) < 0.02
    assert started.index("late") - before <= len(workers) * (6 + size)
    assert app.verify() == []


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_claimer_that_is_killed_at_its_commit_holds_no_place_for_ever(
    app: Tenure, clock: Clock, moment: str
) -> None:
    """As solid_queue#456, sidekiq-unique-jobs#379: places of the dead had to be repaired."""
    app.queues.limit("q", max_running=2, per_partition=PerPartition(max_running=1))
    app.enqueue_many(storming.jobs(8))
    code = "from tenure import Tenure; from tenure.rules.reports import ClaimRequest; import sys;"
    code += "Tenure(sys.argv[1]).core.claim(ClaimRequest(worker='w', limit=9, lease_seconds=30))"
    armed = {**os.environ, failpoints.ENVIRONMENT: f"claim.{moment}_commit=kill"}
    done = run([sys.executable, "-c", code, app.database], env=armed, check=False)
    assert done.returncode == -signal.SIGKILL
    request = ClaimRequest(worker="v", limit=9, lease_seconds=30)
    if moment == "after":
        assert not app.core.claim(request).leases
        clock.advance(31)
        assert len(app.core.sweep()) == 2
    leases = list[Lease]()
    wait_until(  # the server may see a moment later that it is gone
        lambda: leases.extend(app.core.claim(request).leases) or len(leases) == 2, "two to start"
    )
    assert not app.core.claim(request).leases
    assert app.verify() == []


def test_a_late_report_of_a_lost_lease_frees_no_second_place(app: Tenure, clock: Clock) -> None:
    """As solid_queue#761: a frozen worker came back, and one job of limit 1 ran eleven times."""
    app.queues.limit("q", max_running=1)
    app.enqueue_many(storming.jobs(4))
    request = ClaimRequest(worker="frozen", limit=9, lease_seconds=30)
    (old,) = app.core.claim(request).leases
    clock.advance(31)
    assert len(app.core.sweep()) == 1
    assert len(app.core.claim(request).leases) == 1
    for outcome in (Outcome.COMPLETED, Outcome.FAILED, Outcome.RELEASED):
        (verdict,) = app.core.report([Report(old.id, old.lease_id, outcome)]).verdicts
        assert verdict.answer == "lost"
        assert not app.core.claim(request).leases
    assert app.verify() == []
