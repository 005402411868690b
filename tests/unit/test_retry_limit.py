"""How often a job runs: counted in runs of its handler, not in the column that says so."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from tenure.errors import IllegalTransition
from tenure.events import (
    Cancelled,
    Claimed,
    Completed,
    Failed,
    GaveUp,
    LeaseExpired,
    Released,
    Retried,
)
from tenure.lifecycle import DEFAULT_MAX_RETRIES, MAX_RETURNS, Job, decide, follow
from tenure.retry import RetryPolicy

START = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
LEASE_SECONDS = 30.0


class OneJob:
    """One job, one worker and a clock: the smallest queue there is."""

    def __init__(self, max_retries: int = DEFAULT_MAX_RETRIES) -> None:
        self.now = START
        self.runs = 0
        self.claims = 0
        self.job = Job(
            id="0190163d-8694-739b-aea5-966c26f8ad90",
            type="mail",
            created_at=START,
            run_at=START,
            max_retries=max_retries,
        )

    def claim(self) -> str:
        self.now = max(self.now, self.job.run_at)
        self.claims += 1
        lease_id = f"lease {self.claims}"
        event = Claimed(lease_id=lease_id, lease_seconds=LEASE_SECONDS, actor="worker")
        self.job = decide(self.job, event, self.now)
        return lease_id

    def settle(self, event: Completed | Failed | GaveUp | Released | LeaseExpired) -> None:
        self.job = follow(self.job, event, self.now)[-1]

    def run_until_settled(self, end_attempt: Callable[[OneJob, str], None]) -> int:
        """Run the handler as often as the machine lets us; at most a thousand times."""
        for _ in range(1_000):
            if self.job.status != "pending":
                break
            lease_id = self.claim()
            self.runs += 1
            end_attempt(self, lease_id)
        return self.runs


def by_failing(queue: OneJob, lease_id: str) -> None:
    queue.settle(Failed(lease_id=lease_id, error="boom"))


def by_dying(queue: OneJob, lease_id: str) -> None:
    queue.now += timedelta(seconds=LEASE_SECONDS)
    queue.settle(LeaseExpired())


def by_both(queue: OneJob, lease_id: str) -> None:
    (by_failing if queue.runs % 2 else by_dying)(queue, lease_id)


@pytest.mark.parametrize("end_attempt", [by_failing, by_dying, by_both])
@pytest.mark.parametrize(("max_retries", "runs"), [(0, 1), (1, 1), (2, 2), (3, 3), (10, 10)])
def test_a_job_that_always_fails_runs_as_often_as_its_limit_says(
    max_retries: int, runs: int, end_attempt: Callable[[OneJob, str], None]
) -> None:
    queue = OneJob(max_retries)
    assert queue.run_until_settled(end_attempt) == runs
    assert queue.job.status == "failed"
    assert queue.job.attempts == queue.job.token == runs


def test_the_default_limit_is_ten_runs() -> None:
    assert OneJob().run_until_settled(by_failing) == 10


def test_a_job_that_succeeds_at_last_runs_no_more() -> None:
    def at_the_second_try(queue: OneJob, lease_id: str) -> None:
        if queue.runs == 2:
            queue.settle(Completed(lease_id=lease_id))
        else:
            by_failing(queue, lease_id)

    queue = OneJob(max_retries=9)
    assert queue.run_until_settled(at_the_second_try) == 2
    assert queue.job.status == "completed"
    for event in (Retried(), Retried(more_retries=5), Cancelled()):
        with pytest.raises(IllegalTransition):
            follow(queue.job, event, queue.now)


def test_a_permanent_failure_ends_it_at_the_first_run() -> None:
    def for_good(queue: OneJob, lease_id: str) -> None:
        queue.settle(GaveUp(lease_id=lease_id, error="no such address"))

    queue = OneJob(max_retries=9)
    assert queue.run_until_settled(for_good) == 1
    assert (queue.job.status, queue.job.attempts) == ("failed", 1)


@pytest.mark.parametrize("max_retries", [0, 1, 2, 3])
def test_handing_a_job_back_costs_no_attempt_but_not_for_ever(max_retries: int) -> None:
    queue = OneJob(max_retries)
    for handed_back in range(1, 101):
        queue.settle(Released(lease_id=queue.claim()))
        assert queue.job.status == "pending"
        assert (queue.job.attempts, queue.job.token) == (0, handed_back)
    # From the 101st time on it counts as a failure, so that the limit bounds this as well.
    further = 0
    while queue.job.status == "pending":
        path = follow(
            queue.job, Claimed(lease_id="x", lease_seconds=1, actor="w"), queue.job.run_at
        )
        path = follow(path[-1], Released(lease_id="x"), queue.job.run_at)
        assert path[0].event == "failed"
        assert "released or interrupted 100 times" in (path[0].last_error or "")
        queue.job = path[-1]
        further += 1
    assert further == max(max_retries, 1)
    assert queue.job.status == "failed"


def test_the_bound_on_handing_back_is_a_hundred() -> None:
    assert MAX_RETURNS == 100
    used_up = replace(OneJob().job, attempts=1, token=101)
    with pytest.raises(IllegalTransition, match="released or interrupted 100 times"):
        decide(_held(used_up), Released(lease_id="x"), START)
    one_left = replace(OneJob().job, attempts=1, token=100)
    assert decide(_held(one_left), Released(lease_id="x"), START).status == "pending"


def _held(job: Job) -> Job:
    held = decide(
        replace(job, attempts=0, token=job.token - 1),
        Claimed(lease_id="x", lease_seconds=1, actor="w"),
        START,
    )
    assert held.token == job.token
    return held


@pytest.mark.parametrize(
    ("max_retries", "more", "limit_after", "runs_after"),
    [(3, 1, 4, 1), (3, 2, 5, 2), (0, 1, 2, 1), (1, 1, 2, 1)],
)
def test_an_operator_raises_the_limit_and_then_the_same_rule_holds(
    max_retries: int, more: int, limit_after: int, runs_after: int
) -> None:
    queue = OneJob(max_retries)
    before = queue.run_until_settled(by_failing)
    with pytest.raises(IllegalTransition):
        follow(queue.job, Retried(actor="ada"), queue.now)
    (queue.job,) = follow(queue.job, Retried(more_retries=more, actor="ada"), queue.now)
    assert queue.job.max_retries == limit_after
    assert queue.job.run_at == queue.now
    assert queue.job.actor == "ada"
    assert queue.run_until_settled(by_failing) == before + runs_after
    assert queue.job.status == "failed"


def test_an_operator_retries_a_permanent_failure_with_the_attempts_it_had_left() -> None:
    queue = OneJob(max_retries=3)
    queue.settle(GaveUp(lease_id=queue.claim(), error="boom"))
    assert queue.job.status == "failed"
    (queue.job,) = follow(queue.job, Retried(more_retries=1, actor="ada"), queue.now)
    assert queue.run_until_settled(by_failing) == 3  # attempts 2, 3 and 4 of 4


def test_the_retry_is_decided_in_the_same_step_as_the_failure() -> None:
    queue = OneJob(max_retries=2)
    policy = RetryPolicy(base=60, factor=1, cap=60)
    held = replace(queue.job, backoff=policy)
    held = decide(held, Claimed(lease_id="x", lease_seconds=1, actor="w"), START)
    failed, pending = follow(held, Failed(lease_id="x", error="boom"), START)
    assert (failed.event, pending.event) == ("failed", "retried")
    assert (failed.actor, pending.actor) == ("w", "store")
    assert failed.finished_at == START
    wait = (pending.run_at - START).total_seconds()
    assert 54 <= wait <= 60  # a minute, less a tenth at most
    assert pending.last_error == "boom"
