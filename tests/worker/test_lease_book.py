"""The book of leases, which the loop and the heartbeat of a worker use at once."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime

from tenure.jobs.work import Lease, Outcome
from tenure.worker.leases import Attempt, AttemptState, LeaseBook


def attempt(number: int) -> Attempt:
    end = datetime(2030, 1, 1, tzinfo=UTC)
    lease = Lease(f"job {number}", "work", "default", "{}", 1, 3, 1, None, f"lease {number}", end)
    return Attempt(lease, time.monotonic(), "worker-1")


def test_an_attempt_goes_from_claim_to_report() -> None:
    book, one = LeaseBook(slots=1), attempt(1)
    book.hold([one])
    assert (one.state, book.held, book.count) == (AttemptState.CLAIMED, 1, 0)
    book.take([one])
    assert (book.ready, book.running) == (1, 0)
    assert book.start_next() is one
    assert (one.state, book.ready, book.running) == (AttemptState.STARTED, 0, 1)
    book.end(one, one.outcome(Outcome.COMPLETED), free=True)
    assert (one.state, book.count, book.unreported) == (AttemptState.ENDED, 0, 1)
    assert book.take_reports() == [one]
    assert book.to_renew() == [("job 1", "lease 1")], "the store may not have it"
    book.reported([one])
    assert (one.state, book.held) == (AttemptState.REPORTED, 0)


def test_no_more_attempts_run_than_there_are_slots() -> None:
    book, attempts = LeaseBook(slots=2), [attempt(n) for n in range(3)]
    book.hold(attempts)
    book.take(attempts)
    assert [book.start_next() for _ in range(3)] == [attempts[0], attempts[1], None]
    book.end(attempts[0], attempts[0].outcome(Outcome.FAILED), free=False)
    assert book.start_next() is None, "its handler has not returned"
    book.free(attempts[0])
    assert book.start_next() is attempts[2]


def test_what_was_handed_back_or_lost_on_its_way_is_not_started() -> None:
    book, attempts = LeaseBook(slots=9), [attempt(n) for n in range(3)]
    book.hold(attempts)
    book.forget(attempts[:1])
    book.release_unstarted()
    book.take(attempts)
    assert book.start_next() is None
    assert book.take_reports() == attempts[1:]
    assert {one.report.outcome for one in attempts[1:] if one.report} == {Outcome.RELEASED}


def test_a_lost_lease_is_the_attempt_that_held_it() -> None:
    book, attempts = LeaseBook(slots=1), [attempt(n) for n in range(2)]
    book.hold(attempts)
    book.take(attempts)
    book.lose(["lease 1", "lease 7"])
    assert book.take_lost() == attempts[1:]
    assert book.take_lost() == []
    book.forget(attempts[1:])
    assert (book.ready, book.held) == (1, 1)


def test_each_attempt_goes_to_the_loop_or_to_the_heartbeat() -> None:
    """One starts and the other hands back, as fast as they can: each attempt has one fate."""
    book, attempts = LeaseBook(slots=10**6), [attempt(n) for n in range(20_000)]
    started: list[Attempt] = []
    released: list[Attempt] = []
    done = threading.Event()

    def hand_back() -> None:
        while not done.is_set():
            book.release_unstarted()
            released.extend(book.take_reports())

    heartbeat = threading.Thread(target=hand_back)
    heartbeat.start()
    for first in range(0, len(attempts), 100):
        some = attempts[first : first + 100]
        book.hold(some)
        book.take(some)
        while (one := book.start_next()) is not None:
            started.append(one)
    done.set()
    heartbeat.join()
    released += book.take_reports()
    assert len(started) + len(released) == len(attempts)
    assert {*started} | {*released} == {*attempts}
    assert all(one.state is AttemptState.STARTED for one in started)
