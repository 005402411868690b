"""Several processes decide the same ticks: killed, frozen, and under a clock that jumps."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg.errors import DeadlockDetected

from tenure import NewJob, Tenure, failpoints
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tenure.rules.search import Filter
from tenure.store.database import Trouble
from tenure.store.postgres.session import PostgresSession
from tenure.store.tables import schedules
from tests.chaos import scheduling
from tests.support import fault_counts
from tests.support.clock import START, Clock
from tests.support.programs import Program
from tests.support.raw_sql import RawSql
from tests.support.waiting import wait_until

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]
EVALUATORS = 4
OVERLAPS: tuple[Any, ...] = ("allow_all", "skip", "buffer_one", "buffer_all", "cancel_other")
MISSED: tuple[Any, ...] = ("one", "skip", "all")
PLACES = ("schedule.before_commit", "schedule.after_commit", "schedule.between_jobs_and_cursor")
DAY = 86_400.0
TICK = timedelta(seconds=5)


class Scene:
    """Evaluators of schedules, to be killed and frozen, and somebody who backfills."""

    def __init__(self, app: Tenure, clock: Clock, folder: Path, chance: random.Random) -> None:
        self.app, self.clock, self.chance = app, clock, chance
        self._log = folder / "evaluators.log"
        self._processes = [self._start() for _ in range(EVALUATORS)]
        self._over = threading.Event()
        self._backfilling = threading.Thread(target=self._backfill)
        self.names = [f"{overlap}-{missed}" for overlap in OVERLAPS for missed in MISSED]
        self.backfilled = 0
        self.latest = clock.now

    def __enter__(self) -> Scene:
        for name in self.names:
            overlap, missed = name.split("-")
            rules: Any = {"overlap": overlap, "missed": missed, "catch_up": 5}
            job = NewJob(name, {}, {"max_retries": 1000, "backoff": 0})
            self.app.schedules.create(name, job, every=5, grace=20, **rules)
        self._backfilling.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._backfilling.join()
        for process in self._processes:
            process.kill()
            process.wait()

    def _start(self, **environment: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return Program(
                [sys.executable, "-m", scheduling.__name__, self.app.database],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
            )

    def _backfill(self) -> None:
        chance = random.Random(self.chance.random())
        with Tenure(self.app.database) as app:
            while not self._over.is_set():
                name, overlap = chance.choice(self.names), chance.choice(OVERLAPS)
                end = app.schedules.get(name).cursor_at
                start = end - timedelta(seconds=chance.randrange(5, 120))
                self.backfilled += len(app.schedules.backfill(name, start, end, overlap=overlap))

    def disturb(self) -> None:
        """Kill or freeze one at any moment, or let its successor die at a certain one."""
        place = self.chance.randrange(EVALUATORS)
        victim = self._processes[place]
        if self.chance.random() < 0.5 and victim.poll() is None:
            os.kill(victim.pid, signal.SIGSTOP)
            fault_counts.count("processes frozen")
            length = 0.05 + self.chance.random() / 5
            thaw = threading.Timer(length, os.kill, (victim.pid, signal.SIGCONT))
            thaw.start()
            self.move(self.chance.randrange(1, 20))  # waits, if it was frozen as it wrote to SQLite
            thaw.join()
            return
        victim.kill()
        victim.wait()
        fault_counts.count("processes killed")
        when = f"{self.chance.choice(PLACES)}=kill@{self.chance.randrange(1, 9)}"
        armed = {failpoints.ENVIRONMENT: when} if self.chance.random() < 0.5 else {}
        self._processes[place] = self._start(**armed)

    def move(self, seconds: float) -> None:
        """Move the clock, ahead or back."""
        self.latest = max(self.latest, self.clock.advance(seconds))

    def catch_up(self) -> None:
        """Wait until everything that is due is decided, by those who are left or come."""
        for place, process in enumerate(self._processes):
            if process.poll() is not None:
                self._processes[place] = self._start()
        ahead, now = self.clock.now + timedelta(seconds=60), self.clock.now
        wait_until(
            lambda: all(
                one.cursor_at <= ahead and (one.next_at or ahead) > now
                for one in self.app.schedules.list()
            ),
            "every due tick to be decided",
            seconds=60,
        )


def on_record(app: Tenure, name: str) -> tuple[Counter[datetime], set[datetime]]:
    """The ticks with a job, how often, and those with any outcome."""
    read, fired, known = app.core.store.read, Counter[datetime](), set[datetime]()
    for fire in schedules.fires(read, f"WHERE schedule = {read.dialect.value}", (name,)):
        fired[fire.at] += fire.job_id is not None
        at = fire.at
        while at <= (fire.until or fire.at):
            known.add(at)
            at += TICK
    return fired, known


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.scenario(83, 84)
@pytest.mark.parametrize("faults", [4, pytest.param(120, marks=pytest.mark.full)])
def test_each_tick_has_one_job_and_is_on_record(
    app: Tenure, clock: Clock, tmp_path: Path, chance: random.Random, faults: int
) -> None:
    """Also with a backfill, a clock that goes back, and one that was ahead for a day."""
    jumps = {faults // 4: -1800.0, faults // 2: DAY, faults * 3 // 4: -DAY}
    with Scene(app, clock, tmp_path, chance) as scene:
        scene.catch_up()
        for fault in range(faults):
            scene.move(chance.randrange(1, 90))
            scene.disturb()
            scene.move(jumps.get(fault, 0))
            scene.catch_up()
        scene.move((scene.latest - clock.now).total_seconds() + 7)
        scene.catch_up()
    for name in scene.names:
        app.schedules.pause(name)
    clock.advance(scheduling.LEASE_SECONDS + 1)  # those of the killed run out
    while scheduling.step(app, "last"):  # what waits comes to its turn
        pass
    assert scene.backfilled > 0
    with closing(RawSql(app.database)) as raw:
        jobs = dict(raw.run("SELECT type, count(*) FROM {job} GROUP BY type"))
    for name in scene.names:
        fired, known = on_record(app, name)
        assert set(fired.values()) <= {0, 1}
        assert fired.total() == jobs[name] == app.schedules.get(name).fired
        end = app.schedules.get(name).cursor_at
        assert {START + n * TICK for n in range(1, (end - START) // TICK + 1)} <= known
    assert [app.find(status=status) for status in ("waiting", "pending", "processing")] == [[]] * 3
    assert app.verify() == []


@pytest.mark.postgres
@pytest.mark.scenario(66)
def test_a_deadlock_behind_a_release_reaches_nobody(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who completes a job locks the one that waits for it last, out of the order of ids."""
    ended: list[Exception] = []
    judge = PostgresSession.trouble

    def seen(session: PostgresSession, error: Exception) -> Trouble:
        ended.append(error)
        return judge(session, error)

    monkeypatch.setattr(PostgresSession, "trouble", seen)
    with (
        Tenure(postgres_url) as app,
        Tenure(postgres_url) as operator,
        closing(RawSql(postgres_url)) as raw,
        ThreadPoolExecutor() as threads,
    ):
        app.schedules.create("s", NewJob("first", {}, {}), every=3600, overlap="buffer_one")
        first = app.schedules.trigger("s").job_id
        app.schedules.update("s", job=NewJob("mail", {}, {}))
        waits, last = app.schedules.trigger("s").job_id, app.enqueue("mail").id
        assert first
        assert waits
        assert first < waits < last
        leases = app.core.claim(ClaimRequest(worker="w", limit=9, lease_seconds=600)).leases
        assert {lease.id for lease in leases} == {first, last}
        bulk = operator.bulk.start("cancel", Filter(type="mail"))
        done = [Report(lease.id, lease.lease_id, Outcome.COMPLETED) for lease in leases]
        with raw.transaction():
            raw.run("SELECT FROM {job} WHERE id = ? FOR UPDATE", last)
            reporting = threads.submit(app.core.report, done)  # has the first
            wait_until(lambda: blocked(raw) == 1, "the report to wait")
            acting = threads.submit(operator.bulk.step, bulk.id)  # has the one that waits
            wait_until(lambda: blocked(raw) == 2, "the bulk action to wait")
        answers = {
            one.job_id: verdict.answer
            for one, verdict in zip(done, reporting.result().verdicts, strict=True)
        }
        assert answers[first] == "recorded"
        assert acting.result().changed + (answers[last] == "recorded") == 2
        assert app.get(waits).status == "cancelled"
        # The repetition may meet the same lock once more before the other has committed.
        assert {type(error) for error in ended} == {DeadlockDetected}
        assert app.verify() == []


def blocked(raw: RawSql) -> int:
    """How many sessions wait for a lock."""
    return int(raw.value("SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted"))
