"""`verify` counts again, from the ledger, what limits allowed, and what follows the jobs."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tenure import PerPartition, Tenure
from tenure.app.queues import Queues
from tenure.store import audit
from tenure.store.audit import FOLLOWED, HELD
from tests.support.store import StoreHarness, new_job, report_completed, report_failed

START = (
    "UPDATE {job} SET status = 'processing', attempts = attempts + 1, token = token + 1,"
    " lease_id = {new_lease}, lease_expires_at = {later}, started_at = {now}, worker = 'w',"
    " event = 'claimed', actor = 'w' WHERE status = 'pending'"
)
UNGUARDED = {
    "sqlite": ("DROP TRIGGER tenure_limited_starts",),
    "postgres": (
        "CREATE OR REPLACE FUNCTION tenure.admit(of text, ids uuid[], partitions text[],"
        " starts timestamptz[]) RETURNS void LANGUAGE sql AS $$ INSERT INTO tenure.slot"
        " SELECT of, mine, id FROM unnest(ids, partitions) AS one (id, mine) $$",
    ),
}
"""What lets any number of jobs start."""


@pytest.fixture
def queues(unaudited_harness: StoreHarness) -> Iterator[Queues]:
    with Tenure(unaudited_harness.url) as app:
        yield app.queues


def add(harness: StoreHarness, count: int, partition: str | None = None) -> None:
    harness.add_all(*[new_job(queue="q", partition=partition) for _ in range(count)])


def found(harness: StoreHarness, invariant: str = HELD) -> set[str]:
    return {what for name, _, what in harness.store.read.violations(100) if name == invariant}


def unguarded(harness: StoreHarness) -> None:
    for statement in UNGUARDED[harness.sql.engine]:
        harness.sql.run(statement)


def one_more(harness: StoreHarness, partition: str | None = None) -> None:
    """Start a job that the limits do not allow."""
    add(harness, 1, partition)
    harness.sql.run(START)


def test_a_true_history_has_no_finding(harness: StoreHarness, queues: Queues) -> None:
    """With limits that are lowered under load, raised, removed and set again, and jobs pruned."""
    add(harness, 40, "a")
    add(harness, 20, "b")
    first = harness.claim(9)  # before there is a limit
    for setting in (7, 3, 12, None, 2, 0, 5):
        queues.limit("q", max_running=setting, per_partition=PerPartition(rate="4/2s", burst=2))
        queues.limit_partition("q", "a", max_running=None if setting is None else setting // 2)
        held = harness.claim(20)
        for lease in (*held[::2], *first[:2]):
            harness.report(report_completed(lease))
        first = [*first[2:], *held[1::2]]
        harness.clock.advance(3)
    queues.limit("q", max_running=None, per_partition=None)
    harness.measure()
    assert harness.prune({"completed": harness.clock.now}) > 0
    assert found(harness) == set()


def test_one_over_is_found_in_the_ledger(unaudited_harness: StoreHarness, queues: Queues) -> None:
    harness = unaudited_harness
    queues.limit("q", max_running=2, per_partition=PerPartition(max_running=1))
    add(harness, 1, "a")
    add(harness, 1, "b")
    leases = harness.claim(5)
    assert len(leases) == 2
    unguarded(harness)
    one_more(harness, "a")
    harness.report(*map(report_completed, leases))  # that only history knows
    assert found(harness) == {
        "3 of queue q at once, 2 allowed",
        "2 of partition 'a' of queue q at once, 1 allowed",
    }
    queues.limit("q", max_running=9, per_partition=None)  # then is not now
    assert len(found(harness)) == 2


def test_a_limit_of_a_partition_replaces_that_of_all(
    unaudited_harness: StoreHarness, queues: Queues
) -> None:
    harness = unaudited_harness
    queues.limit("q", per_partition=PerPartition(max_running=1))
    queues.limit_partition("q", "a", max_running=3)
    add(harness, 3, "a")
    assert len(harness.claim(9)) == 3
    assert found(harness) == set()
    unguarded(harness)
    one_more(harness, "a")
    assert found(harness) == {"4 of partition 'a' of queue q at once, 3 allowed"}


@pytest.mark.parametrize("partition", [None, "a"])
def test_one_start_too_many_in_a_time_is_found(
    unaudited_harness: StoreHarness, queues: Queues, partition: str | None
) -> None:
    harness = unaudited_harness
    per = PerPartition(rate="3/10s", burst=3)
    if partition:
        queues.limit("q", per_partition=per)
    else:
        queues.limit("q", rate=per.rate, burst=per.burst)
    add(harness, 9, partition)
    for _ in range(3):
        assert len(harness.claim(9)) == 3
        harness.clock.advance(30)
    assert len(harness.claim(9)) == 0
    assert found(harness) == set()
    add(harness, 3, partition)
    assert len(harness.claim(9)) == 3
    unguarded(harness)
    harness.clock.advance(9)
    one_more(harness, partition)
    name = f"partition '{partition}' of queue q" if partition else "queue q"
    assert found(harness) == {f"4 starts of {name} in 10 s, 3 allowed"}


def test_a_rate_that_is_set_again_begins_again(harness: StoreHarness, queues: Queues) -> None:
    add(harness, 9)
    for _ in range(2):
        queues.limit("q", rate="2/10s", burst=2)
        assert len(harness.claim(9)) == 2
        queues.limit("q", rate=None)
    assert found(harness) == set()


def test_what_does_not_follow_the_jobs_is_found(
    unaudited_harness: StoreHarness, queues: Queues
) -> None:
    harness = unaudited_harness
    queues.limit("q", per_partition=PerPartition(max_running=2), ordered="halt")
    harness.add_all(new_job(queue="q", partition="a", max_retries=1))
    add(harness, 1, "a")
    add(harness, 1, "b")
    failed = next(lease for lease in harness.claim(9) if harness.get(lease.id).partition == "a")
    harness.report(report_failed(failed))
    assert found(harness, FOLLOWED) == set()
    harness.sql.drop_triggers()
    turns = "UPDATE tenure.ready SET partition = NULL"
    if harness.sql.engine == "sqlite":
        turns = "DELETE FROM tenure_turn"
    breaks = {
        "DELETE FROM {slot}": {"processing without a slot"},
        f"INSERT INTO {{slot}} SELECT queue, partition, id FROM {{job}} WHERE id = '{failed.id}'": {
            "a slot in q, failed"
        },
        "DELETE FROM {line} WHERE partition = 'b'": {"processing and in no line"},
        "UPDATE {line} SET partition = 'c' WHERE partition = 'a'": {
            "pending and in no line",
            "in a line of q, no job",
        },
        turns: {"turns of a in q: 0 for 1 pending jobs"},
    }
    for statement, expected in breaks.items():
        before = found(harness, FOLLOWED)
        harness.sql.run(statement)
        assert found(harness, FOLLOWED) - before == expected


def test_windows_are_counted_also_out_of_order() -> None:
    times: list[int] = []
    seen = [audit.busiest(times, at, 1000, 3) for at in (0, 500, 999, 1000, 900, 5000)]
    assert seen == [1, 2, 3, 3, 4, 1]
    assert audit.busiest(times, 2999, 9000, 3) == 1  # a clock that was set back
    for at in range(10_000):
        audit.busiest(times, at * 10, 1000, 3)
    assert len(times) <= 8


def test_a_million_entries_take_seconds() -> None:
    """A fifth of them, on a busy machine."""
    change = ("q", None, '{"max_running": 9, "rate_starts": 100, "rate_seconds": 1}', 0, "", 0)
    rows = (("q", "p", None, 1 - 2 * (n % 2), "", n * 10) for n in range(200_000))
    began = time.process_time()
    assert audit.Replay().findings((change, *rows), 9) == []
    assert time.process_time() - began < 3


def test_the_largest_number_of_each_limit_is_told(
    unaudited_harness: StoreHarness, queues: Queues
) -> None:
    harness = unaudited_harness
    per = PerPartition(max_running=2)
    queues.limit("q", max_running=4, rate="6/1h", burst=6, per_partition=per)
    add(harness, 9, "a")
    add(harness, 9, "b")
    for lease in harness.claim(limit=10):
        harness.report(report_completed(lease))
    harness.claim(limit=10)
    queues.limit("q", max_running=1)
    seen: list[str] = []
    assert harness.store.read.violations(100, seen=seen.append) == []
    assert seen[0].startswith("partition ")
    assert seen[0].endswith("of queue q: 2 of 2 at once")
    assert seen[1:] == ["queue q: 6 of 6 starts in 3600 s", "queue q: 4 of 4 at once"]
