"""Tables of a publication, for logical replication or change data capture, are written as others.

PostgreSQL refuses updates and deletes of a published table whose rows nothing identifies.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from tenure import Tenure
from tests.support.store import LEASE_SECONDS, StoreHarness, report_completed

on_postgres = pytest.mark.parametrize(
    "database_url", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
)
UNIDENTIFIED = """
SELECT relname FROM pg_class WHERE relnamespace = 'tenure'::regnamespace AND relkind IN ('r', 'p')
AND relreplident <> 'f' AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = oid AND indisprimary)
AND relname <> 'stopped_clock' -- of the test
"""


@on_postgres
def test_something_identifies_the_rows_of_every_table(harness: StoreHarness) -> None:
    assert harness.sql.run(UNIDENTIFIED) == []


@on_postgres
@pytest.mark.own_database
def test_leases_end_and_jobs_are_deleted_under_a_publication(harness: StoreHarness) -> None:
    """The sweep failed each second: the jobs of dead workers were `processing` for ever."""
    harness.sql.run("ALTER TABLE tenure.stopped_clock REPLICA IDENTITY FULL")
    harness.sql.run("CREATE PUBLICATION everything FOR ALL TABLES")
    with Tenure(harness.url) as app:
        for most in (5, 6):
            app.queues.limit("default", max_running=most)
        app.retention.set(type="long", completed="30d")
    lease, *done = harness.take(), harness.take(type="long"), harness.take(type="short")
    harness.report(*map(report_completed, done))
    harness.clock.advance(LEASE_SECONDS + 1)
    assert [steps[0].id for steps in harness.store.sweep().result()] == [lease.id]
    for days in (2, 40):
        harness.clock.advance(days * 86_400)
        while harness.prune({"completed": harness.clock.now - timedelta(days=1)}):
            pass
    assert harness.sql.run("SELECT id::text FROM {job}") == [(lease.id,)]
