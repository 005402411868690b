"""A pause of a queue without limits: on PostgreSQL it waits for nobody and nobody waits for it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest

from tenure import Tenure
from tenure.rules.reports import Lease, Report
from tenure.store import Store, open_store
from tests.support.raw_sql import RawSql
from tests.support.store import RECORDED, claim_request, report_completed, report_snoozed
from tests.support.waiting import wait_until

pytestmark = pytest.mark.postgres


def claim(store: Store, limit: int) -> list[Lease]:
    return list(store.exchange((), claim_request(limit)).result().leases)


def limited(lease: Lease, delay: float = 60) -> Report:
    return report_snoozed(lease, delay=delay, pause="queue")


def slots(app: Tenure) -> int:
    with psycopg.connect(app.database) as raw:
        ((found,),) = raw.execute("SELECT count(*) FROM tenure.slot").fetchall()
    return int(found)


def deadlocks_when_all_have_left(app: Tenure) -> int:
    """A session has counted its deadlocks once it has ended."""
    raw = RawSql(app.database)
    ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tenure'"
    ours += " AND datname = current_database() AND pid <> pg_backend_pid()"
    app.close()
    wait_until(lambda: raw.value(ours) == 0, "the sessions to end")
    found = raw.deadlocks()
    raw.close()
    return found


def test_it_does_not_wait_for_transactions_of_users(app: Tenure) -> None:
    """A lock on all jobs would wait for them, and everybody who adds a job behind it."""
    for _ in range(2):
        app.enqueue("ask", queue="llm")
    first, second = claim(app.core.store, 2)
    with psycopg.connect(app.database) as user:
        app.within(user).enqueue("pay")
        # What waits for that waits as long as this block lasts.
        assert app.core.store.exchange([limited(first)], None).result().verdicts == [RECORDED]
        app.core.store.update_stats()
        app.enqueue("pay")
        assert app.core.store.exchange([report_completed(second)], None).result().verdicts
    assert claim(app.core.store, 9) != []
    assert [job.queue for job in app.find(status="pending")] == ["llm"]


def test_two_at_once_do_not_wait_for_each_other(app: Tenure) -> None:
    with closing(open_store(app.database)) as other, ThreadPoolExecutor(2) as pool:
        for queue in map("q{}".format, range(20)):
            for _ in range(2):
                app.enqueue("ask", queue=queue)
            first, second = claim(app.core.store, 2)
            pairs = ((app.core.store, first, 60), (other, second, 90))
            answers = [pool.submit(s.exchange, [limited(x, d)], None) for s, x, d in pairs]
            assert [a.result().result().verdicts for a in answers] == [[RECORDED], [RECORDED]]
    assert deadlocks_when_all_have_left(app) == 0


def test_a_limit_after_it_counts_what_runs(app: Tenure) -> None:
    for _ in range(3):
        app.enqueue("ask", queue="llm")
    first, *others = claim(app.core.store, 3)
    app.core.store.exchange([limited(first)], None).result()
    with psycopg.connect(app.database) as raw:
        assert raw.execute("SELECT setting FROM tenure.limit_change").fetchall() == []
    assert slots(app) == 0
    app.queues.limit("llm", max_running=2)
    assert slots(app) == 2
    app.queues.limit("llm", max_running=None)
    assert slots(app) == 0
    app.queues.limit("llm", max_running=2)
    reports = [report_completed(one) for one in others]
    assert app.core.store.exchange(reports, None).result().verdicts == [RECORDED] * 2
    assert slots(app) == 0


def test_verify_knows_that_a_paused_queue_has_no_slots(app: Tenure) -> None:
    for _ in range(2):
        app.enqueue("ask", queue="llm")
    first, _ = claim(app.core.store, 2)
    app.core.store.exchange([limited(first)], None).result()
    assert (slots(app), app.count(status="processing").jobs, app.verify()) == (0, 1, [])
