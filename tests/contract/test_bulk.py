"""Actions on all jobs of a filter: each job once, whoever drives them, whatever comes between."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tenure.jobs.ids import new_id
from tenure.jobs.values import Action, Bulk, Counted, Filter, Query
from tenure.lifecycle import Cancelled, Job, Retried, Status
from tenure.store import bulk as bulks
from tenure.store.tables import bulk as bulk_table
from tests.contract.granted_role import also_as_granted_role
from tests.support.store import Desk, failed, new

SOURCES = {
    Action.RETRY: (Status.FAILED,),
    Action.CANCEL: (Status.PENDING, Status.PROCESSING),
}


@pytest.fixture(autouse=True)
def small_bites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulks, "BITE", 3)


def start(desk: Desk, action: Action, **wanted: Any) -> Bulk:
    """Begin an action."""
    id = new_id()
    desk.store.start_bulk(
        id=id,
        action=action,
        filter=Filter(**wanted),
        more_retries=1,
        actor="ada",
        total=Counted(7, exact=True),
    ).result()
    return read(desk, id)


def read(desk: Desk, id: str) -> Bulk:
    found = desk.store.read.bulk(id)
    assert found is not None
    return found


def step(desk: Desk, bulk: Bulk) -> Bulk:
    """One bite of an action as it is now."""
    bulk = read(desk, bulk.id)
    ended = desk.store.step_bulk(bulk, SOURCES[bulk.action])
    after = read(desk, bulk.id)
    assert ended is (bulk.finished_at is None and after.finished_at is not None)
    return after


def finish(desk: Desk, bulk: Bulk) -> Bulk:
    while bulk.finished_at is None:
        bulk = step(desk, bulk)
    return bulk


def failures(desk: Desk, count: int, **fields: Any) -> list[Job]:
    """Jobs that failed for good."""
    jobs = [desk.add(max_retries=1, **fields) for _ in range(count)]
    desk.report(*[failed(lease) for lease in desk.claim(limit=count)])
    return [desk.get(job.id) for job in jobs]


@also_as_granted_role
def test_all_that_match_are_retried_bite_by_bite(desk: Desk) -> None:
    mine, others = failures(desk, 7), failures(desk, 2, type="sms")
    bulk = start(desk, Action.RETRY, type="mail")
    assert bulk.created_at == desk.clock.now
    assert (bulk.actor, bulk.total, bulk.exact, bulk.finished_at) == ("ada", 7, True, None)
    desk.clock.advance(1)
    assert [step(desk, bulk).changed for _ in range(3)] == [3, 6, 7]
    bulk = read(desk, bulk.id)
    assert (bulk.examined, bulk.refused, bulk.finished_at) == (7, 0, desk.clock.now)
    assert step(desk, bulk) == bulk
    for job in mine:
        assert desk.get(job.id).max_retries == 2
        assert desk.history(job.id)[-1].actor == f"ada (bulk {bulk.id})"
    assert [desk.get(job.id).status for job in others] == ["failed"] * 2
    assert [lease.id for lease in desk.claim(limit=3)] == [job.id for job in mine[:3]]


def test_only_what_was_there_and_had_failed_at_the_start_is_touched(desk: Desk) -> None:
    (before,) = failures(desk, 1)
    lease = desk.take(max_retries=1)
    bulk = start(desk, Action.RETRY)
    desk.clock.advance(1)
    desk.report(failed(lease))
    (after,) = failures(desk, 1)
    bulk = finish(desk, bulk)
    assert (bulk.changed, bulk.refused) == (1, 0)
    assert desk.get(before.id).status == "pending"
    assert desk.get(lease.id).status == desk.get(after.id).status == "failed"


def test_what_it_retried_and_failed_again_is_not_retried_again(desk: Desk) -> None:
    """In the same millisecond, even: it has been there."""
    failures(desk, 7)
    bulk = step(desk, start(desk, Action.RETRY))
    desk.report(*[failed(lease) for lease in desk.claim(limit=9)])
    bulk = finish(desk, bulk)
    assert (bulk.changed, bulk.refused) == (7, 0)
    assert desk.store.read.count(Query(status="failed")) == 3


def test_pending_and_running_jobs_are_cancelled(desk: Desk) -> None:
    lease = desk.take()
    waiting = desk.add()
    (settled,) = failures(desk, 1, priority=-1)
    bulk = finish(desk, start(desk, Action.CANCEL))
    assert bulk.changed == 2
    for id in (lease.id, waiting.id):
        assert desk.get(id).status == "cancelled"
    assert desk.get(settled.id).status == "failed"


def test_what_somebody_else_changed_meanwhile_is_refused(desk: Desk) -> None:
    """Between the look at the jobs and the change: retried, gone, or not what was asked for."""
    jobs = failures(desk, 3)
    bulk = start(desk, Action.RETRY, status="failed")
    ids, cursor = bulks.next_ids(desk.store.read, bulk, SOURCES[Action.RETRY])
    assert list(ids) == [job.id for job in jobs]
    desk.store.apply(jobs[0].id, Retried(more_retries=1, actor="bob")).result()
    desk.store._act("bulk", lambda db: bulks.batch(db, bulk, [*ids, new_id()], cursor)).result()
    bulk = read(desk, bulk.id)
    assert (bulk.changed, bulk.refused) == (2, 2)
    assert desk.history(jobs[0].id)[-1].actor == "bob"
    lease = desk.claim(limit=9)[0]
    running = start(desk, Action.CANCEL, status="pending")
    desk.store._act("bulk", lambda db: bulks.batch(db, running, [lease.id], None)).result()
    assert read(desk, running.id).refused == 1
    assert desk.get(lease.id).status == "processing"


def test_of_two_who_take_the_same_bite_one_does_nothing(desk: Desk) -> None:
    failures(desk, 7)
    bulk = start(desk, Action.RETRY)
    for _ in range(2):
        desk.store.step_bulk(bulk, SOURCES[Action.RETRY])
    assert (read(desk, bulk.id).changed, read(desk, bulk.id).batches) == (3, 1)
    ids, cursor = bulks.next_ids(desk.store.read, bulk, SOURCES[Action.RETRY])
    desk.report(*[failed(lease) for lease in desk.claim(limit=9)])
    desk.store._act("bulk", lambda db: bulks.batch(db, bulk, ids, cursor)).result()
    assert desk.get(ids[0]).status == "failed"
    assert finish(desk, bulk).changed == 7


def test_a_bite_that_is_undone_leaves_nothing_and_is_taken_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = failures(desk, 2)
    bulk = start(desk, Action.RETRY)
    with monkeypatch.context() as patch:
        patch.setattr(bulk_table.BulkTable, "advance", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            step(desk, bulk)
    assert read(desk, bulk.id) == bulk
    assert [desk.get(job.id) for job in jobs] == jobs
    assert finish(desk, bulk).changed == 2


def test_one_that_is_stopped_goes_no_further(desk: Desk) -> None:
    jobs = failures(desk, 5)
    bulk = step(desk, start(desk, Action.RETRY))
    desk.store.stop_bulk(bulk.id, "bob").result()
    desk.clock.advance(1)
    desk.store.stop_bulk(bulk.id, "eve").result()
    desk.store.step_bulk(bulk, SOURCES[Action.RETRY])
    stopped = read(desk, bulk.id)
    assert stopped == replace(bulk, stopped_by="bob", finished_at=stopped.finished_at)
    assert stopped.finished_at is not None
    assert stopped.finished_at < desk.clock.now
    assert [desk.get(job.id).status for job in jobs].count("failed") == 2


@also_as_granted_role
def test_the_record_is_bounded_but_for_what_goes_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_table, "MAX_KEPT", 2)
    desk.add_all(*[new() for _ in range(5)])
    going_on = step(desk, start(desk, Action.CANCEL))
    ended = [finish(desk, start(desk, Action.RETRY)) for _ in range(4)]
    last = start(desk, Action.RETRY)
    kept = [bulk.id for bulk in desk.store.read.bulks(10)]
    assert kept == [last.id, ended[-1].id, going_on.id]
    unfinished = desk.store.read.bulks(10, unfinished=True)
    assert [bulk.id for bulk in unfinished] == [last.id, going_on.id]
    assert desk.store.read.bulk(ended[0].id) is None


def test_the_filter_is_kept_as_it_was_given(desk: Desk) -> None:
    wanted = Filter(
        status="failed",
        queue="default",
        created_after=desk.clock.now,
        error="Ümlaut \\ % 'x'",
        hidden=("password",),
    )
    bulk = start(desk, Action.RETRY, **{n: getattr(wanted, n) for n in ("status", "queue")})
    assert bulk.filter == Filter(status="failed", queue="default")
    fields = {n: getattr(wanted, n) for n in ("created_after", "error", "hidden")}
    assert start(desk, Action.RETRY, **fields).filter == Filter(**fields)
    assert read(desk, bulk.id).filter.status == "failed"


def test_an_action_changes_nothing_of_jobs_with_hidden_values_alone(desk: Desk) -> None:
    """What it changes would tell of them too."""
    secret = '{"password":"hunter2"}'
    shown = '{"word":"hunter2"}'
    one, other = desk.add(payload=secret), desk.add(payload=shown)
    bulk = finish(desk, start(desk, Action.CANCEL, text="hunter2", hidden=("password",)))
    assert (bulk.changed, bulk.refused) == (1, 0)
    assert [desk.get(job.id).status for job in (one, other)] == ["pending", "cancelled"]
    desk.store.apply(one.id, Cancelled()).result()


def test_a_status_that_does_not_allow_it_means_no_job(desk: Desk) -> None:
    desk.add()
    bulk = start(desk, Action.RETRY, status="pending")
    assert step(desk, bulk).finished_at is not None
    assert read(desk, bulk.id).examined == 0
