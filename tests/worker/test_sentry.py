"""Failures and traces in Sentry, with its own SDK and a transport that collects."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from tenure import JobContext, PermanentFailure, RateLimited, Snooze, Tenure
from tenure.contrib.sentry import install
from tests.support.waiting import wait_until
from tests.support.workers import running_worker, wait_until_failed


class Collected(Transport):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__({})
        self.events: list[Any] = []
        self.transactions: list[Any] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        if (event := envelope.get_event()) is not None:
            self.events.append(event)
        if (transaction := envelope.get_transaction_event()) is not None:
            self.transactions.append(transaction)


@pytest.fixture
def sent() -> Iterator[Collected]:
    transport = Collected()
    sentry_sdk.init("https://public@sentry.invalid/1", transport=transport, traces_sample_rate=1.0)
    yield transport
    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(None)


def test_each_failed_attempt_is_an_event_with_its_job(sent: Collected, tmp_path: Path) -> None:
    app = Tenure(f"sqlite:///{tmp_path}/jobs.db")
    install(app)

    @app.job(max_retries=2, backoff=0)
    def charge(card: str) -> None:
        sentry_sdk.add_breadcrumb(message="asking the bank")
        raise ConnectionError("the bank is away")

    with app, running_worker(app):
        job = charge.enqueue(card="4111-1111")
        wait_until_failed(app, job)
    first, last = sent.events
    assert [event["level"] for event in sent.events] == ["warning", "error"]
    assert last["tags"] == {
        "tenure.job": job.id,
        "tenure.type": "charge",
        "tenure.queue": "default",
        "tenure.attempt": "2",
    }
    assert (first["extra"]["retry_in"], last["extra"]["retry_in"]) == (0.0, None)
    (exception,) = last["exception"]["values"]
    assert (exception["type"], exception["value"]) == ("ConnectionError", "the bank is away")
    assert exception["stacktrace"]["frames"][0]["function"] == "charge"
    assert exception["mechanism"] == {"type": "tenure", "handled": False}
    assert [crumb["message"] for crumb in last["breadcrumbs"]["values"]] == ["asking the bank"]
    traces = [one["contexts"]["trace"] for one in sent.transactions]
    assert [event["contexts"]["trace"]["trace_id"] for event in sent.events] == [
        trace["trace_id"] for trace in traces
    ]
    assert {trace["op"] for trace in traces} == {"queue.process"}
    assert {one["transaction"] for one in sent.transactions} == {"charge"}


def test_failures_without_an_exception_are_messages(sent: Collected, tmp_path: Path) -> None:
    app, done = Tenure(f"sqlite:///{tmp_path}/jobs.db"), threading.Event()
    install(app)

    @app.job(max_retries=1, timeout=0.05)
    def hang() -> None:
        done.wait()

    with app, running_worker(app):
        wait_until_failed(app, hang.enqueue())
        done.set()
    (event,) = sent.events
    assert event["message"] == "hang: timed out after 0.05 s"
    assert event["level"] == "error"
    assert event["tags"]["tenure.type"] == "hang"


def test_jobs_do_not_see_the_tags_of_others(sent: Collected, tmp_path: Path) -> None:
    app = Tenure(f"sqlite:///{tmp_path}/jobs.db")
    install(app)

    @app.job
    async def fail(number: int) -> None:
        sentry_sdk.set_tag(f"own.{number}", "yes")
        raise PermanentFailure("no")

    with app, running_worker(app):
        for job in [fail.enqueue(number=n) for n in range(3)]:
            wait_until_failed(app, job)
    own = [[tag for tag in event["tags"] if tag.startswith("own.")] for event in sent.events]
    assert sorted(own) == [["own.0"], ["own.1"], ["own.2"]]


def statuses(sent: Collected) -> list[str]:
    """How each transaction ended."""
    return [one["contexts"]["trace"].get("status") or "ok" for one in sent.transactions]


SNOOZES = [Snooze(60), RateLimited(60), ExceptionGroup("two", [Snooze(60), RateLimited(60)])]


@pytest.mark.parametrize("kind", ["loop", "thread"])
@pytest.mark.parametrize("snooze", SNOOZES, ids=repr)
def test_a_snooze_is_no_error(
    sent: Collected, tmp_path: Path, snooze: Exception, kind: str
) -> None:
    app = Tenure(f"sqlite:///{tmp_path}/jobs.db")
    install(app)

    def on_thread() -> None:
        raise snooze

    async def on_loop() -> None:
        raise snooze

    app.job(name="later")(on_loop if kind == "loop" else on_thread)
    with app, running_worker(app):
        job = app.enqueue("later")
        wait_until(lambda: app.get(job.id).snoozes, "the job to be snoozed")
    assert sent.events == []
    assert statuses(sent) == ["ok"]


def test_a_sleep_is_no_error(sent: Collected, tmp_path: Path) -> None:
    app = Tenure(f"sqlite:///{tmp_path}/jobs.db")
    install(app)

    @app.job
    def remind(context: JobContext) -> None:
        context.sleep("1h")

    with app, running_worker(app):
        job = remind.enqueue()
        wait_until(lambda: app.get(job.id).event == "snoozed", "the job to sleep")
    assert sent.events == []
    assert statuses(sent) == ["ok"]
