"""Ways around the rules that only one of the engines has."""

from __future__ import annotations

import pytest

from tests.contract.situations import DRESS, INSERT, NEW_ID, SITUATIONS, refused
from tests.support.raw_sql import Refused
from tests.support.store import Desk, completed

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
on_postgres = pytest.mark.parametrize(
    "database_url", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
)

FORGED = (
    "INSERT INTO {transition} (job_id, at, source, target, event, attempt, token)"
    " VALUES (?, {now}, 'processing', 'completed', 'completed', 1, 1)"
)


def without_effect(desk: Desk, statement: str, *values: object) -> None:
    """The statement is refused or changes nothing: either will do."""
    before = desk.raw.contents()
    try:
        desk.raw.run(statement, *values)
    except Refused:
        pass
    else:
        assert desk.raw.changed == 0, statement
    assert desk.raw.contents() == before, statement


# --- SQLite: conflict clauses, which delete rows without firing their triggers -----------------


@on_sqlite
@pytest.mark.parametrize("verb", ["INSERT OR REPLACE", "REPLACE", "INSERT OR IGNORE", "INSERT"])
def test_no_insert_replaces_a_job(desk: Desk, ids: dict[str, str], verb: str) -> None:
    row = "(id, type, run_at, created_at) VALUES (?, 'other', 0, 0)"
    keyed = "(id, type, run_at, created_at, idempotency_key) VALUES (?, 'other', 0, 0, 'k')"
    placed = "(rowid, id, type, run_at, created_at) VALUES (?, ?, 'other', 0, 0)"
    for situation in SITUATIONS:
        without_effect(desk, f"{verb} INTO {{job}} {row}", ids[situation])
        rowid = desk.raw.value("SELECT rowid FROM {job} WHERE id = ?", ids[situation])
        without_effect(desk, f"{verb} INTO {{job}} {placed}", rowid, NEW_ID)
        without_effect(desk, f"{verb} INTO {{job}} {placed}", rowid, ids[situation])
    without_effect(desk, f"{verb} INTO {{job}} {keyed}", NEW_ID)


@on_sqlite
@pytest.mark.scenario(54)
def test_no_rowid_stands_in_the_way_of_later_jobs(desk: Desk) -> None:
    for rowid in (-1, 0, -(2**63)):
        refused(
            desk,
            "INSERT INTO {job} (rowid, id, type, run_at, created_at) VALUES (?, ?, 'm', 0, 0)",
            rowid,
            NEW_ID,
        )
    desk.raw.run(
        "INSERT INTO {job} (rowid, id, type, run_at, created_at) VALUES (?, ?, 'm', 0, 0)",
        2**63 - 1,
        NEW_ID,
    )
    assert len({desk.add().id for _ in range(20)}) == 20
    assert len(desk.claim(limit=50)) == 21


@on_sqlite
@pytest.mark.parametrize("verb", ["UPDATE OR REPLACE", "UPDATE OR IGNORE", "UPDATE OR FAIL"])
def test_no_update_replaces_a_job(desk: Desk, ids: dict[str, str], verb: str) -> None:
    for situation in SITUATIONS:
        for column in ("id", "rowid", "idempotency_key"):  # `pending` has the key
            other = ids["pending"] if situation != "pending" else ids["failed"]
            taken = desk.raw.value(
                f"SELECT coalesce({column}, 'x') FROM {{job}} WHERE id = ?", other
            )
            change = f"{verb} {{job}} SET {column} = ? WHERE id = ?"
            without_effect(desk, change, taken, ids[situation])
        for status, dress in DRESS.items():
            statement = f"{verb} {{job}} SET status = '{status}', token = 99, {dress} WHERE id = ?"
            without_effect(desk, statement, ids[situation])


@on_sqlite
def test_no_insert_replaces_an_entry_of_the_ledger(desk: Desk, ids: dict[str, str]) -> None:
    row = "(seq, job_id, at, source, target, event, attempt, token)"
    for seq, verb in ((1, "INSERT OR REPLACE"), (1, "REPLACE"), (5, "INSERT OR REPLACE")):
        values = "VALUES (?, ?, 0, NULL, 'pending', 'enqueued', 0, 0)"
        refused(desk, f"{verb} INTO {{transition}} {row} {values}", seq, ids["completed"])
    for seq in (0, -1):
        values = "VALUES (?, ?, 0, NULL, 'pending', 'enqueued', 0, 0)"
        refused(desk, f"INSERT INTO {{transition}} {row} {values}", seq, ids["completed"])
    for verb in ("UPDATE OR REPLACE", "UPDATE OR IGNORE"):
        without_effect(desk, f"{verb} {{transition}} SET seq = 1 WHERE seq = 2")


@on_sqlite
def test_settings_of_a_connection_change_nothing(desk: Desk, ids: dict[str, str]) -> None:
    settings = ("recursive_triggers = ON", "recursive_triggers = OFF", "foreign_keys = OFF")
    for setting in settings:
        desk.raw.run(f"PRAGMA {setting}")
        without_effect(
            desk,
            "REPLACE INTO {job} (id, type, run_at, created_at) VALUES (?, 'other', 0, 0)",
            ids["processing"],
        )
        refused(desk, f"UPDATE {{job}} SET status = 'pending', {DRESS['pending']}")


@on_sqlite
def test_an_entry_forged_by_hand_is_found(unaudited_desk: Desk) -> None:
    desk = unaudited_desk
    lease = desk.take()
    desk.raw.run(FORGED, lease.id)
    assert lease.id in {job_id for _, job_id, _ in desk.store.read.violations(10)}
    desk.report(completed(lease))
    assert lease.id in {job_id for _, job_id, _ in desk.store.read.violations(10)}


# --- PostgreSQL -------------------------------------------------------------------------------


@on_postgres
def test_nothing_is_truncated(desk: Desk, ids: dict[str, str]) -> None:
    assert ids
    for tables in ("{job}", "{transition}", "{job}, {transition}", "{job} CASCADE"):
        refused(desk, f"TRUNCATE {tables}")
        refused(desk, f"TRUNCATE {tables.replace(' CASCADE', '')} RESTART IDENTITY CASCADE")


@on_postgres
def test_a_replica_s_session_is_held_to_the_rules(desk: Desk, ids: dict[str, str]) -> None:
    desk.raw.run("SET session_replication_role = replica")
    transition = f"UPDATE {{job}} SET status = 'completed', {DRESS['completed']} WHERE id = ?"
    refused(desk, transition, ids["pending"])
    refused(desk, transition, ids["failed"])
    refused(desk, "UPDATE {job} SET token = token + 1 WHERE id = ?", ids["pending"])
    refused(desk, INSERT % (", token", ", 1"), NEW_ID)
    refused(desk, "DELETE FROM {job} WHERE id = ?", ids["processing"])
    refused(desk, "DELETE FROM {transition}")
    refused(desk, "UPDATE {transition} SET event = event")
    refused(desk, "TRUNCATE {job}")
    refused(desk, "TRUNCATE {transition}")
    refused(desk, FORGED, ids["pending"])
    desk.raw.run(transition, ids["processing"])
    assert desk.events(ids["processing"])[-1] == "completed"
    desk.raw.run(INSERT % ("", ""), NEW_ID)
    assert desk.events(NEW_ID) == ["enqueued"]


@on_postgres
@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_the_rules_hold_at_every_isolation_level(
    desk: Desk, ids: dict[str, str], level: str
) -> None:
    desk.raw.run(f"SET default_transaction_isolation = '{level.lower()}'")
    transition = f"UPDATE {{job}} SET status = 'completed', {DRESS['completed']} WHERE id = ?"
    for situation in ("pending", "failed", "cancelled"):
        refused(desk, transition, ids[situation])
    desk.raw.run(transition, ids["processing"])
    assert desk.events(ids["processing"])[-1] == "completed"


@on_postgres
def test_the_ledger_is_written_by_moves_alone(desk: Desk, ids: dict[str, str]) -> None:
    refused(desk, FORGED, ids["processing"])
    refused(desk, FORGED, NEW_ID)
    copied = FORGED.replace("VALUES (?, {now}, ", "SELECT id, {now}, ").replace("1, 1)", "1, 1")
    refused(desk, f"{copied} FROM {{job}}")
    refused(desk, f"WITH new AS ({FORGED} RETURNING 1) SELECT * FROM new", ids["processing"])


@on_postgres
def test_merge_is_no_way_around_the_rules(desk: Desk, ids: dict[str, str]) -> None:
    if int(desk.raw.value("SHOW server_version_num")) < 150_000:
        pytest.skip("MERGE came with PostgreSQL 15")
    for situation in SITUATIONS:
        if not situation.startswith("processing"):
            refused(
                desk,
                f"MERGE INTO {{job}} AS job USING (SELECT ?::uuid AS id) AS new ON job.id = new.id"
                f" WHEN MATCHED THEN UPDATE SET status = 'completed', {DRESS['completed']}",
                ids[situation],
            )
    refused(
        desk,
        "MERGE INTO {job} AS job USING (SELECT ?::uuid AS id) AS new ON job.id = new.id"
        " WHEN MATCHED THEN DELETE",
        ids["processing"],
    )


@on_postgres
def test_one_statement_with_several_parts_is_held_to_the_rules(
    desk: Desk, ids: dict[str, str]
) -> None:
    cancel = f"UPDATE {{job}} SET status = 'cancelled', {DRESS['cancelled']} WHERE id = ?"
    # The deletion sees the job as it was before the statement: processing.
    without_effect(
        desk,
        f"WITH moved AS ({cancel} RETURNING id), gone AS"
        " (DELETE FROM {transition} USING moved WHERE job_id = moved.id) SELECT 1 WHERE false",
        ids["processing"],
    )
    refused(
        desk,
        "WITH gone AS (DELETE FROM {transition} WHERE job_id = ? RETURNING 1) SELECT * FROM gone",
        ids["completed"],
    )
