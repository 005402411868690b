"""Rows that were written while the guards were off: none costs another job an attempt."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from tenure import Tenure
from tests.support.http import api_client, claim_jobs
from tests.support.raw_sql import RawSql
from tests.support.store import LEASE_SECONDS, StoreHarness

INSERT = (
    "INSERT INTO {job} (id, type, priority, run_at, created_at, %s)"
    " VALUES (?, 'mail', -5, {now}, {now}, %s)"
)
ID = "01a2136a-f5a6-72ea-a3c2-bbf630af6601"


def without_checks(harness: StoreHarness) -> RawSql:
    """The connection, with no condition on values; on PostgreSQL for all."""
    harness.sql.drop_checks()
    if harness.sql.engine == "postgres":
        trigger = harness.sql.value("SELECT pg_get_functiondef('tenure.record_entry'::regproc)")
        free, times = re.subn("(?s)WHERE CASE WHEN .* ELSE true END", "", trigger)
        assert times == 1
        free, times = re.subn("fits := .*;", "fits := false;", free)
        assert times == 2
        harness.sql.run(free.replace("%", "%%"))
    return harness.sql


def test_a_policy_that_cannot_be_read_stops_no_sweep(unaudited_harness: StoreHarness) -> None:
    harness = unaudited_harness
    for _ in range(3):
        harness.add()
    raw = without_checks(harness)
    raw.run(INSERT % ("backoff", "?"), ID, "nonsense")
    assert len(harness.claim(4)) == 4
    harness.clock.advance(2 * LEASE_SECONDS)
    assert len(harness.store.sweep().result()) == 4
    harness.clock.advance(timedelta(hours=2).total_seconds())
    assert ID in harness.ids(harness.claim(4))


def test_verify_names_what_is_wrong_with_a_row(unaudited_harness: StoreHarness) -> None:
    harness = unaudited_harness
    harness.add()
    raw = without_checks(harness)
    raw.run(INSERT % ("payload, backoff", "?, ?"), ID, "{not json", "nonsense")
    found = [
        (job_id, text)
        for invariant, job_id, text in harness.store.read.violations(10)
        if invariant == "every value is one that an enqueue accepts"
    ]
    assert [job_id for job_id, _ in found] == [ID]
    assert found[0][1].startswith("refused by ")


DAMAGED = {
    "no JSON": "{not json",
    "no object": "[1]",
    "cut off": '{"a": ',
    "deep": '{"a":' * 5_000 + "1" + "}" * 5_000,
}


@pytest.mark.requirement("C13")
@pytest.mark.parametrize("payload", DAMAGED.values(), ids=DAMAGED)
def test_over_http_a_damaged_payload_fails_alone(
    unaudited_harness: StoreHarness, payload: str
) -> None:
    harness = unaudited_harness
    good = [harness.add().id for _ in range(10)]
    without_checks(harness).run(INSERT % ("payload", "?"), ID, payload)
    with Tenure(harness.url) as app, api_client(app) as api:
        leases = claim_jobs(api, 50)
        assert sorted(lease["id"] for lease in leases) == sorted(good)
        assert {lease["attempts"] for lease in leases} == {1}
        shown = api.get("/jobs").json()
        assert {job["id"] for job in shown} == {*good, ID}
    job = harness.get(ID)
    assert (job.status, job.attempts) == ("failed", 1)
    assert job.last_error is not None
    assert job.last_error.startswith("the stored payload is")
    assert harness.events(ID) == ["enqueued", "claimed", "gave_up"]


def test_over_http_a_damaged_id_fails_alone(unaudited_harness: StoreHarness) -> None:
    harness = unaudited_harness
    good = harness.add().id
    bad = ID.replace("-72ea-", "-42ea-")
    without_checks(harness).run(INSERT % ("payload", "?"), bad, "{}")
    with Tenure(harness.url) as app, api_client(app) as api:
        assert [lease["id"] for lease in claim_jobs(api, 50)] == [good]
    assert (harness.get(bad).status, harness.get(bad).attempts) == ("failed", 1)
