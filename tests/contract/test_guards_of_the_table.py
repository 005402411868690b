"""Delete a guard from a row of the table: Python, both databases and the page change together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from msgspec.structs import replace as changed

from tenure import lifecycle
from tenure.errors import TenureError
from tenure.lifecycle import Guard, Rule
from tenure.store import open_store
from tests.contract.situations import AT_ONCE, DRESS
from tests.support.raw_sql import RawSql, Refused
from tests.support.store import StoreHarness, report_failed, report_released
from tools import lifecycle_page

GUARDED = [(rule, guard) for rule in lifecycle.TRANSITIONS for guard in rule.guards]
IN_SQL = [(rule, guard) for rule, guard in GUARDED if guard.sql]
NAMES = [f"{rule.event} without {guard.name}" for rule, guard in GUARDED]
NAMES_IN_SQL = [f"{rule.event} without {guard.name}" for rule, guard in IN_SQL]
BACK = f"UPDATE {{job}} SET status = 'pending', {DRESS['pending']}"


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[Rule, Guard], None]:
    """Put a copy of the table, with one guard less, in place of the table."""

    def delete(row: Rule, guard: Guard) -> None:
        left = replace(row, guards=tuple(one for one in row.guards if one is not guard))
        table = tuple(left if rule is row else rule for rule in lifecycle.TRANSITIONS)
        monkeypatch.setattr(lifecycle, "TRANSITIONS", table)
        rules = {(rule.event, rule.source): rule for rule in table}
        monkeypatch.setattr(lifecycle, "RULE_OF", rules)

    return delete


def a_refused_event(harness: StoreHarness, guard: Guard) -> tuple[lifecycle.Job, lifecycle.Event]:
    """A job, and an event that nothing but the guard forbids."""
    match guard:
        case Guard.DUE:
            job = harness.get(harness.add(delay=60).id)
            return job, lifecycle.Claimed(lease_id="x", lease_seconds=30, actor="w")
        case Guard.ATTEMPTS_LEFT:
            job = harness.add(max_retries=1)
            harness.report(report_failed(harness.claim()[0]))
            return harness.get(job.id), lifecycle.Retried()
    job = harness.add(backoff=AT_ONCE)
    harness.claim()
    if guard is Guard.LEASE_OVER:
        return harness.get(job.id), lifecycle.LeaseExpired()
    if guard is Guard.RELEASES_LEFT:
        held = harness.get(job.id)
        worn = changed(held, token=held.attempts + lifecycle.MAX_RELEASES)
        return worn, lifecycle.Released(lease_id=worn.lease_id or "")
    return harness.get(job.id), lifecycle.Completed(lease_id="somebody else's")


def outcome(job: lifecycle.Job, event: lifecycle.Event, harness: StoreHarness) -> str:
    try:
        return lifecycle.decide(job, event, harness.clock.now).status
    except TenureError as error:
        return type(error).__name__


@pytest.mark.parametrize(("row", "guard"), GUARDED, ids=NAMES)
def test_python_no_longer_refuses(
    harness: StoreHarness, without: Callable[[Rule, Guard], None], row: Rule, guard: Guard
) -> None:
    job, event = a_refused_event(harness, guard)
    if guard is Guard.LEASE:
        lease = "of another worker"
        event = {
            "completed": lifecycle.Completed(lease_id=lease),
            "failed": lifecycle.Failed(lease_id=lease, error="x"),
            "released": lifecycle.Released(lease_id=lease),
        }[row.event]
    refused = "LeaseLost" if guard is Guard.LEASE else "IllegalTransition"
    assert outcome(job, event, harness) == refused
    without(row, guard)
    assert outcome(job, event, harness) == row.target


@pytest.mark.parametrize(("row", "guard"), GUARDED, ids=NAMES)
def test_the_page_no_longer_says_so(
    without: Callable[[Rule, Guard], None], row: Rule, guard: Guard
) -> None:
    def line() -> str:
        (found,) = (
            x for x in lifecycle_page.page().splitlines() if x.startswith(f"| `{row.event}`")
        )
        return found

    assert guard.words in line()
    without(row, guard)
    assert guard.words not in line()


def test_every_guard_that_a_database_can_check_is_tried() -> None:
    assert {guard for _, guard in IN_SQL} == {Guard.ATTEMPTS_LEFT, Guard.RELEASES_LEFT}


@pytest.mark.parametrize(("row", "guard"), IN_SQL, ids=NAMES_IN_SQL)
@pytest.mark.parametrize("deleted", [False, True], ids=["as it is", "deleted"])
def test_the_database_refuses_by_the_table(
    database_url: str,
    without: Callable[[Rule, Guard], None],
    row: Rule,
    guard: Guard,
    deleted: bool,
) -> None:
    if deleted:
        without(row, guard)
    store, raw = open_store(database_url), RawSql(database_url)
    harness = StoreHarness(database_url, store, None, raw)  # type: ignore[arg-type]
    try:
        id = harness.add(max_retries=1, backoff=AT_ONCE).id
        statement = f"{BACK} WHERE id = ?"
        if guard is Guard.RELEASES_LEFT:
            for _ in range(lifecycle.MAX_RELEASES):
                harness.report(report_released(harness.claim()[0]))
            harness.claim()
            statement = f"{BACK}, attempts = attempts - 1 WHERE id = ?"
        else:
            harness.report(report_failed(harness.claim()[0]))
        if deleted:
            raw.run(statement, id)
        else:
            with pytest.raises(Refused):
                raw.run(statement, id)
    finally:
        store.close()
        raw.close()
