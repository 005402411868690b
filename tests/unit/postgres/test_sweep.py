"""A sweep on PostgreSQL reads what has arrived lately, and not all that ever did."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tenure.store.postgres.statements import MAX_ARRIVALS
from tenure.store.postgres.writer import MAX_LOOKS, Postgres
from tests.unit.postgres.connections import committed, take

Connection = psycopg.Connection[Any]
AT_ONCE = 1_000
"""Jobs whose arrival one row has."""


def arrive(raw: Connection, status: str, rows: int) -> None:
    """Note claims, or jobs that wait, which have ended since."""
    raw.execute("ALTER TABLE tenure.arrival DISABLE TRIGGER arrival_follows")
    raw.execute(
        "INSERT INTO tenure.arrival (status, at, ids) SELECT %s, now() - interval '1 minute',"
        " ARRAY(SELECT gen_random_uuid() FROM generate_series(1, %s + 0 * n))"
        " FROM generate_series(1, %s) AS n",
        (status, AT_ONCE, rows),
    )


def left(raw: Connection) -> int:
    ((rows,),) = raw.execute("SELECT count(*) FROM tenure.arrival").fetchall()
    return int(rows)


@pytest.mark.parametrize(("status", "sweep"), [("processing", "expired"), ("waiting", "late")])
def test_a_sweep_goes_over_all_that_is_old_enough(
    db: Postgres, raw: Connection, status: str, sweep: str
) -> None:
    """One worker claimed more in a second than a sweep went over, which fell behind for good."""
    arrive(raw, status, 3 * MAX_ARRIVALS // AT_ONCE)
    with committed(db):
        assert getattr(db, f"lock_{sweep}")(500) == []
    assert left(raw) == 0


def test_a_sweep_takes_a_bounded_time(db: Postgres, raw: Connection) -> None:
    arrive(raw, "processing", (MAX_LOOKS + 1) * MAX_ARRIVALS // AT_ONCE)
    with committed(db):
        assert db.lock_expired(500) == []
    assert left(raw) == MAX_ARRIVALS // AT_ONCE


def test_while_many_leases_have_run_out_each_sweep_looks_once(
    db: Postgres, raw: Connection
) -> None:
    """They enter again at each look, so that a look finds no end."""
    take(db, 2)
    raw.execute("UPDATE tenure.job SET lease_expires_at = now() - interval '1 hour'")
    for looks in (3, 1):
        raw.execute("DELETE FROM tenure.arrival")
        arrive(raw, "processing", 3 * MAX_ARRIVALS // AT_ONCE)
        before = left(raw)
        with committed(db):
            assert len(db.lock_expired(1)) == 1
        assert before - left(raw) >= looks * MAX_ARRIVALS // AT_ONCE - 1
        assert (left(raw) > MAX_ARRIVALS // AT_ONCE) is (looks == 1)
