"""Leases between claim and report: renewed, run out, handed back."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from tenure.jobs.ids import new_id
from tenure.jobs.values import Answer, Verdict
from tenure.lifecycle import Cancelled
from tenure.retry import RetryPolicy
from tenure.store import open_store
from tests.contract.granted_role import also_as_granted_role
from tests.support.clock import TICK
from tests.support.store import (
    LEASE_SECONDS,
    MALFORMED,
    RECORDED,
    Desk,
    completed,
    failed,
    new,
    released,
)

# --- renewing ---------------------------------------------------------------------------------


@also_as_granted_role
def test_a_heartbeat_counts_from_now(desk: Desk) -> None:
    lease = desk.take()
    desk.clock.advance(20)
    assert desk.store.renew([(lease.id, lease.lease_id)], 60) == {lease.lease_id}
    assert desk.get(lease.id).lease_expires_at == desk.clock.now + timedelta(seconds=60)
    assert desk.events(lease.id) == ["enqueued", "claimed"]


@pytest.mark.scenario(70)
def test_a_heartbeat_never_shortens_a_lease(desk: Desk) -> None:
    lease = desk.take()
    until = desk.get(lease.id).lease_expires_at
    for seconds in (0, 1, LEASE_SECONDS - TICK):
        assert desk.store.renew([(lease.id, lease.lease_id)], seconds) == {lease.lease_id}
        assert desk.get(lease.id).lease_expires_at == until
    desk.clock.set(desk.clock.now - timedelta(hours=1))  # a clock that was put back
    assert desk.store.renew([(lease.id, lease.lease_id)], 60) == {lease.lease_id}
    assert desk.get(lease.id).lease_expires_at == until


def test_leases_that_are_not_held_are_left_out(desk: Desk) -> None:
    held, settled, swept, cancelled, given_back = [desk.take() for _ in range(5)]
    desk.report(completed(settled), released(given_back))
    (again,) = desk.claim()
    desk.store.apply(cancelled.id, Cancelled()).result()
    desk.clock.advance(LEASE_SECONDS - 1)
    desk.store.renew([(job.id, job.lease_id) for job in (held, again)], 60)
    desk.clock.advance(1)
    desk.store.sweep().result()
    everything = [held, settled, swept, cancelled, given_back, again]
    wanted = [(lease.id, lease.lease_id) for lease in everything]
    before = desk.raw.contents()
    assert desk.store.renew(wanted, 1) == {held.lease_id, again.lease_id}
    assert desk.raw.contents() == before
    assert desk.store.renew([], 60) == set()


def test_a_forged_lease_is_not_renewed(desk: Desk) -> None:
    lease, other = desk.take(), desk.take()
    forged = [
        (lease.id, other.lease_id),
        (lease.id, str(uuid4())),
        (new_id(), lease.lease_id),
        *((text, lease.lease_id) for text in MALFORMED),
        *((lease.id, text) for text in MALFORMED),
    ]
    before = desk.raw.contents()
    assert desk.store.renew(forged, 3600) == set()
    assert desk.store.renew([forged[-1], (lease.id, lease.lease_id)], 60) == {lease.lease_id}
    assert desk.raw.contents() == before


def test_a_lease_that_ran_out_unnoticed_can_still_be_renewed(desk: Desk) -> None:
    lease = desk.take()
    desk.clock.advance(2 * LEASE_SECONDS)
    assert desk.store.renew([(lease.id, lease.lease_id)], 60) == {lease.lease_id}
    assert desk.store.sweep().result() == []
    assert desk.report(completed(lease)) == [RECORDED]


# --- the sweep --------------------------------------------------------------------------------


def test_the_sweep_ends_a_lease_exactly_at_its_end(desk: Desk) -> None:
    lease = desk.take(max_retries=2, backoff=RetryPolicy(base=100, factor=1, cap=100))
    desk.clock.advance(LEASE_SECONDS - TICK)
    assert desk.store.sweep().result() == []
    desk.clock.advance(TICK)
    (swept,) = desk.store.sweep().result()
    job = desk.get(lease.id)
    assert swept == job
    assert (job.status, job.attempts, job.token, job.lease_id) == ("pending", 1, 1, None)
    assert 90 <= (job.run_at - desk.clock.now).total_seconds() <= 100
    expiry, retry = desk.history(job.id)[-2:]
    assert (expiry.event, retry.event) == ("lease_expired", "retried")
    assert (expiry.source, expiry.target) == ("processing", "failed")
    assert (expiry.lease_id, expiry.actor, expiry.at) == (lease.lease_id, "sweep", desk.clock.now)
    assert "w1" in (expiry.detail or "")
    assert desk.store.sweep().result() == []


@also_as_granted_role
def test_a_sweep_spends_the_budget_like_any_failure(desk: Desk) -> None:
    job = desk.add(max_retries=2)
    for attempt in (1, 2):
        (lease,) = desk.claim()
        assert lease.attempts == attempt
        desk.clock.advance(LEASE_SECONDS)
        (swept,) = desk.store.sweep().result()
        assert swept.status == ("pending" if attempt == 1 else "failed")
        desk.clock.advance(3600)
    end = desk.get(job.id)
    assert (end.status, end.attempts) == ("failed", 2)
    assert end.finished_at is not None
    assert desk.events(job.id) == [
        "enqueued",
        *("claimed", "lease_expired", "retried"),
        *("claimed", "lease_expired"),
    ]
    assert desk.claim() == []


def test_the_sweep_leaves_alone_what_still_runs_or_rests(desk: Desk) -> None:
    over, renewed = desk.take(), desk.take()
    desk.clock.advance(LEASE_SECONDS)
    desk.store.renew([(renewed.id, renewed.lease_id)], TICK)
    late = desk.take()
    desk.report(completed(late))
    desk.add()
    assert [job.id for job in desk.store.sweep().result()] == [over.id]
    assert desk.get(renewed.id).status == "processing"
    desk.clock.advance(TICK)
    assert [job.id for job in desk.store.sweep().result()] == [renewed.id]


@pytest.mark.requirement("C22")
def test_a_sweep_takes_no_more_than_its_limit_and_the_oldest_first(desk: Desk) -> None:
    leases = []
    for _ in range(5):
        leases.append(desk.take())
        desk.clock.advance(1)
    desk.clock.advance(LEASE_SECONDS)
    swept = [[job.id for job in desk.store.sweep(limit=2).result()] for _ in range(4)]
    assert [len(ids) for ids in swept] == [2, 2, 1, 0]
    assert sorted(swept[0]) == sorted(lease.id for lease in leases[:2])
    assert sorted(swept[1]) == sorted(lease.id for lease in leases[2:4])


@pytest.mark.scenario(25)
def test_sweeps_at_once_end_each_lease_once(desk: Desk, database_url: str) -> None:
    desk.add_all(*[new() for _ in range(200)])
    desk.claim(limit=200)
    desk.clock.advance(LEASE_SECONDS)
    stores = [open_store(database_url) for _ in range(3)]
    try:
        sweeps = [store.sweep(limit=50) for _ in range(10) for store in stores]
        swept = [job.id for sweep in sweeps for job in sweep.result()]
    finally:
        for store in stores:
            store.close()
    swept += [job.id for job in desk.store.sweep(limit=200).result()]
    assert len(swept) == len(set(swept)) == 200
    events = [entry.event for entry in desk.ledger()]
    assert events.count("lease_expired") == events.count("retried") == 200


@pytest.mark.scenario(22)
def test_a_report_beats_the_sweep_or_loses_to_it_whole(desk: Desk) -> None:
    for _ in range(20):
        lease = desk.take(max_retries=1)
        desk.clock.advance(LEASE_SECONDS)
        futures = (desk.store.exchange([completed(lease)], None), desk.store.sweep())
        (answer,), swept = futures[0].result().verdicts, futures[1].result()
        if answer == RECORDED:
            assert (desk.get(lease.id).status, swept) == ("completed", [])
        else:
            assert answer == Verdict(Answer.LOST, "lease_expired")
            assert desk.get(lease.id).status == "failed"


# --- handing back -----------------------------------------------------------------------------


def test_a_job_handed_back_is_due_at_once_and_charged_nothing(desk: Desk) -> None:
    lease = desk.take(max_retries=1)
    desk.clock.advance(1)
    assert desk.report(released(lease)) == [RECORDED]
    job = desk.get(lease.id)
    assert (job.status, job.attempts, job.token) == ("pending", 0, 1)
    assert job.run_at <= desk.clock.now
    entry = desk.history(job.id)[-1]
    assert (entry.event, entry.source, entry.target) == ("released", "processing", "pending")
    assert (entry.attempt, entry.token, entry.lease_id) == (1, 1, lease.lease_id)
    assert entry.at == desk.clock.now
    (again,) = desk.claim()
    assert (again.attempts, again.token) == (1, 2)


@pytest.mark.parametrize("max_retries", [0, 1, 2])
def test_a_job_handed_back_a_hundred_times_has_had_enough(desk: Desk, max_retries: int) -> None:
    job = desk.add(max_retries=max_retries, backoff=RetryPolicy(base=0, factor=1, cap=0))
    for count in range(1, 101):
        (lease,) = desk.claim()
        assert (lease.attempts, lease.token) == (1, count)
        assert desk.report(released(lease)) == [RECORDED]
    for failure in range(1, max(max_retries, 1) + 1):
        (lease,) = desk.claim()
        assert lease.attempts == failure
        as_failure = Verdict(Answer.CONFLICT, "failed")  # and that is what the worker is told
        assert desk.report(released(lease)) == [as_failure]
        assert desk.report(released(lease)) == [as_failure]
    end = desk.get(job.id)
    assert (end.status, end.attempts) == ("failed", max(max_retries, 1))
    assert "handed back" in (end.last_error or "")
    assert desk.claim() == []


def test_handing_back_and_failing_mix(desk: Desk) -> None:
    lease = desk.take(max_retries=2, backoff=RetryPolicy(base=0, factor=1, cap=0))
    desk.report(failed(lease))
    for _ in range(3):
        (lease,) = desk.claim()
        assert lease.attempts == 2
        desk.report(released(lease))
    (lease,) = desk.claim()
    desk.report(failed(lease))
    end = desk.get(lease.id)
    assert (end.status, end.attempts, end.token) == ("failed", 2, 5)
