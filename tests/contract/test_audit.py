"""`violations` finds what is broken: at least one case for each question that it asks.

The data is broken by hand, with every trigger and check taken away first. Exactly the invariants
named must be found broken, and only in jobs that there are.
"""

from __future__ import annotations

import sqlite3

import pytest

from tenure.events import Retried
from tenure.store import audit, open_store
from tests.support.effort import on_either_engine
from tests.support.store import (
    LEASE_SECONDS,
    StoreHarness,
    new_job,
    report_completed,
    report_failed,
    report_released,
)

SETTLED_JOB = "(SELECT id FROM {job} WHERE status = 'completed' ORDER BY id LIMIT 1)"
HELD_JOB = "(SELECT id FROM {job} WHERE status = 'processing' ORDER BY id LIMIT 1)"
PENDING_JOB = "(SELECT id FROM {job} WHERE status = 'pending' ORDER BY id LIMIT 1)"
UNTRIED_JOB = "(SELECT id FROM {job} WHERE status = 'pending' AND token = 0 ORDER BY id LIMIT 1)"
FAILED_JOB = "(SELECT id FROM {job} WHERE status = 'failed' ORDER BY id LIMIT 1)"
ENTRY = "(job_id, at, source, target, event, attempt, token, lease_id, detail)"
USED_LEASE = (
    "(SELECT min(CAST(lease_id AS text)) FROM {transition}"
    f" WHERE job_id = {SETTLED_JOB}){{as_lease}}"
)

LEGAL = "every transition in the ledger is legal"
PATH = "each entry starts where the one before it ended"
STATUS = "the ledger ends in the job's status"
TOKEN = "a claim raises the token by one and nothing else changes it"
ATTEMPT = "each entry names its attempt"
ATTEMPTS = "attempts are the claims that were not returned"
LIMIT = "no job ran more often than its limit"
RELEASES = "no job was returned without end"
ONCE = "a lease is given out once"
OUTCOME = "one outcome per lease"
CLAIMED = "every lease that ended was claimed"
LEASE = "a lease is held if and only if the job is processing"
LAST_LEASE = "the job's lease is that of its last claim"
END = "a job has an end time if and only if it is settled"
TIMES = "the job's times are those of the ledger"
WHY = "a failure says why"
ERROR = "the last error is that of the last failure"
VALUES = "every value is one that an enqueue accepts"
RESULT = "only a completed job has a result"
RETRY = "a failure with attempts left is tried again unless it gave up"
SNOOZES = "snoozes are those in the ledger"
WAITS = "a waiting job waits for something"
SUSPENDED = "a suspended job waits for what has not come"
KEY = "one job per idempotency key"
COUNTS = "the counts are those of the jobs"
TAGS = "a job is found by its tags and by no others"
HOLDERS = "one holder per unique key, and each holder is a row that may hold"
"""Broken in test_unique; what is said of limits, in test_limit_audit."""
FIRES = "a fire has the job that its schedule added"
ORPHANS = "no ledger without its job"
TOKENS = "a token if and only if the job is pending"
PLACES = "every job is where the sweep, retention and operators look"

LEDGER_BREAKS = [
    (
        {LEGAL, ATTEMPT, ATTEMPTS, TOKEN, CLAIMED},
        f"UPDATE {{transition}} SET event = 'retried' WHERE job_id = {HELD_JOB}"
        " AND event = 'claimed'",
    ),
    (
        {LEGAL, STATUS},
        f"UPDATE {{transition}} SET target = 'completed' WHERE job_id = {FAILED_JOB}"
        " AND event = 'gave_up'",
    ),
    (
        {LEGAL, TOKEN, ATTEMPT, ATTEMPTS, CLAIMED},
        f"UPDATE {{transition}} SET event = 'claimed' WHERE job_id = {UNTRIED_JOB}"
        " AND event = 'enqueued'",
    ),
    (
        {PATH, TOKEN, ATTEMPT, ATTEMPTS, CLAIMED},
        f"DELETE FROM {{transition}} WHERE job_id = {SETTLED_JOB} AND event = 'claimed'",
    ),
    ({PATH}, f"DELETE FROM {{transition}} WHERE job_id = {SETTLED_JOB} AND event = 'enqueued'"),
    ({STATUS}, f"DELETE FROM {{transition}} WHERE job_id = {SETTLED_JOB}"),
    (
        {TOKEN, STATUS},
        f"UPDATE {{transition}} SET token = 0 WHERE job_id = {HELD_JOB} AND event = 'claimed'",
    ),
    (
        {TOKEN, STATUS},
        f"UPDATE {{transition}} SET token = 7 WHERE job_id = {SETTLED_JOB}"
        " AND event IN ('claimed', 'completed')",
    ),
    (
        {ATTEMPT},
        f"UPDATE {{transition}} SET attempt = 2 WHERE job_id = {SETTLED_JOB}"
        " AND event = 'completed'",
    ),
    ({ATTEMPT}, "UPDATE {transition} SET attempt = 0 WHERE event = 'released'"),
    (
        {LIMIT, ATTEMPT},
        f"UPDATE {{transition}} SET attempt = 4 WHERE job_id = {SETTLED_JOB}"
        " AND event = 'completed'",
    ),
    (
        {ONCE, OUTCOME},
        f"UPDATE {{transition}} SET lease_id = {USED_LEASE}"
        f" WHERE job_id = {FAILED_JOB} AND lease_id IS NOT NULL",
    ),
    (
        {ONCE, LAST_LEASE},
        f"UPDATE {{transition}} SET lease_id = {USED_LEASE}"
        f" WHERE job_id = {HELD_JOB} AND event = 'claimed'",
    ),
    (
        {OUTCOME, PATH, STATUS, COUNTS},
        f"INSERT INTO {{transition}} {ENTRY} SELECT job_id, at, source, 'failed', 'failed',"
        f" attempt, token, lease_id, 'boom' FROM {{transition}} WHERE job_id = {SETTLED_JOB}"
        " AND event = 'completed'",
    ),
    (
        {CLAIMED},
        f"UPDATE {{transition}} SET lease_id = {{new_lease}} WHERE job_id = {SETTLED_JOB}"
        " AND event = 'completed'",
    ),
    (
        {CLAIMED},
        f"UPDATE {{transition}} SET lease_id = NULL WHERE job_id = {FAILED_JOB}"
        " AND event = 'claimed'",
    ),
    (
        {CLAIMED},
        f"UPDATE {{transition}} SET lease_id = {{new_lease}} WHERE job_id = {SETTLED_JOB}"
        " AND event = 'enqueued'",
    ),
    (
        {WHY},
        f"UPDATE {{transition}} SET detail = NULL WHERE job_id = {FAILED_JOB}"
        " AND event = 'gave_up'",
    ),
]
ROW_BREAKS = [
    (
        {STATUS, COUNTS},
        f"UPDATE {{job}} SET status = 'completed', finished_at = {{now}} WHERE id = {UNTRIED_JOB}",
    ),
    ({STATUS, COUNTS}, f"UPDATE {{job}} SET status = 'completed' WHERE id = {FAILED_JOB}"),
    ({STATUS}, f"UPDATE {{job}} SET token = token + 1 WHERE id = {SETTLED_JOB}"),
    ({ATTEMPTS}, f"UPDATE {{job}} SET attempts = 0 WHERE id = {SETTLED_JOB}"),
    ({ATTEMPTS}, f"UPDATE {{job}} SET attempts = 2 WHERE id = {HELD_JOB}"),
    (
        {ATTEMPTS, LIMIT},
        f"UPDATE {{job}} SET attempts = 5, max_retries = 4 WHERE id = {SETTLED_JOB}",
    ),
    (
        {ATTEMPTS, LIMIT},
        f"UPDATE {{job}} SET attempts = 3, max_retries = 3 WHERE id = {UNTRIED_JOB}",
    ),
    ({RELEASES, STATUS}, f"UPDATE {{job}} SET token = attempts + 101 WHERE id = {SETTLED_JOB}"),
    ({SNOOZES}, f"UPDATE {{job}} SET snoozes = 1 WHERE id = {SETTLED_JOB}"),
    ({SNOOZES, RELEASES}, f"UPDATE {{job}} SET snoozes = 10001 WHERE id = {SETTLED_JOB}"),
    ({WAITS}, f"UPDATE {{job}} SET need = 1 WHERE id = {PENDING_JOB}"),
    (
        {WAITS, SUSPENDED, STATUS, COUNTS},
        f"UPDATE {{job}} SET status = 'waiting' WHERE id = {PENDING_JOB}",
    ),
    (
        {FIRES},
        "INSERT INTO {fire} (schedule, at, outcome, how, job_id, decided_at)"
        f" VALUES ('s', {{now}}, 'fired', 'due', {SETTLED_JOB}, {{now}})",
    ),
    ({RETRY}, f"UPDATE {{job}} SET event = 'failed' WHERE id = {FAILED_JOB}"),
    ({LEASE}, f"UPDATE {{job}} SET lease_id = NULL WHERE id = {HELD_JOB}"),
    ({LEASE}, f"UPDATE {{job}} SET lease_expires_at = NULL WHERE id = {HELD_JOB}"),
    ({LEASE}, f"UPDATE {{job}} SET worker = NULL WHERE id = {HELD_JOB}"),
    ({LEASE}, f"UPDATE {{job}} SET started_at = NULL WHERE id = {HELD_JOB}"),
    ({LEASE}, f"UPDATE {{job}} SET lease_id = {{new_lease}} WHERE id = {PENDING_JOB}"),
    ({LAST_LEASE}, f"UPDATE {{job}} SET lease_id = {{new_lease}} WHERE id = {HELD_JOB}"),
    ({END}, f"UPDATE {{job}} SET finished_at = NULL WHERE id = {SETTLED_JOB}"),
    ({END}, f"UPDATE {{job}} SET finished_at = {{now}} WHERE id = {HELD_JOB}"),
    ({TIMES}, f"UPDATE {{job}} SET created_at = {{later}} WHERE id = {PENDING_JOB}"),
    ({TIMES}, f"UPDATE {{job}} SET started_at = {{later}} WHERE id = {HELD_JOB}"),
    ({TIMES}, f"UPDATE {{job}} SET started_at = {{later}} WHERE id = {SETTLED_JOB}"),
    ({TIMES}, f"UPDATE {{job}} SET finished_at = {{later}} WHERE id = {FAILED_JOB}"),
    ({WHY}, f"UPDATE {{job}} SET last_error = NULL WHERE id = {FAILED_JOB}"),
    ({ERROR}, f"UPDATE {{job}} SET last_error = 'another' WHERE id = {FAILED_JOB}"),
    ({RESULT}, f"UPDATE {{job}} SET result = 'null' WHERE id = {FAILED_JOB}"),
    ({VALUES}, f"UPDATE {{job}} SET payload = '{{not json' WHERE id = {PENDING_JOB}"),
    ({VALUES, COUNTS}, f"UPDATE {{job}} SET type = 'a/b' WHERE id = {PENDING_JOB}"),
    ({VALUES}, f"UPDATE {{job}} SET backoff = '[]' WHERE id = {PENDING_JOB}"),
    ({VALUES}, f"UPDATE {{job}} SET backoff = '{{\"factor\":1001}}' WHERE id = {PENDING_JOB}"),
    ({VALUES}, f"UPDATE {{job}} SET result = 'nonsense' WHERE id = {SETTLED_JOB}"),
    ({TAGS}, f'UPDATE {{job}} SET tags = \'["a","b"]\' WHERE id = {PENDING_JOB}'),
    ({TAGS}, f"INSERT INTO {{tag}} SELECT 'a', id FROM {{job}} WHERE id = {SETTLED_JOB}"),
    ({TAGS}, "DELETE FROM {tag} WHERE tag = 'x:1'"),
    ({VALUES}, f"UPDATE {{job}} SET tags = 'nonsense' WHERE id = {PENDING_JOB}"),
    ({COUNTS}, "DELETE FROM {tally} WHERE status = 'completed'"),
    ({COUNTS}, "UPDATE {tally} SET jobs = jobs + 1 WHERE status = 'failed'"),
    ({ORPHANS, COUNTS}, f"DELETE FROM {{job}} WHERE id = {SETTLED_JOB}"),
]


def fill(harness: StoreHarness) -> None:
    """A sound history with a job of every kind in it."""
    harness.report(report_completed(harness.take()), report_failed(harness.take(), retryable=False))
    harness.report(report_released(harness.take()))
    harness.claim()
    harness.clock.advance(LEASE_SECONDS)
    harness.store.sweep().result()
    harness.add(priority=-1)
    harness.claim()
    harness.add(tags='["x:1","é"]')
    harness.measure()


def break_by(harness: StoreHarness, statement: str) -> None:
    """Change the data behind every guard."""
    harness.sql.drop_triggers()
    harness.sql.drop_checks()
    as_lease = "" if harness.sql.engine == "sqlite" else "::uuid"
    harness.sql.run(statement.replace("{as_lease}", as_lease))
    assert harness.sql.changed >= 1


def test_nothing_is_found_in_a_sound_history(harness: StoreHarness) -> None:
    fill(harness)
    assert harness.store.read.violations(10) == []


@on_either_engine("broken, statement", *LEDGER_BREAKS, *ROW_BREAKS)
def test_it_finds_what_was_broken(
    unaudited_harness: StoreHarness, broken: set[str], statement: str
) -> None:
    harness = unaudited_harness
    fill(harness)
    jobs = {entry.job_id for entry in harness.ledger()}
    break_by(harness, statement)
    found = harness.store.read.violations(10)
    assert {invariant for invariant, _, _ in found} - {TOKENS, PLACES} == broken
    assert all(what and (job_id in jobs) == (name != COUNTS) for name, job_id, what in found)


PLACE_BREAKS = [
    ({TOKENS}, f"DELETE FROM tenure.ready WHERE id = {UNTRIED_JOB}"),
    ({TOKENS}, f"UPDATE tenure.ready SET run_at = {{later}} WHERE id = {UNTRIED_JOB}"),
    ({TOKENS}, f"UPDATE tenure.ready SET priority = 7 WHERE id = {UNTRIED_JOB}"),
    ({TOKENS}, f"UPDATE tenure.ready SET type = 'other' WHERE id = {UNTRIED_JOB}"),
    ({TOKENS}, f"UPDATE tenure.ready SET id = {HELD_JOB} WHERE id = {UNTRIED_JOB}"),
    (
        {TOKENS},
        "INSERT INTO tenure.ready (queue, priority, run_at, id, type)"
        " SELECT queue, priority, run_at, id, type FROM {job} WHERE status = 'completed'",
    ),
    ({PLACES}, f"DELETE FROM tenure.arrival WHERE {HELD_JOB} = ANY (ids)"),
    ({PLACES}, f"DELETE FROM tenure.arrival WHERE {SETTLED_JOB} = ANY (ids)"),
    ({PLACES}, "UPDATE tenure.arrival SET status = 'failed' WHERE status = 'processing'"),
    ({PLACES}, f"DELETE FROM tenure.ended WHERE id = {FAILED_JOB}"),
    ({PLACES}, f"UPDATE tenure.ended SET status = 'cancelled' WHERE id = {FAILED_JOB}"),
    ({PLACES}, f"INSERT INTO tenure.ended VALUES ('failed', {SETTLED_JOB})"),
]


@pytest.mark.parametrize(
    "database_url", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
)
@pytest.mark.parametrize(("broken", "statement"), PLACE_BREAKS)
def test_it_finds_places_that_are_not_those_of_the_jobs(
    unaudited_harness: StoreHarness, broken: set[str], statement: str
) -> None:
    fill(unaudited_harness)
    break_by(unaudited_harness, statement)
    found = unaudited_harness.store.read.violations(10)
    assert {invariant for invariant, _, _ in found} == broken


def test_a_key_that_made_two_jobs_is_found(unaudited_harness: StoreHarness) -> None:
    harness = unaudited_harness
    first = harness.add(idempotency_key="order-17")
    second = harness.add()
    index = "tenure_job_key" if harness.sql.engine == "sqlite" else "tenure.job_key"
    harness.sql.run(f"DROP INDEX {index}")
    break_by(harness, f"UPDATE {{job}} SET idempotency_key = 'order-17' WHERE id = '{second.id}'")
    found = harness.store.read.violations(10)
    assert found == [(KEY, min(first.id, second.id), "2 jobs with one key")]


def test_a_retry_that_was_left_out_is_found(unaudited_harness: StoreHarness) -> None:
    """Each move is legal by itself: no trigger can know that nothing follows."""
    harness = unaudited_harness
    last, lost = harness.take(max_retries=1), harness.take(max_retries=2)
    harness.sql.run(
        "UPDATE {job} SET status = 'failed', event = 'lease_expired', finished_at = {now},"
        " last_error = 'gone', lease_id = NULL, lease_expires_at = NULL"
    )
    assert (
        harness.events(last.id)
        == harness.events(lost.id)
        == ["enqueued", "claimed", "lease_expired"]
    )
    assert harness.store.read.violations(10) == [(RETRY, lost.id, "failed after attempt 1 of 2")]
    harness.store.apply(lost.id, Retried()).result()
    assert harness.store.read.violations(10) == []


def test_an_index_without_its_jobs_is_found(sqlite_url: str) -> None:
    store = open_store(sqlite_url)
    store.add([new_job(), new_job()]).result()
    store.close()
    connection = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute(
        "UPDATE sqlite_schema SET sql = replace(sql, 'processing', 'pending')"
        " WHERE name = 'tenure_job_lease'"
    )
    connection.close()
    store = open_store(sqlite_url)
    found = store.read.violations(10)
    store.close()
    assert {(invariant, job_id) for invariant, job_id, _ in found} == {(audit.SOUND, "")}
    assert "tenure_job_lease" in found[0][2]


def test_there_is_a_case_for_every_question_and_advice_for_every_answer() -> None:
    questions = (*audit.QUERIES, audit.PLACES)
    asked = {name for each in questions for name in each.invariants}
    assert {name for each in audit.LIMIT_QUERIES for name in each.invariants} == {audit.FOLLOWED}
    breaks = LEDGER_BREAKS + ROW_BREAKS + PLACE_BREAKS
    shown = {invariant for broken, _ in breaks for invariant in broken}
    others = {audit.SOUND, audit.TICKS, audit.HELD, audit.FOLLOWED}
    graphs = (*audit.ON_SQLITE, *audit.ON_POSTGRES)
    others |= {name for each in graphs for name in each.invariants}
    assert asked | others == shown | {KEY, HOLDERS, *others} == set(audit.INVARIANTS)
    assert all(audit.INVARIANTS.values())


def test_it_tells_no_more_than_asked_for(unaudited_harness: StoreHarness) -> None:
    harness = unaudited_harness
    harness.add_all(*[new_job() for _ in range(20)])
    break_by(harness, "UPDATE {job} SET finished_at = {now}")
    assert len(harness.store.read.violations(3)) == 3
    assert len(harness.store.read.violations(100)) == 20
