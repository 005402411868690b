"""Jobs completed, or held, in the own transaction of a handler, on each kind of connection."""

from __future__ import annotations

import pytest
from psycopg.errors import SerializationFailure

from tenure import InvalidInput, JobContext, LeaseLost, PermanentFailure, Tenure
from tenure.app.within import LeaseFence
from tenure.rules.reports import Answer, ClaimRequest, Lease, Outcome, Report
from tenure.worker.child import context_of
from tenure.worker.note_writer import AttemptSource, NoteWriter
from tests.support.effects import effects, own_connection
from tests.support.lenders import Kind, Lender, lent
from tests.support.waiting import wait_until

pytest_plugins = ["tests.support.lent_app"]


@pytest.fixture
def app(app_for_kind: Tenure) -> Tenure:
    return app_for_kind


def claim(app: Tenure, lease_seconds: float = 60) -> Lease:
    request = ClaimRequest(worker="worker-1", limit=1, lease_seconds=lease_seconds)
    (lease,) = app.core.claim(request).leases
    return lease


def attempt(app: Tenure, lease: Lease) -> JobContext:
    fence = LeaseFence(lease, "worker-1", app.database)
    return context_of(lease, fence, AttemptSource(lease, NoteWriter(app.core)))


def ask(app: Tenure, lease: Lease) -> tuple[str, str]:
    """What the store says to a worker that asks whether the transaction was committed."""
    how = (None, "not committed", True, "worker-1", None, None, True)
    report = Report(lease.id, lease.lease_id, Outcome.FAILED, *how)
    (verdict,) = app.core.report([report]).verdicts
    return verdict.answer, verdict.recorded


def test_the_commit_decides_how_an_attempt_ends(app: Tenure, lender: Lender) -> None:
    for _ in range(2):
        app.enqueue("ship", max_retries=2, backoff=0)
    kept, undone = claim(app), claim(app)
    lender.begin()
    lender.fenced(attempt(app, kept), "complete", {"é": [1, None]})
    following = lender.call(app, "enqueue", "thank")
    lender.commit()
    job = app.get(kept.id)
    assert (job.status, job.result, job.actor) == ("completed", {"é": [1, None]}, "worker-1")
    assert app.get(following.id) == following
    assert ask(app, kept) == (Answer.CONFLICT, "completed")

    lender.begin()
    lender.fenced(attempt(app, undone), "complete")
    lender.rollback()
    assert app.get(undone.id).status == "processing"
    assert ask(app, undone) == (Answer.RECORDED, "")
    assert [entry.event for entry in app.history(undone.id)][-2:] == ["failed", "retried"]


def test_an_attempt_that_has_lost_its_lease_is_refused(
    app: Tenure, lender: Lender, subtests: pytest.Subtests
) -> None:
    """Also by the next attempt of the same job: the lease counts, not the job."""
    for verb in ["complete", "hold"]:
        with subtests.test(verb):
            app.enqueue("ship", max_retries=3, backoff=0)
            first = claim(app)
            app.core.report([Report(first.id, first.lease_id, Outcome.FAILED, error="no")])
            second = claim(app)
            before = app.get(first.id)
            lender.begin()
            with pytest.raises(LeaseLost):
                lender.fenced(attempt(app, first), verb)
            lender.rollback()
            assert app.get(first.id) == before
            lender.begin()
            lender.fenced(attempt(app, second), verb)
            lender.commit()
            app.cancel(second.id) if verb == "hold" else None
            lender.begin()
            with pytest.raises(LeaseLost):
                lender.fenced(attempt(app, second), verb)
            lender.rollback()


def test_a_job_is_completed_once(app: Tenure, lender: Lender) -> None:
    app.enqueue("ship")
    lease = claim(app)
    context = attempt(app, lease)
    lender.begin()
    lender.fenced(context, "complete", 1)
    lender.rollback()
    lender.begin()
    lender.fenced(context, "complete", 2)  # the transaction is repeated
    with pytest.raises(InvalidInput, match="already"):
        lender.fenced(context, "complete", 3)
    lender.commit()
    lender.begin()
    with pytest.raises(InvalidInput, match="already"):
        lender.fenced(context, "complete", 4)
    lender.rollback()
    assert app.get(lease.id).result == 2


def test_what_cannot_complete_a_job(app: Tenure, lender: Lender, kind: Kind) -> None:
    app.enqueue("ship")
    lease = claim(app)
    source = AttemptSource(lease, NoteWriter(app.core))
    remote = context_of(lease, LeaseFence(lease, "worker-1", None), source)
    plain = JobContext("", "ship", "default", 1, 10, token=1, deadline=None)
    for verb in ("complete", "hold"):
        with pytest.raises(PermanentFailure, match="over HTTP"):
            lender.fenced(remote, verb)
        lender.fenced(plain, verb)  # a handler that is called as a function
    with pytest.raises(PermanentFailure, match="over HTTP"), remote.transaction():
        pass
    with pytest.raises(InvalidInput, match="attempt of a worker"), plain.transaction():
        pass
    context = attempt(app, lease)
    if "sqlalchemy" in kind.name and not kind.is_async:
        lender.begin()
        with pytest.raises(InvalidInput, match="savepoint"), lender.connection.begin_nested():
            lender.fenced(context, "complete")
        lender.rollback()
    if kind.alone is not None:
        refused = pytest.raises(InvalidInput, match="in no transaction")
        with lent(kind, app.database, alone=True) as other, refused:
            other.fenced(context, "complete")
    assert app.get(lease.id).status == "processing"


def test_sql_holds_a_lease_too(database_url: str) -> None:
    """As programs in other languages do, with the token of the attempt."""
    with Tenure(database_url) as app, own_connection(database_url) as connection:
        is_sqlite = database_url.startswith("sqlite")
        hold = (
            "INSERT INTO tenure_hold (job, token) VALUES ('{}', {})"
            if is_sqlite
            else "SELECT tenure.hold('{}', {})"
        )
        app.enqueue("ship", backoff=0)
        lease = claim(app, lease_seconds=0.001)
        connection.execute("CREATE TABLE effect (job TEXT)")
        connection.commit()
        connection.execute(hold.format(lease.id, lease.token))
        if not is_sqlite:  # there, nobody could write at all
            assert app.core.sweep() == []
        connection.execute("INSERT INTO effect VALUES ('held')")
        connection.commit()
        wait_until(app.core.sweep, "the lease to run out")
        for runs_again in (False, True):
            newest = claim(app).token if runs_again else lease.token
            for token in (lease.token, newest + 1):
                connection.execute("INSERT INTO effect VALUES ('late')")
                with pytest.raises(Exception, match="tenure: lease_lost: ") as refused:
                    connection.execute(hold.format(lease.id, token))
                assert is_sqlite or refused.value.sqlstate == "TN005"  # type: ignore[attr-defined]
                connection.rollback()
        assert dict(effects(database_url)) == {"held": 1}


@pytest.mark.postgres
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_strict_isolation_level_wants_it_first(postgres_url: str, level: str) -> None:
    """A heartbeat changes the row: a snapshot from before it cannot complete the job any more."""
    with Tenure(postgres_url) as app, own_connection(postgres_url) as connection:
        app.enqueue("ship")
        lease = claim(app)
        context = attempt(app, lease)
        renewed = [(lease.id, lease.lease_id)]
        connection.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        connection.execute("SELECT 1 FROM pg_class LIMIT 1")
        assert app.core.heartbeat(renewed, 90) == {}
        with pytest.raises(SerializationFailure):
            context.complete(connection)
        connection.rollback()
        connection.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        context.complete(connection)
        assert app.core.heartbeat(renewed, 120) == {}  # it passes over the locked row
        connection.execute("SELECT 1 FROM pg_class LIMIT 1")
        connection.commit()
        assert app.get(lease.id).status == "completed"
