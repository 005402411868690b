"""A job's history as its page shows it: transitions, attempts, time per status. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from tenure.jobs.ledger import Transition
from tenure.lifecycle import FIRST_EVENT, RULE_OF, SETTLED, Status

WIDTH, HEIGHT = 1000.0, 22.0
MIN_WIDTH = 3.0
"""Width of the shortest period, so that it can be seen."""

CLAIMED, RETRIED = "claimed", "retried"
TITLES: Mapping[str, str] = {
    FIRST_EVENT: "enqueued",
    CLAIMED: "claimed by a worker",
    "completed": "completed",
    "failed": "attempt failed",
    "lease_expired": "worker lost: its lease expired",
    RETRIED: "to be retried",
    "released": "released before it started",
    "cancelled": "cancelled",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One transition as the page shows it."""

    transition: Transition
    title: str
    caused_by: str
    after: float | None  # seconds since the transition before


@dataclass(frozen=True, slots=True)
class PastAttempt:
    """One claim: which worker had the job, for how long, and how that ended."""

    number: int
    token: int
    worker: str | None
    began: datetime
    ended: datetime | None = None
    outcome: str = ""  # the event; empty while it runs
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Period:
    """Time in one status, as a part of a bar."""

    status: str
    x: float
    width: float
    seconds: float


def steps(transitions: Sequence[Transition]) -> list[Step]:
    """Return every transition, oldest first."""
    found: list[Step] = []
    for number, transition in enumerate(transitions):
        after = (transition.at - transitions[number - 1].at).total_seconds() if number else None
        title = TITLES.get(transition.event, transition.event)
        found.append(Step(transition, title, _caused_by(transition), after))
    return found


def _caused_by(transition: Transition) -> str:
    if transition.source is None:
        return "the application or an operator"
    rule = RULE_OF.get((transition.event, Status(transition.source)))
    return rule.caused_by if rule else ""


def attempts(transitions: Sequence[Transition]) -> list[PastAttempt]:
    """Return every claim, newest first: people look for the last."""
    made: list[PastAttempt] = []
    for transition in transitions:
        if transition.event == CLAIMED:
            made.append(
                PastAttempt(transition.attempt, transition.token, transition.actor, transition.at)
            )
        elif transition.source == Status.PROCESSING and made and not made[-1].outcome:
            made[-1] = replace(
                made[-1],
                ended=transition.at,
                outcome=transition.event,
                error=transition.detail or None,
            )
    return made[::-1]


def periods(transitions: Sequence[Transition], now: datetime) -> list[Period]:
    """Return how long the job was in which status, until it settled or until `now`.

    Short periods are widened to `MIN_WIDTH`. Then all are scaled to the width of the bar.
    """
    spans = [span for span in _spans(transitions, now) if span[1] > 0]
    whole = sum(seconds for _, seconds in spans)
    if not whole:
        return []
    widths = [max(seconds / whole * WIDTH, MIN_WIDTH) for _, seconds in spans]
    scale = WIDTH / sum(widths)
    drawn: list[Period] = []
    x = 0.0
    for (status, seconds), width in zip(spans, widths, strict=True):
        drawn.append(Period(status, round(x, 2), round(width * scale, 2), seconds))
        x += width * scale
    return drawn


def _spans(transitions: Sequence[Transition], now: datetime) -> Iterator[tuple[str, float]]:
    ends = [*(transition.at for transition in transitions[1:]), now]
    for transition, end in zip(transitions, ends, strict=True):
        last = transition is transitions[-1]
        if not (last and transition.target in SETTLED):
            yield transition.target, (end - transition.at).total_seconds()
