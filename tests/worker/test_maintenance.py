"""The sweeper: leases that ran out, and what retention lets go."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from tenure import InvalidInput, JobNotFound, NewJob, Status, Tenure
from tenure.app.core import Core
from tenure.errors import BulkNotFound
from tenure.rules.reports import ClaimRequest, Duty, Outcome, Report
from tenure.rules.search import Filter
from tenure.store.tables import schedules, stats
from tenure.store.tables.retention import MAX_WAIT
from tenure.telemetry import logs
from tenure.webhooks.deliveries import WEBHOOK
from tenure.worker import maintenance
from tenure.worker.maintenance import MaintenanceThread, StallWatch
from tests.support.clock import Clock
from tests.support.waiting import wait_until
from tests.support.workers import running_sweeper, transitions, wait_until_settled


def claim(app: Tenure, limit: int, lease_seconds: float = 0.001) -> list[str]:
    """Take jobs, as a worker that then dies: the ids."""
    request = ClaimRequest(worker="gone", limit=limit, lease_seconds=lease_seconds)
    return [lease.id for lease in app.core.claim(request).leases]


def test_several_sweepers_end_each_lease_once(app_on_each_engine: Tenure) -> None:
    app = app_on_each_engine
    app.enqueue_many(
        [NewJob("work", {}, {"max_retries": n % 3, "backoff": 60}) for n in range(700)]
    )
    with Tenure(app.database) as second, Tenure(app.database) as third:
        taken = claim(app, 700)
        assert len(taken) == 700
        with running_sweeper(app), running_sweeper(second), running_sweeper(third):
            wait_until(lambda: not app.find(status="processing"), "every lease to be ended")

    for id in taken:
        job = app.get(id)
        ending = ["retried"] if job.max_retries == 2 else []
        assert transitions(app, id) == ["enqueued", "claimed", "lease_expired", *ending]
    assert app.verify() == []


def test_a_lease_that_still_runs_is_left_alone(app_on_each_engine: Tenure) -> None:
    app = app_on_each_engine
    app.enqueue_many([NewJob("work", {}, {}) for _ in range(20)])
    expired = claim(app, 10)
    running = claim(app, 10, lease_seconds=60)
    with running_sweeper(app):
        wait_until(
            lambda: all("retried" in transitions(app, id) for id in expired), "the leases to end"
        )
    assert {app.get(id).status for id in running} == {Status.PROCESSING}


def settle(app: Tenure, outcome: Outcome, count: int = 1) -> list[str]:
    """New jobs that have ended this way: the ids."""
    jobs = app.enqueue_many([NewJob("work", {}, {"max_retries": 1}) for _ in range(count)])
    request = ClaimRequest(worker="w", limit=count, lease_seconds=30)
    leases = app.core.claim(request).leases
    app.core.report([Report(lease.id, lease.lease_id, outcome, None, "why") for lease in leases])
    return [job.id for job in jobs]


def test_retention_removes_what_settled_long_ago_and_nothing_else(
    app_on_each_engine: Tenure,
) -> None:
    app = app_on_each_engine
    completed, failed = settle(app, Outcome.COMPLETED, 700), settle(app, Outcome.FAILED, 5)
    cancelled = app.cancel(app.enqueue("work").id).id
    pending = app.enqueue("work").id
    app.enqueue("held")
    request = ClaimRequest(worker="w", limit=1, lease_seconds=60, types=("held",))
    (held,) = app.core.claim(request).leases
    with running_sweeper(app, keep={"completed": 0, "failed": "1h", "cancelled": 0}):
        wait_until(lambda: len(app.find(limit=500)) == 7, "seven jobs to remain")

    assert {job.id for job in app.find()} == {*failed, pending, held.id}
    for id in (completed[0], completed[-1], cancelled):
        with pytest.raises(JobNotFound):
            app.get(id)
    assert app.verify() == []


def test_everything_that_moves_is_measured(app_on_each_engine: Tenure) -> None:
    app = app_on_each_engine
    app.enqueue_many([NewJob("work", {}, {}) for _ in range(5_000)])
    with running_sweeper(app):
        wait_until(
            lambda: sum(t.transitions for t in app.stats.totals()) == 5_000,
            "all moves to be measured",
        )
        settle(app, Outcome.COMPLETED)
        wait_until(lambda: len(app.stats.totals()) == 3, "those that came later")
    assert app.verify() == []


def test_without_retention_nothing_is_removed(app: Tenure) -> None:
    (job,) = settle(app, Outcome.COMPLETED)
    app.enqueue("work")
    expired = claim(app, 1)
    with running_sweeper(app, keep={}):
        wait_until(lambda: "lease_expired" in transitions(app, expired[0]), "a sweep")
    assert app.get(job).status is Status.COMPLETED


def test_a_sweeper_outlives_a_store_that_fails(
    app: Tenure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")  # a command run in this process may have silenced the log
    job = app.enqueue("work", max_retries=1)
    database = sqlite3.connect(tmp_path / "jobs.db")
    database.execute(
        "CREATE TRIGGER test_refuse BEFORE UPDATE ON tenure_job WHEN NEW.event = 'lease_expired'"
        " BEGIN SELECT RAISE(ABORT, 'test: indigestible'); END"
    )
    claim(app, 1)
    with running_sweeper(app):
        wait_until(lambda: "the sweep failed" in caplog.text, "the sweep to fail")
        assert app.get(job.id).status is Status.PROCESSING
        database.execute("DROP TRIGGER test_refuse")
        assert wait_until_settled(app, job).status is Status.FAILED
    database.close()


def test_a_failure_that_lasts_is_logged_now_and_then(
    app: Tenure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A role that can only read had a line each second, for as long as it ran."""
    app.open()
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as database:
        database.execute("DROP TABLE tenure_job")
    sweeper = MaintenanceThread(app)
    for _ in range(5):
        sweeper.do_once()
    assert caplog.text.count("the sweep failed") == 1
    monkeypatch.setattr(logs, "REPEAT_SECONDS", 0)
    sweeper.do_once()
    assert caplog.text.count("the sweep failed") == 2


def test_jobs_that_cannot_be_deleted_are_logged_once(
    app: Tenure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settle(app, Outcome.COMPLETED, 2)
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as database:
        database.execute(
            "CREATE TRIGGER test_refuse BEFORE DELETE ON tenure_job"
            " BEGIN SELECT RAISE(ABORT, 'test: indigestible'); END"
        )
    monkeypatch.setattr(maintenance, "PRUNE_EVERY_SECONDS", 0)
    sweeper = MaintenanceThread(app, keep={"completed": 0})
    while app.core.measure():
        pass
    wait_until(lambda: (sweeper.do_once(), "2 settled jobs cannot be deleted" in caplog.text)[1])
    for _ in range(5):
        sweeper.do_once()
    assert caplog.text.count("indigestible") == 1
    assert len(app.find()) == 2


def test_on_sqlite_a_look_for_duties_does_not_wait_for_who_writes(
    app: Tenure, tmp_path: Path
) -> None:
    app.enqueue("work", start_by=0.001)
    with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        wait_until(lambda: Duty.STARTS in app.core.look())


def test_a_sweeper_can_be_stopped_before_and_after_it_starts(app: Tenure) -> None:
    MaintenanceThread(app).stop()
    sweeper = MaintenanceThread(app, interval=3_600)
    sweeper.start()
    sweeper.stop()


def test_a_duty_that_fails_keeps_no_other_from_being_done(
    app: Tenure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Leases end and webhooks are told, though a bulk action meets what nobody foresaw."""
    caplog.set_level("WARNING")
    app.webhooks.create("shop", "https://example.com", ["enqueued"])
    app.enqueue("mail")
    app.bulk.start("cancel", Filter(type="mail"))
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as database:
        database.execute(
            "CREATE TRIGGER test_refuse BEFORE UPDATE ON tenure_bulk"
            " BEGIN SELECT RAISE(ABORT, 'test: indigestible'); END"
        )
    with running_sweeper(app):
        wait_until(lambda: app.find(type=WEBHOOK), "a delivery")
        wait_until(
            lambda: sum(total.transitions for total in app.stats.totals()) >= 2, "the measures"
        )
    assert "test: indigestible" in caplog.text


def test_a_job_that_cannot_be_set_right_keeps_no_schedule_from_it(
    app: Tenure, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After a clock that was ahead, schedules waited for it as long as such a job was there."""
    clock.advance(86_400)
    app.enqueue("mail")
    app.schedules.create("daily", NewJob("mail", {}, {}), every="1d")
    wait_until(lambda: not app.core.measure(), "the ledger to be counted")
    clock.advance(-86_400)
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as database:
        database.execute(
            "CREATE TRIGGER test_refuse BEFORE UPDATE ON tenure_job"
            " BEGIN SELECT RAISE(ABORT, 'test: indigestible'); END"
        )
    MaintenanceThread(app).do_once()
    assert "test: indigestible" in caplog.text
    assert app.schedules.get("daily").cursor_at == clock.now


def test_a_duty_that_is_refused_keeps_no_other_from_being_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(core: Core) -> int:
        """As when an operator has removed a bulk action meanwhile."""
        raise BulkNotFound("00000000-0000-7000-8000-000000000000")

    monkeypatch.setattr(maintenance, "run_batches", refuse)
    with Tenure(f"sqlite:///{tmp_path}/jobs.db") as app:
        app.webhooks.create("shop", "https://example.com", ["enqueued"])
        app.enqueue("mail")
        with running_sweeper(app):
            wait_until(lambda: app.find(type=WEBHOOK), "a delivery")


@pytest.mark.parametrize(
    ("keep", "path"),
    [
        ({"complete": "7d"}, "$.keep"),
        ({"pending": "7d"}, "$.keep"),
        ({"completed": "a week"}, "$.keep.completed"),
    ],
)
def test_a_retention_that_means_nothing_is_refused_at_once(
    app: Tenure, keep: dict[str, str], path: str
) -> None:
    with pytest.raises(InvalidInput) as of_call:
        app.core.prune(keep)
    with pytest.raises(InvalidInput) as of_worker:
        app.run_worker(keep=keep)
    assert (of_call.value.path, of_worker.value.path) == (path, path)


def test_retention_leaves_what_webhooks_are_yet_to_be_told(app_on_each_engine: Tenure) -> None:
    app_on_each_engine.webhooks.create("shop", "https://example.com", ["completed"])
    settle(app_on_each_engine, Outcome.COMPLETED)
    wait_until(
        lambda: len(app_on_each_engine.events.read().events) == 3, "every move to have its place"
    )
    assert app_on_each_engine.core.prune({"completed": 0}) == 0
    wait_until(
        lambda: (
            app_on_each_engine.core.forward_to_webhooks(),
            app_on_each_engine.find(type=WEBHOOK),
        )[1],
        "the delivery",
    )
    assert app_on_each_engine.core.prune({"completed": 0}) == 1
    app_on_each_engine.webhooks.remove("shop")
    settle(app_on_each_engine, Outcome.COMPLETED)
    wait_until(
        lambda: app_on_each_engine.core.prune({"completed": 0}), "what nobody waits for to go"
    )


def test_time_in_which_a_server_stands_still_does_not_count(app: Tenure) -> None:
    now = 100.0
    watch = StallWatch(lambda: now)
    assert watch.may_end_leases(), "a server that has not started"
    watch.turned()
    now += maintenance.STALL_SECONDS
    assert watch.may_end_leases()
    watch.turned()
    now += 40
    assert not watch.may_end_leases(), "it stands still"
    expired = claim(app, 1) if app.enqueue("work") else []
    with running_sweeper(app, watch=watch):
        watch.turned()
        for _ in range(39):
            now += 1
            watch.turned()
            assert not watch.may_end_leases(), "heartbeats have as much time as they lacked"
        assert app.get(expired[0]).status is Status.PROCESSING
        now += 1
        watch.turned()
        wait_until(lambda: "retried" in transitions(app, expired[0]), "the lease to end")


def test_a_process_that_was_stopped_ends_no_lease_before_it_could_renew_its_own(
    app: Tenure,
) -> None:
    now = 100.0

    class Stopped(threading.Event):
        """A rest in which the process is stopped, once, for 40 s."""

        seconds = 40.0

        def wait(self, timeout: float | None = None) -> bool:
            nonlocal now
            now += self.seconds
            self.seconds = 0.0
            return super().wait(timeout)

    watch = StallWatch(lambda: now)
    stopped = MaintenanceThread(app, interval=0.02, watch=watch)
    stopped._end = Stopped()
    stopped.start()
    wait_until(lambda: not watch.may_end_leases(), "the stop to be noticed")
    stopped.stop()
    app.enqueue("work")
    (expired,) = claim(app, 1)
    sweeper = MaintenanceThread(app, watch=watch)
    now += 39
    sweeper.do_once()
    assert app.get(expired).status is Status.PROCESSING
    now += 1
    sweeper.do_once()
    assert "retried" in transitions(app, expired)


def test_a_long_pause_spares_leases_for_a_minute_at_most() -> None:
    now = 100.0
    watch = StallWatch(lambda: now)
    watch.turned()
    now += 8 * 3_600
    watch.turned()
    for _ in range(60):
        now += 1
        assert watch.may_end_leases() == (now >= 8 * 3_600 + 160)
        watch.turned()
    assert watch.may_end_leases()


@pytest.mark.scenario(107)
def test_retention_waits_an_hour_for_webhooks_that_fall_behind(
    app_on_each_engine: Tenure, clock: Clock
) -> None:
    app = app_on_each_engine
    app.webhooks.create("shop", "https://example.com", ["completed"])
    (job,) = settle(app, Outcome.COMPLETED)
    flow = app.group([NewJob("work", {}, {})])
    (lease,) = app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=30)).leases
    app.core.report([Report(lease.id, lease.lease_id, Outcome.COMPLETED)])
    app.core.finish_workflows()
    wait_until(lambda: len(app.events.read().events) == 6, "the ledger to be settled")
    clock.advance(60 + MAX_WAIT.total_seconds())
    assert app.core.prune({"completed": 60}) == 0
    clock.advance(1)
    assert app.core.prune({"completed": 60}) == 2
    for gone in (job, flow.nodes[0].id):
        with pytest.raises(JobNotFound):
            app.get(gone)
    wait_until(
        lambda: (
            (app.core.forward_to_webhooks(), app.webhooks.list()[0].position)[1] == app.events.end()
        ),
        "the webhook to go on without it",
    )
    assert app.verify() == []


@pytest.mark.scenario(107)
def test_a_long_deletion_delays_no_other_duty(app: Tenure, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(app, Outcome.COMPLETED, 1_200)
    while app.core.measure():
        pass
    expired = claim(app, 1) if app.enqueue("work") else []
    monkeypatch.setattr(maintenance, "PRUNE_SHARE", 0)
    app.webhooks.create("shop", "https://example.com", ["enqueued"])
    app.enqueue("mail")
    with running_sweeper(app, keep={"completed": 0}, interval=3_600):
        wait_until(lambda: app.find(type=WEBHOOK), "the last duty")
        assert app.count(status="completed").jobs == 700, "one step of the deletion"
    with running_sweeper(app, keep={"completed": 0}):
        wait_until(
            lambda: not app.count(status="completed").jobs, "the rest, long before a minute is over"
        )
        wait_until(lambda: "lease_expired" in transitions(app, expired[0]), "a sweep")


def test_ticks_that_are_left_do_not_wait_for_the_next_look(
    app_on_each_engine: Tenure, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After half a second of 1,000 schedules due at once, the others were a second late."""
    app = app_on_each_engine
    monkeypatch.setattr(maintenance, "SCHEDULES_SHARE", 0)
    monkeypatch.setattr(schedules, "BATCH", 1)
    for number in range(3):
        app.schedules.create(f"s{number}", NewJob("work", {}, {}), every=60)
    clock.advance(60)
    with running_sweeper(app, interval=3_600):
        wait_until(lambda: app.count().jobs == 3, "every tick to be decided")


@pytest.mark.scenario(107)
def test_statistics_that_fall_behind_get_more_time(
    app_on_each_engine: Tenure, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_on_each_engine
    monkeypatch.setattr(maintenance, "BUSY_SHARE", 0)
    monkeypatch.setattr(maintenance, "MAX_SHARE", 3_600)
    monkeypatch.setattr(stats, "MAX_ENTRIES", 10)
    sweeper = MaintenanceThread(app)
    for _ in range(30):  # twice as many transitions as it has time for
        app.enqueue_many([NewJob("work", {}, {}) for _ in range(20)])
        clock.advance(1)
        sweeper._count_transitions()
    until = app.stats.measured_until()
    assert until is not None
    assert clock.now - until <= maintenance.MAX_LAG + timedelta(seconds=1)
