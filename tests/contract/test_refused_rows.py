"""A row that a trigger of somebody else refuses holds up no other row of the same duty."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from tenure import NewJob, Tenure
from tenure.app.bulk import run_batches
from tenure.app.export import export
from tenure.app.schedules import decide_due
from tenure.errors import TenureError, WriteRefused
from tenure.rules.search import Filter
from tenure.store import transitions
from tenure.store.database import Database
from tenure.store.migrate import MAX_FOLLOWERS_OF_ONE
from tenure.values.redaction import NOTHING_HIDDEN
from tests.contract.other_triggers import add_trigger, drop_trigger
from tests.support.store import (
    LEASE_SECONDS,
    StoreHarness,
    report_completed,
    report_failed,
    report_suspended,
)

pytestmark = pytest.mark.own_database

KEEP = timedelta(days=1)


def add(app: Tenure, *priorities: int) -> list[str]:
    """Add jobs, of which the trigger refuses what those of priority 7 become."""
    return [app.enqueue("mail", priority=one, max_retries=1).id for one in priorities]


def complete(harness: StoreHarness, *priorities: int, app: Tenure) -> list[str]:
    """Add and complete jobs, one after the other."""
    ids = list[str]()
    for priority in priorities:
        harness.clock.advance(1)
        ids += add(app, priority)
        harness.report(*map(report_completed, harness.claim()))
    return ids


def prune(harness: StoreHarness, limit: int = 500) -> list[str]:
    """Prune until nothing is left to do; return what was said of refused rows."""
    harness.measure()
    said = list[str]()
    before = {"completed": harness.clock.now - KEEP}

    def note(refusal: TenureError) -> None:
        said.append(str(refusal))

    while harness.store.prune(before, limit, note).result():
        assert len(said) < 100, "it must come to an end"
    return said


def there(app: Tenure) -> list[str]:
    return sorted(job.id for job in app.find(limit=500))


def follow(harness: StoreHarness) -> None:
    """Do what the sweep does until it says that nothing is left, or that the rest is refused."""
    for _ in range(20):
        if not harness.store.follow().result():
            return
    raise AssertionError("the sweep would never come to an end")


def test_a_lease_that_cannot_be_ended(harness: StoreHarness, app: Tenure) -> None:
    """One refused row failed each sweep: the leases of other dead workers never ended."""
    add_trigger(harness.url, "BEFORE UPDATE", "new.priority = 7 AND new.status <> 'processing'")
    held, *others = add(app, 7, 5, 5)
    harness.claim(3)
    harness.clock.advance(LEASE_SECONDS)
    ended = harness.store.sweep().result()
    assert {steps[0].id for steps in ended} == {*others}
    assert app.get(held).status == "processing"
    with pytest.raises(WriteRefused, match="no tenant 12"):
        harness.store.sweep().result()


def of_each_call(harness: StoreHarness, sweep: Callable[[Database], object], calls: int) -> None:
    """Call a duty so many times, whether or not it says that some of its rows are refused."""
    for _ in range(calls):
        with suppress(WriteRefused):
            harness.store.write("sweep", sweep).result()


def test_more_refused_leases_than_a_sweep_reads(harness: StoreHarness, app: Tenure) -> None:
    """They were the oldest ones, so no other lease was ever looked at again."""
    ids = add(app, *([7] * 5))
    harness.claim(5)
    harness.clock.advance(1)
    others = add(app, 5, 5)
    harness.claim(2)
    add_trigger(harness.url, "BEFORE UPDATE", "new.priority = 7 AND new.status <> 'processing'")
    harness.clock.advance(LEASE_SECONDS)
    of_each_call(harness, lambda db: transitions.sweep(db, 2), 4)
    assert {app.get(id).status for id in others} == {"failed"}
    assert {app.get(id).status for id in ids} == {"processing"}
    drop_trigger(harness.url)
    of_each_call(harness, lambda db: transitions.sweep(db, 2), 6)
    assert {app.get(id).status for id in ids} == {"failed"}


def test_more_refused_jobs_than_are_cancelled_at_once(harness: StoreHarness, app: Tenure) -> None:
    """Of jobs that had to start before now."""
    for priority in [7] * 5 + [5] * 2:
        app.enqueue("mail", priority=priority, start_by=timedelta(seconds=60))
        harness.clock.advance(1)
    add_trigger(harness.url, "BEFORE UPDATE", "new.priority = 7")
    harness.clock.advance(60)
    of_each_call(harness, lambda db: transitions.expire(db, 2), 5)
    assert app.count(status="cancelled").jobs == 2
    drop_trigger(harness.url)
    of_each_call(harness, lambda db: transitions.expire(db, 2), 6)
    assert app.count(status="cancelled").jobs == 7


def test_more_refused_waits_than_are_ended_at_once(harness: StoreHarness, app: Tenure) -> None:
    add(app, *([7] * 5))
    leases = harness.claim(5)
    add(app, 5, 5)
    leases += harness.claim(2)
    for lease in leases:
        until = harness.clock.now + timedelta(seconds=60)
        harness.report(report_suspended(lease, expires_at=until))
        harness.clock.advance(1)
    add_trigger(harness.url, "BEFORE UPDATE", "new.priority = 7 AND new.status = 'pending'")
    harness.clock.advance(60)
    of_each_call(harness, lambda db: transitions.time_out(db, 2), 5)
    assert app.count(status="pending").jobs == 2


def test_more_refused_jobs_than_are_skipped_at_once(
    harness: StoreHarness, app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transitions, "AT_ONCE", 2)
    parents = add(app, *([5] * 7))
    for parent, priority in zip(parents, [7] * 5 + [5] * 2, strict=True):
        app.enqueue("mail", depends_on=[parent], priority=priority)
    add_trigger(harness.url, "BEFORE UPDATE", "new.priority = 7 AND new.status = 'cancelled'")
    harness.report(*map(report_failed, harness.claim(7)))
    of_each_call(harness, transitions.advance, 6)
    assert app.count(status="cancelled").jobs == 2
    drop_trigger(harness.url)
    of_each_call(harness, transitions.advance, 9)
    assert app.count(status="cancelled").jobs == 7


def test_more_refused_jobs_than_are_set_right_at_once(harness: StoreHarness, app: Tenure) -> None:
    """After a clock that was ahead: one lease that was refused also kept each job from its time."""
    harness.clock.advance(86_400)
    leased = add(app, *([7] * 5 + [5] * 2))
    harness.claim(7)
    late = add(app, *([7] * 5 + [5] * 2))
    harness.measure()
    harness.clock.advance(-86_400)
    hour = harness.clock.now + timedelta(hours=1)

    def are_right(*at: int) -> bool:
        jobs = [(app.get(leased[one]), app.get(late[one])) for one in at]
        return all(a.lease_expires_at == hour and b.run_at == harness.clock.now for a, b in jobs)

    add_trigger(harness.url, "BEFORE UPDATE", "new.priority = 7")
    of_each_call(harness, lambda db: transitions.set_right(db, 2), 4)
    assert are_right(5, 6)
    drop_trigger(harness.url)
    of_each_call(harness, lambda db: transitions.set_right(db, 2), 5)
    assert are_right(*range(7))


def test_a_settled_job_that_cannot_be_deleted(harness: StoreHarness, app: Tenure) -> None:
    """A table of the application that refers to some jobs ended retention for all of them."""
    ids = complete(harness, *([7] * 3 + [5] * 3 + [7] + [5] * 2), app=app)
    add_trigger(harness.url, "BEFORE DELETE", "old.priority = 7")
    harness.clock.advance(KEEP.total_seconds() + 1)
    held = sorted([*ids[:3], ids[6]])
    said = prune(harness, limit=2)  # of which there are more at the front
    assert there(app) == held
    assert said[0].endswith("nothing was written: no tenant 12")
    assert any(f"such as {id}:" in said[0] for id in held)
    assert prune(harness) == []
    drop_trigger(harness.url)
    harness.clock.advance(KEEP.total_seconds() + 61)
    later = complete(harness, 5, app=app)
    assert prune(harness) == []
    assert there(app) == later


@pytest.mark.parametrize("database_url", ["postgres", "granted"], indirect=True)
@pytest.mark.postgres
def test_a_job_that_another_table_refers_to(harness: StoreHarness, app: Tenure) -> None:
    first, _ = complete(harness, 5, 5, app=app)
    harness.sql.run("CREATE TABLE orders (job_id uuid REFERENCES {job})")
    harness.sql.run(f"INSERT INTO orders VALUES ('{first}')")
    harness.clock.advance(KEEP.total_seconds() + 1)
    (said,) = prune(harness)
    assert f"1 settled job cannot be deleted, such as {first}:" in said
    assert "violates foreign key constraint" in said
    assert there(app) == [first]
    harness.sql.run("DROP TABLE orders")


def test_a_job_with_a_rule_that_cannot_be_deleted(harness: StoreHarness, app: Tenure) -> None:
    app.retention.set(type="mail", completed=KEEP)
    ids = complete(harness, *([7] * 3 + [5] * 3), app=app)
    add_trigger(harness.url, "BEFORE DELETE", "old.priority = 7")
    harness.clock.advance(KEEP.total_seconds() + 61)
    said = prune(harness, 2)
    assert there(app) == sorted(ids[:3])
    assert {"no tenant 12" in one for one in said} == {True}
    drop_trigger(harness.url)
    harness.clock.advance(KEEP.total_seconds() + 61)
    later = complete(harness, 5, app=app)
    prune(harness)
    assert there(app) == later


def test_a_job_of_a_workflow_that_cannot_be_deleted(harness: StoreHarness, app: Tenure) -> None:
    flows = [
        app.group([NewJob("mail", {}, {"priority": one}) for one in some])
        for some in ((7, 5), (7,), (5, 5))
    ]
    harness.report(*map(report_completed, harness.claim(5)))
    app.core.finish_workflows()
    add_trigger(harness.url, "BEFORE DELETE", "old.priority = 7")
    harness.clock.advance(KEEP.total_seconds() + 1)
    said = prune(harness)
    assert [app.count(workflow=flow.id).jobs for flow in flows] == [1, 1, 0]
    assert "no tenant 12" in said[0]
    drop_trigger(harness.url)
    harness.clock.advance(3_601)
    prune(harness)
    assert there(app) == []


def test_an_export_deletes_what_can_be_deleted(
    harness: StoreHarness, app: Tenure, tmp_path: Path
) -> None:
    held, *_ = complete(harness, 7, 5, 5, app=app)
    add_trigger(harness.url, "BEFORE DELETE", "old.priority = 7")
    harness.measure()
    how = {"redaction": NOTHING_HIDDEN, "delete": True}
    (file,) = export(app.core, tmp_path, Filter(), **how)  # type: ignore[arg-type]
    assert (file.jobs, file.deleted, there(app)) == (3, 2, [held])


def test_a_job_that_cannot_be_skipped(harness: StoreHarness, app: Tenure) -> None:
    """Of a chain, those before it are skipped, and chains beside it as a whole."""
    first, second = add(app, 5, 5)

    def behind(parent: str, priority: int) -> str:
        return app.enqueue("mail", depends_on=[parent], priority=priority).id

    near = behind(first, 5)
    held = behind(near, 7)
    others = [behind(second, 5)]
    others.append(behind(others[0], 5))
    add_trigger(harness.url, "BEFORE UPDATE", "new.priority = 7 AND new.status = 'cancelled'")
    harness.report(*map(report_failed, harness.claim(2)))
    with pytest.raises(WriteRefused, match="no tenant 12"):
        follow(harness)
    assert [app.get(id).event for id in (near, held, *others)] == [
        "skipped",
        "enqueued",
        "skipped",
        "skipped",
    ]
    drop_trigger(harness.url)
    follow(harness)
    assert app.get(held).event == "skipped"


def test_a_follower_of_many_that_cannot_be_released(harness: StoreHarness, app: Tenure) -> None:
    first, second = add(app, 5, 5)
    late = list[str]()
    for parent in (first, second):
        options = [{"depends_on": [parent]} for _ in range(MAX_FOLLOWERS_OF_ONE + 1)]
        if parent == first:
            options[-1] = options[-1] | {"priority": 7}  # type: ignore[dict-item]
        added = app.enqueue_many([NewJob("mail", {}, one) for one in options])  # type: ignore[arg-type]
        late.append(added[-1].id)
    add_trigger(harness.url, "BEFORE UPDATE", "new.priority = 7 AND new.status = 'pending'")
    harness.report(*map(report_completed, harness.claim(2)))
    with pytest.raises(WriteRefused, match="no tenant 12"):
        follow(harness)
    assert [app.get(id).status for id in late] == ["waiting", "pending"]
    drop_trigger(harness.url)
    follow(harness)
    assert app.get(late[0]).status == "pending"


@pytest.mark.parametrize("drops", [False, True])
def test_a_schedule_whose_job_is_refused(
    harness: StoreHarness, app: Tenure, caplog: pytest.LogCaptureFixture, *, drops: bool
) -> None:
    """It is tried again a minute later; a process passes over it for so long."""
    for name, priority in (("a", 7), ("b", 5), ("c", 5)):
        job = NewJob("mail", {}, {"priority": priority})
        app.schedules.create(name, job, every=60, overlap="skip")
    add_trigger(harness.url, "BEFORE INSERT", "new.priority = 7", drops=drops)
    harness.clock.advance(60)
    left = set[str]()
    decide_due(app.core, left)
    assert [app.schedules.get(name).fired for name in "abc"] == [0, 1, 1]
    assert left == {"a"}
    assert "schedule a is left" in caplog.text
    assert ("a trigger that is not from Tenure" if drops else "no tenant 12") in caplog.text
    decide_due(app.core, left)
    drop_trigger(harness.url)
    decide_due(app.core, set())
    assert app.schedules.get("a").fired == 1


def test_a_job_that_a_bulk_action_cannot_change(harness: StoreHarness, app: Tenure) -> None:
    """It counts as refused, and other actions are done."""
    held, *others = add(app, 7, 5, 5)
    actions = [app.bulk.start("cancel", Filter(type="mail")) for _ in range(2)]
    add_trigger(harness.url, "BEFORE UPDATE", "new.priority = 7")
    while run_batches(app.core):
        pass
    assert [app.get(id).status for id in (held, *others)] == ["pending", "cancelled", "cancelled"]
    ended = [app.bulk.get(one.id) for one in actions]
    assert sum(one.changed for one in ended) == 2
    assert all(one.refused for one in ended)


def test_a_webhook_whose_delivery_is_refused(harness: StoreHarness, app: Tenure) -> None:
    for name in "abc":
        app.webhooks.create(name, "https://example.com", ["enqueued"])
    add(app, 5)
    harness.ledger()
    add_trigger(harness.url, "BEFORE INSERT", "new.queue = 'tenure.webhooks.a'")
    with pytest.raises(WriteRefused, match="no tenant 12"):
        app.core.forward_to_webhooks()
    assert app.count(type="tenure.webhook").jobs == 2
