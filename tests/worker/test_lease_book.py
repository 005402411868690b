"""The book of leases, which the loop and the heartbeat of a worker use at once."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from datetime import UTC, datetime

import pytest

from tenure import Tenure
from tenure.rules.reports import RECORDED, Answer, Exchange, Lease, Outcome, Verdict
from tenure.worker.leases import Attempt, AttemptState, LeaseBook, Wakeup, reports_of
from tenure.worker.worker import Worker


def lease(number: int) -> Lease:
    end = datetime(2030, 1, 1, tzinfo=UTC)
    return Lease(f"job {number}", "work", "default", "{}", 1, 3, 1, None, f"lease {number}", end)


def book_of(slots: int, leases: int) -> LeaseBook:
    """A book with attempts that wait for a slot."""
    book = LeaseBook(slots, "worker-1")
    book.hold([lease(number) for number in range(leases)])
    book.admit()
    return book


def test_an_attempt_goes_from_claim_to_report() -> None:
    book = LeaseBook(1, "worker-1")
    book.hold([lease(1)])
    assert (book.ready, book.count) == (0, 0), "the loop has not seen it"
    assert book.to_renew() == [("job 1", "lease 1")], "but it is answered for"
    book.admit()
    assert (book.ready, book.running) == (1, 0)
    one = book.start_next()
    assert one is not None
    assert (one.state, book.ready, book.running) == (AttemptState.STARTED, 0, 1)
    book.end(one, one.outcome(Outcome.COMPLETED), free=True)
    assert (one.state, book.count, book.unreported) == (AttemptState.ENDED, 0, 1)
    assert book.take_reports() == [one]
    assert book.to_renew() == [("job 1", "lease 1")], "the store may not have it"
    book.reported([one], [RECORDED])
    assert (one.state, book.to_renew()) == (AttemptState.REPORTED, [])


def test_no_more_attempts_run_than_there_are_slots() -> None:
    book = book_of(slots=2, leases=3)
    first, second, none = (book.start_next() for _ in range(3))
    assert first is not None
    assert second is not None
    assert none is None
    book.end(first, first.outcome(Outcome.FAILED), free=False)
    assert book.start_next() is None, "its handler has not returned"
    book.free(first)
    third = book.start_next()
    assert third is not None
    assert [one.lease.id for one in (first, second, third)] == ["job 0", "job 1", "job 2"]


def test_an_attempt_is_overdue_until_its_outcome_is_decided() -> None:
    book = book_of(slots=2, leases=2)
    running = [book.start_next() for _ in range(2)]
    for attempt in running:
        assert attempt is not None
        attempt.due = time.monotonic() - 600
    assert book.overdue(1_200) == set()
    assert book.overdue(60) == {"lease 0", "lease 1"}
    assert running[0] is not None
    book.end(running[0], running[0].outcome(Outcome.FAILED), free=False)
    assert book.overdue(60) == {"lease 1"}


def test_the_report_of_a_locked_job_is_sent_again_before_the_others() -> None:
    book = book_of(slots=3, leases=3)
    running = [one for one in (book.start_next() for _ in range(3)) if one is not None]
    for one in running:
        book.end(one, one.outcome(Outcome.COMPLETED), free=True)
    taken = book.take_reports(2)
    assert (taken, book.unreported) == (running[:2], 1)
    locked = book.reported(taken, [Verdict(Answer.BUSY), RECORDED])
    assert locked == running[:1]
    assert [one.state for one in taken] == [AttemptState.ENDED, AttemptState.REPORTED]
    assert book.to_renew() == [("job 0", "lease 0"), ("job 2", "lease 2")]
    book.put_back(locked)
    assert book.take_reports() == [running[0], running[2]]
    book.put_back([running[0], running[2]])
    assert book.take_reports() == [running[0], running[2]], "in their order"


def test_what_is_known_of_the_leases_of_a_worker() -> None:
    book = book_of(slots=1, leases=2)
    assert book.start_next() is not None
    later = time.monotonic()
    book.hold([lease(2)])
    book.admit()
    assert book.queues() == ["default"] * 3
    assert book.claimed_before(later) == ["lease 0", "lease 1"]
    book.close()
    assert (book.is_closed, book.start_next()) == (True, None)


def test_an_exception_counts_while_the_handler_runs() -> None:
    book = book_of(slots=2, leases=2)
    error = ValueError("no card")
    for is_stopped in (False, True):
        one = book.start_next()
        assert one is not None
        if is_stopped:
            book.end(one, one.outcome(Outcome.FAILED), free=False)
        assert one.failure(error).error == "ValueError: no card"
        assert one.exception is (None if is_stopped else error)


@pytest.mark.anyio
async def test_any_thread_calls_on_the_loop_while_it_runs() -> None:
    wakeup = Wakeup()
    assert not wakeup.call(wakeup.set), "there is no loop"
    wakeup.attach()
    called = asyncio.Event()
    assert await asyncio.to_thread(wakeup.call, called.set)
    async with asyncio.timeout(60):
        await called.wait()
    ended = asyncio.new_event_loop()
    ended.close()
    wakeup.loop = ended
    assert not wakeup.call(called.set)
    wakeup.notify()
    assert wakeup.loop_is_closed


@pytest.mark.anyio
async def test_any_thread_wakes_the_loop_as_often_as_it_has_slept() -> None:
    wakeup = Wakeup()
    wakeup.attach()
    for rounds in (1, 2):
        await asyncio.to_thread(wakeup.notify)
        async with asyncio.timeout(60):
            await wakeup.wait(3_600)
        assert wakeup.rounds == rounds


def test_what_was_handed_back_or_lost_on_its_way_is_not_started() -> None:
    book = LeaseBook(9, "worker-1")
    book.hold([lease(number) for number in range(3)])
    book.forget(["lease 0"])
    book.release_unstarted()
    book.admit()
    assert book.start_next() is None
    reports = reports_of(book.take_reports())
    assert [report.job_id for report in reports] == ["job 1", "job 2"]
    assert {report.outcome for report in reports} == {Outcome.RELEASED}


def test_a_lost_lease_is_the_attempt_that_held_it() -> None:
    book = book_of(slots=1, leases=2)
    book.lose({"lease 1": "cancelled", "lease 7": "cancelled"})
    assert book.ready == 1, "it does not start"
    assert [(one.lease.lease_id, e) for one, e in book.take_lost()] == [("lease 1", "cancelled")]
    assert book.take_lost() == []
    book.forget(["lease 1"])
    assert (book.ready, book.to_renew()) == (1, [("job 0", "lease 0")])


def test_each_attempt_goes_to_the_loop_or_to_the_heartbeat() -> None:
    """One starts and the other hands back, as fast as they can: each attempt has one fate."""
    book, leases = LeaseBook(10**6, "worker-1"), [lease(n) for n in range(20_000)]
    started: list[Attempt] = []
    released: list[Attempt] = []
    done = threading.Event()

    def hand_back() -> None:
        while not done.is_set():
            book.release_unstarted()
            released.extend(book.take_reports())

    heartbeat = threading.Thread(target=hand_back)
    heartbeat.start()
    for first in range(0, len(leases), 100):
        book.hold(leases[first : first + 100])
        book.admit()
        while (one := book.start_next()) is not None:
            started.append(one)
    done.set()
    heartbeat.join()
    released += book.take_reports()
    assert len(started) + len(released) == len(leases)
    assert {one.lease.id for one in (*started, *released)} == {lease.id for lease in leases}
    assert all(one.state is AttemptState.STARTED for one in started)


@pytest.mark.parametrize(
    ("seconds_ago", "was_asked", "are_renewed"),
    [(0, False, False), (8, False, False), (11, False, True), (8, True, True)],
    ids=["at once", "in time", "late", "beside a heartbeat"],
)
def test_new_leases_are_renewed_at_once_if_a_heartbeat_may_come_too_late(
    app: Tenure, seconds_ago: float, was_asked: bool, are_renewed: bool
) -> None:
    """Leases of 30 s have spent a third of it on the way, or a heartbeat that did not know them
    went out meanwhile: it may have asked whether they have ended."""
    worker = Worker(app.core, app.core.handlers, lease_seconds=30)
    if was_asked:
        worker._heart.beat_now()
        worker._heart._now.clear()  # as its thread does
    answer = Future[Exchange]()
    answer.set_result(Exchange([], [lease(1)]))
    worker._exchanges._arrive(time.monotonic() - seconds_ago, answer)
    assert worker._heart._now.is_set() == are_renewed
    assert worker._leases.to_renew() == [("job 1", "lease 1")]
