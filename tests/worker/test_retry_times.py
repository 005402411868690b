"""Handlers that say whether and when their job runs again."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from email.utils import formatdate
from itertools import product
from typing import Any

import pytest

from tenure import (
    Failure,
    Job,
    PermanentFailure,
    RateLimited,
    RetryAfter,
    RetryPolicy,
    Snooze,
    Tenure,
)
from tenure.client import Client
from tenure.errors import InvalidInput
from tenure.handlers.registry import Errors, describe
from tenure.handlers.results import failure
from tenure.rules.jobs import TypeOptions
from tests.support.effort import on_either_engine
from tests.support.http import ServerProcess
from tests.support.raw_sql import RawSql
from tests.support.waiting import wait_until
from tests.support.workers import running_worker, transitions, wait_until_settled
from tests.worker import children

KINDS = pytest.mark.parametrize("kind", ["coroutine", "function", "process"])


def register(app: Tenure, kind: str, error: Exception, in_a_child: Callable[[], None]) -> None:
    def function() -> None:
        raise error

    async def coroutine() -> None:
        raise error

    handlers: dict[str, Callable[[], Any]] = {
        "coroutine": coroutine,
        "function": function,
        "process": in_a_child,
    }
    app.job(name="later", process=kind == "process")(handlers[kind])


def until_pending_again(app: Tenure, job: Job, event: str) -> Job:
    wait_until(lambda: transitions(app, job)[-1] == event, f"the job to be {event}")
    return app.get(job.id)


def wait_of(app: Tenure, job: Job) -> float:
    """Seconds from the last transition to the next attempt."""
    return (app.get(job.id).run_at - app.history(job.id)[-1].at).total_seconds()


@KINDS
def test_retry_after_sets_the_time_and_is_charged(app_on_each_engine: Tenure, kind: str) -> None:
    app = app_on_each_engine
    register(app, kind, RetryAfter("1h", "the service is busy"), children.retry_in_an_hour)
    job = app.enqueue("later", max_retries=2, backoff=0)
    with running_worker(app):
        after = until_pending_again(app, job, "retried")
    assert transitions(app, job) == ["enqueued", "claimed", "failed", "retried"]
    assert wait_of(app, job) == pytest.approx(3600, abs=2)
    assert (after.attempts, after.snoozes) == (1, 0)
    assert "RetryAfter: the service is busy" in (after.last_error or "")


def test_a_date_as_http_writes_it_is_a_delay() -> None:
    """RFC 9110 section 10.2.3: `Retry-After` is a number of seconds or a date."""
    now = time.time()
    for kind in (RetryAfter, Snooze, RateLimited):
        date = formatdate(now + 100, usegmt=True)
        assert kind(date).seconds == pytest.approx(100, abs=30)
        assert kind("Wed, 29 Nov 2000 07:28:00 GMT").seconds == 1
        for wrong in (
            "soon GMT",
            "Wed, 29 Nov 2000 07:28:00",
            "Wed, 29 Nov 2199 07:28:00 GMT",
            "Wed, 29 Nov 99999999999 07:28:00 GMT",
        ):
            with pytest.raises(InvalidInput, match=r"\$\.delay"):
                kind(wrong)


def test_only_a_date_imports_what_reads_dates() -> None:
    code = "import sys, tenure; tenure.RateLimited('30s'); print('email.utils' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout == "False\n"


def test_retry_after_the_last_attempt_is_a_failure(app_on_each_engine: Tenure) -> None:
    app = app_on_each_engine
    register(app, "coroutine", RetryAfter(0), children.retry_in_an_hour)
    job = app.enqueue("later", max_retries=2)
    with running_worker(app):
        end = wait_until_settled(app, job)
    assert (end.status, end.attempts) == ("failed", 2)


@KINDS
def test_a_snooze_costs_nothing(app_on_each_engine: Tenure, kind: str) -> None:
    app = app_on_each_engine
    register(app, kind, Snooze(timedelta(minutes=10)), children.snooze_ten_minutes)
    job = app.enqueue("later", max_retries=1)
    with running_worker(app):
        after = until_pending_again(app, job, "snoozed")
    assert wait_of(app, job) == pytest.approx(600, abs=2)
    assert (after.attempts, after.token, after.snoozes) == (0, 1, 1)
    assert after.last_error is None
    assert app.verify() == []


@on_either_engine("remote, kind", *product([False, True], ["coroutine", "function", "process"]))
def test_a_rate_limit_is_a_snooze_that_the_queue_waits_for(
    app_on_each_engine: Tenure, kind: str, remote: bool
) -> None:
    app, failures, sql = app_on_each_engine, list[Failure](), RawSql(app_on_each_engine.database)
    app.on_failure(failures.append)
    register(app, kind, RateLimited("10m", pause="queue"), children.rate_limited)
    job = app.enqueue("later", max_retries=1, queue="llm")
    with ExitStack() as stack:
        source = None
        if remote:
            server = stack.enter_context(ServerProcess(app.database))
            source = stack.enter_context(Client(server.url))
        stack.enter_context(running_worker(app, source))
        after = until_pending_again(app, job, "snoozed")
    assert wait_of(app, job) == pytest.approx(600, abs=2)
    assert (after.attempts, after.snoozes, after.last_error) == (0, 1, None)
    assert failures == []
    ((queue, paused_for),) = sql.run("SELECT queue, paused_for FROM {queue_limit}")
    assert (queue, str(paused_for)) == ("llm", job.id)
    sql.close()


@pytest.mark.parametrize("pause", ["all", 7, "Queue"])
def test_what_cannot_wait_is_refused_where_it_is_raised(pause: Any) -> None:
    with pytest.raises(InvalidInput):
        RateLimited(1, pause)
    assert (RateLimited(1).pause, RateLimited(1, None).pause) == ("partition", None)


@pytest.mark.parametrize("delay", ["soon", -1, "11y", float("nan")])
def test_a_delay_that_is_none_is_refused_where_it_is_raised(delay: Any) -> None:
    for kind in (RetryAfter, Snooze, RateLimited):
        with pytest.raises(InvalidInput):
            kind(delay)


class Refused(ConnectionError):
    """A class below one that is named."""


GROUP = ExceptionGroup
NAMED: list[tuple[Errors, Errors | None, BaseException, bool]] = [
    ((), None, ValueError(), True),
    ((ValueError,), None, ValueError(), False),
    ((ValueError, OSError), None, Refused(), False),
    ((ValueError,), None, KeyError(), True),
    ((), (ConnectionError,), Refused(), True),
    ((), (ConnectionError,), ValueError(), False),
    ((Refused,), (ConnectionError,), Refused(), False),
    ((), (ConnectionError,), RetryAfter(1), True),
    ((), (), ValueError(), False),
    ((ValueError,), None, GROUP("one of two", [KeyError(), ValueError()]), False),
    ((), None, GROUP("deep", [GROUP("", [PermanentFailure()])]), False),
]


@pytest.mark.parametrize(("permanent", "retry_on", "error", "again"), NAMED)
def test_classes_of_exceptions_say_whether_it_is_tried_again(
    permanent: Errors, retry_on: Errors | None, error: BaseException, again: bool
) -> None:
    handler = describe(lambda: None, "it", TypeOptions(), permanent=permanent, retry_on=retry_on)
    assert failure(error, handler).retryable is again


def test_a_group_runs_again_after_the_longest_delay_and_is_a_snooze_if_all_are() -> None:
    mixed = failure(GROUP("two", [Snooze(90), RetryAfter(60)]))
    assert (mixed.delay, mixed.snoozed, mixed.retryable) == (90, False, True)
    snoozes = failure(GROUP("two", [Snooze(5), Snooze(7)]))
    assert (snoozes.delay, snoozes.snoozed) == (7, True)
    assert snoozes.pause is None
    limited = failure(GROUP("", [RateLimited(5, "queue"), Snooze(9), GROUP("", [RateLimited(7)])]))
    assert (limited.delay, limited.snoozed, limited.pause) == (9, True, "queue")
    assert failure(GROUP("", [RateLimited(5), RateLimited(9, None)])).pause == "partition"
    assert failure(GROUP("", [RateLimited(5), ValueError()])).pause is None
    hopeless = failure(GROUP("two", [Snooze(5), PermanentFailure()]))
    assert (hopeless.delay, hopeless.snoozed, hopeless.retryable) == (None, False, False)
    plain = failure(ValueError())
    assert (plain.delay, plain.snoozed) == (None, False)


@pytest.mark.parametrize("wrong", [ValueError, ["x"], ("ValueError",), (int,)])
@pytest.mark.parametrize("option", ["permanent", "retry_on"])
def test_what_is_no_tuple_of_exceptions_is_refused(app: Tenure, option: str, wrong: Any) -> None:
    with pytest.raises(InvalidInput, match=f"{option} is a tuple of exception classes"):
        app.job(name="it", **{option: wrong})(lambda: None)


@KINDS
def test_a_worker_goes_by_them(app: Tenure, kind: str) -> None:
    """The child finds the classes with the handler."""

    def function() -> None:
        raise LookupError("no such customer")

    async def coroutine() -> None:
        function()

    handlers: dict[str, Any] = {"coroutine": coroutine, "function": function}
    if kind == "process":
        app.job(name="it", process=True, permanent=(LookupError,))(children.look_up)
    else:
        app.job(name="it", permanent=(LookupError,))(handlers[kind])
    job = app.enqueue("it", max_retries=5, backoff=0)
    with running_worker(app):
        end = wait_until_settled(app, job)
    assert (end.status, end.attempts, end.event) == ("failed", 1, "gave_up")


@pytest.mark.parametrize("form", [list, tuple, lambda waits: {"delays": waits}])
def test_a_list_of_waits_is_a_backoff(app: Tenure, form: Callable[[list[Any]], Any]) -> None:
    meant = RetryPolicy(delays=(10.0, 60.0, 0.5))
    waits = form(["10s", timedelta(minutes=1), 0.5])
    later = app.job(name="later", backoff=waits)(lambda: None)
    by_type, given = later.enqueue(), app.enqueue("other", backoff=waits)
    assert [app.get(job.id).backoff for job in (by_type, given)] == [meant, meant]
    assert app.amend(given.id, backoff=form([3])).backoff == RetryPolicy(delays=(3.0,))
