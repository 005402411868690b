"""Numbers, times and lists as the pages write them, and charts of the last hour. Pure.

Charts are made from the activity of each minute. Texts of jobs: see `values/text.py`.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import inf

from tenure.lifecycle import ATTEMPT_ENDS, FAILURES, FIRST_EVENT, RULE_OF, TRANSITIONS, Rule, Status
from tenure.rules.stats import BUCKETS, Activity

SHOWN_CHARACTERS = 4_000
"""Shown of a payload, result or error on the page of a job. A link leads to all of it."""
KEPT = "\n\t\u200c\u200d"
"""Characters of texts that pages do not escape: with the last two, letters and emoji are joined."""


def exactly(time: datetime) -> str:
    """Write a time in UTC, to the millisecond."""
    time = time.astimezone(UTC)
    return time.strftime("%Y-%m-%d %H:%M:%S.") + f"{time.microsecond // 1000:03} UTC"


def rate(per_minute: float) -> str:
    """Write a rate in the unit that reads best."""
    if per_minute <= 0:
        return "0"
    if per_minute >= 600:
        return f"{per_minute / 60:,.0f}/s"
    if per_minute >= 10:
        return f"{per_minute:,.0f}/min"
    return f"{per_minute:.1f}/min" if per_minute >= 0.95 else f"{per_minute * 60:.0f}/h"


def size(text: str) -> str:
    """Write the size of a text in UTF-8."""
    stored = len(text.encode())
    for unit, bytes_ in (("MiB", 1024 * 1024), ("KiB", 1024)):
        if stored >= bytes_:
            return f"{stored / bytes_:.1f} {unit}"
    return f"{stored} bytes"


def pretty(source: str) -> str:
    """Indent JSON text. A large text stays unchanged, because indenting it takes too long."""
    if len(source) > 256 * 1024:
        return source
    return json.dumps(json.loads(source), ensure_ascii=False, indent=2)


def listed(words: Sequence[str], most: int = 3) -> str:
    """Write a list: `a, b and c`, or `a, b, c and 4 more`."""
    if len(words) > most:
        return ", ".join(words[:most]) + f" and {len(words) - most} more"
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


# --- charts ---------------------------------------------------------------------------------------

MINUTES = 60
MINUTE = timedelta(minutes=1)
RATE_MINUTES = 5
"""Rates are averages over so many minutes."""

SPARKLINE, LARGE = (120, 28, 2), (600, 160, 4)
"""Width, height and margin of a chart as an SVG."""
CANCELLED = "cancelled"
RULE_BY_EVENT = {rule.event: rule for rule in TRANSITIONS if rule.event != CANCELLED}
"""Every other event has one rule."""


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines by name, with one value per minute, oldest first; None where there is none."""

    minutes: Sequence[int]  # each as Unix time
    lines: Mapping[str, Sequence[float | None]]


def minutes_until(now: datetime) -> list[datetime]:
    """Return the minutes of the last hour, the current one last."""
    last = now.replace(second=0, microsecond=0)
    return [last - MINUTE * back for back in range(MINUTES - 1, -1, -1)]


def per_minute(
    activity: Iterable[Activity], now: datetime, events: Collection[str]
) -> Sequence[int]:
    """Return the transitions by some events in each minute of the last hour."""
    found = Counter[datetime]()
    for one in activity:
        if one.event in events:
            found[one.minute] += one.transitions
    return [found[minute] for minute in minutes_until(now)]


def seconds_per_minute(
    activity: Iterable[Activity], now: datetime, events: Collection[str]
) -> Sequence[float | None]:
    """Return the 95th percentile of the times of some events in each minute of the last hour."""
    found: dict[datetime, list[Sequence[int]]] = defaultdict(list)
    for one in activity:
        if one.event in events:
            found[one.minute].append(one.buckets)
    added = (map(sum, zip(*found[minute], strict=True)) for minute in minutes_until(now))
    return [quantile(tuple(counts), 0.95) for counts in added]


def throughput(activity: Sequence[Activity], now: datetime) -> Chart:
    """Chart attempts that completed and that failed, per minute."""
    return _chart(
        now,
        completed=per_minute(activity, now, ["completed"]),
        failed=per_minute(activity, now, FAILURES),
    )


def latency(activity: Sequence[Activity], now: datetime) -> Chart:
    """Chart how long jobs waited and ran: the 95th percentile, in seconds."""
    return _chart(
        now,
        waited=seconds_per_minute(activity, now, ["claimed"]),
        ran=seconds_per_minute(activity, now, ATTEMPT_ENDS),
    )


def _chart(now: datetime, **lines: Sequence[float | None]) -> Chart:
    return Chart([int(minute.timestamp()) for minute in minutes_until(now)], lines)


def quantile(counts: Sequence[int], share: float) -> float | None:
    """Return the value that `share` of all do not exceed, interpolated in its bucket."""
    wanted, below, low = share * sum(counts), 0, 0.0
    for count, high in zip(counts, BUCKETS, strict=False):
        if count and below + count >= wanted:
            return low if high == inf else round(low + (high - low) * (wanted - below) / count, 4)
        below += count
        low = high
    return None


def transition_counts(activity: Iterable[Activity]) -> dict[Rule, int]:
    """Return how many jobs made each transition of the lifecycle's table.

    A cancelled job that had run for some time was processing, any other counts as pending, also
    if it was waiting; so do the jobs that expired.
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
    counts = transition_counts(_recent(activity, now))
    return {rule: transitions / RATE_MINUTES for rule, transitions in counts.items()}


def queue_rates(activity: Iterable[Activity], now: datetime) -> dict[str, float]:
    """Return ended attempts per minute by queue, over the last minutes."""
    found: dict[str, float] = defaultdict(float)
    for one in _recent(activity, now):
        if one.event in ATTEMPT_ENDS:
            found[one.queue] += one.transitions / RATE_MINUTES
    return found


def _recent(activity: Iterable[Activity], now: datetime) -> list[Activity]:
    since = now - MINUTE * RATE_MINUTES
    return [one for one in activity if one.minute >= since]


def sparkline(activity: Iterable[Activity], now: datetime, event: str) -> str:
    """Return the transitions by one event in each minute of the last hour, as an SVG path."""
    values = per_minute(activity, now, [event])
    return _path(values, max(values), SPARKLINE) if any(values) else ""


def paths(chart: Chart) -> dict[str, str]:
    """Return the lines of a chart as SVG paths, for browsers without scripts."""
    top = max((v for line in chart.lines.values() for v in line if v is not None), default=0)
    return {name: _path(values, top or 1, LARGE) for name, values in chart.lines.items()}


def _path(values: Sequence[float | None], top: float, size: tuple[int, int, int]) -> str:
    width, height, margin = size
    step = width / (MINUTES - 1)
    points = [
        f"{number * step:.1f} {height - margin - value / top * (height - 2 * margin):.1f}"
        for number, value in enumerate(values)
        if value is not None
    ]
    return "M" + "L".join(points) if points else ""
