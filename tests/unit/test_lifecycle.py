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
from tenure.events import (
    Amended,
    Cancelled,
    Claimed,
    Completed,
    Event,
    Expired,
    Failed,
    GaveUp,
    Interrupted,
    LeaseExpired,
    Released,
    Restored,
    Retried,
    Skipped,
    Snoozed,
    Suspended,
    Unblocked,
)
from tenure.lifecycle import (
    MAX_RETURNS,
    Job,
    Status,
    at_rest,
    decide,
    follow,
    has_budget,
    legal_events,
    retry_in,
)
from tenure.retry import delay

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
TICK = timedelta(microseconds=1)

LEASE = "lease of the holder"
FOREIGN = "lease of somebody else"

# What an event does to a job in each status. `due`: not before run_at. `over`: not before the end
# of the lease. `budget`: only while attempts are left. Everything else is refused, in two ways.
EXPECTED = """
event                 | waiting   | pending        | processing  | completed | failed         | cancelled
claimed               | illegal   | processing due | illegal     | illegal   | illegal        | illegal
completed             | lost      | lost           | completed   | lost      | lost           | lost
completed elsewhere   | lost      | lost           | lost        | lost      | lost           | lost
failed                | lost      | lost           | failed      | lost      | lost           | lost
failed elsewhere      | lost      | lost           | lost        | lost      | lost           | lost
gave_up               | lost      | lost           | failed      | lost      | lost           | lost
gave_up elsewhere     | lost      | lost           | lost        | lost      | lost           | lost
released              | lost      | lost           | pending     | lost      | lost           | lost
released elsewhere    | lost      | lost           | lost        | lost      | lost           | lost
interrupted           | lost      | lost           | pending     | lost      | lost           | lost
interrupted elsewhere | lost      | lost           | lost        | lost      | lost           | lost
snoozed               | lost      | lost           | pending     | lost      | lost           | lost
snoozed elsewhere     | lost      | lost           | lost        | lost      | lost           | lost
suspended             | lost      | lost           | waiting     | lost      | lost           | lost
suspended for nothing | lost      | lost           | illegal     | lost      | lost           | lost
suspended elsewhere   | lost      | lost           | lost        | lost      | lost           | lost
lease_expired         | illegal   | illegal        | failed over | illegal   | illegal        | illegal
retried               | illegal   | illegal        | illegal     | illegal   | pending budget | illegal
retried with one more | illegal   | illegal        | illegal     | illegal   | pending        | illegal
unblocked             | pending   | illegal        | illegal     | illegal   | illegal        | illegal
unblocked too early   | illegal   | illegal        | illegal     | illegal   | illegal        | illegal
skipped               | cancelled | illegal        | illegal     | illegal   | illegal        | illegal
skipped too early     | illegal   | illegal        | illegal     | illegal   | illegal        | illegal
restored              | illegal   | illegal        | illegal     | illegal   | illegal        | illegal
amended               | illegal   | pending        | illegal     | illegal   | illegal        | illegal
expired               | illegal   | illegal        | illegal     | illegal   | illegal        | illegal
cancelled             | cancelled | cancelled      | cancelled   | illegal   | illegal        | illegal
"""  # noqa: E501

EVENTS: dict[str, Event] = {
    "claimed": Claimed(lease_id="new lease", lease_seconds=30, actor="worker 2"),
    "completed": Completed(lease_id=LEASE, result='"done"'),
    "completed elsewhere": Completed(lease_id=FOREIGN, result='"done"'),
    "failed": Failed(lease_id=LEASE, error="boom"),
    "failed elsewhere": Failed(lease_id=FOREIGN, error="boom"),
    "gave_up": GaveUp(lease_id=LEASE, error="boom"),
    "gave_up elsewhere": GaveUp(lease_id=FOREIGN, error="boom"),
    "released": Released(lease_id=LEASE),
    "released elsewhere": Released(lease_id=FOREIGN),
    "interrupted": Interrupted(lease_id=LEASE),
    "interrupted elsewhere": Interrupted(lease_id=FOREIGN),
    "snoozed": Snoozed(lease_id=LEASE, delay=60),
    "snoozed elsewhere": Snoozed(lease_id=FOREIGN, delay=60),
    "suspended": Suspended(lease_id=LEASE, need=2, spare=1),
    "suspended for nothing": Suspended(lease_id=LEASE, need=0),
    "suspended elsewhere": Suspended(lease_id=FOREIGN, need=2),
    "lease_expired": LeaseExpired(),
    "retried": Retried(delay=5),
    "retried with one more": Retried(delay=5, more_retries=1),
    "unblocked": Unblocked(),
    "unblocked too early": Unblocked(need=1),
    "skipped": Skipped(),
    "skipped too early": Skipped(spare=0),
    "restored": Restored(need=1, spare=0),
    "amended": Amended(changes={"priority": 7}),
    "expired": Expired(),
    "cancelled": Cancelled(),
}

LEGAL = {
    "waiting": ("unblocked", "cancelled", "skipped", "expired"),
    "pending": ("claimed", "amended", "cancelled", "expired"),
    "processing": (
        *("completed", "failed", "gave_up", "lease_expired", "released", "interrupted"),
        *("snoozed", "suspended", "cancelled"),
    ),
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
    "waiting": UNTRIED_LEFT,
    "pending": UNTRIED_LEFT,
    "processing": TRIED,
    "completed": TRIED,
    "failed": TRIED,
    "cancelled": sorted({*UNTRIED_LEFT, *TRIED}),
}

NEVER_CHANGE = (
    *("id", "type", "queue", "payload_json", "timeout", "backoff"),
    *("idempotency_key", "created_at", "start_by"),
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
        need=2 if status == "waiting" else None,
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
    returns = ("released", "interrupted", "snoozed", "suspended")
    changes = {"claimed": (1, 1), **dict.fromkeys(returns, (-1, 0))}  # attempts, token
    for status in Status:
        for job, _ in every_case(status):
            try:
                after = decide(job, EVENTS[event], NOW)
            except (IllegalTransition, LeaseLost):
                continue
            charge, fence = changes.get(event, (0, 0))
            assert after.attempts == job.attempts + charge
            assert after.token == job.token + fence
            assert after.snoozes == job.snoozes + (event in ("snoozed", "suspended"))
            assert after.priority == (7 if event == "amended" else job.priority)
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
    assert decide(job, EVENTS["completed"], NOW).result_json == '"done"'
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
    job = replace(job_in("processing", 1, 1), token=1 + MAX_RETURNS)
    assert follow(job, Released(lease_id=LEASE, actor="relay"), NOW)[0].actor == "relay"
    assert follow(job, Released(lease_id=LEASE), NOW)[0].actor == "worker 1"


RETURNS: dict[str, tuple[Event, dict[str, int]]] = {
    "released": (Released(lease_id=LEASE), {"token": 101}),
    "interrupted": (Interrupted(lease_id=LEASE), {"token": 101}),
    "released after snoozes": (Released(lease_id=LEASE), {"token": 106, "snoozes": 5}),
    "snoozed": (Snoozed(lease_id=LEASE, delay=1), {"token": 10_001, "snoozes": 10_000}),
    "suspended": (Suspended(lease_id=LEASE, need=1), {"token": 10_001, "snoozes": 10_000}),
}


@pytest.mark.parametrize("name", RETURNS)
def test_a_return_too_many_is_a_failure(name: str) -> None:
    event, counters = RETURNS[name]
    allowed = replace(job_in("processing", 1, 3), **counters)
    with pytest.raises(IllegalTransition):
        decide(allowed, event, NOW)
    failure, retry = follow(allowed, event, NOW)
    assert (failure.event, failure.attempts, retry.event) == ("failed", 1, "retried")
    assert event.name in (failure.last_error or "")
    bound = "snoozes" if event.name in ("snoozed", "suspended") else "token"
    one_less = {bound: counters[bound] - 1}
    (returned,) = follow(replace(allowed, **one_less), event, NOW)
    assert (returned.event, returned.attempts) == (event.name, 0)


def test_a_snooze_sets_the_time_and_a_suspension_what_it_waits_for() -> None:
    job = job_in("processing", 2, 3)
    assert decide(job, EVENTS["snoozed"], NOW).run_at == NOW + timedelta(seconds=60)
    suspended = decide(job, EVENTS["suspended"], NOW)
    assert (suspended.need, suspended.spare, suspended.run_at) == (2, 1, job.run_at)


def test_a_failure_may_set_the_time_of_its_retry() -> None:
    steps = follow(job_in("processing", 1, 3), Failed(lease_id=LEASE, error="x", delay=7.5), NOW)
    assert [step.event for step in steps] == ["failed", "retried"]
    assert steps[-1].run_at == NOW + timedelta(seconds=7.5)
    assert retry_in(steps) == 7.5
    last = follow(job_in("processing", 3, 3), Failed(lease_id=LEASE, error="x", delay=7.5), NOW)
    assert (len(last), retry_in(last)) == (1, None)
    done = follow(job_in("processing", 1, 3), EVENTS["completed"], NOW)
    assert retry_in(done) is None


REFUSALS = [
    ("waiting", Expired(), "the time by which it has to start has not passed"),
    ("processing", Suspended(lease_id=LEASE, need=0), "there is nothing to wait for"),
    ("waiting", Unblocked(need=1), "what it waits for has not come"),
    ("waiting", Skipped(spare=0), "what it waits for can still come"),
    ("cancelled", Restored(need=1, spare=0), "only a job that was skipped can be restored"),
]


@pytest.mark.parametrize(("status", "event", "reason"), REFUSALS)
def test_a_refusal_says_which_guard_it_was(status: str, event: Event, reason: str) -> None:
    with pytest.raises(IllegalTransition) as refused:
        decide(job_in(status, 0 if status == "waiting" else 1, 3), event, NOW)
    assert f"it cannot be {event.name} ({reason})" in str(refused.value)


def test_a_refusal_names_what_is_legal_after_the_last_event() -> None:
    skipped = decide(job_in("waiting", 0, 3), Skipped(), NOW)
    with pytest.raises(IllegalTransition) as refused:
        decide(skipped, Cancelled(), NOW)
    assert refused.value.legal == ("restored",)


def test_an_unblocked_job_is_due_from_then_on_or_later() -> None:
    job = job_in("waiting", 0, 3)
    assert decide(job, Unblocked(need=-1), NOW).run_at == NOW
    later = replace(job, run_at=NOW + TICK)
    after = decide(later, Unblocked(), NOW)
    assert (after.run_at, after.need) == (NOW + TICK, 0)


def test_only_what_was_skipped_is_restored() -> None:
    skipped = decide(job_in("waiting", 0, 3), Skipped(spare=-2), NOW)
    assert (skipped.status, skipped.spare, skipped.actor) == ("cancelled", -2, "store")
    restored = decide(skipped, Restored(need=3, spare=1), NOW)
    assert (restored.status, restored.need, restored.spare) == ("waiting", 3, 1)
    assert restored.finished_at is None
    with pytest.raises(IllegalTransition, match="nothing to wait for"):
        decide(skipped, Restored(need=0, spare=1), NOW)
    with pytest.raises(IllegalTransition, match="was skipped"):
        decide(job_in("cancelled", 0, 3), Restored(need=3, spare=1), NOW)


@pytest.mark.parametrize("status", ["waiting", "pending"])
def test_a_job_expires_once_its_time_to_start_has_passed(status: str) -> None:
    job = replace(job_in(status, 0, 3), start_by=NOW)
    after = decide(job, Expired(), NOW)
    assert (after.status, after.actor, after.finished_at) == ("cancelled", "sweep", NOW)
    with pytest.raises(IllegalTransition, match="has not passed"):
        decide(replace(job, start_by=NOW + TICK), Expired(), NOW)


def test_a_job_is_not_claimed_once_its_time_to_start_has_passed() -> None:
    job = replace(job_in("pending", 0, 3), start_by=NOW + TICK)
    assert decide(job, EVENTS["claimed"], NOW).status == "processing"
    with pytest.raises(IllegalTransition, match="had to start before"):
        decide(replace(job, start_by=NOW), EVENTS["claimed"], NOW)


def test_a_payload_is_amended_until_the_first_claim_and_the_rest_after_it() -> None:
    new = {"payload": '{"a":1}', "max_retries": 9, "run_at": NOW, "timeout": None, "priority": 1}
    untried = replace(job_in("pending", 0, 3), token=0)
    after = decide(untried, Amended(changes=new, actor="ada"), NOW)
    assert after.payload_json == new["payload"]
    assert all(getattr(after, name) == new[name] for name in new.keys() - {"payload"})
    assert (after.event, after.actor) == ("amended", "ada")
    tried = job_in("pending", 1, 3)
    with pytest.raises(
        IllegalTransition, match=r"\(its payload cannot change after its first claim\)"
    ):
        decide(tried, Amended(changes=new), NOW)
    del new["payload"]
    assert decide(tried, Amended(changes=new), NOW).max_retries == 9
    assert decide(tried, Amended(changes={"id": "another"}), NOW).id == tried.id


def test_a_job_is_at_rest_when_no_retry_is_on_its_way() -> None:
    processing = job_in("processing", 1, 3)
    failed = decide(processing, EVENTS["failed"], NOW)
    assert not at_rest(failed)
    assert at_rest(decide(processing, EVENTS["gave_up"], NOW))
    assert at_rest(decide(job_in("processing", 3, 3), EVENTS["failed"], NOW))
    at_the_end = [status for status in Status if at_rest(job_in(status, 3, 3))]
    assert at_the_end == ["completed", "failed", "cancelled"]


def test_statuses_and_their_legal_events() -> None:
    assert {str(status): legal_events(status) for status in Status} == LEGAL
    assert legal_events(Status.CANCELLED, "skipped") == ("restored",)


def test_the_budget_is_the_table_by_hand() -> None:
    for max_retries, line in BUDGET.items():
        for attempts, answer in enumerate(line):
            assert has_budget(attempts, max_retries) == (answer == "yes")


def test_a_refusal_reads_as_a_sentence() -> None:
    with pytest.raises(IllegalTransition) as refusal:
        decide(job_in("failed", 3, 3), Retried(), NOW)
    message = str(refusal.value)
    assert "is failed: it cannot be retried" in message
    assert "attempts are used up: 3" in message
    assert "legal from here" not in message  # a retry is, with more attempts
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
