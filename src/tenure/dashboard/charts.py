"""Charts of the last hour, from the activity of each minute. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from tenure.jobs.stats import BUCKETS, Activity, Count
from tenure.lifecycle import ATTEMPT_ENDS, FIRST_EVENT, RULE_OF, TRANSITIONS, Rule, Status

MINUTES = 60
MINUTE = timedelta(minutes=1)
RATE_MINUTES = 5
"""Rates are averages over so many minutes."""

WIDTH, HEIGHT = 120.0, 28.0
CLAIMED = "claimed"
CANCELLED = "cancelled"
RULE_BY_EVENT = {rule.event: rule for rule in TRANSITIONS if rule.event != CANCELLED}
"""Every other event has one rule."""


@dataclass(frozen=True, slots=True)
class Series:
    """One value per minute, oldest first; None where there is none."""

    name: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Chart:
    """Several series over the same minutes, each given as Unix time."""

    minutes: Sequence[int]
    lines: Sequence[Series]


def by_status(counts: Iterable[Count]) -> dict[str, int]:
    """Return the number of jobs by status, of every status in its order."""
    found: dict[str, int] = dict.fromkeys(Status, 0)
    for group in counts:
        found[group.status] += group.jobs
    return found


def minutes_until(now: datetime) -> list[datetime]:
    """Return the minutes of the last hour, the current one last."""
    last = now.replace(second=0, microsecond=0)
    return [last - MINUTE * back for back in range(MINUTES - 1, -1, -1)]


def throughput(activity: Iterable[Activity], now: datetime) -> Chart:
    """Chart attempts that completed and that failed, per minute."""
    found: dict[str, dict[datetime, int]] = defaultdict(lambda: defaultdict(int))
    for one in activity:
        if one.event in ATTEMPT_ENDS:
            name = "completed" if one.event == "completed" else "failed"
            found[name][one.minute] += one.transitions
    return _chart(now, {name: _filled(found[name], 0) for name in ("completed", "failed")})


def latency(activity: Iterable[Activity], now: datetime) -> Chart:
    """Chart how long jobs waited and ran: the 95th percentile, in seconds."""
    waits: dict[datetime, list[int]] = {}
    runs: dict[datetime, list[int]] = {}
    for one in activity:
        into = waits if one.event == CLAIMED else runs if one.event in ATTEMPT_ENDS else None
        if into is not None:
            so_far = into.setdefault(one.minute, [0] * len(BUCKETS))
            into[one.minute] = [a + b for a, b in zip(so_far, one.buckets, strict=True)]
    return _chart(
        now,
        {
            "waited": lambda minute: quantile(waits.get(minute, ()), 0.95),
            "ran": lambda minute: quantile(runs.get(minute, ()), 0.95),
        },
    )


def quantile(counts: Sequence[int], share: float) -> float | None:
    """Return the value that `share` of all do not exceed, interpolated in its bucket."""
    total = sum(counts)
    if not total:
        return None
    wanted, below = share * total, 0
    for number, count in enumerate(counts):
        if count and below + count >= wanted:
            low = BUCKETS[number - 1] if number else 0.0
            high = BUCKETS[number]
            if high == float("inf"):
                return low
            return low + (high - low) * (wanted - below) / count
        below += count
    return BUCKETS[-2]


def transition_counts(activity: Iterable[Activity]) -> dict[Rule, int]:
    """Return how many jobs made each transition of the lifecycle's table.

    A cancelled job that had run for some time was processing, any other was pending.
    """
    found = dict.fromkeys(TRANSITIONS, 0)
    for one in activity:
        if one.event == CANCELLED:
            running = sum(one.buckets)
            found[RULE_OF[CANCELLED, Status.PROCESSING]] += running
            found[RULE_OF[CANCELLED, Status.PENDING]] += one.transitions - running
        elif one.event != FIRST_EVENT:
            found[RULE_BY_EVENT[one.event]] += one.transitions
    return found


def rates(activity: Iterable[Activity], now: datetime) -> dict[Rule, float]:
    """Return transitions per minute by rule, over the last minutes."""
    since = now - MINUTE * RATE_MINUTES
    recent = transition_counts(one for one in activity if one.minute >= since)
    return {transition: transitions / RATE_MINUTES for transition, transitions in recent.items()}


def queue_rates(activity: Iterable[Activity], now: datetime) -> dict[str, float]:
    """Return ended attempts per minute by queue, over the last minutes."""
    since = now - MINUTE * RATE_MINUTES
    found: dict[str, float] = defaultdict(float)
    for one in activity:
        if one.minute >= since and one.event in ATTEMPT_ENDS:
            found[one.queue] += one.transitions / RATE_MINUTES
    return found


def totals(activity: Iterable[Activity]) -> dict[str, int]:
    """Return transitions of the last hour by event."""
    found: dict[str, int] = defaultdict(int)
    for one in activity:
        found[one.event] += one.transitions
    return found


def sparkline(activity: Iterable[Activity], now: datetime, event: str) -> str:
    """Return the transitions by one event in each minute of the last hour, as an SVG path."""
    found: dict[datetime, int] = defaultdict(int)
    for one in activity:
        if one.event == event:
            found[one.minute] += one.transitions
    values = [found.get(minute, 0) for minute in minutes_until(now)]
    top = max(values)
    if not top:
        return ""
    step = WIDTH / (len(values) - 1)
    points = (
        f"{number * step:.1f} {HEIGHT - 2 - value / top * (HEIGHT - 4):.1f}"
        for number, value in enumerate(values)
    )
    return "M" + "L".join(points)


@dataclass(frozen=True, slots=True)
class ChartPath:
    """A series as the path of an SVG of 600 by 160, for browsers without scripts."""

    name: str
    d: str


def paths(chart: Chart) -> list[ChartPath]:
    """Return the series of a chart as paths."""
    top = max((v for line in chart.lines for v in line.values if v is not None), default=0) or 1
    step = 600 / max(len(chart.minutes) - 1, 1)
    drawn = []
    for line in chart.lines:
        points = [
            f"{number * step:.0f} {156 - value / top * 150:.1f}"
            for number, value in enumerate(line.values)
            if value is not None
        ]
        drawn.append(ChartPath(line.name, "M" + "L".join(points) if points else ""))
    return drawn


def as_json(chart: Chart) -> str:
    """Return a chart for the script that draws it."""
    return msgspec.json.encode(chart).decode()


Value = Callable[[datetime], float | None]


def _filled(found: Mapping[datetime, int], otherwise: int) -> Value:
    return lambda minute: found.get(minute, otherwise)


def _chart(now: datetime, lines: Mapping[str, Value]) -> Chart:
    minutes = minutes_until(now)
    return Chart(
        [int(minute.timestamp()) for minute in minutes],
        [
            Series(name, [_rounded(value(minute)) for minute in minutes])
            for name, value in lines.items()
        ],
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
