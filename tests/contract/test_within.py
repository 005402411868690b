"""Jobs in the caller's transaction: the same for each kind of connection, on both engines."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tenure import (
    IllegalTransition,
    InvalidInput,
    JobNotFound,
    KeyConflict,
    NewJob,
    QueueFull,
    RetryPolicy,
    Tenure,
    Unique,
)
from tenure.rules.jobs import TypeOptions
from tenure.rules.reports import ClaimRequest, Outcome, Report, Wait
from tenure.store import rows
from tests.support.lenders import DRIVERS, Kind, Lender, lent

pytest_plugins = ["tests.support.lent_app"]
NOWHERE = "0190163d-8694-739b-aea5-966c26f8ad90"
TEXT = "%s :x ? ' \\ é 😀 \x7f"


@pytest.fixture
def app(app_for_kind: Tenure) -> Tenure:
    return app_for_kind


def in_use(app: Tenure, job_id: str) -> bool:
    try:
        return bool(app.get(job_id))
    except JobNotFound:
        return False


def test_a_job_is_there_if_and_only_if_the_transaction_commits(app: Tenure, lender: Lender) -> None:
    """Also where SQLAlchemy begins late: the driver's connection is then in no transaction."""
    lender.begin()
    gone = lender.call(app, "enqueue", "mail")
    assert lender.call(app, "get", gone.id) == gone
    assert not in_use(app, gone.id)
    lender.rollback()
    assert not in_use(app, gone.id)
    lender.begin()
    lender.execute("CREATE TABLE orders (number INTEGER)")
    lender.execute("INSERT INTO orders VALUES (1)")
    kept = lender.call(app, "enqueue", "mail")
    lender.execute("SAVEPOINT mine")
    undone = lender.call(app, "enqueue", "mail")
    lender.execute("ROLLBACK TO SAVEPOINT mine")
    with pytest.raises(JobNotFound):
        lender.call(app, "get", undone.id)
    lender.commit()
    assert app.get(kept.id) == kept
    assert [job.id for job in app.find()] == [kept.id]
    (entry,) = app.history(kept.id)
    assert (entry.event, entry.actor) == ("enqueued", "application")


def test_what_is_added_is_what_is_read(app: Tenure, lender: Lender) -> None:
    lender.begin()
    job = lender.call(
        app,
        "enqueue",
        "mail",
        {"text": TEXT, "number": 1.5, "list": [None, True, -(2**63)]},
        queue="slow",
        priority=-3,
        max_retries=7,
        timeout=1.25,
        backoff=RetryPolicy(base=1.0),
        run_at=datetime(2090, 1, 2, 3, 4, 5, 678_000, UTC),
        idempotency_key="k",
        actor="ann",
    )
    later = lender.call(app, "enqueue", "mail", delay="1h")
    assert (later.run_at - later.created_at).total_seconds() == 3600
    assert lender.call(app, "enqueue_many", []) == []
    many = lender.call(app, "enqueue_many", [NewJob("bulk", {"n": n}, {}) for n in range(40)])
    assert [each.payload for each in many] == [{"n": n} for n in range(40)]
    child = lender.call(app, "enqueue", "sum", depends_on=[job, later.settled], needs="any")
    assert (child.status, child.need, child.spare) == ("waiting", 1, 1)
    with pytest.raises(JobNotFound):
        lender.call(app, "enqueue", "sum", depends_on=[NOWHERE])
    lender.commit()
    for each in (job, later, many[0], many[-1], child):
        assert app.get(each.id) == each
    assert app.history(job.id)[0].actor == "ann"


def test_options_of_a_type_count_in_the_queues_they_are_for(app: Tenure, lender: Lender) -> None:
    app.core.limited_to(("mail",)).declare({"send": TypeOptions(queue="mail", timeout=2.5)})
    lender.begin()
    usual, other = (
        lender.call(app, "enqueue", "send"),
        lender.call(app, "enqueue", "send", queue="billing"),
    )
    lender.commit()
    assert (usual.queue, usual.timeout) == ("mail", 2.5)
    assert (other.queue, other.timeout) == ("billing", None)


def test_a_signal_comes_if_and_only_if_the_transaction_commits(app: Tenure, lender: Lender) -> None:
    """Also to a job that waits: it is suspended until the commit, and runs after it."""
    job = app.enqueue("mail")
    request = ClaimRequest(worker="w", limit=1, lease_seconds=60)
    (lease,) = app.core.claim(request).leases
    wait = Wait("ok", 1)
    app.core.report([Report(job.id, lease.lease_id, Outcome.SUSPENDED, wait=wait)])
    lender.begin()
    lender.call(app, "signal", job.id, "ok", {"text": TEXT})
    lender.rollback()
    assert (app.get(job.id).status, app.signals.list(job.id)) == ("waiting", [])
    lender.begin()
    sent = lender.call(app, "signal", job, "ok", {"text": TEXT}, key="k", actor="ann")
    assert lender.call(app, "signal", job.id, "ok", {"text": TEXT}, key="k") == sent
    with pytest.raises(KeyConflict):
        lender.call(app, "signal", job.id, "ok", None, key="k")
    with pytest.raises(JobNotFound):
        lender.call(app, "signal", NOWHERE, "ok")
    lender.commit()
    assert app.signals.list(job.id) == [sent]
    assert (app.get(job.id).status, app.get(job.id).actor) == ("pending", "ann")
    assert app.core.claim(request).leases[0].id == job.id
    assert app.verify() == []


@pytest.mark.parametrize("kind", DRIVERS, indirect=True)
def test_ten_thousand_jobs_are_one_call(app: Tenure, lender: Lender) -> None:
    lender.begin()
    new_jobs = [NewJob("bulk", {"n": n, "text": TEXT}, {}) for n in range(10_000)]
    jobs = lender.call(app, "enqueue_many", new_jobs)
    with pytest.raises(InvalidInput, match=r"10,?000"):
        lender.call(app, "enqueue_many", [*new_jobs, new_jobs[0]])
    lender.commit()
    assert app.count(at_most=20_000).jobs == 10_000
    assert app.get(jobs[-1].id) == jobs[-1]


@pytest.mark.parametrize("most", [rows.MAX_SENT, 1])
def test_refusals_leave_the_transaction_usable(
    app: Tenure, lender: Lender, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Also if each job of a batch is sent alone, as those with large payloads are."""
    monkeypatch.setattr(rows, "MAX_SENT", most)
    app.queues.limit("small", max_pending=2)
    lender.begin()
    first = lender.call(app, "enqueue", "mail", {"n": 1}, idempotency_key="once")
    assert lender.call(app, "enqueue", "mail", {"n": 1}, idempotency_key="once") == first
    with pytest.raises(KeyConflict):
        lender.call(app, "enqueue", "mail", {"n": 2}, idempotency_key="once")
    keyed = [NewJob("mail", {"n": n}, {"idempotency_key": f"many-{n}"}) for n in (1, 2)]
    same = NewJob("mail", {"n": 1}, {"idempotency_key": "once"})
    one, two, three, four = lender.call(app, "enqueue_many", [keyed[0], same, keyed[1], keyed[0]])
    assert (two, four) == (first, one)
    assert three.id != one.id
    other = NewJob("mail", {"n": 5}, {"idempotency_key": "once"})
    with pytest.raises(KeyConflict):
        lender.call(app, "enqueue_many", [NewJob("mail", {}, {}), other])
    new = [NewJob("mail", {"n": n}, {"idempotency_key": "twice"}) for n in (1, 2)]
    with pytest.raises(KeyConflict):
        lender.call(app, "enqueue_many", new)
    with pytest.raises(QueueFull):
        lender.call(app, "enqueue_many", [NewJob("mail", {}, {"queue": "small"})] * 3)
    for _ in range(2):
        lender.call(app, "enqueue", "mail", queue="small")
    with pytest.raises(QueueFull):
        lender.call(app, "enqueue", "mail", queue="small")
    with pytest.raises(InvalidInput, match=r"\$\.queue"):
        lender.call(app, "enqueue", "mail", queue="no name")
    lender.commit()
    assert {job.id for job in app.find()} >= {first.id, one.id, three.id}
    assert app.count().jobs == 5
    lender.begin()
    assert lender.call(app, "enqueue", "mail", {"n": 1}, idempotency_key="once") == first
    lender.rollback()


def test_a_job_can_be_cancelled_in_the_transaction(app: Tenure, lender: Lender) -> None:
    job = app.enqueue("mail")
    lender.begin()
    cancelled = lender.call(app, "cancel", job.id, actor="ann")
    assert (cancelled.status, cancelled.actor) == ("cancelled", "ann")
    lender.rollback()
    assert app.get(job.id) == job
    lender.begin()
    lender.call(app, "cancel", job.id, reason="asked for")
    lender.commit()
    assert [(entry.event, entry.reason) for entry in app.history(job.id)] == [
        ("enqueued", None),
        ("cancelled", "asked for"),
    ]
    for verb in ("get", "cancel"):
        lender.begin()
        with pytest.raises(JobNotFound):
            lender.call(app, verb, "none")
        lender.rollback()


def test_a_failed_job_can_be_retried_in_the_transaction(app: Tenure, lender: Lender) -> None:
    job = app.enqueue("mail", max_retries=1)
    lender.begin()
    with pytest.raises(IllegalTransition):
        lender.call(app, "retry", job.id)
    lender.rollback()
    request = ClaimRequest(worker="w", limit=1, lease_seconds=60)
    (lease,) = app.core.claim(request).leases
    app.core.report([Report(lease.id, lease.lease_id, Outcome.FAILED, error="no")])
    lender.begin()
    retried = lender.call(app, "retry", job.id, more_retries=2, actor="ann", reason="try again")
    assert (retried.status, retried.max_retries, retried.actor) == ("pending", 3, "ann")
    lender.rollback()
    assert app.get(job.id).status == "failed"
    lender.begin()
    lender.call(app, "retry", job.id)
    lender.commit()
    assert (app.get(job.id).status, app.history(job.id)[-1].event) == ("pending", "retried")


def test_a_retry_that_a_unique_key_forbids_leaves_the_transaction_usable(
    app: Tenure, lender: Lender
) -> None:
    unique = Unique(())
    first = app.enqueue("mail", max_retries=1, unique=unique)
    (lease,) = app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=60)).leases
    app.core.report([Report(lease.id, lease.lease_id, Outcome.FAILED, error="no")])
    second = app.enqueue("mail", unique=unique)
    lender.begin()
    with pytest.raises(IllegalTransition, match="another job holds its unique key"):
        lender.call(app, "retry", first.id)
    lender.call(app, "cancel", second.id)
    assert lender.call(app, "retry", first.id).status == "pending"
    lender.commit()
    assert app.get(first.id).status == "pending"


def test_the_form_for_the_other_kind_names_the_right_one(app: Tenure, lender: Lender) -> None:
    right = "await enqueue_async" if lender.kind.is_async else "call enqueue"
    lender.begin()
    with pytest.raises(InvalidInput, match=right):
        lender.call_wrongly(app, "enqueue", "mail")
    right = "`async with`, or await chain_async" if lender.kind.is_async else "or call chain"
    with pytest.raises(InvalidInput, match=right):
        lender.call_wrongly(app, "chain", [NewJob("mail", {}, {})])
    lender.rollback()


def test_a_connection_that_commits_by_itself_is_refused(app: Tenure, kind: Kind) -> None:
    if kind.alone is None:
        pytest.skip("no connection of this kind commits by itself")
    refused = pytest.raises(InvalidInput, match="in no transaction")
    with lent(kind, app.database, alone=True) as lender, refused:
        lender.call(app, "enqueue", "mail")
    assert app.count().jobs == 0
