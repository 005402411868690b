"""Durations: every form read to the microsecond, everything else refused with its place."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tenure.errors import InvalidInput
from tenure.values.durations import MAX_LENGTH, MAX_SECONDS, seconds

MICROS = 1_000_000


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("1w", 604_800),
        ("250ms", 0.25),
        ("1.5h", 5400),
        ("0s", 0),
        ("1w2d3h4m5s6ms", 788_645.006),
        ("0.1s", 0.1),
        ("0.0000005s", 0.000001),
        ("0.0000004s", 0),
        ("PT5M", 300),
        ("PT1H30M", 5400),
        ("P1D", 86_400),
        ("P2W", 1_209_600),
        ("P1DT12H", 129_600),
        ("PT0.5S", 0.5),
        ("PT36H", 129_600),
        ("30", 30),
        ("1.5", 1.5),
        ("1e-06", 0.000001),
        ("2.5e3", 2500),
        (" 5m ", 300),
        (90, 90),
        (1.5, 1.5),
        (0, 0),
        (-0.0, 0),
        (timedelta(hours=1, microseconds=3), 3600.000003),
        (MAX_SECONDS, MAX_SECONDS),
        (timedelta(seconds=MAX_SECONDS), MAX_SECONDS),
        (f"{MAX_SECONDS}s", MAX_SECONDS),
        ("0." + "0" * (MAX_LENGTH - 4) + "1s", 0),
    ],
)
def test_reads(written: Any, expected: float) -> None:
    answer = seconds(written)
    assert type(answer) is float
    assert answer == expected


@pytest.mark.parametrize(
    "written",
    [
        *(
            "",
            " ",
            "s",
            "5x",
            "5 m",
            "1h 30m",
            "5M",
            "1m1h",
            "5m5m",
            "e3",
            "1e3s",
            "inf",
            "nan",
            "five",
        ),
        *("-5s", "+5s", "-1", ".5s", "5.s", "1..5s", "1,5s", "0x10", "5m\n6s", "5s\0", "1_000"),
        *("P", "PT", "P1", "P1DT", "PT5", "PT1H30", "P1Y", "P1M", "P1W1D", "pt5m", "-PT5M", "P-1D"),
        *("\u0663s", "5\u00b5s", "\uff15s", "5s\u200f", "\ud800"),
        "1" * (MAX_LENGTH + 1),
        "9" * 1_000_000,
        "1h" * 500_000,
        *(-1, -0.001, float("nan"), float("inf"), float("-inf"), True, False, None, b"5s", [5]),
        *(timedelta(microseconds=-1), timedelta.max, timedelta.min, 10**400, -(10**400), 1e308),
        MAX_SECONDS + 1,
        MAX_SECONDS + 0.001,
        f"{MAX_SECONDS}.001",
        f"{MAX_SECONDS // 86_400 + 1}d",
        "9" * (MAX_LENGTH - 1) + "w",
    ],
)
def test_refuses(written: Any) -> None:
    with pytest.raises(InvalidInput) as refusal:
        seconds(written, path="$.timeout")
    assert refusal.value.path == "$.timeout"
    assert len(str(refusal.value)) < 500
    assert refusal.value.message[-1] != "\n"


def test_a_refusal_shows_how_to_write_one() -> None:
    with pytest.raises(InvalidInput, match=re.escape("250ms, 30s, 5m, 1h30m, 2d")):
        seconds("5 minutes")


@given(st.integers(0, MAX_SECONDS * MICROS))
def test_numbers_and_timedeltas_are_read_to_the_microsecond(micros: int) -> None:
    length = micros / MICROS
    assert seconds(length) == length
    assert seconds(timedelta(microseconds=micros)) == length


@given(st.floats(0, MAX_SECONDS))
@example(268435456.1197065)  # where a float's own steps are felt
def test_any_float_reads_as_its_nearest_microsecond(length: float) -> None:
    assert abs(seconds(length) - length) <= 0.5 / MICROS + math.ulp(length)
    assert seconds(seconds(length)) == seconds(length)


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(0, 99_999))
def test_both_notations_agree(d: int, h: int, m: int, milli: int) -> None:
    s = f"{milli // 1000}.{milli % 1000:03d}"
    assert seconds(f"{d}d{h}h{m}m{s}s") == seconds(f"P{d}DT{h}H{m}M{s}S")


@given(st.text() | st.text(alphabet="0123456789.PTWDHMSwdhms -"))
def test_any_text_is_read_or_refused(written: str) -> None:
    try:
        length = seconds(written)
    except InvalidInput:
        return
    assert 0 <= length <= MAX_SECONDS
