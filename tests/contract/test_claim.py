"""Handing jobs out: which ones, in which order, how many, and to whom."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import chain

import pytest

from tenure.rules.reports import Lease
from tenure.store import open_store
from tenure.webhooks.deliveries import WEBHOOK, queue_of
from tests.contract.granted_role import also_as_granted_role
from tests.support.clock import TICK
from tests.support.store import (
    LEASE_SECONDS,
    StoreHarness,
    claim_request,
    new_job,
    report_completed,
    report_failed,
    report_released,
)


@also_as_granted_role
def test_a_claim_leases_the_job(harness: StoreHarness) -> None:
    job = harness.add("mail", payload='{"to":"ada"}', timeout=5.0, queue="q")
    (lease,) = harness.claim(worker="w7")
    until = harness.clock.now + timedelta(seconds=LEASE_SECONDS)
    assert lease == Lease(job.id, "mail", "q", '{"to":"ada"}', 1, 3, 1, 5.0, lease.lease_id, until)
    stored = harness.get(job.id)
    assert (stored.status, stored.attempts, stored.token) == ("processing", 1, 1)
    assert (stored.lease_id, stored.lease_expires_at) == (lease.lease_id, until)
    assert (stored.worker, stored.started_at) == ("w7", harness.clock.now)
    entry = harness.history(job.id)[-1]
    assert (entry.source, entry.target, entry.event) == ("pending", "processing", "claimed")
    assert (entry.attempt, entry.token, entry.actor) == (1, 1, "w7")
    assert entry.lease_id == lease.lease_id
    assert entry.at == harness.clock.now


def test_a_worker_that_leaves_is_given_nothing(harness: StoreHarness) -> None:
    """Also if it was noted a moment ago, so that there is nothing else to do."""
    harness.claim()
    job = harness.add()
    leaving = claim_request(1, leaves=True)
    assert harness.store.exchange((), leaving).result().leases == []
    assert harness.get(job.id).status == "pending"


def test_a_leased_job_is_not_leased_again(harness: StoreHarness) -> None:
    harness.take()
    harness.clock.advance(3 * LEASE_SECONDS)  # not even when its lease is over: the sweep ends it
    assert harness.claim(limit=10) == []


def test_no_lease_id_comes_twice(harness: StoreHarness) -> None:
    harness.add_all(*[new_job(max_retries=3) for _ in range(50)])
    seen = {lease.lease_id for lease in harness.claim(limit=50)}
    harness.clock.advance(LEASE_SECONDS)
    harness.store.sweep(limit=50).result()
    harness.clock.advance(3600)
    seen |= {lease.lease_id for lease in harness.claim(limit=50)}
    assert len(seen) == 100
    assert all(len(lease_id) >= 32 for lease_id in seen)


def test_each_claim_charges_an_attempt_and_raises_the_token(harness: StoreHarness) -> None:
    job = harness.add(max_retries=3)
    counted = []
    for _ in range(3):
        (lease,) = harness.claim()
        counted.append((lease.attempts, lease.token, lease.max_retries))
        harness.report(report_failed(lease))
        harness.clock.advance(3600)
    assert counted == [(1, 1, 3), (2, 2, 3), (3, 3, 3)]
    assert harness.get(job.id).status == "failed"


# --- order ------------------------------------------------------------------------------------


def test_smaller_priority_first_then_the_one_due_longest_then_the_older_id(
    harness: StoreHarness,
) -> None:
    now = harness.clock.now
    earlier, later = now - timedelta(hours=2), now - timedelta(hours=1)
    late = [new_job(run_at=later), new_job(run_at=later)]  # in the order of their ids
    wanted = [
        new_job(priority=-5, run_at=now),
        new_job(run_at=earlier),  # a larger id than those two
        *late,
        new_job(priority=7, run_at=earlier),
        new_job(priority=7, run_at=now),
    ]
    harness.add_all(*random.Random(1).sample(wanted, len(wanted)))
    claimed = [harness.ids(harness.claim(limit)) for limit in (2, 1, 10)]
    assert list(chain(*claimed)) == [a.id for a in wanted]


def test_a_retried_job_queues_up_behind_those_that_were_due_before(harness: StoreHarness) -> None:
    lease = harness.take(max_retries=2)
    harness.report(report_failed(lease))
    other = harness.add()
    harness.clock.advance(3600)
    assert harness.ids(harness.claim(limit=2)) == [other.id, lease.id]


def test_not_before_its_time(harness: StoreHarness) -> None:
    job = harness.add(delay=10)
    harness.clock.advance(10 - TICK)
    assert harness.claim() == []
    harness.clock.advance(TICK)
    assert harness.ids(harness.claim()) == [job.id]


def test_a_job_that_waits_is_not_taken_along_with_one_that_is_due(harness: StoreHarness) -> None:
    waiting = harness.add(delay=TICK)
    due = harness.add()
    assert harness.ids(harness.claim(limit=5)) == [due.id]
    harness.clock.advance(TICK)
    assert harness.ids(harness.claim(limit=5)) == [waiting.id]


def test_jobs_that_wait_do_not_hide_those_that_are_due(harness: StoreHarness) -> None:
    harness.add_all(*[new_job(delay=60, priority=-1) for _ in range(20)])
    job = harness.add()
    assert harness.ids(harness.claim(limit=5)) == [job.id]


# --- how many ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "claimed"), [(0, 0), (1, 1), (7, 7), (30, 30), (31, 30)])
def test_as_many_as_asked_for_and_there_are(
    harness: StoreHarness, limit: int, claimed: int
) -> None:
    queues = ("a", "b", "c")
    harness.add_all(*[new_job(queue=queues[n % 3], priority=n % 5) for n in range(30)])
    leases = harness.claim(limit)
    assert len(leases) == len({lease.id for lease in leases}) == claimed
    counts = {c.status: 0 for c in harness.store.read.stats.counts()}
    for count in harness.store.read.stats.counts():
        counts[count.status] += count.jobs
    assert counts.get("processing", 0) == claimed


def test_nothing_to_do_is_no_lease(harness: StoreHarness) -> None:
    assert harness.claim(limit=10) == []


# --- queues and types -------------------------------------------------------------------------


def test_only_from_the_queues_asked_for(harness: StoreHarness) -> None:
    jobs = {name: harness.add(queue=name).id for name in ("a", "b", "c")}
    assert harness.claim(limit=9, queues=()) == []
    assert set(harness.ids(harness.claim(limit=9, queues=("b", "c", "unknown")))) == {
        jobs["b"],
        jobs["c"],
    }
    assert harness.ids(harness.claim(limit=9)) == [jobs["a"]]


@pytest.mark.parametrize("types", [None, (WEBHOOK, "mail")], ids=["any type", "both types"])
def test_deliveries_only_go_to_who_names_their_queue(
    harness: StoreHarness, types: tuple[str, ...] | None
) -> None:
    first = harness.add(WEBHOOK, queue=queue_of("shop"), priority=-1)
    for _ in range(2):  # PostgreSQL looks at a lane that is alone in another way
        assert harness.claim(limit=9, types=types) == []
    second = harness.add(WEBHOOK, queue=queue_of("shop"))
    assert harness.claim(limit=9, types=types) == []
    assert (
        harness.claim(limit=9, types=types) == []
    )  # now in a round trip of its own, on PostgreSQL
    mail = harness.add()
    assert harness.ids(harness.claim(limit=9, types=types)) == [mail.id]
    assert harness.claim(limit=9, queues=("default",), types=types) == []
    named = harness.claim(limit=9, queues=("default", queue_of("shop")), types=types)
    assert harness.ids(named) == [first.id, second.id]


def test_of_the_queues_asked_for_every_priority_and_of_others_none(harness: StoreHarness) -> None:
    jobs = {
        (name, priority): harness.add(queue=name, priority=priority).id
        for name in ("a", "b", "c")
        for priority in (1, 2, 3)
    }
    claimed = harness.ids(harness.claim(limit=9, queues=("b",)))
    assert claimed == [jobs["b", priority] for priority in (1, 2, 3)]


def test_a_queue_with_settings_that_is_not_paused_hands_out_as_before(
    harness: StoreHarness,
) -> None:
    harness.set_queue("small", max_pending=9, paused=False)
    jobs = [harness.add(queue="small").id for _ in range(2)]
    assert harness.ids(harness.claim(queues=("small",))) == jobs[:1]
    assert harness.ids(harness.claim()) == jobs[1:]


def test_only_of_the_types_asked_for(harness: StoreHarness) -> None:
    jobs = {name: harness.add(name).id for name in ("mail", "resize", "it:s")}
    assert harness.claim(limit=9, types=("other",)) == []
    assert harness.claim(limit=9, types=()) == []
    assert set(harness.ids(harness.claim(limit=9, types=("resize", "it:s", "it's")))) == {
        jobs["resize"],
        jobs["it:s"],
    }
    left = harness.get(jobs["mail"])  # nobody here runs mail: it waits and is charged nothing
    assert (left.status, left.attempts, left.token) == ("pending", 0, 0)


def test_jobs_of_other_types_do_not_hide_those_asked_for(harness: StoreHarness) -> None:
    harness.add_all(*[new_job("other") for _ in range(50)])
    job = harness.add("mail")
    assert harness.ids(harness.claim(limit=3, types=("mail",))) == [job.id]


def test_a_queue_and_a_type_together(harness: StoreHarness) -> None:
    harness.add("mail", queue="a")
    harness.add("resize", queue="b")
    job = harness.add("mail", queue="b")
    assert harness.ids(harness.claim(limit=9, queues=("b",), types=("mail",))) == [job.id]


def test_a_paused_queue_hands_nothing_out(harness: StoreHarness) -> None:
    held = harness.take(queue="a")
    waiting = harness.add(queue="a")
    other = harness.add(queue="b")
    harness.set_queue("a", paused=True)
    assert harness.ids(harness.claim(limit=9)) == [other.id]
    assert harness.claim(limit=9, queues=("a",)) == []
    assert harness.report(report_completed(held))[0].answer == "recorded"  # what runs goes on
    harness.set_queue("a", paused=False)
    assert harness.ids(harness.claim(limit=9)) == [waiting.id]


@pytest.mark.requirement("C18")
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_queues_of_one_urgency_take_turns(harness: StoreHarness, limit: int) -> None:
    harness.add_all(*[new_job(queue=name) for name in ("a", "b", "c") for _ in range(20)])
    got: Counter[str] = Counter()
    for _ in range(6):
        got.update(lease.queue for lease in harness.claim(limit))
        assert max(got.values()) - min(got[name] for name in ("a", "b", "c")) <= limit
    assert set(got.values()) == {2 * limit}


def test_urgency_goes_before_turns(harness: StoreHarness) -> None:
    harness.add_all(*[new_job(queue=name) for name in ("a", "c") for _ in range(5)])
    urgent = harness.add_all(*[new_job(queue="b", priority=-1) for _ in range(5)])
    claimed = [harness.claim(1)[0].id for _ in range(5)]
    assert sorted(claimed) == sorted(a.job.id for a in urgent)


# --- a turn -----------------------------------------------------------------------------------


@also_as_granted_role
def test_a_turn_reports_first_and_claims_then(harness: StoreHarness) -> None:
    leases = [harness.take() for _ in range(3)]
    waiting = harness.add(delay=1)
    harness.clock.advance(1)
    exchange = harness.store.exchange(
        [
            report_completed(leases[0]),
            report_failed(leases[1], retryable=False),
            report_released(leases[2]),
        ],
        claim_request(limit=10),
    ).result()
    assert [verdict.answer for verdict in exchange.verdicts] == ["recorded"] * 3
    # What was given back in this turn can be taken again in it.
    assert sorted(harness.ids(list(exchange.leases))) == sorted([leases[2].id, waiting.id])


@pytest.mark.scenario(26)
def test_claimers_at_once_never_get_the_same_job(harness: StoreHarness, database_url: str) -> None:
    harness.add_all(*[new_job(queue=f"q{n % 4}", priority=n % 3) for n in range(300)])
    stores = [open_store(database_url) for _ in range(3)]

    def drain(worker: int) -> list[str]:
        mine: list[str] = []
        while (
            leases := stores[worker % 3]
            .exchange((), claim_request(7, f"w{worker}"))
            .result()
            .leases
        ):
            assert len(leases) <= 7
            mine += [lease.id for lease in leases]
        return mine

    try:
        with ThreadPoolExecutor(9) as threads:
            claimed = list(chain(*threads.map(drain, range(9))))
    finally:
        for store in stores:
            store.close()
    # A claimer may come back empty while another holds the last rows locked; nobody gets one twice.
    claimed += harness.ids(harness.claim(limit=300))
    assert len(claimed) == len(set(claimed)) == 300


@pytest.mark.scenario(26)
def test_fifty_claimers_and_one_job(harness: StoreHarness) -> None:
    job = harness.add()
    with ThreadPoolExecutor(50) as threads:
        got = list(threads.map(lambda n: harness.claim(worker=f"w{n}"), range(50)))
    assert harness.ids(list(chain(*got))) == [job.id]
    assert harness.events(job.id) == ["enqueued", "claimed"]


def test_a_claim_that_names_no_queue_skips_every_reserved_queue(harness: StoreHarness) -> None:
    reserved = harness.add(queue="tenure.schedules")
    similar = harness.add(queue="tenures")
    assert harness.ids(harness.claim(limit=9)) == [similar.id]
    assert harness.ids(harness.claim(limit=9, queues=("tenure.schedules",))) == [reserved.id]
