"""Clocks that are wrong or jump: a worker's decides nothing, the store's breaks nothing."""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tenure import InvalidInput, NewJob, Status, Tenure
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tenure.store.transitions import MIN_STEP_SECONDS
from tests.support import fault_counts
from tests.support.clock import Clock
from tests.support.waiting import wait_until
from tests.support.worker_scripts import WorkerScript, freeze, wait_for_exit
from tests.support.workers import running_sweeper, running_worker, transitions, wait_until_completed

pytestmark = pytest.mark.chaos

HOUR = 3600.0
DAY = 24 * HOUR

# Before anything of Tenure is imported: whatever asks Python for the time is told another.
WRONG_CLOCK = """
import datetime, time
real_time, real_datetime = time.time, datetime.datetime
time.time = lambda: real_time() + {hours} * 3600


class Wrong(real_datetime):
    @classmethod
    def now(cls, tz=None):
        return real_datetime.now(tz) + datetime.timedelta(hours={hours})


datetime.datetime = Wrong
"""
WORK = """
@app.job
async def work(context: JobContext):
    log(f"{context.id} {context.attempt}")
    return "done"


@app.job(backoff=0.2)
async def flaky(context: JobContext):
    if context.attempt == 1:
        raise ValueError
    return "done"
"""


@pytest.mark.scenario(68)
@pytest.mark.parametrize("hours", [1, -1])
def test_a_worker_whose_clock_is_an_hour_off(app: Tenure, tmp_path: Path, hours: int) -> None:
    jobs = app.enqueue_many(
        [*[NewJob("work", {}, {}) for _ in range(20)], NewJob("flaky", {}, {"backoff": 0.2})]
    )
    later = app.enqueue("work", delay="30m")
    with (
        WorkerScript(tmp_path / "meet", app.database, WORK, lease=2) as script,
        running_sweeper(app),
    ):
        path = script.folder / "worker_script.py"
        path.write_text(WRONG_CLOCK.format(hours=hours) + path.read_text())
        worker = script.start()
        for job in jobs:
            wait_until_completed(app, job)
        worker.terminate()
        assert wait_for_exit(worker) == 0
    now = datetime.now(UTC)
    for job in map(app.get, [job.id for job in jobs]):
        assert job.attempts == (2 if job.type == "flaky" else 1)
        assert job.started_at is not None
        assert abs(now - job.started_at) < timedelta(minutes=10)
        assert "lease_expired" not in transitions(app, job)
    assert transitions(app, later) == ["enqueued"]  # not due by the only clock that counts
    assert app.verify() == []


@pytest.mark.scenario(69)
@pytest.mark.each_engine
def test_the_store_s_clock_jumps_ahead(app: Tenure, clock: Clock) -> None:
    """Every lease runs out at once: one more attempt each at most, and the dead leases are lost."""
    app.enqueue_many([NewJob("work", {}, {"backoff": 0}) for _ in range(700)])
    ask = ClaimRequest(worker="first", limit=700, lease_seconds=30)
    old = app.core.claim(ask).leases
    clock.advance(HOUR)
    assert len(app.core.sweep()) == 500  # a bite, not a storm
    assert len(app.core.sweep()) == 200
    again = app.core.claim(ask).leases
    assert sorted(lease.id for lease in again) == sorted(lease.id for lease in old)
    late = [Report(lease.id, lease.lease_id, Outcome.COMPLETED) for lease in old]
    assert {verdict.answer for verdict in app.core.report(late).verdicts} == {"lost"}
    good = [Report(lease.id, lease.lease_id, Outcome.COMPLETED) for lease in again]
    assert {verdict.answer for verdict in app.core.report(good).verdicts} == {"recorded"}
    assert {job.attempts for job in app.find(limit=500)} == {2}
    assert app.verify() == []


@pytest.mark.scenario(70)
@pytest.mark.each_engine
def test_the_store_s_clock_jumps_back(app: Tenure, clock: Clock) -> None:
    """Leases last longer and retries wait longer; both come, and heartbeats shorten nothing."""

    @app.job(name="work")
    async def work() -> None: ...

    held, failing = app.enqueue("work", priority=-1), app.enqueue("work", backoff=10)
    ask = ClaimRequest(worker="first", limit=1, lease_seconds=30)
    (lease,), (other,) = (app.core.claim(ask).leases for _ in range(2))
    assert (lease.id, other.id) == (held.id, failing.id)
    app.core.report([Report(other.id, other.lease_id, Outcome.FAILED, error="boom")])
    clock.advance(-HOUR)
    assert app.core.heartbeat([(lease.id, lease.lease_id)], 30) == {}
    assert app.get(held.id).lease_expires_at == lease.lease_expires_at
    assert app.core.sweep() == []
    assert not app.core.claim(ask).leases
    assert app.explain(failing.id)
    assert app.explain(held.id)
    clock.advance(HOUR + 60)
    with running_sweeper(app), running_worker(app):

        def over() -> bool:
            clock.advance(5)  # the retry of the lease that ran out waits, too
            return all(app.get(job.id).status is Status.COMPLETED for job in (held, failing))

        wait_until(over, "both to be done")
    assert app.verify() == []


@pytest.mark.scenario(108)
def test_the_store_s_clock_jumps_a_day_ahead_and_back(app: Tenure, clock: Clock) -> None:
    ask = ClaimRequest(worker="killed", limit=1, lease_seconds=30)
    held, before = app.enqueue("work"), app.enqueue("later", delay=2 * DAY)
    (lease,) = app.core.claim(ask).leases
    clock.advance(DAY)
    assert app.core.heartbeat([(lease.id, lease.lease_id)], 30) == {}
    failing, released, plain = (app.enqueue("work", backoff=10) for _ in range(3))
    delayed = app.enqueue("work", delay=5)
    for job, outcome in ((failing, Outcome.FAILED), (released, Outcome.RELEASED)):
        (taken,) = app.core.claim(ask).leases
        assert taken.id == job.id
        clock.advance(1)
        app.core.report([Report(taken.id, taken.lease_id, outcome, error="boom")])
    wait_until(lambda: len(app.events.read().events) == 12, "the ledger to be settled")
    while app.core.measure():
        pass
    clock.advance(-DAY)
    normal = app.enqueue("other", delay=60)
    with running_sweeper(app):
        for job in (failing, released, plain):
            wait_until(lambda id=job.id: app.get(id).run_at <= clock.now, "it to be due")
            assert transitions(app, job)[-1] == "amended"
            assert app.history(job.id)[-1].actor == "sweep"
        hour = timedelta(hours=1)
        wait_until(lambda: app.get(held.id).lease_expires_at == clock.now + hour, "an end")
        assert [app.get(job.id).run_at for job in (before, delayed, normal)] == [
            job.run_at for job in (before, delayed, normal)
        ], "the application delayed them"
        clock.advance(3_600)
        wait_until(lambda: "lease_expired" in transitions(app, held), "the lease to end")
    assert app.verify() == []


@pytest.mark.scenario(108)
def test_a_clock_that_was_not_put_back_leaves_long_leases_alone(app: Tenure, clock: Clock) -> None:
    job = app.enqueue("work")
    app.core.claim(ClaimRequest(worker="slow", limit=1, lease_seconds=DAY))
    wait_until(app.core.measure, "the ledger to be counted")
    clock.advance(-MIN_STEP_SECONDS)
    assert app.core.store.set_times_right().result() == []
    assert app.get(job.id).lease_expires_at == clock.now + timedelta(seconds=DAY + MIN_STEP_SECONDS)


@pytest.mark.scenario(71)
def test_everything_sleeps_for_longer_than_the_leases(
    app: Tenure, clock: Clock, tmp_path: Path
) -> None:
    """As a closed laptop does. What had a lease may run once more; nothing is lost or stuck."""
    handlers = WORK.replace('return "done"', "await asyncio.sleep(0.01)", 1)
    jobs = app.enqueue_many([NewJob("work", {}, {"backoff": 0}) for _ in range(200)])
    with WorkerScript(tmp_path / "meet", app.database, handlers, lease=5) as script:
        workers = [script.start(), script.start()]
        script.wait_for_lines(50)
        for worker in workers:
            freeze(worker, app)
            fault_counts.count("processes frozen")
        clock.advance(600)
        for worker in workers:
            os.kill(worker.pid, signal.SIGCONT)
        with running_sweeper(app):
            for job in jobs:
                wait_until_completed(app, job)
        for worker in workers:
            worker.terminate()
        assert [wait_for_exit(worker) for worker in workers] == [0, 0]
    runs = [line.split()[0] for line in script.lines()]
    for job in map(app.get, [job.id for job in jobs]):
        assert 1 <= runs.count(job.id) <= job.attempts <= 2
    assert app.verify() == []


@pytest.mark.scenario(74)
def test_times_far_away_and_without_a_zone(app: Tenure) -> None:
    with pytest.raises(InvalidInput, match="run_at"):
        app.enqueue("work", run_at=datetime(2030, 1, 1))  # noqa: DTZ001 - it is the fault
    for at in (
        datetime(2038, 1, 19, 3, 14, 8, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    ):
        try:
            job = app.enqueue("work", run_at=at)
        except InvalidInput:
            assert at.year == 9999
            continue
        assert app.get(job.id).run_at == at
        assert app.explain(job.id)
        assert app.get(job.id).status is Status.PENDING
    assert not app.core.claim(ClaimRequest(worker="w", limit=9, lease_seconds=9)).leases
    assert app.verify() == []
