"""Steps and checkpoints in the store: whose count, once, and until when."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tenure.errors import InvalidInput, LeaseLost
from tenure.events import Cancelled, Retried
from tenure.rules import steps as step_rules
from tenure.rules.reports import Lease
from tenure.rules.steps import JobSteps, KeepState, Load, Notes, Record, StepCall
from tenure.store.tables import steps
from tests.contract.granted_role import also_as_granted_role
from tests.support.raw_sql import Refused
from tests.support.store import (
    MALFORMED_IDS,
    StoreHarness,
    report_completed,
    report_failed,
    report_snoozed,
)


def ask(harness: StoreHarness, lease: Lease, call: StepCall) -> Any:
    return harness.store.ask(lease.id, lease.lease_id, call).result()


def kept(harness: StoreHarness, lease: Lease) -> dict[str, str | None]:
    return {step.name: step.result_json for step in steps.of(harness.store.read, lease.id).steps}


def again(harness: StoreHarness, lease: Lease) -> Lease:
    """The attempt after this one, which fails."""
    harness.report(report_failed(lease, delay=0.0))
    (later,) = harness.claim()
    assert later.id == lease.id
    return later


@also_as_granted_role
def test_a_step_is_recorded_once_by_who_has_the_lease(harness: StoreHarness) -> None:
    first = harness.take()
    recorded = ask(harness, first, Record("charge", 1, '"é"')).step
    assert (recorded.name, recorded.number, recorded.result) == ("charge", 1, "é")
    assert (recorded.token, recorded.at) == (1, harness.clock.now)
    assert ask(harness, first, Record("charge", 1, "2")).step == recorded  # its answer got lost
    second = again(harness, first)
    for call in (Load(), Record("mail", 2, None), KeepState(9, "9")):
        with pytest.raises(LeaseLost):
            ask(harness, first, call)
    ask(harness, second, Record("mail", 2, None))
    loaded = ask(harness, second, Load())
    assert [(s.name, s.token, s.result_json) for s in loaded.steps] == [
        ("charge", 1, '"é"'),
        ("mail", 2, None),
    ]
    assert (loaded.now, loaded.state) == (harness.clock.now, None)
    harness.report(report_completed(second))
    with pytest.raises(LeaseLost):
        ask(harness, second, Record("late", 3, None))
    assert list(kept(harness, first)) == ["charge", "mail"]


def test_a_job_has_1000_steps_whoever_records_them(
    harness: StoreHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A remote worker counts its steps itself, and two attempts may count the same ones."""
    lower = steps.RECORD.replace(f"< {step_rules.MAX_STEPS}", "< 2")
    monkeypatch.setattr(steps, "RECORD", lower)
    monkeypatch.setattr(step_rules, "MAX_STEPS", 2)
    first, other = harness.take(), harness.take()
    ask(harness, first, Record("a", 1, None))
    second = again(harness, first)
    ask(harness, second, Record("b", 1, None))
    with pytest.raises(InvalidInput, match="the limit"):
        ask(harness, second, Record("c", 1, None))
    ask(harness, second, Record("b", 1, None))  # its answer got lost
    ask(harness, other, Record("c", 1, None))  # each job has as many
    assert list(kept(harness, first)) == ["a", "b"]


def test_leases_that_no_job_has(harness: StoreHarness) -> None:
    lease = harness.take()
    for text in MALFORMED_IDS:
        for job, held in ((text, lease.lease_id), (lease.id, text)):
            with pytest.raises(LeaseLost):
                harness.store.ask(job, held, Load()).result()
            with pytest.raises(LeaseLost):
                harness.store.ask(job, held, Record("x", 1, None)).result()


def test_the_last_checkpoint_counts_in_whatever_order_they_arrive(harness: StoreHarness) -> None:
    first = harness.take()
    for number in (1, 3, 2):  # 2 was under way when 3 was flushed
        ask(harness, first, KeepState(number, f"{number}"))
    assert ask(harness, first, Load()).state == "3"
    second = again(harness, first)
    assert ask(harness, second, Load()).state == "3"
    ask(harness, second, KeepState(1, "4"))
    harness.report(report_failed(first, notes=Notes(state=KeepState(9, "stale"))))
    assert ask(harness, second, Load()).state == "4"
    note = Notes(state=KeepState(2, '{"after": 5}'))
    harness.report(report_snoozed(second, notes=note))
    found = steps.of(harness.store.read, first.id)
    assert (found.state, found.state_at) == ({"after": 5}, harness.clock.now)


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
def test_what_was_kept_goes_with_the_job(harness: StoreHarness, end: str) -> None:
    lease = harness.take(max_retries=1)
    ask(harness, lease, Record("charge", 1, "1"))
    ask(harness, lease, KeepState(1, "1"))
    if end == "cancelled":
        harness.store.apply(lease.id, Cancelled()).result()
    else:
        report = report_completed if end == "completed" else report_failed
        harness.report(report(lease))
    assert harness.prune({end: harness.clock.advance(1)}) == 1
    for table in ("{step}", "{checkpoint}"):
        assert harness.sql.value(f"SELECT count(*) FROM {table}") == 0


@also_as_granted_role
def test_a_retry_keeps_steps_unless_it_is_from_scratch(harness: StoreHarness) -> None:
    lease = harness.take(max_retries=1)
    other = harness.take(max_retries=1)
    for one in (lease, other):
        ask(harness, one, Record("charge", 1, "1"))
        ask(harness, one, KeepState(1, "1"))
        harness.report(report_failed(one))
    harness.store.apply(lease.id, Retried(more_retries=1)).result()
    assert kept(harness, lease) == {"charge": "1"}
    (lease,) = harness.claim()
    harness.report(report_failed(lease))
    harness.store.apply(lease.id, Retried(more_retries=1), from_scratch=True).result()
    assert steps.of(harness.store.read, lease.id) == JobSteps()
    assert kept(harness, other) == {"charge": "1"}
    (lease,) = harness.claim()
    ask(harness, lease, Record("charge", 1, "2"))
    assert kept(harness, lease) == {"charge": "2"}


def test_sql_changes_no_step(harness: StoreHarness) -> None:
    lease = harness.take()
    ask(harness, lease, Record("charge", 1, "1"))
    with pytest.raises(Refused):
        harness.sql.run("UPDATE {step} SET result = '2'")
    harness.report(report_completed(lease))
    columns = "job_id, name, number, token, at, result"
    with pytest.raises(Refused):
        harness.sql.run(
            f"INSERT INTO {{step}} ({columns}) SELECT job_id, 'mail', 2, 1, at, NULL FROM {{step}}"
        )
    assert kept(harness, lease) == {"charge": "1"}


def test_any_interleaving_of_attempts_yields_one_result_per_name(harness: StoreHarness) -> None:
    """Attempts that were left behind go on beside the one that has the lease."""
    dice = random.Random(5)
    lease = harness.take(max_retries=1_000)
    attempts, seen = [lease], dict[str, str | None]()
    for number in range(150):
        one = dice.choice(attempts[-4:])
        if dice.random() < 0.15 and len(attempts) < 20:
            attempts.append(again(harness, attempts[-1]))
            continue
        name = f"s{dice.randrange(12)}"
        try:
            step = ask(harness, one, Record(name, 1, f"{number}")).step
        except LeaseLost:
            assert one is not attempts[-1]
        else:
            assert one is attempts[-1]
            assert step.result_json == seen.setdefault(name, step.result_json)
        assert kept(harness, lease) == seen
    assert len(attempts) > 5
    assert len(seen) == 12
