"""The fake handlers: the same jobs in the same order always end the same way."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tenure import InvalidInput, JobContext
from tenure.demo import FakeFailure, add_fake_handlers
from tenure.handlers.registry import BadArguments, Handlers


def handlers(**rules: Any) -> Handlers:
    made = Handlers()
    add_fake_handlers(made, **rules)
    return made


def run(made: Handlers, type: str, payload: str = "{}", attempt: int = 1) -> bool:
    """Run one attempt as a worker would; whether it succeeded."""
    handler = made.find(type)
    assert handler is not None
    context = JobContext("id", type, "default", attempt, 3, attempt, None)
    try:
        asyncio.run(handler.function(context, **handler.arguments(payload)))
    except FakeFailure:
        return False
    return True


def test_any_type_with_any_payload_succeeds() -> None:
    made = handlers()

    assert made.types() is None
    assert run(made, "email", '{"to": "a@example.com", "context": 1, "": [null]}')


def test_a_failing_type_fails_at_every_attempt_and_others_do_not() -> None:
    made = handlers(fail_types=["payment", "report"])

    assert [run(made, "payment", attempt=n) for n in (1, 2, 3)] == [False, False, False]
    assert not run(made, "report")
    assert run(made, "email")


def test_the_first_attempt_of_every_nth_job_fails() -> None:
    made = handlers(fail_every=3)

    assert [run(made, "email") for _ in range(7)] == [True, True, False] * 2 + [True]


def test_a_second_attempt_neither_counts_nor_fails() -> None:
    made = handlers(fail_every=2)

    assert run(made, "email")
    assert run(made, "email", attempt=2)
    assert not run(made, "email")
    assert run(made, "email", attempt=2)


def test_a_job_of_a_failing_type_counts_like_any_other() -> None:
    made = handlers(fail_types=["payment"], fail_every=2)

    assert not run(made, "payment")
    assert not run(made, "email")
    assert run(made, "email")


def test_two_registries_count_for_themselves() -> None:
    one, other = handlers(fail_every=2), handlers(fail_every=2)

    assert [run(one, "a"), run(other, "a"), run(one, "a")] == [True, True, False]


def test_flaky_fails_as_often_as_its_payload_says() -> None:
    made = handlers()
    outcomes = [run(made, "fake.flaky", '{"fail_times": 2}', attempt=n) for n in (1, 2, 3)]

    assert outcomes == [False, False, True]
    assert run(made, "fake.flaky", '{"fail_times": 0}')


def test_fail_fails_at_every_attempt() -> None:
    assert [run(handlers(), "fake.fail", attempt=n) for n in (1, 2)] == [False, False]


def test_sleep_sleeps() -> None:
    started = time.monotonic()

    assert run(handlers(), "fake.sleep", '{"seconds": 0.05}')
    assert time.monotonic() - started >= 0.05


@pytest.mark.parametrize(
    ("type", "payload", "field"),
    [
        ("fake.flaky", "{}", "fail_times"),
        ("fake.flaky", '{"fail_times": "two"}', "fail_times"),
        ("fake.sleep", '{"seconds": null}', "seconds"),
        ("fake.crash", '{"times": 1}', "times"),
    ],
)
def test_a_payload_that_does_not_fit_is_refused_by_field(
    type: str, payload: str, field: str
) -> None:
    with pytest.raises(BadArguments, match=field):
        run(handlers(), type, payload)


def test_a_handler_of_the_application_goes_first() -> None:
    from tenure import Tenure

    app = Tenure("sqlite:///never-opened.db")

    @app.job
    def email() -> None: ...

    add_fake_handlers(app.core.handlers, fail_types=["email"])

    found = app.core.handlers.find("email")
    assert found is not None
    assert found.function is email.handler.function


CRASH = """
import asyncio, sys
from tenure import JobContext
from tenure.handlers.registry import Handlers
from tenure.demo import add_fake_handlers

handlers = Handlers()
add_fake_handlers(handlers)
handler = handlers.find("fake.crash")
context = JobContext("id", "fake.crash", "default", int(sys.argv[1]), 3, 1, None)
asyncio.run(handler.function(context, **handler.arguments(sys.argv[2])))
"""


@pytest.mark.parametrize(
    ("attempt", "payload", "dies"),
    [
        (1, "{}", True),
        (2, "{}", False),
        (2, '{"crash_times": 2}', True),
        (1, '{"crash_times": 0}', False),
    ],
)
def test_crash_kills_its_own_process(attempt: int, payload: str, dies: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(attempt), payload], check=False, timeout=30
    )

    assert done.returncode == (-signal.SIGKILL if dies else 0)


@pytest.mark.parametrize("number", [0, -1])
def test_fail_every_counts_from_one(number: int) -> None:
    with pytest.raises(InvalidInput, match="fail_every"):
        handlers(fail_every=number)


def test_a_failing_type_must_be_a_name() -> None:
    with pytest.raises(InvalidInput, match="job type"):
        handlers(fail_types=["no name"])
