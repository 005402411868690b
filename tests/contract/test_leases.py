"""Leases between claim and report: renewed, run out, handed back."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from tenure.events import Cancelled
from tenure.retry import RetryPolicy
from tenure.rules.reports import Answer, Duty, Lease, Verdict
from tenure.store import open_store
from tenure.values.ids import new_id
from tests.contract.granted_role import also_as_granted_role
from tests.support.clock import TICK
from tests.support.graphs import CLAIMED
from tests.support.store import (
    LEASE_SECONDS,
    MALFORMED_IDS,
    RECORDED,
    StoreHarness,
    new_job,
    report_completed,
    report_failed,
    report_interrupted,
    report_released,
    report_snoozed,
)
from tests.support.waiting import wait_until

# --- renewing ---------------------------------------------------------------------------------


@also_as_granted_role
def test_a_heartbeat_counts_from_now(harness: StoreHarness) -> None:
    lease = harness.take()
    harness.clock.advance(20)
    assert harness.store.renew([(lease.id, lease.lease_id)], 60) == {lease.lease_id}
    assert harness.get(lease.id).lease_expires_at == harness.clock.now + timedelta(seconds=60)
    assert harness.events(lease.id) == ["enqueued", "claimed"]


@pytest.mark.scenario(70)
def test_a_heartbeat_never_shortens_a_lease(harness: StoreHarness) -> None:
    lease = harness.take()
    until = harness.get(lease.id).lease_expires_at
    for seconds in (0, 1, LEASE_SECONDS - TICK):
        assert harness.store.renew([(lease.id, lease.lease_id)], seconds) == {lease.lease_id}
        assert harness.get(lease.id).lease_expires_at == until
    harness.clock.set(harness.clock.now - timedelta(hours=1))  # a clock that was put back
    assert harness.store.renew([(lease.id, lease.lease_id)], 60) == {lease.lease_id}
    assert harness.get(lease.id).lease_expires_at == until


def test_leases_that_are_not_held_are_left_out(harness: StoreHarness) -> None:
    held, settled, swept, cancelled, given_back = [harness.take() for _ in range(5)]
    harness.report(report_completed(settled), report_released(given_back))
    (again,) = harness.claim()
    harness.store.apply(cancelled.id, Cancelled()).result()
    harness.clock.advance(LEASE_SECONDS - 1)
    harness.store.renew([(job.id, job.lease_id) for job in (held, again)], 60)
    harness.clock.advance(1)
    harness.store.sweep().result()
    everything = [held, settled, swept, cancelled, given_back, again]
    wanted = [(lease.id, lease.lease_id) for lease in everything]
    before = harness.sql.contents()
    assert harness.store.renew(wanted, 1) == {held.lease_id, again.lease_id}
    assert harness.sql.contents() == before
    assert harness.store.renew([], 60) == set()


def test_a_forged_lease_is_not_renewed(harness: StoreHarness) -> None:
    lease, other = harness.take(), harness.take()
    forged = [
        (lease.id, other.lease_id),
        (lease.id, str(uuid4())),
        (new_id(), lease.lease_id),
        *((text, lease.lease_id) for text in MALFORMED_IDS),
        *((lease.id, text) for text in MALFORMED_IDS),
    ]
    before = harness.sql.contents()
    assert harness.store.renew(forged, 3600) == set()
    assert harness.store.renew([forged[-1], (lease.id, lease.lease_id)], 60) == {lease.lease_id}
    assert harness.sql.contents() == before


def test_a_lease_that_ran_out_unnoticed_can_still_be_renewed(harness: StoreHarness) -> None:
    lease = harness.take()
    harness.clock.advance(2 * LEASE_SECONDS)
    assert harness.store.renew([(lease.id, lease.lease_id)], 60) == {lease.lease_id}
    assert harness.store.sweep().result() == []
    assert harness.report(report_completed(lease)) == [RECORDED]


# --- the sweep --------------------------------------------------------------------------------


def test_the_sweep_ends_a_lease_exactly_at_its_end(harness: StoreHarness) -> None:
    lease = harness.take(max_retries=2, backoff=RetryPolicy(base=100, factor=1, cap=100))
    harness.clock.advance(LEASE_SECONDS - TICK)
    assert harness.store.sweep().result() == []
    harness.clock.advance(TICK)
    ((ended, retried),) = harness.store.sweep().result()
    job = harness.get(lease.id)
    assert (ended.event, ended.status, ended.actor) == ("lease_expired", "failed", "sweep")
    assert retried == job
    assert (job.status, job.attempts, job.token, job.lease_id) == ("pending", 1, 1, None)
    assert 90 <= (job.run_at - harness.clock.now).total_seconds() <= 100
    expiry, retry = harness.history(job.id)[-2:]
    assert (expiry.event, retry.event) == ("lease_expired", "retried")
    assert (expiry.source, expiry.target) == ("processing", "failed")
    assert (expiry.lease_id, expiry.actor, expiry.at) == (
        lease.lease_id,
        "sweep",
        harness.clock.now,
    )
    assert "w1" in (expiry.detail or "")
    assert harness.store.sweep().result() == []


@also_as_granted_role
def test_a_sweep_spends_the_budget_like_any_failure(harness: StoreHarness) -> None:
    job = harness.add(max_retries=2)
    for attempt in (1, 2):
        (lease,) = harness.claim()
        assert lease.attempts == attempt
        harness.clock.advance(LEASE_SECONDS)
        (swept,) = harness.store.sweep().result()
        assert [row.status for row in swept] == ["failed", "pending"][: 3 - attempt]
        harness.clock.advance(3600)
    end = harness.get(job.id)
    assert (end.status, end.attempts) == ("failed", 2)
    assert end.finished_at is not None
    assert harness.events(job.id) == [
        "enqueued",
        *("claimed", "lease_expired", "retried"),
        *("claimed", "lease_expired"),
    ]
    assert harness.claim() == []


@pytest.mark.parametrize("lanes", [1, 2])  # on PostgreSQL they are claimed in two ways
def test_a_job_that_lost_its_lease_is_alone_until_an_attempt_fails_otherwise(
    harness: StoreHarness, lanes: int
) -> None:
    job = harness.add(max_retries=9, backoff=RetryPolicy(base=0))

    def claimed() -> Lease:
        harness.clock.advance(1)
        if lanes == 2:
            harness.add("other", queue="other")
        (lease,) = harness.claim(types=("mail",))
        assert lease.id == job.id
        return lease

    assert not claimed().alone
    harness.clock.advance(LEASE_SECONDS)
    harness.store.sweep().result()
    for report in (report_interrupted, report_released, report_snoozed):
        lease = claimed()
        assert lease.alone
        harness.report(report(lease))
    for error in ("the child process died: exit code 1", "the child process timed out", "boom"):
        lease = claimed()
        assert lease.alone
        harness.report(report_failed(lease, error))
    assert not claimed().alone


def test_the_sweep_leaves_alone_what_still_runs_or_rests(harness: StoreHarness) -> None:
    over, renewed = harness.take(), harness.take()
    harness.clock.advance(LEASE_SECONDS)
    harness.store.renew([(renewed.id, renewed.lease_id)], TICK)
    late = harness.take()
    harness.report(report_completed(late))
    harness.add()
    assert [steps[0].id for steps in harness.store.sweep().result()] == [over.id]
    assert harness.get(renewed.id).status == "processing"
    harness.clock.advance(TICK)
    assert [steps[0].id for steps in harness.store.sweep().result()] == [renewed.id]


@pytest.mark.requirement("C22")
def test_a_sweep_takes_no_more_than_its_limit_and_the_oldest_first(harness: StoreHarness) -> None:
    leases = []
    for _ in range(5):
        leases.append(harness.take())
        harness.clock.advance(1)
    harness.clock.advance(LEASE_SECONDS)
    swept = [[steps[0].id for steps in harness.store.sweep(limit=2).result()] for _ in range(4)]
    assert [len(ids) for ids in swept] == [2, 2, 1, 0]
    assert sorted(swept[0]) == sorted(lease.id for lease in leases[:2])
    assert sorted(swept[1]) == sorted(lease.id for lease in leases[2:4])


@pytest.mark.scenario(25)
def test_sweeps_at_once_end_each_lease_once(harness: StoreHarness, database_url: str) -> None:
    harness.add_all(*[new_job() for _ in range(200)])
    harness.claim(limit=200)
    harness.clock.advance(LEASE_SECONDS)
    stores = [open_store(database_url) for _ in range(3)]
    try:
        sweeps = [store.sweep(limit=50) for _ in range(10) for store in stores]
        swept = [steps[0].id for sweep in sweeps for steps in sweep.result()]
    finally:
        for store in stores:
            store.close()
    swept += [steps[0].id for steps in harness.store.sweep(limit=200).result()]
    assert len(swept) == len(set(swept)) == 200
    events = [entry.event for entry in harness.ledger()]
    assert events.count("lease_expired") == events.count("retried") == 200


@pytest.mark.scenario(22)
def test_a_report_beats_the_sweep_or_loses_to_it_whole(harness: StoreHarness) -> None:
    for _ in range(20):
        lease = harness.take(max_retries=1)
        harness.clock.advance(LEASE_SECONDS)
        futures = (harness.store.exchange([report_completed(lease)], None), harness.store.sweep())
        (answer,), swept = futures[0].result().verdicts, futures[1].result()
        if answer == RECORDED:
            assert (harness.get(lease.id).status, swept) == ("completed", [])
        else:
            assert answer == Verdict(Answer.LOST, "lease_expired")
            assert harness.get(lease.id).status == "failed"


# --- handing back -----------------------------------------------------------------------------


def test_a_job_handed_back_is_due_at_once_and_charged_nothing(harness: StoreHarness) -> None:
    lease = harness.take(max_retries=1)
    harness.clock.advance(1)
    assert harness.report(report_released(lease)) == [RECORDED]
    job = harness.get(lease.id)
    assert (job.status, job.attempts, job.token) == ("pending", 0, 1)
    assert job.run_at <= harness.clock.now
    entry = harness.history(job.id)[-1]
    assert (entry.event, entry.source, entry.target) == ("released", "processing", "pending")
    assert (entry.attempt, entry.token, entry.lease_id) == (1, 1, lease.lease_id)
    assert entry.at == harness.clock.now
    (again,) = harness.claim()
    assert (again.attempts, again.token) == (1, 2)


@pytest.mark.parametrize("max_retries", [0, 1, 2])
def test_a_job_handed_back_a_hundred_times_has_had_enough(
    harness: StoreHarness, max_retries: int
) -> None:
    job = harness.add(max_retries=max_retries, backoff=RetryPolicy(base=0, factor=1, cap=0))
    for count in range(1, 101):
        (lease,) = harness.claim()
        assert (lease.attempts, lease.token) == (1, count)
        assert harness.report(report_released(lease)) == [RECORDED]
    for failure in range(1, max(max_retries, 1) + 1):
        (lease,) = harness.claim()
        assert lease.attempts == failure
        as_failure = Verdict(Answer.CONFLICT, "failed")  # and that is what the worker is told
        assert harness.report(report_released(lease)) == [as_failure]
        assert harness.report(report_released(lease)) == [as_failure]
    end = harness.get(job.id)
    assert (end.status, end.attempts) == ("failed", max(max_retries, 1))
    assert "released or interrupted 100 times" in (end.last_error or "")
    assert harness.claim() == []


def test_handing_back_and_failing_mix(harness: StoreHarness) -> None:
    lease = harness.take(max_retries=2, backoff=RetryPolicy(base=0, factor=1, cap=0))
    harness.report(report_failed(lease))
    for _ in range(3):
        (lease,) = harness.claim()
        assert lease.attempts == 2
        harness.report(report_released(lease))
    (lease,) = harness.claim()
    harness.report(report_failed(lease))
    end = harness.get(lease.id)
    assert (end.status, end.attempts, end.token) == ("failed", 2, 5)


def test_the_sweep_ends_a_lease_that_sql_has_shortened(harness: StoreHarness) -> None:
    lease = harness.take(max_retries=1)
    harness.clock.advance(2)
    assert harness.store.sweep().result() == []  # after this, it would look at the lease's end
    sooner = harness.sql.later("started_at", 5)
    harness.sql.run(f"UPDATE {{job}} SET lease_expires_at = {sooner}")
    harness.clock.advance(3)
    ((ended,),) = harness.store.sweep().result()
    assert (ended.id, ended.event) == (lease.id, "lease_expired")


def test_the_sweep_ends_a_lease_that_sql_began_tomorrow(harness: StoreHarness) -> None:
    """Its end decides, not its start."""
    job = harness.add(max_retries=1)
    claimed = CLAIMED.replace("{later}", harness.sql.later("run_at", 5)).replace(
        "started_at = {now}", f"started_at = {harness.sql.later('run_at', 86_400)}"
    )
    harness.sql.run(f"UPDATE {{job}} SET {claimed}")
    harness.clock.advance(5)
    ((ended,),) = harness.store.sweep().result()
    assert (ended.id, ended.event) == (job.id, "lease_expired")


def test_what_is_new_is_left_for_a_second(harness: StoreHarness) -> None:
    """So of many processes that look each second, one does the regular duties."""

    def found() -> set[Duty]:
        return {*harness.store.look()} & {Duty.LEASES, Duty.TRANSITIONS}

    harness.add()
    harness.claim()
    assert found() == set()
    harness.clock.advance(1)
    on_postgres = harness.store.read.dialect.engine == "postgres"
    wait_until(lambda: Duty.TRANSITIONS in found(), "older transactions to end")
    assert (Duty.LEASES in found()) == on_postgres
    assert harness.store.sweep().result() == []
    while harness.store.update_stats():
        pass
    assert found() == set()
