"""What a claim that brings nothing says of the next job, so that nobody has to ask before."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from tenure import PerPartition, Tenure
from tenure.store.lanes import BUSY_AGAIN_SECONDS, MAX_LANES
from tests.support.store import StoreHarness, claim_request, new_job
from tests.support.waiting import wait_until


@pytest.fixture
def hearing(harness: StoreHarness) -> Iterator[StoreHarness]:
    """A store that is notified of new jobs."""
    stop = harness.store.on_work(lambda: None)
    wait_until(lambda: harness.store.read.hears, "the watch to begin")
    yield harness
    stop()


def next_due(harness: StoreHarness, **fields: object) -> float | None:
    request = claim_request(1, **{"next_due": True, **fields})
    exchange = harness.store.exchange((), request).result()
    assert exchange.leases == []
    return exchange.next_due


def test_without_jobs_none_will_fall_due(hearing: StoreHarness) -> None:
    assert next_due(hearing) == math.inf
    assert next_due(hearing, queues=("a", "b")) == math.inf
    assert next_due(hearing, next_due=False) is None


def test_the_first_job_of_any_lane_that_is_asked_for_counts(hearing: StoreHarness) -> None:
    hearing.add(delay=60, queue="a")
    hearing.add(delay=20, queue="a", priority=5)
    hearing.add(delay=10, queue="b")
    assert next_due(hearing) == pytest.approx(10, abs=0.01)
    assert next_due(hearing, queues=("a",)) == pytest.approx(20, abs=0.01)
    hearing.clock.advance(4)
    assert next_due(hearing) == pytest.approx(6, abs=0.01)
    hearing.set_queue("b", paused=True)
    assert next_due(hearing) == pytest.approx(16, abs=0.01)


def test_before_a_job_that_cannot_run_here_the_next_is_not_known(hearing: StoreHarness) -> None:
    hearing.add("other")
    hearing.add(delay=10)
    assert next_due(hearing, types=("mail",)) is None


def test_among_too_many_lanes_the_next_is_not_known(hearing: StoreHarness) -> None:
    hearing.add_all(*[new_job(queue=f"q{n}", delay=60) for n in range(MAX_LANES + 1)])
    assert next_due(hearing) is None


def test_lanes_that_are_left_to_the_next_claim_do_not_wait(
    app: Tenure, hearing: StoreHarness
) -> None:
    """A job in one of them waited a second, as behind a closed queue does."""
    app.queues.limit("default", per_partition=PerPartition())
    app.queues.pause_partition("default", "bad")
    wide = range(-100, 101)  # more lanes than one claim looks at
    hearing.add_all(*[new_job(partition="bad", priority=p) for p in wide])
    waits = [next_due(hearing) for _ in range(8)]
    assert {*waits[:5]} <= {BUSY_AGAIN_SECONDS, None}
    assert {*waits} & {1.0, None}, "it asks without a pause when each was tried"


def test_who_is_not_notified_has_to_ask(harness: StoreHarness) -> None:
    assert next_due(harness) is None
