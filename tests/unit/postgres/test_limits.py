"""PostgreSQL holds limits against whoever starts jobs, in SQL of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel, errors

from tenure.store.postgres.writer import Postgres
from tests.support.store import claim_request
from tests.support.waiting import wait_until
from tests.unit.postgres.connections import (
    Connection,
    ask_in_store_session,
    claim_alone,
    committed,
    in_thread,
)
from tests.unit.postgres.limits import START, add, limit, rate

COMPLETE = """
UPDATE tenure.job SET status = 'completed', finished_at = tenure.clock(), lease_id = NULL,
    lease_expires_at = NULL, event = 'completed' WHERE id = ANY (%s::uuid[])
"""
FAIL = """
UPDATE tenure.job SET status = 'failed', finished_at = tenure.clock(), lease_id = NULL,
    lease_expires_at = NULL, event = 'failed', last_error = 'boom' WHERE id = ANY (%s::uuid[])
"""
RETRY = """
UPDATE tenure.job SET status = 'pending', finished_at = NULL, run_at = tenure.clock(),
    max_retries = max_retries + 1, event = 'retried', worker = NULL WHERE id = ANY (%s::uuid[])
"""
CANCEL = """
UPDATE tenure.job SET status = 'cancelled', finished_at = tenure.clock(), lease_id = NULL,
    lease_expires_at = NULL, event = 'cancelled' WHERE id = ANY (%s::uuid[])
"""
EVERY_LEVEL = [
    IsolationLevel.READ_COMMITTED,
    IsolationLevel.REPEATABLE_READ,
    IsolationLevel.SERIALIZABLE,
]


def start(raw: Connection, ids: Sequence[str], started: str = "tenure.clock()") -> None:
    raw.execute(START.format(started=started).encode(), (list(ids),))


def refused(raw: Connection, ids: Sequence[str], started: str = "tenure.clock()") -> None:
    """Check that these jobs may not start now."""
    with pytest.raises(psycopg.Error) as caught:
        start(raw, ids, started)
    assert caught.value.sqlstate == "TN006", caught.value


def value(raw: Connection, question: str, *values: Any) -> Any:
    found = raw.execute(question.encode(), values or None).fetchone()
    assert found is not None
    return found[0]


def slots(raw: Connection) -> int:
    return int(value(raw, "SELECT count(*) FROM tenure.slot"))


# --- how many run at once


def test_no_more_jobs_run_than_the_limit(raw: Connection) -> None:
    ids = add(raw, 4)
    limit(raw, max_running=2)
    start(raw, ids[:1])
    refused(raw, ids[1:])
    start(raw, ids[1:2])
    refused(raw, ids[2:3])
    raw.execute(COMPLETE, (ids[:1],))
    start(raw, ids[2:3])
    refused(raw, ids[3:])
    assert slots(raw) == 2


def test_no_more_jobs_of_a_partition_run_than_its_limit(raw: Connection) -> None:
    limit(raw, partitioned=True, per_max_running=1)
    acme, other, none = add(raw, 2, partition="acme"), add(raw, 1, partition="b"), add(raw, 2)
    refused(raw, acme)
    start(raw, [acme[0], other[0], none[0]])
    refused(raw, acme[1:])
    refused(raw, none[1:])
    raw.execute(
        "INSERT INTO tenure.partition_limit (queue, partition, max_running) VALUES ('q', 'acme', 2)"
    )
    start(raw, acme[1:])
    refused(raw, none[1:])


@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_no_level_of_isolation_gets_past_a_limit(raw: Connection, level: IsolationLevel) -> None:
    """With one snapshot for all a transaction would not see what others start: it starts none."""
    ids = add(raw, 2)
    limit(raw, max_running=1)
    raw.execute(
        "SELECT set_config('default_transaction_isolation', %s, false)",
        (level.name.lower().replace("_", " "),),
    )
    if level is IsolationLevel.READ_COMMITTED:
        start(raw, ids[:1])
    refused(raw, ids[1:])
    assert slots(raw) == (level is IsolationLevel.READ_COMMITTED)


@pytest.mark.parametrize(
    "settings", [{"max_running": 1}, {"partitioned": True, "per_max_running": 1}], ids=str
)
def test_who_waited_for_a_lock_counts_what_was_committed_meanwhile(
    url: str, raw: Connection, settings: dict[str, Any]
) -> None:
    """As pgqueuer#761: to lock and count in one statement counts what was there before the lock."""
    ids = add(raw, 2)
    limit(raw, **settings)
    answers = list[str]()
    with psycopg.connect(url) as first, psycopg.connect(url) as second:

        def start_another() -> None:
            try:
                start(second, ids[1:])
                answers.append("started")
            except psycopg.Error as error:
                answers.append(error.sqlstate or "")

        start(first, ids[:1])
        thread = in_thread(start_another)
        wait_until(lambda: answers or value(raw, BLOCKED) == 1, "the second one to wait or to end")
        first.commit()
        thread.join(30)
        second.rollback()
    assert answers == ["TN006"]
    assert slots(raw) == 1


BLOCKED = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


@pytest.mark.parametrize("end", [COMPLETE, FAIL, CANCEL])
def test_a_slot_goes_with_the_end_of_its_job(raw: Connection, end: str) -> None:
    limit(raw, max_running=1)
    raw.execute("LISTEN tenure")
    first, second = add(raw, 2)
    start(raw, [first])
    raw.execute(
        "UPDATE tenure.job SET lease_expires_at = lease_expires_at + interval '1 s' WHERE id = %s",
        (first,),
    )
    assert slots(raw) == 1
    raw.execute(end.encode(), ([first],))
    assert slots(raw) == 0
    assert "" in [notice.payload for notice in raw.notifies(timeout=0.2)]
    start(raw, [second])


def test_a_start_that_is_undone_leaves_nothing(raw: Connection) -> None:
    limit(raw, partitioned=True, **rate(1, 60, 1), **rate(1, 60, 1, "per_"))
    ids = add(raw, 2)
    raw.execute("BEGIN")
    start(raw, ids[:1])
    raw.execute("ROLLBACK")
    start(raw, ids[1:])
    refused(raw, ids[:1])
    assert slots(raw) == 1


# --- rates


def test_a_rate_counts_starts_by_the_time_on_record(raw: Connection) -> None:
    limit(raw, **rate(6, 60, 2))  # one each 12 s, two at once
    ids = add(raw, 8)
    refused(raw, ids[:3])
    start(raw, ids[:2], "tenure.clock() - interval '1 hour'")
    refused(raw, ids[2:3], "tenure.clock() - interval '1 hour'")
    refused(raw, ids[2:4], "tenure.clock() - interval '3588 s'")
    start(raw, ids[2:3], "tenure.clock() - interval '3588 s'")
    start(raw, ids[3:5])
    refused(raw, ids[5:6])
    refused(raw, ids[5:6], "tenure.clock() + interval '12 s'")  # the clock decides, not the row


def test_a_rate_of_partitions_meters_each_of_them(raw: Connection) -> None:
    limit(raw, partitioned=True, **rate(1, 60, 1, "per_"))
    first, second = add(raw, 2, partition="a"), add(raw, 1, partition="b")
    start(raw, [first[0], *second])
    refused(raw, first[1:])
    assert value(raw, "SELECT count(*) FROM tenure.partition_limit") == 2
    assert value(raw, "SELECT count(*) FROM tenure.limit_change WHERE partition IS NOT NULL") == 0


def test_each_start_of_a_statement_is_metered_at_its_time(raw: Connection) -> None:
    limit(raw, **rate(4, 60, 2))  # one each 20 s
    ids = add(raw, 3)
    start(raw, ids[:1], "tenure.clock() - interval '35 s'")
    refused(raw, ids[1:], f"tenure.clock() - (id = '{ids[1]}')::int * interval '40 s'")
    start(raw, ids[1:])


def test_a_new_rate_makes_nobody_wait_by_the_old_one(raw: Connection) -> None:
    limit(raw, partitioned=True, **rate(1, 86_400, 1), **rate(1, 86_400, 1, "per_"))
    ids = add(raw, 2)
    start(raw, ids[:1])
    raw.execute(
        "UPDATE tenure.queue_limit SET rate_seconds = 0.01, every = 10000,"
        " per_rate_seconds = 0.01, per_every = 10000"
    )
    wait_until(lambda: value(raw, "SELECT tenure.room('q', tenure.clock())") == 1, "a start")
    start(raw, ids[1:])


# --- pauses


def test_a_pause_holds_against_sql(raw: Connection) -> None:
    limit(raw, partitioned=True)
    ids = add(raw, 2, partition="a")
    for pause, resume in (
        ("max_running = 0", "max_running = NULL"),
        ("paused_at = now()", "paused_at = NULL"),
        ("resume_at = now() + interval '1 h'", "resume_at = NULL"),
    ):
        raw.execute(
            "INSERT INTO tenure.partition_limit (queue, partition) VALUES ('q', 'a')"
            " ON CONFLICT DO NOTHING"
        )
        raw.execute(f"UPDATE tenure.partition_limit SET {pause}".encode())
        refused(raw, ids[:1])
        raw.execute("LISTEN tenure")
        raw.execute(f"UPDATE tenure.partition_limit SET {resume}".encode())
        assert list(raw.notifies(timeout=0.2, stop_after=1))
    raw.execute("UPDATE tenure.queue_limit SET resume_at = now() + interval '1 h'")
    refused(raw, ids[:1])


# --- lines


@pytest.fixture
def line(raw: Connection) -> list[str]:
    """Three jobs of one partition of an ordered queue."""
    limit(raw, partitioned=True, ordered="halt")
    return add(raw, 3, partition="a")


def in_line(raw: Connection) -> list[str]:
    return [id for (id,) in raw.execute("SELECT id::text FROM tenure.line ORDER BY id").fetchall()]


def test_an_ordered_partition_runs_one_job_at_a_time_in_order(
    raw: Connection, line: list[str]
) -> None:
    refused(raw, line[1:2])
    refused(raw, line[:2])
    start(raw, line[:1])
    refused(raw, line[1:2])
    raw.execute(COMPLETE, (line[:1],))
    refused(raw, line[2:])
    raw.execute(CANCEL, (line[1:2],))
    start(raw, line[2:])


def test_a_failed_job_halts_its_line_until_somebody_decides(
    raw: Connection, line: list[str]
) -> None:
    raw.execute("UPDATE tenure.job SET max_retries = 1")
    start(raw, line[:1])
    raw.execute(FAIL, (line[:1],))
    refused(raw, line[1:2])
    raw.execute(RETRY, (line[:1],))
    start(raw, line[:1])
    with pytest.raises(errors.DatabaseError, match="only a failed job"):
        raw.execute("DELETE FROM tenure.line WHERE id = %s", (line[0],))
    raw.execute(FAIL, (line[:1],))
    raw.execute("DELETE FROM tenure.line WHERE id = %s", (line[0],))
    start(raw, line[1:2])
    raw.execute(RETRY, (line[:1],))  # it stands in front again, and waits for the one that runs
    refused(raw, line[:1])
    raw.execute(COMPLETE, (line[1:2],))
    start(raw, line[:1])


def test_a_failed_job_lets_its_line_pass_if_so_set(raw: Connection, line: list[str]) -> None:
    raw.execute("UPDATE tenure.job SET max_retries = 1 WHERE id = %s", (line[0],))
    raw.execute("UPDATE tenure.queue_limit SET ordered = 'pass'")
    start(raw, line[:1])
    raw.execute(FAIL, (line[:1],))
    assert in_line(raw) == line[1:]
    start(raw, line[1:2])
    raw.execute(FAIL, (line[1:2],))
    assert in_line(raw) == line[1:]  # it will be retried
    raw.execute("DELETE FROM tenure.job WHERE id = %s", (line[0],))


def test_a_failed_job_leaves_its_line_when_it_is_deleted(raw: Connection, line: list[str]) -> None:
    raw.execute("UPDATE tenure.job SET max_retries = 1")
    start(raw, line[:1])
    raw.execute(FAIL, (line[:1],))
    raw.execute("DELETE FROM tenure.job WHERE id = %s", (line[0],))
    assert in_line(raw) == line[1:]
    start(raw, line[1:2])


# --- settings


def turns(raw: Connection) -> list[str | None]:
    return [p for (p,) in raw.execute("SELECT partition FROM tenure.ready ORDER BY id").fetchall()]


def test_limits_hold_for_jobs_from_before_them(raw: Connection) -> None:
    ids = [*add(raw, 2, partition="a"), *add(raw, 1)]
    elsewhere = add(raw, 1, "elsewhere", partition="a")
    start(raw, ids[:1])
    assert turns(raw) == [None] * 3
    limit(raw, max_running=1, partitioned=True, ordered="pass")
    assert slots(raw) == 1
    assert in_line(raw) == ids
    assert turns(raw) == ["a", "", None]
    refused(raw, ids[1:2])
    start(raw, elsewhere)
    raw.execute("UPDATE tenure.queue_limit SET partitioned = false, ordered = NULL")
    assert (in_line(raw), turns(raw), slots(raw)) == ([], [None, None], 1)
    raw.execute("DELETE FROM tenure.queue_limit")
    assert slots(raw) == 0
    start(raw, ids[1:])
    assert slots(raw) == 0


def test_a_token_has_a_partition_again_after_every_change(raw: Connection) -> None:
    limit(raw, partitioned=True)
    ids = add(raw, 1, partition="a")
    raw.execute("UPDATE tenure.job SET priority = 3, event = 'amended'")
    assert turns(raw) == ["a"]
    start(raw, ids)
    raw.execute(FAIL, (ids,))
    raw.execute(RETRY, (ids,))
    assert turns(raw) == ["a"]


def test_the_history_says_which_limits_held_from_where(raw: Connection) -> None:
    limit(raw, max_running=1)
    raw.execute("UPDATE tenure.queue_limit SET max_running = 1, tat = 5, resume_at = now()")
    ids = add(raw, 1)
    start(raw, ids)
    raw.execute("UPDATE tenure.queue_limit SET max_running = 2")
    raw.execute("INSERT INTO tenure.partition_limit (queue, partition, weight) VALUES ('q', '', 4)")
    raw.execute("UPDATE tenure.partition_limit SET weight = NULL")
    raw.execute("DELETE FROM tenure.queue_limit")
    found = raw.execute(
        "SELECT partition, setting::json, place > (SELECT max(seq) FROM tenure.transition)"
        " FROM tenure.limit_change ORDER BY place"
    ).fetchall()
    assert found == [
        (None, {"max_running": 1, "partitioned": False}, False),
        (None, {"max_running": 2, "partitioned": False}, True),
        ("", {"weight": 4}, True),
        ("", None, True),
        (None, None, True),
    ]


def test_a_limit_waits_for_the_claims_before_it(url: str, raw: Connection) -> None:
    """Else one of them could start a job that nobody has counted."""
    limit(raw, partitioned=True)
    ids = add(raw, 2)
    with psycopg.connect(url) as claim:
        start(claim, ids[:1])
        thread = in_thread(lambda: change(url, "UPDATE tenure.queue_limit SET per_max_running = 1"))
        wait_until(lambda: value(raw, BLOCKED) == 1, "the change to wait for the claim")
        claim.commit()
        thread.join()
    refused(raw, ids[1:])


def test_the_first_limits_wait_for_all_that_change_jobs(url: str, raw: Connection) -> None:
    """Else a job that started meanwhile would have no slot."""
    ids = add(raw, 2)
    with psycopg.connect(url) as claim:
        start(claim, ids[:1])
        first = "INSERT INTO tenure.queue_limit (queue, max_running) VALUES ('q', 1)"
        thread = in_thread(lambda: change(url, first))
        wait_until(lambda: value(raw, BLOCKED) == 1, "the limits to wait for the claim")
        claim.commit()
        thread.join()
    refused(raw, ids[1:])


def change(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


@pytest.mark.parametrize("level", EVERY_LEVEL[1:])
def test_a_snapshot_from_before_the_limits_changes_no_job(
    url: str, raw: Connection, level: IsolationLevel
) -> None:
    """It would add a token without its turn, or start a job without a slot."""
    ids = add(raw, 2)
    with psycopg.connect(url) as old:
        old.set_isolation_level(level)
        for act in (lambda: add(old, 1), lambda: start(old, ids[:1])):
            value(old, "SELECT 1 FROM tenure.queue_limit UNION ALL SELECT 1 LIMIT 1")
            limit(raw, partitioned=True, max_running=1)
            with pytest.raises(errors.SerializationFailure):
                act()
            old.rollback()
            raw.execute("DELETE FROM tenure.queue_limit")
            act()
            old.rollback()


def test_an_undone_change_of_limits_stops_no_snapshot(url: str, raw: Connection) -> None:
    raw.execute("BEGIN")
    limit(raw, partitioned=True)
    raw.execute("ROLLBACK")
    with psycopg.connect(url) as old:
        old.set_isolation_level(IsolationLevel.REPEATABLE_READ)
        add(old, 1)
        old.commit()


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO tenure.slot VALUES ('q', '', gen_random_uuid())",
        "DELETE FROM tenure.slot",
        "INSERT INTO tenure.line VALUES ('q', '', gen_random_uuid())",
        "UPDATE tenure.line SET partition = 'x'",
        "INSERT INTO tenure.limit_change VALUES ('q', NULL, 1, now(), NULL)",
        "DELETE FROM tenure.limit_change",
        "UPDATE tenure.limit_edition SET edition = 0",
        "TRUNCATE tenure.queue_limit",
        "TRUNCATE tenure.partition_limit",
        "UPDATE tenure.queue_limit SET queue = 'z'",
    ],
)
def test_what_follows_from_jobs_and_settings_is_not_written_by_hand(
    raw: Connection, statement: str
) -> None:
    limit(raw, partitioned=True, ordered="halt")
    start(raw, add(raw, 1))
    with pytest.raises(psycopg.Error) as caught:
        raw.execute(statement.encode())
    assert caught.value.sqlstate == "TN001", caught.value


@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
@pytest.mark.parametrize("table", ["queue_limit", "partition_limit"])
def test_limits_are_changed_in_read_committed(url: str, level: IsolationLevel, table: str) -> None:
    """An older snapshot lacks the jobs that have come since, and they would get no slots."""
    with psycopg.connect(url) as strict:
        strict.set_isolation_level(level)
        partition = {"queue_limit": "", "partition_limit": ", partition"}[table]
        statement = f"INSERT INTO tenure.{table} (max_running, queue{partition}) VALUES (1, 'q'"
        with pytest.raises(psycopg.Error, match="limits are changed in READ COMMITTED"):
            strict.execute(f"{statement}{', chr(97)' if partition else ''})".encode())


# --- claims


def claim(db: Postgres, count: int, **fields: Any) -> list[str]:
    with committed(db):
        return [lease.id for lease in db.claim(claim_request(count, **fields))]


def test_a_claim_takes_no_more_than_the_room(raw: Connection, db: Postgres) -> None:
    ids = add(raw, 4)
    limit(raw, max_running=3)
    assert claim_alone(db, claim_request(10)) is None  # it takes a closer look
    assert claim(db, 10) == ids[:3]
    assert claim(db, 10) == []
    raw.execute(COMPLETE, (ids[:2],))
    assert claim(db, 10) == ids[3:]


def test_a_claim_does_not_wait_for_another_one(
    url: str, raw: Connection, db: Postgres, other: Postgres
) -> None:
    add(raw, 4)
    limit(raw, max_running=3)
    with committed(other):
        assert len(other.claim(claim_request(1))) == 1
        assert claim(db, 10) == []
    assert len(claim(db, 10)) == 2


def test_partitions_take_turns(raw: Connection, db: Postgres) -> None:
    limit(raw, partitioned=True, per_max_running=2)
    many = add(raw, 50, partition="a")
    rest = [add(raw, 1, partition=name)[0] for name in ("b", "c")] + add(raw, 1)
    assert set(claim(db, 4)) == {many[0], *rest}
    assert claim(db, 4) == many[1:2]
    assert claim(db, 4) == []
    raw.execute(COMPLETE, (many[:2],))
    assert claim(db, 4) == many[2:4]


def test_a_claim_of_an_ordered_queue_takes_the_first_of_each_line(
    raw: Connection, db: Postgres
) -> None:
    limit(raw, partitioned=True, ordered="halt")
    first, second = add(raw, 3, partition="a"), add(raw, 3, partition="b")
    raw.execute("UPDATE tenure.job SET priority = 5, event = 'amended' WHERE id = %s", (first[0],))
    later = "tenure.clock() + interval '1 hour'"
    raw.execute(
        f"UPDATE tenure.job SET run_at = {later}, event = 'amended' WHERE id = %s".encode(),
        (second[0],),
    )
    assert claim(db, 10) == first[:1]
    raw.execute(COMPLETE, (first[:1],))
    assert claim(db, 10) == first[1:2]
    raw.execute("UPDATE tenure.job SET run_at = tenure.clock() WHERE id = %s", (second[0],))
    assert claim(db, 10) == second[:1]


def test_a_claim_goes_over_jobs_of_other_types_in_steps(raw: Connection, db: Postgres) -> None:
    limit(raw, partitioned=True)
    add(raw, 450, partition="a")
    wanted = add(raw, 1, partition="a")
    raw.execute("ALTER TABLE tenure.job DISABLE TRIGGER job_sets")
    raw.execute("UPDATE tenure.job SET type = 'rare' WHERE id = %s", (wanted[0],))
    raw.execute("ALTER TABLE tenure.ready DISABLE TRIGGER ready_follows")
    raw.execute("UPDATE tenure.ready SET type = 'rare' WHERE id = %s", (wanted[0],))
    looks = [claim(db, 5, types=("rare",)) for _ in range(4)]
    assert looks.index(wanted) == 1  # a claim in vain looks twice
    assert looks[2:] == [[], []]


def test_jobs_of_a_full_partition_cost_one_look(raw: Connection, db: Postgres) -> None:
    """As in the Oban forum, 53388: they must not be gone through to find others behind them."""
    limit(raw, partitioned=True, per_max_running=1)
    full = add(raw, 3_000, partition="a")
    start(raw, full[:1])
    rest = [add(raw, 2, partition=f"b{n}")[0] for n in range(8)]
    reads = "SELECT pg_stat_get_xact_tuples_returned('tenure.ready_turn'::regclass)"
    with committed(db):
        assert {lease.id for lease in db.claim(claim_request(8))} == set(rest)
        assert ask_in_store_session(db, reads)[0][0] < 50


def test_a_claim_looks_at_partitions_in_steps(
    raw: Connection, db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(raw, partitioned=True, per_max_running=1)
    blocked = [add(raw, 2, partition=f"a{n:03}")[0] for n in range(300)]
    start(raw, blocked)
    free = add(raw, 1, partition="b")
    looks = [claim(db, 5) for _ in range(3)]
    assert sorted(looks) == [[], [], free] or looks[0] == free
