"""Limits hold while many claim, end and give back jobs at once, and somebody writes SQL by hand."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel

from tenure.rules.reports import Outcome, Report
from tenure.store import transitions
from tenure.store.postgres.writer import Postgres
from tests.support.store import claim_request
from tests.support.waiting import WAIT_SECONDS
from tests.unit.postgres.connections import Connection
from tests.unit.postgres.limits import START, add, limit, rate

SECONDS = 3.0
ENOUGH = 50
"""Claims that show something: on a busy machine they take longer than the time above."""
OFTEN = {"40001", "40P01", "55P03", "TN006"}
"""SQLSTATEs of what is tried again."""


class Crowd:
    """Threads that act on one database until their time is up and enough was claimed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.until = time.monotonic() + SECONDS
        self.over: list[Any] = []
        self.refused = 0
        self.claimed = 0
        self._errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def add(self, act: Callable[[Any, random.Random], None], session: Callable[[], Any]) -> None:
        seed = len(self._threads)

        def run() -> None:
            chance = random.Random(seed)
            one = session()
            try:
                while self._goes_on():
                    self._try(act, one, chance)
            except BaseException as error:
                self._errors.append(error)
            finally:
                one.close()

        self._threads.append(threading.Thread(target=run))

    def _goes_on(self) -> bool:
        over = time.monotonic() - self.until
        return over < 0 or (self.claimed < ENOUGH and over < WAIT_SECONDS)

    def _try(self, act: Callable[[Any, random.Random], None], one: Any, chance: Any) -> None:
        try:
            act(one, chance)
        except psycopg.Error as error:
            if error.sqlstate not in OFTEN:
                raise
            self.refused += error.sqlstate == "TN006"
            one.rollback()

    def run(self) -> None:
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join()
        assert not self._errors, self._errors[0]

    def work(self, db: Postgres, chance: random.Random) -> None:
        """Claim some jobs, and let some attempts end."""
        db.begin()
        leases = db.claim(claim_request(chance.randint(1, 4), lease_seconds=0.3))
        if chance.random() < 0.1:
            db.rollback()
            return
        db.commit()
        self.claimed += len(leases)
        outcomes = (Outcome.COMPLETED, Outcome.FAILED, Outcome.RELEASED)
        reports = [
            Report(lease.id, lease.lease_id, chance.choice(outcomes), error="boom")
            for lease in leases
            if chance.random() < 0.8  # the lease of the others runs out
        ]
        db.begin()
        transitions.settle(db, reports)
        db.commit()

    def sweep(self, db: Postgres, chance: random.Random) -> None:
        time.sleep(0.05)
        db.begin()
        transitions.sweep(db, 100)
        db.commit()

    def write_by_hand(self, raw: Connection, chance: random.Random) -> None:
        """Start a job that nobody has a right to start, at any level of isolation."""
        time.sleep(0.01)
        raw.set_isolation_level(IsolationLevel(chance.randint(2, 4)))
        found = raw.execute(
            "SELECT id::text FROM tenure.ready ORDER BY random() LIMIT %s", (chance.randint(1, 3),)
        ).fetchall()
        start = START.format(started="tenure.clock()").replace("1 minute", "0.3 s")
        still = " AND status = 'pending'"  # another may have claimed it since the look
        raw.execute((start + still).encode(), ([id for (id,) in found],))
        raw.commit()

    def watch(self, raw: Connection, chance: random.Random) -> None:
        """Look for too many jobs that run."""
        found = raw.execute(
            "SELECT partition, count(*) FROM tenure.job WHERE status = 'processing'"
            " GROUP BY ROLLUP (partition) HAVING count(*) > CASE WHEN partition IS NULL THEN 5"
            " ELSE 2 END"
        ).fetchall()
        raw.commit()
        self.over += found


@pytest.fixture
def crowd(url: str) -> Crowd:
    crowd = Crowd(url)
    for _ in range(6):
        crowd.add(crowd.work, lambda: Postgres(url))
    crowd.add(crowd.sweep, lambda: Postgres(url))
    for _ in range(2):
        crowd.add(crowd.write_by_hand, lambda: psycopg.connect(url))
    return crowd


def test_never_more_jobs_run_than_the_limits(url: str, raw: Connection, crowd: Crowd) -> None:
    """As hatchet#4778, kestra#13211, solid_queue#761: in every state that is committed."""
    limit(raw, max_running=5, partitioned=True, per_max_running=2)
    for name in "abcde":
        add(raw, 200, partition=name)
    crowd.add(crowd.watch, lambda: psycopg.connect(url))
    crowd.run()
    assert crowd.over == []
    assert crowd.claimed >= ENOUGH
    assert crowd.refused > 0
    most, ended = raw.execute(
        "SELECT max(running), count(*) FILTER (WHERE NOT begins) FROM (SELECT begins, sum(CASE"
        " WHEN begins THEN 1 ELSE -1 END) OVER (ORDER BY seq) AS running FROM (SELECT seq,"
        " target = 'processing' AS begins FROM tenure.transition"
        " WHERE 'processing' IN (source, target)) AS move) AS move"
    ).fetchall()[0]
    assert most <= 5  # in the order of the ledger, too
    assert ended > 0
    slots = "SELECT array_agg(job_id ORDER BY job_id) FROM tenure.slot"
    running = "SELECT array_agg(id ORDER BY id) FROM tenure.job WHERE status = 'processing'"
    assert raw.execute(slots).fetchone() == raw.execute(running).fetchone()


def test_no_window_has_more_starts_than_the_rate(url: str, raw: Connection, crowd: Crowd) -> None:
    """As in elixirforum 64201: 90 in 10 s were more in some of them."""
    limit(raw, partitioned=True, **rate(40, 1, 4), **rate(12, 1, 3, "per_"))
    for name in "abcde":
        add(raw, 200, partition=name)
    crowd.run()
    starts = raw.execute(
        "SELECT t.at, job.partition FROM tenure.transition AS t JOIN tenure.job ON id = job_id"
        " WHERE t.event = 'claimed' ORDER BY t.at"
    ).fetchall()
    assert most_in_a_second([at for at, _ in starts]) <= 40
    for name in "abcde":
        assert most_in_a_second([at for at, partition in starts if partition == name]) <= 12
    assert len(starts) > 40


def most_in_a_second(times: list[datetime]) -> int:
    second = timedelta(seconds=1)
    return max(sum(at <= other < at + second for other in times) for at in times)
