"""What operators read of jobs that a transaction of another program has locked."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

import psycopg
import pytest

from tenure import Tenure, Unique
from tenure.app.app import limited_to
from tenure.app.signals import by_token
from tenure.dashboard import jobs as selected
from tenure.errors import StoreUnavailable
from tenure.rules.dependencies import FEW
from tenure.rules.explain import Facts, LockHolder, explain
from tenure.rules.reports import Answer, ClaimRequest, Exchange, Outcome, Report
from tenure.rules.search import Filter
from tenure.rules.signals import new_token, token_digest
from tenure.rules.steps import KeepToken
from tenure.store import work
from tenure.store.commit import MAX_TRIES
from tenure.store.postgres import doctor, reader, session
from tenure.store.postgres.writer import Postgres
from tenure.store.tables import signals
from tenure.store.work import CallWork, EnqueueWork, ExchangeWork, Work
from tenure.values.findings import Check, CheckResult
from tests.support.cli import run_cli
from tests.support.clock import Clock
from tests.support.http import api_client, claim_jobs, post_form, report
from tests.support.store import LEASE_SECONDS, claim_request, new_job
from tests.unit.postgres.connections import Connection

LOCK_JOBS = "SELECT FROM tenure.job FOR UPDATE"
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def with_option(url: str, option: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{option}"


@pytest.fixture
def role_url(url: str, raw: Connection) -> Iterator[str]:
    """The URL for a role that uses the tables, and may not look into sessions of others."""
    role = f"tenure_{uuid.uuid4().hex}"
    try:
        raw.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'guest'".encode())
    except psycopg.errors.InsufficientPrivilege as error:
        pytest.skip(f"the server of TENURE_TEST_DATABASE_URL: {error}")
    raw.execute(f"GRANT USAGE ON SCHEMA tenure TO {role}".encode())
    raw.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA tenure TO {role}".encode())
    yield with_option(url, f"user={role}&password=guest")
    raw.execute("ROLLBACK")
    raw.execute(f"DROP OWNED BY {role}".encode())
    raw.execute(f"DROP ROLE {role}".encode())


@pytest.fixture
def locked_job(url: str, raw: Connection) -> str:
    """A job that is due, locked by the session `raw`."""
    with Tenure(url) as app:
        id = app.enqueue("mail").id
    raw.execute("BEGIN")
    raw.execute(LOCK_JOBS)
    return id


def lock(raw: Connection, job_id: str) -> None:
    """Lock a job in a transaction that does not end."""
    raw.execute("BEGIN")
    raw.execute(f"SELECT FROM tenure.job WHERE id = '{job_id}' FOR UPDATE".encode())


def exchange(app: Tenure, reports: list[Report], claim: ClaimRequest | None = None) -> Exchange:
    """Do an exchange on this thread, in a session that no other thread has."""
    asked = ExchangeWork(reports, claim)
    commit(app, [asked])
    return asked.future.result()


def commit(app: Tenure, batch: list[Work]) -> None:
    """Do work in one transaction, as a thread of the store that has just connected."""
    db = Postgres(app.database)
    try:
        app.core.store._committer.commit(db, batch)
    finally:
        db.close()


# --- errors of calls that wait for it


def test_a_call_that_waited_for_a_lock_says_where_to_look_and_quotes_no_function(
    url: str, locked_job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It quoted the CONTEXT of PostgreSQL: a function's name and line, and its statement."""
    monkeypatch.setattr(session, "BEGIN", session.BEGIN.replace("'10s'", "'20ms'"))
    with Tenure(url) as app:
        for change in (app.cancel, lambda id: app.amend(id, priority=1)):
            with pytest.raises(StoreUnavailable) as caught:
                change(locked_job)
            said = str(caught.value)
            assert said.startswith("another transaction has locked what this has to change")
            assert "`tenure doctor` lists the transactions" in said
            assert "`tenure explain ID`" in said
            assert "CONTEXT" not in said
            assert "PL/pgSQL" not in said
            assert caught.value._known.startswith("another transaction")
            assert "tenure" not in caught.value._known  # who calls over HTTP has no such command


def test_a_command_goes_on_with_other_jobs_where_one_is_locked(
    url: str, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended there: the jobs after it stayed, and its message did not say which job it was."""
    monkeypatch.setattr(session, "BEGIN", session.BEGIN.replace("'10s'", "'20ms'"))
    with Tenure(url) as app:
        jobs = [app.enqueue("mail").id for _ in range(3)]
    lock(raw, jobs[1])
    result = run_cli("jobs", "cancel", *jobs, "--database", url)
    assert result.stdout.splitlines() == [f"{jobs[0]}  cancelled", f"{jobs[2]}  cancelled"]
    assert f"Error: {jobs[1]}: another transaction has locked" in result.stderr
    assert result.exit_code == 4


def test_a_link_waits_for_a_locked_job_once(
    url: str, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited four times, 40 s: the call did not say which job it is about."""
    monkeypatch.setattr(session, "BEGIN", session.BEGIN.replace("'10s'", "'20ms'"))
    failures: list[Exception] = []
    trouble = Postgres.trouble
    monkeypatch.setattr(Postgres, "trouble", lambda db, e: (failures.append(e), trouble(db, e))[1])
    with Tenure(url) as app:
        app.enqueue("mail")
        (lease,) = app.core.claim(claim_request(1)).leases
        token = new_token()
        kept = KeepToken(str(token_digest(token)), "approved", None, None)
        keep = partial(signals.keep_token, job_id=lease.id, lease_id=lease.lease_id, token=kept)
        app.core.store.write("signal", keep).result()
        lock(raw, lease.id)
        with pytest.raises(StoreUnavailable, match="has locked"):
            by_token(app.core, token, None)
        assert len(failures) == 1
        raw.execute("ROLLBACK")
        assert by_token(app.core, token, None).job_id == lease.id


@pytest.mark.parametrize("call", ["cancel", "retry"])
def test_a_call_waits_for_a_locked_job_once(
    url: str, locked_job: str, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """It waited four times, 40 s, and `jobs cancel` and `jobs retry` for each of their ids."""
    monkeypatch.setattr(session, "BEGIN", session.BEGIN.replace("'10s'", "'20ms'"))
    waits: list[None] = []
    lock = Postgres.lock
    monkeypatch.setattr(Postgres, "lock", lambda db, ids: (waits.append(None), lock(db, ids))[1])
    with Tenure(url) as app, pytest.raises(StoreUnavailable, match="has locked"):
        getattr(app, call)(locked_job)
    assert len(waits) == 1


def test_a_locked_job_keeps_no_bulk_action_from_the_others(
    url: str, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its whole batch failed, again and again, for as long as the lock was held."""
    monkeypatch.setattr(session, "BEGIN", session.BEGIN.replace("'10s'", "'20ms'"))
    with Tenure(url) as app:
        locked, *others = [app.enqueue("mail").id for _ in range(3)]
        bulk = app.bulk.start("cancel", Filter(type="mail"))
        lock(raw, locked)
        bulk = app.bulk.step(bulk.id)
        assert (bulk.changed, bulk.refused) == (2, 1)
        assert bulk.finished_at is not None
        assert {app.get(id).status for id in others} == {"cancelled"}
        assert app.get(locked).status == "pending"


def test_an_action_on_selected_jobs_names_the_locked_one_and_changes_the_others(
    url: str, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was answered 503 at the first locked job, and those after it stayed."""
    monkeypatch.setattr(session, "BEGIN", session.BEGIN.replace("'10s'", "'20ms'"))
    with Tenure(url) as app, api_client(app) as web:
        jobs = [app.enqueue("mail").id for _ in range(3)]
        lock(raw, jobs[1])
        form = {"action": "cancel", "id": jobs, "back": "/ui/jobs"}
        assert post_form(web, "/ui/jobs", form).status_code == 303
        said = f"2 jobs cancelled. Another transaction has locked {jobs[1]}."
        assert said in web.get("/ui/jobs").text
        monkeypatch.setattr(selected, "MAX_LOCKED", 1)
        post_form(web, "/ui/jobs", {**form, "id": [jobs[1], jobs[0]]})
        assert f"has locked {jobs[1]}. 1 job not tried." in web.get("/ui/jobs").text


def test_a_locked_job_fails_no_other_work_of_its_transaction(
    url: str, locked_job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers that have nothing to do with it were refused as well, after four waits."""
    monkeypatch.setattr(session, "BEGIN", session.BEGIN.replace("'10s'", "'20ms'"))
    with Tenure(url) as app:
        app.count()
        before, after = (EnqueueWork([new_job()]) for _ in range(2))
        locked = CallWork("cancel", lambda db: db.lock([locked_job]), job_ids=[locked_job])
        commit(app, [before, locked, after])
        assert before.future.result()[0].created
        assert after.future.result()[0].created
        with pytest.raises(StoreUnavailable, match="another transaction has locked"):
            locked.future.result()


def test_a_locked_job_holds_up_no_report_on_another_one(
    url: str, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every outcome of its worker was recorded once that lock ended, here never."""
    monkeypatch.setattr(session, "BEGIN", session.BEGIN.replace("'10s'", "'20ms'"))
    with Tenure(url) as app:
        locked, *others = [app.enqueue("mail").id for _ in range(4)]

        def answers(*outcomes: tuple[str, Outcome]) -> list[Answer]:
            reports = [Report(id, leases[id], outcome) for id, outcome in outcomes]
            return [verdict.answer for verdict in exchange(app, reports).verdicts]

        leases = {one.id: one.lease_id for one in exchange(app, [], claim_request(4)).leases}
        begins: list[None] = []
        begin = Postgres.begin
        monkeypatch.setattr(
            Postgres, "begin", lambda db, **limits: (begins.append(None), begin(db, **limits))[1]
        )
        lock(raw, locked)
        done, failed = Outcome.COMPLETED, Outcome.FAILED
        assert answers((others[0], failed), (locked, failed)) == [Answer.RECORDED, Answer.BUSY]
        begins.clear()
        assert answers((locked, done), (others[1], done)) == [Answer.BUSY, Answer.RECORDED]
        assert answers((others[2], failed), (locked, failed)) == [Answer.RECORDED, Answer.BUSY]
        assert len(begins) == 1 + 2, "two looks at the lock that is known, and one transaction"
        raw.execute("ROLLBACK")
        assert answers((locked, done)) == [Answer.RECORDED]
        assert app.get(locked).status == "completed"
        assert app.core.store._committer._locked._ids == set()
        assert app.verify() == []


@pytest.mark.parametrize(
    ("locked", "count"), [("gate", FEW + 1), ("job WHERE need > 0", FEW)], ids=["gate", "job"]
)
def test_a_lock_on_what_waits_for_a_job_holds_up_no_report_on_another_one(
    url: str, raw: Connection, monkeypatch: pytest.MonkeyPatch, locked: str, count: int
) -> None:
    """All reports of the worker failed with that one, for as long as the lock was held."""
    monkeypatch.setattr(session, "BEGIN", session.BEGIN.replace("'10s'", "'20ms'"))
    with Tenure(url) as app:
        other, *parents = (app.enqueue("mail") for _ in range(count + 1))
        child = app.enqueue("sum", depends_on=[parent.settled for parent in parents])
        leases = {
            one.id: one.lease_id for one in exchange(app, [], claim_request(count + 1)).leases
        }
        in_transaction(raw, f"SELECT FROM tenure.{locked} FOR UPDATE")
        ids, final = (parents[0].id, other.id, parents[1].id), Outcome.FAILED
        reports = [Report(id, leases[id], final, retryable=False) for id in ids]
        answers = [verdict.answer for verdict in exchange(app, reports).verdicts]
        assert answers == [Answer.BUSY, Answer.RECORDED, Answer.BUSY]
        raw.execute("ROLLBACK")
        answers = [verdict.answer for verdict in exchange(app, reports).verdicts]
        assert answers == [Answer.RECORDED, Answer.ALREADY_RECORDED, Answer.RECORDED]
        assert app.get(child.id).status == "waiting"
        assert app.core.store._committer._locked._ids == set()
        assert app.verify() == []


@pytest.mark.parametrize("table", ["slot", "line", "unique_key"])
def test_a_lock_on_a_row_beside_a_job_holds_up_no_report_on_another_one(
    url: str, raw: Connection, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    """All outcomes of the worker failed with that one, each after four waits."""
    monkeypatch.setattr(session, "BEGIN", session.BEGIN.replace("'10s'", "'20ms'"))
    with Tenure(url) as app:
        app.queues.limit("sync", max_running=5, ordered="pass")
        locked = app.enqueue("sum", queue="sync", unique=Unique())
        other = app.enqueue("mail")
        leases = {one.id: one.lease_id for one in exchange(app, [], claim_request(2)).leases}
        in_transaction(raw, f"SELECT FROM tenure.{table} FOR UPDATE")
        assert raw.execute(f"SELECT count(*) FROM tenure.{table}".encode()).fetchall() == [(1,)]
        final = Outcome.FAILED
        reports = [
            Report(one.id, leases[one.id], final, retryable=False) for one in (locked, other)
        ]
        answers = [verdict.answer for verdict in exchange(app, reports).verdicts]
        assert answers == [Answer.BUSY, Answer.RECORDED]
        raw.execute("ROLLBACK")
        answers = [verdict.answer for verdict in exchange(app, reports).verdicts]
        assert answers == [Answer.RECORDED, Answer.ALREADY_RECORDED]
        assert app.core.store._committer._locked._ids == set()
        assert app.verify() == []


def test_the_locks_of_known_jobs_are_looked_at_after_the_session_was_lost(
    url: str, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look did not connect, so each try failed, also after the lock was gone."""
    monkeypatch.setattr(session, "BEGIN", session.BEGIN.replace("'10s'", "'20ms'"))
    with Tenure(url) as app:
        app.enqueue("mail")
        (lease,) = exchange(app, [], claim_request(1)).leases
        lock(raw, lease.id)
        for end, answer in ((None, Answer.BUSY), ("ROLLBACK", Answer.RECORDED)):
            if end:
                raw.execute(end.encode())
            reports = [Report(lease.id, lease.lease_id, Outcome.COMPLETED)]
            assert [verdict.answer for verdict in exchange(app, reports).verdicts] == [answer]


def test_a_locked_table_is_waited_for_where_a_job_was_locked_before(
    url: str, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look at the job had no limit of time: it waited for the table until that was free."""
    monkeypatch.setattr(session, "BEGIN", session.BEGIN.replace("'10s'", "'20ms'"))
    monkeypatch.setattr(session, "ANSWER_SECONDS", 5.0)
    with Tenure(url) as app:
        app.enqueue("mail")
        (lease,) = exchange(app, [], claim_request(1)).leases
        raw.execute("BEGIN")
        raw.execute("LOCK tenure.job IN EXCLUSIVE MODE")
        with pytest.raises(StoreUnavailable, match="another transaction has locked"):
            exchange(app, [Report(lease.id, lease.lease_id, Outcome.FAILED)])


def test_a_lease_that_ran_out_behind_a_lock_is_left_to_its_worker_for_a_moment(
    url: str, raw: Connection
) -> None:
    """A sweep came before the report, which is sent again each second, so the job ran again."""
    with Tenure(url) as app:
        app.open()
        clock = Clock(url)
        jobs = [app.enqueue("mail", max_retries=1).id for _ in range(2)]
        leases = {one.id: one.lease_id for one in app.core.claim(claim_request(2)).leases}
        lock(raw, jobs[0])
        clock.advance(LEASE_SECONDS + 5)
        assert [steps[-1].id for steps in app.core.sweep()] == [jobs[1]]
        raw.execute("ROLLBACK")
        assert app.core.sweep() == []
        clock.advance(1)
        assert app.core.sweep() == []
        report = Report(jobs[0], leases[jobs[0]], Outcome.COMPLETED)
        (verdict,) = app.core.exchange([report], None).result().verdicts
        assert verdict.answer == Answer.RECORDED
        clock.close()
        assert app.verify() == []


def test_a_lease_behind_a_lock_ends_if_its_worker_stays_silent(url: str, raw: Connection) -> None:
    with Tenure(url) as app:
        app.open()
        clock = Clock(url)
        id = app.enqueue("mail").id
        app.core.claim(claim_request(1))
        lock(raw, id)
        clock.advance(LEASE_SECONDS + 5)
        raw.execute("ROLLBACK")
        assert app.core.sweep() == []
        clock.advance(4)
        assert [steps[-1].id for steps in app.core.sweep()] == [id]
        clock.close()


def test_who_locks_a_job_again_keeps_the_sweep_from_its_lease_once(
    url: str, raw: Connection
) -> None:
    """Each lock gave the lease of a dead worker three seconds more, so it never ended."""
    with Tenure(url) as app:
        app.open()
        clock = Clock(url)
        id = app.enqueue("mail").id
        app.core.claim(claim_request(1))
        clock.advance(LEASE_SECONDS)
        for ended in ([], [id]):
            lock(raw, id)
            clock.advance(6)
            raw.execute("ROLLBACK")
            assert [steps[-1].id for steps in app.core.sweep()] == ended
        clock.close()


def test_who_reports_over_http_is_asked_to_send_it_again(
    url: str, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was answered 503 after 40 s, with every other report of the request."""
    monkeypatch.setattr(session, "BEGIN", session.BEGIN.replace("'10s'", "'20ms'"))
    with Tenure(url) as app, api_client(app) as api:
        locked, other = (app.enqueue("mail") for _ in range(2))
        (lease, another) = claim_jobs(api, 2)
        assert lease["id"] == locked.id
        lock(raw, locked.id)
        assert report(api, lease, "failed", error="no answer") == "busy"
        assert report(api, another, "completed") == "recorded"
        raw.execute("ROLLBACK")
        assert report(api, lease, "failed", error="no answer") == "recorded"
        assert app.get(other.id).status == "completed"


def test_a_locked_table_does_not_keep_each_work_of_a_transaction_by_itself(
    url: str, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of a thousand waited for half a minute, one after the other."""
    monkeypatch.setattr(session, "BEGIN", session.BEGIN.replace("'10s'", "'20ms'"))
    with Tenure(url) as app:
        id = app.enqueue("mail").id
        committer = app.core.store._committer
        begins: list[None] = []
        (db, *_) = committer._databases
        begin = db.begin
        monkeypatch.setattr(db, "begin", lambda **limits: (begins.append(None), begin(**limits)))
        raw.execute("BEGIN")
        raw.execute("LOCK tenure.job IN EXCLUSIVE MODE")
        works = [CallWork("cancel", lambda db: db.lock([id])) for _ in range(10)]
        committer.commit(db, works)
        assert {type(work.future.exception()) for work in works} == {StoreUnavailable}
        assert len(begins) <= 2 * MAX_TRIES


def test_a_statement_that_took_too_long_may_have_waited_for_a_lock(
    url: str, locked_job: str
) -> None:
    """A role may allow less time for a statement than a lock is waited for."""
    impatient = Tenure(with_option(url, "options=-c%20statement_timeout%3D50"))
    with impatient as app, pytest.raises(StoreUnavailable) as caught:
        app.cancel(locked_job)
    said = str(caught.value)
    assert said.startswith("the database failed: canceling statement due to statement timeout. ")
    assert "`tenure doctor` lists the transactions" in said
    assert "CONTEXT" not in said
    assert caught.value._known == ""  # whether it was written is not known


# --- doctor


def transactions(url: str) -> Check:
    return next(check for check in Tenure(url).check() if check.name == "transactions")


def test_a_transaction_that_has_jobs_locked_for_long_is_named(
    url: str, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert transactions(url).health is CheckResult.OK
    raw.execute("SET application_name = 'repair'")
    beside = [f"SELECT FROM tenure.{name} FOR UPDATE" for name in reader.BESIDE]
    for uses in (LOCK_JOBS, "UPDATE tenure.job SET priority = priority WHERE false", *beside):
        raw.execute("BEGIN")
        raw.execute(uses.encode())
        assert transactions(url).health is CheckResult.OK, "it is open for less than 10 s"
        with monkeypatch.context() as patched:
            patched.setattr(doctor, "USE_SECONDS", 0.0)
            check = transactions(url)
        raw.execute("ROLLBACK")
        pid = raw.info.backend_pid
        assert check.health is CheckResult.WARNING
        assert check.found == "1 transaction may have had jobs locked for long"
        assert f"session {pid} of " in check.advice
        assert "(repair), idle in transaction since 20" in check.advice
        assert check.advice.endswith(f", end it with SELECT pg_terminate_backend({pid})")


def test_who_only_reads_or_uses_other_tables_locks_no_job(
    url: str, raw: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "USE_SECONDS", 0.0)
    raw.execute("BEGIN")
    raw.execute("SELECT FROM tenure.job")
    raw.execute("SELECT FROM tenure.queue FOR UPDATE")
    assert transactions(url).health is CheckResult.OK


def test_a_session_that_the_role_may_not_look_into_is_named_if_it_stays(
    url: str, raw: Connection, role_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The role of an application is not to read when the transactions of others began."""
    monkeypatch.setattr(doctor, "LOCK_SECONDS", 0.2)
    raw.execute("BEGIN")
    raw.execute(LOCK_JOBS)
    check = transactions(role_url)
    assert f"session {raw.info.backend_pid} of " in check.advice
    assert ", of which this role may see no more, end it with SELECT" in check.advice

    def another(_: float) -> None:
        for statement in ("END", "BEGIN", LOCK_JOBS):
            raw.execute(statement.encode())

    monkeypatch.setattr(doctor.time, "sleep", another)
    assert transactions(role_url).health is CheckResult.OK, "another one each time"


def test_no_more_than_three_transactions_are_named() -> None:
    one = LockHolder(pid=7, user="u" * 200, name="\x1b[2J", state=None, since=NOON)
    check = doctor.transactions([one] * 5)
    assert check.advice.count("session 7 of ") == 3
    assert check.advice.endswith("; and 2 more")
    assert f"of {'u' * 64}… (\\x1b[2J), open since 2026-01-31 12:00:00 UTC, end" in check.advice
    prepared = LockHolder(pid=None, user="u", name="it's", state=None, since=NOON)
    assert str(prepared) == "the prepared transaction it's of u, open since 2026-01-31 12:00:00 UTC"
    assert prepared.end == "ROLLBACK PREPARED 'it''s'"


# --- explain


@pytest.fixture
def app(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tenure]:
    """An application that counts each transaction, however short."""
    monkeypatch.setattr(reader, "SHORT_SECONDS", 0.0)
    with Tenure(url) as app:
        yield app


@pytest.fixture
def foreign(url: str) -> Iterator[Connection]:
    """Another session that locks rows."""
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def look_for_work(app: Tenure) -> None:
    """Ask for a job, as a worker does that is alive."""
    assert app.core.claim(claim_request(10)).leases == []


def in_transaction(session: Connection, *statements: str) -> None:
    for statement in ("BEGIN", *statements):
        session.execute(statement.encode())


ONE_LOCK = {
    "for update": (LOCK_JOBS,),
    "for share": ("SELECT FROM tenure.job FOR SHARE",),
    "update": ("UPDATE tenure.job SET priority = 5",),
    "savepoint": ("SAVEPOINT one", LOCK_JOBS),
}


@pytest.mark.parametrize("kind", ONE_LOCK)
def test_a_due_job_that_a_transaction_has_locked_is_explained_by_it(
    app: Tenure, foreign: Connection, raw: Connection, kind: str
) -> None:
    """It was said to be next, for as long as the transaction was open."""
    id = app.enqueue("mail").id
    in_transaction(
        raw, "SELECT FROM tenure.queue FOR UPDATE", "UPDATE tenure.job SET priority = 1 WHERE false"
    )
    in_transaction(foreign, *ONE_LOCK[kind])
    look_for_work(app)
    told, pid = app.explain(id), foreign.info.backend_pid
    assert told.reason == "locked"
    assert told.text.startswith(
        "Another transaction has it locked, so no worker or sweep takes it, and changes of it wait:"
        f" session {pid} of "
    )
    assert ", idle in transaction since 20" in told.text
    assert told.text.endswith(f" UTC, end it with SELECT pg_terminate_backend({pid}).")
    assert "cancelled" in told.legal_events
    assert str(raw.info.backend_pid) not in told.text
    foreign.execute("ROLLBACK")
    assert app.explain(id).reason == "next"


def test_several_transactions_that_share_a_job_are_named(
    app: Tenure, foreign: Connection, raw: Connection
) -> None:
    id = app.enqueue("mail").id
    for session_of in (foreign, raw):
        in_transaction(session_of, "SELECT FROM tenure.job FOR SHARE")
    look_for_work(app)
    told = app.explain(id)
    assert told.reason == "locked"
    for session_of in (foreign, raw):
        assert f"session {session_of.info.backend_pid} of " in told.text
    foreign.execute("COMMIT")
    told = app.explain(id)
    assert f"session {foreign.info.backend_pid} of " not in told.text
    assert f"session {raw.info.backend_pid} of " in told.text


def test_a_lock_of_a_savepoint_that_was_released_is_of_one_of_those_that_use_the_table(
    app: Tenure, foreign: Connection
) -> None:
    """As in nested blocks of Django. The number of the savepoint is that of no session then."""
    id = app.enqueue("mail").id
    in_transaction(foreign, "SAVEPOINT one", LOCK_JOBS, "RELEASE one")
    look_for_work(app)
    told = app.explain(id)
    assert told.reason == "locked"
    assert f"It is one of these: session {foreign.info.backend_pid} of " in told.text


def test_an_open_transaction_that_has_other_jobs_locked_explains_nothing(
    app: Tenure, foreign: Connection
) -> None:
    id = app.enqueue("mail").id
    in_transaction(foreign, "SELECT FROM tenure.job WHERE false FOR UPDATE")
    app.amend(id, priority=-1)  # its row has the number of a transaction that has ended
    foreign.execute("SELECT FROM tenure.job WHERE id <> %s FOR UPDATE", (id,))
    app.core.claim(claim_request(0))
    assert app.explain(id).reason == "next"


def test_short_transactions_and_other_reasons_are_no_lock(
    app: Tenure, foreign: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    id, later = app.enqueue("mail").id, app.enqueue("mail", delay="1h").id
    in_transaction(foreign, LOCK_JOBS)
    assert app.explain(id).reason == "no_worker"
    look_for_work(app)
    assert app.explain(later).reason == "not_due"
    assert app.explain(id).reason == "locked"
    monkeypatch.setattr(reader, "SHORT_SECONDS", 3600.0)
    assert app.explain(id).reason == "next"


def test_what_no_sweep_ends_and_what_others_go_before_is_explained_by_the_lock(
    app: Tenure, foreign: Connection
) -> None:
    """It was said that no process sweeps, while one passed over the job."""
    clock = Clock(app.database)
    first = app.enqueue("mail").id
    app.core.claim(claim_request(1))
    ids = [app.enqueue("mail").id for _ in range(2)]
    clock.advance(3600)
    late = app.enqueue("mail", start_by=clock.now + timedelta(seconds=1)).id
    clock.advance(3600)
    app.core.claim(claim_request(0, worker="w2"))
    reasons = {first: "lease_ran_out", late: "will_expire", ids[1]: "behind_others"}
    assert {id: app.explain(id).reason for id in reasons} == reasons
    in_transaction(foreign, LOCK_JOBS)
    assert {app.explain(id).reason for id in reasons} == {"locked"}
    clock.close()


def test_who_may_see_some_queues_only_reads_no_session(app: Tenure, foreign: Connection) -> None:
    id = app.enqueue("mail").id
    in_transaction(foreign, LOCK_JOBS)
    look_for_work(app)
    told = limited_to(app, ("default",)).explain(id)
    assert told.reason == "locked"
    assert told.text == (
        "Another transaction of the database has it locked: no worker or sweep takes it, and"
        " changes of it wait until that ends."
    )


def test_a_role_that_may_not_look_into_sessions_is_given_their_numbers(
    app: Tenure, role_url: str, foreign: Connection
) -> None:
    id = app.enqueue("mail").id
    in_transaction(foreign, LOCK_JOBS)
    look_for_work(app)
    with Tenure(role_url, migrate=False) as reading:
        told = reading.explain(id)
    assert told.reason == "locked"
    assert f"session {foreign.info.backend_pid} of " in told.text
    assert ", of which this role may see no more, end it with SELECT" in told.text


def test_a_role_that_may_not_look_at_locks_gets_the_rest(
    app: Tenure, role_url: str, foreign: Connection
) -> None:
    """It got StoreUnavailable."""
    look_for_work(app)
    id = app.enqueue("mail").id
    foreign.execute("REVOKE EXECUTE ON FUNCTION pg_get_multixact_members(xid) FROM PUBLIC")
    try:
        with Tenure(role_url, migrate=False) as reading:
            assert reading.explain(id).reason == "next"
    finally:
        foreign.execute("GRANT EXECUTE ON FUNCTION pg_get_multixact_members(xid) TO PUBLIC")


def test_a_prepared_transaction_is_named(app: Tenure) -> None:
    id = app.enqueue("mail").id
    holders = [LockHolder(pid=None, user="u", name="x-1", state=None, since=NOON)]
    job, now = app.get(id), app.core.clock()
    told = explain(
        job, Facts(now=now, queue=None, type=None, workers=[], ahead=0, rate=0.0, locked=holders)
    )
    assert told.text == (
        "Another transaction has it locked, so no worker or sweep takes it, and changes of it wait:"
        " the prepared transaction x-1 of u, open since 2026-01-31 12:00:00 UTC, end it with"
        " ROLLBACK PREPARED 'x-1'."
    )


def test_locked_jobs_whose_workers_have_ended_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(work, "MAX_LOCKED", 2)
    locked = work.LockedJobs()
    for id in "abcd":
        reported = ExchangeWork([Report(id, "lease", Outcome.FAILED)], None)
        assert locked.note([reported], psycopg.errors.LockNotAvailable())
    assert locked._ids == {"d"}
