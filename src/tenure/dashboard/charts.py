"""Lines over the last hour, from what happened in each minute. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from tenure.jobs.stats import BUCKETS, Activity
from tenure.lifecycle import ATTEMPT_ENDS, FIRST_EVENT, RULE_OF, TRANSITIONS, Rule, Status

MINUTES = 60
MINUTE = timedelta(minutes=1)
LATELY = 5
"""Minutes over which a rate is taken."""

WIDTH, HEIGHT = 120.0, 28.0
CLAIMED = "claimed"
CANCELLED = "cancelled"
WAYS = {transition.event: transition for transition in TRANSITIONS if transition.event != CANCELLED}
"""The one line of each other event."""


@dataclass(frozen=True, slots=True)
class Line:
    """One value per minute, oldest first; None where nothing happened."""

    name: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over the same minutes (Unix time of each)."""

    minutes: Sequence[int]
    lines: Sequence[Line]


def minutes_until(now: datetime) -> list[datetime]:
    """The minutes of the last hour, the current one last."""
    last = now.replace(second=0, microsecond=0)
    return [last - MINUTE * back for back in range(MINUTES - 1, -1, -1)]


def throughput(activity: Iterable[Activity], now: datetime) -> Chart:
    """Attempts that completed and that failed, per minute."""
    found: dict[str, dict[datetime, int]] = defaultdict(lambda: defaultdict(int))
    for one in activity:
        if one.event in ATTEMPT_ENDS:
            name = "completed" if one.event == "completed" else "failed"
            found[name][one.minute] += one.transitions
    return _chart(now, {name: _filled(found[name], 0) for name in ("completed", "failed")})


def latency(activity: Iterable[Activity], now: datetime) -> Chart:
    """How long jobs waited and ran, in seconds: what 95 of 100 did not exceed."""
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
    """The value that `share` of what was counted does not exceed, between the buckets' bounds."""
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


def moved(activity: Iterable[Activity]) -> dict[Rule, int]:
    """How many jobs went along each line of the lifecycle's table.

    Of those cancelled, the ones that had run for some time were running, the others pending.
    """
    found = dict.fromkeys(TRANSITIONS, 0)
    for one in activity:
        if one.event == CANCELLED:
            running = sum(one.buckets)
            found[RULE_OF[CANCELLED, Status.PROCESSING]] += running
            found[RULE_OF[CANCELLED, Status.PENDING]] += one.transitions - running
        elif one.event != FIRST_EVENT:
            found[WAYS[one.event]] += one.transitions
    return found


def rates(activity: Iterable[Activity], now: datetime) -> dict[Rule, float]:
    """Moves per minute, over the last minutes."""
    since = now - MINUTE * LATELY
    lately = moved(one for one in activity if one.minute >= since)
    return {transition: transitions / LATELY for transition, transitions in lately.items()}


def queue_rates(activity: Iterable[Activity], now: datetime) -> dict[str, float]:
    """Attempts ended per minute by queue, over the last minutes."""
    since = now - MINUTE * LATELY
    found: dict[str, float] = defaultdict(float)
    for one in activity:
        if one.minute >= since and one.event in ATTEMPT_ENDS:
            found[one.queue] += one.transitions / LATELY
    return found


def totals(activity: Iterable[Activity]) -> dict[str, int]:
    """Moves of the last hour by event."""
    found: dict[str, int] = defaultdict(int)
    for one in activity:
        found[one.event] += one.transitions
    return found


def spark(activity: Iterable[Activity], now: datetime, event: str) -> str:
    """Moves by one event in each minute of the last hour, as the path of a small line."""
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
class Drawn:
    """A line as the path of a picture of 600 by 160, for browsers without scripts."""

    name: str
    d: str


def paths(chart: Chart) -> list[Drawn]:
    """The lines of a chart, drawn."""
    top = max((v for line in chart.lines for v in line.values if v is not None), default=0) or 1
    step = 600 / max(len(chart.minutes) - 1, 1)
    drawn = []
    for line in chart.lines:
        points = [
            f"{number * step:.0f} {156 - value / top * 150:.1f}"
            for number, value in enumerate(line.values)
            if value is not None
        ]
        drawn.append(Drawn(line.name, "M" + "L".join(points) if points else ""))
    return drawn


def as_json(chart: Chart) -> str:
    """A chart for the script that draws it better."""
    return msgspec.json.encode(chart).decode()


Value = Callable[[datetime], float | None]


def _filled(found: Mapping[datetime, int], otherwise: int) -> Value:
    return lambda minute: found.get(minute, otherwise)


def _chart(now: datetime, lines: Mapping[str, Value]) -> Chart:
    minutes = minutes_until(now)
    return Chart(
        [int(minute.timestamp()) for minute in minutes],
        [
            Line(name, [_rounded(value(minute)) for minute in minutes])
            for name, value in lines.items()
        ],
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
