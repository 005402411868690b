"""Limits of queues and partitions, as claims keep them: also where others did not."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from tenure import PerPartition, Tenure
from tenure.app.queues import Queues
from tenure.app.retention import Retention
from tenure.events import Cancelled, Retried
from tenure.rules.reports import Lease
from tenure.store import open_store
from tenure.store.lanes import BUSY_AGAIN_SECONDS, LOOKS_OVER_MANY, MAX_LOOKS
from tenure.store.tables import queues as tables_queues
from tenure.store.tables.retention import delete_unchanged
from tests.support.clock import TICK
from tests.support.raw_sql import RawSql, Refused
from tests.support.store import (
    LEASE_SECONDS,
    StoreHarness,
    claim_request,
    new_job,
    report_completed,
    report_failed,
    report_interrupted,
    report_released,
    report_snoozed,
)
from tests.support.waiting import wait_until

RUNNING = "SELECT count(*) FROM {job} WHERE status = 'processing' AND queue = 'q'"
LEFT = """
SELECT count(*) FROM {job} WHERE status IN ('pending', 'processing') AND run_at <= {now}"""
FULLEST = """
SELECT coalesce(max(jobs), 0) FROM (SELECT count(*) AS jobs FROM {job}
    WHERE status = 'processing' AND queue = 'q' GROUP BY coalesce(partition, '')) AS one"""

on_postgres = pytest.mark.parametrize(
    "database_url", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
)


@pytest.fixture
def queues(harness: StoreHarness) -> Iterator[Queues]:
    with Tenure(harness.url) as app:
        yield app.queues


def add(harness: StoreHarness, count: int, *partitions: str | None, **fields: Any) -> list[str]:
    """Add so many jobs of each partition, in turn; return the ids."""
    jobs = [
        new_job(**{"queue": "q", "partition": partition, **fields})
        for _ in range(count)
        for partition in partitions or (None,)
    ]
    harness.add_all(*jobs)
    return [job.id for job in jobs]


def partitions_of(harness: StoreHarness, leases: list[Lease]) -> Counter[str | None]:
    return Counter(harness.get(lease.id).partition for lease in leases)


def running(harness: StoreHarness) -> int:
    return int(harness.sql.value(RUNNING))


# --- how many run at once


def test_no_more_run_than_the_limit_whatever_ends_them(
    harness: StoreHarness, queues: Queues
) -> None:
    """As solid_queue#761: a semaphore that was released twice ran a job of limit 1 eleven times."""
    queues.limit("q", max_running=2)
    add(harness, 12)
    ends = [report_completed, report_failed, report_released, report_interrupted, report_snoozed]
    first = harness.claim(9)
    assert len(first) == 2
    for end in ends:
        assert harness.claim(9) == []
        for lease in first:
            harness.report(end(lease))
            harness.report(end(lease))  # again, late
        first = harness.claim(9)
        assert len(first) == 2
    assert running(harness) == 2


def test_many_claimers_never_start_more_than_the_limits(
    harness: StoreHarness, queues: Queues
) -> None:
    """As pgqueuer#761, hatchet#4778, kestra#13211: each counted what was true a moment before."""
    queues.limit("q", max_running=5, per_partition=PerPartition(max_running=2))
    add(harness, 60, "a", "b", "c", None)
    stop, errors = threading.Event(), list[BaseException]()

    def work(name: str) -> None:
        store = open_store(harness.url)
        try:
            while not stop.is_set():
                request = claim_request(4, name)
                leases = store.exchange((), request).result().leases
                for number, lease in enumerate(leases):
                    end = report_failed if number % 3 == 0 else report_completed
                    store.exchange([end(lease)], None).result()
        except BaseException as error:
            errors.append(error)
        finally:
            store.close()

    workers = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(6)]
    sampler = RawSql(harness.url)
    for worker in workers:
        worker.start()
    most, fullest = 0, 0
    try:
        while sampler.value(LEFT) and not errors:
            most = max(most, sampler.value(RUNNING))
            fullest = max(fullest, sampler.value(FULLEST))
    finally:
        stop.set()
        for worker in workers:
            worker.join()
        sampler.close()
    assert errors == []
    assert (most, fullest) <= (5, 2)
    assert most >= 2  # else nothing ran side by side


def test_leases_that_ran_out_free_their_places_though_the_queue_is_full(
    harness: StoreHarness, queues: Queues
) -> None:
    """As pgqueuer#474: who looked for lost jobs counted them as running."""
    queues.limit("q", max_running=2)
    add(harness, 3)
    lost = harness.claim(9, worker="dead")
    harness.clock.advance(LEASE_SECONDS + 1)
    assert harness.claim(9) == []
    assert len(harness.store.sweep().result()) == 2
    assert len(harness.claim(9)) == 1  # the others wait for their retry
    for lease in lost:
        harness.report(report_completed(lease))  # a frozen worker comes back: no place is freed
    harness.clock.advance(60)
    assert len(harness.claim(9)) == 1


def test_a_limit_is_lowered_raised_and_removed_while_jobs_run(
    harness: StoreHarness, queues: Queues
) -> None:
    """As kestra#13211: a limit that changed was forgotten by what had counted before."""
    queues.limit("q", max_running=7)
    add(harness, 20)
    leases = harness.claim(20)
    assert len(leases) == 7
    queues.limit("q", max_running=3)
    for lease in leases[:4]:
        assert harness.claim(20) == []
        harness.report(report_completed(lease))
    assert harness.claim(20) == []
    harness.store.apply(leases[4].id, Cancelled(actor="ada")).result()  # it is killed
    assert len(harness.claim(20)) == 1
    queues.limit("q", max_running=5)
    assert len(harness.claim(20)) == 2
    queues.limit("q", max_running=0)
    assert harness.claim(20) == []
    queues.limit("q", max_running=None)
    assert len(harness.claim(20)) == 10


def test_limits_count_the_jobs_that_ran_before_them(harness: StoreHarness, queues: Queues) -> None:
    add(harness, 5, "a")
    leases = harness.claim(2)
    queues.limit("q", max_running=3, per_partition=PerPartition(max_running=2))
    assert harness.claim(9) == []
    queues.limit("q", per_partition=None)
    assert len(harness.claim(9)) == 1
    harness.report(report_completed(leases[0]))
    assert len(harness.claim(9)) == 1


def test_a_claim_of_a_limited_queue_brings_no_more_than_free_handlers(
    harness: StoreHarness, queues: Queues
) -> None:
    """As pgqueuer#173: jobs that waited inside a worker held the places of others."""
    queues.limit("q", max_running=9)
    add(harness, 9)
    add(harness, 9, queue="plain", priority=-1)
    assert Counter(each.queue for each in harness.claim(12, free=2)) == {"plain": 9}
    assert Counter(each.queue for each in harness.claim(12, free=2)) == {"q": 2}
    assert harness.claim(12, free=0) == []
    assert len(harness.claim(12)) == 7


# --- partitions


def test_jobs_without_a_partition_use_up_the_limit_of_none_and_none_uses_up_theirs(
    harness: StoreHarness, queues: Queues
) -> None:
    """As oban#792: a missing value counted as every value."""
    queues.limit("q", per_partition=PerPartition(max_running=2))
    add(harness, 4, None, "a")
    leases = harness.claim(9)
    assert partitions_of(harness, leases) == {None: 2, "a": 2}
    (one,) = [lease for lease in leases[:3] if harness.get(lease.id).partition is None][:1]
    harness.report(report_completed(one))
    assert partitions_of(harness, harness.claim(9)) == {None: 1}


def test_a_partition_has_its_own_limit_and_pause(harness: StoreHarness, queues: Queues) -> None:
    queues.limit("q", per_partition=PerPartition(max_running=1))
    queues.limit_partition("q", "big", max_running=3)
    queues.limit_partition("q", "none", max_running=0)
    queues.pause_partition("q", "paused")
    add(harness, 4, "big", "none", "paused", "other")
    assert partitions_of(harness, harness.claim(20)) == {"big": 3, "other": 1}
    queues.resume_partition("q", "paused")
    queues.limit_partition("q", "none", max_running=None)
    assert partitions_of(harness, harness.claim(20)) == {"paused": 1, "none": 1}


def test_a_full_partition_in_front_holds_up_no_other_one(
    harness: StoreHarness, queues: Queues
) -> None:
    """As in the Oban forum, 53388: a million jobs of a tenant were read before others."""
    queues.limit("q", per_partition=PerPartition(max_running=1))
    add(harness, 3_000, "big")
    harness.clock.advance(TICK)
    add(harness, 1, "small")
    assert partitions_of(harness, harness.claim(9)) == {"big": 1, "small": 1}


def test_an_opened_partition_among_busy_ones_starts_within_one_round(
    harness: StoreHarness, queues: Queues
) -> None:
    """As hatchet#2866, solid_queue#630: all waited in turn, or workers spun."""
    queues.limit("q", per_partition=PerPartition(max_running=1))
    names = [f"t{n:04}" for n in range(600)]
    add(harness, 2, *names)
    leases: list[Lease] = []
    while found := harness.claim(200):
        leases += found
    assert len(leases) >= 600 - 200  # a claim may end while it looks at busy ones
    while len(leases) < 600:
        leases += harness.claim(200)
    harness.report(report_completed(leases[300]))
    opened = harness.get(leases[300].id).partition
    claims = [harness.claim(200) for _ in range(4)]  # of 250 looks at least
    assert partitions_of(harness, [lease for each in claims for lease in each]) == {opened: 1}


@pytest.mark.parametrize("size", [1, 2, 5, 16, 50])
def test_shares_are_as_the_weights_for_claims_of_any_size(
    harness: StoreHarness, queues: Queues, size: int
) -> None:
    queues.limit("q", per_partition=PerPartition())
    queues.limit_partition("q", "b", weight=4)
    add(harness, 400, "a", "b", "c")
    got: Counter[str | None] = Counter()
    while got.total() < 300:
        got += partitions_of(harness, harness.claim(size))
    total = got.total()
    for partition, weight in (("a", 1), ("b", 4), ("c", 1)):
        assert abs(got[partition] / total - weight / 6) < 0.02


def test_a_tenant_that_floods_the_queue_delays_others_by_one_turn(
    harness: StoreHarness, queues: Queues
) -> None:
    queues.limit("q", max_running=4, per_partition=PerPartition())
    add(harness, 200, "flood")
    leases = harness.claim(4)
    for name in ("x", "y", "z"):
        harness.clock.advance(TICK)
        (late,) = add(harness, 1, name)
        for lease in leases[:2]:
            harness.report(report_completed(lease))
        leases = leases[2:] + harness.claim(4)
        assert late in harness.ids(leases)


def test_what_one_partition_has_no_jobs_for_goes_to_others_in_the_same_claim(
    harness: StoreHarness, queues: Queues
) -> None:
    queues.limit("q", per_partition=PerPartition())
    add(harness, 1, "a", "b")
    add(harness, 30, "c")
    assert len(harness.claim(20)) == 20


def test_a_claim_that_large_payloads_end_goes_on_with_the_partitions_it_left_out(
    harness: StoreHarness, queues: Queues
) -> None:
    """A batch that is cut in the order of the names starves the last ones for ever."""
    queues.limit("q", per_partition=PerPartition())
    names = [f"t{n:02}" for n in range(12)]
    payload = f'{{"a":"{"x" * 900_000}"}}'
    for _ in range(3):
        add(harness, 1, *names, payload=payload)
    leases = [lease for _ in range(2) for lease in harness.claim(12)]
    assert len(leases) < 24
    assert set(partitions_of(harness, leases)) == set(names)


def test_a_worker_that_lacks_a_type_passes_over_it_in_each_partition(
    harness: StoreHarness, queues: Queues
) -> None:
    queues.limit("q", per_partition=PerPartition(max_running=1))
    add(harness, 700, "a", "b", type="other")
    harness.clock.advance(TICK)
    wanted = add(harness, 1, "a", "b")
    got: list[Lease] = []
    for _ in range(12):
        got += harness.claim(9, types=("mail",))
    assert sorted(harness.ids(got)) == sorted(wanted)


@pytest.mark.parametrize("per", [PerPartition(), PerPartition(max_running=1)])
def test_a_worker_finds_its_job_among_partitions_with_jobs_of_other_types(
    harness: StoreHarness, queues: Queues, per: PerPartition
) -> None:
    """Not one partition with each claim, for a worker that asks for one job."""
    queues.limit("q", per_partition=per)
    add(harness, 1, *[f"t{n:03}" for n in range(300)], type="other")
    harness.clock.advance(TICK)
    wanted = add(harness, 1, "t150", "t160")
    claims = [harness.ids(harness.claim(1, types=("mail",))) for _ in range(6)]
    assert sorted(claims)[-2:] == [[id] for id in sorted(wanted)]
    assert len(harness.claim(300)) == 300 - (2 if per.max_running else 0)


# --- rates


def test_a_rate_bounds_every_window_and_counts_failed_starts(
    harness: StoreHarness, queues: Queues
) -> None:
    """As in the Oban forum, 64201: 90 in 10 s was more at the border of two windows."""
    queues.limit("q", rate="10/1s", burst=4)
    add(harness, 60)
    begun: list[float] = []
    at = 0.0
    for _ in range(300):
        for lease in harness.claim(3):
            begun.append(at)
            harness.report(report_failed(lease) if len(begun) % 2 else report_released(lease))
        at = round(at + 0.017, 3)
        harness.clock.advance(0.017)
    assert len(begun) >= 5 * 7 - 1
    assert all(last - first >= 1 for first, last in zip(begun, begun[10:], strict=False))
    assert any(later - first < 0.001 for first, later in pairwise(begun))  # a burst


def test_the_rate_of_a_partition_does_not_touch_the_others(
    harness: StoreHarness, queues: Queues
) -> None:
    """As oban#1477: one partition's rate held up the whole queue."""
    queues.limit("q", per_partition=PerPartition(rate="2/1m", burst=2))
    add(harness, 9, "a")
    assert len(harness.claim(9)) == 2
    add(harness, 1, "b")
    assert partitions_of(harness, harness.claim(9)) == {"b": 1}
    harness.clock.advance(60)
    assert partitions_of(harness, harness.claim(9)) == {"a": 1}


def test_a_job_that_waits_for_its_rate_holds_no_place_also_after_a_restart(
    harness: StoreHarness, queues: Queues
) -> None:
    """As hatchet PR 4804: such jobs filled the places of those that could run."""
    queues.limit("q", max_running=2, per_partition=PerPartition(rate="1/1m"))
    add(harness, 3, "a")
    (first,) = harness.claim(9)
    harness.report(report_completed(first))
    store = open_store(harness.url)
    try:
        claim = lambda: store.exchange((), claim_request(9)).result().leases  # noqa: E731
        assert claim() == []
        assert running(harness) == 0
        add(harness, 1, "b", "c")
        assert len(claim()) == 2
    finally:
        store.close()


# --- in order


def test_the_jobs_of_a_partition_run_one_at_a_time_in_the_order_of_their_enqueue(
    harness: StoreHarness, queues: Queues
) -> None:
    """As procrastinate#1599: a job that was due later took the lock first."""
    queues.limit("q", ordered="pass")
    first = add(harness, 1, "a", "b", priority=50)
    harness.clock.advance(TICK)
    second = add(harness, 1, "a", "b", priority=-50)
    third = add(harness, 1, "a", "b")
    for batch in (first, second, third):
        leases = harness.claim(9)
        assert sorted(harness.ids(leases)) == sorted(batch)
        assert harness.claim(9) == []
        for lease in leases:
            harness.report(report_completed(lease))


def test_an_earlier_job_that_comes_late_waits_for_the_one_that_runs(
    harness: StoreHarness, queues: Queues
) -> None:
    """A producer was slow to commit, or an operator retried what had failed."""
    queues.limit("q", ordered="pass")
    early, later = (new_job(queue="q", partition="a") for _ in range(2))
    harness.add_all(later)
    (lease,) = harness.claim(9)
    harness.add_all(early)
    assert harness.claim(9) == []
    with pytest.raises(Refused):
        harness.sql.run(
            "UPDATE {job} SET status = 'processing', attempts = 1, token = 1,"
            " lease_id = {new_lease}, lease_expires_at = {later}, started_at = {now}, worker = 'w',"
            f" event = 'claimed', actor = 'w' WHERE id = '{early.id}'"
        )
    harness.report(report_completed(lease))
    assert harness.ids(harness.claim(9)) == [early.id]


@pytest.mark.parametrize("ordered", ["halt", "pass"])
def test_later_ones_wait_through_the_retries_of_a_job(
    harness: StoreHarness, queues: Queues, ordered: Any
) -> None:
    """As BullMQ and River: a retry that waits lets the next one pass."""
    queues.limit("q", ordered=ordered)
    first, second = add(harness, 2, "a", max_retries=3)
    for attempt in (1, 2, 3):
        (lease,) = harness.claim(9)
        assert (lease.id, lease.attempts) == (first, attempt)
        harness.report(report_failed(lease))
        if attempt < 3:
            assert harness.claim(9) == []  # its delay
            harness.clock.set(
                harness.get(first).run_at.replace(microsecond=0) + timedelta(seconds=1)
            )
    assert harness.get(first).status == "failed"
    if ordered == "pass":
        assert harness.ids(harness.claim(9)) == [second]
        return
    assert harness.claim(9) == []
    (halted,) = queues.partitions("q")
    assert (halted.partition, halted.pending, halted.halted_by) == ("a", 1, first)
    assert queues.pass_over("q", "a") == first
    assert queues.pass_over("q", "a") is None
    assert harness.ids(harness.claim(9)) == [second]


def test_a_halted_partition_goes_on_with_the_retry_of_its_job(
    harness: StoreHarness, queues: Queues
) -> None:
    queues.limit("q", ordered="halt")
    first, second = add(harness, 2, "a", max_retries=1)
    (lease,) = harness.claim(9)
    harness.report(report_failed(lease))
    assert harness.claim(9) == []
    add(harness, 1, "b")
    halts = {part.partition: part.halted_by for part in queues.partitions("q")}
    assert halts == {"a": first, "b": None}
    assert [tables_queues.halted(harness.store.read, "q", most) for most in (0, 1, 2)] == [0, 1, 1]
    assert tables_queues.halted(harness.store.read, "r", 9) == 0
    assert len(harness.claim(9)) == 1  # others go on
    harness.store.apply(first, Retried(more_retries=1, actor="ada")).result()
    (again,) = harness.claim(9)
    assert again.id == first
    assert harness.claim(9) == []
    harness.report(report_completed(again))
    assert harness.ids(harness.claim(9)) == [second]


@pytest.mark.parametrize("ordered", ["halt", "pass"])
def test_a_job_that_was_passed_over_is_first_again_with_its_retry(
    harness: StoreHarness, queues: Queues, ordered: Any
) -> None:
    queues.limit("q", ordered=ordered)
    first, second = add(harness, 2, "a", max_retries=1)
    (lease,) = harness.claim(9)
    harness.report(report_failed(lease))
    assert queues.pass_over("q", "a") == (first if ordered == "halt" else None)
    harness.store.apply(first, Retried(more_retries=1, actor="ada")).result()
    (again,) = harness.claim(9)
    assert again.id == first
    harness.report(report_completed(again))
    assert harness.ids(harness.claim(9)) == [second]


def test_a_failed_job_that_is_deleted_halts_its_partition_no_longer(
    harness: StoreHarness, queues: Queues
) -> None:
    queues.limit("q", ordered="halt")
    first, second = add(harness, 2, "a", max_retries=1)
    (lease,) = harness.claim(9)
    harness.report(report_failed(lease))
    assert harness.claim(9) == []
    harness.sql.run("DELETE FROM {job} WHERE status = 'failed'")
    harness.sql.run("DELETE FROM {transition} WHERE job_id = ?", first)
    assert harness.sql.run("SELECT count(*) FROM {line}") == [(1,)]
    assert harness.ids(harness.claim(9)) == [second]


@pytest.mark.parametrize("how", ["prune", "rules", "export"])
def test_retention_keeps_the_failed_job_that_halts_a_partition(
    harness: StoreHarness, queues: Queues, how: str
) -> None:
    """After 30 days it was deleted, and the jobs behind it ran, out of their order."""
    queues.limit("q", ordered="halt")
    first, second = add(harness, 2, "a", max_retries=1)
    (lease,) = harness.claim(9)
    harness.report(report_failed(lease))
    harness.clock.advance(100 * 86_400)

    def delete() -> int:
        harness.measure()
        if how == "export":
            entries = {first: len(harness.history(first))}
            return harness.store.write("prune", partial(delete_unchanged, entries=entries)).result()
        if how == "rules":
            Retention(queues._core).set(queue="q", failed="1d")
        return sum(harness.prune({"failed": harness.clock.now}) for _ in range(2))

    delete()
    assert (harness.get(first).status, harness.claim(9)) == ("failed", [])
    queues.pass_over("q", "a")
    assert harness.ids(harness.claim(9)) == [second]
    harness.clock.advance(86_401)
    delete()
    assert harness.store.read.get(first) is None


def test_a_cancelled_job_leaves_its_line(harness: StoreHarness, queues: Queues) -> None:
    queues.limit("q", ordered="halt")
    first, second, third = add(harness, 3, "a", delay=60)
    harness.store.apply(first, Cancelled(actor="ada")).result()
    harness.clock.advance(61)
    (lease,) = harness.claim(9)
    assert lease.id == second
    harness.store.apply(second, Cancelled(actor="ada")).result()
    assert harness.ids(harness.claim(9)) == [third]


def test_a_queue_becomes_ordered_while_jobs_run_and_fail(
    harness: StoreHarness, queues: Queues
) -> None:
    *_, third, fourth = add(harness, 4, "a", max_retries=1)
    leases = harness.claim(2)
    harness.report(report_failed(leases[0]))
    queues.limit("q", ordered="halt")
    assert harness.claim(9) == []  # one runs; the one that failed before stops nothing
    harness.report(report_completed(leases[1]))
    assert harness.ids(harness.claim(9)) == [third]
    queues.limit("q", ordered=None, per_partition=None)
    assert harness.ids(harness.claim(9)) == [fourth]


# --- lanes


def test_a_closed_queue_ends_no_claim(harness: StoreHarness, queues: Queues) -> None:
    queues.limit("q", max_running=1)
    add(harness, 3, priority=-10)
    add(harness, 3, priority=5)
    (other,) = add(harness, 1, queue="z", priority=10)
    leases = harness.claim(9)
    assert [each.queue for each in leases] == ["q", "z"]
    assert harness.ids(leases)[1] == other
    assert harness.get(leases[0].id).priority == -10


def test_closed_queues_in_front_do_not_shut_out_the_others(
    harness: StoreHarness, queues: Queues
) -> None:
    """More of them than one claim looks at, and all of them more urgent."""
    closed = [f"c{n:03}" for n in range(2 * MAX_LOOKS)]
    for name in closed:
        harness.sql.run("INSERT INTO {queue_limit} (queue, max_running) VALUES (?, 0)", name)
    for name in closed:
        parts = [f"p{n}" for n in range(300)]
        harness.add_all(*[new_job(queue=name, priority=-5, partition=part) for part in parts])
    (job,) = add(harness, 1, queue="open")
    got = [harness.claim(1) for _ in range(6)]
    assert [lease.id for leases in got for lease in leases] == [job]


def test_queues_whose_partitions_are_all_closed_do_not_shut_out_the_others(
    harness: StoreHarness, queues: Queues
) -> None:
    """To look for an open one among many partitions is as much as to go over many jobs."""
    for name in (closed := [f"c{n:02}" for n in range(MAX_LOOKS // LOOKS_OVER_MANY + 1)]):
        queues.limit(name, per_partition=PerPartition(max_running=0))
    for name in closed:
        parts = [f"p{n}" for n in range(300)]
        harness.add_all(*[new_job(queue=name, priority=-5, partition=part) for part in parts])
    (job,) = add(harness, 1, queue="open")
    assert harness.claim(1) == []
    assert harness.ids(harness.claim(1)) == [job]


@pytest.mark.parametrize("partitions", [20, 60])
def test_partitions_of_other_types_cost_a_claim_as_much_as_many_jobs(
    harness: StoreHarness, queues: Queues, partitions: int
) -> None:
    """Counted in full, 20 queues took 5 and 11 claims; not counted, all of them delayed one."""
    parts = [f"p{n}" for n in range(partitions)]
    for name in (others := [f"c{n:02}" for n in range(20)]):
        queues.limit(name, per_partition=PerPartition())
        jobs = [new_job(type="other", queue=name, priority=-5, partition=part) for part in parts]
        harness.add_all(*jobs)
    harness.clock.advance(TICK)
    (job,) = add(harness, 1, queue="open", type="mail")
    at_once = MAX_LOOKS // LOOKS_OVER_MANY
    for _ in range(len(others) // at_once):
        assert harness.claim(1, types=("mail",)) == []
    assert harness.ids(harness.claim(1, types=("mail",))) == [job]


@on_postgres
def test_a_queue_that_another_claim_has_locked_is_looked_at_again_at_once(
    harness: StoreHarness, queues: Queues
) -> None:
    queues.limit("q", max_running=1)
    add(harness, 2)
    stop = harness.store.on_work(lambda: None)
    wait_until(lambda: harness.store.read.hears, "the watch to begin")
    ask = lambda: harness.store.exchange((), claim_request(9, next_due=True)).result()  # noqa: E731
    with harness.sql.transaction():
        harness.sql.run("SELECT FROM {queue_limit} FOR UPDATE")
        answer = ask()
    assert (answer.leases, answer.next_due) == ([], BUSY_AGAIN_SECONDS)
    assert len(ask().leases) == 1
    assert ask().next_due == 1.0
    stop()


@pytest.mark.parametrize("closes", ["max_running", "rate", "partitions", "per_rate"])
def test_before_a_closed_queue_the_time_to_look_again_is_known(
    harness: StoreHarness, queues: Queues, closes: str
) -> None:
    """As solid_queue#630: a queue that is full must not keep workers busy."""
    {
        "max_running": lambda: queues.limit("q", max_running=1),
        "rate": lambda: queues.limit("q", rate="1/10s"),
        "partitions": lambda: queues.limit("q", per_partition=PerPartition(max_running=1)),
        "per_rate": lambda: queues.limit("q", per_partition=PerPartition(rate="100/10s", burst=1)),
    }[closes]()
    stop = harness.store.on_work(lambda: None)
    wait_until(lambda: harness.store.read.hears, "the watch to begin")
    add(harness, 2, "a")
    assert len(harness.claim(9)) == 1
    exchange = harness.store.exchange((), claim_request(9, next_due=True)).result()
    stop()
    assert exchange.leases == []
    expected = {"max_running": 1, "rate": 10, "partitions": 1, "per_rate": 0.1}[closes]
    assert exchange.next_due == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("end", [report_completed, report_failed, report_released])
def test_the_end_of_a_job_notifies_those_that_wait_for_its_place(
    harness: StoreHarness, queues: Queues, end: Any
) -> None:
    queues.limit("q", max_running=1)
    add(harness, 2)
    (lease,) = harness.claim(9)
    notified = threading.Event()
    other = open_store(harness.url)
    stop = other.on_work(notified.set)
    try:
        wait_until(lambda: other.read.hears, "the watch to begin")
        notified.clear()
        harness.report(end(lease))
        assert notified.wait(5)
    finally:
        stop()
        other.close()


# --- what is shown


def test_partitions_are_listed_fullest_first_with_what_differs(
    harness: StoreHarness, queues: Queues
) -> None:
    queues.limit("q", per_partition=PerPartition(max_running=2))
    add(harness, 3, "a")
    add(harness, 5, "b")
    add(harness, 1, None)
    queues.limit_partition("q", "c", weight=3, max_running=7)
    queues.pause_partition("q", "d", actor="ada", reason="late payer")
    assert len(harness.claim(9)) == 5
    found = queues.partitions("q")
    assert [(each.partition, each.pending, each.running) for each in found] == [
        ("b", 3, 2),
        ("a", 1, 2),
        ("", 0, 1),
        ("c", 0, 0),
        ("d", 0, 0),
    ]
    assert (found[3].weight, found[3].max_running) == (3, 7)
    assert (found[4].paused_by, found[4].pause_reason) == ("ada", "late payer")
    assert [each.partition for each in queues.partitions("q", 2)] == ["b", "a"]
    (state,) = queues.list()
    assert state.running == 5
    assert queues.partitions("other") == []
