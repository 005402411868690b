"""Operators who set limits, at the same time as others and beside workers: there is no deadlock.

PostgreSQL would end one, and the store repeat the transaction. So what is looked at here is what
the server counts, and which locks an operator holds while it waits for the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import psycopg
import pytest

from tenure import PerPartition, Tenure
from tenure.errors import LimitConflict
from tenure.rules.queues import Limits
from tests.support.raw_sql import RawSql
from tests.support.store import claim_request, report_failed
from tests.support.waiting import wait_until
from tests.unit.postgres.connections import Connection, in_thread

pytestmark = pytest.mark.postgres

OPERATORS = 3
ROUNDS = 5
DIVIDE = """INSERT INTO tenure.queue_limit (queue, max_running, partitioned) VALUES ('q', 5, true)
ON CONFLICT (queue) DO UPDATE SET partitioned = excluded.partitioned"""
BLOCKED = """SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock'"""

Act = Callable[[Tenure], object]


@pytest.fixture
def app(postgres_url: str) -> Iterator[Tenure]:
    with Tenure(postgres_url) as app:
        app.open()
        yield app
        assert app.verify() == []


@pytest.fixture
def raw(app: Tenure) -> Iterator[Connection]:
    with psycopg.connect(app.database, autocommit=True) as raw:
        yield raw


def wait_until_it_waits(app: Tenure) -> None:
    with psycopg.connect(app.database, autocommit=True) as watching:  # one transaction sees no news
        blocked = partial(watching.execute, BLOCKED)
        wait_until(lambda: blocked().fetchone() == (1,), "the operator to wait for a lock")


def in_plain_sql(app: Tenure) -> None:
    with psycopg.connect(app.database, autocommit=True) as operator:
        operator.execute(DIVIDE)


def limits_of(app: Tenure, queue: str) -> Limits | None:
    (found,) = [one for one in app.queues.list() if one.name == queue]
    return found.limits


def test_operators_who_set_and_remove_the_first_limits(app: Tenure) -> None:
    together = Barrier(OPERATORS)

    def operate(number: int) -> None:
        with Tenure(app.database) as mine:
            for _ in range(ROUNDS):
                together.wait(30)
                mine.queues.limit(f"q{number}", max_running=5)
                mine.queues.limit(f"q{number}", max_running=None)

    with ThreadPoolExecutor(OPERATORS) as pool:
        for operator in [pool.submit(operate, number) for number in range(OPERATORS)]:
            operator.result()
    raw = RawSql(app.database)
    ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tenure'"
    ours += " AND datname = current_database() AND pid <> pg_backend_pid()"
    app.close()
    wait_until(lambda: raw.value(ours) == 0, "the sessions to end, which then have counted")
    assert raw.deadlocks() == 0
    raw.close()


def test_an_operator_keeps_what_another_one_sets_meanwhile(app: Tenure, raw: Connection) -> None:
    raw.execute("BEGIN")
    raw.execute("INSERT INTO tenure.queue_limit (queue, max_running) VALUES ('q', 5)")
    operator = in_thread(lambda: app.queues.limit("q", rate="9/1s"))
    wait_until_it_waits(app)
    raw.execute("COMMIT")
    operator.join(30)
    assert limits_of(app, "q") == Limits(max_running=5, rate="9/1s", burst=1)


@pytest.mark.parametrize(
    "act",
    [
        lambda app: app.queues.limit("q", max_running=None),
        lambda app: app.queues.limit("q", per_partition=PerPartition()),
        in_plain_sql,
    ],
    ids=["removes", "divides", "divides in plain SQL"],
)
def test_who_waits_for_changes_of_jobs_keeps_nobody_waiting(
    app: Tenure, raw: Connection, act: Act
) -> None:
    """Else who changes a job, and then starts one, or pauses its queue, would wait for it."""
    app.queues.limit("q", max_running=5)
    raw.execute("BEGIN; LOCK TABLE tenure.job IN ROW EXCLUSIVE MODE")
    operator = in_thread(lambda: act(app))
    wait_until_it_waits(app)
    room = raw.execute("SELECT tenure.room('q', now())").fetchone()  # NULL if it had to wait
    raw.execute("COMMIT")
    operator.join(30)
    assert room == (5,)


@pytest.mark.parametrize(
    "act",
    [
        lambda app: app.queues.limit_partition("q", "a", weight=None),
        lambda app: app.queues.resume_partition("q", "a"),
        lambda app: app.queues.limit("q", max_running=6),
    ],
    ids=["weighs", "resumes", "limits"],
)
def test_who_waits_for_starts_keeps_nobody_waiting(app: Tenure, raw: Connection, act: Act) -> None:
    """Else who starts jobs would wait for it at the row of a rate."""
    app.queues.limit("q", max_running=5, per_partition=PerPartition(rate="9/1s"))
    app.queues.limit_partition("q", "a", weight=3)
    app.queues.pause_partition("q", "a")
    raw.execute("BEGIN")
    raw.execute("SELECT pg_advisory_xact_lock_shared(tenure.limit_lock())")
    operator = in_thread(lambda: act(app))
    wait_until_it_waits(app)
    try:
        raw.execute("SELECT FROM tenure.queue_limit FOR UPDATE NOWAIT")
        raw.execute("SELECT FROM tenure.partition_limit FOR UPDATE NOWAIT")
    finally:
        raw.execute("ROLLBACK")
        operator.join(30)


def test_limits_that_were_removed_meanwhile_are_set_with_no_job_changing(
    app: Tenure, raw: Connection
) -> None:
    """The row was there when it began: else a job that starts meanwhile could get no slot."""
    app.queues.limit("q", max_running=3)
    raw.execute("BEGIN")
    raw.execute("DELETE FROM tenure.queue_limit WHERE queue = 'q'")
    with psycopg.connect(app.database) as other:
        operator = in_thread(lambda: other.execute(DIVIDE))
        wait_until_it_waits(app)
        raw.execute("COMMIT")
        operator.join(30)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            raw.execute("BEGIN; LOCK TABLE tenure.job IN ROW EXCLUSIVE MODE NOWAIT")
        raw.execute("ROLLBACK")


@pytest.mark.parametrize(
    ("statement", "act"),
    [
        (
            "INSERT INTO tenure.partition_limit (queue, partition, paused_at)"
            " VALUES ('q', 'a', now())",
            lambda app: app.queues.limit("q", per_partition=None),
        ),
        (
            "UPDATE tenure.queue_limit SET partitioned = false",
            lambda app: app.queues.pause_partition("q", "a"),
        ),
    ],
    ids=["a pause comes first", "the end of turns comes first"],
)
def test_turns_end_and_a_partition_is_paused_at_once(
    app: Tenure, raw: Connection, statement: str, act: Act
) -> None:
    """Neither saw the other one."""
    app.queues.limit("q", max_running=3, per_partition=PerPartition())
    raw.execute("BEGIN")
    raw.execute(statement)
    with ThreadPoolExecutor(1) as pool:
        operator = pool.submit(act, app)
        wait_until_it_waits(app)
        raw.execute("COMMIT")
        with pytest.raises(LimitConflict):
            operator.result(30)


def test_plain_sql_that_changed_a_job_meets_an_operator(app: Tenure, raw: Connection) -> None:
    """It locks out of order, so PostgreSQL may end it. The operator notices nothing."""
    job = app.enqueue("t")
    raw.execute("BEGIN")
    raw.execute("SELECT FROM tenure.job WHERE id = %s FOR UPDATE", (job.id,))
    raw.execute("LOCK TABLE tenure.job IN ROW EXCLUSIVE MODE")  # as an UPDATE takes
    with ThreadPoolExecutor(1) as pool:
        operator = pool.submit(app.queues.limit, "q", max_running=5)
        wait_until_it_waits(app)
        try:
            raw.execute(DIVIDE)
            raw.execute("COMMIT")
        except psycopg.errors.DeadlockDetected:
            raw.execute("ROLLBACK")
        operator.result(30)
    limits = limits_of(app, "q")
    assert limits is not None
    assert limits.max_running == 5


@pytest.mark.parametrize("by", ["app", "sql"])
def test_a_failed_job_that_is_being_retried_is_not_passed_over(
    app: Tenure, raw: Connection, by: str
) -> None:
    """It left its line before the retry was committed, and was pending in no line."""
    app.queues.limit("q", ordered="halt")
    id = app.enqueue("mail", queue="q", max_retries=0).id
    app.core.report([report_failed(lease) for lease in app.core.claim(claim_request(1)).leases])
    delete = partial(raw.execute, "DELETE FROM tenure.line")
    pass_over = partial(app.queues.pass_over, "q", "")
    with ThreadPoolExecutor() as threads:
        with psycopg.connect(app.database) as retrying:
            app.within(retrying).retry(id)
            passing = threads.submit(pass_over if by == "app" else delete)
            wait_until_it_waits(app)
        if by == "app":
            assert passing.result() is None
        else:
            with pytest.raises(psycopg.DatabaseError, match="only a failed job"):
                passing.result()
