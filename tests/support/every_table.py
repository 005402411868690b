"""A database in which every table has rows, for what has to do with all of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tenure import PerPartition, Tenure, Unique
from tenure.app.bulk import run_batches
from tenure.rules.jobs import CheckedJob
from tenure.rules.reports import Lease
from tenure.rules.search import Filter
from tenure.rules.signals import new_token, token_digest
from tenure.rules.steps import JobProgress, KeepState, KeepToken, Record
from tenure.store.tables import tokens
from tenure.values.ids import new_id
from tests.support.store import claim_request, report_completed, report_failed, report_suspended

FAR = datetime(2999, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)


def fill(app: Tenure) -> list[Lease]:
    """Fill every table; return leases that are held."""

    @app.job(queue="mail", partition_by="to")
    def send(to: str) -> None: ...

    @app.job(backoff=0)
    def plain(number: int) -> None: ...

    per = PerPartition(max_running=1)
    app.queues.limit("mail", max_running=3, per_partition=per, ordered="halt")
    app.queues.limit_partition("mail", "a", weight=3)
    app.queues.limit("metered", rate="5/1h")
    app.queues.pause("elsewhere", reason="ßé\\'\"{s}%s")
    app.core.declare(app.core.handlers.options())
    for to in ("a", "a", "b"):
        send.options(tags=["red", to], idempotency_key=f"{to}-{new_id()}").enqueue(to)
    plain.options(unique=Unique(by="one"), delay="1h").enqueue(1)
    plain.options(unique=Unique(by="two", within="1h"), delay="1h").enqueue(2)
    plain.options(queue="metered").enqueue(21)
    _depend(app, plain)
    _administer(app, plain)
    return _work(app)


def _depend(app: Tenure, plain: Any) -> None:
    """Jobs that wait: for many, for a job with many followers, for one that will never complete."""
    many = app.enqueue_many([plain.options(delay="1h").new_job(n) for n in range(300)])
    plain.options(depends_on=many, start_by="1d").enqueue(5)
    root = plain.options(queue="root").enqueue(6)
    app.enqueue_many([plain.options(depends_on=[root]).new_job(n) for n in range(1_001)])
    doomed = plain.options(delay="1h").enqueue(8)
    plain.options(depends_on=[doomed]).enqueue(9)
    with app.workflow("import", key=f"w-{new_id()}") as flow:
        flow.add(plain.options(delay="1h").new_job(7))
    app.cancel(doomed.id, reason="never")
    _end(app, "root", report_completed)


def _administer(app: Tenure, plain: Any) -> None:
    """Tokens, webhooks, schedules, bulk actions, sessions, traces, statistics."""
    app.tokens.create("token", ["read"])
    app.webhooks.create("hook", "https://example.com", ["failed"])
    app.schedules.create("yearly", plain.new_job(1), cron="@yearly")
    app.schedules.trigger("yearly")
    app.retention.set(queue="mail", completed="7d")
    plain.options(queue="unwanted").enqueue(1)
    app.bulk.start("cancel", Filter(queue="unwanted"))
    while run_batches(app.core):
        pass
    store = app.core.store
    store.write("operator", lambda db: tokens.add_session(db, b"digest", b"token", FAR)).result()
    traced = CheckedJob(
        id=new_id(), type="plain", queue="traced", max_retries=1, traceparent="00-1-2-01"
    )
    store.add([traced]).result()
    _end(app, "traced", report_failed)
    while app.core.measure():
        pass


def _end(app: Tenure, queue: str, report: Any) -> None:
    store = app.core.store
    (lease,) = store.exchange((), claim_request(1, queues=(queue,))).result().leases
    store.exchange([report(lease)], None).result()


def _work(app: Tenure) -> list[Lease]:
    """Jobs that run, with all that their attempts keep, and one that waits for a signal."""
    store = app.core.store
    leases = list(store.exchange((), claim_request(4, queues=("mail", "default"))).result().leases)
    first, last = leases[0], leases[-1]
    digest = token_digest(new_token())
    assert digest
    for call in (
        Record("charge", 1, '"é"'),
        KeepState(1, "{}"),
        KeepToken(digest, "go", None, "Go"),
    ):
        store.ask(first.id, first.lease_id, call).result()
    store.record_progress([(first.id, first.lease_id, JobProgress(0.5, 1.0, "half", FAR))])
    app.signal(first.id, "go", {"n": 1}, key="once")
    store.exchange([report_suspended(last)], None).result()
    return leases[:-1]
