"""`violations` finds what is broken: one case for each question that it asks.

The data is broken by hand, with every trigger and check taken away first.
"""

from __future__ import annotations

import pytest

from tenure.store import audit
from tests.contract.desk import LEASE_SECONDS, Desk, completed, failed, new, released

SETTLED_JOB = "(SELECT id FROM {job} WHERE status = 'completed' ORDER BY id LIMIT 1)"
HELD_JOB = "(SELECT id FROM {job} WHERE status = 'processing' ORDER BY id LIMIT 1)"
PENDING_JOB = "(SELECT id FROM {job} WHERE status = 'pending' ORDER BY id LIMIT 1)"
FAILED_JOB = "(SELECT id FROM {job} WHERE status = 'failed' ORDER BY id LIMIT 1)"
ENTRY = "(job_id, at, source, target, event, attempt, token, lease_id)"

BREAKS = [
    (
        "every move in the ledger is legal",
        f"UPDATE {{transition}} SET event = 'retried' WHERE job_id = {HELD_JOB}"
        " AND event = 'claimed'",
    ),
    (
        "every move in the ledger is legal",
        f"UPDATE {{transition}} SET target = 'completed' WHERE job_id = {FAILED_JOB}"
        " AND event = 'failed'",
    ),
    (
        "every move in the ledger is legal",
        f"UPDATE {{transition}} SET event = 'claimed' WHERE job_id = {PENDING_JOB}"
        " AND event = 'enqueued'",
    ),
    (
        "each entry starts where the one before it ended",
        f"DELETE FROM {{transition}} WHERE job_id = {SETTLED_JOB} AND event = 'claimed'",
    ),
    (
        "each entry starts where the one before it ended",
        f"DELETE FROM {{transition}} WHERE job_id = {SETTLED_JOB} AND event = 'enqueued'",
    ),
    (
        "the ledger ends in the job's status",
        "UPDATE {job} SET status = 'completed', finished_at = {now} WHERE id = " + PENDING_JOB,
    ),
    (
        "the ledger ends in the job's status",
        "UPDATE {job} SET status = 'completed', last_error = NULL WHERE id = " + FAILED_JOB,
    ),
    (
        "the ledger ends in the job's status",
        f"DELETE FROM {{transition}} WHERE job_id = {SETTLED_JOB}",
    ),
    (
        "the ledger ends in the job's status",
        f"UPDATE {{job}} SET token = token + 1 WHERE id = {SETTLED_JOB}",
    ),
    (
        "a claim raises the token by one and nothing else moves it",
        f"UPDATE {{transition}} SET token = 0 WHERE job_id = {HELD_JOB} AND event = 'claimed'",
    ),
    (
        "a claim raises the token by one and nothing else moves it",
        f"UPDATE {{transition}} SET token = 7 WHERE job_id = {SETTLED_JOB}"
        " AND event IN ('claimed', 'completed')",
    ),
    (
        "attempts are the claims that were not handed back",
        f"UPDATE {{job}} SET attempts = 0 WHERE id = {SETTLED_JOB}",
    ),
    (
        "attempts are the claims that were not handed back",
        f"UPDATE {{job}} SET attempts = 2, max_retries = 9 WHERE id = {HELD_JOB}",
    ),
    (
        "no job ran more often than its limit",
        f"UPDATE {{job}} SET attempts = 5, max_retries = 4 WHERE id = {SETTLED_JOB}",
    ),
    (
        "no job ran more often than its limit",
        f"UPDATE {{job}} SET attempts = 3, max_retries = 3 WHERE id = {PENDING_JOB}",
    ),
    (
        "no job was handed back without end",
        f"UPDATE {{job}} SET token = attempts + 101 WHERE id = {SETTLED_JOB}",
    ),
    (
        "one outcome per lease",
        f"INSERT INTO {{transition}} {ENTRY} SELECT job_id, at, source, 'failed', 'failed',"
        f" attempt, token, lease_id FROM {{transition}} WHERE job_id = {SETTLED_JOB}"
        " AND event = 'completed'",
    ),
    (
        "every lease that ended was claimed",
        f"UPDATE {{transition}} SET lease_id = {{new_lease}} WHERE job_id = {SETTLED_JOB}"
        " AND event = 'completed'",
    ),
    (
        "every lease that ended was claimed",
        f"UPDATE {{transition}} SET lease_id = NULL WHERE job_id = {FAILED_JOB}"
        " AND event = 'claimed'",
    ),
    (
        "a lease is held if and only if the job is processing",
        f"UPDATE {{job}} SET lease_id = NULL WHERE id = {HELD_JOB}",
    ),
    (
        "a lease is held if and only if the job is processing",
        f"UPDATE {{job}} SET lease_expires_at = NULL WHERE id = {HELD_JOB}",
    ),
    (
        "a lease is held if and only if the job is processing",
        f"UPDATE {{job}} SET lease_id = {{new_lease}} WHERE id = {PENDING_JOB}",
    ),
    (
        "a job has an end time if and only if it is settled",
        f"UPDATE {{job}} SET finished_at = NULL WHERE id = {SETTLED_JOB}",
    ),
    (
        "a job has an end time if and only if it is settled",
        f"UPDATE {{job}} SET finished_at = {{now}} WHERE id = {HELD_JOB}",
    ),
    ("no ledger without its job", f"DELETE FROM {{job}} WHERE id = {SETTLED_JOB}"),
]


def fill(desk: Desk) -> None:
    """A sound history with a job of every kind in it."""
    desk.report(completed(desk.take()), failed(desk.take(), retryable=False))
    desk.report(released(desk.take()))
    desk.claim()
    desk.clock.advance(LEASE_SECONDS)
    desk.store.sweep().result()
    desk.add(priority=-1)
    desk.claim()
    desk.add()


@pytest.mark.parametrize(("invariant", "statement"), BREAKS)
def test_it_finds_what_was_broken(unaudited_desk: Desk, invariant: str, statement: str) -> None:
    desk = unaudited_desk
    fill(desk)
    assert desk.store.read.violations(10) == []
    desk.raw.drop_triggers()
    desk.raw.drop_checks()
    desk.raw.run(statement)
    assert desk.raw.changed >= 1
    found = desk.store.read.violations(10)
    assert invariant in [name for name, _, _ in found]
    jobs = {entry.job_id for entry in desk.ledger()}
    jobs |= {str(job_id) for (job_id,) in desk.raw.run("SELECT id FROM {job}")}
    assert all(job_id in jobs and what for _, job_id, what in found)


def test_there_is_a_case_for_every_question() -> None:
    questions = audit.questions("job", "transition")
    assert questions.keys() == {invariant for invariant, _ in BREAKS}


def test_it_tells_no_more_than_asked_for(unaudited_desk: Desk) -> None:
    desk = unaudited_desk
    desk.add_all(*[new() for _ in range(20)])
    desk.raw.drop_triggers()
    desk.raw.drop_checks()
    desk.raw.run("UPDATE {job} SET finished_at = {now}")
    assert len(desk.store.read.violations(3)) == 3
    assert len(desk.store.read.violations(100)) == 20
