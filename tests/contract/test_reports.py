"""What a worker says of its leases: recorded once, repeated harmlessly, never contradicted."""

from __future__ import annotations

from datetime import timedelta
from itertools import permutations
from uuid import uuid4

import pytest

from tenure.events import Cancelled
from tenure.retry import RetryPolicy, delay
from tenure.rules.reports import Answer, Outcome, Report, Verdict
from tenure.values.ids import new_id
from tests.contract.granted_role import also_as_granted_role
from tests.support.clock import TICK
from tests.support.store import (
    ALREADY,
    LEASE_SECONDS,
    LOST,
    MALFORMED_IDS,
    RECORDED,
    REPORTS,
    StoreHarness,
    report_completed,
    report_failed,
    report_released,
)

AFTER = {
    **dict.fromkeys(Outcome, "pending"),
    Outcome.COMPLETED: "completed",
    Outcome.SUSPENDED: "waiting",
}


def conflict(recorded: str) -> Verdict:
    return Verdict(Answer.CONFLICT, recorded)


@also_as_granted_role
def test_success_is_kept_with_its_result(harness: StoreHarness) -> None:
    lease = harness.take()
    harness.clock.advance(5)
    assert harness.report(report_completed(lease, '{"sent":true}')) == [RECORDED]
    job = harness.get(lease.id)
    assert (job.status, job.result_json, job.attempts) == ("completed", '{"sent":true}', 1)
    assert job.finished_at == harness.clock.now
    assert (job.lease_id, job.lease_expires_at) == (None, None)
    assert (job.worker, job.actor) == ("w1", "w1")
    entry = harness.history(lease.id)[-1]
    assert (entry.source, entry.target, entry.event) == ("processing", "completed", "completed")
    assert (entry.at, entry.attempt, entry.token) == (harness.clock.now, 1, 1)
    assert entry.lease_id == lease.lease_id


def test_success_after_a_failure_keeps_the_last_error(harness: StoreHarness) -> None:
    lease = harness.take()
    harness.report(report_failed(lease, "first"))
    harness.clock.advance(3600)
    harness.report(report_completed(harness.claim()[0]))
    job = harness.get(lease.id)
    assert (job.status, job.last_error, job.attempts) == ("completed", "first", 2)


def test_a_list_of_delays_is_what_each_failure_waits(harness: StoreHarness) -> None:
    policy = RetryPolicy(delays=(60, 3600.5))
    lease = harness.take(max_retries=5, backoff=policy)
    assert harness.get(lease.id).backoff == policy
    for attempt in range(1, 5):
        (verdict,) = harness.store.exchange([report_failed(lease)], None).result().verdicts
        assert verdict.retry_in == delay(policy, lease.id, attempt)
        harness.clock.set(harness.get(lease.id).run_at)
        (lease,) = harness.claim()


@also_as_granted_role
def test_failure_decides_and_requeues_at_once(harness: StoreHarness) -> None:
    policy = RetryPolicy(base=100, factor=1, cap=100)
    lease = harness.take(max_retries=2, backoff=policy)
    harness.clock.advance(1)
    (verdict,) = harness.store.exchange([report_failed(lease, "boom")], None).result().verdicts
    job = harness.get(lease.id)
    assert (job.status, job.attempts, job.last_error) == ("pending", 1, "boom")
    assert job.finished_at is None
    wait = (job.run_at - harness.clock.now).total_seconds()
    assert 90 <= wait <= 100
    assert verdict == Verdict(Answer.RECORDED, retry_in=wait)
    failure, retry = harness.history(lease.id)[-2:]
    assert (failure.event, failure.source, failure.target) == ("failed", "processing", "failed")
    assert (failure.detail, failure.lease_id, failure.actor) == ("boom", lease.lease_id, "w1")
    assert (retry.event, retry.source, retry.target) == ("retried", "failed", "pending")
    assert (retry.detail, retry.lease_id, retry.actor) == (None, None, "store")
    assert failure.at == retry.at == harness.clock.now
    harness.clock.set(
        job.run_at - timedelta(seconds=TICK, microseconds=job.run_at.microsecond % 1000)
    )
    assert harness.claim() == []
    harness.clock.advance(2 * TICK)
    assert harness.ids(harness.claim()) == [job.id]


def test_the_limit_by_counting_runs(harness: StoreHarness, subtests: pytest.Subtests) -> None:
    for max_retries, runs in [(0, 1), (1, 1), (2, 2), (3, 3)]:
        with subtests.test(f"{max_retries}"):
            job = harness.add(max_retries=max_retries)
            seen = 0
            for _ in range(10):
                for lease in harness.claim():
                    seen += 1
                    harness.report(report_failed(lease, f"run {seen}"))
                harness.clock.advance(7200)
            assert seen == runs
            end = harness.get(job.id)
            assert (end.status, end.attempts, end.last_error) == ("failed", runs, f"run {runs}")
            assert (
                harness.events(job.id)
                == ["enqueued", *["claimed", "failed", "retried"] * runs][:-1]
            )


def test_a_permanent_failure_is_final_at_once(harness: StoreHarness) -> None:
    lease = harness.take(max_retries=9)
    assert harness.report(report_failed(lease, "no such address", retryable=False)) == [RECORDED]
    job = harness.get(lease.id)
    assert (job.status, job.attempts, job.finished_at) == ("failed", 1, harness.clock.now)
    assert harness.events(lease.id) == ["enqueued", "claimed", "gave_up"]


def test_a_failure_that_says_nothing_is_a_failure(harness: StoreHarness) -> None:
    lease = harness.take()
    assert harness.report(report_failed(lease, "")) == [RECORDED]
    assert harness.get(lease.id).last_error


def test_who_reports_is_on_record(harness: StoreHarness) -> None:
    for report in (report_completed, report_failed, report_released):
        lease = harness.take()
        harness.report(report(lease, actor="relay"))
        assert "relay" in [entry.actor for entry in harness.history(lease.id)]


# --- the same report again --------------------------------------------------------------------


def test_the_same_report_again_is_already_recorded(
    harness: StoreHarness, subtests: pytest.Subtests
) -> None:
    for outcome in Outcome:
        with subtests.test(outcome.value):
            lease = harness.take()
            report = REPORTS[outcome](lease)
            assert harness.report(report) == [RECORDED]
            before = harness.sql.contents()
            assert harness.report(report) == [ALREADY]
            harness.clock.advance(86_400)
            assert harness.report(report, report) == [ALREADY, ALREADY]
            assert harness.sql.contents() == before
        harness.cancel_all()


@pytest.mark.scenario(8)
def test_even_long_after_the_job_has_moved_on(
    harness: StoreHarness, subtests: pytest.Subtests
) -> None:
    for outcome in [Outcome.FAILED, Outcome.RELEASED]:
        with subtests.test(outcome.value):
            old = harness.take(max_retries=5)
            report = REPORTS[outcome](old)
            harness.report(report)
            harness.clock.advance(3600)
            (current,) = harness.claim()  # the same job, the same worker
            assert harness.report(report) == [ALREADY]
            assert harness.get(old.id).lease_id == current.lease_id
            harness.report(report_failed(current))
            harness.clock.advance(3600)
            (last,) = harness.claim()
            harness.report(report_completed(last))
            before = harness.sql.contents()
            assert harness.report(report) == [ALREADY]
            assert harness.report(report_failed(current)) == [ALREADY]
            assert harness.report(report_completed(last)) == [ALREADY]
            assert harness.sql.contents() == before
        harness.cancel_all()


@pytest.mark.scenario(29)
def test_another_outcome_is_a_conflict_that_names_the_first(
    harness: StoreHarness, subtests: pytest.Subtests
) -> None:
    for first, second in permutations(Outcome, 2):
        with subtests.test(f"{first} {second}"):
            lease = harness.take()
            harness.report(REPORTS[first](lease))
            before = harness.sql.contents()
            assert harness.report(REPORTS[second](lease)) == [conflict(first)]
            assert harness.get(lease.id).status == AFTER[first]
            harness.clock.advance(3600)
            harness.claim()  # where there was a retry, the job runs again by now
            assert harness.report(REPORTS[second](lease)) == [conflict(first)]
            if first is Outcome.COMPLETED:
                assert harness.sql.contents() == before
        harness.cancel_all()


def test_twice_in_one_batch_counts_once(harness: StoreHarness, subtests: pytest.Subtests) -> None:
    for outcome in Outcome:
        with subtests.test(outcome.value):
            lease, other = harness.take(), harness.take()
            report = REPORTS[outcome](lease)
            answers = harness.report(report, REPORTS[outcome](other), report)
            assert answers == [RECORDED, RECORDED, ALREADY]
            assert harness.events(lease.id).count(outcome) == 1
        harness.cancel_all()


def test_a_batch_that_contradicts_itself_records_one(
    harness: StoreHarness, subtests: pytest.Subtests
) -> None:
    for first, second in permutations(Outcome, 2):
        with subtests.test(f"{first} {second}"):
            lease = harness.take()
            answers = harness.report(REPORTS[first](lease), REPORTS[second](lease))
            recorded = answers.index(RECORDED)
            winner = (first, second)[recorded]
            assert answers[1 - recorded] == conflict(winner)
            assert harness.get(lease.id).status == AFTER[winner]
            assert harness.report(REPORTS[winner](lease)) == [ALREADY]
        harness.cancel_all()


def test_an_old_and_a_new_lease_of_one_job_in_one_batch(harness: StoreHarness) -> None:
    old = harness.take(max_retries=2)
    harness.report(report_failed(old))
    harness.clock.advance(3600)
    (new,) = harness.claim()
    assert harness.report(
        report_completed(old), report_failed(old), report_completed(new), report_completed(new)
    ) == [conflict("failed"), ALREADY, RECORDED, ALREADY]
    assert harness.get(old.id).status == "completed"


# --- leases that are gone, or never were ------------------------------------------------------


def test_a_lease_that_the_sweep_ended_is_lost(
    harness: StoreHarness, subtests: pytest.Subtests
) -> None:
    for outcome in Outcome:
        with subtests.test(outcome.value):
            lease = harness.take()
            harness.clock.advance(LEASE_SECONDS)
            harness.store.sweep().result()
            before = harness.sql.contents()
            lost = Verdict(Answer.LOST, "lease_expired")
            assert harness.report(REPORTS[outcome](lease)) == [lost]
            assert harness.sql.contents() == before
            harness.clock.advance(3600)
            (current,) = harness.claim()  # running again, under another lease
            before = harness.sql.contents()
            assert harness.report(REPORTS[outcome](lease)) == [lost]
            assert harness.sql.contents() == before
            assert harness.report(report_completed(current)) == [RECORDED]
        harness.cancel_all()


def test_a_lease_that_was_cancelled_is_lost(
    harness: StoreHarness, subtests: pytest.Subtests
) -> None:
    for outcome in Outcome:
        with subtests.test(outcome.value):
            lease = harness.take()
            harness.store.apply(lease.id, Cancelled(actor="ada")).result()
            assert harness.report(REPORTS[outcome](lease)) == [Verdict(Answer.LOST, "cancelled")]
            assert harness.get(lease.id).status == "cancelled"
        harness.cancel_all()


def test_only_the_lease_counts_even_if_all_else_is_equal(
    harness: StoreHarness, subtests: pytest.Subtests
) -> None:
    """Handed back, the job runs again: same worker, same attempt. Only the lease differs."""
    for outcome in Outcome:
        with subtests.test(outcome.value):
            old = harness.take()
            harness.report(report_released(old))
            (current,) = harness.claim()
            assert (current.id, current.attempts) == (old.id, old.attempts)
            before = harness.sql.contents()
            expected = ALREADY if outcome is Outcome.RELEASED else conflict("released")
            assert harness.report(REPORTS[outcome](old)) == [expected]
            assert harness.sql.contents() == before
        harness.cancel_all()


def test_forged_and_unknown_leases_are_lost(
    harness: StoreHarness, subtests: pytest.Subtests
) -> None:
    for outcome in Outcome:
        with subtests.test(outcome.value):
            lease, other = harness.take(), harness.take()
            reports = [
                Report(lease.id, other.lease_id, outcome),
                Report(lease.id, str(uuid4()), outcome),
                Report(lease.id, lease.lease_id.upper() + "0", outcome),
                Report(new_id(), lease.lease_id, outcome),
                Report(new_id(), str(uuid4()), outcome),
                *(Report(lease.id, text, outcome) for text in MALFORMED_IDS),
                *(Report(text, lease.lease_id, outcome) for text in MALFORMED_IDS),
                *(Report(text, text, outcome) for text in MALFORMED_IDS),
            ]
            before = harness.sql.contents()
            assert harness.report(*reports) == [LOST] * len(reports)
            for report in reports:
                assert harness.report(report) == [LOST]
            assert harness.sql.contents() == before
            # Among them, what is true still counts.
            assert harness.report(reports[0], report_completed(lease), reports[-1]) == [
                LOST,
                RECORDED,
                LOST,
            ]
        harness.cancel_all()


def test_no_lease_is_no_key_to_a_job_at_rest(harness: StoreHarness) -> None:
    job = harness.add()
    for missing in ("", "None", "null"):
        assert harness.report(Report(job.id, missing, Outcome.COMPLETED)) == [LOST]
    assert harness.get(job.id).status == "pending"


def test_a_job_that_was_pruned_is_lost(harness: StoreHarness) -> None:
    lease = harness.take()
    harness.report(report_completed(lease))
    harness.clock.advance(10)
    harness.prune({"completed": harness.clock.now})
    assert harness.report(report_completed(lease)) == [LOST]


def test_late_but_before_the_sweep_counts(harness: StoreHarness, subtests: pytest.Subtests) -> None:
    for outcome in Outcome:
        for late in [0.0, TICK, 5 * 86_400.0]:
            with subtests.test(f"{outcome} {late}"):
                lease = harness.take()
                harness.clock.advance(LEASE_SECONDS + late)
                assert harness.report(REPORTS[outcome](lease)) == [RECORDED]
                assert harness.store.sweep().result() == []
                assert harness.get(lease.id).status == AFTER[outcome]
            harness.cancel_all()


# --- many at once -----------------------------------------------------------------------------


@also_as_granted_role
def test_a_large_mixed_batch_is_answered_in_order(harness: StoreHarness) -> None:
    leases = [harness.take() for _ in range(60)]
    outcomes = list(Outcome)
    reports = [REPORTS[outcomes[n % 3]](lease) for n, lease in enumerate(leases)]
    assert harness.report(*reports) == [RECORDED] * 60
    assert harness.report(*reversed(reports)) == [ALREADY] * 60
    statuses = [harness.get(lease.id).status for lease in leases]
    assert statuses == [AFTER[outcomes[n % 3]] for n in range(60)]


@pytest.mark.scenario(28)
def test_the_same_report_from_many_at_once_is_recorded_once(harness: StoreHarness) -> None:
    for outcome in Outcome:
        lease = harness.take()
        futures = [harness.store.exchange([REPORTS[outcome](lease)], None) for _ in range(20)]
        answers = [future.result().verdicts[0] for future in futures]
        assert sorted(v.answer for v in answers) == [*["already_recorded"] * 19, "recorded"]
        assert harness.events(lease.id).count(outcome) == 1
        harness.report(*map(report_completed, harness.claim(limit=5)))  # out of the way


@pytest.mark.scenario(29)
def test_success_and_failure_at_once_settle_on_one(harness: StoreHarness) -> None:
    for _ in range(20):
        lease = harness.take()
        futures = [
            harness.store.exchange([report(lease)], None)
            for report in (report_completed, report_failed, report_released) * 3
        ]
        answers = [future.result().verdicts[0] for future in futures]
        (first,) = (n for n, v in enumerate(answers) if v.answer is Answer.RECORDED)
        winner = ("completed", "failed", "released")[first % 3]
        others = [v for n, v in enumerate(answers) if n != first]
        assert set(others) <= {ALREADY, conflict(winner)}
        assert harness.events(lease.id)[2] == winner
        if winner != "completed":  # or it would be there for the next claim
            harness.store.apply(lease.id, Cancelled()).result()
