"""Ways around the rules that only one of the engines has."""

from __future__ import annotations

from itertools import product

import pytest

from tests.contract.situations import DRESS, INSERT, NEW_ID, SITUATIONS, accepted, refused
from tests.support.raw_sql import Refused
from tests.support.store import LEASE_SECONDS, StoreHarness, report_completed

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
on_postgres = pytest.mark.parametrize(
    "database_url", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
)

FORGED = (
    "INSERT INTO {transition} (job_id, at, source, target, event, attempt, token)"
    " VALUES (?, {now}, 'processing', 'completed', 'completed', 1, 1)"
)


def without_effect(harness: StoreHarness, statement: str, *values: object) -> None:
    """The statement is refused or changes nothing: either will do."""
    before = harness.sql.contents()
    try:
        harness.sql.run(statement, *values)
    except Refused:
        pass
    else:
        assert harness.sql.changed == 0, statement
    assert harness.sql.contents() == before, statement


def is_refused(harness: StoreHarness, statement: str, *values: object) -> bool:
    """Whether the database refuses the statement; it is undone otherwise."""
    try:
        accepted(harness, statement, *values)
    except Refused:
        return True
    return False


# --- SQLite: conflict clauses, which delete rows without firing their triggers -----------------


@on_sqlite
@pytest.mark.parametrize("verb", ["INSERT OR REPLACE", "REPLACE", "INSERT OR IGNORE", "INSERT"])
def test_no_insert_replaces_a_job(harness: StoreHarness, ids: dict[str, str], verb: str) -> None:
    row = "(id, type, run_at, created_at) VALUES (?, 'other', 0, 0)"
    keyed = "(id, type, run_at, created_at, idempotency_key) VALUES (?, 'other', 0, 0, 'k')"
    placed = "(rowid, id, type, run_at, created_at) VALUES (?, ?, 'other', 0, 0)"
    for situation in SITUATIONS:
        without_effect(harness, f"{verb} INTO {{job}} {row}", ids[situation])
        rowid = harness.sql.value("SELECT rowid FROM {job} WHERE id = ?", ids[situation])
        without_effect(harness, f"{verb} INTO {{job}} {placed}", rowid, NEW_ID)
        without_effect(harness, f"{verb} INTO {{job}} {placed}", rowid, ids[situation])
    without_effect(harness, f"{verb} INTO {{job}} {keyed}", NEW_ID)


@on_sqlite
@pytest.mark.scenario(54)
def test_no_rowid_stands_in_the_way_of_later_jobs(harness: StoreHarness) -> None:
    for rowid in (-1, 0, -(2**63)):
        refused(
            harness,
            "INSERT INTO {job} (rowid, id, type, run_at, created_at) VALUES (?, ?, 'm', 0, 0)",
            rowid,
            NEW_ID,
        )
    harness.sql.run(
        "INSERT INTO {job} (rowid, id, type, run_at, created_at) VALUES (?, ?, 'm', 0, 0)",
        2**63 - 1,
        NEW_ID,
    )
    assert len({harness.add().id for _ in range(20)}) == 20
    assert len(harness.claim(limit=50)) == 21


@on_sqlite
@pytest.mark.parametrize("verb", ["UPDATE OR REPLACE", "UPDATE OR IGNORE", "UPDATE OR FAIL"])
def test_no_update_replaces_a_job(harness: StoreHarness, ids: dict[str, str], verb: str) -> None:
    for situation in SITUATIONS:
        for column in ("id", "rowid", "idempotency_key"):  # `pending` has the key
            other = ids["pending"] if situation != "pending" else ids["failed"]
            taken = harness.sql.value(
                f"SELECT coalesce({column}, 'x') FROM {{job}} WHERE id = ?", other
            )
            change = f"{verb} {{job}} SET {column} = ? WHERE id = ?"
            without_effect(harness, change, taken, ids[situation])
        for status, dress in DRESS.items():
            statement = f"{verb} {{job}} SET status = '{status}', token = 99, {dress} WHERE id = ?"
            without_effect(harness, statement, ids[situation])


@on_sqlite
@pytest.mark.parametrize("guards", ["triggers and checks", "triggers alone"])
def test_a_null_is_judged_as_the_default_that_replaces_it(
    harness: StoreHarness, ids: dict[str, str], guards: str
) -> None:
    """OR REPLACE writes the default of a column for NULL."""
    if guards == "triggers alone":
        harness.sql.drop_checks()
    columns = {
        "status = NULL": "status = 'pending'",
        "attempts = NULL": "attempts = 0",
        "token = NULL, attempts = NULL": "token = 0, attempts = 0",
    }
    refusals = 0
    for situation, column, dress in product(SITUATIONS, columns, ("", *DRESS.values())):
        rest = f"{', ' if dress else ''}{dress} WHERE id = ?"
        as_null, as_default = (
            is_refused(harness, f"UPDATE OR REPLACE {{job}} SET {change}{rest}", ids[situation])
            for change in (column, columns[column])
        )
        assert as_null == as_default, (situation, column, dress)
        refusals += as_null
    assert refusals > 100
    for situation in (name for name in SITUATIONS if name not in ("pending", "waiting")):
        statement = "UPDATE OR REPLACE {job} SET payload = NULL WHERE id = ?"
        refused(harness, statement, ids[situation])


@on_sqlite
def test_no_insert_replaces_an_entry_of_the_ledger(
    harness: StoreHarness, ids: dict[str, str]
) -> None:
    row = "(seq, job_id, at, source, target, event, attempt, token)"
    values = "VALUES (?, ?, 0, NULL, 'pending', 'enqueued', 0, 0)"
    for seq, verb in ((1, "INSERT OR REPLACE"), (1, "REPLACE"), (5, "INSERT OR REPLACE")):
        refused(harness, f"{verb} INTO {{transition}} {row} {values}", seq, ids["completed"])
    newest = harness.sql.value("SELECT max(seq) FROM {transition}")
    for seq in (0, -1, newest + 2, 2**63 - 1):  # after the last of them, nothing could follow
        refused(harness, f"INSERT INTO {{transition}} {row} {values}", seq, ids["completed"])
    for verb in ("UPDATE OR REPLACE", "UPDATE OR IGNORE"):
        without_effect(harness, f"{verb} {{transition}} SET seq = 1 WHERE seq = 2")


@on_sqlite
def test_settings_of_a_connection_change_nothing(
    harness: StoreHarness, ids: dict[str, str]
) -> None:
    settings = ("recursive_triggers = ON", "recursive_triggers = OFF", "foreign_keys = OFF")
    for setting in settings:
        harness.sql.run(f"PRAGMA {setting}")
        without_effect(
            harness,
            "REPLACE INTO {job} (id, type, run_at, created_at) VALUES (?, 'other', 0, 0)",
            ids["processing"],
        )
        refused(harness, f"UPDATE {{job}} SET status = 'pending', {DRESS['pending']}")


@on_sqlite
def test_an_entry_forged_by_hand_is_found(unaudited_harness: StoreHarness) -> None:
    harness = unaudited_harness
    lease = harness.take()
    harness.sql.run(FORGED, lease.id)
    assert lease.id in {job_id for _, job_id, _ in harness.store.read.violations(10)}
    harness.report(report_completed(lease))
    assert lease.id in {job_id for _, job_id, _ in harness.store.read.violations(10)}


# --- PostgreSQL -------------------------------------------------------------------------------


@on_postgres
def test_nothing_is_truncated(harness: StoreHarness, ids: dict[str, str]) -> None:
    assert ids
    for tables in ("{job}", "{transition}", "{job}, {transition}", "{job} CASCADE"):
        refused(harness, f"TRUNCATE {tables}")
        refused(harness, f"TRUNCATE {tables.replace(' CASCADE', '')} RESTART IDENTITY CASCADE")


@on_postgres
@pytest.mark.own_database
def test_a_replica_s_session_is_held_to_the_rules(
    harness: StoreHarness, ids: dict[str, str]
) -> None:
    harness.sql.run("SET session_replication_role = replica")
    transition = f"UPDATE {{job}} SET status = 'completed', {DRESS['completed']} WHERE id = ?"
    refused(harness, transition, ids["pending"])
    refused(harness, transition, ids["failed"])
    refused(harness, "UPDATE {job} SET token = token + 1 WHERE id = ?", ids["pending"])
    refused(harness, INSERT % (", token", ", 1"), NEW_ID)
    refused(harness, "DELETE FROM {job} WHERE id = ?", ids["processing"])
    refused(harness, "DELETE FROM {transition}")
    refused(harness, "UPDATE {transition} SET event = event")
    refused(harness, "TRUNCATE {job}")
    refused(harness, "TRUNCATE {transition}")
    refused(harness, FORGED, ids["pending"])
    harness.sql.run(transition, ids["processing"])
    assert harness.events(ids["processing"])[-1] == "completed"
    harness.sql.run(INSERT % ("", ""), NEW_ID)
    assert harness.events(NEW_ID) == ["enqueued"]


@on_postgres
@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_the_rules_hold_at_every_isolation_level(
    harness: StoreHarness, ids: dict[str, str], level: str
) -> None:
    harness.sql.run(f"SET default_transaction_isolation = '{level.lower()}'")
    transition = f"UPDATE {{job}} SET status = 'completed', {DRESS['completed']} WHERE id = ?"
    for situation in ("pending", "failed", "cancelled"):
        refused(harness, transition, ids[situation])
    harness.sql.run(transition, ids["processing"])
    assert harness.events(ids["processing"])[-1] == "completed"


@on_postgres
def test_the_ledger_is_written_by_moves_alone(harness: StoreHarness, ids: dict[str, str]) -> None:
    refused(harness, FORGED, ids["processing"])
    refused(harness, FORGED, NEW_ID)
    copied = FORGED.replace("VALUES (?, {now}, ", "SELECT id, {now}, ").replace("1, 1)", "1, 1")
    refused(harness, f"{copied} FROM {{job}}")
    refused(harness, f"WITH new AS ({FORGED} RETURNING 1) SELECT * FROM new", ids["processing"])


@on_postgres
def test_merge_is_no_way_around_the_rules(harness: StoreHarness, ids: dict[str, str]) -> None:
    if int(harness.sql.value("SHOW server_version_num")) < 150_000:
        pytest.skip("MERGE came with PostgreSQL 15")
    for situation in SITUATIONS:
        if not situation.startswith("processing"):
            refused(
                harness,
                f"MERGE INTO {{job}} AS job USING (SELECT ?::uuid AS id) AS new ON job.id = new.id"
                f" WHEN MATCHED THEN UPDATE SET status = 'completed', {DRESS['completed']}",
                ids[situation],
            )
    refused(
        harness,
        "MERGE INTO {job} AS job USING (SELECT ?::uuid AS id) AS new ON job.id = new.id"
        " WHEN MATCHED THEN DELETE",
        ids["processing"],
    )


@on_postgres
def test_one_statement_with_several_parts_is_held_to_the_rules(
    harness: StoreHarness, ids: dict[str, str]
) -> None:
    cancel = f"UPDATE {{job}} SET status = 'cancelled', {DRESS['cancelled']} WHERE id = ?"
    # The deletion sees the job as it was before the statement: processing.
    without_effect(
        harness,
        f"WITH moved AS ({cancel} RETURNING id), gone AS"
        " (DELETE FROM {transition} USING moved WHERE job_id = moved.id) SELECT 1 WHERE false",
        ids["processing"],
    )
    refused(
        harness,
        "WITH gone AS (DELETE FROM {transition} WHERE job_id = ? RETURNING 1) SELECT * FROM gone",
        ids["completed"],
    )


@on_postgres
def test_what_follows_the_jobs_is_not_written_by_hand(
    harness: StoreHarness, ids: dict[str, str]
) -> None:
    for statement in (
        "DELETE FROM tenure.ready",
        "UPDATE tenure.ready SET priority = 1",
        "INSERT INTO tenure.ready (queue, priority, run_at, id, type)"
        " SELECT queue, 1, run_at, id, type FROM tenure.ready",
        "TRUNCATE tenure.ready",
        "DELETE FROM tenure.ended",
        "UPDATE tenure.ended SET status = 'failed'",
        f"INSERT INTO tenure.ended VALUES ('failed', '{ids['pending']}')",
        "TRUNCATE tenure.ended",
        "DELETE FROM tenure.tag",
        "UPDATE tenure.tag SET tag = 'x'",
        f"INSERT INTO tenure.tag VALUES ('x', '{ids['pending']}')",
        "TRUNCATE tenure.tag",
        "UPDATE tenure.arrival SET at = now()",
        f"INSERT INTO tenure.arrival VALUES (now(), 'failed', ARRAY['{ids['pending']}'::uuid])",
        "TRUNCATE tenure.arrival",
    ):
        refused(harness, statement)


@on_postgres
def test_arrivals_that_are_deleted_come_back(harness: StoreHarness, ids: dict[str, str]) -> None:
    assert ids
    harness.sql.run("DELETE FROM tenure.arrival")  # `harness` looks for violations at the end
    assert harness.sql.value("SELECT count(*) FROM tenure.arrival") > 0


@on_postgres
def test_a_lease_that_is_shortened_by_hand_ends_then(harness: StoreHarness) -> None:
    lease = harness.take()
    harness.store.sweep().result()  # the next one comes when that lease ends
    earlier = "lease_expires_at - interval '50 seconds'"
    harness.sql.run(f"UPDATE {{job}} SET lease_expires_at = {earlier} WHERE id = ?", lease.id)
    harness.clock.advance(LEASE_SECONDS - 49)
    assert len(harness.store.sweep().result()) == 1
