"""A job's history as its page shows it: titles, attempts, time per status. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate

from tenure.lifecycle import FIRST_EVENT, SETTLED
from tenure.rules.ledger import Transition

WIDTH = 1000.0
MIN_WIDTH = 3.0
"""Width of the shortest period, so that it can be seen."""

TITLES: Mapping[str, str] = {
    FIRST_EVENT: "enqueued",
    "claimed": "claimed by a worker",
    "completed": "completed",
    "failed": "attempt failed",
    "lease_expired": "worker lost: its lease expired",
    "retried": "to be retried",
    "gave_up": "attempt failed for good",
    "released": "released before it started",
    "interrupted": "interrupted: its worker stopped",
    "snoozed": "snoozed",
    "suspended": "suspended until a signal comes",
    "unblocked": "no longer waiting",
    "skipped": "skipped: what it waited for cannot come",
    "restored": "waiting again",
    "amended": "amended",
    "expired": "expired before it could start",
    "cancelled": "cancelled",
}


@dataclass(frozen=True, slots=True)
class Period:
    """Time in one status, as a part of a bar."""

    status: str
    x: float
    width: float
    seconds: float


def attempts(transitions: Sequence[Transition]) -> list[tuple[Transition, Transition | None]]:
    """Return every claim and what ended it, newest first: people look for the last."""
    pairs = zip(transitions, [*transitions[1:], None], strict=True)
    return [(claim, end) for claim, end in pairs if claim.event == "claimed"][::-1]


def periods(transitions: Sequence[Transition], now: datetime) -> list[Period]:
    """Return how long the job was in which status, until it settled or until `now`.

    Short periods are widened to `MIN_WIDTH`. Then all are scaled to the width of the bar.
    """
    ends = [*(transition.at for transition in transitions[1:]), now]
    spans = [
        (one.target, (end - one.at).total_seconds())
        for one, end in zip(transitions, ends, strict=True)
        if end > one.at and (one.target not in SETTLED or one is not transitions[-1])
    ]
    if not spans:
        return []
    whole = sum(seconds for _, seconds in spans)
    widths = [max(seconds / whole * WIDTH, MIN_WIDTH) for _, seconds in spans]
    scale = WIDTH / sum(widths)
    starts = accumulate(widths, initial=0.0)
    return [
        Period(status, round(x * scale, 2), round(width * scale, 2), seconds)
        for (status, seconds), width, x in zip(spans, widths, starts, strict=False)
    ]
