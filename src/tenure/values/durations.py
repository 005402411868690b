"""Durations as people write them: numbers of seconds, `1h30m`, ISO 8601 `PT1H30M`; and times.

`seconds` reads every form, to the microsecond, and refuses negative and infinite durations and
those over ten years. Months and years are refused because they have no fixed length. `policy_of`
reads the waits between attempts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import floor
from typing import Annotated, Any

from msgspec import Meta

from tenure.errors import InvalidInput
from tenure.lifecycle import SETTLED
from tenure.retry import DEFAULT_POLICY, RetryPolicy
from tenure.values.names import check_kind

Time = Annotated[datetime, Meta(tz=True)]
"""A time in UTC."""

MAX_SECONDS = 10 * 365 * 86_400
"""Ten years of 365 days."""

MIN_LEASE_SECONDS, MAX_LEASE_SECONDS = 1.0, 86_400.0

YEARS = range(1000, 9000)
"""Of a `run_at`: what every database and client can read, in every zone."""

MAX_LENGTH = 64
"""Longest text of a duration, in characters."""

_NEW_YEAR = datetime(2000, 1, 1, tzinfo=UTC)  # a plain time, while freezegun replaces the class
_SECOND = 1_000_000  # all arithmetic is done in whole microseconds
_UNITS = {
    "w": 604_800 * _SECOND,
    "d": 86_400 * _SECOND,
    "h": 3600 * _SECOND,
    "m": 60 * _SECOND,
    "s": _SECOND,
    "ms": _SECOND // 1000,
}

# Large units before small ones, each at most once; a group is named after its unit.
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_plain = re.compile(f"(?P<s>{_NUMBER}(?:e[-+]?[0-9]{{1,2}})?)")  # as programs write numbers
_short = re.compile("".join(f"(?:(?P<{unit}>{_NUMBER}){unit})?" for unit in _UNITS))
_iso_weeks = re.compile(f"P(?P<w>{_NUMBER})W")
_iso = re.compile(
    f"P(?=[0-9T])(?:(?P<d>{_NUMBER})D)?"
    f"(?:T(?=[0-9])(?:(?P<h>{_NUMBER})H)?(?:(?P<m>{_NUMBER})M)?(?:(?P<s>{_NUMBER})S)?)?"
)
_FORMS = (_plain, _short, _iso_weeks, _iso)

_EXAMPLES = "write seconds (90, 1.5), or units (250ms, 30s, 5m, 1h30m, 2d), or ISO 8601 (PT5M)"


def seconds(value: float | str | timedelta, path: str = "$") -> float:
    """Return a duration in seconds, rounded to a microsecond.

    Takes a number of seconds, a timedelta, text with units from large to small (`1h30m`, `250ms`;
    units w d h m s ms, fractions allowed), text that is a plain number of seconds, or an ISO 8601
    duration of weeks, or of days, hours, minutes and seconds. Raises InvalidInput at `path` for
    anything else, for negative or not finite values, and for more than `MAX_SECONDS`.
    """
    if isinstance(value, str):
        micros = _read(value.strip(), path)
    elif isinstance(value, timedelta):
        micros = value // timedelta(microseconds=1)
    elif type(value) is not bool and isinstance(value, int | float):
        # NaN, infinity and huge integers stop here, before arithmetic.
        micros = round(value * _SECOND) if 0 <= value <= MAX_SECONDS else -1
    else:
        kind = type(value).__name__
        raise InvalidInput(f"a value of type {kind} is not a duration; {_EXAMPLES}", path=path)
    if not 0 <= micros <= MAX_SECONDS * _SECOND:
        limit = f"a duration is 0 to {MAX_SECONDS} seconds (ten years)"
        raise InvalidInput(f"out of range; {limit}", path=path)
    return micros / _SECOND


def retention(keep: Mapping[str, float | str | timedelta]) -> dict[str, float]:
    """How many seconds settled jobs are kept, by status; raises InvalidInput."""
    check_kind(keep, Mapping, "how long to keep jobs, by their status", "$.keep")
    if unknown := keep.keys() - SETTLED:
        raise InvalidInput(
            f"{', '.join(sorted(map(str, unknown)))} is no status of a settled job; say how long "
            f"to keep jobs that are {', '.join(sorted(SETTLED))}",
            path="$.keep",
        )
    return {str(status): seconds(age, path=f"$.keep.{status}") for status, age in keep.items()}


def _read(written: str, path: str) -> int:
    if 0 < len(written) <= MAX_LENGTH:
        for form in _FORMS:
            if match := form.fullmatch(written):
                given = [(Fraction(n), unit) for unit, n in match.groupdict().items() if n]
                # Exactly; a half is rounded up.
                return sum(floor(n * _UNITS[unit] + Fraction(1, 2)) for n, unit in given)
    raise InvalidInput(f"not a duration; {_EXAMPLES}", path=path)


def policy_of(backoff: Any, path: str) -> RetryPolicy:
    """The retry policy that a caller means; raises InvalidInput at `path`."""
    if isinstance(backoff, RetryPolicy):
        return backoff
    if isinstance(backoff, list | tuple):
        if not backoff:
            raise InvalidInput("give at least one delay", path=path)
        backoff = {"delays": backoff}
    if not isinstance(backoff, Mapping):
        return RetryPolicy(base=seconds(backoff, path=path))
    if unknown := backoff.keys() - {"base", "factor", "cap", "delays"}:
        raise InvalidInput(f"no such field: {', '.join(map(str, unknown))}", path=path)
    values: dict[str, Any] = {
        name: seconds(backoff[name], path=f"{path}.{name}")
        for name in ("base", "cap")
        if name in backoff
    }
    delays = backoff.get("delays", ())
    if not isinstance(delays, list | tuple):
        raise InvalidInput("give a list of durations", path=f"{path}.delays")
    values["delays"] = [seconds(wait, path=f"{path}.delays[{n}]") for n, wait in enumerate(delays)]
    factor = backoff.get("factor", DEFAULT_POLICY.factor)
    if isinstance(factor, bool) or not isinstance(factor, int | float):
        raise InvalidInput("give a number", path=f"{path}.factor")
    return RetryPolicy(**values, factor=factor)


def check_time(given: Any, path: str) -> datetime:
    """Return a time in UTC; raises InvalidInput at `path` for other values, and without a zone."""
    name = path.rpartition(".")[2]
    if not isinstance(given, datetime) or given.tzinfo is None:
        raise InvalidInput(f"{name} needs a time with its zone", path=path)
    if given.year not in YEARS:
        raise InvalidInput(f"{name} is out of range; use the years 1000 to 8999", path=path)
    return plain(given.astimezone(UTC))


def plain(at: datetime) -> datetime:
    """Return a time as a plain datetime, in UTC if it is of a subclass, such as freezegun's."""
    if type(at) is type(_NEW_YEAR):
        return at
    at = at.astimezone(UTC)
    clock = (at.hour, at.minute, at.second, at.microsecond)
    return _NEW_YEAR.replace(at.year, at.month, at.day, *clock)


def lease(value: Any, path: str) -> float:
    """Return the seconds of a lease, a second to a day; raises InvalidInput at `path`."""
    found = seconds(value, path=path)
    if not MIN_LEASE_SECONDS <= found <= MAX_LEASE_SECONDS:
        raise InvalidInput("a lease lasts 1 second to a day", path=path)
    return found


def positive(value: Any, path: str) -> float:
    """Return a duration above 0 in seconds; raises InvalidInput at `path`."""
    found = seconds(value, path=path)
    if found <= 0:
        raise InvalidInput("give a time above 0", path=path)
    return found
