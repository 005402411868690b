"""The rules hold in every interleaving of a small world, and broken rules are caught there."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from msgspec.structs import replace

from tenure import lifecycle
from tenure.errors import IllegalTransition
from tenure.events import Claimed, Completed, Event, Failed, GaveUp, LeaseExpired, Released
from tenure.lifecycle import Job, Status
from tenure.rules.reports import ALREADY_RECORDED, Answer, Outcome, Verdict
from tenure.store import transitions
from tests.model import explorer
from tests.model.explorer import Limits, Row, explore

SMALL = Limits(limits=(2,), crashes=1, releases=1, cancels=1)
CONTROLLED = SMALL._replace(retries=1)
DOUBTS = Limits(limits=(3,), crashes=1, releases=0, cancels=1, doubts=True)
TWO_STEPS = Limits(limits=(2,), crashes=1, releases=0, cancels=0, two_steps=True)
FAILOVER = Limits(limits=(3,), crashes=0, releases=0, cancels=0, failovers=1)

WORLDS = [
    Limits(limits=(2, 1), crashes=1, releases=0, cancels=1),
    # As large as all others: what two jobs have to do with each other shows in (2, 1), too.
    pytest.param(Limits(limits=(2, 2), crashes=1, releases=0, cancels=0), marks=pytest.mark.full),
    Limits(limits=(1, 0), crashes=1, releases=1, cancels=1),
    Limits(limits=(3,), crashes=1, releases=1, cancels=0),
    Limits(limits=(0,), crashes=1, releases=0, cancels=1, retries=2),
    Limits(limits=(3,), crashes=2, releases=0, cancels=0, workers=3),
    SMALL,
    DOUBTS,
    TWO_STEPS,
    TWO_STEPS._replace(limits=(2, 1), crashes=0),
    FAILOVER._replace(limits=(2,), crashes=1),
    FAILOVER,
]

Decide = Callable[[Job, Event, datetime], Job]
Break = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize("size", WORLDS)
def test_the_rules_hold_in_every_interleaving(size: Limits) -> None:
    found = explore(size)
    assert found.violation == "", found.trace
    assert found.states > 1_000


# --- negative controls: each is a way in which such queues have been wrong ---------------------


def wrapped(change: Callable[[Decide, Job, Event, datetime], Job]) -> Break:
    """Put a broken rule around `decide`."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        right = lifecycle.decide
        patch.setattr(lifecycle, "decide", lambda job, event, now: change(right, job, event, now))

    return apply


def with_move(event: str, source: Status, **changes: Any) -> Break:
    """Change one line of the table."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        table = dict(lifecycle.RULE_OF)
        line = table[event, source]
        table[event, source] = replace(line, **changes)
        patch.setattr(lifecycle, "RULE_OF", table)

    return apply


def nobody_checks_the_lease(right: Decide, job: Job, event: Event, now: datetime) -> Job:
    if isinstance(event, Completed | Failed | Released) and job.lease_id:
        event = replace(event, lease_id=job.lease_id)
    return right(job, event, now)


def late_failures_count(right: Decide, job: Job, event: Event, now: datetime) -> Job:
    if isinstance(event, Failed) and job.status == "pending":
        return replace(job, status=Status.FAILED, event="failed", last_error="late")
    return right(job, event, now)


def a_lease_that_ends_is_free(right: Decide, job: Job, event: Event, now: datetime) -> Job:
    after = right(job, event, now)
    is_expiry = isinstance(event, LeaseExpired)
    return replace(after, attempts=after.attempts - 1) if is_expiry else after


def an_exhausted_job_is_left_alone(right: Decide, job: Job, event: Event, now: datetime) -> Job:
    if isinstance(event, LeaseExpired) and job.attempts >= job.max_retries:
        raise IllegalTransition(job.id, job.status, event.name, (), "left to somebody else")
    return right(job, event, now)


def the_lease_stays_after_a_failure(right: Decide, job: Job, event: Event, now: datetime) -> Job:
    after = right(job, event, now)
    return replace(after, lease_id=job.lease_id) if isinstance(event, Failed) else after


def a_job_handed_back_forgets_its_token(
    right: Decide, job: Job, event: Event, now: datetime
) -> Job:
    after = right(job, event, now)
    return replace(after, token=after.token - 1) if isinstance(event, Released) else after


def the_token_is_the_attempt(right: Decide, job: Job, event: Event, now: datetime) -> Job:
    after = right(job, event, now)
    return replace(after, token=after.attempts) if isinstance(event, Claimed) else after


def a_failure_is_recorded_as_success(right: Decide, job: Job, event: Event, now: datetime) -> Job:
    after = right(job, event, now)
    return replace(after, status=Status.COMPLETED) if isinstance(event, Failed) else after


def the_limit_counts_one_too_many(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lifecycle, "has_budget", lambda attempts, limit: attempts <= limit)


def the_limit_counts_one_too_few(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lifecycle, "has_budget", lambda attempts, limit: attempts + 1 < limit)


def expired_leases_get_no_retry(patch: pytest.MonkeyPatch) -> None:
    right = lifecycle.follow

    def follow(job: Job, event: Event, now: datetime) -> tuple[Job, ...]:
        path = right(job, event, now)
        return path[:1] if isinstance(event, LeaseExpired) else path

    patch.setattr(lifecycle, "follow", follow)


def permanent_failures_are_tried_again(patch: pytest.MonkeyPatch) -> None:
    right = lifecycle.follow

    def follow(job: Job, event: Event, now: datetime) -> tuple[Job, ...]:
        if isinstance(event, GaveUp):
            event = Failed(lease_id=event.lease_id, error=event.error)
        return right(job, event, now)

    patch.setattr(lifecycle, "follow", follow)


def settled_jobs_can_be_retried(patch: pytest.MonkeyPatch) -> None:
    table = dict(lifecycle.RULE_OF)
    table["retried", Status.COMPLETED] = table["retried", Status.FAILED]
    patch.setattr(lifecycle, "RULE_OF", table)


def a_running_job_can_be_claimed(patch: pytest.MonkeyPatch) -> None:
    table = dict(lifecycle.RULE_OF)
    table["claimed", Status.PROCESSING] = table["claimed", Status.PENDING]
    patch.setattr(lifecycle, "RULE_OF", table)


def a_token_that_restarts(right: Decide, job: Job, event: Event, now: datetime) -> Job:
    after = right(job, event, now)
    return after if after.lease_id else replace(after, token=0)


def answering(change: Callable[[Outcome, str], Verdict | None]) -> Break:
    """Answer late reports differently, where `change` says so."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        right = transitions.late_verdict
        patch.setattr(transitions, "late_verdict", lambda *asked: change(*asked) or right(*asked))

    return apply


def any_outcome_is_fine(outcome: Outcome, event: str) -> Verdict | None:
    return ALREADY_RECORDED if event else None


def an_outcome_stands_for_another(outcome: Outcome, event: str) -> Verdict | None:
    return ALREADY_RECORDED if event in (*Outcome, "gave_up") else None


def a_report_counts_once(outcome: Outcome, event: str) -> Verdict | None:
    return Verdict(Answer.CONFLICT, event) if event == outcome else None


def whatever_ended_is_lost(outcome: Outcome, event: str) -> Verdict | None:
    same = event.replace("gave_up", "failed") == outcome
    return Verdict(Answer.LOST, event) if event and not same else None


def only_the_last_outcome_is_kept(patch: pytest.MonkeyPatch) -> None:
    def ended_as(row: Row, lease: str) -> str:
        return dict(row.ended[-1:]).get(lease, "")

    patch.setattr(explorer, "ended_as", ended_as)


def the_sweep_writes_what_it_read(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(explorer, "is_as_read", lambda row, read: True)


def the_sweep_looks_at_the_status_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(explorer, "is_as_read", lambda row, read: row.status == read.status)


def leases_are_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(explorer, "new_lease", lambda claim: claim.partition(" of epoch")[0])


CONTROLS: dict[str, tuple[Break, str]] = {
    "nobody checks the lease": (wrapped(nobody_checks_the_lease), "dead lease"),
    "late failures count": (wrapped(late_failures_count), "illegal move"),
    "a lease that ends is free": (wrapped(a_lease_that_ends_is_free), "runs than the limit"),
    "an exhausted job is left alone": (wrapped(an_exhausted_job_is_left_alone), "never end"),
    "the lease stays": (wrapped(the_lease_stays_after_a_failure), "without processing"),
    "a job handed back forgets": (wrapped(a_job_handed_back_forgets_its_token), "token fell"),
    "the token is the attempt": (wrapped(the_token_is_the_attempt), "ended twice|without an end"),
    "a failure counts as success": (wrapped(a_failure_is_recorded_as_success), "illegal move"),
    "one too many": (the_limit_counts_one_too_many, "than the limit"),
    "one too few": (the_limit_counts_one_too_few, "retry was lost"),
    "no retry after a crash": (expired_leases_get_no_retry, "retry was lost"),
    "permanent failures again": (permanent_failures_are_tried_again, "permanent failure"),
    "success is retried": (settled_jobs_can_be_retried, "illegal move completed"),
    "claims are free": (with_move("claimed", Status.PENDING, attempts=0), "runs than the limit"),
    "claims of what runs": (a_running_job_can_be_claimed, "illegal move"),
    "success goes back": (
        with_move("completed", Status.PROCESSING, target=Status.PENDING),
        "illegal move",
    ),
    "the token restarts": (wrapped(a_token_that_restarts), "token fell"),
    "any outcome is fine": (answering(any_outcome_is_fine), "which it is not"),
    "an outcome for another": (answering(an_outcome_stands_for_another), "which it is not"),
    "a report counts once": (answering(a_report_counts_once), "was refused"),
    "whatever ended is lost": (answering(whatever_ended_is_lost), "mixed up"),
    "only the last outcome is kept": (only_the_last_outcome_is_kept, "was refused|does not say"),
    "a sweep without a guard": (the_sweep_writes_what_it_read, "illegal move completed"),
    "a sweep with half a guard": (the_sweep_looks_at_the_status_only, "token fell"),
    "leases are counted": (leases_are_counted, "dead lease"),
}
WORLD_OF = {
    "an outcome for another": DOUBTS,
    "whatever ended is lost": DOUBTS,
    "a sweep without a guard": TWO_STEPS,
    "a sweep with half a guard": TWO_STEPS,
    "leases are counted": FAILOVER,
}
"""The world in which a control is caught, where it is not CONTROLLED."""


@pytest.mark.parametrize("name", CONTROLS)
def test_a_broken_rule_is_caught(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    break_it, expected = CONTROLS[name]
    break_it(monkeypatch)
    found = explore(WORLD_OF.get(name, CONTROLLED))
    assert any(part in found.violation for part in expected.split("|")), found
    assert found.trace
