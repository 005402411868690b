"""Actions on all jobs of a filter: each job once, whoever drives them, whatever comes between."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace

from tenure import InvalidInput, Tenure
from tenure.events import Cancelled, Retried
from tenure.lifecycle import Job
from tenure.rules.search import Action, Bulk, Counted, Filter, Query
from tenure.store.tables import bulk as bulks
from tenure.values.ids import new_id
from tests.contract.granted_role import also_as_granted_role
from tests.support.store import StoreHarness, new_job, report_failed


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulks, "BATCH", 3)


def start(harness: StoreHarness, action: Action, **wanted: Any) -> Bulk:
    """Begin an action."""
    id = new_id()
    begin = partial(
        bulks.start,
        id=id,
        action=action,
        filter=Filter(**wanted),
        more_retries=1,
        actor="ada",
        total=Counted(7, exact=True),
    )
    harness.store.write("bulk", begin).result()
    return read(harness, id)


def read(harness: StoreHarness, id: str) -> Bulk:
    found = bulks.get(harness.store.read, id)
    assert found is not None
    return found


def stop(harness: StoreHarness, bulk: Bulk, actor: str) -> None:
    harness.store.write("bulk", lambda db: bulks.stop(db, bulk.id, actor)).result()


def step(harness: StoreHarness, bulk: Bulk) -> Bulk:
    """Do one batch of an action."""
    bulk = read(harness, bulk.id)
    ended = bulks.step(harness.store, bulk)
    after = read(harness, bulk.id)
    assert ended is (bulk.finished_at is None and after.finished_at is not None)
    return after


def finish(harness: StoreHarness, bulk: Bulk) -> Bulk:
    while bulk.finished_at is None:
        bulk = step(harness, bulk)
    return bulk


def failures(harness: StoreHarness, count: int, **fields: Any) -> list[Job]:
    """Jobs that failed for good."""
    jobs = [harness.add(max_retries=1, **fields) for _ in range(count)]
    harness.report(*[report_failed(lease) for lease in harness.claim(limit=count)])
    return [harness.get(job.id) for job in jobs]


@also_as_granted_role
def test_all_that_match_are_retried_bite_by_bite(harness: StoreHarness) -> None:
    mine, others = failures(harness, 7), failures(harness, 2, type="sms")
    bulk = start(harness, Action.RETRY, type="mail")
    assert bulk.created_at == harness.clock.now
    assert (bulk.actor, bulk.total, bulk.exact, bulk.finished_at) == ("ada", 7, True, None)
    harness.clock.advance(1)
    assert [step(harness, bulk).changed for _ in range(3)] == [3, 6, 7]
    bulk = read(harness, bulk.id)
    assert (bulk.examined, bulk.refused, bulk.finished_at) == (7, 0, harness.clock.now)
    assert step(harness, bulk) == bulk
    for job in mine:
        assert harness.get(job.id).max_retries == 2
        assert harness.history(job.id)[-1].actor == f"ada (bulk {bulk.id})"
    assert [harness.get(job.id).status for job in others] == ["failed"] * 2
    assert [lease.id for lease in harness.claim(limit=3)] == [job.id for job in mine[:3]]


def test_only_what_was_there_and_had_failed_at_the_start_is_touched(harness: StoreHarness) -> None:
    (before,) = failures(harness, 1)
    lease = harness.take(max_retries=1)
    bulk = start(harness, Action.RETRY)
    harness.clock.advance(1)
    harness.report(report_failed(lease))
    (after,) = failures(harness, 1)
    bulk = finish(harness, bulk)
    assert (bulk.changed, bulk.refused) == (1, 0)
    assert harness.get(before.id).status == "pending"
    assert harness.get(lease.id).status == harness.get(after.id).status == "failed"


def test_what_it_retried_and_failed_again_is_not_retried_again(harness: StoreHarness) -> None:
    """In the same millisecond, even: it has been there."""
    failures(harness, 7)
    bulk = step(harness, start(harness, Action.RETRY))
    harness.report(*[report_failed(lease) for lease in harness.claim(limit=9)])
    bulk = finish(harness, bulk)
    assert (bulk.changed, bulk.refused) == (7, 0)
    assert harness.store.read.count(Query(status="failed")) == 3


def test_pending_and_running_jobs_are_cancelled(harness: StoreHarness) -> None:
    lease = harness.take()
    waiting = harness.add()
    (settled,) = failures(harness, 1, priority=-1)
    bulk = finish(harness, start(harness, Action.CANCEL))
    assert bulk.changed == 2
    for id in (lease.id, waiting.id):
        assert harness.get(id).status == "cancelled"
    assert harness.get(settled.id).status == "failed"


def test_what_somebody_else_changed_meanwhile_is_refused(harness: StoreHarness) -> None:
    """Between the look at the jobs and the change: retried, gone, or not what was asked for."""
    jobs = failures(harness, 3)
    bulk = start(harness, Action.RETRY, status="failed")
    ids, cursor = bulks.next_ids(harness.store.read, bulk)
    assert list(ids) == [job.id for job in jobs]
    harness.store.apply(jobs[0].id, Retried(more_retries=1, actor="bob")).result()
    harness.store.write("bulk", lambda db: bulks.batch(db, bulk, [*ids, new_id()], cursor)).result()
    bulk = read(harness, bulk.id)
    assert (bulk.changed, bulk.refused) == (2, 2)
    assert harness.history(jobs[0].id)[-1].actor == "bob"
    lease = harness.claim(limit=9)[0]
    running = start(harness, Action.CANCEL, status="pending")
    harness.store.write("bulk", lambda db: bulks.batch(db, running, [lease.id], None)).result()
    assert read(harness, running.id).refused == 1
    assert harness.get(lease.id).status == "processing"


def test_of_two_who_take_the_same_bite_one_does_nothing(harness: StoreHarness) -> None:
    failures(harness, 7)
    bulk = start(harness, Action.RETRY)
    for _ in range(2):
        bulks.step(harness.store, bulk)
    assert (read(harness, bulk.id).changed, read(harness, bulk.id).batches) == (3, 1)
    ids, cursor = bulks.next_ids(harness.store.read, bulk)
    harness.report(*[report_failed(lease) for lease in harness.claim(limit=9)])
    harness.store.write("bulk", lambda db: bulks.batch(db, bulk, ids, cursor)).result()
    assert harness.get(ids[0]).status == "failed"
    assert finish(harness, bulk).changed == 7


def test_a_bite_that_is_undone_leaves_nothing_and_is_taken_again(
    harness: StoreHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = failures(harness, 2)
    bulk = start(harness, Action.RETRY)
    with monkeypatch.context() as patch:
        patch.setattr(bulks, "advance", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            step(harness, bulk)
    assert read(harness, bulk.id) == bulk
    assert [harness.get(job.id) for job in jobs] == jobs
    assert finish(harness, bulk).changed == 2


def test_one_that_is_stopped_goes_no_further(harness: StoreHarness) -> None:
    jobs = failures(harness, 5)
    bulk = step(harness, start(harness, Action.RETRY))
    stop(harness, bulk, "bob")
    harness.clock.advance(1)
    stop(harness, bulk, "eve")
    bulks.step(harness.store, bulk)
    stopped = read(harness, bulk.id)
    assert stopped == replace(bulk, stopped_by="bob", finished_at=stopped.finished_at)
    assert stopped.finished_at is not None
    assert stopped.finished_at < harness.clock.now
    assert [harness.get(job.id).status for job in jobs].count("failed") == 2


@also_as_granted_role
def test_the_record_is_bounded_but_for_what_goes_on(
    harness: StoreHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulks, "MAX_KEPT", 2)
    harness.add_all(*[new_job() for _ in range(5)])
    going_on = step(harness, start(harness, Action.CANCEL))
    ended = [finish(harness, start(harness, Action.RETRY)) for _ in range(4)]
    last = start(harness, Action.RETRY)
    kept = [bulk.id for bulk in bulks.latest(harness.store.read, 10)]
    assert kept == [last.id, ended[-1].id, going_on.id]
    unfinished = bulks.latest(harness.store.read, 10, unfinished=True)
    assert [bulk.id for bulk in unfinished] == [last.id, going_on.id]
    assert bulks.get(harness.store.read, ended[0].id) is None


def test_the_filter_is_kept_as_it_was_given(harness: StoreHarness) -> None:
    wanted = Filter(
        status="failed",
        queue="default",
        created_after=harness.clock.now,
        error="Ümlaut \\ % 'x'",
        hidden=("password",),
    )
    bulk = start(harness, Action.RETRY, **{n: getattr(wanted, n) for n in ("status", "queue")})
    assert bulk.filter == Filter(status="failed", queue="default")
    fields = {n: getattr(wanted, n) for n in ("created_after", "error", "hidden")}
    assert start(harness, Action.RETRY, **fields).filter == Filter(**fields)
    assert read(harness, bulk.id).filter.status == "failed"


class Markup(str):
    """A text as template engines make it."""


def test_a_filter_of_other_classes_can_be_read_again(app: Tenure) -> None:
    """Keys of a dict were stored as an object: then no list of actions could be read any more."""
    hidden: Any = iter(["password"])
    started = app.bulk.start("cancel", Filter(tag=Markup("a"), hidden=hidden))
    assert app.bulk.get(started.id).filter == Filter(tag="a", hidden=("password",))
    for wrong in ({"password": 1}, "password"):
        with pytest.raises(InvalidInput, match="hidden: give a list of names"):
            app.bulk.start("cancel", Filter(tag="a", hidden=wrong))  # type: ignore[arg-type]
    assert [bulk.id for bulk in app.bulk.list()] == [started.id]


def test_keys_that_are_hidden_can_come_from_an_iterator(app: Tenure) -> None:
    app.enqueue("login", {"password": "hunter2"})
    hidden: Any = iter(["password"])
    assert app.find(text="hunter2", hidden=hidden) == []


def test_an_action_changes_nothing_of_jobs_with_hidden_values_alone(harness: StoreHarness) -> None:
    """What it changes would tell of them too."""
    secret = '{"password":"hunter2"}'
    shown = '{"word":"hunter2"}'
    one, other = harness.add(payload=secret), harness.add(payload=shown)
    bulk = finish(harness, start(harness, Action.CANCEL, text="hunter2", hidden=("password",)))
    assert (bulk.changed, bulk.refused) == (1, 0)
    assert [harness.get(job.id).status for job in (one, other)] == ["pending", "cancelled"]
    harness.store.apply(one.id, Cancelled()).result()


def test_a_status_that_does_not_allow_it_means_no_job(harness: StoreHarness) -> None:
    harness.add()
    bulk = start(harness, Action.RETRY, status="pending")
    assert step(harness, bulk).finished_at is not None
    assert read(harness, bulk.id).examined == 0
