"""Two connections to one PostgreSQL database: what one does while the other is not done yet.

That the store keeps the same promises as SQLite is tested in tests/contract.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from tenure.rules.jobs import CheckedJob
from tenure.rules.reports import Answer, Lease
from tenure.store import transitions
from tenure.store.postgres import lanes as postgres_lanes
from tenure.store.postgres.reader import PostgresReader
from tenure.store.postgres.writer import Postgres
from tenure.values.ids import new_id
from tests.support.clock import Clock
from tests.support.store import LEASE_SECONDS, claim_request, report_completed, report_failed
from tests.unit.postgres.connections import (
    Connection,
    add,
    ask_in_store_session,
    claim_alone,
    committed,
    in_thread,
    take,
    wait_until_a_session_is_blocked,
)

# --- several connections ----------------------------------------------------------------------


def test_claimers_pass_over_what_others_hold(db: Postgres, other: Postgres) -> None:
    ids = add(db, 10)
    db.begin()
    other.begin()
    first = db.claim(claim_request(5, "a"))
    second = other.claim(claim_request(10, "b"))  # does not wait, and does not see the first five
    assert [lease.id for lease in first] == ids[:5]
    assert [lease.id for lease in second] == ids[5:]
    db.rollback()
    other.commit()
    with committed(db):
        assert [lease.id for lease in db.claim(claim_request(10, "c"))] == ids[:5]


def test_a_claim_finds_jobs_behind_those_of_many_other_claims(
    db: Postgres, other: Postgres
) -> None:
    """One that went over 2,000 jobs found none here, and its worker asked again in vain."""
    ids = add(db, 4_000)
    db.begin()
    for _ in range(3):
        db.claim(claim_request(1_000))
    found = claim_alone(other, claim_request(1_000)) or []
    assert [lease.id for lease in found] == ids[3_000:]
    db.rollback()


def test_the_dead_entries_of_a_drain_are_no_reason_to_search_from_later_places(
    db: Postgres, raw: Connection
) -> None:
    """A look from a second ago walked over more of them than one from the start."""
    raw.execute("ALTER TABLE tenure.ready SET (autovacuum_enabled = off)")
    add(db, 8_500)
    raw.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")  # keeps what is dead
    while len(claim_alone(db, claim_request(1_000)) or []) == 1_000:
        pass
    assert db._lanes.are_plain(claim_request(1_000))
    claim_alone(db, claim_request(1))
    assert not db._lanes.are_plain(claim_request(1))
    raw.execute("COMMIT")


def test_a_large_exchange_waits_for_two_others_and_not_long(
    url: str, db: Postgres, raw: Connection
) -> None:
    """Those may be of clients that stand still. A small one does not wait."""
    add(db, 1_010)
    for limit, places in (10, 0), (500, 1):
        db.begin()
        assert len(claim_alone(db, claim_request(limit)) or []) == limit
        advisory = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        assert len(ask_in_store_session(db, advisory)) == places
        db.rollback()
    key = """hashtextextended('"tenure" exchange', place)"""
    leases: list[Lease] = []
    raw.execute("BEGIN")
    raw.execute(f"SELECT pg_advisory_xact_lock({key}) FROM generate_series(0, 1) AS place".encode())
    thread = in_thread(lambda: leases.extend(claim_alone(db, claim_request(500)) or []))
    with psycopg.connect(url, autocommit=True) as watching:
        wait_until_a_session_is_blocked(watching)
        assert leases == []
        thread.join(30)
        assert len(leases) == 500
    raw.execute("COMMIT")


def test_a_heartbeat_never_waits_for_a_report(db: Postgres, other: Postgres) -> None:
    taken = take(db, 2)
    leases = [(lease.id, lease.lease_id) for lease in taken]
    held = {lease_id for _, lease_id in leases}
    db.begin()
    db.complete([report_completed(taken[0])])
    with committed(other):
        assert other.renew(leases, 3600) == held  # as long as the report may still be undone
    db.commit()
    with committed(other):
        assert other.renew(leases, 3600) == {leases[1][1]}


def test_a_report_that_may_wait_keeps_no_other_waiting(url: str, db: Postgres) -> None:
    """Its job is locked by its handler, which may hang, and the batch has other outcomes."""
    leases = take(db, 3)
    with psycopg.connect(url) as handler, committed(db):
        handler.execute("SELECT FROM tenure.job WHERE id = %s FOR UPDATE", (leases[0].id,))
        reports = [
            report_failed(leases[0], uncertain=True),
            report_failed(leases[1]),
            report_completed(leases[2]),
        ]
        db.changed("SET LOCAL lock_timeout = '1ms'")
        transitions.hold(db, reports, [])
        answers = [verdict.answer for verdict in transitions.settle(db, reports)]
    assert answers == [Answer.BUSY, Answer.RECORDED, Answer.RECORDED]


def test_two_batches_with_jobs_in_common_do_not_block_each_other(
    db: Postgres, other: Postgres, raw: Connection
) -> None:
    leases = take(db, 2)
    reports = [report_completed(lease) for lease in leases]
    done: list[set[str]] = []
    db.begin()
    db.complete(reports[:1])

    def report_in_the_other_order() -> None:
        with committed(other):
            done.append(other.complete(reports[::-1]))

    thread = in_thread(report_in_the_other_order)
    wait_until_a_session_is_blocked(raw)
    db.complete(reports[1:])  # would be a deadlock if the other had locked this one first
    db.commit()
    thread.join(30)
    assert done == [set()]


@pytest.mark.scenario(22)
def test_a_sweep_passes_over_a_lease_that_is_being_reported(
    db: Postgres, other: Postgres, raw: Connection
) -> None:
    (lease,) = take(db)
    raw.execute("UPDATE tenure.job SET lease_expires_at = now() - interval '1 second'")
    db.begin()
    db.complete([report_completed(lease)])
    with committed(other):
        assert other.lock_expired(10) == []
    db.rollback()
    with committed(other):
        assert [job.id for job in other.lock_expired(10)] == [lease.id]


@pytest.mark.scenario(35)
def test_the_ledger_loses_nothing_when_transactions_commit_out_of_order(
    db: Postgres, other: Postgres, reader: PostgresReader
) -> None:
    db.begin()
    slow = new_id()
    db.insert([CheckedJob(id=slow, type="mail")])
    fast = add(other)[0]
    start = reader.ledger_end()
    assert reader.ledger(start, 10) == []  # held back: `slow` would come before it
    db.commit()
    entries = reader.ledger(start, 10)
    assert [entry.job_id for entry in entries] == [slow, fast]
    assert reader.ledger(entries[0].position, 10) == entries[1:]
    assert reader.ledger_end() == entries[1].position


@pytest.mark.scenario(72)
@pytest.mark.parametrize("alone", [True, False], ids=["one round trip", "a transaction"])
def test_a_lease_counts_from_the_end_of_a_wait(
    url: str, db: Postgres, raw: Connection, alone: bool
) -> None:
    """Somebody makes an index while a claim is under way: its lease must not have run out then."""
    clock = Clock(url)
    add(db)
    raw.execute("BEGIN; LOCK TABLE tenure.job IN SHARE MODE")
    leases: list[Lease] = []

    def claim() -> None:
        if alone:
            leases.extend(claim_alone(db, claim_request(1)) or [])
        else:
            with committed(db):
                leases.extend(db.claim(claim_request(1)))

    thread = in_thread(claim)
    with psycopg.connect(url, autocommit=True) as watching:
        wait_until_a_session_is_blocked(watching)
    end = clock.advance(2 * LEASE_SECONDS)
    raw.execute("COMMIT")
    thread.join(30)
    (lease,) = leases
    assert lease.lease_expires_at == end + timedelta(seconds=LEASE_SECONDS)
    stored = raw.execute("SELECT lease_expires_at FROM tenure.job").fetchone()
    assert stored == (lease.lease_expires_at,)
    clock.close()


@pytest.mark.scenario(35)
def test_a_job_that_is_committed_late_is_not_skipped(
    db: Postgres, other: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.begin()
    slow = new_id()
    db.insert([CheckedJob(id=slow, type="mail")])
    (fast,) = add(other)
    assert [lease.id for lease in claim_alone(other, claim_request(5)) or []] == [fast]
    db.commit()
    assert [lease.id for lease in claim_alone(other, claim_request(5)) or []] == [slow]

    # The same where lanes are searched from where the last claim ended: only for a while.
    monkeypatch.setattr(postgres_lanes, "MAX_DEAD_ENTRIES", 0)
    seconds = 0.0
    other._lanes.clock = lambda: seconds
    db.begin()
    slow = new_id()
    db.insert([CheckedJob(id=slow, type="mail", run_at=datetime.now(UTC) - timedelta(hours=1))])
    (fast,) = add(other)
    with committed(other):
        assert [lease.id for lease in other.claim(claim_request(5))] == [fast]
    db.commit()
    seconds = postgres_lanes.FULL_SECONDS + 1
    with committed(other):
        assert [lease.id for lease in other.claim(claim_request(5))] == [slow]


@pytest.mark.scenario(27)
@pytest.mark.parametrize("alone", [True, False], ids=["one round trip", "a transaction"])
@pytest.mark.parametrize(
    "settings",
    [
        ("enable_material = off", "enable_hashagg = off"),
        ("enable_indexscan = off", "enable_indexonlyscan = off", "enable_sort = off"),
        ("plan_cache_mode = force_custom_plan", "enable_nestloop = off"),
    ],
)
def test_a_claim_takes_what_it_says_under_any_plan(
    url: str, raw: Connection, alone: bool, settings: tuple[str, ...]
) -> None:
    for setting in settings:
        raw.execute(f'ALTER DATABASE "{raw.info.dbname}" SET {setting}')
    raw.execute("ALTER TABLE tenure.job SET (autovacuum_enabled = off)")
    db = Postgres(url)
    add(db, 1)
    raw.execute("ANALYZE tenure.job")  # from here on statistics speak of one job
    add(db, 999)
    for _ in range(3):
        if alone:
            leases = claim_alone(db, claim_request(5)) or []
        else:
            with committed(db):
                leases = db.claim(claim_request(5))
        assert len({lease.id for lease in leases}) == len(leases) == 5
        stored = raw.execute("SELECT id::text FROM tenure.job WHERE status = 'processing'")
        assert {lease.id for lease in leases} <= {id for (id,) in stored.fetchall()}
    assert raw.execute("SELECT sum(attempts) FROM tenure.job").fetchone() == (15,)
    db.close()


# --- guards beyond SQLite's -------------------------------------------------------------------


@pytest.mark.parametrize("table", ["job", "transition", "job, tenure.transition"])
def test_tables_are_not_emptied(raw: Connection, db: Postgres, table: str) -> None:
    add(db)
    with pytest.raises(psycopg.Error, match="tenure:"):
        raw.execute(f"TRUNCATE tenure.{table}")


def test_nobody_writes_the_ledger_by_hand(raw: Connection, db: Postgres) -> None:
    add(db)
    with pytest.raises(psycopg.Error, match="tenure: only transitions of jobs write the ledger"):
        raw.execute(
            "INSERT INTO tenure.transition (job_id, at, source, target, event, attempt, token)"
            " SELECT id, now(), 'pending', 'cancelled', 'cancelled', 0, 0 FROM tenure.job"
        )


@pytest.mark.own_database
def test_a_replication_role_switches_no_guard_off(raw: Connection, db: Postgres) -> None:
    add(db)
    try:
        raw.execute("SET session_replication_role = replica")
    except psycopg.errors.InsufficientPrivilege as error:
        pytest.skip(f"the server of TENURE_TEST_DATABASE_URL: {error}")
    for statement in (
        "UPDATE tenure.job SET token = token + 1",
        "DELETE FROM tenure.job",
        "DELETE FROM tenure.transition",
        "UPDATE tenure.transition SET actor = 'me'",
        "INSERT INTO tenure.job (id, type, run_at, created_at, token)"
        " VALUES (gen_random_uuid(), 't', now(), now(), 1)",
    ):
        with pytest.raises(psycopg.Error, match="tenure:") as caught:
            raw.execute(statement)
        assert caught.value.sqlstate == "TN001"
    raw.execute("UPDATE tenure.job SET status = 'cancelled', finished_at = now()")
    events = raw.execute("SELECT event FROM tenure.transition ORDER BY seq").fetchall()
    assert events == [("enqueued",), ("cancelled",)]


@pytest.mark.parametrize("time", ["infinity", "-infinity", "10000-01-01 00:00+00", "0001-12-31 BC"])
def test_no_job_has_a_time_that_no_client_can_read(
    raw: Connection, db: Postgres, time: str
) -> None:
    add(db)
    with pytest.raises(psycopg.DatabaseError, match="times_in_reach"):
        raw.execute("UPDATE tenure.job SET run_at = %s", (time,))
