"""When a schedule fires: cron expressions, intervals and single times, in time zones. Pure.

cronsim reads the expressions, and sees times without a zone. What happens when clocks change is
decided here, as Debian's cron does it. An expression names times if neither its minute nor its
hour begins with `*`. A named time that the clocks skip is made up for at the end of the gap; a
named time that the clocks repeat counts in its first pass. Other expressions match what the clock
shows: nothing in a gap, and both passes of a repeated hour.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from msgspec import Struct

from tenure.errors import InvalidInput
from tenure.rules.jobs import Duration
from tenure.values.durations import Time, check_time, seconds
from tenure.values.ids import EPOCH
from tenure.values.numbers import whole

MAX_CRON_LENGTH = 200
MAX_PREVIEWED = 100
MAX_COUNTED = 100
"""Times of a cron expression that `count` walks through."""

_INSTANT = timedelta(microseconds=1)
_MINUTE = timedelta(minutes=1)
_DAY = timedelta(days=1)
_YEAR = timedelta(days=366)
_NONE = timedelta()
_UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))
_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
# `localtime` and `right/…` begin with a small letter: they are not the same on each machine.
_zone_name = re.compile("[A-Z][A-Za-z0-9_+/-]{0,63}").fullmatch


class When(Struct, frozen=True, kw_only=True):
    """When a schedule fires: `cron`, `every` or `at` says it. Made by `check_when`."""

    cron: str | None = None
    every: float | None = None  # seconds: at its multiples since 1970 in UTC, plus `offset`
    offset: float = 0.0
    at: Time | None = None
    zone: str = "UTC"  # the IANA name of the zone whose clocks `cron` means
    starts_at: Time | None = None  # inclusive, as `ends_at`
    ends_at: Time | None = None


class Preview(Struct, frozen=True):
    """What a schedule is going to do: its next times, and days on which clocks change them."""

    times: tuple[Time, ...]  # with the offset of its zone
    in_words: str
    unusual_days: tuple[str, ...]  # of a year, each with its date


def check_when(
    *,
    cron: str | None = None,
    every: Duration | None = None,
    offset: Duration | None = None,
    at: datetime | None = None,
    zone: str | None = None,
    starts_at: datetime | None = None,
    ends_at: datetime | None = None,
    path: str = "$",
) -> When:
    """Check when a schedule fires, as `app.schedule` describes it.

    Intervals and times are kept to the millisecond. Raises InvalidInput at `path` and below, also
    for what never fires.
    """
    if [cron, every, at].count(None) != 2:
        raise InvalidInput("give one of cron, every and at", path=path)
    if offset is not None and every is None:
        raise InvalidInput("only an interval (every) has an offset", path=f"{path}.offset")
    when = When(
        cron=None if cron is None else _check_cron(cron, f"{path}.cron"),
        every=None if every is None else round(seconds(every, f"{path}.every"), 3),
        offset=0.0 if offset is None else round(seconds(offset, f"{path}.offset"), 3),
        at=_to_the_millisecond(at, f"{path}.at"),
        zone=_check_zone("UTC" if zone is None else zone, f"{path}.zone"),
        starts_at=_to_the_millisecond(starts_at, f"{path}.starts_at"),
        ends_at=_to_the_millisecond(ends_at, f"{path}.ends_at"),
    )
    if when.every is not None and when.every < 1:
        raise InvalidInput("give at least one second", path=f"{path}.every")
    if when.every is not None and when.offset >= when.every:
        raise InvalidInput("give less than `every`", path=f"{path}.offset")
    if next_after(when, (when.starts_at or when.at or EPOCH) - _INSTANT) is None:
        raise InvalidInput("it never fires", path=path)
    return when


def _check_zone(name: str, path: str) -> str:
    if is_zone(name):
        return name
    problem = "no time zone that is known here; write one such as `Europe/Berlin` or UTC"
    raise InvalidInput(problem, path=path)


def is_zone(name: str) -> bool:
    """Whether a time zone is known on this machine."""
    with suppress(KeyError, ValueError, OSError, TypeError):  # OSError: a folder of zones
        return bool(_zone_name(name) and ZoneInfo(name))
    return False


def zone_of(name: str) -> ZoneInfo:
    """Return the time zone of a schedule; raises InvalidInput if it is unknown on this machine."""
    if is_zone(name):
        return ZoneInfo(name)
    raise InvalidInput(f"{ascii(name)[:64]} is no time zone that is known here", path="$.zone")


def times(
    when: When, after: datetime, until: datetime | None = None, *, newest_first: bool = False
) -> Iterator[datetime]:
    """Yield the times in (after, until] in UTC, each once and in order.

    Without `until` they may never end; `newest_first` needs it.
    """
    low, high = _bounds(when, after, until)
    last = None
    start = high if newest_first and high else low
    for at in _times(when, start, backward=newest_first):
        if at <= low if newest_first else high is not None and at > high:
            return
        if low < at and (high is None or at <= high) and at != last:
            yield at
            last = at


def next_after(when: When, cursor: datetime) -> datetime | None:
    """The first time after `cursor`, in UTC; None if there is none any more."""
    return next(times(when, cursor), None)


def latest(when: When, after: datetime, until: datetime) -> datetime | None:
    """The last time in (after, until], in UTC; None if there is none."""
    return next(times(when, after, until, newest_first=True), None)


def newest(when: When, after: datetime, until: datetime, most: int) -> list[datetime]:
    """The newest `most` times in (after, until], in UTC, oldest first."""
    return list(islice(times(when, after, until, newest_first=True), most))[::-1]


def count(when: When, after: datetime, until: datetime) -> int:
    """How many times are in (after, until]; of a cron expression, at most `MAX_COUNTED`."""
    if when.every is not None:
        low, high = _bounds(when, after, until)
        return max(_passed(when, high or low) - _passed(when, low), 0)
    return sum(1 for _ in islice(times(when, after, until), MAX_COUNTED))


def preview(when: When, now: datetime, count: int = 5) -> Preview:
    """Show what a schedule is going to do.

    - `count`: how many times, 1 to 100. Default: 5.

    The unusual days are those of the next 366 on which the clocks of the zone change what happens.
    """
    whole(count, 1, MAX_PREVIEWED, "$.count")
    zone = zone_of(when.zone)
    shown = tuple(at.astimezone(zone) for at in islice(times(when, now), count))
    unusual = () if when.cron is None else tuple(_unusual_days(when, zone, now))
    return Preview(shown, in_words(when), unusual)


def in_words(when: When) -> str:
    """Say when a schedule fires, in English."""
    if when.cron is not None:
        return f"{CronSim(_fields(when.cron), EPOCH).explain()}, {when.zone}"
    if when.at is not None:
        return f"Once, at {when.at.astimezone(zone_of(when.zone)).isoformat(' ', 'seconds')}"
    assert when.every is not None
    past = f", {_length(when.offset)} past" if when.offset else ""
    return f"Every {_length(when.every)}{past}"


def _check_cron(given: Any, path: str) -> str:
    if not isinstance(given, str) or len(given) > MAX_CRON_LENGTH:
        raise InvalidInput(f"give a text of at most {MAX_CRON_LENGTH} characters", path=path)
    cron = " ".join(given.split())
    fields = _fields(cron)
    if not fields.isascii() or len(fields.split()) != 5:
        problem = "give five fields: minute, hour, day of month, month, day of week"
        raise InvalidInput(f"{problem}; for seconds use `every`", path=path)
    try:
        CronSim(fields, EPOCH)
    except CronSimError as error:
        raise InvalidInput(f"not a cron expression: {error}", path=path) from None
    return cron


def _fields(cron: str) -> str:
    # cronsim reads `30-30/20` as `30/20`: up to the end of the hour.
    return _ALIASES.get(cron.lower()) or re.sub(r"\b(\w+)-\1/[0-9]+", r"\1", cron)


def _to_the_millisecond(given: Any, path: str) -> datetime | None:
    if given is None:
        return None
    checked = check_time(given, path)
    return checked.replace(microsecond=checked.microsecond // 1000 * 1000)  # as every store


def _bounds(
    when: When, after: datetime, until: datetime | None
) -> tuple[datetime, datetime | None]:
    low, high = after, until or when.ends_at
    if when.starts_at is not None:
        low = max(low, when.starts_at - _INSTANT)
    if high is not None and when.ends_at is not None:
        high = min(high, when.ends_at)
    return low, high


def _times(when: When, start: datetime, *, backward: bool) -> Iterator[datetime]:
    """Times in order from `start` on, or back from it. A few are repeated or beyond `start`."""
    if when.at is not None:
        return iter([when.at])
    if when.cron is None:
        return _multiples(when, start, backward=backward)
    zone = zone_of(when.zone)
    fields = _fields(when.cron)
    # In a repeated hour, times that the clock shows again are still to come.
    offset = start.astimezone(zone).replace(fold=0 if backward else 1).utcoffset()
    wall = start.astimezone(UTC).replace(tzinfo=None) + (offset or _NONE)
    walls = CronSim(fields, wall + _INSTANT if backward else wall, reverse=backward)
    if any(field.startswith("*") for field in fields.split()[:2]):
        return _as_shown(walls, zone, backward=backward)
    return _named(walls, zone)


def _multiples(when: When, start: datetime, *, backward: bool) -> Iterator[datetime]:
    step = timedelta(seconds=when.every or 0)
    at = EPOCH + timedelta(seconds=when.offset) + _passed(when, start) * step
    while True:
        yield at
        at += -step if backward else step


def _passed(when: When, at: datetime) -> int:
    return (at - EPOCH - timedelta(seconds=when.offset)) // timedelta(seconds=when.every or 0)


def _named(walls: Iterator[datetime], zone: ZoneInfo) -> Iterator[datetime]:
    for named in walls:
        wall = named
        while _in_utc(wall, zone, fold=0) > _in_utc(wall, zone, fold=1):  # the clocks skip it
            wall += _MINUTE
        yield _in_utc(wall, zone, fold=0)


def _as_shown(walls: Iterator[datetime], zone: ZoneInfo, *, backward: bool) -> Iterator[datetime]:
    other_pass: list[datetime] = []
    for wall in walls:
        at, again = _in_utc(wall, zone, fold=0), _in_utc(wall, zone, fold=1)
        if at > again:  # the clocks skip it
            continue
        if backward:
            at, again = again, at
        if other_pass and (other_pass[-1] > at) == backward:
            yield from other_pass
            other_pass.clear()
        yield at
        if at != again:
            other_pass.append(again)


def _in_utc(wall: datetime, zone: ZoneInfo, *, fold: int) -> datetime:
    return wall.replace(tzinfo=zone, fold=fold).astimezone(UTC)


def _unusual_days(when: When, zone: ZoneInfo, now: datetime) -> Iterator[str]:
    """Days on which an expression does not fire as it would if the clocks of its zone stood."""
    first = max(now, when.starts_at or now).astimezone(zone).date()
    last = first + _YEAR
    if when.ends_at is not None:
        last = min(last, when.ends_at.astimezone(zone).date())
    days: set[date] = set()
    for day in (first + n * _DAY for n in range((last - first).days + 1)):
        edges = [datetime.combine(day + n * _DAY, time.min, zone) for n in (0, 1)]
        if edges[0].utcoffset() != edges[1].utcoffset():  # what it skips may run on the next day
            days |= {day, day + _DAY}
    for day in sorted(days):
        usual = _shown_on(day, When(cron=when.cron), zone_of("UTC"))
        shown = _shown_on(day, When(cron=when.cron, zone=when.zone), zone)
        if len(shown) != len(usual):
            yield f"{day}: {_often(len(shown))} instead of {_often(len(usual))}"
        elif moved := [pair for pair in zip(shown, usual, strict=True) if pair[0] != pair[1]]:
            to, of = (", ".join(each) for each in zip(*moved, strict=True))
            yield f"{day}: at {to} instead of {of}"


def _shown_on(day: date, when: When, zone: ZoneInfo) -> list[str]:
    """What the clock shows, such as `03:10`, each time that a schedule fires on a day."""
    midnights = (datetime.combine(day + n * _DAY, time.min) for n in (0, 1))
    edges = [_in_utc(midnight, zone, fold=fold) for midnight in midnights for fold in (0, 1)]
    local = (at.astimezone(zone) for at in times(when, min(edges) - _INSTANT, max(edges)))
    return [f"{at:%H:%M}" for at in local if at.date() == day]


def _often(number: int) -> str:
    return {0: "not at all", 1: "once"}.get(number, f"{number:,} times")


def _length(length: float) -> str:
    for unit, size in _UNITS:
        if length % size == 0:
            return unit if length == size else f"{length // size:.0f} {unit}s"
    return f"{length:.15g} seconds"
