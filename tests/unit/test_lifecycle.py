"""The state machine against a table of our own: every status, event, budget and clock case.

Nothing expected here is computed from `TRANSITIONS`: it stands in the tables below, written by
hand.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from tenure.errors import IllegalTransition, LeaseLost
from tenure.lifecycle import (
    MAX_RELEASES,
    Cancelled,
    Claimed,
    Completed,
    Event,
    Failed,
    Job,
    LeaseExpired,
    Released,
    Retried,
    Status,
    decide,
    follow,
    has_budget,
    legal_events,
)
from tenure.retry import delay

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
TICK = timedelta(microseconds=1)

LEASE = "lease of the holder"
FOREIGN = "lease of somebody else"

# What an event does to a job in each status. `due`: not before run_at. `over`: not before the end
# of the lease. `budget`: only while attempts are left. Everything else is refused, in two ways.
EXPECTED = """
event                 | pending        | processing  | completed | failed         | cancelled
claimed               | processing due | illegal     | illegal   | illegal        | illegal
completed             | lost           | completed   | lost      | lost           | lost
completed elsewhere   | lost           | lost        | lost      | lost           | lost
failed                | lost           | failed      | lost      | lost           | lost
failed for good       | lost           | failed      | lost      | lost           | lost
failed elsewhere      | lost           | lost        | lost      | lost           | lost
released              | lost           | pending     | lost      | lost           | lost
released elsewhere    | lost           | lost        | lost      | lost           | lost
lease_expired         | illegal        | failed over | illegal   | illegal        | illegal
retried               | illegal        | illegal     | illegal   | pending budget | illegal
retried with one more | illegal        | illegal     | illegal   | pending        | illegal
cancelled             | cancelled      | cancelled   | illegal   | illegal        | illegal
"""

EVENTS: dict[str, Event] = {
    "claimed": Claimed(lease_id="new lease", lease_seconds=30, actor="worker 2"),
    "completed": Completed(lease_id=LEASE, result='"done"'),
    "completed elsewhere": Completed(lease_id=FOREIGN, result='"done"'),
    "failed": Failed(lease_id=LEASE, error="boom"),
    "failed for good": Failed(lease_id=LEASE, error="boom", retryable=False),
    "failed elsewhere": Failed(lease_id=FOREIGN, error="boom"),
    "released": Released(lease_id=LEASE),
    "released elsewhere": Released(lease_id=FOREIGN),
    "lease_expired": LeaseExpired(),
    "retried": Retried(delay=5),
    "retried with one more": Retried(delay=5, more_retries=1),
    "cancelled": Cancelled(),
}

LEGAL = {
    "pending": ("claimed", "cancelled"),
    "processing": ("completed", "failed", "lease_expired", "released", "cancelled"),
    "completed": (),
    "failed": ("retried",),
    "cancelled": (),
}

# May a failed job be tried again? A line per max_retries, a column per attempts: 0, 1, 2, 3.
BUDGET = {
    0: ("no", "no", "no", "no"),
    1: ("yes", "no", "no", "no"),
    2: ("yes", "yes", "no", "no"),
    3: ("yes", "yes", "yes", "no"),
}

# The (attempts, max_retries) that a row can have: a job at rest before a claim has one left.
UNTRIED_LEFT = [(0, 0), (0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
TRIED = [(1, 0), (1, 1), (1, 2), (2, 2), (1, 3), (2, 3), (3, 3)]
COUNTERS = {
    "pending": UNTRIED_LEFT,
    "processing": TRIED,
    "completed": TRIED,
    "failed": TRIED,
    "cancelled": sorted({*UNTRIED_LEFT, *TRIED}),
}

NEVER_CHANGE = (
    *("id", "type", "queue", "payload", "priority", "timeout", "backoff"),
    *("idempotency_key", "created_at"),
)

EVERY_PAIR = list(itertools.product(Status, EVENTS))


def parse_expected() -> dict[tuple[str, str], str]:
    header, *lines = [
        [cell.strip() for cell in line.split("|")] for line in EXPECTED.strip().splitlines()
    ]
    return {
        (status, line[0]): cell
        for line in lines
        for status, cell in zip(header[1:], line[1:], strict=True)
    }


TABLE = parse_expected()


def may_retry(job: Job) -> bool:
    return BUDGET[job.max_retries][job.attempts] == "yes"


def job_in(status: str, attempts: int, max_retries: int, ago: timedelta = TICK) -> Job:
    """A job of that status. Its run_at, and the end of its lease, lie `ago` before NOW."""
    tried, processing = attempts > 0, status == "processing"
    settled = status in ("completed", "failed", "cancelled")
    return Job(
        id="0190163d-8694-739b-aea5-966c26f8ad90",
        type="mail",
        created_at=NOW - timedelta(hours=1),
        run_at=NOW - ago,
        status=Status(status),
        attempts=attempts,
        max_retries=max_retries,
        token=attempts + 2,
        started_at=NOW - timedelta(minutes=1) if tried else None,
        finished_at=NOW - timedelta(seconds=9) if settled else None,
        worker="worker 1" if tried else None,
        lease_id=LEASE if processing else None,
        lease_expires_at=NOW - ago if processing else None,
        last_error="it failed before" if status == "failed" else None,
    )


def every_case(status: str) -> Iterator[tuple[Job, bool]]:
    """Each job that can stand in `status`, and whether its time (run_at, lease end) has come."""
    for attempts, max_retries in COUNTERS[status]:
        yield job_in(status, attempts, max_retries, ago=-TICK), False
        yield job_in(status, attempts, max_retries, ago=timedelta(0)), True
        yield job_in(status, attempts, max_retries, ago=TICK), True


def expected_of(job: Job, event: str, *, time_has_come: bool) -> str:
    """The status that the table says follows, or the kind of refusal."""
    outcome, _, condition = TABLE[job.status, event].partition(" ")
    held = {"": True, "due": time_has_come, "over": time_has_come, "budget": may_retry(job)}
    return outcome if held[condition] else "illegal"


def test_the_table_speaks_of_every_pair() -> None:
    assert TABLE.keys() == {(str(status), event) for status, event in EVERY_PAIR}


@pytest.mark.parametrize(("status", "event"), EVERY_PAIR)
def test_decide_does_what_the_table_says(status: Status, event: str) -> None:
    for job, time_has_come in every_case(status):
        expected = expected_of(job, event, time_has_come=time_has_come)
        before = replace(job)
        if expected == "illegal":
            with pytest.raises(IllegalTransition) as refusal:
                decide(job, EVENTS[event], NOW)
            assert refusal.value.legal == LEGAL[status]
            assert (refusal.value.job_id, refusal.value.status) == (job.id, status)
            assert refusal.value.event == EVENTS[event].name
        elif expected == "lost":
            with pytest.raises(LeaseLost) as loss:
                decide(job, EVENTS[event], NOW)
            assert loss.value.job_id == job.id
        else:
            assert decide(job, EVENTS[event], NOW).status == expected
        assert job == before


@pytest.mark.parametrize(("status", "event"), EVERY_PAIR)
def test_follow_adds_the_retry_and_nothing_else(status: Status, event: str) -> None:
    for job, time_has_come in every_case(status):
        expected = expected_of(job, event, time_has_come=time_has_come)
        if expected in ("illegal", "lost"):
            with pytest.raises((IllegalTransition, LeaseLost)):
                follow(job, EVENTS[event], NOW)
            continue
        path = [row.status for row in follow(job, EVENTS[event], NOW)]
        if event in ("failed", "lease_expired") and may_retry(job):
            assert path == ["failed", "pending"]
        else:
            assert path == [expected]


@pytest.mark.parametrize("event", EVENTS)
def test_a_move_changes_the_counters_it_says_and_keeps_the_rest(event: str) -> None:
    changes = {"claimed": (1, 1), "released": (-1, 0)}  # attempts, token; all others none
    for status in Status:
        for job, _ in every_case(status):
            try:
                after = decide(job, EVENTS[event], NOW)
            except (IllegalTransition, LeaseLost):
                continue
            charge, fence = changes.get(event, (0, 0))
            assert after.attempts == job.attempts + charge
            assert after.token == job.token + fence
            assert (after.lease_id is not None) == (after.status == "processing")
            assert (after.lease_expires_at is not None) == (after.status == "processing")
            in_the_end = after.status in ("completed", "failed", "cancelled")
            assert after.finished_at == (NOW if in_the_end else None)
            assert after.event == EVENTS[event].name
            assert all(getattr(after, name) == getattr(job, name) for name in NEVER_CHANGE)


def test_a_claim_hands_the_lease_out() -> None:
    after = decide(job_in("pending", 1, 3), EVENTS["claimed"], NOW)
    assert after.lease_id == "new lease"
    assert after.lease_expires_at == NOW + timedelta(seconds=30)
    assert after.started_at == NOW
    assert (after.worker, after.actor) == ("worker 2", "worker 2")


def test_what_the_holder_says_is_kept() -> None:
    job = job_in("processing", 1, 1)
    assert decide(job, EVENTS["completed"], NOW).result == '"done"'
    assert decide(job, EVENTS["failed"], NOW).last_error == "boom"
    assert decide(job, EVENTS["failed"], NOW).actor == "worker 1"
    by_hand = Failed(lease_id=LEASE, error="boom", actor="relay")
    assert decide(job, by_hand, NOW).actor == "relay"


def test_a_lease_that_ran_out_says_whose_it_was() -> None:
    after = decide(job_in("processing", 2, 2), LeaseExpired(), NOW)
    assert after.last_error is not None
    assert "worker 1" in after.last_error
    assert after.last_error.endswith(f"attempt 2 before {(NOW - TICK).isoformat()}")
    assert after.actor == "sweep"
    without_end = replace(job_in("processing", 2, 2), lease_expires_at=None)
    told = decide(without_end, LeaseExpired(), NOW).last_error
    assert told is not None
    assert told.endswith("before its end")


def test_a_report_between_the_end_of_a_lease_and_the_sweep_counts() -> None:
    late = job_in("processing", 1, 3, ago=timedelta(hours=5))
    assert decide(late, EVENTS["completed"], NOW).status == "completed"


def test_a_retry_waits_from_now_on() -> None:
    retried = decide(job_in("failed", 1, 3), Retried(delay=5), NOW)
    assert retried.run_at == NOW + timedelta(seconds=5)
    assert retried.max_retries == 3
    assert retried.last_error == "it failed before"


def test_each_job_waits_its_own_time_for_a_retry() -> None:
    one = job_in("processing", 1, 3)
    other = replace(one, id="0190163d-8694-739b-aea5-966c26f8ad91")
    waits = {follow(job, EVENTS["failed"], NOW)[-1].run_at for job in (one, other)}
    assert waits == {NOW + timedelta(seconds=delay(one.backoff, j.id, 1)) for j in (one, other)}
    assert len(waits) == 2


def test_a_job_handed_back_too_often_fails_by_the_hand_that_held_it() -> None:
    job = replace(job_in("processing", 1, 1), token=1 + MAX_RELEASES)
    assert follow(job, Released(lease_id=LEASE, actor="relay"), NOW)[0].actor == "relay"
    assert follow(job, Released(lease_id=LEASE), NOW)[0].actor == "worker 1"


def test_statuses_and_their_legal_events() -> None:
    assert {str(status): legal_events(status) for status in Status} == LEGAL


def test_the_budget_is_the_table_by_hand() -> None:
    for max_retries, line in BUDGET.items():
        for attempts, answer in enumerate(line):
            assert has_budget(attempts, max_retries) == (answer == "yes")


def test_a_refusal_reads_as_a_sentence() -> None:
    with pytest.raises(IllegalTransition) as refusal:
        decide(job_in("failed", 3, 3), Retried(), NOW)
    message = str(refusal.value)
    assert "is failed: it cannot be retried" in message
    assert "3 attempts are used up" in message
    assert "legal from here: retried" in message
    with pytest.raises(
        IllegalTransition, match=r"be claimed \(it is not due before 2026-05-04T12:00:00\.000001"
    ):
        decide(job_in("pending", 0, 3, ago=-TICK), EVENTS["claimed"], NOW)
    with pytest.raises(IllegalTransition, match=r"\(its lease has not run out\)"):
        decide(job_in("processing", 1, 3, ago=-TICK), LeaseExpired(), NOW)
    with pytest.raises(IllegalTransition, match="cannot be claimed; legal"):
        decide(job_in("completed", 1, 3), EVENTS["claimed"], NOW)
    with pytest.raises(IllegalTransition, match="legal from here: none"):
        decide(job_in("completed", 1, 3), Retried(more_retries=9), NOW)
