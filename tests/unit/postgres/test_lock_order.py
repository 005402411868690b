"""Transactions lock the jobs that they write in the order of the ids, before they write the first.

Each test lets another session hold the first job. The store must then wait for it without holding
the last one.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

import psycopg
import pytest

from tenure.events import Cancelled
from tenure.rules.reports import Lease, Report
from tenure.rules.search import Action, Counted, Filter
from tenure.rules.unique_keys import Unique, Uniqueness
from tenure.store import commit, transitions
from tenure.store.postgres.writer import Postgres
from tenure.store.tables import bulk
from tenure.store.work import CallWork, EnqueueWork, ExchangeWork, Work, parts
from tests.support.store import new_job, report_completed, report_failed
from tests.unit.postgres.connections import (
    Connection,
    add,
    committed,
    in_thread,
    take,
    wait_until_a_session_is_blocked,
)

HOLD = "SELECT FROM tenure.job WHERE id = %s FOR UPDATE"
BULK_ID = "01a2136a-f5a6-72ea-a3c2-bbf630af6602"


def cancelled(*leases: Lease) -> list[Work]:
    return [
        CallWork(
            "operator",
            lambda db, id=lease.id: transitions.apply(db, id, Cancelled()),
            job_ids=[lease.id],
        )
        for lease in leases
    ]


def reported(*reports: Report) -> ExchangeWork:
    return ExchangeWork(reports, None)


BATCHES: dict[str, Callable[[Lease, Lease], list[Work]]] = {
    "completions": lambda first, last: [
        reported(report_completed(last)),
        reported(report_completed(first)),
    ],
    "failures": lambda first, last: [reported(report_failed(last), report_failed(first))],
    "a completion and a failure": lambda first, last: [
        reported(report_completed(last), report_failed(first))
    ],
    "a failure and a completion": lambda first, last: [
        reported(report_failed(last), report_completed(first))
    ],
    "a report and an operator": lambda first, last: [
        *cancelled(first),
        reported(report_completed(last)),
    ],
    "two operators": lambda first, last: cancelled(last, first),
}


@pytest.mark.parametrize("batch", BATCHES)
def test_a_batch_locks_its_jobs_in_the_order_of_their_ids(
    url: str, db: Postgres, raw: Connection, batch: str
) -> None:
    first, last = take(db, 2)
    work = BATCHES[batch](first, last)
    committer = commit.Committer([db], lambda: None)
    with psycopg.connect(url) as holder:
        holder.execute(HOLD, (first.id,))
        thread = in_thread(lambda: committer.commit(db, work))
        wait_until_a_session_is_blocked(raw)
        raw.execute(f"{HOLD} NOWAIT", (last.id,))  # it can be had
    thread.join(30)
    assert all(one.future.done() for one in work)
    statuses = raw.execute("SELECT status FROM tenure.job WHERE status = 'processing'").fetchall()
    assert statuses == []


def test_a_bulk_action_locks_its_jobs_in_the_order_of_their_ids(
    url: str, db: Postgres, raw: Connection
) -> None:
    first, last = add(db, 2)
    with committed(db):
        bulk.start(
            db,
            id=BULK_ID,
            action=Action.CANCEL,
            filter=Filter(),
            more_retries=1,
            actor="operator",
            total=Counted(2, exact=True),
        )
    action = bulk.get(db, BULK_ID)
    assert action is not None

    def act() -> None:
        with committed(db):
            bulk.batch(db, action, [last, first], None)

    with psycopg.connect(url) as holder:
        holder.execute(HOLD, (first,))
        thread = in_thread(act)
        wait_until_a_session_is_blocked(raw)
        raw.execute(f"{HOLD} NOWAIT", (last,))
    thread.join(30)
    assert raw.execute("SELECT DISTINCT status FROM tenure.job").fetchall() == [("cancelled",)]


def test_late_reports_of_completion_lock_nothing(url: str, db: Postgres, raw: Connection) -> None:
    late, held = take(db, 2)
    with committed(db):
        db.complete([report_completed(late)])
    committer = commit.Committer([db], lambda: None)
    work = reported(report_completed(held), report_completed(late))
    with psycopg.connect(url) as holder:
        holder.execute(HOLD, (late.id,))
        committer.commit(db, [work])
    assert [verdict.answer for verdict in work.future.result(0).verdicts] == [
        "recorded",
        "already_recorded",
    ]


def test_requests_with_keys_do_not_wait_for_the_keys_of_each_other(url: str, db: Postgres) -> None:
    """Their keys come in no common order, so each request is a transaction alone."""
    committer = commit.Committer([db], lambda: None)
    gathered = Event()
    free, blocked = (
        EnqueueWork([new_job(idempotency_key=f"{letter}{n}") for n in range(2)]) for letter in "za"
    )
    with psycopg.connect(url) as holder:
        holder.execute(
            "INSERT INTO tenure.job (id, type, run_at, created_at, idempotency_key)"
            " VALUES (%s, 'mail', now(), now(), 'a0')",
            (BULK_ID,),
        )
        committer.submit(CallWork("operator", lambda db: gathered.wait(30), job_ids=()))
        committer.submit(free)
        committer.submit(blocked)
        gathered.set()
        assert len(free.future.result(10)) == 2
        assert not blocked.future.done()
        holder.rollback()
    assert len(blocked.future.result(30)) == 2
    committer.close()


def test_unique_jobs_of_one_request_each_have_a_transaction_together() -> None:
    """They lock keys and holders first, and nothing else locks in that order."""
    unique = Uniqueness("0" * 32, Unique())
    one, two = (EnqueueWork([new_job(unique=unique)]) for _ in range(2))
    many = EnqueueWork([new_job(), new_job(unique=unique)])
    plain, report = EnqueueWork([new_job()]), reported()
    batch: list[Work] = [one, plain, many, report, two]
    assert parts(Postgres("postgresql:///jobs"), batch) == [[plain, report], [one, two], [many]]
