"""What can be read: the ledger, lists, counts, queues, workers. Answers are whole and in order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from tenure import Tenure
from tenure.errors import InvalidInput
from tenure.events import Cancelled
from tenure.rules.ledger import EventFilter, Transition
from tenure.rules.search import MAX_AHEAD, Query
from tenure.rules.stats import Count, QueueQuery, QueueState
from tenure.store.tables import queues, workers
from tenure.values.ids import new_id
from tests.contract.granted_role import also_as_granted_role
from tests.support.store import (
    LEASE_SECONDS,
    StoreHarness,
    new_job,
    report_completed,
    report_failed,
)

# --- the ledger -------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, -1, 10_001, 10**30, 2.5, True, "x", None])
def test_what_is_no_number_of_transitions_or_violations(harness: StoreHarness, limit: Any) -> None:
    """An error of the driver, or an answer that there is nothing more, or nothing bad."""
    harness.add()
    with Tenure(harness.url) as app:
        for ask in (app.events.read, app.verify):
            with pytest.raises(InvalidInput, match="give a whole number from 1 to 10000"):
                ask(limit=limit)


@also_as_granted_role
def test_the_history_of_a_job_is_its_whole_path(harness: StoreHarness) -> None:
    lease = harness.take(max_retries=2, actor="web")
    harness.clock.advance(1)
    harness.report(report_failed(lease, "first"))
    harness.clock.advance(3600)
    (second,) = harness.claim(worker="w2")
    harness.clock.advance(1)
    harness.report(report_failed(second, "second"))
    path = [
        (e.source, e.target, e.event, e.attempt, e.token, e.actor, e.detail, e.lease_id)
        for e in harness.history(lease.id)
    ]
    one, two = lease.lease_id, second.lease_id
    assert path == [
        (None, "pending", "enqueued", 0, 0, "web", None, None),
        ("pending", "processing", "claimed", 1, 1, "w1", None, one),
        ("processing", "failed", "failed", 1, 1, "w1", "first", one),
        ("failed", "pending", "retried", 1, 1, "store", None, None),
        ("pending", "processing", "claimed", 2, 2, "w2", None, two),
        ("processing", "failed", "failed", 2, 2, "w2", "second", two),
    ]
    whole = harness.history(lease.id)
    times = [entry.at for entry in whole]
    assert times == sorted(times)
    assert times[-1] == harness.clock.now
    part = partial(harness.store.read.history, lease.id)
    assert part(last=2) == whole[-2:]
    assert part(last=2, before=whole[-2].position) == whole[-4:-2]
    assert part(before=whole[1].position) == whole[:1]
    assert part(last=9) == whole


def test_the_ledger_of_all_jobs_is_complete_and_resumable(harness: StoreHarness) -> None:
    start = harness.store.read.ledger_end()
    assert harness.ledger() == []
    assert harness.store.read.ledger(start, 10) == []
    leases = [harness.take() for _ in range(5)]
    harness.report(*[report_completed(lease) for lease in leases])
    whole = harness.ledger()
    assert [entry.event for entry in whole].count("enqueued") == 5
    assert len(whole) == 15
    assert harness.store.read.ledger(start, 100) == whole
    for size in (1, 4, 15):
        page, seen, position = whole[:1], [], ""
        while page:
            page = harness.store.read.ledger(position, size)
            seen += page
            position = page[-1].position if page else position
        assert seen == whole
    assert harness.store.read.ledger_end() == whole[-1].position
    assert harness.store.read.ledger(whole[6].position, 3) == whole[7:10]
    for lease in leases:
        mine = [entry for entry in whole if entry.job_id == lease.id]
        assert mine == harness.history(lease.id)


def test_moves_are_told_by_type_queue_event_and_job(harness: StoreHarness) -> None:
    mail = harness.take(type="mail", queue="out")
    report = harness.take(type="report", queue="night")
    harness.report(report_failed(mail), report_completed(report))
    whole = harness.ledger()
    kinds = {mail.id: ("mail", "out"), report.id: ("report", "night")}

    def told(limit: int = 100, **wanted: Any) -> list[Transition]:
        """What is told in stretches of `limit`, each of which tells how far it went."""
        found, after, more = [], "", True
        while more:
            transitions = harness.store.read.transitions(after, limit, EventFilter(**wanted))
            assert all(
                (one.type, one.queue) == kinds[one.transition.job_id] for one in transitions.events
            )
            found += [one.transition for one in transitions.events]
            after, more = transitions.position, transitions.more
        assert after == whole[-1].position, "the end was reached, whatever was wanted"
        return found

    def those(wanted: Callable[[Transition], bool]) -> list[Transition]:
        return [transition for transition in whole if wanted(transition)]

    for limit in (1, 2, 100):
        assert told(limit) == whole
        assert told(limit, types=("mail",)) == those(
            lambda transition: transition.job_id == mail.id
        )
        assert told(limit, queues=("night", "x")) == those(
            lambda transition: transition.job_id == report.id
        )
        failures = told(limit, events=("failed", "retried"))
        assert [transition.event for transition in failures] == ["failed", "retried"]
        assert told(limit, job_id=report.id) == harness.history(report.id)
        assert told(limit, types=("mail",), queues=("night",)) == []
    with pytest.raises(InvalidInput):
        harness.store.read.transitions("nowhere", 1, EventFilter())


def test_leases_that_ran_out_are_counted_until_the_sweep(harness: StoreHarness) -> None:
    harness.take()
    harness.clock.advance(LEASE_SECONDS - 1)
    assert harness.store.read.late_leases() == 0
    harness.clock.advance(1)
    assert harness.store.read.late_leases() == 1
    harness.store.sweep().result()
    assert harness.store.read.late_leases() == 0


def test_the_ledger_is_complete_while_others_write(harness: StoreHarness) -> None:
    """Positions never appear behind one that was read: whoever resumes has missed nothing."""
    done = threading.Event()

    def write() -> None:
        try:
            for _ in range(20):
                futures = [harness.store.add([new_job(), new_job()]) for _ in range(10)]
                for future in futures:
                    future.result()
        finally:
            done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen: list[str] = []
    position = ""
    while True:
        whole = harness.ledger if done.is_set() else harness.store.read.ledger
        page = whole(position, 50)
        seen += [entry.job_id for entry in page]
        position = page[-1].position if page else position
        if not page and whole == harness.ledger:
            break
    writer.join()
    assert len(seen) == len(set(seen)) == 400


def test_what_is_no_position_is_refused(harness: StoreHarness, subtests: pytest.Subtests) -> None:
    for position in ("x", "-1", "1;2", "9" * 40, "1.", ".", "1 "):
        with subtests.test(position), pytest.raises(InvalidInput):
            harness.store.read.ledger(position, 10)


# --- lists ------------------------------------------------------------------------------------


def test_jobs_are_listed_newest_first(harness: StoreHarness) -> None:
    jobs = [harness.add() for _ in range(5)]
    assert harness.store.read.find(Query()) == jobs[::-1]
    assert harness.store.read.find(Query(limit=2)) == [jobs[4], jobs[3]]


@pytest.mark.scenario(100)
def test_pages_follow_each_other_without_gap_or_overlap(harness: StoreHarness) -> None:
    added = harness.add_all(*[new_job(queue="ab"[n % 2]) for n in range(23)])
    expected = [a.job.id for a in reversed(added) if a.job.queue == "a"]
    seen: list[str] = []
    before = None
    while page := harness.store.read.find(Query(queue="a", limit=5, before=before)):
        seen += [job.id for job in page]
        before = page[-1].id
        harness.add(queue="a")  # newer ones do not shift what follows
    assert seen == expected


def test_filters_apply_together(harness: StoreHarness) -> None:
    held = harness.take(queue="a", type="mail")
    harness.report(report_failed(harness.take(queue="a", type="mail"), retryable=False))
    wanted = harness.add(queue="a", type="mail")
    harness.add(queue="a", type="resize")
    harness.add(queue="b", type="mail")
    find = harness.store.read.find
    assert find(Query(status="pending", type="mail", queue="a")) == [wanted]
    assert [job.id for job in find(Query(status="processing"))] == [held.id]
    assert len(find(Query(type="mail", queue="a"))) == 3
    assert [job.status for job in find(Query(status="failed"))] == ["failed"]
    assert find(Query(status="completed")) == find(Query(queue="none")) == []


def test_a_job_that_is_not_there(harness: StoreHarness) -> None:
    assert harness.store.read.get(new_id()) is None
    assert harness.store.read.history(new_id()) == []


# --- counts -----------------------------------------------------------------------------------


def test_counts_by_status_queue_and_type(harness: StoreHarness) -> None:
    assert harness.store.read.stats.counts() == []
    harness.report(
        report_completed(harness.take(queue="a")), report_completed(harness.take(queue="a"))
    )
    harness.add_all(
        new_job("mail", queue="a"), new_job("mail", queue="a"), new_job("resize", queue="b")
    )
    harness.store.apply(harness.add(queue="b").id, Cancelled()).result()
    assert sorted(harness.store.read.stats.counts(), key=lambda c: (c.status, c.queue, c.type)) == [
        Count("cancelled", "b", "mail", 1),
        Count("completed", "a", "mail", 2),
        Count("pending", "a", "mail", 2),
        Count("pending", "b", "resize", 1),
    ]


def test_queues_that_have_jobs_or_settings(harness: StoreHarness) -> None:
    assert harness.store.read.queues() == []
    started = harness.clock.now
    harness.take(queue="a")
    harness.add(queue="a")
    harness.clock.advance(10)
    harness.add(queue="a")
    harness.add(queue="b", delay=100)
    harness.report(report_completed(harness.claim(queues=("a",))[0]))
    harness.add(queue="a")
    harness.set_queue("c", max_pending=4)
    now = harness.clock.now
    assert harness.store.read.queues() == [
        QueueState("a", None, None, pending=2, processing=1, oldest_due_at=now),
        QueueState("b", None, None, pending=1, processing=0, oldest_due_at=None),
        QueueState("c", None, 4, pending=0, processing=0, oldest_due_at=None),
    ]
    assert started < now


def test_some_queues_in_an_order(harness: StoreHarness) -> None:
    def names(**wanted: Any) -> list[str]:
        return [queue.name for queue in harness.store.read.queues(QueueQuery(**wanted))]

    for name, jobs in (("a.Mail", 1), ("b", 3), ("c.mail", 2), ("d", 1)):
        harness.clock.advance(10)
        harness.add_all(*(new_job(queue=name, priority=n) for n in range(jobs)))
    harness.add(queue="later", delay=100)
    harness.set_queue("d", paused=True)
    harness.set_queue("later", max_pending=1)
    harness.set_queue("z", max_pending=1)
    assert names() == ["a.Mail", "b", "c.mail", "d", "later", "z"]
    assert names(order="jobs", limit=3) == ["b", "c.mail", "a.Mail"]
    assert names(order="attention") == ["d", "later", "a.Mail", "b", "c.mail", "z"]
    assert names(search="MAIL") == ["a.Mail", "c.mail"]
    assert names(search="%") == names(name="e") == []
    assert names(after="b", limit=2) == ["c.mail", "d"]
    assert names(within=("b", "c*"), order="jobs") == ["b", "c.mail"]
    for queue in harness.store.read.queues():
        assert harness.store.read.queues(QueueQuery(name=queue.name)) == [queue]
    wanted = QueueQuery(order="jobs", limit=2)
    assert queues.listed(harness.store.read, wanted)[1] == 6, "all of them are counted"


@also_as_granted_role
def test_workers_that_asked_lately(harness: StoreHarness) -> None:
    harness.claim(worker="idle", label="host 7", queues=("a", "b"), types=("mail",))
    seen = harness.clock.now
    harness.add()
    harness.clock.advance(1)
    harness.claim(worker="busy")
    busy, idle = harness.store.read.workers()
    assert (idle.id, idle.label, idle.queues, idle.types) == (
        "idle",
        "host 7",
        ("a", "b"),
        ("mail",),
    )
    assert (idle.seen_at, idle.leases) == (seen, 0)
    assert (busy.id, busy.leases, busy.queues, busy.types) == ("busy", 1, None, None)
    harness.clock.set(seen + timedelta(minutes=10))
    assert [worker.id for worker in harness.store.read.workers()] == ["busy"]


@also_as_granted_role
def test_a_worker_of_many_types_is_listed_with_some(harness: StoreHarness) -> None:
    many = tuple(f"n{number}" for number in range(25))
    harness.claim(worker="many", queues=many, types=many)
    (worker,) = harness.store.read.workers()
    assert worker.queues == worker.types == (*many[:20], "(and 5 more)")
    for name in ("n3", "n24"):  # the second may be one of the five
        assert worker.serves(name)
        assert worker.runs(name)

    harness.clock.advance(1)
    harness.claim(worker="few", queues=many[:20], types=())
    worker, _ = harness.store.read.workers()
    assert (worker.queues, worker.types) == (many[:20], ())
    assert not worker.serves("n24")
    assert not worker.runs("n3")


@also_as_granted_role
def test_of_the_workers_of_one_token_the_latest_are_kept(
    harness: StoreHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "MAX_WORKERS", 2)
    for id in ("token:b/1", "w1", "token:a/1", "token:a/2", "w2", "token:a/3", "w3", "token:aa/1"):
        harness.claim(worker=id)
        harness.clock.advance(1)
    expected = ["token:aa/1", "w3", "token:a/3", "w2", "token:a/2", "w1", "token:b/1"]
    assert [worker.id for worker in harness.store.read.workers()] == expected


def test_how_many_stand_before_a_job(harness: StoreHarness) -> None:
    first, second = harness.add(), harness.add()
    harness.add(queue="other", priority=-9)
    harness.add(delay=60, priority=-9)  # not due: it stands before nobody yet
    urgent = harness.add(priority=-1)
    ahead = harness.store.read.ahead
    late = harness.add(priority=7)
    assert [ahead(job) for job in (urgent, first, second, late)] == [0, 1, 2, 3]


def test_how_many_stand_before_a_job_is_counted_no_further_than_anybody_wants(
    harness: StoreHarness,
) -> None:
    harness.add_all(*[new_job(priority=n % 3) for n in range(MAX_AHEAD // 2)])
    harness.add_all(*[new_job(priority=n % 3) for n in range(MAX_AHEAD - MAX_AHEAD // 2 - 1)])
    last = harness.add(priority=3)
    assert harness.store.read.ahead(last) == MAX_AHEAD - 1
    harness.add_all(*[new_job() for _ in range(10)])
    assert harness.store.read.ahead(last) == MAX_AHEAD + 1


@pytest.mark.scenario(55)
def test_every_time_is_the_store_s_clock(harness: StoreHarness) -> None:
    assert harness.store.read.clock() == harness.clock.now
    harness.clock.advance(12.345)
    assert harness.store.read.clock() == harness.clock.now
    harness.clock.set(harness.clock.now - timedelta(days=1))
    job = harness.add()
    assert harness.store.read.clock() == job.created_at == job.run_at == harness.clock.now


@pytest.mark.scenario(55, 70)
def test_a_clock_that_is_put_back_delays_but_breaks_nothing(harness: StoreHarness) -> None:
    lease = harness.take(max_retries=2)
    harness.clock.set(harness.clock.now - timedelta(hours=1))
    harness.report(report_failed(lease))
    assert harness.get(lease.id).status == "pending"
    harness.clock.advance(3600)
    (again,) = harness.claim()
    harness.clock.set(harness.clock.now - timedelta(hours=1))
    assert harness.store.sweep().result() == []
    harness.clock.advance(3600 + LEASE_SECONDS)
    assert len(harness.store.sweep().result()) == 1
    assert harness.report(report_completed(again))[0].answer == "lost"
