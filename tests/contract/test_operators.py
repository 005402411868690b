"""What people and the application do to jobs and queues: cancel, retry, prune, pause, limit."""

from __future__ import annotations

from datetime import timedelta
from itertools import product

import pytest

from tenure.errors import IllegalTransition, JobNotFound
from tenure.events import Cancelled, Event, LeaseExpired, Retried
from tenure.lifecycle import Job, Status
from tenure.rules.search import Query
from tenure.values.ids import new_id
from tests.contract.granted_role import also_as_granted_role
from tests.contract.situations import INSERT, NEW_ID
from tests.support.clock import TICK
from tests.support.store import (
    LEASE_SECONDS,
    MALFORMED_IDS,
    StoreHarness,
    new_job,
    report_completed,
    report_failed,
)


def job_in(harness: StoreHarness, status: str) -> Job:
    """A job brought to `status` by the store's own verbs."""
    if status == "pending":
        return harness.add()
    if status == "waiting":
        harness.sql.run(INSERT % (", status, need", ", 'waiting', 1"), NEW_ID)
        return harness.get(NEW_ID)
    lease = harness.take()
    if status == "completed":
        harness.report(report_completed(lease))
    elif status == "failed":
        harness.report(report_failed(lease, retryable=False))
    elif status == "cancelled":
        harness.store.apply(lease.id, Cancelled()).result()
    job = harness.get(lease.id)
    assert job.status == status
    return job


# --- cancelling -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["waiting", "pending", "processing"])
def test_a_job_that_has_not_ended_can_be_cancelled(harness: StoreHarness, status: str) -> None:
    job = job_in(harness, status)
    harness.clock.advance(1)
    after = harness.store.apply(job.id, Cancelled(actor="ada")).result()
    assert after == harness.get(job.id)
    assert (after.status, after.actor, after.finished_at) == ("cancelled", "ada", harness.clock.now)
    assert (after.lease_id, after.lease_expires_at) == (None, None)
    entry = harness.history(job.id)[-1]
    assert (entry.event, entry.source, entry.target) == ("cancelled", status, "cancelled")
    assert (entry.actor, entry.lease_id) == ("ada", job.lease_id)
    assert harness.claim() == []


@pytest.mark.parametrize(
    ("status", "legal"), [("completed", ()), ("cancelled", ()), ("failed", ("retried",))]
)
def test_a_job_that_has_ended_cannot_be_cancelled(
    harness: StoreHarness, status: str, legal: tuple[str, ...]
) -> None:
    job = job_in(harness, status)
    before = harness.sql.contents()
    with pytest.raises(IllegalTransition) as refusal:
        harness.store.apply(job.id, Cancelled()).result()
    assert (refusal.value.status, refusal.value.legal) == (status, legal)
    assert harness.sql.contents() == before


def test_a_job_that_is_not_there_is_not_found(harness: StoreHarness) -> None:
    events: tuple[Event, ...] = (Cancelled(), Retried(more_retries=1))
    for job_id, event in product((new_id(), *MALFORMED_IDS), events):
        with pytest.raises(JobNotFound) as missing:
            harness.store.apply(job_id, event).result()
        assert missing.value.job_id == job_id
        assert harness.store.read.get(job_id) is None
        assert harness.store.read.history(job_id) == []


# --- retrying by hand -------------------------------------------------------------------------


@also_as_granted_role
@pytest.mark.parametrize(("max_retries", "more", "after"), [(0, 1, 2), (1, 1, 2), (1, 2, 3)])
def test_a_failed_job_runs_again_when_its_limit_is_raised(
    harness: StoreHarness, max_retries: int, more: int, after: int
) -> None:
    lease = harness.take(max_retries=max_retries)
    harness.report(report_failed(lease))
    harness.clock.advance(1)
    job = harness.store.apply(lease.id, Retried(more_retries=more, actor="ada")).result()
    assert job == harness.get(lease.id)
    assert (job.status, job.attempts, job.max_retries) == ("pending", 1, after)
    assert (job.run_at, job.finished_at, job.actor) == (harness.clock.now, None, "ada")
    entry = harness.history(lease.id)[-1]
    assert (entry.event, entry.actor) == ("retried", "ada")
    for attempt in range(2, after + 1):
        (again,) = harness.claim()
        assert (again.attempts, again.token) == (attempt, attempt)
        harness.report(report_failed(again))
        harness.clock.advance(3600)
    assert harness.get(lease.id).status == "failed"  # by the same rule as before


def test_a_failed_job_without_budget_is_not_retried(harness: StoreHarness) -> None:
    lease = harness.take(max_retries=1)
    harness.report(report_failed(lease))
    before = harness.sql.contents()
    with pytest.raises(IllegalTransition) as refusal:
        harness.store.apply(lease.id, Retried(actor="ada")).result()
    assert (refusal.value.status, refusal.value.legal) == ("failed", ("retried",))
    assert harness.sql.contents() == before


def test_a_job_that_failed_for_good_early_keeps_the_attempts_it_had(harness: StoreHarness) -> None:
    job = job_in(harness, "failed")
    after = harness.store.apply(job.id, Retried(more_retries=1)).result()
    assert (after.attempts, after.max_retries) == (1, 4)


@pytest.mark.parametrize("status", ["pending", "processing", "completed", "cancelled"])
def test_what_has_not_failed_is_not_retried(harness: StoreHarness, status: str) -> None:
    job = job_in(harness, status)
    before = harness.sql.contents()
    with pytest.raises(IllegalTransition):
        harness.store.apply(job.id, Retried(more_retries=5)).result()
    assert harness.sql.contents() == before


def test_nobody_ends_a_lease_that_still_runs(harness: StoreHarness) -> None:
    lease = harness.take()
    harness.clock.advance(LEASE_SECONDS - TICK)
    with pytest.raises(IllegalTransition, match="its lease has not run out"):
        harness.store.apply(lease.id, LeaseExpired()).result()
    harness.clock.advance(TICK)
    assert harness.store.apply(lease.id, LeaseExpired(actor="ada")).result().status == "pending"


def test_a_refusal_harms_no_other_work(harness: StoreHarness) -> None:
    ended = job_in(harness, "completed")
    pending = [harness.add() for _ in range(20)]
    futures = [
        (harness.store.apply(ended.id, Cancelled()), harness.store.apply(job.id, Cancelled()))
        for job in pending
    ]
    for refused, done in futures:
        assert isinstance(refused.exception(), IllegalTransition)
        assert done.result().status == "cancelled"


# --- pruning ----------------------------------------------------------------------------------


def test_only_what_settled_long_enough_ago_goes(harness: StoreHarness) -> None:
    jobs = {status: job_in(harness, status) for status in reversed(Status)}  # pending last
    everything = dict.fromkeys(map(str, Status), harness.clock.now)
    assert harness.prune(everything) == 0  # not a moment before
    harness.clock.advance(TICK)
    assert harness.prune(dict.fromkeys(map(str, Status), harness.clock.now)) == 3
    left = {job.id for job in harness.store.read.find(Query())}
    assert left == {jobs[s].id for s in (Status.WAITING, Status.PENDING, Status.PROCESSING)}
    for status in ("completed", "failed", "cancelled"):
        assert harness.history(jobs[Status(status)].id) == []
    assert len(harness.history(jobs[Status.PENDING].id)) == 1


@also_as_granted_role
def test_each_status_has_its_own_time(harness: StoreHarness) -> None:
    for status in ("completed", "failed", "cancelled"):
        job_in(harness, status)
    harness.clock.advance(100)
    now = harness.clock.now
    settled_before = {"completed": now, "failed": now - timedelta(seconds=101)}
    assert harness.prune(settled_before) == 1
    assert {job.status for job in harness.store.read.find(Query())} == {"failed", "cancelled"}


@pytest.mark.requirement("C22")
def test_pruning_works_in_bites(harness: StoreHarness) -> None:
    for _ in range(3):
        job_in(harness, "completed")
        job_in(harness, "failed")
    harness.clock.advance(1)
    before = {"completed": harness.clock.now, "failed": harness.clock.now}
    assert [harness.prune(before, limit=4) for _ in range(3)] == [4, 2, 0]
    assert harness.ledger() == []


def test_a_pruned_job_frees_its_key(harness: StoreHarness) -> None:
    lease = harness.take(idempotency_key="k", fingerprint="f")
    harness.report(report_completed(lease))
    harness.clock.advance(1)
    harness.prune({"completed": harness.clock.now})
    (added,) = harness.add_all(new_job(idempotency_key="k", fingerprint="g"))
    assert added.created


def test_a_job_that_was_retried_is_not_settled_any_more(harness: StoreHarness) -> None:
    job = job_in(harness, "failed")
    harness.clock.advance(100)
    harness.store.apply(job.id, Retried(more_retries=1)).result()
    assert harness.prune(dict.fromkeys(map(str, Status), harness.clock.now)) == 0


# --- queues -----------------------------------------------------------------------------------


@also_as_granted_role
def test_pausing_says_since_when(harness: StoreHarness) -> None:
    harness.set_queue("a", paused=True, actor="ada", reason="too many")
    (state,) = paused = harness.store.read.queues()
    assert (state.name, state.paused_at, state.max_pending) == ("a", harness.clock.now, None)
    harness.clock.advance(60)
    harness.set_queue("a", paused=True, actor="bob", reason="again")
    assert harness.store.read.queues() == paused
    harness.set_queue("a", max_pending=7)
    (after,) = harness.store.read.queues()
    assert (after.paused_at, after.max_pending) == (state.paused_at, 7)  # one leaves the other be
    harness.set_queue("a", paused=False)
    (state,) = harness.store.read.queues()
    assert (state.paused_at, state.max_pending) == (None, 7)


# --- reasons ----------------------------------------------------------------------------------


def test_the_ledger_keeps_the_reason_of_its_own_transition_only(harness: StoreHarness) -> None:
    lease = harness.take(max_retries=1)
    harness.report(report_failed(lease))
    harness.store.apply(lease.id, Retried(more_retries=2, actor="ada", reason="fixed")).result()
    harness.report(report_failed(*harness.claim()))  # and the store retries it
    harness.clock.advance(3600)
    harness.report(report_failed(*harness.claim()))
    harness.store.apply(lease.id, Retried(more_retries=1, actor="ada", reason="fixed")).result()
    job = harness.store.apply(lease.id, Cancelled(actor="ada", reason="no need")).result()
    assert job == harness.get(lease.id)
    found = [(entry.event, entry.reason) for entry in harness.history(lease.id) if entry.reason]
    assert found == [("retried", "fixed"), ("retried", "fixed"), ("cancelled", "no need")]
