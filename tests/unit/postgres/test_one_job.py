"""An exchange of one job is written apart, and does what an exchange of many does."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from tenure.rules.jobs import CheckedJob
from tenure.rules.reports import Lease
from tenure.store import transitions
from tenure.store.postgres.writer import Postgres
from tenure.values.ids import new_id
from tests.support.clock import Clock
from tests.support.store import LEASE_SECONDS, claim_request, report_completed
from tests.unit.postgres.connections import Connection, add, claim_alone, committed

pytestmark = pytest.mark.parametrize("limit", [1, 2], ids=["one", "many"])


@pytest.fixture
def clock(url: str) -> Iterator[Clock]:
    clock = Clock(url)
    yield clock
    clock.raw.close()


def claim(db: Postgres, limit: int, types: tuple[str, ...] | None = None) -> Lease:
    (lease,) = claim_alone(db, claim_request(limit, "w7", types=types)) or []
    return lease


def test_it_leases_the_job(db: Postgres, raw: Connection, limit: int) -> None:
    (job_id,) = add(db, payload='{"to":"ada"}', timeout=5.0, queue="q", max_retries=3)
    lease = claim(db, limit)
    assert (lease.id, lease.queue, lease.payload) == (job_id, "q", '{"to":"ada"}')
    assert (lease.attempts, lease.max_retries, lease.token, lease.timeout) == (1, 3, 1, 5.0)
    assert not lease.alone
    (row,) = raw.execute(
        "SELECT status, attempts, token, worker, actor, event, lease_id::text, started_at,"
        " lease_expires_at FROM tenure.job"
    )
    *rest, started_at, until = row
    assert rest == ["processing", 1, 1, "w7", "w7", "claimed", lease.lease_id]
    assert until == started_at + timedelta(seconds=LEASE_SECONDS) == lease.lease_expires_at
    ledger = "SELECT event, actor, lease_id::text, at FROM tenure.transition WHERE token = 1"
    assert raw.execute(ledger).fetchall() == [("claimed", "w7", lease.lease_id, started_at)]
    assert raw.execute("SELECT FROM tenure.ready").fetchall() == []


def test_it_completes_the_job(db: Postgres, raw: Connection, limit: int) -> None:
    add(db, limit)
    first = [claim(db, 1) for _ in range(limit)]
    reports = [report_completed(lease, '"done"', actor="proxy") for lease in first]
    assert db.exchange_alone(reports, None) == ({lease.lease_id for lease in first}, [], None)
    look = "SELECT DISTINCT status, result, actor, lease_id, finished_at IS NULL FROM tenure.job"
    assert raw.execute(look).fetchall() == [("completed", '"done"', "proxy", None, False)]
    assert db.exchange_alone(reports, None) == (set(), [], None), "each lease ends once"


def test_a_lease_that_has_ended_completes_nothing(
    db: Postgres, raw: Connection, clock: Clock, limit: int
) -> None:
    add(db, limit)
    late = [report_completed(claim(db, 1)) for _ in range(limit)]
    clock.advance(LEASE_SECONDS + 1)
    with committed(db):
        transitions.sweep(db, 10)
    clock.advance(60)
    assert claim(db, 1).attempts == 2
    assert db.exchange_alone(late, None) == (set(), [], None)
    assert raw.execute("SELECT FROM tenure.job WHERE status = 'completed'").fetchall() == []


def test_the_attempt_after_a_lost_lease_runs_alone(db: Postgres, clock: Clock, limit: int) -> None:
    add(db)
    assert not claim(db, limit).alone
    clock.advance(LEASE_SECONDS + 1)
    with committed(db):
        transitions.sweep(db, 10)
    clock.advance(60)
    assert claim(db, limit).alone


def test_it_passes_over_what_may_not_start(
    db: Postgres, raw: Connection, clock: Clock, limit: int
) -> None:
    raw.execute(
        "INSERT INTO tenure.type (name, queue, priority, max_retries, seen_at, paused_at)"
        " VALUES ('paused', 'default', 0, 3, now(), now())"
    )
    with committed(db):
        db.insert([CheckedJob(id=new_id(), type=type) for type in ("unknown", "paused")])
    add(db, start_by=clock.now + timedelta(seconds=1))
    clock.advance(1)
    (fit,) = add(db)
    add(db, run_at=clock.now + timedelta(seconds=1))
    lease = claim(db, limit, ("mail", "paused"))
    assert lease.id == fit
    assert claim_alone(db, claim_request(limit, types=("mail", "paused"))) == []
    assert claim_alone(db, claim_request(limit, types=("nothing",))) == []


def test_the_job_that_fell_due_first_comes_first(db: Postgres, clock: Clock, limit: int) -> None:
    (later,) = add(db, run_at=clock.now + timedelta(seconds=2))
    (sooner,) = add(db, run_at=clock.now + timedelta(seconds=1))
    clock.advance(3)
    leases = claim_alone(db, claim_request(limit)) or []
    assert [lease.id for lease in leases] == [sooner, later][:limit]


def test_it_passes_over_what_others_hold(db: Postgres, other: Postgres, limit: int) -> None:
    held, free = add(db, 2)
    other.begin()
    assert [lease.id for lease in other.claim(claim_request(1, "a"))] == [held]
    assert [lease.id for lease in claim_alone(db, claim_request(limit)) or []] == [free]
    other.rollback()
