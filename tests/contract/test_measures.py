"""What the ledger adds up to: exact at every step, each move once, whoever measures and dies."""

from __future__ import annotations

import random
import threading
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime

import pytest

from tenure.jobs.values import BUCKETS, Count, Query, Total
from tenure.lifecycle import Cancelled, Event, Retried
from tenure.store import Store, open_store
from tenure.store.tables import stats as measures
from tenure.store.tables import stats_sql as measure_words
from tests.support.store import LEASE_SECONDS, Desk, completed, failed, new, released

PLAIN = "SELECT status, queue, type, count(*) FROM {job} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
TRANSITIONS = "SELECT event, count(*) FROM {transition} GROUP BY event"


def check(desk: Desk) -> None:
    """The counts are those of the jobs, by whichever way they are counted."""
    plain = [Count(*row) for row in desk.raw.run(PLAIN)]
    assert desk.store.read.measured.counts() == plain
    waiting: Counter[str] = Counter()
    running: Counter[str] = Counter()
    for count in plain:
        waiting[count.queue] += count.jobs * (count.status == "pending")
        running[count.queue] += count.jobs * (count.status == "processing")
    names = {q for q in (*waiting, *running) if waiting[q] or running[q]}
    assert {(q.name, q.pending, q.processing) for q in desk.store.read.queues()} == {
        (name, waiting[name], running[name]) for name in names
    }


def counted(totals: list[Total]) -> dict[str, int]:
    """Moves by event."""
    transitions: Counter[str] = Counter()
    for total in totals:
        transitions[total.event] += total.transitions
    return dict(transitions)


def total(desk: Desk, event: str, **names: str) -> Total:
    """The one total of an event."""
    (found,) = (
        t
        for t in desk.store.read.measured.totals()
        if t.event == event and all(getattr(t, key) == name for key, name in names.items())
    )
    return found


@pytest.mark.parametrize("seed", range(3))
def test_counts_are_those_of_the_jobs_at_every_step(
    desk: Desk, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs come, move in every way and go, in bites of a few moves measured by two processes."""
    monkeypatch.setattr(measures, "MAX_MOVES", 7)
    die = random.Random(seed)
    other = open_store(desk.store.url)
    gone: Counter[str] = Counter()

    def transition() -> None:
        what = die.randrange(8)
        jobs = desk.store.read.find(Query(limit=100))
        if what <= 1:
            desk.add_all(*[new(die.choice("xyz"), queue=die.choice("ab")) for _ in range(4)])
        elif what <= 4:
            for lease in desk.claim(limit=3):
                report = die.choice([completed, failed, released, None])
                if report is not None:
                    desk.report(report(lease))
        elif what == 5 and jobs:
            events: list[Event] = [Cancelled(), Retried(more_retries=1)]
            desk.store.apply(die.choice(jobs).id, die.choice(events)).exception()
        elif what == 6:
            desk.clock.advance(die.choice([0.5, LEASE_SECONDS]))
            desk.store.sweep().result()
        else:
            before = Counter(dict(desk.raw.run(TRANSITIONS)))
            settled = ("completed", "failed", "cancelled")
            desk.store.prune(dict.fromkeys(settled, desk.clock.now), 2).result()
            gone.update(before - Counter(dict(desk.raw.run(TRANSITIONS))))

    try:
        for _ in range(60):
            transition()
            check(desk)
            for store in die.sample([desk.store, other], die.randrange(3)):
                store.measure()
            check(desk)
    finally:
        other.close()
    desk.measure()
    check(desk)
    assert (
        counted(desk.store.read.measured.totals())
        == Counter(dict(desk.raw.run(TRANSITIONS))) + gone
    )
    assert counted(desk.store.read.measured.totals()) == counted_by_minute(desk)
    assert desk.raw.value("SELECT count(*) FROM {tally} WHERE jobs = 0") == 0


def counted_by_minute(desk: Desk) -> dict[str, int]:
    """Moves by event, of the minutes that are kept."""
    transitions: Counter[str] = Counter()
    for minute in desk.store.read.measured.activity(24 * 60):
        assert minute.minute.second == minute.minute.microsecond == 0
        transitions[minute.event] += minute.transitions
    return dict(transitions)


def test_a_bite_that_somebody_else_has_measured_is_not_added_again(desk: Desk) -> None:
    desk.take()
    desk.ledger()
    mine, theirs = (desk.store.read.measured.next_batch(None)[1] for _ in range(2))
    assert mine is not None
    assert theirs is not None
    now = desk.clock.now
    act = desk.store._act
    assert act("measure", lambda db: db.measures.add(mine, now)).result()
    assert not act("measure", lambda db: db.measures.add(theirs, now)).result()
    assert counted(desk.store.read.measured.totals()) == {"enqueued": 1, "claimed": 1}
    check(desk)


def test_many_measure_at_once_beside_writers(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "MAX_MOVES", 20)
    done = threading.Event()
    stores = [open_store(desk.store.url) for _ in range(3)]

    def measure(store: Store) -> None:
        while not done.is_set():
            store.measure()

    threads = [threading.Thread(target=measure, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    try:
        pruned = 0
        for exchange in range(15):
            desk.add_all(*[new() for _ in range(20)])
            desk.report(*[completed(lease) for lease in desk.claim(limit=15)])
            counts = desk.store.read.measured.counts()
            assert sum(count.jobs for count in counts) + pruned == 20 * (exchange + 1)
            assert desk.store.read.violations(10) == []
            desk.clock.advance(1)
            pruned += desk.store.prune({"completed": desk.clock.now}, 3).result()
    finally:
        done.set()
        for thread in threads:
            thread.join()
        for store in stores:
            store.close()
    desk.measure()
    check(desk)
    assert counted(desk.store.read.measured.totals()) == {
        "enqueued": 300,
        "claimed": 225,
        "completed": 225,
    }


def test_an_older_database_counts_at_once(desk: Desk) -> None:
    """What was there before anything was measured is counted from the ledger, or from the jobs."""
    desk.report(completed(desk.take()), failed(desk.take()))
    assert desk.store.read.measured.until() is None
    check(desk)


def test_the_jobs_are_counted_instead_when_the_tally_is_far_behind(
    unaudited_desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = unaudited_desk
    desk.report(completed(desk.take()), failed(desk.take()))
    desk.raw.run("INSERT INTO {tally} VALUES ('failed', 'none', 'none', 7)")
    monkeypatch.setattr(measure_words, "FAR", 3)
    check(desk)


def test_waiting_and_running_are_timed(desk: Desk) -> None:
    desk.add()
    desk.clock.advance(2)
    (lease,) = desk.claim()
    desk.clock.advance(20)
    desk.report(failed(lease))  # it is pending again, with another time to run at
    desk.measure()
    assert total(desk, "claimed").transitions == 1
    assert total(desk, "claimed").buckets == (0,) * len(BUCKETS)  # no time is made up for it
    ran = total(desk, "failed")
    assert (ran.seconds, ran.buckets[BUCKETS.index(30)], sum(ran.buckets)) == (20, 1, 1)
    desk.clock.advance(3600)
    due = desk.get(lease.id).run_at
    (again,) = desk.claim()
    desk.clock.advance(0.01)
    desk.measure()
    waited = total(desk, "claimed")
    started = desk.get(lease.id).started_at
    assert started is not None
    assert waited.seconds == pytest.approx((started - due).total_seconds())
    assert (waited.transitions, sum(waited.buckets)) == (2, 1)
    desk.report(completed(again))
    desk.measure()
    assert total(desk, "completed").buckets[0] == 1


def test_of_those_cancelled_the_ones_that_ran_are_told_by_their_time(desk: Desk) -> None:
    """Also a job that ran before and waits again has no time when it is cancelled then."""
    waiting, running = desk.take(), desk.take()
    desk.report(failed(waiting))
    untouched = desk.add()
    desk.clock.advance(20)
    for id in (waiting.id, running.id, untouched.id):
        desk.store.apply(id, Cancelled()).result()
    desk.measure()
    cancelled = total(desk, "cancelled")
    assert (cancelled.transitions, sum(cancelled.buckets), cancelled.seconds) == (3, 1, 20)


def test_a_retry_at_once_is_not_taken_for_a_claim_without_waiting(desk: Desk) -> None:
    desk.add(max_retries=1)
    desk.clock.advance(2)
    (lease,) = desk.claim()
    desk.report(failed(lease))
    desk.store.apply(lease.id, Retried(more_retries=1)).result()  # all at one moment
    desk.measure()
    assert sum(total(desk, "claimed").buckets) == 0


def test_how_long_an_attempt_ran_is_known_after_the_next_has_begun(desk: Desk) -> None:
    lease = desk.take()
    desk.clock.advance(5)
    desk.report(failed(lease))
    desk.clock.advance(3600)
    desk.claim()
    desk.measure()
    assert total(desk, "failed").seconds == 5


def test_failures_are_grouped_by_what_they_have_in_common(desk: Desk) -> None:
    first = desk.clock.now
    for number in range(3):
        lease = desk.take(max_retries=1)
        desk.report(failed(lease, f"KeyError: 'order {number}' of {number}\nTraceback: {number}"))
        desk.clock.advance(1)
    desk.report(failed(desk.take(type="resize"), "OSError: disk full"))
    desk.measure()
    newest, orders = desk.store.read.measured.failures(10)
    assert (newest.type, newest.error, newest.attempts) == ("resize", "OSError: disk full", 1)
    assert (orders.type, orders.error, orders.attempts) == ("mail", "KeyError: … of …", 3)
    assert orders.last_job_id == lease.id
    assert (orders.first_seen_at, (orders.last_seen_at - first).total_seconds()) == (first, 2)
    assert desk.store.read.measured.failures(1) == [newest]


def test_names_and_errors_without_end_take_no_room_without_end(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "MAX_SERIES", 5)
    monkeypatch.setattr(measure_words, "MAX_FAILURES", 4)
    letters = "abcdefghij"
    for letter in letters:
        desk.report(failed(desk.take(type=letter, max_retries=1), letter))
        desk.clock.advance(1)
    desk.measure()
    enqueued = {
        t.type: t.transitions for t in desk.store.read.measured.totals() if t.event == "enqueued"
    }
    assert len(enqueued) == 6
    assert enqueued[measures.OTHER] == 5
    assert [group.error for group in desk.store.read.measured.failures(10)] == list("jihg")
    check(desk)


def test_minutes_are_kept_for_a_day(desk: Desk) -> None:
    desk.add()
    desk.measure()
    desk.clock.advance(measures.MINUTES_KEPT * 60 + 60)
    desk.add()
    desk.measure()
    kept = desk.raw.value("SELECT count(*) FROM {activity}")
    assert (kept, total(desk, "enqueued").transitions) == (1, 2)
    (minute,) = desk.store.read.measured.activity(1)
    now = desk.clock.now
    assert minute.minute == datetime(*now.timetuple()[:5], tzinfo=UTC)


def test_how_far_it_has_been_measured(desk: Desk) -> None:
    job = desk.add()
    desk.measure()
    desk.clock.advance(100)
    assert desk.store.read.measured.until() == desk.clock.now
    desk.claim()
    desk.clock.advance(100)
    assert desk.store.read.measured.until() == job.created_at


def test_only_what_was_measured_is_deleted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "MAX_MOVES", 4)
    desk.report(completed(desk.take()), completed(desk.take()))
    desk.ledger()
    desk.clock.advance(1)
    before = {"completed": desk.clock.now}
    assert desk.store.prune(before).result() == 0  # it took the first four of six moves
    assert desk.store.prune(before).result() == 2
    assert counted(desk.store.read.measured.totals()) == {
        "enqueued": 2,
        "claimed": 2,
        "completed": 2,
    }
    check(desk)


def test_jobs_deleted_by_hand_are_found_and_counted_anew(unaudited_desk: Desk) -> None:
    desk = unaudited_desk
    desk.report(completed(desk.take()), completed(desk.take()))
    desk.measure()
    id = desk.raw.value("SELECT min(CAST(id AS text)) FROM {job}")
    desk.raw.run(f"DELETE FROM {{job}} WHERE id = '{id}'")
    desk.raw.run(f"DELETE FROM {{transition}} WHERE job_id = '{id}'")
    ((invariant, _, found),) = desk.store.read.violations(10)
    assert invariant == "the counts are those of the jobs"
    assert found == "completed of mail in default: 1, counted 2"
    assert desk.store.recount().result() == 1
    assert desk.store.read.violations(10) == []
    check(desk)


def test_of_many_who_measure_one_does_until_it_is_gone(desk: Desk) -> None:
    desk.add()
    with closing(open_store(desk.store.url)) as other:
        assert other.measure(yielding=True) == 1  # the first time, nobody is known to measure
        desk.add()
        assert desk.store.measure() == 1
        desk.add()
        assert other.measure(yielding=True) == 0  # another has since: it is left to them
        assert desk.store.measure(yielding=True) == 1
        desk.add()
        assert other.measure(yielding=True) == 0
        assert other.measure(yielding=True) == 1  # nobody has since
        desk.add()
        assert other.measure(yielding=True) == 1


def test_transactions_are_measured_in_the_order_of_their_numbers(unaudited_desk: Desk) -> None:
    desk = unaudited_desk
    if desk.raw.engine == "sqlite":
        return  # there, entries have one number, and are written one after the other
    jobs = [desk.add(), desk.add()]
    desk.raw.drop_triggers()
    for job, number in zip(jobs, (9, 10), strict=True):
        desk.raw.run(f"UPDATE {{transition}} SET xid = '{number}' WHERE job_id = '{job.id}'")
    assert desk.store.measure() == 2
    assert desk.raw.value("SELECT xid::text FROM tenure.measured") == "10"
    assert desk.store.measure() == 0
