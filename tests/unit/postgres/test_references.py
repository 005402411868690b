"""A row of another table that refers to a job, in a transaction that is open, holds up nothing.

PostgreSQL locks the job FOR KEY SHARE then, which says no more than that the job must stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from tenure import NewJob, PerPartition, Tenure, Unique
from tenure.rules.reports import Answer, Lease, Report
from tenure.rules.search import Filter
from tenure.store import transitions
from tenure.store.database import Database
from tenure.store.postgres import reader, session
from tests.support.clock import Clock
from tests.support.store import (
    LEASE_SECONDS,
    claim_request,
    report_completed,
    report_failed,
    report_released,
)
from tests.unit.postgres.connections import Connection

Refer = Callable[[str], Connection]


@pytest.fixture
def app(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tenure]:
    """An application that waits for a lock for a moment only."""
    monkeypatch.setattr(session, "BEGIN", session.BEGIN.replace("'10s'", "'20ms'"))
    with Tenure(url) as app:
        yield app
        assert app.verify() == []


@pytest.fixture
def refer(url: str) -> Iterator[Refer]:
    """Insert a row that refers to a job, in a transaction that stays open; return its session."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE invoice (job uuid REFERENCES tenure.job (id))")
        connection.execute("BEGIN")

        def refer(job_id: str) -> Connection:
            connection.execute("INSERT INTO invoice VALUES (%s)", (job_id,))
            return connection

        yield refer
        connection.execute("ROLLBACK")
        connection.execute("DROP TABLE invoice")


def claimed(app: Tenure) -> Lease:
    (lease,) = app.core.claim(claim_request(1)).leases
    return lease


def answer(app: Tenure, reported: Report) -> Answer:
    (verdict,) = app.core.exchange([reported], None).result().verdicts
    return verdict.answer


CHANGES: dict[str, Callable[[Tenure, str], object]] = {
    "cancel": lambda app, id: app.cancel(id),
    "amend": lambda app, id: app.amend(id, priority=1),
    "bulk": lambda app, id: app.bulk.step(app.bulk.start("cancel", Filter(type="mail")).id).changed,
}
REPORTS = {"completed": report_completed, "failed": report_failed, "released": report_released}


@pytest.mark.parametrize("change", CHANGES)
def test_a_waiting_job_is_changed(app: Tenure, refer: Refer, change: str) -> None:
    job = app.enqueue("mail")
    refer(job.id)
    CHANGES[change](app, job.id)
    assert app.get(job.id) != job


@pytest.mark.parametrize(
    "limits", [{}, {"max_running": 2}, {"per_partition": PerPartition(max_running=1)}]
)
def test_a_job_is_claimed(app: Tenure, refer: Refer, limits: dict[str, Any]) -> None:
    app.queues.limit("default", **limits)
    job = app.enqueue("mail", partition="one" if "per_partition" in limits else None)
    refer(job.id)
    assert claimed(app).id == job.id


@pytest.mark.parametrize("outcome", REPORTS)
def test_an_outcome_is_recorded(app: Tenure, refer: Refer, outcome: str) -> None:
    app.enqueue("mail", max_retries=0)
    lease = claimed(app)
    refer(lease.id)
    assert answer(app, REPORTS[outcome](lease)) == Answer.RECORDED


def test_a_running_job_is_found_free_where_another_one_is_locked(
    app: Tenure, refer: Refer, raw: Connection
) -> None:
    app.enqueue("mail", max_retries=0)
    lease = claimed(app)
    refer(lease.id)
    assert app.core.store.write("test", lambda db: db.busy([lease.id])).result() == set()


def test_a_lease_is_renewed(app: Tenure, refer: Refer) -> None:
    id = app.enqueue("mail").id
    lease = claimed(app)
    refer(id)
    app.core.store.renew([(id, lease.lease_id)], 3600)
    until = app.get(id).lease_expires_at
    assert until is not None
    assert lease.lease_expires_at is not None
    assert until > lease.lease_expires_at


def test_a_job_that_failed_is_retried(app: Tenure, refer: Refer) -> None:
    id = app.enqueue("mail", max_retries=0).id
    answer(app, report_failed(claimed(app)))
    refer(id)
    assert app.retry(id).status == "pending"


def test_a_lease_that_ran_out_ends(app: Tenure, refer: Refer) -> None:
    """In the worst case a moment later, as after any lock: the row does not say which it was."""
    app.open()
    clock = Clock(app.database)
    id = app.enqueue("mail", max_retries=1).id
    lease = claimed(app)
    refer(id)
    clock.advance(LEASE_SECONDS + 5)
    assert app.core.sweep() == []
    clock.advance(4)
    assert [steps[-1].id for steps in app.core.sweep()] == [lease.id]
    clock.close()


def test_a_job_that_did_not_start_in_time_is_cancelled(app: Tenure, refer: Refer) -> None:
    app.open()
    clock = Clock(app.database)
    id = app.enqueue("mail", start_by=clock.now + timedelta(seconds=5)).id
    refer(id)
    clock.advance(60)
    assert [steps[-1].id for steps in app.core.store.expire().result()] == [id]
    clock.close()


def test_a_job_whose_parent_or_child_is_referred_to_goes_on(app: Tenure, refer: Refer) -> None:
    with app.workflow() as flow:
        parent = flow.add(NewJob("mail", {}, {}))
        child = flow.add(NewJob("mail", {}, {}), depends_on=[parent])
    lease = claimed(app)
    refer(child.id)
    refer(parent.id)
    assert answer(app, report_completed(lease)) == Answer.RECORDED
    assert app.get(child.id).status == "pending"


def test_a_caller_holds_and_cancels_in_its_transaction(app: Tenure, refer: Refer) -> None:
    app.open()
    id = app.enqueue("mail").id
    refer(id)
    with psycopg.connect(app.database) as mine:
        mine.execute("SET lock_timeout = '20ms'")
        app.within(mine).cancel(id)
    assert app.get(id).status == "cancelled"


def test_it_is_no_lock_for_one_who_asks_why_a_job_waits(
    app: Tenure, refer: Refer, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "SHORT_SECONDS", 0.0)
    id = app.enqueue("mail").id
    referring = f"session {refer(id).info.backend_pid} of "
    app.core.claim(claim_request(0))
    assert app.explain(id).reason == "next"
    raw.execute("BEGIN")
    raw.execute("SELECT FROM tenure.job FOR NO KEY UPDATE")
    told = app.explain(id)
    assert told.reason == "locked"
    assert f"session {raw.info.backend_pid} of " in told.text
    assert referring not in told.text
    raw.execute("ROLLBACK")
    assert app.explain(id).reason == "next"


@pytest.mark.parametrize("rule", [None, "30m"])
def test_a_job_that_is_referred_to_holds_up_no_retention(
    app: Tenure, refer: Refer, rule: str | None
) -> None:
    """It is left, and deleted once it is free: the database alone decides whether it may be."""
    app.open()
    clock = Clock(app.database)
    if rule:
        app.retention.set(type="mail", completed=rule)
    one, _ = app.enqueue("mail"), app.enqueue("mail")
    for lease in (claimed(app), claimed(app)):
        answer(app, report_completed(lease))
    referring = refer(one.id)
    clock.advance(3601)
    while app.core.measure():
        pass

    def prune() -> list[str]:
        while app.core.prune({"completed": "1h"}):
            pass
        return [job.id for job in app.find()]

    assert prune() == [one.id]
    referring.execute("ROLLBACK")
    clock.advance(3601)
    assert prune() == []
    clock.close()


def test_many_jobs_that_are_referred_to_hold_up_no_retention_of_others(
    app: Tenure, refer: Refer, raw: Connection
) -> None:
    """As many as one batch deletes were looked at again by each, and no other job was deleted."""
    app.open()
    clock = Clock(app.database)
    app.enqueue_many([NewJob("mail", {}, {}) for _ in range(20)])
    for _ in range(20):
        answer(app, report_completed(claimed(app)))
        clock.advance(1)
    by_age = "SELECT id::text FROM tenure.job WHERE finished_at IS NOT NULL ORDER BY finished_at"
    held = [id for (id,) in raw.execute(f"{by_age} LIMIT 12").fetchall()]
    for id in held:
        referring = refer(id)

    def prune() -> list[str]:
        now = clock.advance(3601)
        for _ in range(8):
            before = {"completed": now - timedelta(hours=1)}
            app.core.store.prune(before, limit=5).result()
        return [id for (id,) in raw.execute(by_age).fetchall()]  # type: ignore[arg-type]

    assert prune() == held
    referring.execute("ROLLBACK")
    assert prune() == []
    clock.close()


def test_a_unique_job_is_replaced(app: Tenure, refer: Refer) -> None:
    rule = Unique(on_conflict="replace")
    first = app.enqueue("mail", unique=rule)
    refer(first.id)
    again = app.enqueue("mail", priority=1, unique=rule)
    assert (again.id, again.priority) == (first.id, 1)


def test_an_attempt_is_held_from_sql(app: Tenure, refer: Refer, raw: Connection) -> None:
    app.enqueue("mail")
    lease = claimed(app)
    refer(lease.id)
    raw.execute("SELECT tenure.hold(%s, %s)", (lease.id, lease.token))


def test_a_child_is_added_within_a_transaction(app: Tenure, refer: Refer, url: str) -> None:
    parent = app.enqueue("mail")
    refer(parent.id)
    with psycopg.connect(url) as connection:
        connection.execute("SET lock_timeout = '20ms'")
        child = app.within(connection).enqueue("mail", depends_on=[parent.id])
    assert app.get(child.id).status == "waiting"


def test_jobs_are_held_for_a_change(app: Tenure, refer: Refer) -> None:
    job = app.enqueue("mail")
    refer(job.id)
    app.core.store.write("test", lambda db: db.hold([job.id])).result()


def test_a_wary_claim_starts_a_job(app: Tenure, refer: Refer) -> None:
    job = app.enqueue("mail")
    refer(job.id)

    def claim(db: Database) -> Sequence[Lease]:
        return transitions.claim(db, claim_request(1), wary=True)

    assert [lease.id for lease in app.core.store.write("test", claim).result()] == [job.id]


def test_a_schedule_that_is_referred_to_is_changed(app: Tenure, raw: Connection) -> None:
    app.schedules.create("nightly", NewJob("mail", {}, {}), every="1d")
    raw.execute("BEGIN")
    raw.execute("SELECT FROM tenure.schedule FOR KEY SHARE")
    app.schedules.pause("nightly")
    raw.execute("ROLLBACK")


@pytest.mark.parametrize("queue", ["default", "other"])
def test_the_next_job_is_claimed_with_a_report(app: Tenure, refer: Refer, queue: str) -> None:
    app.enqueue("mail")
    lease = claimed(app)
    job = app.enqueue("mail", queue=queue)
    refer(job.id)
    found = app.core.exchange([report_completed(lease)], claim_request(1)).result()
    assert [lease.id for lease in found.leases] == [job.id]


def test_times_are_set_right_after_a_clock_was_ahead(app: Tenure, refer: Refer) -> None:
    app.open()
    clock = Clock(app.database)
    app.enqueue("mail")
    running, late = claimed(app).id, app.enqueue("mail").id
    while app.core.measure():
        pass
    now = clock.advance(-86_400)
    refer(running)
    refer(late)
    app.core.store.set_times_right().result()
    until = app.get(running).lease_expires_at
    assert until is not None
    assert until <= now + timedelta(hours=1)
    assert app.get(late).run_at <= now
    clock.close()
