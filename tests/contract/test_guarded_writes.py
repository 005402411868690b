"""Every write that leaves a state repeats its guard, and says of how many rows it held.

The rows are locked, so a guard that does not match is a broken promise of the database. What is
played here is just that: a row that is not what it was when it was loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from tenure.errors import WriteRefused
from tenure.events import Completed, Failed
from tenure.lifecycle import Job, Status, decide
from tenure.store import transitions
from tenure.store.database import Database
from tenure.store.postgres.writer import Postgres
from tenure.store.sqlite.connection import path_of
from tenure.store.sqlite.writer import Sqlite
from tenure.values.ids import new_id
from tests.support.store import LEASE_SECONDS, StoreHarness, report_completed


@pytest.fixture
def db(harness: StoreHarness) -> Iterator[Database]:
    """A writing connection by itself; its transaction is undone."""
    url = harness.url
    made: Database = Sqlite(path_of(url)) if url.startswith("sqlite:") else Postgres(url)
    yield made
    made.rollback()
    made.close()


STALE: dict[str, Any] = {
    "status": Status.PENDING,
    "token": 2,
    "lease_id": new_id(),
    "lease_expires_at": timedelta(milliseconds=1),
    "id": new_id(),
}
"""What a row may have been when it was loaded, and is not any more."""


@pytest.mark.parametrize("field", STALE)
def test_a_row_that_changed_under_its_lock_is_not_written(
    harness: StoreHarness, db: Database, field: str
) -> None:
    lease = harness.take()
    db.begin()
    (job,) = db.lock([lease.id]).values()
    stale = STALE[field]
    if field == "lease_expires_at":
        stale += job.lease_expires_at
    before = replace(job, **{field: stale})
    after = decide(job, Failed(lease_id=lease.lease_id, error="boom"), db.now())
    if field == "id":
        after = replace(after, id=stale)

    assert db.save([(before, after)]) == 0
    with pytest.raises(WriteRefused, match="dropped a change of a job"):
        transitions.save(db, [(before, (after,))])
    assert db.lock([lease.id]) == {lease.id: job}
    assert db.save([(job, replace(after, id=job.id))]) == 1


def test_a_result_is_saved_as_the_text_that_it_is(harness: StoreHarness, db: Database) -> None:
    lease = harness.take()
    db.begin()
    (job,) = db.lock([lease.id]).values()
    event = Completed(lease_id=lease.lease_id, result='{"b":1,"a":[2]}')
    assert db.save([(job, decide(job, event, db.now()))]) == 1
    assert db.lock([lease.id])[lease.id].result_json == event.result


def test_a_row_that_lost_its_lease_under_its_lock_is_not_written(
    harness: StoreHarness, db: Database
) -> None:
    """NULL on one side only is a difference, too."""
    job = harness.add()
    db.begin()
    (waiting,) = db.lock([job.id]).values()
    for held in ({"lease_id": new_id()}, {"lease_expires_at": db.now()}):
        assert db.save([(replace(waiting, **held), waiting)]) == 0


def test_of_many_rows_those_that_are_as_they_were_are_written(
    harness: StoreHarness, db: Database
) -> None:
    leases = [harness.take() for _ in range(3)]
    db.begin()
    jobs: list[Job] = [db.lock([lease.id])[lease.id] for lease in leases]
    pairs = [(job, decide(job, Completed(lease_id=job.lease_id or ""), db.now())) for job in jobs]
    pairs[1] = (replace(pairs[1][0], token=7), pairs[1][1])
    assert db.save(pairs) == 2
    assert [db.lock([job.id])[job.id].status for job in jobs] == [
        "completed",
        "processing",
        "completed",
    ]


def test_another_lease_neither_completes_nor_renews(harness: StoreHarness, db: Database) -> None:
    lease, stranger = harness.take(), new_id()
    db.begin()
    assert db.complete([report_completed(replace(lease, lease_id=stranger))]) == set()
    assert db.renew([(lease.id, stranger)], 3_600) == set()
    assert db.lock([lease.id])[lease.id].lease_expires_at == lease.lease_expires_at


def test_only_what_ended_a_lease_is_its_outcome(harness: StoreHarness, db: Database) -> None:
    held, over = harness.take(), harness.take()
    harness.report(report_completed(over))
    db.begin()
    asked = [(lease.id, lease.lease_id) for lease in (held, over)]
    assert db.settled_as([*asked, (held.id, over.lease_id)]) == {asked[1]: "completed"}


def test_a_lease_that_still_runs_is_not_loaded_for_the_sweep(
    harness: StoreHarness, db: Database
) -> None:
    over = harness.take()
    harness.clock.advance(LEASE_SECONDS)
    harness.take()
    db.begin()
    assert [job.id for job in db.lock_expired(10)] == [over.id]
