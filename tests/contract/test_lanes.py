"""Claims among more lanes, or more jobs of other types, than one claim looks at."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tenure import PerPartition, Tenure
from tenure.rules.reports import Lease
from tenure.store import lanes
from tenure.store.lanes import (
    IN_ORDER_AGAIN,
    LOOKS_OVER_PARTITIONS,
    MAX_KNOWN,
    MAX_LANES,
    MAX_LOOKS,
    MAX_SEEN,
    WALK_AGAIN,
)
from tests.support.clock import TICK
from tests.support.store import StoreHarness, new_job, report_completed, report_released

LANES = 5 * MAX_LANES


def add_lanes(harness: StoreHarness, name: str = "q{:05}", **fields: object) -> None:
    harness.add_all(*[new_job(queue=name.format(n), **fields) for n in range(LANES)])


def claims_until(claim: Callable[[], list[Lease]], most: int) -> int:
    """How many claims it takes until one brings a job."""
    for claims in range(1, most + 1):
        if claim():
            return claims
    raise AssertionError(f"no job after {most} claims")


@pytest.mark.scenario(104)
@pytest.mark.parametrize("queues", [("old",), ("q00000", "old", "zz")])
def test_a_named_queue_is_found_at_once_among_any_number_that_wait(
    harness: StoreHarness, queues: tuple[str, ...]
) -> None:
    job = harness.add(queue="old")
    add_lanes(harness, delay=3600)
    assert harness.ids(harness.claim(9, queues=queues)) == [job.id]


@pytest.mark.scenario(104)
def test_many_named_queues_are_looked_at_in_turn(harness: StoreHarness) -> None:
    names = tuple(f"q{n}" for n in range(9))
    job = harness.add(queue="q8", priority=7)
    wide = [new_job(queue=q, priority=p, delay=60) for q in names for p in range(-100, 101)]
    harness.add_all(*wide)
    assert claims_until(lambda: harness.claim(9, queues=names), 5) > 1
    assert harness.get(job.id).status == "processing"
    assert harness.claim(9, queues=names) == []


@pytest.mark.scenario(104)
def test_a_due_job_is_found_among_lanes_that_wait(harness: StoreHarness) -> None:
    job = harness.add(queue="zz")
    add_lanes(harness, delay=3600)
    assert claims_until(lambda: harness.claim(9), LANES // MAX_LANES + 1) > 1
    assert harness.get(job.id).status == "processing"
    later = harness.add(queue="yy")
    assert harness.ids(harness.claim(9)) == [later.id]  # one of the newest is found at once


@pytest.mark.scenario(104)
def test_a_due_job_is_found_when_one_lane_becomes_many(harness: StoreHarness) -> None:
    """The claim of one statement, which served that lane, cannot see all of them."""
    harness.report(report_completed(harness.take(queue="a")))
    harness.report(report_completed(harness.take(queue="a")))
    job = harness.add(queue="zz")
    add_lanes(harness, delay=3600)
    claims_until(lambda: harness.claim(9), LANES // MAX_LANES + 2)
    assert harness.get(job.id).status == "processing"


@pytest.mark.scenario(104)
def test_a_paused_queue_is_not_served_among_many(harness: StoreHarness) -> None:
    harness.set_queue("paused", paused=True)
    add_lanes(harness, delay=3600)
    harness.add(queue="paused")
    assert [harness.claim(9) for _ in range(9)] == [[]] * 9
    harness.set_queue("paused", paused=False)
    assert len(harness.claim(9)) == 1


@pytest.mark.scenario(104)
@pytest.mark.requirement("C18")
@pytest.mark.parametrize("name", ["a", "zz"])
@pytest.mark.parametrize("limit", [1, 4])
def test_an_old_queue_gets_its_turns_however_many_new_ones_there_are(
    harness: StoreHarness, limit: int, name: str
) -> None:
    harness.clock.set(datetime.now(UTC).replace(microsecond=0))  # as ids have it
    harness.add_all(*[new_job(queue=name) for _ in range(10)])
    # A time in the past does not help: a job waits since it was added.
    add_lanes(harness, run_at=harness.clock.now - timedelta(days=1))
    got = [lease.queue for _ in range(48 // limit) for lease in harness.claim(limit)]
    assert len(got) == 48
    assert got.count(name) == 10


@pytest.mark.scenario(104)
def test_every_job_of_many_lanes_is_claimed_once_and_urgent_ones_early(
    harness: StoreHarness,
) -> None:
    add_lanes(harness, "a{:05}")
    add_lanes(harness, "b{:05}", priority=-1)
    seen: list[Lease] = []
    while leases := harness.claim(100):
        seen += leases
    assert len({lease.id for lease in seen}) == len(seen) == 2 * LANES
    urgent = [lease.queue.startswith("b") for lease in seen]
    assert sum(urgent[: LANES + 3 * MAX_LANES]) == LANES


@pytest.mark.scenario(104)
def test_a_worker_passes_over_jobs_of_other_types_in_bounded_steps(harness: StoreHarness) -> None:
    back = harness.take()  # before them all
    for _ in range(3):
        harness.add_all(*[new_job("other") for _ in range(MAX_SEEN)])
    harness.clock.advance(TICK)
    job = harness.add()
    claim = lambda: harness.claim(9, types=("mail",))  # noqa: E731
    assert claims_until(claim, 4) > 2
    assert harness.get(job.id).status == "processing"
    later = harness.add()
    assert harness.ids(claim()) == [later.id]  # from the mark on
    harness.report(report_released(back))  # to its old place, which was passed over
    assert claim() == []
    harness.clock.advance(WALK_AGAIN.total_seconds())
    assert harness.ids(claim()) == [back.id]
    assert harness.report(report_completed(back))[0].answer != "recorded"
    assert len(harness.claim(9, types=("other",))) == 9  # another worker passes over nothing


def test_what_was_passed_over_is_forgotten_when_the_clock_is_put_back(
    harness: StoreHarness,
) -> None:
    """New jobs came before what was passed over, and were not found until the old time came."""
    for _ in range(2):
        harness.add_all(*[new_job("other") for _ in range(MAX_SEEN)])
    claim = lambda: harness.claim(9, types=("mail",))  # noqa: E731
    assert [claim() for _ in range(4)] == [[]] * 4
    harness.clock.advance(-3600)
    job = harness.add()
    assert harness.ids(claim()) == [job.id]


def test_lanes_of_other_types_do_not_use_up_every_look(harness: StoreHarness) -> None:
    harness.add_all(*[new_job("other", queue=f"q{n:05}") for n in range(MAX_LANES - 2)])
    job = harness.add(queue="zz")
    claimed = claims_until(lambda: harness.claim(9, types=("mail",)), 3)
    assert claimed > 1
    assert harness.get(job.id).status == "processing"


EACH_TRIED = 2 * 201 * LOOKS_OVER_PARTITIONS // MAX_LOOKS + 2
"""Claims after which each of 201 closed lanes was tried, wherever the round began."""


def add_paused(app: Tenure, harness: StoreHarness, priorities: int) -> None:
    """A customer who is paused has a job of every priority."""
    app.queues.limit("q", per_partition=PerPartition())
    app.queues.pause_partition("q", "bad")
    wide = range(100 - priorities + 1, 101)
    harness.add_all(*[new_job(queue="q", partition="bad", priority=p) for p in wide])


def test_a_few_closed_lanes_change_no_order(app: Tenure, harness: StoreHarness) -> None:
    """Each counted as sixteen looks, whatever it took: behind eight of them nothing was found."""
    add_paused(app, harness, 20)
    last = [harness.add(queue="q", partition="good", priority=100).id for _ in range(3)]
    assert harness.ids(harness.claim()) == last[:1]
    urgent = harness.add(queue="q", partition="good", priority=81)
    assert harness.ids(harness.claim(3)) == [urgent.id, *last[1:]]


def test_closed_lanes_cannot_hide_a_lane_for_ever(app: Tenure, harness: StoreHarness) -> None:
    """Once every lane had been tried in vain, claims tried only the first ones again."""
    add_paused(app, harness, 201)
    for _ in range(4):
        assert [harness.claim() for _ in range(5)] == [[]] * 5
        job = harness.add(queue="q", partition="good", priority=100)
        claims_until(harness.claim, EACH_TRIED)
        assert harness.get(job.id).status == "processing"


def test_lanes_of_other_types_cannot_hide_a_lane_for_ever(harness: StoreHarness) -> None:
    harness.add_all(*[new_job("other", queue=f"q{n:05}") for n in range(MAX_LANES - 2)])
    claim = lambda: harness.claim(types=("mail",))  # noqa: E731
    for _ in range(4):
        assert [claim() for _ in range(5)] == [[]] * 5
        job = harness.add(queue=f"q{MAX_LANES - 3:05}")
        claims_until(claim, 3)
        assert harness.get(job.id).status == "processing"


@pytest.mark.parametrize("others", [300, MAX_KNOWN + 200])
def test_urgent_lanes_of_other_types_cannot_hide_a_lane_for_ever(
    harness: StoreHarness, others: int
) -> None:
    """Each search found them again, and they were tried before it again."""
    harness.add_all(*[new_job("other", queue=f"q{n:05}") for n in range(others)])
    claim = lambda: harness.claim(types=("mail",))  # noqa: E731
    for _ in range(4):
        assert [claim() for _ in range(5)] == [[]] * 5
        job = harness.add(queue="aa", priority=100)
        claims_until(claim, 2 * others // MAX_LOOKS + 2)
        assert harness.get(job.id).status == "processing"


def test_a_lane_that_always_has_a_job_keeps_no_closed_one_from_its_turn(
    app: Tenure, harness: StoreHarness
) -> None:
    """It was never tried in vain, so claims waited for that and tried the first ones again."""
    add_paused(app, harness, 201)
    for _ in range(4):
        harness.add(queue="other", priority=-100)
        assert len(harness.claim(5)) == 1
    job = harness.add(queue="q", partition="good", priority=100)
    for _ in range(EACH_TRIED):
        harness.add(queue="other", priority=-100)
        harness.claim(5)
    assert harness.get(job.id).status == "processing"


def test_a_claim_that_urgent_jobs_fill_does_not_begin_the_round_again(
    harness: StoreHarness,
) -> None:
    """A worker for one job at a time: each second it forgot which lanes it had tried."""
    others = 4 * MAX_LOOKS
    harness.add_all(*[new_job("other", queue=f"q{n:05}") for n in range(others)])
    job = harness.add(queue="zz", priority=100)
    taken: list[str] = []
    for _ in range(4 * others // MAX_LOOKS):
        harness.add(queue="feed", priority=-100)
        taken += harness.ids(harness.claim(types=("mail",)))
        harness.clock.advance(2 * IN_ORDER_AGAIN.total_seconds())
        taken += harness.ids(harness.claim(types=("mail",)))
    assert len(taken) > others // MAX_LOOKS
    assert job.id in taken


def test_a_backlog_does_not_hide_urgent_jobs_of_lanes_that_were_closed(
    app: Tenure, harness: StoreHarness
) -> None:
    add_paused(app, harness, 201)
    harness.add_all(*[new_job(queue="q", partition="good", priority=100) for _ in range(30)])
    claims_until(harness.claim, EACH_TRIED)  # the others are tried now, and are looked at last
    assert all(harness.claim() for _ in range(5)), "claims looked at closed lanes first again"
    urgent = harness.add(queue="q", partition="good", priority=-100)
    harness.clock.advance(IN_ORDER_AGAIN.total_seconds())
    claimed = [job for _ in range(6) for job in harness.ids(harness.claim())]
    assert urgent.id in claimed


def test_more_closed_lanes_than_are_known_cannot_hide_a_lane(
    app: Tenure, harness: StoreHarness
) -> None:
    """Of those tried in vain so many were remembered. Then the first ones were tried again."""
    queues = [f"q{n:05}" for n in range(MAX_KNOWN + 100)]
    for queue in queues:
        app.queues.limit(queue, per_partition=PerPartition(max_running=0))
    harness.add_all(*[new_job(queue=queue) for queue in queues])
    job = harness.add(queue="zz", priority=5)
    claims_until(harness.claim, len(queues) * LOOKS_OVER_PARTITIONS // MAX_LOOKS + 2)
    assert harness.get(job.id).status == "processing"


@pytest.mark.parametrize(
    "limits", [{"max_running": 0}, {"per_partition": PerPartition(max_running=0)}]
)
def test_what_is_known_of_closed_lanes_is_bounded(
    app: Tenure, harness: StoreHarness, monkeypatch: pytest.MonkeyPatch, limits: dict[str, Any]
) -> None:
    monkeypatch.setattr(lanes, "MAX_PLACES", 50)
    queues = [f"q{n:05}" for n in range(MAX_LANES + 50)]
    for queue in queues:
        app.queues.limit(queue, **limits)
    harness.add_all(*[new_job(queue=queue) for queue in queues])
    for _ in range(20):
        assert harness.claim() == []
        (view,) = harness.store._databases[0]._lanes._views.values()  # type: ignore[attr-defined]
        assert len(view.tried) < 50 + MAX_LOOKS
