"""Signals: who waits gets each once, whatever comes first, and what ends a wait ends all of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import pytest

from tenure import NewJob, Tenure, lifecycle
from tenure.app.signals import by_token, of_token
from tenure.errors import (
    IllegalTransition,
    InvalidInput,
    JobNotFound,
    KeyConflict,
    LeaseLost,
    PayloadTooLarge,
    SignalTokenNotFound,
)
from tenure.events import Cancelled
from tenure.rules import signals as signal_rules
from tenure.rules.reports import Answer, ClaimRequest, Duty, Lease, Verdict
from tenure.rules.search import Filter
from tenure.rules.signals import NewSignal, TokenSignal, new_token, token_digest
from tenure.rules.steps import FindSignal, FoundSignal, KeepToken
from tenure.store import transitions
from tenure.store.borrowed.connections import opened
from tenure.store.database import Database
from tenure.store.tables import signals
from tests.support.clock import TICK
from tests.support.raw_sql import Refused
from tests.support.store import (
    ALREADY,
    RECORDED,
    StoreHarness,
    report_completed,
    report_failed,
    report_suspended,
)


@pytest.fixture
def app(harness: StoreHarness) -> Iterator[Tenure]:
    with Tenure(harness.url, actor="alice") as app:
        yield app


def suspended(harness: StoreHarness, *, within: float | None = None, **fields: Any) -> Lease:
    """A job that waits for the signal `approved`, for so many seconds."""
    lease = harness.take(**fields)
    end = None if within is None else harness.clock.now + timedelta(seconds=within)
    assert harness.report(report_suspended(lease, expires_at=end)) == [RECORDED]
    return lease


def waits(harness: StoreHarness) -> list[tuple[Any, ...]]:
    return harness.sql.run("SELECT name, number FROM {wait}")


def look(harness: StoreHarness) -> list[str]:
    """Do the duty of waits if the look finds it; return the jobs that run again."""
    if Duty.WAITS not in harness.store.look():
        return []
    return [steps[-1].id for steps in harness.store.time_out().result()]


def test_as_many_jobs_as_one_exchange_reports_are_suspended_at_once(
    harness: StoreHarness, app: Tenure
) -> None:
    """SQLite refused to look for so many signals: an outage that never ended, for all of them."""
    app.enqueue_many([NewJob("order", {}, {}) for _ in range(1_000)])
    leases = app.core.claim(ClaimRequest(worker="w", limit=1_000, lease_seconds=600)).leases
    assert len(leases) == 1_000
    app.signal(leases[500].id, "approved", actor="ada")
    said = [report_suspended(lease) for lease in leases]
    assert set(app.core.report(said).verdicts) == {RECORDED}
    assert app.count(status="waiting").jobs == 999
    assert app.history(leases[500].id)[-1].actor == "ada"


def test_a_signal_releases_the_job_that_waits(harness: StoreHarness, app: Tenure) -> None:
    """No attempt is charged, the ledger says who sent it, and nobody else is released."""
    other = suspended(harness)
    lease = suspended(harness, max_retries=1)
    job = harness.get(lease.id)
    assert (job.status, job.event, job.attempts, job.snoozes) == ("waiting", "suspended", 0, 1)
    assert (job.need, job.spare, job.lease_id) == (1, 0, None)
    assert harness.claim() == []
    app.signal(lease.id, "refused")
    app.signal(other.id, "refused")
    assert harness.get(lease.id).status == "waiting"
    harness.clock.advance(60)
    sent = app.signal(job, "approved", {"by": "ada", "n": [1, None]}, actor="ada")
    assert (sent.number, sent.payload, sent.actor, sent.at) == (
        *(1, {"by": "ada", "n": [1, None]}, "ada"),
        harness.clock.now,
    )
    job = harness.get(lease.id)
    assert (job.status, job.event, job.actor, job.need) == ("pending", "unblocked", "ada", 0)
    assert job.run_at == harness.clock.now
    assert [one.name for one in app.signals.list(lease.id)] == ["refused", "approved"]
    assert app.signals.list(lease.id)[1] == sent
    assert (harness.get(other.id).status, waits(harness)) == ("waiting", [("approved", 1)])
    (again,) = harness.claim(limit=5)
    assert (again.id, again.attempts, again.token) == (lease.id, 1, 2)
    assert harness.report(report_completed(again)) == [RECORDED]
    app.cancel(other.id)


def test_signals_of_one_time_are_listed_by_name(harness: StoreHarness, app: Tenure) -> None:
    """A test that sent two in a millisecond expected the order of sending, and failed at times."""
    job = harness.add()
    for name in ("b", "a", "b", "a"):
        app.signal(job.id, name)
    harness.clock.advance(TICK)
    app.signal(job.id, "a")
    listed = [(one.name, one.number) for one in app.signals.list(job.id)]
    assert listed == [("a", 1), ("a", 2), ("b", 1), ("b", 2), ("a", 3)]


def test_a_signal_that_came_before(harness: StoreHarness, app: Tenure) -> None:
    """Before the claim and while it runs: the suspension finds it, and nothing waits."""
    first, second = harness.add(), harness.add()
    app.signal(first.id, "approved", 1)
    leases = harness.claim(limit=2)
    app.signal(second.id, "approved", 2, actor="bob")
    verdicts = harness.report(*(report_suspended(lease) for lease in leases))
    assert verdicts == [RECORDED, RECORDED]
    for lease, actor in zip(leases, ("alice", "bob"), strict=True):
        assert harness.events(lease.id)[-3:] == ["claimed", "suspended", "unblocked"]
        assert harness.history(lease.id)[-1].actor == actor
    assert waits(harness) == []
    # The second wait for the name waits for the second signal.
    leases = harness.claim(limit=2)
    assert harness.report(*(report_suspended(lease, number=2) for lease in leases))
    assert [harness.get(lease.id).status for lease in leases] == ["waiting", "waiting"]
    app.signal(first.id, "approved", 3)
    app.cancel(second.id)
    assert harness.get(first.id).status == "pending"


def test_repeated_and_mixed_reports(harness: StoreHarness, app: Tenure) -> None:
    """A suspension among other reports, told twice, and again after the job runs elsewhere."""
    leases = [harness.take() for _ in range(3)]
    waits_too = report_suspended(leases[0])
    verdicts = harness.report(
        waits_too, waits_too, report_completed(leases[1]), report_failed(leases[2], delay=9.0)
    )
    assert verdicts == [RECORDED, ALREADY, RECORDED, RECORDED]
    assert harness.report(waits_too) == [ALREADY]
    assert harness.report(report_completed(leases[0])) == [Verdict(Answer.CONFLICT, "suspended")]
    app.signal(leases[0].id, "approved")
    (again,) = harness.claim()
    assert harness.report(waits_too) == [ALREADY]
    assert harness.get(again.id).status == "processing"
    assert waits(harness) == []


def test_a_key_sends_once(harness: StoreHarness, app: Tenure) -> None:
    """Also after the job is settled: the answer of the first time may have been lost."""
    lease = suspended(harness)
    sent = app.signal(lease.id, "approved", {"a": 1}, key="k")
    harness.clock.advance(5)
    assert app.signal(lease.id, "approved", {"a": 1}, key="k", actor="bob") == sent
    with pytest.raises(KeyConflict):
        app.signal(lease.id, "approved", {"a": 2}, key="k")
    assert app.signal(lease.id, "other", {"a": 2}, key="k").number == 1
    assert asyncio.run(app.signal_async(harness.get(lease.id), "approved", {"a": 1})).number == 2
    harness.report(report_completed(harness.claim()[0]))
    assert app.signal(lease.id, "approved", {"a": 1}, key="k") == sent
    with pytest.raises(IllegalTransition, match="cannot be signalled"):
        app.signal(lease.id, "approved", {"a": 1}, key="another")
    assert len(app.signals.list(lease.id)) == 3


def test_what_is_refused(
    harness: StoreHarness, app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = suspended(harness)
    for name in ("", "a b", "a/b", "é", "x" * 101):
        with pytest.raises(InvalidInput):
            app.signal(lease.id, name)
    for payload in ("x" * 70_000, ["x" * 1_000] * 70):
        with pytest.raises(PayloadTooLarge):
            app.signal(lease.id, "approved", payload)
    for payload in ("\0", float("nan"), {1: 2}, object(), 2**63, "\ud800"):
        with pytest.raises(InvalidInput):
            app.signal(lease.id, "approved", payload)
    with pytest.raises(InvalidInput):
        app.signal(lease.id, "approved", key="a b")
    for unknown in ("nonsense", "0190a0a0-0000-7000-8000-000000000000"):
        with pytest.raises(JobNotFound):
            app.signal(unknown, "approved")
    monkeypatch.setattr(signal_rules, "MAX_SIGNALS", 2)
    app.signal(lease.id, "one")
    app.signal(lease.id, "two", "x" * 65_000)
    with pytest.raises(InvalidInput, match="2 signals"):
        app.signal(lease.id, "approved")
    assert harness.get(lease.id).status == "waiting"
    app.cancel(lease.id)


def test_a_wait_expires(harness: StoreHarness, app: Tenure) -> None:
    """The look finds it in time, once; a signal that came first, or a cancel, is not undone."""
    late, signalled, cancelled, patient = (suspended(harness, within=60) for _ in range(4))
    harness.sql.run("UPDATE {wait} SET expires_at = NULL WHERE job_id = ?", patient.id)
    harness.clock.advance(59)
    assert look(harness) == []
    app.signal(signalled.id, "approved")
    app.cancel(cancelled.id)
    harness.clock.advance(2)
    assert look(harness) == [late.id]
    assert look(harness) == []
    job = harness.get(late.id)
    assert (job.status, job.event, job.actor) == ("pending", "unblocked", "sweep")
    assert harness.get(patient.id).status == "waiting"
    assert harness.get(cancelled.id).status == "cancelled"
    app.cancel(patient.id)
    assert waits(harness) == []


@pytest.mark.parametrize("how", ["cancel", "bulk", "start_by", "within"])
def test_whatever_ends_a_wait_ends_all_of_it(harness: StoreHarness, app: Tenure, how: str) -> None:
    until = harness.clock.now + timedelta(seconds=30)
    lease = suspended(harness, within=60, start_by=until)
    other = suspended(harness, within=60)
    if how == "cancel":
        app.cancel(lease.id)
    elif how == "bulk":
        bulk = app.bulk.start("cancel", Filter(created_before=harness.clock.now))
        assert bulk.finished_at is not None or app.bulk.step(bulk.id)
        app.cancel(lease.id)
    elif how == "start_by":
        harness.clock.set(until)
        assert [steps[-1].id for steps in harness.store.expire().result()] == [lease.id]
    else:
        with opened(harness.url) as connection:
            app.within(connection).cancel(lease.id)
    assert harness.get(lease.id).status == "cancelled"
    assert len(waits(harness)) == 1
    app.cancel(other.id)
    assert waits(harness) == []


def test_a_wait_left_by_raw_sql_does_nothing(harness: StoreHarness, app: Tenure) -> None:
    """The row counts only while its job waits, and the sweep removes it."""
    lease = suspended(harness, within=60)
    harness.sql.run("UPDATE {job} SET status = 'pending', need = 0 WHERE id = ?", lease.id)
    assert harness.events(lease.id)[-1] == "unblocked"
    app.signal(lease.id, "approved")
    (again,) = harness.claim()
    harness.clock.advance(61)
    assert look(harness) == []
    assert (harness.get(lease.id).status, waits(harness)) == ("processing", [])
    assert harness.report(report_suspended(again, "other")) == [RECORDED]
    assert waits(harness) == [("other", 1)]
    app.cancel(lease.id)


def test_how_often_a_job_may_be_suspended(
    harness: StoreHarness, app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "MAX_SNOOZES", 3)
    job = harness.add(max_retries=1)
    for number in range(1, 5):
        app.signal(job.id, "approved")
        (lease,) = harness.claim()
        (verdict,) = harness.report(report_suspended(lease, number=number))
    end = harness.get(job.id)
    assert (verdict, end.status) == (Verdict(Answer.CONFLICT, "failed"), "failed")
    assert end.last_error == "it cannot be suspended: it was snoozed or suspended 3 times"
    assert waits(harness) == []


# --- two at once

ACTS: dict[str, Callable[[Database, Lease], object]] = {
    "signal": lambda db, lease: signals.send(db, lease.id, NewSignal("approved", "1", None, "ada")),
    "suspend": lambda db, lease: transitions.settle(db, [report_suspended(lease)]),
    "time_out": lambda db, lease: transitions.time_out(db, 500),
    "cancel": lambda db, lease: transitions.apply(db, lease.id, Cancelled()),
}
ENDS = {
    ("signal", "suspend"): ["suspended", "unblocked"],
    ("suspend", "signal"): ["suspended", "unblocked"],
    ("cancel", "suspend"): ["claimed", "cancelled"],
    ("suspend", "cancel"): ["suspended", "cancelled"],
    ("signal", "time_out"): ["suspended", "unblocked"],
    ("time_out", "signal"): ["suspended", "unblocked"],
    ("signal", "cancel"): ["unblocked", "cancelled"],
    ("cancel", "signal"): ["suspended", "cancelled"],
    ("time_out", "cancel"): ["unblocked", "cancelled"],
    ("cancel", "time_out"): ["suspended", "cancelled"],
}
"""What is done while the transaction of something else is open -> how the history ends."""


def test_whatever_comes_first_nothing_is_lost(
    harness: StoreHarness, app: Tenure, subtests: pytest.Subtests
) -> None:
    """The second meets the lock of the first, which has done all but its commit."""
    for first, second in ENDS:
        with subtests.test(f"{first} {second}"):
            do_both(harness, app, first, second)
        harness.cancel_all()


def do_both(harness: StoreHarness, app: Tenure, first: str, second: str) -> None:
    is_new = "suspend" in (first, second)
    lease = harness.take() if is_new else suspended(harness, within=1)
    harness.clock.advance(2)
    reached, go_on = threading.Event(), threading.Event()

    def hold(db: Database) -> object:
        done = ACTS[first](db, lease)
        reached.set()
        assert go_on.wait(30)
        return done

    held = harness.store.write("operator", hold)
    assert reached.wait(30)
    met = harness.store.write("operator", lambda db: ACTS[second](db, lease))
    if second == "time_out" and not harness.url.startswith("sqlite"):
        assert met.result(30) == []  # it passes over what is locked
    else:
        assert not met.done()
    go_on.set()
    held.result(30)
    refused = first == "cancel" and second == "signal"
    with pytest.raises(IllegalTransition) if refused else nullcontext():
        met.result(30)
    assert harness.events(lease.id)[-2:] == ENDS[first, second]
    assert waits(harness) == []
    sent = app.signals.list(lease.id)
    assert len(sent) == ("signal" in (first, second) and not refused)


# --- one-use tokens


def token_of(
    harness: StoreHarness,
    lease: Lease,
    payload: str | None = None,
    token: str | None = None,
    label: str | None = None,
) -> str:
    token = token or new_token()
    digest = str(token_digest(token))
    harness.store.write(
        "signal",
        lambda db: signals.keep_token(
            db, lease.id, lease.lease_id, KeepToken(digest, "approved", payload, label)
        ),
    ).result()
    return token


def test_a_token_works_once_and_takes_the_others_along(harness: StoreHarness, app: Tenure) -> None:
    """Approve and refuse are two links of one question: the first that is used counts."""
    lease = harness.take()
    yes, no = token_of(harness, lease, "true"), token_of(harness, lease, "false")
    assert len(yes) == 22
    stored = harness.sql.run("SELECT digest FROM {signal_token}")
    assert all(yes not in digest and no not in digest for (digest,) in stored)
    harness.report(report_suspended(lease))
    assert of_token(app.core, yes) == (
        harness.get(lease.id),
        TokenSignal(lease.id, "approved", "true", None),
    )
    with pytest.raises(InvalidInput):
        by_token(app.core, yes, "1")
    assert by_token(app.core, yes, None).payload is True
    job = harness.get(lease.id)
    assert (job.status, job.actor) == ("pending", "signal link")
    for used in (yes, no, new_token(), "x", ""):
        with pytest.raises(SignalTokenNotFound):
            by_token(app.core, used, None)
        with pytest.raises(SignalTokenNotFound):
            of_token(app.core, used)
    assert len(app.signals.list(lease.id)) == 1
    (again,) = harness.claim()
    open_token = token_of(harness, again)
    assert by_token(app.core, open_token, '{"n": 1}').payload == {"n": 1}
    late = token_of(harness, again)
    harness.report(report_completed(again))
    with pytest.raises(IllegalTransition, match="it is settled"):
        by_token(app.core, late, None)
    with pytest.raises(IllegalTransition, match="it is settled"):
        of_token(app.core, late)


def test_a_label_is_stored_as_it_was_given(harness: StoreHarness, app: Tenure) -> None:
    lease = harness.take()
    for label in (" Genehmigen \N{HEAVY CHECK MARK}  ", "<b>", "\N{EN SPACE}", "x" * 100, None):
        token = token_of(harness, lease, label=label)
        assert of_token(app.core, token)[1].label == label
    for wrong in ("''", f"'{'x' * 101}'"):
        with pytest.raises(Refused):
            harness.sql.run(f"UPDATE {{signal_token}} SET label = {wrong}")
    harness.report(report_completed(lease))


def test_whose_tokens_are_kept(
    harness: StoreHarness, app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "MAX_SIGNAL_TOKENS", 2)
    lease = harness.take()
    token_of(harness, lease)
    token_of(harness, lease)
    with pytest.raises(InvalidInput, match="2 unused tokens"):
        token_of(harness, lease)
    other = harness.take()
    token = token_of(harness, other)
    assert token_of(harness, other, token=token) == token  # again, after a lost answer
    with pytest.raises(InvalidInput, match="another job: make a new one"):
        token_of(harness, harness.take(), token=token)
    harness.report(report_completed(lease), report_completed(other))
    with pytest.raises(LeaseLost):
        token_of(harness, other)


def test_two_uses_of_a_token_at_once(harness: StoreHarness, app: Tenure) -> None:
    """Both have found the token; the lock on the job lets one of them store a signal."""
    lease = harness.take()
    token = token_of(harness, lease)
    ends = list[object]()

    def use() -> None:
        try:
            ends.append(by_token(app.core, token, None).number)
        except SignalTokenNotFound:
            ends.append("used")

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, ends)) == ["1", "used", "used", "used"]
    harness.report(report_completed(lease))


def test_a_signal_of_plain_sql_may_have_no_payload(harness: StoreHarness) -> None:
    job = harness.add()
    harness.sql.run(
        f"INSERT INTO {{signal}} (job_id, name, number, at) VALUES ('{job.id}', 'paid', 1, {{now}})"
    )
    found = FoundSignal("null", harness.clock.now)
    assert signals.find(harness.store.read, job.id, FindSignal("paid", 1)) == found
