"""Errors survive the way between two processes: pools of processes send what a call raised."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tenure import errors
from tenure.rules.reports import RateLimited, RetryAfter, Snooze

ERRORS = (
    errors.InvalidInput("not a name", path="$.name", code="other"),
    errors.DuplicateStep("charge"),
    errors.JobNotFound("1"),
    errors.JobFailed("1", "no"),
    errors.IllegalTransition("1", "failed", "retried", ("retried",), "why"),
    errors.KeyConflict("once", workflow_id="1"),
    errors.QueueFull("mail", 3),
    errors.SignalTokenNotFound(),
    errors.StoreUnavailable("the database is away"),
    RetryAfter("10m", "busy"),
    Snooze("10m"),
    RateLimited("30s", "queue"),
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_copy_of_an_error_is_like_it(error: errors.TenureError) -> None:
    error.add_note("on the way")
    sent = pickle.dumps(error)
    for made in (pickle.loads(sent), copy.copy(error)):  # noqa: S301
        assert type(made) is type(error)
        assert (str(made), vars(made)) == (str(error), vars(error))


def test_an_id_that_was_cut_is_called_so() -> None:
    assert "no whole id, which has 36 characters" in str(errors.JobNotFound("01a2254e-69fb"))
    assert "the id is wrong" in str(errors.JobNotFound("01a2254e-69fb-7000-8000-000000000000"))


def test_an_id_in_upper_case_is_called_so() -> None:
    """As `UUID.uuidString` of Swift writes what it has read."""
    said = str(errors.JobNotFound("01A2254E-69FB-7000-8000-000000000000"))
    assert "ids are in lower case" in said


def test_an_error_does_not_break_a_pool_of_processes() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        with pytest.raises(errors.QueueFull, match="limit of pending jobs is 3") as raised:
            pool.submit(fill).result(60)
        assert raised.value.max_pending == 3
        assert pool.submit(len, "ok").result(60) == 2


def fill() -> None:
    raise errors.QueueFull("mail", 3)
