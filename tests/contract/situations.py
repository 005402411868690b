"""A job in every situation, brought there by the store, for raw SQL to be let loose on."""

from __future__ import annotations

import pytest

from tenure.lifecycle import Cancelled
from tenure.retry import RetryPolicy
from tests.support.raw_sql import Refused
from tests.support.store import Desk, completed, failed

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


def fill(desk: Desk) -> dict[str, str]:
    """Name of the situation -> id of the job in it. Every job allows three attempts."""
    ids: dict[str, str] = {}
    lease = desk.take()
    ids["completed"] = lease.id
    desk.report(completed(lease, '"done"'))
    lease = desk.take()
    ids["failed early"] = lease.id  # two attempts left
    desk.report(failed(lease, retryable=False))
    ids["failed"] = desk.add(backoff=AT_ONCE).id
    for _ in range(3):
        desk.report(failed(desk.claim()[0]))
    ids["cancelled"] = desk.add().id
    desk.store.apply(ids["cancelled"], Cancelled()).result()
    ids["processing again"] = desk.add(backoff=AT_ONCE).id
    desk.report(failed(desk.claim()[0]))
    desk.claim()
    ids["processing"] = desk.take().id
    ids["pending again"] = desk.add(backoff=AT_ONCE, priority=-1).id
    desk.report(failed(desk.claim()[0]))
    ids["pending"] = desk.add(idempotency_key="k", fingerprint="f").id
    statuses = {name: desk.get(id).status for name, id in ids.items()}
    assert all(name.startswith(status) for name, status in statuses.items())
    return ids


class Undo(Exception):
    """Leaves a transaction without keeping what it did."""


def refused(desk: Desk, statement: str, *values: object) -> None:
    """The database refuses the statement, and no row is different afterwards."""
    before = desk.raw.contents()
    try:
        desk.raw.run(statement, *values)
    except Refused:
        assert desk.raw.contents() == before, statement
    else:
        pytest.fail(f"accepted: {statement} with {values}")


def accepted(desk: Desk, statement: str, *values: object) -> None:
    """The database accepts the statement for one row; it is then undone."""

    def do_and_undo() -> None:
        with desk.raw.transaction():
            desk.raw.run(statement, *values)
            assert desk.raw.changed == 1, statement
            raise Undo

    with pytest.raises(Undo):
        do_and_undo()
