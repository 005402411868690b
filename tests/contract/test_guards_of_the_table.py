"""Delete a guard from a row of the table: Python, both databases and the page change together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace
from msgspec.structs import replace as changed

from tenure import events, lifecycle
from tenure.errors import TenureError
from tenure.lifecycle import Guard, Job, Rule, Status
from tenure.store import migrate_store
from tests.contract.situations import by_hand, job_before
from tests.support.raw_sql import RawSql, Refused
from tools import lifecycle_page

GUARDED = [(rule, guard) for rule in lifecycle.TRANSITIONS for guard in rule.guards]
IN_SQL = [(rule, guard) for rule, guard in GUARDED if guard.sql]


def named(row: Rule, guard: Guard) -> str:
    return f"{row.source} {row.event} without {guard.name}"


NAMES = [named(*pair) for pair in GUARDED]
NAMES_IN_SQL = [named(*pair) for pair in IN_SQL]
NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
LATER = NOW + timedelta(seconds=1)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[Rule, Guard], None]:
    """Put a copy of the table, with one guard less, in place of the table."""

    def delete(row: Rule, guard: Guard) -> None:
        left = replace(row, guards=tuple(one for one in row.guards if one is not guard))
        table = tuple(left if rule is row else rule for rule in lifecycle.TRANSITIONS)
        monkeypatch.setattr(lifecycle, "TRANSITIONS", table)
        rules = {(rule.event, rule.source): rule for rule in table}
        monkeypatch.setattr(lifecycle, "RULE_OF", rules)
        need_lease = frozenset(rule.event for rule in table if Guard.LEASE in rule.guards)
        monkeypatch.setattr(lifecycle, "NEED_LEASE", need_lease)

    return delete


# What a guard refuses: fields of the job, and what the event carries.
BROKEN: dict[Guard, tuple[dict[str, object], dict[str, object]]] = {
    Guard.LEASE: ({}, {"lease_id": "of another worker"}),
    Guard.DUE: ({"run_at": LATER}, {}),
    Guard.IN_TIME: ({"start_by": NOW}, {}),
    Guard.LATE: ({"start_by": LATER}, {}),
    Guard.LEASE_OVER: ({"lease_expires_at": LATER}, {}),
    Guard.ATTEMPTS_LEFT: ({"attempts": 10}, {}),
    Guard.RETURNS_LEFT: ({"token": 1 + lifecycle.MAX_RETURNS}, {}),
    Guard.SNOOZES_LEFT: ({"snoozes": lifecycle.MAX_SNOOZES}, {}),
    Guard.NEEDS: ({}, {"need": 0}),
    Guard.NEEDS_NOTHING: ({}, {"need": 1}),
    Guard.HOPELESS: ({}, {"spare": 0}),
    Guard.WAS_SKIPPED: ({"event": "cancelled"}, {}),
    Guard.UNTRIED_PAYLOAD: ({"token": 1}, {"changes": {"payload": '{"a":1}'}}),
    Guard.ROOM_LEFT: ({"attempts": 1}, {"changes": {"max_retries": 1}}),
}
CARRIED: dict[str, dict[str, object]] = {
    "claimed": {"lease_id": "new", "lease_seconds": 30, "actor": "w"},
    "failed": {"error": "x"},
    "gave_up": {"error": "x"},
    "snoozed": {"delay": 1},
    "suspended": {"need": 1},
    "restored": {"need": 1, "spare": 0},
}
CLASSES = {kind.name: kind for kind in events.Event.__args__}


def job_of(row: Rule) -> Job:
    """A job to which the transition may happen."""
    held = row.source is Status.PROCESSING
    return Job(
        id="0190163d-8694-739b-aea5-966c26f8ad90",
        type="mail",
        created_at=NOW,
        run_at=NOW,
        status=row.source,
        attempts=int(held),
        token=int(held),
        lease_id="held" if held else None,
        lease_expires_at=NOW if held else None,
        event="skipped" if row.source is Status.CANCELLED else "claimed",
        start_by=NOW if row.event == "expired" else None,
    )


def event_of(row: Rule, **more: object) -> events.Event:
    lease = {"lease_id": "held"} if Guard.LEASE in row.guards else {}
    event: events.Event = CLASSES[row.event](**{**lease, **CARRIED.get(row.event, {}), **more})
    return event


def outcome(job: Job, event: events.Event) -> str:
    try:
        return lifecycle.decide(job, event, NOW).status
    except TenureError as error:
        return type(error).__name__


@pytest.mark.parametrize("row", lifecycle.TRANSITIONS, ids=lambda r: f"{r.source} {r.event}")
def test_every_row_of_the_table_can_happen(row: Rule) -> None:
    assert outcome(job_of(row), event_of(row)) == row.target


@pytest.mark.parametrize(("row", "guard"), GUARDED, ids=NAMES)
def test_python_no_longer_refuses(
    without: Callable[[Rule, Guard], None], row: Rule, guard: Guard
) -> None:
    fields, carried = BROKEN[guard]
    job, event = changed(job_of(row), **fields), event_of(row, **carried)
    refused = "LeaseLost" if guard is Guard.LEASE else "IllegalTransition"
    assert outcome(job, event) == refused
    without(row, guard)
    assert outcome(job, event) == row.target


@pytest.mark.parametrize(("row", "guard"), GUARDED, ids=NAMES)
def test_the_page_no_longer_says_so(
    without: Callable[[Rule, Guard], None], row: Rule, guard: Guard
) -> None:
    start = f"| `{row.event}` | {row.source} → {row.target} |"

    def line() -> str:
        (found,) = (x for x in lifecycle_page.page().splitlines() if x.startswith(start))
        return found

    assert guard.words in line()
    without(row, guard)
    assert guard.words not in line()


def test_the_database_refuses_by_the_table(database_url: str, subtests: pytest.Subtests) -> None:
    migrate_store(database_url)
    with closing(RawSql(database_url)) as raw:
        raw.drop_checks()
        for (row, guard), name in zip(IN_SQL, NAMES_IN_SQL, strict=True):
            with subtests.test(name), pytest.raises(Refused, match="tenure: "), raw.transaction():
                raw.run(by_hand(row, broken=guard), job_before(raw, row, broken=guard))


@pytest.mark.parametrize(("row", "guard"), IN_SQL, ids=NAMES_IN_SQL)
def test_the_database_no_longer_refuses(
    database_url: str, without: Callable[[Rule, Guard], None], row: Rule, guard: Guard
) -> None:
    without(row, guard)
    migrate_store(database_url)
    with closing(RawSql(database_url)) as raw:
        raw.drop_checks()
        id = job_before(raw, row, broken=guard)
        raw.run(by_hand(row, broken=guard), id)
        assert raw.changed == 1
