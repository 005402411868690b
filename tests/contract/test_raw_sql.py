"""Hand-written SQL from a plain connection: the database itself refuses every illegal move.

Each attempt takes care that only the rule in question stands in its way: the other columns are
filled in as a real move would. After each refusal the jobs and the ledger are as they were.
"""

from __future__ import annotations

from itertools import product

import pytest

from tenure import Tenure
from tests.contract.situations import (
    DRESS,
    SETTLED,
    SITUATIONS,
    UNSETTLED,
    accepted,
    dressed,
    refused,
)
from tests.support.raw_sql import Refused
from tests.support.store import StoreHarness, report_released

STATUSES = ("waiting", "pending", "processing", "completed", "failed", "cancelled")

# (from, to): change of attempts and token, where the statement names no event. By hand, from the
# design, not from the code.
LEGAL = {
    ("waiting", "pending"): (0, 0),
    ("waiting", "cancelled"): (0, 0),
    ("pending", "processing"): (1, 1),
    ("processing", "completed"): (0, 0),
    ("processing", "failed"): (0, 0),
    ("failed", "pending"): (0, 0),
    ("processing", "pending"): (-1, 0),
    ("processing", "waiting"): (-1, 0),
    ("pending", "cancelled"): (0, 0),
    ("processing", "cancelled"): (0, 0),
}


@pytest.mark.parametrize("guards", ["triggers and checks", "triggers alone"])
def test_every_pair_of_statuses_and_every_change_of_the_counters(
    harness: StoreHarness, ids: dict[str, str], guards: str
) -> None:
    if guards == "triggers alone":
        harness.sql.drop_checks()
    changes = product(SITUATIONS, STATUSES, (-1, 0, 1), (-1, 0, 1, 2))
    for situation, target, charge, fence in changes:
        source = situation.split()[0]
        changes = {"attempts": f"attempts + {charge}", "token": f"token + {fence}"}
        if (source, target) == ("processing", "waiting"):
            changes["snoozes"] = "1"
        if source == "waiting" and target in ("pending", "processing"):
            changes["need"] = "0"
        statement = f"UPDATE {{job}} SET {dressed(target, **changes)} WHERE id = ?"
        budget_is_used_up = situation == "failed" and target == "pending"
        no_move = (
            source == target and source in ("pending", "waiting") and (charge, fence) == (0, 0)
        )
        legal = LEGAL.get((source, target)) == (charge, fence) and not budget_is_used_up
        (accepted if legal or no_move else refused)(harness, statement, ids[situation])


def test_there_are_no_other_statuses(harness: StoreHarness, ids: dict[str, str]) -> None:
    for situation, status in product(SITUATIONS, ("", "done", "PENDING", None)):
        refused(harness, "UPDATE {job} SET status = ? WHERE id = ?", status, ids[situation])


def test_a_failed_job_without_budget_stays_failed(
    harness: StoreHarness, ids: dict[str, str]
) -> None:
    back = f"UPDATE {{job}} SET status = 'pending', {DRESS['pending']}"
    for limit in ("max_retries", "0", "1", "2", "3"):
        refused(harness, f"{back}, max_retries = {limit} WHERE id = ?", ids["failed"])
    for attempts in (0, 1, 2):
        refused(harness, f"{back}, attempts = {attempts} WHERE id = ?", ids["failed"])
    refused(harness, "UPDATE {job} SET max_retries = 4 WHERE id = ?", ids["failed"])
    accepted(harness, f"{back}, max_retries = 4 WHERE id = ?", ids["failed"])  # an operator's retry


def test_a_job_handed_back_a_hundred_times_is_not_handed_back_again(harness: StoreHarness) -> None:
    job = harness.add()
    back = f"UPDATE {{job}} SET status = 'pending', {DRESS['pending']}, attempts = attempts - 1"
    for _ in range(100):
        (lease,) = harness.claim()
        harness.report(report_released(lease))
    harness.claim()
    refused(harness, f"{back} WHERE id = ?", job.id)


def test_a_claim_is_charged_and_cannot_pass_the_limit(
    harness: StoreHarness, ids: dict[str, str]
) -> None:
    claim = f"UPDATE {{job}} SET status = 'processing', {DRESS['processing']}"
    refused(harness, f"{claim}, attempts = attempts + 1 WHERE id = ?", ids["pending"])
    refused(harness, f"{claim}, token = token + 1 WHERE id = ?", ids["pending"])
    charged = f"{claim}, attempts = attempts + 1, token = token + 1"
    for limit in (0, 1):
        refused(harness, f"{charged}, max_retries = {limit} WHERE id = ?", ids["pending again"])
    refused(harness, f"{charged}, max_retries = 9 WHERE id = ?", ids["pending"])
    accepted(harness, f"{charged} WHERE id = ?", ids["pending"])


def test_counters_change_only_with_a_move(harness: StoreHarness, ids: dict[str, str]) -> None:
    for situation in SITUATIONS:
        for change in (
            "token = token + 1",
            "token = token + 2",
            "token = token - 1",
            "attempts = attempts + 1",
            "attempts = attempts - 1",
            "attempts = attempts + 1, token = token + 1",
            "attempts = NULL",
            "max_retries = -1",
            "max_retries = NULL",
        ):
            refused(harness, f"UPDATE {{job}} SET {change} WHERE id = ?", ids[situation])


def test_the_limit_is_not_lowered_below_what_happened(
    harness: StoreHarness, ids: dict[str, str]
) -> None:
    """A pending job must have an attempt left; the limit of another stays as it is."""
    set_limit = "UPDATE {job} SET max_retries = %s WHERE id = ?"
    for limit in ("0", "1"):
        refused(harness, set_limit % limit, ids["pending again"])
    accepted(harness, set_limit % "2", ids["pending again"])
    accepted(harness, set_limit % "0", ids["pending"])
    for situation in ("waiting", "processing", "processing again", *SETTLED):
        refused(harness, set_limit % "9", ids[situation])


def test_no_job_is_processing_without_a_lease(
    harness: StoreHarness, ids: dict[str, str], subtests: pytest.Subtests
) -> None:
    for missing in ["lease_id", "lease_expires_at", "worker", "started_at"]:
        with subtests.test(missing):
            refused(harness, f"UPDATE {{job}} SET {missing} = NULL WHERE id = ?", ids["processing"])
            lease = {
                "lease_id": "{new_lease}",
                "lease_expires_at": "{later}",
                "worker": "'w'",
                "started_at": "{now}",
                missing: "NULL",
            }
            claim = "status = 'processing', attempts = attempts + 1, token = token + 1"
            columns = ", ".join(f"{column} = {value}" for column, value in lease.items())
            refused(harness, f"UPDATE {{job}} SET {claim}, {columns} WHERE id = ?", ids["pending"])


def test_a_lease_is_neither_exchanged_nor_given_to_a_job_at_rest(
    harness: StoreHarness, ids: dict[str, str]
) -> None:
    refused(harness, "UPDATE {job} SET lease_id = {new_lease} WHERE id = ?", ids["processing"])
    given = "lease_id = {new_lease}, lease_expires_at = {later}"
    for situation in (*SETTLED, "pending", "pending again"):
        refused(harness, f"UPDATE {{job}} SET {given} WHERE id = ?", ids[situation])
    accepted(harness, "UPDATE {job} SET lease_expires_at = {later} WHERE id = ?", ids["processing"])


def test_a_settled_job_has_an_end_and_a_failed_one_a_reason(
    harness: StoreHarness, ids: dict[str, str]
) -> None:
    for status in ("completed", "failed", "cancelled"):
        transition = f"UPDATE {{job}} SET status = '{status}', {DRESS[status]}"
        endless = transition.replace("finished_at = {now}", "finished_at = NULL")
        refused(harness, f"{endless} WHERE id = ?", ids["processing"])
    silent = f"UPDATE {{job}} SET status = 'failed', {DRESS['failed']}".replace("'x'", "NULL")
    refused(harness, f"{silent} WHERE id = ?", ids["processing"])


def test_one_illegal_row_stops_the_whole_statement(
    harness: StoreHarness, ids: dict[str, str]
) -> None:
    assert ids
    for status in STATUSES:
        refused(harness, f"UPDATE {{job}} SET status = '{status}', {DRESS[status]}")
    refused(harness, "DELETE FROM {job}")


# What is wrong with one of several jobs that a statement claims, or completes.
ONE_OF_MANY = {
    "not charged": ("processing", "attempts", "attempts", "attempts + 1"),
    "no new token": ("processing", "token", "token", "token + 1"),
    "claimed by nobody": ("processing", "worker", "NULL", "'by hand'"),
    "a lease without an end": ("processing", "lease_expires_at", "NULL", "{later}"),
    "charged once more": ("completed", "attempts", "attempts + 1", "attempts"),
    "no end": ("completed", "finished_at", "NULL", "{now}"),
    "keeps its lease": ("completed", "lease_id", "lease_id", "NULL"),
}


@pytest.mark.parametrize("wrong", ONE_OF_MANY)
def test_one_of_several_jobs_is_not_in_order(harness: StoreHarness, wrong: str) -> None:
    target, column, bad, good = ONE_OF_MANY[wrong]
    jobs = [harness.add().id for _ in range(3)]
    changes = {"attempts": "attempts + 1", "token": "token + 1"}
    if target == "completed":
        harness.sql.run(f"UPDATE {{job}} SET {dressed('processing', **changes)}")
        changes = {}
    changes[column] = f"CASE WHEN id = ? THEN {bad} ELSE {good} END"
    for id in jobs:
        refused(harness, f"UPDATE {{job}} SET {dressed(target, **changes)}", id)
    changes[column] = good
    harness.sql.run(f"UPDATE {{job}} SET {dressed(target, **changes)}")


def test_one_statement_may_make_different_moves(unaudited_harness: StoreHarness) -> None:
    """Whichever it makes first. By hand a job may fail for good that has attempts left."""
    harness = unaudited_harness
    for moves in (("completed", "failed"), ("failed", "completed"), ("completed", "cancelled")):
        pair = [harness.take().id, harness.take().id]
        case = f"CASE WHEN id = ? THEN '{moves[0]}' ELSE '{moves[1]}' END"
        dress = dressed("failed", status=case)
        harness.sql.run(f"UPDATE {{job}} SET {dress} WHERE id IN (?, ?)", pair[0], *pair)
        assert [harness.events(id)[-1] for id in pair] == list(moves)


BROKEN_ROWS = {
    "an unknown status": "status = 'done', lease_id = NULL, lease_expires_at = NULL",
    "a lease at rest": "status = 'pending', lease_id = {new_lease}, lease_expires_at = {later}",
    "no lease": "lease_id = NULL",
    "no end of the lease": "lease_expires_at = NULL",
    "a lease that ends at rest": "status = 'pending', lease_id = NULL",
    "nobody who holds it": "worker = NULL",
    "no start": "started_at = NULL",
    "settled without an end": "status = 'cancelled', lease_id = NULL, lease_expires_at = NULL",
    "an end without being settled": "finished_at = {now}",
    "failed without a reason": "status = 'failed', lease_id = NULL, lease_expires_at = NULL,"
    " finished_at = {now}, last_error = NULL",
    "more attempts than allowed": "attempts = 4, token = 4",
    "twice where once is allowed": "attempts = 2, token = 2, max_retries = 0",
    "no attempt left": "status = 'pending', lease_id = NULL, lease_expires_at = NULL,"
    " attempts = 3, token = 3",
    "a negative limit": "max_retries = -1",
    "a negative count": "attempts = -1",
    "more attempts than claims": "attempts = 2, token = 1",
}


def test_a_row_that_makes_no_sense_is_refused(
    harness: StoreHarness, subtests: pytest.Subtests
) -> None:
    """By CHECK constraints on SQLite, so even without triggers; by a trigger on PostgreSQL."""
    lease = harness.take()
    if harness.sql.engine == "sqlite":
        harness.sql.drop_triggers()
    for broken, changes in BROKEN_ROWS.items():
        with subtests.test(broken):
            refused(harness, f"UPDATE {{job}} SET {changes} WHERE id = ?", lease.id)


# --- legal moves ------------------------------------------------------------------------------

# A life by hand: what is set beside the usual, and (source, target, event, attempt, token) of the
# entry that must appear. Where the statement names no event, or a wrong one, the statuses tell.
LIFE = [
    ("processing", "", ("pending", "processing", "claimed", 1, 1)),
    ("pending", "", ("processing", "pending", "released", 1, 1)),
    ("processing", "", ("pending", "processing", "claimed", 1, 2)),
    ("failed", "", ("processing", "failed", "failed", 1, 2)),
    ("pending", ", actor = 'ada'", ("failed", "pending", "retried", 1, 2)),
    ("processing", ", event = 'nonsense'", ("pending", "processing", "claimed", 2, 3)),
    ("failed", ", event = 'lease_expired'", ("processing", "failed", "lease_expired", 2, 3)),
    ("pending", ", event = 'lease_expired'", ("failed", "pending", "retried", 2, 3)),
    ("processing", "", ("pending", "processing", "claimed", 3, 4)),
    ("completed", ", event = 'cancelled'", ("processing", "completed", "completed", 3, 4)),
]


def test_legal_moves_by_hand_are_on_record_under_their_names(harness: StoreHarness) -> None:
    job = harness.add()
    counters = {
        "claimed": ", attempts = attempts + 1, token = token + 1",
        "released": ", attempts = attempts - 1",
    }
    for target, more, expected in LIFE:
        harness.clock.advance(1)
        lease = harness.get(job.id).lease_id
        harness.sql.run(
            f"UPDATE {{job}} SET status = '{target}', {DRESS[target]}"
            f"{counters.get(expected[2], '')}{more} WHERE id = ?",
            job.id,
        )
        assert harness.sql.changed == 1
        entry = harness.history(job.id)[-1]
        found = (entry.source, entry.target, entry.event, entry.attempt, entry.token)
        assert found == expected
        assert entry.at == harness.clock.now
        assert entry.lease_id == (lease or harness.get(job.id).lease_id)
        assert entry.detail == ("x" if target == "failed" else None)
        if "ada" in more:
            assert entry.actor == "ada"
    assert len(harness.history(job.id)) == 1 + len(LIFE)


def test_a_cancellation_by_hand_is_on_record(harness: StoreHarness, ids: dict[str, str]) -> None:
    cancel = f"UPDATE {{job}} SET status = 'cancelled', {DRESS['cancelled']} WHERE id = ?"
    for situation in UNSETTLED:
        harness.sql.run(cancel, ids[situation])
        entry = harness.history(ids[situation])[-1]
        assert (entry.event, entry.source) == ("cancelled", situation.split()[0])


def test_a_cancellation_by_hand_does_not_repeat_a_reason(harness: StoreHarness) -> None:
    with Tenure(harness.url) as app:
        jobs = [app.amend(harness.add().id, priority=1, reason="urgent").id for _ in range(3)]
        cancel = f"UPDATE {{job}} SET status = 'cancelled', {DRESS['cancelled']}"
        harness.sql.run(f"{cancel} WHERE id = ?", jobs[0])
        harness.sql.run(f"{cancel}, reason = 'late' WHERE id = ?", jobs[1])
        app.cancel(jobs[2], reason="urgent")
        found = [[entry.reason for entry in harness.history(id)] for id in jobs]
        assert found == [[None, "urgent", reason] for reason in (None, "late", "urgent")]
        assert "urgent" not in app.explain(jobs[0]).text
        assert app.explain(jobs[2]).text.endswith(": urgent")


def test_one_statement_may_move_many_jobs(harness: StoreHarness) -> None:
    jobs = [harness.add().id for _ in range(30)]
    harness.sql.run(f"UPDATE {{job}} SET status = 'cancelled', {DRESS['cancelled']}")
    assert harness.sql.changed == 30
    assert all(harness.events(id) == ["enqueued", "cancelled"] for id in jobs)


def test_a_change_that_is_no_move_leaves_no_entry(
    harness: StoreHarness, ids: dict[str, str]
) -> None:
    changes = {
        "pending": ("priority = priority", "event = 'nonsense'"),
        "processing": ("lease_expires_at = {later}",),
        "waiting": ("need = 3", "spare = 2"),
    }
    for situation in UNSETTLED:
        before = harness.history(ids[situation])
        for change in changes[situation.split()[0]]:
            harness.sql.run(f"UPDATE {{job}} SET {change} WHERE id = ?", ids[situation])
            assert harness.sql.changed == 1
        assert harness.history(ids[situation]) == before


AMENDMENTS = (
    *("priority = 7", "run_at = {later}", "timeout = 5", "max_retries = 9"),
    """backoff = '{"base":1}'""",
)


def test_columns_of_a_pending_job_are_set_on_record_and_of_others_not_at_all(
    harness: StoreHarness, ids: dict[str, str], subtests: pytest.Subtests
) -> None:
    for change in (*AMENDMENTS, """payload = '{"a":1}'"""):
        with subtests.test(change):
            set_columns(harness, ids, change)


def set_columns(harness: StoreHarness, ids: dict[str, str], change: str) -> None:
    set_it = f"UPDATE {{job}} SET {change}, actor = 'ada' WHERE id = ?"
    tried = [] if "payload" in change else ["pending again"]
    for situation in ("pending", *tried):
        harness.sql.run(set_it, ids[situation])
        entry = harness.history(ids[situation])[-1]
        assert (entry.event, entry.source, entry.target) == ("amended", "pending", "pending")
        assert entry.actor == "ada"
    for situation in {*SITUATIONS} - {"pending", "pending again"}:
        refused(harness, set_it, ids[situation])
    if "payload" in change:
        refused(harness, set_it, ids["pending again"])


RETURNED = {"attempts": "attempts - 1"}
OTHER_NAMES: dict[str, tuple[str, str, dict[str, str]]] = {
    "snoozed without its count": ("processing", "pending", {"event": "'snoozed'", **RETURNED}),
    "snoozed and charged": ("processing", "pending", {"event": "'snoozed'", "snoozes": "1"}),
    "released and counted": (
        *("processing", "pending"),
        {"event": "'released'", "snoozes": "1", **RETURNED},
    ),
    "interrupted and charged": ("processing", "pending", {"event": "'interrupted'"}),
    "suspended and charged": ("processing", "waiting", {"event": "'suspended'", "snoozes": "1"}),
    "suspended without its count": ("processing", "waiting", {"event": "'suspended'", **RETURNED}),
    "skipped while there is hope": ("waiting", "cancelled", {"event": "'skipped'"}),
    "cancelled and counted": ("waiting", "cancelled", {"event": "'cancelled'", "spare": "-1"}),
    "expired without a time": ("waiting", "cancelled", {"event": "'expired'"}),
    "pending, expired without a time": ("pending", "cancelled", {"event": "'expired'"}),
    "pending, back to waiting": ("pending", "waiting", {"event": "'restored'"}),
    "cancelled, back to waiting": ("cancelled", "waiting", {"event": "'restored'"}),
    "null: suspended for nothing": (
        *("processing", "waiting"),
        {"event": "'suspended'", "need": "NULL", "snoozes": "1", **RETURNED},
    ),
    "null: skipped without spare": (
        "waiting",
        "cancelled",
        {"event": "'skipped'", "spare": "NULL"},
    ),
}
"""Changes that pass for one row of the table and are named after another, or that have NULL where a
guard looks: a condition that is NULL would be silent."""


def test_a_transition_does_not_pass_under_the_name_of_another(
    harness: StoreHarness, ids: dict[str, str], subtests: pytest.Subtests
) -> None:
    harness.sql.drop_checks()
    for name, (source, target, changes) in OTHER_NAMES.items():
        with subtests.test(name), pytest.raises(Refused, match="tenure: "):
            harness.sql.run(
                f"UPDATE {{job}} SET {dressed(target, **changes)} WHERE id = ?", ids[source]
            )


def test_a_waiting_job_waits_for_something_and_others_for_nothing(
    harness: StoreHarness, ids: dict[str, str]
) -> None:
    if harness.sql.engine == "sqlite":
        harness.sql.drop_triggers()
    for need in ("0", "NULL"):
        refused(harness, f"UPDATE {{job}} SET need = {need} WHERE id = ?", ids["waiting"])
    for situation in ("pending", "processing"):
        refused(harness, "UPDATE {job} SET need = 1 WHERE id = ?", ids[situation])
