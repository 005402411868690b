"""Changing jobs that wait for a worker, and running them now."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tenure import Tenure
from tenure.errors import IllegalTransition, InvalidInput
from tenure.retry import RetryPolicy
from tenure.rules.search import Filter, State
from tenure.store import search
from tenure.store.tables import bulk as bulks
from tests.support.store import StoreHarness, report_completed, report_failed, report_snoozed


def test_a_pending_job_can_be_changed(harness: StoreHarness, app: Tenure) -> None:
    job = harness.add(priority=5)
    other = harness.add(priority=2)
    due = harness.clock.now - timedelta(seconds=1)
    after = app.amend(
        job.id,
        payload={"n": 2},
        priority=1,
        max_retries=3,
        timeout="30s",
        backoff=7,
        run_at=due,
        actor="ada",
        reason="urgent",
    )
    assert after == harness.get(job.id)
    assert (after.payload, after.priority, after.max_retries) == ({"n": 2}, 1, 3)
    assert (after.timeout, after.backoff, after.run_at) == (30.0, RetryPolicy(base=7), due)
    entry = harness.history(job.id)[-1]
    assert (entry.event, entry.actor, entry.reason) == ("amended", "ada", "urgent")
    assert harness.ids(harness.claim(limit=2)) == [job.id, other.id]  # its token went with it


def test_the_answer_has_the_time_that_is_stored(harness: StoreHarness, app: Tenure) -> None:
    job = harness.add()
    for changes in ({"run_at": harness.clock.now + timedelta(seconds=1.23456)}, {"delay": 1.23456}):
        assert app.amend(job.id, **changes) == harness.get(job.id)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{}, {"priority": 0}, {"delay": 0}, {"timeout": None}])
def test_a_change_to_what_is_so_already_is_none(
    harness: StoreHarness, app: Tenure, changes: dict[str, Any]
) -> None:
    job = harness.add()
    harness.clock.advance(5)
    assert app.amend(job.id, **changes) == job
    assert harness.events(job.id) == ["enqueued"]


def test_a_job_that_was_tried_keeps_its_payload_and_an_attempt(
    harness: StoreHarness, app: Tenure
) -> None:
    lease = harness.take(max_retries=3)
    harness.report(report_failed(lease))
    before = harness.sql.contents()
    for changes in ({"payload": {}}, {"max_retries": 1}, {"max_retries": 0}):
        with pytest.raises(IllegalTransition):
            app.amend(lease.id, **changes)  # type: ignore[arg-type]
    assert harness.sql.contents() == before
    assert app.amend(lease.id, max_retries=2).max_retries == 2
    assert app.amend(harness.add().id, max_retries=0).max_retries == 0


def test_a_job_that_a_worker_has_cannot_be_changed(harness: StoreHarness, app: Tenure) -> None:
    lease = harness.take()
    with pytest.raises(IllegalTransition):
        app.amend(lease.id, priority=0)


def test_what_no_job_can_have_is_refused(app: Tenure, subtests: pytest.Subtests) -> None:
    job = app.enqueue("work")
    wrong: list[dict[str, Any]] = [
        *({"queue": "other"}, {"priority": 101}, {"delay": 1, "run_at": 2}, {"payload": [1]})
    ]
    for changes in wrong:
        with subtests.test(str(changes)), pytest.raises(InvalidInput):
            app.amend(job.id, **changes)


def test_jobs_that_are_not_due_run_now(harness: StoreHarness, app: Tenure) -> None:
    later = [harness.add(delay=3600, queue="a") for _ in range(3)]
    other = harness.add(delay=3600, queue="b")
    due = harness.add(queue="a")
    harness.clock.advance(5)
    assert app.core.count(Filter(queue="a"), action="run_now").jobs == 3
    bulk = app.bulk.start("run_now", Filter(queue="a"), reason="now")
    while bulk.finished_at is None:
        bulk = app.bulk.step(bulk.id)
    assert (bulk.changed, bulk.refused) == (3, 0)
    assert app.amend(other.id, delay=0).run_at == harness.clock.now
    assert harness.get(due.id) == due
    claimed = harness.ids(harness.claim(limit=9))
    assert sorted(claimed) == sorted(job.id for job in (*later, other, due))


def test_jobs_that_are_snoozed_run_now_only_if_asked_for(
    harness: StoreHarness, app: Tenure
) -> None:
    """Their handlers chose the time: a bulk action made them run early."""
    later = harness.add(delay=3600, type="later")
    snoozed = harness.take()
    harness.report(report_snoozed(snoozed, delay=3600.0))
    for wanted, changed in (
        (Filter(queue="default"), later.id),
        (Filter(state="snoozed"), snoozed.id),
    ):
        (job,) = app.bulk.sample(wanted, "run_now")
        assert job.id == changed
        assert app.core.count(wanted, action="run_now").jobs == 1
        bulk = app.bulk.step(app.bulk.start("run_now", wanted).id)
        assert (bulk.changed, bulk.refused) == (1, 0)
        assert harness.ids(harness.claim(limit=9)) == [changed]


def test_a_snoozed_job_stays_snoozed_whatever_is_changed_of_it(
    harness: StoreHarness, app: Tenure
) -> None:
    """Its last event was `amended` then, so it counted as scheduled, and a bulk action woke it."""
    lease, failed = harness.take(), harness.take(type="sync")
    harness.report(report_snoozed(lease, delay=3600.0))
    bulk = app.bulk.start("run_now", Filter(queue="default"))
    ids, cursor = [lease.id], None
    for priority in (5, 6):
        app.amend(lease.id, priority=priority)
    harness.report(report_failed(failed, delay=3600.0))
    app.amend(failed.id, priority=5)
    states = {state: [job.id for job in app.find(state=state)] for state in State}
    snoozed, retrying = states.pop(State.SNOOZED), states.pop(State.RETRYING)
    assert (snoozed, retrying) == ([lease.id], [failed.id])
    assert not any(states.values())
    now = harness.clock.now
    jobs = [app.get(id) for id in (lease.id, failed.id)]
    off = search.put_off(harness.store.read, jobs)
    assert [search.fits(Filter(state="snoozed"), job, now, off) for job in jobs] == [True, False]
    harness.store.write("bulk", lambda db: bulks.batch(db, bulk, ids, cursor)).result()
    assert app.bulk.get(bulk.id).refused == 1
    assert app.core.count(Filter(), action="run_now").jobs == 1


def test_a_job_that_snoozes_between_the_look_and_the_change_is_left(
    harness: StoreHarness, app: Tenure
) -> None:
    job = harness.add(delay=5)
    bulk = app.bulk.start("run_now", Filter(queue="default"))
    ids, cursor = bulks.next_ids(harness.store.read, bulk)
    assert list(ids) == [job.id]
    harness.clock.advance(5)
    (lease,) = harness.claim()
    harness.report(report_snoozed(lease, delay=3600.0))
    before = harness.get(job.id)
    harness.store.write("bulk", lambda db: bulks.batch(db, bulk, ids, cursor)).result()
    assert harness.get(job.id) == before
    assert app.bulk.get(bulk.id).refused == 1


def test_a_job_runs_again_as_a_new_job(harness: StoreHarness, app: Tenure) -> None:
    old = app.enqueue("work", {"n": 1}, queue="a", priority=3, tags=["t"], timeout=9, backoff=7)
    harness.report(report_completed(*harness.claim()))
    again = app.run_again(old.id, actor="ada")
    edited = app.run_again(old.id, {"n": 2}, queue="b", delay=60)
    for new, payload, queue in ((again, {"n": 1}, "a"), (edited, {"n": 2}, "b")):
        assert new == harness.get(new.id)
        assert (new.again_of, new.payload, new.queue) == (old.id, payload, queue)
        assert (new.priority, new.timeout, new.tags) == (3, 9.0, ("t",))
        assert (new.backoff, new.max_retries) == (old.backoff, old.max_retries)
    assert again.actor == "ada"
    assert harness.get(old.id).status == "completed"
    assert sorted(harness.store.read.again(old.id)) == sorted([again.id, edited.id])
