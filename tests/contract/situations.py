"""A job in every situation, brought there by the store, for raw SQL to be let loose on."""

from __future__ import annotations

import pytest

from tenure.lifecycle import Cancelled
from tenure.retry import RetryPolicy
from tests.support.raw_sql import Refused
from tests.support.store import StoreHarness, report_completed, report_failed

UNSETTLED = ("pending", "pending again", "processing", "processing again")
SETTLED = ("completed", "failed", "failed early", "cancelled")
SITUATIONS = (*UNSETTLED, *SETTLED)

# What a move sets beside the status and the counters, so that no CHECK stands in its way.
DRESS = {
    "pending": "lease_id = NULL, lease_expires_at = NULL, finished_at = NULL",
    "processing": "lease_id = {new_lease}, lease_expires_at = {later}, finished_at = NULL,"
    " worker = 'w', started_at = {now}",
    "completed": "lease_id = NULL, lease_expires_at = NULL, finished_at = {now}",
    "failed": "lease_id = NULL, lease_expires_at = NULL, finished_at = {now}, last_error = 'x'",
    "cancelled": "lease_id = NULL, lease_expires_at = NULL, finished_at = {now}",
}

NEW_ID = "0190163d-8694-739b-aea5-966c26f8ad90"
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
    statuses = {name: harness.get(id).status for name, id in ids.items()}
    assert all(name.startswith(status) for name, status in statuses.items())
    return ids


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
