"""A SQLite file holds limits against whoever starts jobs, in SQL of any kind."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tenure.store import migrate_store
from tenure.store.sqlite.connection import connect
from tenure.values.ids import new_ids
from tests.unit.sqlite.limits import CLOCK, START

END = f"""
UPDATE tenure_job SET status = :status, finished_at = {CLOCK}, lease_id = NULL,
    lease_expires_at = NULL, event = :status, last_error = iif(:status = 'failed', 'boom', NULL)
WHERE id IN (SELECT value FROM json_each(:ids))
"""
RETURN = """
UPDATE tenure_job SET status = 'pending', attempts = attempts - 1, lease_id = NULL,
    lease_expires_at = NULL, event = 'released' WHERE id IN (SELECT value FROM json_each(:ids))
"""
RETRY = f"""
UPDATE tenure_job SET status = 'pending', finished_at = NULL, run_at = {CLOCK},
    max_retries = max_retries + 1, event = 'retried' WHERE id IN (SELECT value FROM json_each(:ids))
"""
VERBS = ("UPDATE", *(f"UPDATE OR {c}" for c in ("REPLACE", "IGNORE", "FAIL", "ABORT", "ROLLBACK")))
HOUR = 3_600_000


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A plain connection, as an operator with an SQL client has."""
    path = tmp_path / "jobs.db"
    migrate_store(f"sqlite:///{path}")
    connection = connect(path)
    yield connection
    connection.close()


def add(
    raw: sqlite3.Connection, count: int, partition: str | None = None, **more: Any
) -> list[str]:
    columns = {"queue": "q", "type": "mail", "partition": partition, **more}
    ids = new_ids(count)
    raw.executemany(
        f"INSERT INTO tenure_job (id, run_at, created_at, {', '.join(columns)})"
        f" SELECT ?, at, at{', ?' * len(columns)} FROM tenure_now",
        [(id, *columns.values()) for id in ids],
    )
    return ids


def start(raw: sqlite3.Connection, ids: Sequence[str], verb: str = "UPDATE", later: int = 0) -> int:
    values = {"ids": json.dumps(ids), "later": later}
    return raw.execute(START.format(verb=verb), values).rowcount


def refused(raw: sqlite3.Connection, ids: Sequence[str], why: str, **how: Any) -> None:
    """Check that these jobs may not start now, and that none did."""
    before = contents(raw)
    with pytest.raises(sqlite3.IntegrityError, match=why):
        start(raw, ids, **how)
    assert contents(raw) == before


def end(raw: sqlite3.Connection, ids: Sequence[str], status: str = "completed") -> None:
    raw.execute(END, {"ids": json.dumps(ids), "status": status})


def contents(raw: sqlite3.Connection) -> dict[str, list[Any]]:
    tables = ("job", "queue_limit", "partition_limit", "slot", "turn", "line", "limit_change")
    return {name: raw.execute(f"SELECT * FROM tenure_{name}").fetchall() for name in tables}


def limit(raw: sqlite3.Connection, verb: str = "INSERT", **settings: Any) -> None:
    if "per_max_running" in settings or "ordered" in settings:
        settings = {"partitioned": 1, **settings}
    values = {"queue": "q", **settings}
    names = ", ".join(f":{name}" for name in values)
    raw.execute(f"{verb} INTO tenure_queue_limit ({', '.join(values)}) VALUES ({names})", values)


def rate(starts: int, seconds: float, burst: int, per: str = "") -> dict[str, Any]:
    every = -(-round(seconds * 1_000_000) // (starts - burst + 1))
    names = [f"{per}{name}" for name in ("rate_starts", "rate_seconds", "burst", "every")]
    return dict(zip(names, (starts, seconds, burst, every), strict=True))


def rows(raw: sqlite3.Connection, table: str) -> list[Any]:
    return raw.execute(f"SELECT * FROM tenure_{table} ORDER BY 1, 2, 3").fetchall()


# --- how many run at once


@pytest.mark.parametrize("verb", VERBS)
def test_no_more_jobs_run_than_the_limit(raw: sqlite3.Connection, verb: str) -> None:
    ids = add(raw, 4)
    limit(raw, max_running=2)
    assert start(raw, ids[:1], verb) == 1
    refused(raw, ids[1:], "no more jobs of this queue may run", verb=verb)
    assert start(raw, ids[1:2], verb) == 1
    refused(raw, ids[2:3], "no more jobs of this queue may run", verb=verb)
    end(raw, ids[:1])
    assert start(raw, ids[2:3], verb) == 1
    refused(raw, ids[3:], "no more jobs of this queue may run", verb=verb)
    assert rows(raw, "slot") == [("q", "", id) for id in ids[1:3]]


@pytest.mark.parametrize("verb", VERBS)
def test_no_more_jobs_of_a_partition_run_than_its_limit(raw: sqlite3.Connection, verb: str) -> None:
    """As oban#792: jobs without a partition are one of their own."""
    limit(raw, per_max_running=1)
    acme, other, none = add(raw, 3, "acme"), add(raw, 1, "b"), add(raw, 2)
    why = "no more jobs of this partition may run"
    refused(raw, acme[:2], why, verb=verb)
    start(raw, [acme[0], other[0], none[0]], verb)
    refused(raw, acme[1:2], why, verb=verb)
    refused(raw, none[1:], why, verb=verb)
    raw.execute(
        "INSERT INTO tenure_partition_limit (queue, partition, max_running) VALUES ('q', 'acme', 2)"
    )
    start(raw, acme[1:2], verb)
    refused(raw, acme[2:], why, verb=verb)
    refused(raw, none[1:], why, verb=verb)


def test_a_slot_is_free_whatever_ends_the_attempt(raw: sqlite3.Connection) -> None:
    limit(raw, max_running=1)
    for finish in (END, RETURN, END, END):
        status = ("completed", "failed", "cancelled")[len(rows(raw, "transition")) % 3]
        (id,) = add(raw, 1)
        start(raw, [id])
        assert rows(raw, "slot") == [("q", "", id)]
        raw.execute(finish, {"ids": json.dumps([id]), "status": status})
        assert rows(raw, "slot") == []


def test_what_runs_already_counts_and_none_starts_until_it_is_below(
    raw: sqlite3.Connection,
) -> None:
    ids = add(raw, 5)
    start(raw, ids[:3])
    limit(raw, max_running=2)
    for done in range(2):
        refused(raw, ids[3:4], "no more jobs of this queue may run")
        end(raw, [ids[done]])
    start(raw, ids[3:4])
    refused(raw, ids[4:], "no more jobs of this queue may run")
    raw.execute("UPDATE tenure_queue_limit SET max_running = 3")
    start(raw, ids[4:])
    raw.execute("DELETE FROM tenure_queue_limit")
    assert rows(raw, "slot") == []
    start(raw, add(raw, 9))


# --- how many start in a time


@pytest.mark.parametrize("verb", VERBS)
def test_no_more_jobs_start_than_the_rate_lets(raw: sqlite3.Connection, verb: str) -> None:
    why = "no more jobs of this queue may start"
    ids = add(raw, 6)
    limit(raw, **rate(4, 3600, 2))
    refused(raw, ids[:3], why, verb=verb)
    raw.execute("BEGIN")
    start(raw, ids[:2], verb)
    raw.execute("ROLLBACK")
    start(raw, ids[:2], verb)  # what was undone was given back
    refused(raw, ids[2:3], why, verb=verb)
    end(raw, ids[:1])
    refused(raw, ids[2:3], why, verb=verb)  # that it is over gives nothing back
    raw.execute("UPDATE tenure_queue_limit SET tat = tat - 1200 * 1000000")
    start(raw, ids[2:3], verb)
    refused(raw, ids[3:4], why, verb=verb)


@pytest.mark.parametrize("verb", VERBS)
def test_the_rate_of_a_partition_does_not_touch_others(raw: sqlite3.Connection, verb: str) -> None:
    """As oban#1477. OR REPLACE keeps what else is set for the partition."""
    why = "no more jobs of this partition may start"
    limit(raw, partitioned=1, **rate(2, 3600, 1, "per_"))
    raw.execute(
        "INSERT INTO tenure_partition_limit (queue, partition, max_running, weight)"
        " VALUES ('q', 'acme', 9, 4)"
    )
    acme, other = add(raw, 3, "acme"), add(raw, 2)
    start(raw, [acme[0], other[0]], verb)
    refused(raw, acme[1:2], why, verb=verb)
    refused(raw, other[1:2], why, verb=verb)
    found = raw.execute("SELECT partition, max_running, weight FROM tenure_partition_limit")
    assert found.fetchall() == [("", None, None), ("acme", 9, 4)]


def test_a_job_of_a_limited_queue_starts_now(raw: sqlite3.Connection) -> None:
    ids = add(raw, 3)
    limit(raw, **rate(4, 3600, 2))
    refused(raw, ids, "starts now", later=HOUR)
    refused(raw, ids[:3], "no more jobs of this queue may start", later=-HOUR)
    start(raw, ids[:2], later=-HOUR)
    refused(raw, ids[2:], "no more jobs of this queue may start", later=-HOUR)


def test_nobody_waits_longer_than_by_a_new_rate(raw: sqlite3.Connection) -> None:
    limit(raw, partitioned=1, **rate(2, 86400, 1), **rate(2, 86400, 1, "per_"))
    ids = add(raw, 2, "acme")
    start(raw, ids[:1])
    new = {**rate(2, 0.002, 1), **rate(2, 0.002, 1, "per_")}
    changes = ", ".join(f"{name} = :{name}" for name in new)
    raw.execute(f"UPDATE tenure_queue_limit SET {changes}", new)
    start(raw, ids[1:], later=500)


# --- pauses and order


def test_no_job_starts_that_has_to_wait(raw: sqlite3.Connection) -> None:
    limit(raw, partitioned=1)
    acme, other = add(raw, 3, "acme"), add(raw, 1)
    raw.execute("INSERT INTO tenure_partition_limit (queue, partition) VALUES ('q', 'acme')")
    for table, of, setting in (
        ("queue_limit", [*acme, *other], "resume_at"),
        ("partition_limit", acme, "resume_at"),
        ("partition_limit", acme, "paused_at"),
    ):
        raw.execute(f"UPDATE tenure_{table} SET {setting} = {CLOCK} + 60000")
        for id in of:
            refused(raw, [id], "its queue or partition waits")
        raw.execute(f"UPDATE tenure_{table} SET {setting} = NULL")
    raw.execute(f"UPDATE tenure_queue_limit SET resume_at = {CLOCK}")
    start(raw, [*acme, *other])


@pytest.mark.parametrize("verb", VERBS)
def test_only_the_first_of_a_line_starts(raw: sqlite3.Connection, verb: str) -> None:
    why = "an earlier job of this partition comes first"
    ids = add(raw, 1, "acme")
    ids += add(raw, 2, "acme", priority=-1)
    limit(raw, ordered="halt")
    other = add(raw, 1)
    refused(raw, ids[1:2], why, verb=verb)
    start(raw, [ids[0], other[0]], verb)
    refused(raw, ids[1:2], why, verb=verb)  # one at a time
    end(raw, ids[:1])
    refused(raw, ids[2:], why, verb=verb)
    start(raw, ids[1:2], verb)
    raw.execute(RETURN, {"ids": json.dumps(ids[1:2])})
    refused(raw, ids[2:], why, verb=verb)


def test_a_failed_job_halts_its_line_or_lets_it_pass(raw: sqlite3.Connection) -> None:
    why = "an earlier job of this partition comes first"
    ids = add(raw, 4, "acme", max_retries=1)
    limit(raw, ordered="halt")
    start(raw, ids[:1])
    end(raw, ids[:1], "failed")
    refused(raw, ids[1:2], why)
    raw.execute(RETRY, {"ids": json.dumps(ids[:1])})
    refused(raw, ids[1:2], why)
    start(raw, ids[:1])
    end(raw, ids[:1], "failed")
    raw.execute("DELETE FROM tenure_line WHERE id = ?", ids[:1])  # passed over
    start(raw, ids[1:2])
    raw.execute("UPDATE tenure_queue_limit SET ordered = 'pass'")
    end(raw, ids[1:2], "failed")
    assert rows(raw, "line") == [("q", "acme", id) for id in ids[2:]]
    raw.execute(RETRY, {"ids": json.dumps(ids[1:2])})
    refused(raw, ids[2:3], why)
    end(raw, ids[1:2], "cancelled")
    start(raw, ids[2:3])


def test_a_failure_that_is_tried_again_keeps_its_place(raw: sqlite3.Connection) -> None:
    for ordered in ("halt", "pass"):
        queue = {"queue": ordered}
        ids = add(raw, 2, "acme", **queue)
        limit(raw, ordered=ordered, **queue)
        start(raw, ids[:1])
        end(raw, ids[:1], "failed")
        refused(raw, ids[1:], "an earlier job")
        raw.execute(RETRY, {"ids": json.dumps(ids[:1])})
        refused(raw, ids[1:], "an earlier job")


def test_a_deleted_job_leaves_its_line(raw: sqlite3.Connection) -> None:
    ids = add(raw, 2, "acme", max_retries=1)
    limit(raw, ordered="halt")
    start(raw, ids[:1])
    end(raw, ids[:1], "failed")
    raw.execute("DELETE FROM tenure_job WHERE id = ?", ids[:1])
    start(raw, ids[1:])


# --- slots, turns and lines follow


def follows(raw: sqlite3.Connection) -> None:
    """Check slots, turns and lines against the jobs and the limits."""
    of = "FROM tenure_job AS j JOIN tenure_queue_limit AS l ON l.queue = j.queue"
    part = "coalesce(j.partition, '')"
    for table, expected in (
        ("slot", f"SELECT j.queue, {part}, id {of} WHERE status = 'processing'"),
        (
            "turn",
            f"SELECT j.queue, priority, {part}, run_at, id {of}"
            " WHERE status = 'pending' AND partitioned",
        ),
        (
            "line",
            f"SELECT j.queue, {part}, id {of} WHERE ordered IS NOT NULL"
            " AND status IN ('waiting', 'pending', 'processing')",
        ),
    ):
        assert sorted(rows(raw, table)) == sorted(raw.execute(expected)), table


INSERTS = ("INSERT", "INSERT OR REPLACE", "REPLACE")


@pytest.mark.parametrize("verb", INSERTS)
@pytest.mark.parametrize("recursive", ["OFF", "ON"])
def test_limits_that_come_change_and_go_fill_and_clear(
    raw: sqlite3.Connection, verb: str, recursive: str
) -> None:
    raw.execute(f"PRAGMA recursive_triggers = {recursive}")
    ids = add(raw, 2, "acme") + add(raw, 2) + add(raw, 1, "acme", status="waiting", need=1)
    start(raw, [ids[0], ids[2]])
    add(raw, 2, "acme", queue="other")
    for settings in ({"max_running": 9}, {"partitioned": 1}, {"ordered": "halt"}, {}):
        limit(raw, verb, **settings)
        follows(raw)
        if verb == "INSERT":
            raw.execute("DELETE FROM tenure_queue_limit")
            follows(raw)
    if verb == "INSERT":
        limit(raw)
    for change in ("partitioned = 1", "ordered = 'pass'", "ordered = NULL", "partitioned = 0"):
        raw.execute(f"UPDATE tenure_queue_limit SET {change}")
        follows(raw)


@pytest.mark.parametrize("conflict", ["", "OR REPLACE"])
def test_jobs_that_come_change_and_go_are_followed(raw: sqlite3.Connection, conflict: str) -> None:
    limit(raw, ordered="pass")
    for partition in ("acme", None):
        ids = new_ids(2)
        for id in [*ids, ids[0]]:
            raw.execute(
                f"INSERT {conflict} INTO tenure_job (id, type, queue, partition, run_at,"
                " created_at, status, need) VALUES (?, 'mail', 'q', ?, 5, 5, ?, ?)",
                (id, partition, *(("waiting", 1) if id == ids[1] else ("pending", None))),
            )
            follows(raw)
        for change in (
            "status = 'pending', need = 0, run_at = 9, event = 'unblocked' WHERE need = 1",
            "priority = 7, run_at = 8, event = 'amended' WHERE status = 'pending'",
        ):
            raw.execute(f"UPDATE {conflict} tenure_job SET {change}")
            follows(raw)
        start(raw, ids[:1], f"UPDATE {conflict}")
        follows(raw)
        raw.execute(RETURN.replace("UPDATE", f"UPDATE {conflict}"), {"ids": json.dumps(ids[:1])})
        follows(raw)
        for id in ids:
            start(raw, [id], f"UPDATE {conflict}")
            end(raw, [id])
            follows(raw)
    assert (rows(raw, "turn"), rows(raw, "line"), rows(raw, "slot")) == ([], [], [])


def test_slots_lines_and_history_are_not_written_by_hand(raw: sqlite3.Connection) -> None:
    ids = add(raw, 3, "acme")
    limit(raw, ordered="halt")
    start(raw, ids[:1])
    (other,) = add(raw, 1, queue="plain")
    for statement in (
        "DELETE FROM tenure_slot",
        "UPDATE tenure_slot SET queue = 'r'",
        "UPDATE OR REPLACE tenure_slot SET job_id = 'r'",
        f"INSERT INTO tenure_slot VALUES ('q', 'acme', '{ids[1]}')",
        f"INSERT INTO tenure_slot VALUES ('q', '', '{ids[0]}')",
        f"INSERT OR REPLACE INTO tenure_slot VALUES ('r', 'acme', '{ids[0]}')",
        f"DELETE FROM tenure_line WHERE id = '{ids[0]}'",
        f"DELETE FROM tenure_line WHERE id = '{ids[1]}'",
        "UPDATE tenure_line SET partition = 'b'",
        f"INSERT INTO tenure_line VALUES ('q', 'acme', '{other}')",
        "UPDATE tenure_limit_change SET setting = NULL",
        "DELETE FROM tenure_limit_change",
        "REPLACE INTO tenure_limit_change (rowid, queue, place, at) VALUES (1, 'q', 0, 0)",
        "UPDATE tenure_queue_limit SET queue = 'r'",
        "UPDATE OR REPLACE tenure_queue_limit SET queue = 'r'",
    ):
        before = contents(raw)
        with pytest.raises(sqlite3.IntegrityError, match="tenure: "):
            raw.execute(statement)
        assert contents(raw) == before, statement
    raw.execute(
        "INSERT INTO tenure_partition_limit (queue, partition, weight) VALUES ('q', 'a', 2)"
    )
    with pytest.raises(sqlite3.IntegrityError, match="limits cannot go to another partition"):
        raw.execute("UPDATE tenure_partition_limit SET partition = 'b'")


def history(raw: sqlite3.Connection) -> list[Any]:
    found = raw.execute("SELECT partition, setting FROM tenure_limit_change ORDER BY rowid")
    return [(partition, setting and json.loads(setting)) for partition, setting in found]


def test_the_history_has_every_setting_and_nothing_else(raw: sqlite3.Connection) -> None:
    limit(raw, max_running=2)
    (id,) = add(raw, 1)
    start(raw, [id])
    raw.execute("UPDATE tenure_queue_limit SET max_running = 2, resume_at = 5, tat = 7")
    limit(raw, "REPLACE", max_running=2)
    limit(raw, "REPLACE", ordered="pass", **rate(4, 2.5, 2, "per_"))
    start(raw, add(raw, 1, "acme"))  # metered: no setting
    partition = "tenure_partition_limit (queue, partition, weight) VALUES ('q', 'acme', ?)"
    for weight in (None, 3, 3, None):
        raw.execute(f"REPLACE INTO {partition}", (weight,))
    raw.execute("UPDATE tenure_partition_limit SET paused_at = 5 WHERE partition = 'acme'")
    raw.execute("DELETE FROM tenure_partition_limit")
    raw.execute("DELETE FROM tenure_queue_limit")
    per = {"per_rate_starts": 4, "per_rate_seconds": 2.5, "per_burst": 2, "per_every": 833334}
    assert history(raw) == [
        (None, {"max_running": 2, "partitioned": False}),
        (None, {"partitioned": True, "ordered": "pass", **per}),
        ("acme", {"weight": 3}),
        ("acme", None),
        ("acme", {"paused_at": 5}),
        ("acme", None),
        (None, None),
    ]
    places = [place for (place,) in raw.execute("SELECT place FROM tenure_limit_change")]
    assert places == [0, 2, 4, 4, 4, 4, 4]
