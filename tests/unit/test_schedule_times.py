"""When schedules fire: against cron minute by minute, beside every change of the clocks."""

from __future__ import annotations

import os
import random
import time
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tenure.errors import InvalidInput
from tenure.rules.times import (
    MAX_CRON_LENGTH,
    When,
    check_when,
    count,
    in_words,
    latest,
    newest,
    next_after,
    preview,
    times,
    zone_of,
)
from tests.support import cron_oracle
from tests.support.cron_oracle import DAY, expression, runs

NEW_YEAR = datetime(2027, 1, 1, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")
PARTS = 12


def local(year: int, month: int, day: int, hour: int = 0, minute: int = 0) -> datetime:
    return datetime(year, month, day, hour, minute, tzinfo=BERLIN)


def berlin(cron: str) -> When:
    return check_when(cron=cron, zone="Europe/Berlin")


def compare(chance: random.Random, name: str, change: datetime) -> None:
    """One expression by chance around a change of the clocks, from every cursor, both ways."""
    zone = ZoneInfo(name)
    cron = expression(chance, change.astimezone(zone))
    begin, end = change - 1.5 * DAY, change + 1.5 * DAY
    expected = runs(cron, zone, begin, end)
    when = check_when(cron=cron, zone=name)
    what = (name, change, cron)

    assert list(times(when, begin, end)) == expected, what
    assert newest(when, begin, end, 10_000) == expected, what
    for _ in range(8):
        cursor = begin + timedelta(seconds=chance.randrange(3 * 86_400))
        cursor = cursor.astimezone(chance.choice([zone, UTC]))
        most = chance.choice([1, 2, 10])
        behind, ahead = [[at for at in expected if (at > cursor) == later] for later in (0, 1)]
        following = next_after(when, cursor)
        assert following == (ahead or [following])[0], (*what, cursor)
        assert following is None or following > (cursor if ahead else end), (*what, cursor)
        assert newest(when, begin, cursor, most) == behind[-most:], (*what, cursor)
        assert latest(when, cursor, end) == (ahead or [None])[-1], (*what, cursor)


@cache
def zones() -> list[str]:
    return cron_oracle.zones()


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_change_of_every_zone(part: int) -> None:
    """From 2000 to 2040; another expression at each seed."""
    chance = random.Random(f"{os.environ.get('TENURE_CHAOS_SEED', '1')} {part}")
    for name in zones()[part::PARTS]:
        for change in cron_oracle.changes(ZoneInfo(name)):
            compare(chance, name, change)


STRANGE = [
    *("Europe/Berlin", "Europe/Dublin", "America/New_York", "Australia/Lord_Howe"),
    *("America/Sao_Paulo", "Africa/Casablanca", "Africa/Cairo", "Antarctica/Troll"),
    *("America/Scoresbysund", "America/St_Johns", "Pacific/Apia", "Antarctica/Casey"),
    *("Asia/Beirut", "America/Havana", "Asia/Pyongyang", "America/Caracas"),
]
"""Half an hour, two hours, a day; at midnight; to another zone; in Ramadan."""


@pytest.mark.parametrize("name", STRANGE)
def test_changes_of_strange_zones(name: str) -> None:
    chance = random.Random(f"{os.environ.get('TENURE_CHAOS_SEED', '1')} {name}")
    changes = list(cron_oracle.changes(ZoneInfo(name), 2004, 2027))
    for _ in range(8):
        compare(chance, name, chance.choice(changes))


@pytest.mark.parametrize(
    ("cron", "spring", "autumn"),
    [
        ("30 2 * * *", ["03:00+02:00"], ["02:30+02:00"]),
        ("0 2,3 * * *", ["03:00+02:00"], ["02:00+02:00", "03:00+01:00"]),
        ("0,30 2 * * *", ["03:00+02:00"], ["02:00+02:00", "02:30+02:00"]),
        ("*/30 2 * * *", [], ["02:00+02:00", "02:30+02:00", "02:00+01:00", "02:30+01:00"]),
        ("10 3 * * *", ["03:10+02:00"], ["03:10+01:00"]),
    ],
)
def test_the_days_on_which_clocks_change(cron: str, spring: list[str], autumn: list[str]) -> None:
    for day, expected in ((local(2027, 3, 28), spring), (local(2027, 10, 31), autumn)):
        found = times(berlin(cron), day, day + DAY)
        assert [str(at.astimezone(BERLIN))[11:].replace(":00+", "+") for at in found] == expected


def test_a_cursor_in_the_repeated_hour_never_brings_a_time_before_it() -> None:
    cursor = datetime(2027, 10, 31, 1, 23, tzinfo=UTC)  # 02:23 for the second time
    assert next_after(berlin("24 2 * * *"), cursor) == local(2027, 11, 1, 2, 24)
    assert next_after(berlin("24 * * * *"), cursor) == cursor + timedelta(minutes=1)


@pytest.mark.parametrize("step", ["1s", "90s", "1.5s", "1d", "1w"])
def test_intervals_are_multiples_since_1970(step: str) -> None:
    when = check_when(every=step, offset="0.25s")
    assert when.every is not None
    found = newest(when, NEW_YEAR - 30 * DAY, NEW_YEAR, 3)
    following = next_after(when, NEW_YEAR)
    assert following is not None
    for at in [*found, following]:
        assert (at.timestamp() - 0.25) % when.every == 0
    gaps = {(b - a).total_seconds() for a, b in zip(found, [*found[1:], following], strict=True)}
    assert gaps == {when.every}
    assert next_after(when, found[0] - timedelta(microseconds=1)) == found[0]


def test_an_interval_is_counted_without_a_walk() -> None:
    when = check_when(every=1, starts_at=NEW_YEAR)
    assert count(when, NEW_YEAR - DAY, NEW_YEAR + 365 * DAY) == 365 * 86_400 + 1
    assert count(when, NEW_YEAR, NEW_YEAR) == 0
    assert count(when, NEW_YEAR - 2 * DAY, NEW_YEAR - DAY) == 0
    assert count(berlin("* * * * *"), NEW_YEAR, NEW_YEAR + timedelta(minutes=99)) == 99
    assert count(berlin("* * * * *"), NEW_YEAR, NEW_YEAR + timedelta(minutes=1_001)) == 100


def test_a_year_of_seconds_takes_no_time() -> None:
    when = check_when(every=1)
    began = time.process_time()
    found = newest(when, NEW_YEAR, NEW_YEAR + 365 * DAY, 100)
    assert time.process_time() - began < 0.01
    assert found == [NEW_YEAR + 365 * DAY - timedelta(seconds=n) for n in range(99, -1, -1)]


def test_a_single_time() -> None:
    when = check_when(at=NEW_YEAR)
    assert next_after(when, NEW_YEAR - DAY) == NEW_YEAR
    assert next_after(when, NEW_YEAR) is None
    assert latest(when, NEW_YEAR - DAY, NEW_YEAR) == NEW_YEAR
    assert latest(when, NEW_YEAR, NEW_YEAR + DAY) is None
    assert count(when, NEW_YEAR - DAY, NEW_YEAR + DAY) == 1


def test_first_and_last_time_are_inclusive() -> None:
    first, last = NEW_YEAR + DAY, NEW_YEAR + 3 * DAY
    for when in (
        check_when(cron="@daily", starts_at=first, ends_at=last),
        check_when(every="1d", starts_at=first, ends_at=last),
    ):
        expected = [first, first + DAY, last]
        assert list(times(when, NEW_YEAR)) == expected
        assert newest(when, NEW_YEAR, last + DAY, 9) == expected
        assert count(when, NEW_YEAR, last + DAY) == 3
        assert next_after(when, last) is None


@pytest.mark.parametrize(
    ("alias", "cron"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@Yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
    ],
)
def test_names_of_expressions(alias: str, cron: str) -> None:
    end = NEW_YEAR + 800 * DAY
    assert list(times(berlin(alias), NEW_YEAR, end)) == list(times(berlin(cron), NEW_YEAR, end))
    assert berlin(f"  {alias} ").cron == alias


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({}, "$.x"),
        ({"cron": "* * * * *", "every": 5}, "$.x"),
        *(({"cron": cron}, "$.x.cron") for cron in (
            *("", "* * * *", "* * * * * *", "61 * * * *", "* * L-3 * *", "@reboot", "* * * * mon,"),
            *("* * * * \u0663L", "* * \u00b9 * *", "* * * * fr\u0131", "5-1 * * * *"),
            *("*/0 * * * *", "0 0 31 2 *", 5),
            "1," * MAX_CRON_LENGTH + "1 * * * *",
        )),
        ({"cron": "0 0 31 2 2#5"}, None),  # one of the two days is enough
        ({"cron": "0 0 29 2 *"}, None),
        ({"every": 0.9}, "$.x.every"),
        ({"every": "soon"}, "$.x.every"),
        ({"every": "11y"}, "$.x.every"),
        ({"every": 5, "offset": 5}, "$.x.offset"),
        ({"cron": "@daily", "offset": 5}, "$.x.offset"),
        ({"at": datetime(2027, 1, 1)}, "$.x.at"),  # noqa: DTZ001
        ({"at": NEW_YEAR, "starts_at": NEW_YEAR + DAY}, "$.x"),
        ({"every": 5, "starts_at": NEW_YEAR, "ends_at": NEW_YEAR - DAY}, "$.x"),
        ({"cron": "0 0 29 2 *", "starts_at": NEW_YEAR, "ends_at": NEW_YEAR + DAY}, "$.x"),
        *(
            ({"every": 5, "zone": zone}, "$.x.zone")
            for zone in ("Mars/Base", "America", "localtime", "../etc", "right/UTC", "A" * 99, 5)
        ),
    ],
)  # fmt: skip
def test_what_is_refused(given: dict[str, Any], path: str | None) -> None:
    if path is None:
        check_when(**given, path="$.x")
        return
    with pytest.raises(InvalidInput) as refusal:
        check_when(**given, path="$.x")
    assert refusal.value.path == path
    assert len(str(refusal.value)) < 300


def test_a_stored_zone_that_is_unknown_here() -> None:
    with pytest.raises(InvalidInput, match="Mars/Base"):
        next_after(When(cron="@daily", zone="Mars/Base"), NEW_YEAR)
    assert zone_of("Europe/Berlin") is BERLIN


def test_times_are_kept_to_the_millisecond() -> None:
    odd = NEW_YEAR + timedelta(microseconds=1_999)
    when = check_when(every="1.0004s", starts_at=odd, ends_at=odd + DAY)
    assert (when.every, when.starts_at) == (1.0, NEW_YEAR + timedelta(milliseconds=1))
    assert check_when(at=odd).at == when.starts_at


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"cron": "10 3 * * *", "zone": "Europe/Berlin"}, "At 03:10 every day, Europe/Berlin"),
        ({"every": 90}, "Every 90 seconds"),
        ({"every": "1d", "offset": "3h"}, "Every day, 3 hours past"),
        ({"every": "1h"}, "Every hour"),
        ({"every": 1.5}, "Every 1.5 seconds"),
        ({"every": 1_000_000.5}, "Every 1000000.5 seconds"),
        ({"at": NEW_YEAR, "zone": "Europe/Berlin"}, "Once, at 2027-01-01 01:00:00+01:00"),
    ],
)
def test_in_words(given: dict[str, Any], expected: str) -> None:
    assert in_words(check_when(**given)) == expected


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("10 3 * * *", []),
        ("30 2 * * *", ["2027-03-28: at 03:00 instead of 02:30"]),
        ("0,30 2 * * *", ["2027-03-28: once instead of 2 times"]),
        (
            "*/30 2 * * *",
            ["2027-03-28: not at all instead of 2 times", "2027-10-31: 4 times instead of 2 times"],
        ),
        (
            "@hourly",
            [
                "2027-03-28: 23 times instead of 24 times",
                "2027-10-31: 25 times instead of 24 times",
            ],
        ),
        ("30 2 * * MON", []),
        ("30 23 * * *", []),
    ],
)
def test_unusual_days(cron: str, expected: list[str]) -> None:
    assert list(preview(berlin(cron), NEW_YEAR).unusual_days) == expected


def test_a_time_that_is_skipped_at_midnight_is_made_up_for_on_the_next_day() -> None:
    when = check_when(cron="30 23 * * *", zone="America/Scoresbysund")
    assert preview(when, NEW_YEAR).unusual_days == (
        "2027-03-27: not at all instead of once",
        "2027-03-28: 2 times instead of once",
    )


def test_a_preview() -> None:
    shown = preview(berlin("10 3 * * *"), NEW_YEAR, 3)
    assert [str(at) for at in shown.times] == [f"2027-01-0{n} 03:10:00+01:00" for n in (1, 2, 3)]
    ends = check_when(cron="30 2 * * *", zone="Europe/Berlin", ends_at=NEW_YEAR + DAY)
    assert preview(ends, NEW_YEAR).unusual_days == ()
    starts = check_when(cron="30 2 * * *", zone="Europe/Berlin", starts_at=NEW_YEAR + 360 * DAY)
    assert [day[:7] for day in preview(starts, NEW_YEAR).unusual_days] == ["2028-03"]
    assert [len(preview(ends, NEW_YEAR, most).times) for most in (1, 100)] == [1, 1]
    for wrong in (0, 101):
        with pytest.raises(InvalidInput):
            preview(ends, NEW_YEAR, wrong)
