"""A job that a trigger of somebody else does not let start holds up no other job."""

from __future__ import annotations

from typing import Any

import pytest

from tenure import NewJob, PerPartition, Tenure
from tenure.store import lanes, refusals
from tests.contract.other_triggers import add_trigger, drop_trigger
from tests.support.store import StoreHarness, claim_request, report_completed

pytestmark = pytest.mark.own_database

STARTS = "new.type = 'held' AND new.status = 'processing'"
LIMITS: tuple[dict[str, Any], ...] = (
    {},
    {"max_running": 50},
    {"per_partition": PerPartition(max_running=50)},
)


def add(app: Tenure, types: str, **options: Any) -> list[str]:
    """Add jobs, one by one, of the type "held" for an x and of "mail" for an o."""
    names = {"x": "held", "o": "mail"}
    return [app.enqueue(names[one], **options).id for one in types]


def claimed(harness: StoreHarness, limit: int, times: int = 1, **request: Any) -> set[str]:
    """Claim so many times; return the ids of the jobs, which are completed."""
    ids = set[str]()
    for _ in range(times):
        leases = harness.claim(limit, **request)
        ids.update(lease.id for lease in leases)
        harness.report(*map(report_completed, leases))
    return ids


@pytest.mark.parametrize("limits", LIMITS, ids=["no limit", "queue", "partitions"])
def test_a_job_that_cannot_be_claimed(
    harness: StoreHarness, app: Tenure, caplog: pytest.LogCaptureFixture, limits: dict[str, Any]
) -> None:
    """Each claim was refused as a whole, and each worker tried the same jobs again for ever."""
    if limits:
        app.queues.limit("default", **limits)
    ids = add(app, "oxooxo")
    others = {ids[at] for at in (0, 2, 3, 5)}
    add_trigger(harness.url, "BEFORE UPDATE", STARTS)
    assert claimed(harness, 10, 2) == others
    assert [app.get(ids[at]).status for at in (1, 4)] == ["pending", "pending"]
    (said,) = [record.message for record in caplog.records if "claimed" in record.message]
    assert f"2 pending jobs cannot be claimed, such as {ids[1]}: " in said
    assert "no tenant 12" in said
    later = set(add(app, "oo"))
    assert claimed(harness, 10) == later, "a claim begins behind what was refused"
    drop_trigger(harness.url)
    harness.clock.advance(60)
    assert claimed(harness, 10, 4) == {ids[1], ids[4]}


@pytest.mark.parametrize("limits", LIMITS, ids=["no limit", "queue", "partitions"])
def test_more_jobs_than_one_claim_tries(
    harness: StoreHarness, app: Tenure, monkeypatch: pytest.MonkeyPatch, limits: dict[str, Any]
) -> None:
    monkeypatch.setattr(refusals, "MAX_TRIED", 3)
    if limits:
        app.queues.limit("default", **limits)
    add(app, "x" * 10)
    others = set(add(app, "oo"))
    add_trigger(harness.url, "BEFORE UPDATE", STARTS)
    assert claimed(harness, 2, 6) == others


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("divided_by", ["queue", "partition"])
def test_refused_jobs_of_more_lanes_than_are_remembered(
    harness: StoreHarness, app: Tenure, divided_by: str
) -> None:
    """Claims met the same refused jobs again and again, and never what was behind the others."""
    app.queues.limit("default", per_partition=PerPartition(max_running=50))
    number = lanes.MAX_KNOWN + 8
    for type in ("held", "mail"):
        app.enqueue_many([NewJob(type, {}, {divided_by: f"n{n}"}) for n in range(number)])  # type: ignore[misc]
    add_trigger(harness.url, "BEFORE UPDATE", STARTS)
    assert len(claimed(harness, 50, 30)) == number


def test_claims_of_one_job_pass_refused_ones_in_many_lanes(
    harness: StoreHarness, app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a lane of which that was not remembered, each claim met the refused job."""
    monkeypatch.setattr(lanes, "MAX_KNOWN", 2)
    for number in range(4):
        add(app, "xo", queue=f"n{number}")
    add_trigger(harness.url, "BEFORE UPDATE", STARTS)
    assert len(claimed(harness, 1, 9)) == 4


def test_a_partition_in_order_waits_alone(harness: StoreHarness, app: Tenure) -> None:
    app.queues.limit("default", ordered="halt")
    add(app, "xo", partition="a")
    other = add(app, "oo", partition="b")
    add_trigger(harness.url, "BEFORE UPDATE", STARTS)
    assert claimed(harness, 10, 4) == {*other}


@pytest.mark.parametrize("limits", LIMITS, ids=["no limit", "queue", "partitions"])
def test_a_refused_job_is_not_tried_by_each_claim(
    harness: StoreHarness, app: Tenure, limits: dict[str, Any]
) -> None:
    """It would be a transaction in vain for each job that a fleet runs."""
    if limits:
        app.queues.limit("default", **limits)
    add(app, "x")
    add_trigger(harness.url, "BEFORE UPDATE", STARTS)
    claimed(harness, 1, 2)
    drop_trigger(harness.url)
    for _ in range(20):  # none of these finds that nothing refuses the first job any more
        (job,) = add(app, "o")
        assert claimed(harness, 1) == {job}
    assert claimed(harness, 1, 3) == set()


def test_reports_beside_a_refused_claim_are_recorded(harness: StoreHarness, app: Tenure) -> None:
    (running,) = add(app, "o")
    (lease,) = harness.claim(1)
    add(app, "x")
    add_trigger(harness.url, "BEFORE UPDATE", STARTS)
    exchange = harness.store.exchange((report_completed(lease),), claim_request(1)).result()
    assert [verdict.answer for verdict in exchange.verdicts] == ["recorded"]
    assert app.get(running).status == "completed"


@pytest.mark.parametrize("limits", LIMITS, ids=["no limit", "queue", "partitions"])
@pytest.mark.parametrize("limit", [1, 2, 10])
def test_claims_that_are_dropped_hold_up_no_other_job(
    harness: StoreHarness, app: Tenure, limits: dict[str, Any], limit: int
) -> None:
    """SQLite's worker ran such a job, again and again; on PostgreSQL they closed their lane."""
    if limits:
        app.queues.limit("default", **limits)
    claimed(harness, limit)  # notes the worker, so the next claim may be one statement
    *held, one, other = add(app, "xxoo")
    add_trigger(harness.url, "BEFORE UPDATE", STARTS, drops=True)
    assert claimed(harness, limit, 4) == {one, other}
    assert [app.get(id).status for id in held] == ["pending", "pending"]
