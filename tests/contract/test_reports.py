"""What a worker says of its leases: recorded once, repeated harmlessly, never contradicted."""

from __future__ import annotations

from datetime import timedelta
from itertools import permutations
from uuid import uuid4

import pytest

from tenure.jobs.ids import new_id
from tenure.jobs.values import Answer, Outcome, Report, Verdict
from tenure.lifecycle import Cancelled
from tenure.retry import RetryPolicy
from tests.contract.granted_role import also_as_granted_role
from tests.support.clock import TICK
from tests.support.store import (
    ALREADY,
    LEASE_SECONDS,
    LOST,
    MALFORMED,
    RECORDED,
    REPORTS,
    Desk,
    completed,
    failed,
    released,
)

AFTER = {Outcome.COMPLETED: "completed", Outcome.FAILED: "pending", Outcome.RELEASED: "pending"}


def conflict(recorded: str) -> Verdict:
    return Verdict(Answer.CONFLICT, recorded)


@also_as_granted_role
def test_success_is_kept_with_its_result(desk: Desk) -> None:
    lease = desk.take()
    desk.clock.advance(5)
    assert desk.report(completed(lease, '{"sent":true}')) == [RECORDED]
    job = desk.get(lease.id)
    assert (job.status, job.result, job.attempts) == ("completed", '{"sent":true}', 1)
    assert job.finished_at == desk.clock.now
    assert (job.lease_id, job.lease_expires_at) == (None, None)
    assert (job.worker, job.actor) == ("w1", "w1")
    entry = desk.history(lease.id)[-1]
    assert (entry.source, entry.target, entry.event) == ("processing", "completed", "completed")
    assert (entry.at, entry.attempt, entry.token) == (desk.clock.now, 1, 1)
    assert entry.lease_id == lease.lease_id


def test_success_after_a_failure_keeps_the_last_error(desk: Desk) -> None:
    lease = desk.take()
    desk.report(failed(lease, "first"))
    desk.clock.advance(3600)
    desk.report(completed(desk.claim()[0]))
    job = desk.get(lease.id)
    assert (job.status, job.last_error, job.attempts) == ("completed", "first", 2)


@also_as_granted_role
def test_failure_decides_and_requeues_at_once(desk: Desk) -> None:
    policy = RetryPolicy(base=100, factor=1, cap=100)
    lease = desk.take(max_retries=2, backoff=policy)
    desk.clock.advance(1)
    (verdict,) = desk.store.exchange([failed(lease, "boom")], None).result().verdicts
    job = desk.get(lease.id)
    assert (job.status, job.attempts, job.last_error) == ("pending", 1, "boom")
    assert job.finished_at is None
    wait = (job.run_at - desk.clock.now).total_seconds()
    assert 90 <= wait <= 100
    assert verdict == Verdict(Answer.RECORDED, retry_in=wait)
    failure, retry = desk.history(lease.id)[-2:]
    assert (failure.event, failure.source, failure.target) == ("failed", "processing", "failed")
    assert (failure.detail, failure.lease_id, failure.actor) == ("boom", lease.lease_id, "w1")
    assert (retry.event, retry.source, retry.target) == ("retried", "failed", "pending")
    assert (retry.detail, retry.lease_id, retry.actor) == (None, None, "store")
    assert failure.at == retry.at == desk.clock.now
    desk.clock.set(job.run_at - timedelta(seconds=TICK, microseconds=job.run_at.microsecond % 1000))
    assert desk.claim() == []
    desk.clock.advance(2 * TICK)
    assert desk.ids(desk.claim()) == [job.id]


@pytest.mark.parametrize(("max_retries", "runs"), [(0, 1), (1, 1), (2, 2), (3, 3)])
def test_the_limit_by_counting_runs(desk: Desk, max_retries: int, runs: int) -> None:
    job = desk.add(max_retries=max_retries)
    seen = 0
    for _ in range(10):
        for lease in desk.claim():
            seen += 1
            desk.report(failed(lease, f"run {seen}"))
        desk.clock.advance(7200)
    assert seen == runs
    end = desk.get(job.id)
    assert (end.status, end.attempts, end.last_error) == ("failed", runs, f"run {runs}")
    assert desk.events(job.id) == ["enqueued", *["claimed", "failed", "retried"] * runs][:-1]


def test_a_permanent_failure_is_final_at_once(desk: Desk) -> None:
    lease = desk.take(max_retries=9)
    assert desk.report(failed(lease, "no such address", retryable=False)) == [RECORDED]
    job = desk.get(lease.id)
    assert (job.status, job.attempts, job.finished_at) == ("failed", 1, desk.clock.now)
    assert desk.events(lease.id) == ["enqueued", "claimed", "failed"]


def test_a_failure_that_says_nothing_is_a_failure(desk: Desk) -> None:
    lease = desk.take()
    assert desk.report(failed(lease, "")) == [RECORDED]
    assert desk.get(lease.id).last_error


def test_who_reports_is_on_record(desk: Desk) -> None:
    for report in (completed, failed, released):
        lease = desk.take()
        desk.report(report(lease, actor="relay"))
        assert "relay" in [entry.actor for entry in desk.history(lease.id)]


# --- the same report again --------------------------------------------------------------------


@pytest.mark.parametrize("outcome", Outcome)
def test_the_same_report_again_is_already_recorded(desk: Desk, outcome: Outcome) -> None:
    lease = desk.take()
    report = REPORTS[outcome](lease)
    assert desk.report(report) == [RECORDED]
    before = desk.raw.contents()
    assert desk.report(report) == [ALREADY]
    desk.clock.advance(86_400)
    assert desk.report(report, report) == [ALREADY, ALREADY]
    assert desk.raw.contents() == before


@pytest.mark.scenario(8)
@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.RELEASED])
def test_even_long_after_the_job_has_moved_on(desk: Desk, outcome: Outcome) -> None:
    old = desk.take(max_retries=5)
    report = REPORTS[outcome](old)
    desk.report(report)
    desk.clock.advance(3600)
    (current,) = desk.claim()  # the same job, the same worker
    assert desk.report(report) == [ALREADY]
    assert desk.get(old.id).lease_id == current.lease_id
    desk.report(failed(current))
    desk.clock.advance(3600)
    (last,) = desk.claim()
    desk.report(completed(last))
    before = desk.raw.contents()
    assert desk.report(report) == [ALREADY]
    assert desk.report(failed(current)) == [ALREADY]
    assert desk.report(completed(last)) == [ALREADY]
    assert desk.raw.contents() == before


@pytest.mark.scenario(29)
@pytest.mark.parametrize(("first", "second"), list(permutations(Outcome, 2)))
def test_another_outcome_is_a_conflict_that_names_the_first(
    desk: Desk, first: Outcome, second: Outcome
) -> None:
    lease = desk.take()
    desk.report(REPORTS[first](lease))
    before = desk.raw.contents()
    assert desk.report(REPORTS[second](lease)) == [conflict(first)]
    assert desk.get(lease.id).status == AFTER[first]
    desk.clock.advance(3600)
    desk.claim()  # where there was a retry, the job runs again by now
    assert desk.report(REPORTS[second](lease)) == [conflict(first)]
    if first is Outcome.COMPLETED:
        assert desk.raw.contents() == before


@pytest.mark.parametrize("outcome", Outcome)
def test_twice_in_one_batch_counts_once(desk: Desk, outcome: Outcome) -> None:
    lease, other = desk.take(), desk.take()
    report = REPORTS[outcome](lease)
    answers = desk.report(report, REPORTS[outcome](other), report)
    assert answers == [RECORDED, RECORDED, ALREADY]
    assert desk.events(lease.id).count(outcome) == 1


@pytest.mark.parametrize(("first", "second"), list(permutations(Outcome, 2)))
def test_a_batch_that_contradicts_itself_records_one(
    desk: Desk, first: Outcome, second: Outcome
) -> None:
    lease = desk.take()
    answers = desk.report(REPORTS[first](lease), REPORTS[second](lease))
    recorded = answers.index(RECORDED)
    winner = (first, second)[recorded]
    assert answers[1 - recorded] == conflict(winner)
    assert desk.get(lease.id).status == AFTER[winner]
    assert desk.report(REPORTS[winner](lease)) == [ALREADY]


def test_an_old_and_a_new_lease_of_one_job_in_one_batch(desk: Desk) -> None:
    old = desk.take(max_retries=2)
    desk.report(failed(old))
    desk.clock.advance(3600)
    (new,) = desk.claim()
    assert desk.report(completed(old), failed(old), completed(new), completed(new)) == [
        conflict("failed"),
        ALREADY,
        RECORDED,
        ALREADY,
    ]
    assert desk.get(old.id).status == "completed"


# --- leases that are gone, or never were ------------------------------------------------------


@pytest.mark.parametrize("outcome", Outcome)
def test_a_lease_that_the_sweep_ended_is_lost(desk: Desk, outcome: Outcome) -> None:
    lease = desk.take()
    desk.clock.advance(LEASE_SECONDS)
    desk.store.sweep().result()
    before = desk.raw.contents()
    lost = Verdict(Answer.LOST, "lease_expired")
    assert desk.report(REPORTS[outcome](lease)) == [lost]
    assert desk.raw.contents() == before
    desk.clock.advance(3600)
    (current,) = desk.claim()  # running again, under another lease
    before = desk.raw.contents()
    assert desk.report(REPORTS[outcome](lease)) == [lost]
    assert desk.raw.contents() == before
    assert desk.report(completed(current)) == [RECORDED]


@pytest.mark.parametrize("outcome", Outcome)
def test_a_lease_that_was_cancelled_is_lost(desk: Desk, outcome: Outcome) -> None:
    lease = desk.take()
    desk.store.apply(lease.id, Cancelled(actor="ada")).result()
    assert desk.report(REPORTS[outcome](lease)) == [Verdict(Answer.LOST, "cancelled")]
    assert desk.get(lease.id).status == "cancelled"


@pytest.mark.parametrize("outcome", Outcome)
def test_only_the_lease_counts_even_if_all_else_is_equal(desk: Desk, outcome: Outcome) -> None:
    """Handed back, the job runs again: same worker, same attempt. Only the lease differs."""
    old = desk.take()
    desk.report(released(old))
    (current,) = desk.claim()
    assert (current.id, current.attempts) == (old.id, old.attempts)
    before = desk.raw.contents()
    expected = ALREADY if outcome is Outcome.RELEASED else conflict("released")
    assert desk.report(REPORTS[outcome](old)) == [expected]
    assert desk.raw.contents() == before


@pytest.mark.parametrize("outcome", Outcome)
def test_forged_and_unknown_leases_are_lost(desk: Desk, outcome: Outcome) -> None:
    lease, other = desk.take(), desk.take()
    reports = [
        Report(lease.id, other.lease_id, outcome),
        Report(lease.id, str(uuid4()), outcome),
        Report(lease.id, lease.lease_id.upper() + "0", outcome),
        Report(new_id(), lease.lease_id, outcome),
        Report(new_id(), str(uuid4()), outcome),
        *(Report(lease.id, text, outcome) for text in MALFORMED),
        *(Report(text, lease.lease_id, outcome) for text in MALFORMED),
        *(Report(text, text, outcome) for text in MALFORMED),
    ]
    before = desk.raw.contents()
    assert desk.report(*reports) == [LOST] * len(reports)
    for report in reports:
        assert desk.report(report) == [LOST]
    assert desk.raw.contents() == before
    # Among them, what is true still counts.
    assert desk.report(reports[0], completed(lease), reports[-1]) == [LOST, RECORDED, LOST]


def test_no_lease_is_no_key_to_a_job_at_rest(desk: Desk) -> None:
    job = desk.add()
    for missing in ("", "None", "null"):
        assert desk.report(Report(job.id, missing, Outcome.COMPLETED)) == [LOST]
    assert desk.get(job.id).status == "pending"


def test_a_job_that_was_pruned_is_lost(desk: Desk) -> None:
    lease = desk.take()
    desk.report(completed(lease))
    desk.clock.advance(10)
    desk.prune({"completed": desk.clock.now})
    assert desk.report(completed(lease)) == [LOST]


@pytest.mark.parametrize("late", [0.0, TICK, 5 * 86_400.0])
@pytest.mark.parametrize("outcome", Outcome)
def test_late_but_before_the_sweep_counts(desk: Desk, outcome: Outcome, late: float) -> None:
    lease = desk.take()
    desk.clock.advance(LEASE_SECONDS + late)
    assert desk.report(REPORTS[outcome](lease)) == [RECORDED]
    assert desk.store.sweep().result() == []
    assert desk.get(lease.id).status == AFTER[outcome]


# --- many at once -----------------------------------------------------------------------------


@also_as_granted_role
def test_a_large_mixed_batch_is_answered_in_order(desk: Desk) -> None:
    leases = [desk.take() for _ in range(60)]
    outcomes = list(Outcome)
    reports = [REPORTS[outcomes[n % 3]](lease) for n, lease in enumerate(leases)]
    assert desk.report(*reports) == [RECORDED] * 60
    assert desk.report(*reversed(reports)) == [ALREADY] * 60
    statuses = [desk.get(lease.id).status for lease in leases]
    assert statuses == [AFTER[outcomes[n % 3]] for n in range(60)]


@pytest.mark.scenario(28)
def test_the_same_report_from_many_at_once_is_recorded_once(desk: Desk) -> None:
    for outcome in Outcome:
        lease = desk.take()
        futures = [desk.store.exchange([REPORTS[outcome](lease)], None) for _ in range(20)]
        answers = [future.result().verdicts[0] for future in futures]
        assert sorted(v.answer for v in answers) == [*["already_recorded"] * 19, "recorded"]
        assert desk.events(lease.id).count(outcome) == 1


@pytest.mark.scenario(29)
def test_success_and_failure_at_once_settle_on_one(desk: Desk) -> None:
    for _ in range(20):
        lease = desk.take()
        futures = [
            desk.store.exchange([report(lease)], None)
            for report in (completed, failed, released) * 3
        ]
        answers = [future.result().verdicts[0] for future in futures]
        (first,) = (n for n, v in enumerate(answers) if v.answer is Answer.RECORDED)
        winner = ("completed", "failed", "released")[first % 3]
        others = [v for n, v in enumerate(answers) if n != first]
        assert set(others) <= {ALREADY, conflict(winner)}
        assert desk.events(lease.id)[2] == winner
        if winner != "completed":  # or it would be there for the next claim
            desk.store.apply(lease.id, Cancelled()).result()
