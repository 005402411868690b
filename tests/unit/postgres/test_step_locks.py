"""Steps beside what takes their job away: two connections, one of which is not done yet."""

from __future__ import annotations

from functools import partial

import pytest
from msgspec.structs import replace

from tenure.app.within import LeaseFence
from tenure.errors import InvalidInput, LeaseLost
from tenure.rules.reports import Lease
from tenure.rules.steps import JOB_LOCKED, KeepState, Record
from tenure.store import transitions
from tenure.store.postgres.writer import Postgres
from tenure.store.tables import steps
from tests.support.effects import own_connection
from tests.support.store import claim_request, report_failed
from tests.unit.postgres.connections import (
    Connection,
    committed,
    in_thread,
    take,
    wait_until_a_session_is_blocked,
)

CHARGE = Record("charge", 1, "1")


def take_over(db: Postgres, lease: Lease) -> Lease:
    """End the attempt, and begin the next one."""
    transitions.settle(db, [report_failed(lease, delay=0.0)])
    (later,) = db.claim(claim_request(1))
    return later


def seen(db: Postgres, job_id: str) -> list[str]:
    return [step.name for step in steps.of(db, job_id).steps]


def test_a_take_over_waits_for_a_step(db: Postgres, other: Postgres, raw: Connection) -> None:
    (lease,) = take(db)
    at_the_start: list[str] = []

    def next_attempt() -> None:
        with committed(other):
            take_over(other, lease)
            at_the_start.extend(seen(other, lease.id))

    db.begin()
    steps.answer(db, lease.id, lease.lease_id, CHARGE)
    taking_over = in_thread(next_attempt)
    wait_until_a_session_is_blocked(raw)
    db.commit()
    taking_over.join()
    assert at_the_start == ["charge"]


def test_without_the_lock_a_stale_step_counts(
    db: Postgres, other: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the lock is for: the next attempt does not see the step, and yet it is recorded."""
    monkeypatch.setattr(steps, "RECORD", steps.RECORD.replace("{share}", ""))
    (lease,) = take(db)
    db.begin()
    steps.answer(db, lease.id, lease.lease_id, CHARGE)
    with committed(other):
        later = take_over(other, lease)
        assert seen(other, lease.id) == []
    db.commit()
    with committed(other):
        assert seen(other, lease.id) == ["charge"]
        assert later.token == 2


@pytest.mark.parametrize("call", [CHARGE, KeepState(1, "1")])
def test_a_step_does_not_wait_for_a_lock(
    db: Postgres, other: Postgres, call: Record | KeepState
) -> None:
    """It may be the lock of its own handler, and the steps of all others wait behind it."""
    (lease,) = take(db)
    other.begin()
    take_over(other, lease)
    with committed(db), pytest.raises(InvalidInput) as refused:
        steps.answer(db, lease.id, lease.lease_id, call)
    assert refused.value.code == JOB_LOCKED
    other.rollback()
    with committed(db):
        steps.answer(db, lease.id, lease.lease_id, call)
    with committed(other):
        take_over(other, lease)
    with committed(db), pytest.raises(LeaseLost):
        steps.answer(db, lease.id, lease.lease_id, replace(call, number=2))


def test_steps_of_one_job_do_not_lock_each_other_out(db: Postgres, other: Postgres) -> None:
    (lease,) = take(db)
    db.begin()
    other.begin()
    steps.answer(db, lease.id, lease.lease_id, CHARGE)
    steps.answer(other, lease.id, lease.lease_id, Record("mail", 2, None))
    other.commit()
    db.commit()
    with committed(db):
        assert seen(db, lease.id) == ["charge", "mail"]


def test_a_step_in_a_transaction_of_the_handler_waits_and_looks_again(
    url: str, db: Postgres, other: Postgres, raw: Connection
) -> None:
    (lease,) = take(db)
    other.begin()
    take_over(other, lease)
    lost: list[LeaseLost] = []
    with own_connection(url) as connection:
        record = partial(LeaseFence(lease, "worker-1", url).record, connection, CHARGE)

        def step() -> None:
            connection.execute("SET application_name = 'tenure'")
            with pytest.raises(LeaseLost) as refused:
                record()
            lost.append(refused.value)

        stepping = in_thread(step)
        wait_until_a_session_is_blocked(raw)
        other.commit()
        stepping.join()
    assert len(lost) == 1
    with committed(db):
        assert seen(db, lease.id) == []
