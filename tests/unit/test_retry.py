"""How long a retry waits: bounded whatever the numbers, and the same every time."""

from __future__ import annotations

import math
import sys
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tenure.errors import InvalidInput
from tenure.lifecycle import DEFAULT_MAX_RETRIES
from tenure.retry import DEFAULT_POLICY, RetryPolicy, delay

TEN_YEARS = 315_360_000.0  # seconds
JOB = "0190163d-8694-739b-aea5-966c26f8ad90"

seconds = st.one_of(
    st.sampled_from([0.0, 5e-324, 1e-9, 1.0, 3600.0, TEN_YEARS]), st.floats(0, TEN_YEARS)
)
factors = st.one_of(st.sampled_from([1.0, 1.0000001, 2.0, 1_000.0]), st.floats(1, 1_000))
lists = st.lists(seconds, max_size=20).map(tuple)
policies = st.builds(RetryPolicy, base=seconds, factor=factors, cap=seconds)
any_policies = st.builds(RetryPolicy, base=seconds, factor=factors, cap=seconds, delays=lists)
attempts = st.one_of(st.integers(1, 12), st.integers(1, 10_000), st.just(10**400))
job_ids = st.uuids().map(str)


LARGEST = math.log(sys.float_info.max)
"""A power beyond this is the cap, also of a base that is nearly nothing."""


def without_jitter(policy: RetryPolicy, attempt: int) -> float:
    """The exponential, exactly, in whole numbers and logarithms rather than with `**`."""
    if policy.base == 0:
        return 0.0
    if policy.factor == 1:
        return min(policy.base, policy.cap)
    power = (attempt - 1) * math.log(policy.factor)
    log = math.log(policy.base) + power
    if max(power - LARGEST, log - math.log(TEN_YEARS) - 1) > 0:
        return policy.cap
    return min(math.exp(log), policy.cap)


@given(st.lists(seconds, min_size=1, max_size=20), job_ids, attempts)
def test_a_list_gives_each_wait_and_repeats_the_last(
    waits: list[float], job_id: str, attempt: int
) -> None:
    policy = RetryPolicy(base=7, factor=2, cap=1, delays=tuple(waits))
    exact = waits[min(attempt, len(waits)) - 1]
    wait = delay(policy, job_id, attempt)
    assert min(0.9 * exact, TEN_YEARS) - 0.001 <= wait <= min(1.1 * exact, TEN_YEARS) + 0.001
    assert wait == delay(RetryPolicy(delays=policy.delays), job_id, attempt)


def test_a_first_wait_is_never_cut_short() -> None:
    """`backoff="4d"` waited an hour, the default of the cap."""
    assert RetryPolicy(base=7200).cap == 7200
    assert RetryPolicy(base=9, cap=3).cap == 9
    assert RetryPolicy(base=9).cap == 3600
    assert delay(RetryPolicy(base=4 * 86_400), "1", 1) > 0.9 * 4 * 86_400


def test_a_list_has_jitter_too() -> None:
    policy = RetryPolicy(delays=(10, 60, 600))
    assert [delay(policy, JOB, attempt) for attempt in (1, 2, 3, 4)] == [
        *(9.32, 55.49, 644.48),
        delay(RetryPolicy(base=600, factor=1), JOB, 4),
    ]


def test_a_list_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"\$\.backoff\.delays: give at most 20 delays"):
        RetryPolicy(delays=(1.0,) * 21)
    with pytest.raises(InvalidInput, match=r"\$\.backoff\.delays\[1\]: out of range"):
        RetryPolicy(delays=(1.0, -1))


@pytest.mark.scenario(73)
@given(any_policies, job_ids, attempts)
def test_it_is_finite_and_never_negative_nor_above_the_cap(
    policy: RetryPolicy, job_id: str, attempt: int
) -> None:
    wait = delay(policy, job_id, attempt)
    assert math.isfinite(wait)
    assert 0 <= wait <= (TEN_YEARS if policy.delays else policy.cap)


@given(any_policies, job_ids, attempts)
def test_it_depends_on_nothing_but_its_arguments(
    policy: RetryPolicy, job_id: str, attempt: int
) -> None:
    again = RetryPolicy(policy.base, policy.factor, policy.cap, policy.delays)
    assert delay(policy, job_id, attempt) == delay(again, str(job_id), attempt)


@example(RetryPolicy(base=5e-324, factor=1.9375, cap=1.0), JOB, 1_075)
@given(policies, job_ids, st.integers(1, 10_000))
def test_jitter_moves_it_by_a_tenth_at_most(policy: RetryPolicy, job_id: str, attempt: int) -> None:
    exact = without_jitter(policy, attempt)
    slack = 1e-6 * exact + 0.0005  # of the logarithms, and of whole milliseconds
    wait = delay(policy, job_id, attempt)
    assert 0.9 * exact - slack <= wait <= 1.1 * exact + slack


@given(policies, job_ids)
def test_it_grows_from_attempt_to_attempt_but_for_the_jitter(
    policy: RetryPolicy, job_id: str
) -> None:
    waits = [delay(policy, job_id, attempt) for attempt in (*range(1, 40), 1_000, 9_999, 10_000)]
    assert all(later >= earlier * 0.9 / 1.1 - 0.001 for earlier, later in pairwise(waits))


@given(job_ids, st.integers(1, 10_000))
def test_a_base_of_zero_retries_at_once_always(job_id: str, attempt: int) -> None:
    assert delay(RetryPolicy(base=0, factor=1_000, cap=3600), job_id, attempt) == 0


def test_a_job_waits_as_long_today_as_it_did_in_the_first_version() -> None:
    policy = RetryPolicy(base=1, factor=2, cap=3600)
    assert [delay(policy, JOB, attempt) for attempt in (1, 2, 3)] == [0.932, 1.85, 4.297]


def test_the_default_takes_ten_attempts_through_a_bad_afternoon() -> None:
    assert RetryPolicy(base=5, factor=3, cap=3600) == DEFAULT_POLICY
    for attempt, exact in [(1, 5), (2, 15), (3, 45), (4, 135), (5, 405), (6, 1215)]:
        assert delay(DEFAULT_POLICY, JOB, attempt) == pytest.approx(exact, rel=0.1)
    waits = [delay(DEFAULT_POLICY, JOB, attempt) for attempt in range(1, DEFAULT_MAX_RETRIES)]
    assert 3.2 < sum(waits) / 3600 < 3.8  # hours
    # At the cap jitter can only shorten: the cap is a promise.
    assert 0.9 * 3600 <= delay(DEFAULT_POLICY, JOB, 13) <= 3600
    assert 0.9 * 3600 <= delay(DEFAULT_POLICY, JOB, 10_000) <= 3600


@given(policies, job_ids, attempts)
def test_it_is_whole_milliseconds_but_for_an_odd_cap(
    policy: RetryPolicy, job_id: str, attempt: int
) -> None:
    wait = delay(policy, job_id, attempt)
    assert wait in (round(wait, 3), policy.cap)


def test_jobs_that_fail_together_spread_apart() -> None:
    policy = RetryPolicy(base=100, factor=1, cap=1_000)
    waits = [delay(policy, f"job {number}", 1) for number in range(1_000)]
    assert len(set(waits)) > 950
    assert min(waits) < 91
    assert max(waits) > 109
    assert sum(waits) / len(waits) == pytest.approx(100, rel=0.01)


def test_one_job_waits_differently_each_time() -> None:
    policy = RetryPolicy(base=100, factor=1, cap=1_000)
    assert len({delay(policy, JOB, attempt) for attempt in range(1, 100)}) > 95


@pytest.mark.parametrize("field", ["base", "factor", "cap"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, -math.inf, TEN_YEARS * 1.001])
def test_a_policy_that_makes_no_sense_is_refused_by_field(field: str, value: float) -> None:
    with pytest.raises(InvalidInput) as refusal:
        RetryPolicy(**{field: value})
    low, high = ("1", "1000") if field == "factor" else ("0", "3.1536e+08")
    assert f"out of range; use {low} to {high}" in str(refusal.value)
    assert refusal.value.path == f"$.backoff.{field}"


def test_a_factor_below_one_or_above_a_thousand_is_refused() -> None:
    for factor in (0.0, 0.999, 1_000.1, 10**400):
        with pytest.raises(InvalidInput, match="factor"):
            RetryPolicy(factor=factor)
    assert RetryPolicy(base=0, factor=1, cap=0) == RetryPolicy(0, 1, 0)
    assert RetryPolicy(TEN_YEARS, 1_000, TEN_YEARS).cap == TEN_YEARS
