"""Who holds a unique key: a row that the triggers of the jobs keep, whoever changes the jobs."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tenure.errors import IllegalTransition
from tenure.events import Cancelled, Retried
from tenure.lifecycle import Job
from tenure.retry import RetryPolicy
from tenure.rules.jobs import Enqueued
from tenure.rules.search import Action, Counted, Filter
from tenure.rules.unique_keys import Unique, uniqueness
from tenure.store import POSTGRES_WRITERS
from tenure.store.tables import bulk
from tenure.values.ids import new_id
from tests.contract.situations import DRESS, refused
from tests.support.raw_sql import Refused
from tests.support.store import (
    StoreHarness,
    new_job,
    report_completed,
    report_failed,
    report_interrupted,
    report_released,
    report_snoozed,
)

KEY = "0" * 31
INSERT = (
    "INSERT INTO {job} (id, type, run_at, created_at, unique_key, unique_until)"
    " VALUES (?, 'mail', {now}, {now}, ?, ?)"
)
AT_ONCE = RetryPolicy(base=0, factor=1, cap=0)


def holders(harness: StoreHarness) -> list[str]:
    return [str(id) for (id,) in harness.sql.run("SELECT job_id FROM {unique_key} ORDER BY 1")]


def put(harness: StoreHarness, key: str = "a", until: str = "settled") -> str:
    """Add a job with a unique key in SQL."""
    job_id = new_id()
    harness.sql.run(INSERT, job_id, KEY + key, until)
    return job_id


def unique(type: str = "mail", **rule: Any) -> Any:
    """A checked job with a unique key of its type."""
    options = {name: rule.pop(name) for name in ("delay", "backoff", "max_retries") if name in rule}
    one = uniqueness(Unique((), **rule), type, "default", "{}")
    until = one.rule.until
    key = one.key if until else None
    return new_job(type, unique=one, unique_key=key, unique_until=until, **options)


def added(harness: StoreHarness, **rule: Any) -> Enqueued:
    (one,) = harness.add_all(unique(**rule))
    return one


def test_a_second_holder_is_refused_whoever_adds_it(harness: StoreHarness) -> None:
    first = put(harness)
    assert holders(harness) == [first]
    with pytest.raises(Refused, match="another job holds this unique key"):
        harness.sql.run(INSERT, new_id(), KEY + "a", "started")
    other = put(harness, "b")
    assert holders(harness) == [first, other]
    for key, until in (("X" * 32, "settled"), (KEY, "settled"), (KEY + "c", "done")):
        refused(harness, INSERT, new_id(), key, until)
    refused(harness, INSERT, new_id(), KEY + "c", None)
    assert harness.sql.value("SELECT count(*) FROM {job}") == 2


@pytest.mark.parametrize("until", ["settled", "started"])
@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_a_job_that_rests_lets_go(harness: StoreHarness, until: str, status: str) -> None:
    """celery-once#147, celery-singleton#29 and #40, sidekiq-unique-jobs#304, bullmq#4311."""
    job_id = put(harness, until=until)
    if status == "cancelled":
        harness.sql.run(
            f"UPDATE {{job}} SET status = 'cancelled', {DRESS[status]} WHERE id = ?", job_id
        )
        assert holders(harness) == []
        return
    (lease,) = harness.claim()
    assert holders(harness) == ([job_id] if until == "settled" else [])
    report = (
        report_completed(lease) if status == "completed" else report_failed(lease, retryable=False)
    )
    harness.report(report)
    assert (harness.get(job_id).status, holders(harness)) == (status, [])
    assert put(harness)


def test_a_key_is_held_through_a_retry_without_a_gap(harness: StoreHarness) -> None:
    """river PR 619: no moment at which another insert gets in."""
    first = added(harness, backoff=AT_ONCE)
    for event in (report_failed, report_released, report_interrupted, report_snoozed):
        (lease,) = harness.claim()
        assert added(harness) == Enqueued(harness.get(first.job.id), created=False)
        harness.report(event(lease))
        assert holders(harness) == [first.job.id]
    assert harness.get(first.job.id).status == "pending"


def test_a_job_that_started_never_takes_its_key_back(harness: StoreHarness) -> None:
    """oban#1416, #1259, awa#388, procrastinate#1446, pg-boss#492, #535: retries met it."""
    pairs: list[str] = []
    leases = []
    for number in range(20):
        kind = f"kind-{number}"
        old = harness.add_all(unique(kind, until="started", backoff=AT_ONCE))[0]
        leases += harness.claim(types=(kind,))
        new = harness.add_all(unique(kind, until="started"))[0]
        assert old.created
        assert new.created
        pairs += [old.job.id, new.job.id]
    assert holders(harness) == sorted(pairs[1::2])
    harness.report(*[report_failed(lease) for lease in leases[:10]])
    harness.clock.advance(3600)
    swept = harness.store.sweep().result()
    assert len(swept) == 10
    assert {harness.get(id).status for id in pairs} == {"pending"}
    assert holders(harness) == sorted(pairs[1::2])


def test_a_hot_key_is_one_write_for_each_batch(harness: StoreHarness) -> None:
    """Not one for each request, which would be as many entries of the ledger."""
    goes_on = threading.Event()
    for _ in range(POSTGRES_WRITERS):
        harness.store.write("block", lambda db: goes_on.wait(10))
    rule: Any = {"until": "started", "on_conflict": "replace", "max_wait": 60.0}
    asked = [harness.store.add([unique(delay=n, **rule)]) for n in range(50)]
    goes_on.set()
    answers = [future.result()[0] for future in asked]
    assert [answer.created for answer in answers].count(True) == 1
    (job_id,) = {answer.job.id for answer in answers}
    assert len(harness.events(job_id)) <= 1 + POSTGRES_WRITERS


def failed_pair(harness: StoreHarness) -> tuple[Job, Job]:
    """A job that has failed for good, and the one that holds its key since."""
    old = added(harness).job
    harness.report(report_failed(harness.claim()[0], retryable=False))
    return old, added(harness).job


def test_a_retry_is_refused_while_another_job_holds_the_key(harness: StoreHarness) -> None:
    """riverui#622: HTTP 500."""
    old, new = failed_pair(harness)
    with pytest.raises(IllegalTransition) as refusal:
        harness.store.apply(old.id, Retried(more_retries=1)).result()
    assert refusal.value.reason.startswith("another job holds its unique key")
    with pytest.raises(Refused):
        harness.sql.run(
            f"UPDATE {{job}} SET status = 'pending', max_retries = 9, event = 'retried',"
            f" {DRESS['pending']} WHERE id = ?",
            old.id,
        )
    harness.store.apply(new.id, Cancelled()).result()
    assert harness.store.apply(old.id, Retried(more_retries=1)).result().status == "pending"
    assert holders(harness) == [old.id]


def test_a_bulk_retry_counts_those_whose_key_is_taken(harness: StoreHarness) -> None:
    old, new = failed_pair(harness)
    twins = []
    for _ in range(2):
        twins.append(harness.add_all(unique("twin"))[0].job.id)
        harness.report(report_failed(harness.claim(types=("twin",))[0], retryable=False))
    plain = harness.add("plain")
    harness.report(report_failed(harness.claim(types=("plain",))[0], retryable=False))
    action = new_id()
    harness.store.write(
        "bulk",
        lambda db: bulk.start(
            db,
            id=action,
            action=Action.RETRY,
            filter=Filter(),
            more_retries=1,
            actor="ann",
            total=Counted(4, True),
        ),
    ).result()
    found = bulk.get(harness.store.read, action)
    assert found is not None
    bulk.step(harness.store, found)
    done = bulk.get(harness.store.read, action)
    assert done is not None
    assert (done.changed, done.refused) == (2, 2)
    statuses = [harness.get(id).status for id in (old.id, *twins, plain.id)]
    assert statuses == ["failed", "pending", "failed", "pending"]
    assert holders(harness) == sorted([new.id, twins[0]])


def test_a_deleted_job_leaves_no_key(harness: StoreHarness) -> None:
    job_id = put(harness)
    for status in ("processing", "failed"):
        more = "attempts = 1, token = 1, " if status == "processing" else ""
        harness.sql.run(
            f"UPDATE {{job}} SET status = '{status}', {more}{DRESS[status]} WHERE id = ?", job_id
        )
    assert holders(harness) == [job_id]  # attempts are left: by SQL alone
    harness.sql.run("DELETE FROM {job} WHERE id = ?", job_id)
    harness.sql.run("DELETE FROM {transition} WHERE job_id = ?", job_id)
    assert holders(harness) == []


def test_a_deleted_job_takes_no_key_away(harness: StoreHarness) -> None:
    """It held the key, until it was completed and another job came."""
    old = put(harness)
    (lease,) = harness.claim()
    harness.report(report_completed(lease))
    new = put(harness)
    harness.sql.run("DELETE FROM {job} WHERE id = ?", old)
    harness.sql.run("DELETE FROM {transition} WHERE job_id = ?", old)
    assert holders(harness) == [new]


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM {unique_key}",
        "UPDATE {unique_key} SET job_id = '0190163d-8694-739b-aea5-966c26f8ad90'",
        f"INSERT INTO {{unique_key}} (key, job_id) SELECT '{KEY}b', job_id FROM {{unique_key}}",
    ],
)
def test_nobody_else_writes_the_table_of_holders(harness: StoreHarness, statement: str) -> None:
    put(harness)
    refused(harness, statement)


@pytest.mark.parametrize("clause", ["INSERT OR REPLACE", "REPLACE", "INSERT OR IGNORE"])
def test_or_replace_takes_no_key_away(harness: StoreHarness, clause: str) -> None:
    """The conflict clause of a statement rules inside of triggers, too."""
    if harness.sql.engine != "sqlite":
        pytest.skip("PostgreSQL has no such clause")
    old, new = failed_pair(harness)
    first = put(harness)
    refused(harness, INSERT.replace("INSERT", clause), new_id(), KEY + "a", "settled")
    statement = f"{clause} INTO {{unique_key}} (key, job_id) SELECT key, ? FROM {{unique_key}}"
    refused(harness, statement, new_id())
    again = f"status = 'pending', max_retries = 9, event = 'retried', {DRESS['pending']}"
    refused(harness, f"UPDATE OR REPLACE {{job}} SET {again} WHERE id = ?", old.id)
    assert holders(harness) == sorted([first, new.id])
