"""A job in every situation, brought there by the store, for raw SQL to be let loose on."""

from __future__ import annotations

import pytest

from tenure.events import Cancelled
from tenure.lifecycle import RULE_OF, Guard, Rule, Status
from tenure.retry import RetryPolicy
from tests.support.raw_sql import RawSql, Refused
from tests.support.store import StoreHarness, report_completed, report_failed

UNSETTLED = ("waiting", "pending", "pending again", "processing", "processing again")
SETTLED = ("completed", "failed", "failed early", "cancelled")
SITUATIONS = (*UNSETTLED, *SETTLED)

# What a move sets beside the status and the counters, so that no CHECK stands in its way.
DRESS = {
    "waiting": "lease_id = NULL, lease_expires_at = NULL, finished_at = NULL, need = 1, spare = 0",
    "pending": "lease_id = NULL, lease_expires_at = NULL, finished_at = NULL",
    "processing": "lease_id = {new_lease}, lease_expires_at = {later}, finished_at = NULL,"
    " worker = 'w', started_at = {now}",
    "completed": "lease_id = NULL, lease_expires_at = NULL, finished_at = {now}",
    "failed": "lease_id = NULL, lease_expires_at = NULL, finished_at = {now}, last_error = 'x'",
    "cancelled": "lease_id = NULL, lease_expires_at = NULL, finished_at = {now}",
}

NEW_ID = "0190163d-8694-739b-aea5-966c26f8ad90"
WAITING_ID = "0190163d-8694-739b-aea5-966c26f8ad91"
INSERT = "INSERT INTO {job} (id, type, run_at, created_at%s) VALUES (?, 'mail', {now}, {now}%s)"

AT_ONCE = RetryPolicy(base=0, factor=1, cap=0)


def fill(harness: StoreHarness) -> dict[str, str]:
    """Name of the situation -> id of the job in it. Every job allows three attempts."""
    ids: dict[str, str] = {}
    lease = harness.take()
    ids["completed"] = lease.id
    harness.report(report_completed(lease, '"done"'))
    lease = harness.take()
    ids["failed early"] = lease.id  # two attempts left
    harness.report(report_failed(lease, retryable=False))
    ids["failed"] = harness.add(backoff=AT_ONCE).id
    for _ in range(3):
        harness.report(report_failed(harness.claim()[0]))
    ids["cancelled"] = harness.add().id
    harness.store.apply(ids["cancelled"], Cancelled()).result()
    ids["processing again"] = harness.add(backoff=AT_ONCE).id
    harness.report(report_failed(harness.claim()[0]))
    harness.claim()
    ids["processing"] = harness.take().id
    ids["pending again"] = harness.add(backoff=AT_ONCE, priority=-1).id
    harness.report(report_failed(harness.claim()[0]))
    ids["pending"] = harness.add(idempotency_key="k", fingerprint="f").id
    harness.sql.run(INSERT % (", status, need, spare", ", 'waiting', 2, 0"), WAITING_ID)
    ids["waiting"] = WAITING_ID
    statuses = {name: harness.get(id).status for name, id in ids.items()}
    assert all(name.startswith(status) for name, status in statuses.items())
    return ids


# What a transition by hand sets beside the status, the counters and the event.
SETS = {
    "snoozed": "run_at = {later}",
    "unblocked": "need = 0",
    "skipped": "spare = -1",
    "amended": "priority = 5",
}
BROKEN_SETS = {
    Guard.NEEDS: "need = 0",
    Guard.NEEDS_NOTHING: "need = 1",
    Guard.HOPELESS: "spare = 0",
    Guard.UNTRIED_PAYLOAD: "payload = '{\"a\":1}'",
}
WORN = {
    Guard.RETURNS_LEFT: "token = 101",
    Guard.SNOOZES_LEFT: "token = 10001, snoozes = 10000",
    Guard.UNTRIED_PAYLOAD: "token = 1",
}
"""What a job has been through before a guard refuses: transitions would take long for it."""


def dressed(target: str, **changes: str) -> str:
    """What a change to a status sets, with other values in some columns."""
    columns = dict(part.split(" = ") for part in DRESS[target].split(", "))
    columns |= {"status": f"'{target}'", **changes}
    return ", ".join(f"{column} = {value}" for column, value in columns.items())


def by_hand(row: Rule, *, broken: Guard | None = None, event: str | None = None) -> str:
    """A statement that makes a transition in SQL, against one of its guards if that is `broken`."""
    sets = [
        f"status = '{row.target}'",
        f"event = '{event or row.event}'",
        f"attempts = attempts + {row.attempts}",
        f"token = token + {row.token}",
    ]
    if row.snoozes:
        sets.append(f"snoozes = coalesce(snoozes, 0) + {row.snoozes}")
    if row.source is not row.target:
        sets.append(DRESS[row.target])
    if broken in BROKEN_SETS:
        sets.append(BROKEN_SETS[broken])
    elif row.event in SETS:
        sets.append(SETS[row.event])
    together = ", ".join(sets)
    if broken is Guard.NEEDS:
        together = together.replace("need = 1, ", "")
    return f"UPDATE {{job}} SET {together} WHERE id = ?"


def job_before(sql: RawSql, row: Rule, *, broken: Guard | None = None, id: str = NEW_ID) -> str:
    """A job to which a transition may happen, but for the guard that is to be `broken`."""
    late = (broken is Guard.IN_TIME) or (row.event == "expired" and broken is not Guard.LATE)
    start_by = "{now}" if late else "NULL"
    waiting = row.source is Status.WAITING or row.event == "restored"
    values = (
        (", start_by, status, need, spare", f", {start_by}, 'waiting', 1, 0")
        if waiting
        else (", start_by", f", {start_by}")
    )
    sql.run(INSERT % values, id)
    ended = "cancelled" if broken is Guard.WAS_SKIPPED else "skipped"
    before = {
        Status.PROCESSING: [RULE_OF["claimed", Status.PENDING]],
        Status.FAILED: [RULE_OF["claimed", Status.PENDING], RULE_OF["failed", Status.PROCESSING]],
        Status.CANCELLED: [RULE_OF[ended, Status.WAITING]],
    }
    for rule in before.get(row.source, []):
        sql.run(by_hand(rule), id)
    if broken is Guard.ATTEMPTS_LEFT:
        sql.without_triggers("UPDATE {job} SET max_retries = 1 WHERE id = ?", id)
    if broken in WORN:
        sql.without_triggers(f"UPDATE {{job}} SET {WORN[broken]} WHERE id = ?", id)
    return id


class Undo(Exception):
    """Leaves a transaction without keeping what it did."""


def refused(harness: StoreHarness, statement: str, *values: object) -> None:
    """The database refuses the statement, and no row is different afterwards."""
    before = harness.sql.contents()
    try:
        harness.sql.run(statement, *values)
    except Refused:
        assert harness.sql.contents() == before, statement
    else:
        pytest.fail(f"accepted: {statement} with {values}")


def accepted(harness: StoreHarness, statement: str, *values: object) -> None:
    """The database accepts the statement for one row; it is then undone."""

    def do_and_undo() -> None:
        with harness.sql.transaction():
            harness.sql.run(statement, *values)
            assert harness.sql.changed == 1, statement
            raise Undo

    with pytest.raises(Undo):
        do_and_undo()
