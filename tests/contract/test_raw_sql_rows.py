"""Hand-written SQL against rows: what a job is, how it comes and goes, and the ledger."""

from __future__ import annotations

import pytest

from tests.contract.situations import (
    DRESS,
    INSERT,
    NEW_ID,
    SETTLED,
    SITUATIONS,
    UNSETTLED,
    accepted,
    refused,
)
from tests.support.raw_sql import Refused
from tests.support.store import StoreHarness

EDITS = {
    "id": f"'{NEW_ID}'",
    "type": "'other'",
    "queue": "'other'",
    "created_at": "{later}",
    "idempotency_key": "'other'",
    "fingerprint": "'other'",
    "partition": "'acme'",
    "unique_key": "'other'",
    "unique_until": "'started'",
    "start_by": "{later}",
    "workflow": f"'{NEW_ID}'",
    "needs": "1",
    "tags": "'[]'",
    "again_of": f"'{NEW_ID}'",
    "snoozes": "1",
}


def test_what_a_job_is_never_changes(
    harness: StoreHarness, ids: dict[str, str], subtests: pytest.Subtests
) -> None:
    for column, value in EDITS.items():
        with subtests.test(column):
            change = f"{column} = {value}"
            for situation in SITUATIONS:
                refused(harness, f"UPDATE {{job}} SET {change} WHERE id = ?", ids[situation])
            if column in ("id", "type", "queue", "created_at", "idempotency_key", "fingerprint"):
                refused(harness, f"UPDATE {{job}} SET {column} = NULL WHERE id = ?", ids["pending"])
            # Not under cover of a legal move either.
            transition = f"UPDATE {{job}} SET status = 'cancelled', {DRESS['cancelled']}"
            refused(harness, f"{transition}, {change} WHERE id = ?", ids["pending"])
            accepted(harness, f"{transition} WHERE id = ?", ids["pending"])


def test_a_settled_job_is_not_edited_at_all(harness: StoreHarness, ids: dict[str, str]) -> None:
    for situation in SETTLED:
        for change in (
            "result = '1'",
            "last_error = 'another'",
            "priority = priority",
            "finished_at = {later}",
            "worker = 'x'",
            "actor = 'x'",
            "event = 'x'",
            "max_retries = max_retries + 1",
            "run_at = {later}",
            "status = status",
        ):
            refused(harness, f"UPDATE {{job}} SET {change} WHERE id = ?", ids[situation])


# --- coming and going -------------------------------------------------------------------------


NEW_ROWS = [
    (", status", ", 'completed'"),
    (", status, finished_at", ", 'completed', {now}"),
    (", status, finished_at, last_error", ", 'failed', {now}, 'x'"),
    (", status, finished_at", ", 'cancelled', {now}"),
    (
        ", status, attempts, token, lease_id, lease_expires_at, worker, started_at",
        ", 'processing', 1, 1, {new_lease}, {later}, 'w', {now}",
    ),
    (", status", ", 'done'"),
    (", attempts, token", ", 1, 1"),
    (", attempts", ", -1"),
    (", token", ", 1"),
    (", token", ", -1"),
    (", lease_id, lease_expires_at", ", {new_lease}, {later}"),
    (", finished_at", ", {now}"),
    (", worker", ", 'w'"),
    (", started_at", ", {now}"),
    (", result", ", '1'"),
    (", last_error", ", 'x'"),
    (", max_retries", ", -1"),
    (", snoozes", ", 0"),
    (", status", ", 'waiting'"),
    (", status, need", ", 'waiting', 0"),
    (", need", ", 1"),
]


def test_a_job_enters_pending_and_untried_or_not_at_all(
    harness: StoreHarness, subtests: pytest.Subtests
) -> None:
    harness.add()
    for columns, values in NEW_ROWS:
        with subtests.test(f"{columns} {values}"):
            refused(harness, INSERT % (columns, values), NEW_ID)


def test_a_job_enters_untried_even_without_checks(harness: StoreHarness) -> None:
    harness.sql.drop_checks()
    for columns, values in ((", attempts", ", 1"), (", attempts", ", -1"), (", token", ", 1")):
        refused(harness, INSERT % (columns, values), NEW_ID)


def test_a_job_inserted_by_hand_is_a_job(harness: StoreHarness) -> None:
    harness.sql.run(INSERT % (", actor", ", 'ada'"), NEW_ID)
    (entry,) = harness.history(NEW_ID)
    assert (entry.source, entry.target, entry.event) == (None, "pending", "enqueued")
    assert (entry.actor, entry.at) == ("ada", harness.clock.now)
    assert harness.ids(harness.claim()) == [NEW_ID]


def test_an_upsert_is_no_way_around_the_rules(harness: StoreHarness, ids: dict[str, str]) -> None:
    for situation in SITUATIONS:
        before = harness.sql.contents()
        upsert = (
            INSERT % ("", "") + " ON CONFLICT (id) DO UPDATE SET status = 'completed',"
            " lease_id = NULL, lease_expires_at = NULL, finished_at = excluded.run_at, token = 99"
        )
        try:  # one engine refuses it, in the other the insert does nothing
            harness.sql.run(upsert, ids[situation])
        except Refused:
            pass
        else:
            assert harness.sql.changed == 0
        assert harness.sql.contents() == before


def test_a_job_that_has_not_settled_is_not_deleted(
    harness: StoreHarness, ids: dict[str, str]
) -> None:
    for situation in UNSETTLED:
        refused(harness, "DELETE FROM {job} WHERE id = ?", ids[situation])


def test_a_settled_job_may_go_and_then_its_ledger(
    harness: StoreHarness, ids: dict[str, str]
) -> None:
    for situation in SETTLED:
        refused(harness, "DELETE FROM {transition} WHERE job_id = ?", ids[situation])
        with harness.sql.transaction():
            harness.sql.run("DELETE FROM {job} WHERE id = ?", ids[situation])
            harness.sql.run("DELETE FROM {transition} WHERE job_id = ?", ids[situation])
        assert harness.history(ids[situation]) == []


# --- the ledger -------------------------------------------------------------------------------


def test_the_ledger_is_not_edited(harness: StoreHarness, ids: dict[str, str]) -> None:
    for change in (
        "target = 'completed'",
        "event = event",
        "at = {later}",
        "token = 9",
        "attempt = 9",
        "actor = 'x'",
        "detail = 'x'",
        "lease_id = {new_lease}",
        f"job_id = '{NEW_ID}'",
    ):
        refused(harness, f"UPDATE {{transition}} SET {change}")
        refused(harness, f"UPDATE {{transition}} SET {change} WHERE job_id = ?", ids["completed"])


def test_the_ledger_is_not_deleted(harness: StoreHarness, ids: dict[str, str]) -> None:
    refused(harness, "DELETE FROM {transition}")
    for situation in SITUATIONS:
        refused(harness, "DELETE FROM {transition} WHERE job_id = ?", ids[situation])
    newest = "seq = (SELECT max(seq) FROM {transition})"
    refused(harness, f"DELETE FROM {{transition}} WHERE {newest}")
