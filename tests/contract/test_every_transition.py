"""Every row of the table, made by the store: what it writes is what the lifecycle decided."""

from __future__ import annotations

from typing import Any

import pytest

from tenure import events, lifecycle
from tenure.lifecycle import Guard, Rule, Status
from tenure.retry import RetryPolicy
from tenure.values.ids import new_id
from tests.contract.situations import job_before
from tests.support.store import StoreHarness

CARRIED: dict[str, dict[str, Any]] = {
    "claimed": {"lease_id": "11111111-2222-4333-8444-555555555555", "lease_seconds": 30},
    "failed": {"error": "x"},
    "gave_up": {"error": "x"},
    "snoozed": {"delay": 60},
    "suspended": {"need": 2, "spare": 1},
    "restored": {"need": 1, "spare": 0},
    "amended": {
        "changes": {
            "payload": '{"a":1}',
            "priority": -5,
            "max_retries": 7,
            "timeout": 2.5,
            "backoff": RetryPolicy(base=1),
        }
    },
}
CLASSES = {kind.name: kind for kind in events.Event.__args__}


def event_of(row: Rule, lease_id: str | None) -> events.Event:
    lease = {"lease_id": lease_id} if Guard.LEASE in row.guards else {}
    event: events.Event = CLASSES[row.event](
        **{**lease, **CARRIED.get(row.event, {}), "actor": "ada"}
    )
    return event


def test_the_row_and_the_ledger_are_as_decided(
    harness: StoreHarness, subtests: pytest.Subtests
) -> None:
    for row in lifecycle.TRANSITIONS:
        with subtests.test(f"{row.source} {row.event}"):
            make(harness, row)


def make(harness: StoreHarness, row: Rule) -> None:
    id = job_before(harness.sql, row, id=new_id())
    before = harness.get(id)
    harness.clock.advance(61)  # leases by hand last a minute
    expected = lifecycle.follow(before, event_of(row, before.lease_id), harness.clock.now)
    after = harness.store.apply(id, event_of(row, before.lease_id)).result()
    if row.event == "suspended":  # else it would wait for nothing
        harness.sql.run("INSERT INTO {wait} (job_id, name, number) VALUES (?, 'go', 1)", id)
    assert after == harness.get(id) == expected[-1]
    entries = harness.history(id)[-len(expected) :]
    assert [entry.event for entry in entries] == [step.event for step in expected]
    assert (entries[0].source, entries[0].target) == (row.source, row.target)
    assert (entries[0].actor, entries[0].at) == ("ada", harness.clock.now)
    assert entries[0].token == before.token + row.token
    assert entries[0].attempt == before.attempts + max(row.attempts, 0)
    held = Status.PROCESSING in (row.source, row.target)
    assert (entries[0].lease_id is not None) == held


def test_a_snoozed_job_runs_again_uncharged_with_a_new_token(harness: StoreHarness) -> None:
    lease = harness.take(max_retries=1)
    event = events.Snoozed(lease_id=lease.lease_id, delay=60)
    harness.store.apply(lease.id, event).result()
    assert harness.claim() == []
    harness.clock.advance(60)
    (again,) = harness.claim()
    assert (again.id, again.attempts, again.token) == (lease.id, 1, 2)
    assert harness.get(lease.id).snoozes == 1


def test_a_claim_passes_over_a_job_whose_time_to_start_has_passed(harness: StoreHarness) -> None:
    late = job_before(harness.sql, lifecycle.RULE_OF["expired", Status.PENDING])
    harness.clock.advance(1)
    other = harness.add()
    assert harness.ids(harness.claim(limit=5)) == [other.id]
    assert harness.get(late).status == "pending"


def test_waiting_jobs_are_not_claimed(harness: StoreHarness) -> None:
    job_before(harness.sql, lifecycle.RULE_OF["unblocked", Status.WAITING])
    other = harness.add()
    assert harness.ids(harness.claim(limit=5)) == [other.id]
