"""When cron would run a line, minute by minute, as the manual of Debian's cron describes it.

crontab(5) says which minutes match: all fields do, and of the two that name days, one is enough
unless one of them begins with `*`. cron(8) says what happens when clocks change: jobs that name
their time and would have run in the time that was skipped are run soon after the change, and what
falls into a repeated time is not run again. Jobs with `*` in the minute or the hour go by the new
time at once. (Debian takes a change of more than three hours for a correction; we do not.)
"""

from __future__ import annotations

import calendar
import random
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]


class Line:
    """A line of a crontab, without the command."""

    def __init__(self, expression: str) -> None:
        minute, hour, self.day, month, self.weekday = expression.lower().split()
        self.minutes = numbers(minute, 0, 59)
        self.hours = numbers(hour, 0, 23)
        self.months = numbers(month, 1, 12, MONTHS)
        self.names_its_time = minute[0] != "*" and hour[0] != "*"
        self.is_on = cache(self._is_on)

    def matches(self, wall: datetime) -> bool:
        return wall.minute in self.minutes and wall.hour in self.hours and self.is_on(wall.date())

    def _is_on(self, day: date) -> bool:
        by_day = any(is_day(part, day) for part in self.day.split(","))
        by_weekday = any(is_weekday(part, day) for part in self.weekday.split(","))
        if self.day[0] == "*" or self.weekday[0] == "*":
            return day.month in self.months and by_day and by_weekday
        return day.month in self.months and (by_day or by_weekday)


def is_day(part: str, day: date) -> bool:
    last = calendar.monthrange(day.year, day.month)[1]
    if part == "l":
        return day.day == last
    if part == "lw":
        working = [d for d in range(1, last + 1) if day.replace(day=d).weekday() < 5]
        return day.day == working[-1]
    return day.day in numbers(part, 1, 31)


def is_weekday(part: str, day: date) -> bool:
    weekday = day.isoweekday() % 7
    if "#" in part:
        name, _, number = part.partition("#")
        return weekday in weekdays(name) and (day.day - 1) // 7 + 1 == int(number)
    if part.endswith("l"):
        return weekday in weekdays(part[:-1]) and (day + 7 * DAY).month != day.month
    return weekday in weekdays(part)


def weekdays(part: str) -> set[int]:
    return {number % 7 for number in numbers(part, 0, 7, WEEKDAYS)}


def numbers(field: str, low: int, high: int, names: list[str] | None = None) -> set[int]:
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        if span == "*":
            begin, end = low, high
        else:
            begin = number(first, low, names)
            end = number(last, low, names) if last else high if step else begin
        found |= set(range(begin, end + 1, int(step or 1)))
    return found


def number(text: str, low: int, names: list[str] | None) -> int:
    return names.index(text) + low if names and text in names else int(text)


def runs(expression: str, zone: ZoneInfo, after: datetime, until: datetime) -> list[datetime]:
    """When cron runs a line in (after, until]. `after` is a whole minute, and no hour of change."""
    line = Line(expression)
    found = []
    seen = after.astimezone(zone).replace(tzinfo=None)  # the latest that the clock has shown
    now = after
    while now < until:
        now += MINUTE
        wall = now.astimezone(zone).replace(tzinfo=None)
        if not line.names_its_time:
            is_due = line.matches(wall)
        elif wall - seen <= MINUTE:
            is_due = wall > seen and line.matches(wall)
        else:
            is_due = any(line.matches(wall - n * MINUTE) for n in range((wall - seen) // MINUTE))
        seen = max(seen, wall)
        if is_due:
            found.append(now)
    return found


def zones() -> list[str]:
    """Every zone, each rule once: names of the same rules are one zone."""
    kept: dict[tuple[timedelta | None, ...], str] = {}
    for name in sorted(zoneinfo.available_timezones()):
        if name[0].isupper() and name != "Factory":
            zone = ZoneInfo(name)
            probes = (datetime(2000, 1, 1, tzinfo=UTC) + n * 6 * DAY for n in range(2_500))
            kept.setdefault(tuple(probe.astimezone(zone).utcoffset() for probe in probes), name)
    return list(kept.values())


def changes(zone: ZoneInfo, first: int = 2000, last: int = 2040) -> Iterator[datetime]:
    """Each time at which the clocks of a zone change, to the minute; years inclusive."""
    day, end = datetime(first, 1, 1, tzinfo=UTC), datetime(last + 1, 1, 1, tzinfo=UTC)
    while day < end:
        low, high = day, day + DAY
        before = low.astimezone(zone).utcoffset()
        if before != high.astimezone(zone).utcoffset():
            while high - low > MINUTE:
                middle = low + (high - low) // MINUTE // 2 * MINUTE
                is_before = middle.astimezone(zone).utcoffset() == before
                low, high = (middle, high) if is_before else (low, middle)
            yield high
        day += DAY


def expression(chance: random.Random, near: datetime) -> str:
    """An expression by chance, which often matches something around a time on the clock."""
    hour = [near.hour, (near.hour - 1) % 24, (near.hour + 1) % 24, 23, 0, chance.randrange(24)]
    minute = [near.minute, 0, 1, 30, 59, chance.randrange(60)]
    day = near.day
    return " ".join([
        field(chance, minute, 59),
        field(chance, hour, 23),
        chance.choice(
            ["*"] * 6 + [f"{day}", "*/2", "L", "LW", f"{day},L", f"1-{day}", f"{day}-31/2", "1/3"]
        ),
        chance.choice(["*"] * 6 + [f"{near.month}", MONTHS[near.month - 1].upper(), "*/2", "3-11"]),
        chance.choice(
            ["*"] * 6
            + ["0", "7", "SUN", "sat-sat", "1-5", "FRI#1", "0L", "0#5", "6,0", "*/2", "5-7"]
        ),
    ])  # fmt: skip


def field(chance: random.Random, likely: list[int], high: int) -> str:
    """Of minutes or hours: a star, a number, several, a range or steps."""
    one, other = chance.choice(likely), chance.choice(likely)
    low, top = min(one, other), max(one, other)
    step = chance.choice([2, 3, 5, 7, 15, 20, 30])
    return chance.choice(
        [
            *("*", f"*/{step}", f"{one}", f"{one}", f"{one},{other}"),
            *(f"{low}-{top}", f"{low}-{top}/{step}", f"{low}/{step}", f"0-{high}"),
        ]
    )
