"""What people and the application do to jobs and queues: cancel, retry, prune, pause, limit."""

from __future__ import annotations

from datetime import timedelta
from itertools import product

import pytest

from tenure.errors import IllegalTransition, JobNotFound
from tenure.jobs.ids import new_id
from tenure.jobs.values import Query
from tenure.lifecycle import Cancelled, Event, Job, LeaseExpired, Retried, Status
from tests.contract.granted_role import also_as_granted_role
from tests.support.clock import TICK
from tests.support.store import LEASE_SECONDS, MALFORMED, Desk, completed, failed, new


def job_in(desk: Desk, status: str) -> Job:
    """A job brought to `status` by the store's own verbs."""
    if status == "pending":
        return desk.add()
    lease = desk.take()
    if status == "completed":
        desk.report(completed(lease))
    elif status == "failed":
        desk.report(failed(lease, retryable=False))
    elif status == "cancelled":
        desk.store.apply(lease.id, Cancelled()).result()
    job = desk.get(lease.id)
    assert job.status == status
    return job


# --- cancelling -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["pending", "processing"])
def test_a_job_that_has_not_ended_can_be_cancelled(desk: Desk, status: str) -> None:
    job = job_in(desk, status)
    desk.clock.advance(1)
    after = desk.store.apply(job.id, Cancelled(actor="ada")).result()
    assert after == desk.get(job.id)
    assert (after.status, after.actor, after.finished_at) == ("cancelled", "ada", desk.clock.now)
    assert (after.lease_id, after.lease_expires_at) == (None, None)
    entry = desk.history(job.id)[-1]
    assert (entry.event, entry.source, entry.target) == ("cancelled", status, "cancelled")
    assert (entry.actor, entry.lease_id) == ("ada", job.lease_id)
    assert desk.claim() == []


@pytest.mark.parametrize(
    ("status", "legal"), [("completed", ()), ("cancelled", ()), ("failed", ("retried",))]
)
def test_a_job_that_has_ended_cannot_be_cancelled(
    desk: Desk, status: str, legal: tuple[str, ...]
) -> None:
    job = job_in(desk, status)
    before = desk.raw.contents()
    with pytest.raises(IllegalTransition) as refusal:
        desk.store.apply(job.id, Cancelled()).result()
    assert (refusal.value.status, refusal.value.legal) == (status, legal)
    assert desk.raw.contents() == before


def test_a_job_that_is_not_there_is_not_found(desk: Desk) -> None:
    events: tuple[Event, ...] = (Cancelled(), Retried(more_retries=1))
    for job_id, event in product((new_id(), *MALFORMED), events):
        with pytest.raises(JobNotFound) as missing:
            desk.store.apply(job_id, event).result()
        assert missing.value.job_id == job_id
        assert desk.store.read.get(job_id) is None
        assert desk.store.read.history(job_id) == []


# --- retrying by hand -------------------------------------------------------------------------


@also_as_granted_role
@pytest.mark.parametrize(("max_retries", "more", "after"), [(0, 1, 2), (1, 1, 2), (1, 2, 3)])
def test_a_failed_job_runs_again_when_its_limit_is_raised(
    desk: Desk, max_retries: int, more: int, after: int
) -> None:
    lease = desk.take(max_retries=max_retries)
    desk.report(failed(lease))
    desk.clock.advance(1)
    job = desk.store.apply(lease.id, Retried(more_retries=more, actor="ada")).result()
    assert job == desk.get(lease.id)
    assert (job.status, job.attempts, job.max_retries) == ("pending", 1, after)
    assert (job.run_at, job.finished_at, job.actor) == (desk.clock.now, None, "ada")
    entry = desk.history(lease.id)[-1]
    assert (entry.event, entry.actor) == ("retried", "ada")
    for attempt in range(2, after + 1):
        (again,) = desk.claim()
        assert (again.attempts, again.token) == (attempt, attempt)
        desk.report(failed(again))
        desk.clock.advance(3600)
    assert desk.get(lease.id).status == "failed"  # by the same rule as before


def test_a_failed_job_without_budget_is_not_retried(desk: Desk) -> None:
    lease = desk.take(max_retries=1)
    desk.report(failed(lease))
    before = desk.raw.contents()
    with pytest.raises(IllegalTransition) as refusal:
        desk.store.apply(lease.id, Retried(actor="ada")).result()
    assert (refusal.value.status, refusal.value.legal) == ("failed", ("retried",))
    assert desk.raw.contents() == before


def test_a_job_that_failed_for_good_early_keeps_the_attempts_it_had(desk: Desk) -> None:
    job = job_in(desk, "failed")
    after = desk.store.apply(job.id, Retried(more_retries=1)).result()
    assert (after.attempts, after.max_retries) == (1, 4)


@pytest.mark.parametrize("status", ["pending", "processing", "completed", "cancelled"])
def test_what_has_not_failed_is_not_retried(desk: Desk, status: str) -> None:
    job = job_in(desk, status)
    before = desk.raw.contents()
    with pytest.raises(IllegalTransition):
        desk.store.apply(job.id, Retried(more_retries=5)).result()
    assert desk.raw.contents() == before


def test_nobody_ends_a_lease_that_still_runs(desk: Desk) -> None:
    lease = desk.take()
    desk.clock.advance(LEASE_SECONDS - TICK)
    with pytest.raises(IllegalTransition, match="still runs"):
        desk.store.apply(lease.id, LeaseExpired()).result()
    desk.clock.advance(TICK)
    assert desk.store.apply(lease.id, LeaseExpired(actor="ada")).result().status == "pending"


def test_a_refusal_harms_no_other_work(desk: Desk) -> None:
    ended = job_in(desk, "completed")
    pending = [desk.add() for _ in range(20)]
    futures = [
        (desk.store.apply(ended.id, Cancelled()), desk.store.apply(job.id, Cancelled()))
        for job in pending
    ]
    for refused, done in futures:
        assert isinstance(refused.exception(), IllegalTransition)
        assert done.result().status == "cancelled"


# --- pruning ----------------------------------------------------------------------------------


def test_only_what_settled_long_enough_ago_goes(desk: Desk) -> None:
    jobs = {status: job_in(desk, status) for status in reversed(Status)}  # pending last
    everything = dict.fromkeys(map(str, Status), desk.clock.now)
    assert desk.prune(everything) == 0  # not a moment before
    desk.clock.advance(TICK)
    assert desk.prune(dict.fromkeys(map(str, Status), desk.clock.now)) == 3
    left = {job.id for job in desk.store.read.find(Query())}
    assert left == {jobs[Status.PENDING].id, jobs[Status.PROCESSING].id}
    for status in ("completed", "failed", "cancelled"):
        assert desk.history(jobs[Status(status)].id) == []
    assert len(desk.history(jobs[Status.PENDING].id)) == 1


@also_as_granted_role
def test_each_status_has_its_own_time(desk: Desk) -> None:
    for status in ("completed", "failed", "cancelled"):
        job_in(desk, status)
    desk.clock.advance(100)
    now = desk.clock.now
    settled_before = {"completed": now, "failed": now - timedelta(seconds=101)}
    assert desk.prune(settled_before) == 1
    assert {job.status for job in desk.store.read.find(Query())} == {"failed", "cancelled"}


@pytest.mark.requirement("C22")
def test_pruning_works_in_bites(desk: Desk) -> None:
    for _ in range(3):
        job_in(desk, "completed")
        job_in(desk, "failed")
    desk.clock.advance(1)
    before = {"completed": desk.clock.now, "failed": desk.clock.now}
    assert [desk.prune(before, limit=4) for _ in range(3)] == [4, 2, 0]
    assert desk.ledger() == []


def test_a_pruned_job_frees_its_key(desk: Desk) -> None:
    lease = desk.take(idempotency_key="k", fingerprint="f")
    desk.report(completed(lease))
    desk.clock.advance(1)
    desk.prune({"completed": desk.clock.now})
    (added,) = desk.add_all(new(idempotency_key="k", fingerprint="g"))
    assert added.created


def test_a_job_that_was_retried_is_not_settled_any_more(desk: Desk) -> None:
    job = job_in(desk, "failed")
    desk.clock.advance(100)
    desk.store.apply(job.id, Retried(more_retries=1)).result()
    assert desk.prune(dict.fromkeys(map(str, Status), desk.clock.now)) == 0


# --- queues -----------------------------------------------------------------------------------


@also_as_granted_role
def test_pausing_says_since_when(desk: Desk) -> None:
    desk.store.set_queue("a", paused=True, actor="ada").result()
    (state,) = desk.store.read.queues()
    assert (state.name, state.paused_at, state.max_pending) == ("a", desk.clock.now, None)
    desk.store.set_queue("a", max_pending=7).result()
    (state,) = desk.store.read.queues()
    assert (state.paused_at, state.max_pending) == (desk.clock.now, 7)  # one leaves the other be
    desk.store.set_queue("a", paused=False).result()
    (state,) = desk.store.read.queues()
    assert (state.paused_at, state.max_pending) == (None, 7)
