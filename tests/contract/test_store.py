"""The store as an object: opening, closing, and callers that come and go at bad moments."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Barrier, Event

import pytest

from tenure import Status, Tenure
from tenure.errors import InvalidInput, StoreUnavailable
from tenure.rules.search import Query
from tenure.store import migrate_store, open_store, waits
from tests.support.no_threads import no_new_threads
from tests.support.programs import run
from tests.support.raw_sql import RawSql
from tests.support.store import StoreHarness, claim_request, new_job, report_completed
from tests.support.waiting import WAIT_SECONDS

ROOT = Path(__file__).parents[2]


def test_what_was_answered_is_there_after_opening_again(harness: StoreHarness) -> None:
    job = harness.add()
    harness.store.close()
    again = open_store(harness.url)
    try:
        assert again.read.get(job.id) == job
    finally:
        again.close()
    harness.store = open_store(harness.url)


def test_closing_finishes_what_is_waiting(harness: StoreHarness, database_url: str) -> None:
    store = open_store(database_url)
    futures = [store.add([new_job()]) for _ in range(200)]
    store.close()
    assert all(future.done() and future.result()[0].created for future in futures)
    assert len(harness.store.read.find(Query(limit=500))) == 200


def test_a_closed_store_says_so_and_adds_nothing(harness: StoreHarness, database_url: str) -> None:
    store = open_store(database_url)
    store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        store.add([new_job()])
    store.close()  # twice is no mistake
    assert harness.store.read.find(Query()) == []


@pytest.mark.scenario(102)
def test_without_a_thread_the_caller_hears_it_and_the_next_write_works(database_url: str) -> None:
    store = open_store(database_url)
    with no_new_threads():
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="nothing was written"):
                store.add([new_job()])
    first = store.add([new_job()]).result(WAIT_SECONDS)
    with no_new_threads():
        second = store.add([new_job()]).result(WAIT_SECONDS)
    store.close()
    assert first[0].created
    assert second[0].created


@pytest.mark.scenario(102)
def test_without_a_thread_nobody_listens_and_the_next_who_asks_does(
    harness: StoreHarness, database_url: str
) -> None:
    store = open_store(database_url)
    heard = Event()
    with no_new_threads(), pytest.raises(StoreUnavailable, match="cannot be watched"):
        store.on_work(heard.set)
    store.on_work(heard.set)
    assert heard.wait(WAIT_SECONDS)  # at its beginning
    heard.clear()
    harness.add()
    assert heard.wait(WAIT_SECONDS)
    store.close()


FORKING = """
import os, sys, warnings
from tenure import StoreUnavailable
from tenure.store import open_store
from tests.support.store import new_job

warnings.simplefilter("ignore")  # newer Pythons warn about forking beside threads: the point here
store = open_store(sys.argv[1])
stop = store.on_work(lambda: None)
store.add([new_job()]).result()
store.read.stats.counts()
uses = [
    lambda: store.add([new_job()]),
    lambda: store.exchange([], None),
    lambda: store.read,
    lambda: store.renew([], 30),
    lambda: store.on_work(lambda: None),
]
copy = os.fork()
if copy == 0:
    refused = 0
    for use in uses:
        try:
            use()
        except StoreUnavailable as error:
            refused += "fork" in str(error)
    store.close()
    os._exit(refused)
assert os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]) == len(uses)
store.add([new_job()]).result()
assert sum(count.jobs for count in store.read.stats.counts()) == 2
assert store.renew([], 30) == set()
assert store.read.violations(5) == []
store.close()
"""


@pytest.mark.scenario(53)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_store_is_not_used_across_a_fork(harness: StoreHarness, database_url: str) -> None:
    command = [sys.executable, "-c", FORKING, database_url]
    done = run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


REOPENING = """
import os, sys, warnings
from tenure.errors import StoreUnavailable
from tenure.store import open_store
from tests.support.store import new_job

warnings.simplefilter("ignore")
store = open_store(sys.argv[1])
store.add([new_job()]).result()

def child() -> int:
    copy = os.fork()
    if copy:
        return os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
    try:
        own = open_store(sys.argv[1])
        own.add([new_job()]).result()
        own.close()
    except StoreUnavailable as error:
        os._exit(3 if "forked" in str(error) else 4)
    os._exit(0)

while_open = child()
store.close()
print(while_open, child())
"""


@pytest.mark.scenario(53)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_child_opens_a_sqlite_file_only_if_its_parent_has_closed_it(database_url: str) -> None:
    """SQLite takes the locks of the parent for the child's; PostgreSQL does not care."""
    command = [sys.executable, "-c", REOPENING, database_url]
    done = run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    refused = 3 if database_url.startswith("sqlite:") else 0
    assert (done.stdout.split(), done.stderr) == ([str(refused), "0"], "")


def test_two_stores_over_one_database_see_the_same(
    harness: StoreHarness, database_url: str
) -> None:
    other = open_store(database_url)
    try:
        lease = harness.take()
        assert (
            other.exchange([report_completed(lease)], None).result().verdicts[0].answer
            == "recorded"
        )
        assert harness.get(lease.id).status == "completed"
        assert other.exchange((), claim_request()).result().leases == []
    finally:
        other.close()


def test_many_open_a_new_database_at_once(database_url: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        versions = list(threads.map(migrate_store, [database_url] * 8))
    assert len(set(versions)) == 1
    store = open_store(database_url)
    try:
        assert store.add([new_job()]).result()[0].created
    finally:
        store.close()


def test_a_starter_waits_while_another_makes_the_file(sqlite_url: str) -> None:
    """SQLite itself does not wait for a first writer when the log is switched on."""
    other = RawSql(sqlite_url)
    other.run("CREATE TABLE other (a)")
    other.run("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as thread:
        version = thread.submit(migrate_store, sqlite_url)
        try:
            with pytest.raises(TimeoutError):
                version.exception(timeout=0.3)
        finally:
            other.run("COMMIT")
        assert version.result() >= 1
    other.close()


@pytest.mark.parametrize("url", ["", "jobs.db", "mysql://host/db", "sqlite:///", "sqlite:jobs.db"])
def test_what_is_no_database_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput):
        open_store(url)


def test_callers_that_give_up_harm_nobody(harness: StoreHarness) -> None:
    given_up = [harness.store.add([new_job()]) for _ in range(200)]
    dropped = [future.cancel() for future in given_up]
    wait([future for future, gone in zip(given_up, dropped, strict=True) if not gone])
    harness.add()
    kept = dropped.count(False) + 1
    assert len(harness.store.read.find(Query(limit=500))) == kept


def test_a_listener_that_raises_harms_nobody(harness: StoreHarness) -> None:
    rung: list[None] = []

    def broken() -> None:
        raise RuntimeError("the event loop is closed")

    stops = [harness.store.on_work(broken), harness.store.on_work(lambda: rung.append(None))]
    for _ in range(5):
        harness.add()
    stops.append(harness.store.on_work(broken))  # which is told of work so recent at once
    for stop in stops:
        stop()
    assert len(harness.store.read.find(Query())) == 5
    assert len(rung) >= 1


def test_a_doubt_that_fails_ends_no_other_wait(
    harness: StoreHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended the thread, and whoever waited, then or later, waited for ever."""
    monkeypatch.setattr(waits, "DOUBT_SECONDS", 0.0)
    outage = iter([StoreUnavailable("the database did not answer")])

    def away() -> None:
        raise next(outage, ZeroDivisionError("a fault"))

    job = harness.add()
    other = harness.store.wait(job.id)
    with pytest.raises(ZeroDivisionError, match="a fault"):
        harness.store.wait(job.id, away).result(WAIT_SECONDS)
    (lease,) = harness.claim()
    harness.report(report_completed(lease))
    assert other.result(WAIT_SECONDS).status is Status.COMPLETED
    assert harness.store.wait(job.id).result(WAIT_SECONDS).id == job.id


def test_first_users_side_by_side_share_one_store(database_url: str) -> None:
    """Else the one that is not kept would never be closed, and its connections stay."""
    migrate_store(database_url)
    for _ in range(5):
        barrier = Barrier(8)
        with Tenure(database_url) as app, ThreadPoolExecutor(8) as pool:
            app.close()

            def first_use(app: Tenure = app, barrier: Barrier = barrier) -> int:
                barrier.wait()
                return id(app.core.store)

            uses = [pool.submit(first_use) for _ in range(8)]
            assert len({use.result() for use in uses}) == 1


def test_who_looks_which_workers_were_seen_can_go_on_looking(harness: StoreHarness) -> None:
    """Two threads commit on PostgreSQL, and what both know is never changed under the other."""
    committer = harness.store._committer
    walks: list[Iterator[str]] = []

    class Name(str):
        def __hash__(self) -> int:  # as if the other thread came in between
            walks.append(iter(committer._sightings._seen))
            return super().__hash__()

    harness.store.exchange([], claim_request(worker="first")).result()
    harness.store.exchange([], claim_request(worker=Name("second"))).result()
    assert walks
    for walk in walks:
        list(walk)
