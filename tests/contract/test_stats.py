"""What the ledger adds up to: exact at every step, each move once, whoever measures and dies."""

from __future__ import annotations

import random
import threading
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime

import pytest

from tenure.events import Cancelled, Event, Retried
from tenure.rules.search import Query
from tenure.rules.stats import BUCKETS, Count, Total
from tenure.store import Store, open_store
from tenure.store.tables import stats as measures
from tests.support.store import (
    LEASE_SECONDS,
    StoreHarness,
    new_job,
    report_completed,
    report_failed,
    report_released,
)

PLAIN = "SELECT status, queue, type, count(*) FROM {job} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
TRANSITIONS = "SELECT event, count(*) FROM {transition} GROUP BY event"


def check(harness: StoreHarness) -> None:
    """The counts are those of the jobs, by whichever way they are counted."""
    plain = [Count(*row) for row in harness.sql.run(PLAIN)]
    assert harness.store.read.stats.counts() == plain
    waiting: Counter[str] = Counter()
    running: Counter[str] = Counter()
    for count in plain:
        waiting[count.queue] += count.jobs * (count.status == "pending")
        running[count.queue] += count.jobs * (count.status == "processing")
    names = {q for q in (*waiting, *running) if waiting[q] or running[q]}
    assert {(q.name, q.pending, q.processing) for q in harness.store.read.queues()} == {
        (name, waiting[name], running[name]) for name in names
    }


def counted(totals: list[Total]) -> dict[str, int]:
    """Moves by event."""
    transitions: Counter[str] = Counter()
    for total in totals:
        transitions[total.event] += total.transitions
    return dict(transitions)


def total(harness: StoreHarness, event: str, **names: str) -> Total:
    """The one total of an event."""
    (found,) = (
        t
        for t in harness.store.read.stats.totals()
        if t.event == event and all(getattr(t, key) == name for key, name in names.items())
    )
    return found


@pytest.mark.parametrize("seed", range(3))
def test_counts_are_those_of_the_jobs_at_every_step(
    harness: StoreHarness, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs come, move in every way and go, in bites of a few moves measured by two processes."""
    monkeypatch.setattr(measures, "MAX_ENTRIES", 7)
    die = random.Random(seed)
    other = open_store(harness.url)
    gone: Counter[str] = Counter()

    def transition() -> None:
        what = die.randrange(8)
        jobs = harness.store.read.find(Query(limit=100))
        if what <= 1:
            harness.add_all(*[new_job(die.choice("xyz"), queue=die.choice("ab")) for _ in range(4)])
        elif what <= 4:
            for lease in harness.claim(limit=3):
                report = die.choice([report_completed, report_failed, report_released, None])
                if report is not None:
                    harness.report(report(lease))
        elif what == 5 and jobs:
            events: list[Event] = [Cancelled(), Retried(more_retries=1)]
            harness.store.apply(die.choice(jobs).id, die.choice(events)).exception()
        elif what == 6:
            harness.clock.advance(die.choice([0.5, LEASE_SECONDS]))
            harness.store.sweep().result()
        else:
            before = Counter(dict(harness.sql.run(TRANSITIONS)))
            settled = ("completed", "failed", "cancelled")
            harness.store.prune(dict.fromkeys(settled, harness.clock.now), 2).result()
            gone.update(before - Counter(dict(harness.sql.run(TRANSITIONS))))

    try:
        for _ in range(60):
            transition()
            check(harness)
            for store in die.sample([harness.store, other], die.randrange(3)):
                store.update_stats()
            check(harness)
    finally:
        other.close()
    harness.measure()
    check(harness)
    assert (
        counted(harness.store.read.stats.totals())
        == Counter(dict(harness.sql.run(TRANSITIONS))) + gone
    )
    assert counted(harness.store.read.stats.totals()) == counted_by_minute(harness)
    assert harness.sql.value("SELECT count(*) FROM {tally} WHERE jobs = 0") == 0


def counted_by_minute(harness: StoreHarness) -> dict[str, int]:
    """Moves by event, of the minutes that are kept."""
    transitions: Counter[str] = Counter()
    for minute in harness.store.read.stats.activity(24 * 60):
        assert minute.minute.second == minute.minute.microsecond == 0
        transitions[minute.event] += minute.transitions
    return dict(transitions)


def test_a_bite_that_somebody_else_has_measured_is_not_added_again(harness: StoreHarness) -> None:
    harness.take()
    harness.ledger()
    mine, theirs = (harness.store.read.stats.next_batch(None)[1] for _ in range(2))
    assert mine is not None
    assert theirs is not None
    now = harness.clock.now
    act = harness.store.write
    assert act("measure", lambda db: db.stats.add(mine, now)).result()
    assert not act("measure", lambda db: db.stats.add(theirs, now)).result()
    assert counted(harness.store.read.stats.totals()) == {"enqueued": 1, "claimed": 1}
    check(harness)


def test_many_measure_at_once_beside_writers(
    harness: StoreHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "MAX_ENTRIES", 20)
    done = threading.Event()
    stores = [open_store(harness.url) for _ in range(3)]

    def measure(store: Store) -> None:
        while not done.is_set():
            store.update_stats()

    threads = [threading.Thread(target=measure, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    try:
        pruned = 0
        for exchange in range(15):
            harness.add_all(*[new_job() for _ in range(20)])
            harness.report(*[report_completed(lease) for lease in harness.claim(limit=15)])
            counts = harness.store.read.stats.counts()
            assert sum(count.jobs for count in counts) + pruned == 20 * (exchange + 1)
            assert harness.store.read.violations(10) == []
            harness.clock.advance(1)
            pruned += harness.store.prune({"completed": harness.clock.now}, 3).result()
    finally:
        done.set()
        for thread in threads:
            thread.join()
        for store in stores:
            store.close()
    harness.measure()
    check(harness)
    assert counted(harness.store.read.stats.totals()) == {
        "enqueued": 300,
        "claimed": 225,
        "completed": 225,
    }


def test_an_older_database_counts_at_once(harness: StoreHarness) -> None:
    """What was there before anything was measured is counted from the ledger, or from the jobs."""
    harness.report(report_completed(harness.take()), report_failed(harness.take()))
    assert harness.store.read.stats.until() is None
    check(harness)


def test_the_jobs_are_counted_instead_when_the_tally_is_far_behind(
    unaudited_harness: StoreHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = unaudited_harness
    harness.report(report_completed(harness.take()), report_failed(harness.take()))
    harness.sql.run("INSERT INTO {tally} VALUES ('failed', 'none', 'none', 7)")
    monkeypatch.setattr(measures, "MAX_UNCOUNTED", 3)
    check(harness)


def test_the_jobs_are_counted_instead_while_most_are_not_in_the_tally(
    unaudited_harness: StoreHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 200,000 jobs were added, their transitions took nearly twice as long to count."""
    harness = unaudited_harness
    harness.report(report_completed(harness.take()), report_failed(harness.take()))
    harness.sql.run("INSERT INTO {tally} VALUES ('failed', 'none', 'none', 3)")
    monkeypatch.setattr(measures, "MIN_UNCOUNTED", 3)
    check(harness)


def test_waiting_and_running_are_timed(harness: StoreHarness) -> None:
    harness.add()
    harness.clock.advance(2)
    (lease,) = harness.claim()
    harness.clock.advance(20)
    harness.report(report_failed(lease))  # it is pending again, with another time to run at
    harness.measure()
    assert total(harness, "claimed").transitions == 1
    assert total(harness, "claimed").buckets == (0,) * len(BUCKETS)  # no time is made up for it
    ran = total(harness, "failed")
    assert (ran.seconds, ran.buckets[BUCKETS.index(30)], sum(ran.buckets)) == (20, 1, 1)
    harness.clock.advance(3600)
    due = harness.get(lease.id).run_at
    (again,) = harness.claim()
    harness.clock.advance(0.01)
    harness.measure()
    waited = total(harness, "claimed")
    started = harness.get(lease.id).started_at
    assert started is not None
    assert waited.seconds == pytest.approx((started - due).total_seconds())
    assert (waited.transitions, sum(waited.buckets)) == (2, 1)
    harness.report(report_completed(again))
    harness.measure()
    assert total(harness, "completed").buckets[0] == 1


def test_of_those_cancelled_the_ones_that_ran_are_told_by_their_time(harness: StoreHarness) -> None:
    """Also a job that ran before and waits again has no time when it is cancelled then."""
    waiting, running = harness.take(), harness.take()
    harness.report(report_failed(waiting))
    untouched = harness.add()
    harness.clock.advance(20)
    for id in (waiting.id, running.id, untouched.id):
        harness.store.apply(id, Cancelled()).result()
    harness.measure()
    cancelled = total(harness, "cancelled")
    assert (cancelled.transitions, sum(cancelled.buckets), cancelled.seconds) == (3, 1, 20)


def test_a_retry_at_once_is_not_taken_for_a_claim_without_waiting(harness: StoreHarness) -> None:
    harness.add(max_retries=1)
    harness.clock.advance(2)
    (lease,) = harness.claim()
    harness.report(report_failed(lease))
    harness.store.apply(lease.id, Retried(more_retries=1)).result()  # all at one moment
    harness.measure()
    assert sum(total(harness, "claimed").buckets) == 0


def test_how_long_an_attempt_ran_is_known_after_the_next_has_begun(harness: StoreHarness) -> None:
    lease = harness.take()
    harness.clock.advance(5)
    harness.report(report_failed(lease))
    harness.clock.advance(3600)
    harness.claim()
    harness.measure()
    assert total(harness, "failed").seconds == 5


def test_failures_are_grouped_by_what_they_have_in_common(harness: StoreHarness) -> None:
    first = harness.clock.now
    for number in range(3):
        lease = harness.take(max_retries=1)
        harness.report(
            report_failed(lease, f"KeyError: 'order {number}' of {number}\nTraceback: {number}")
        )
        harness.clock.advance(1)
    harness.report(report_failed(harness.take(type="resize"), "OSError: disk full"))
    harness.measure()
    newest, orders = harness.store.read.stats.failures(10)
    assert (newest.type, newest.error, newest.attempts) == ("resize", "OSError: disk full", 1)
    assert (orders.type, orders.error, orders.attempts) == ("mail", "KeyError: … of …", 3)
    assert orders.last_job_id == lease.id
    assert (orders.first_seen_at, (orders.last_seen_at - first).total_seconds()) == (first, 2)
    assert harness.store.read.stats.failures(1) == [newest]


def test_names_and_errors_without_end_take_no_room_without_end(
    harness: StoreHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "MAX_SERIES", 5)
    monkeypatch.setattr(measures, "MAX_FAILURES", 4)
    letters = "abcdefghij"
    for letter in letters:
        harness.report(report_failed(harness.take(type=letter, max_retries=1), letter))
        harness.clock.advance(1)
    harness.measure()
    enqueued = {
        t.type: t.transitions for t in harness.store.read.stats.totals() if t.event == "enqueued"
    }
    assert len(enqueued) == 6
    assert enqueued[measures.OTHER] == 5
    assert [group.error for group in harness.store.read.stats.failures(10)] == list("jihg")
    check(harness)


def test_minutes_are_kept_for_a_day(harness: StoreHarness) -> None:
    harness.add()
    harness.measure()
    harness.clock.advance(measures.MINUTES_KEPT * 60 + 60)
    harness.add()
    harness.measure()
    kept = harness.sql.value("SELECT count(*) FROM {activity}")
    assert (kept, total(harness, "enqueued").transitions) == (1, 2)
    (minute,) = harness.store.read.stats.activity(1)
    now = harness.clock.now
    assert minute.minute == datetime(*now.timetuple()[:5], tzinfo=UTC)


def test_how_far_it_has_been_measured(harness: StoreHarness) -> None:
    job = harness.add()
    harness.measure()
    harness.clock.advance(100)
    assert harness.store.read.stats.until() == harness.clock.now
    harness.claim()
    harness.clock.advance(100)
    assert harness.store.read.stats.until() == job.created_at
    end, behind = harness.store.stats_reach()
    assert (".".join(map(str, end)), behind.total_seconds()) == (
        harness.store.read.ledger_end(),
        200,
    )


def test_only_what_was_measured_is_deleted(
    harness: StoreHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "MAX_ENTRIES", 4)
    harness.report(report_completed(harness.take()), report_completed(harness.take()))
    harness.ledger()
    harness.clock.advance(1)
    before = {"completed": harness.clock.now}
    assert harness.store.prune(before).result() == 0  # it took the first four of six moves
    assert harness.store.prune(before).result() == 2
    assert counted(harness.store.read.stats.totals()) == {
        "enqueued": 2,
        "claimed": 2,
        "completed": 2,
    }
    check(harness)


def test_jobs_deleted_by_hand_are_found_and_counted_anew(unaudited_harness: StoreHarness) -> None:
    harness = unaudited_harness
    harness.report(report_completed(harness.take()), report_completed(harness.take()))
    harness.measure()
    id = harness.sql.value("SELECT min(CAST(id AS text)) FROM {job}")
    harness.sql.run(f"DELETE FROM {{job}} WHERE id = '{id}'")
    harness.sql.run(f"DELETE FROM {{transition}} WHERE job_id = '{id}'")
    ((invariant, _, found),) = harness.store.read.violations(10)
    assert invariant == "the counts are those of the jobs"
    assert found == "completed of mail in default: 1, counted 2"
    assert harness.store.write("measure", lambda db: db.stats.recount()).result() == 1
    assert harness.store.read.violations(10) == []
    check(harness)


def test_of_many_who_measure_one_does_until_it_is_gone(harness: StoreHarness) -> None:
    harness.add()
    with closing(open_store(harness.url)) as other:
        assert other.update_stats(yielding=True) == 1  # the first time, nobody is known to measure
        harness.add()
        assert harness.store.update_stats() == 1
        harness.add()
        assert other.update_stats(yielding=True) == 0  # another has since: it is left to them
        assert harness.store.update_stats(yielding=True) == 1
        harness.add()
        assert other.update_stats(yielding=True) == 0
        assert other.update_stats(yielding=True) == 1  # nobody has since
        harness.add()
        assert other.update_stats(yielding=True) == 1


def test_transactions_are_measured_in_the_order_of_their_numbers(
    unaudited_harness: StoreHarness,
) -> None:
    harness = unaudited_harness
    if harness.sql.engine == "sqlite":
        return  # there, entries have one number, and are written one after the other
    jobs = [harness.add(), harness.add()]
    harness.sql.drop_triggers()
    for job, number in zip(jobs, (9, 10), strict=True):
        harness.sql.run(f"UPDATE {{transition}} SET xid = '{number}' WHERE job_id = '{job.id}'")
    ((end, _), _) = harness.store.stats_reach()
    assert end == "10"
    assert harness.store.update_stats() == 2
    assert harness.sql.value("SELECT xid::text FROM tenure.measured") == "10"
    assert harness.store.update_stats() == 0
