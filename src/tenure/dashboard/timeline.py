"""The life of a job as it is told on its page: its moves, its attempts, its time. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from tenure.jobs.ledger import Transition
from tenure.lifecycle import FIRST_EVENT, RULE_OF, SETTLED, Status

WIDTH, HEIGHT = 1000.0, 22.0
LEAST = 3.0
"""Units of width that a stretch of time is drawn with at least, or nobody would see it."""

CLAIMED, RETRIED = "claimed", "retried"
TOLD: Mapping[str, str] = {
    FIRST_EVENT: "added",
    CLAIMED: "taken by a worker",
    "completed": "completed",
    "failed": "attempt failed",
    "lease_expired": "worker lost: its lease ran out",
    RETRIED: "to be tried again",
    "released": "handed back unrun",
    "cancelled": "cancelled",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One move, as it is told: what, why, and how long after the one before."""

    transition: Transition
    title: str
    why: str
    after: float | None  # seconds since the move before


@dataclass(frozen=True, slots=True)
class Attempt:
    """One claim: who had the job, for how long, and how that ended."""

    number: int
    token: int
    worker: str | None
    began: datetime
    ended: datetime | None = None
    outcome: str = ""  # the event; empty while it runs
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Stretch:
    """Time in one status, as a part of a bar."""

    status: str
    x: float
    width: float
    seconds: float


def steps(transitions: Sequence[Transition]) -> list[Step]:
    """Every move, oldest first."""
    told: list[Step] = []
    for number, transition in enumerate(transitions):
        before = transitions[number - 1].at if number else None
        after = None if before is None else (transition.at - before).total_seconds()
        told.append(
            Step(transition, TOLD.get(transition.event, transition.event), _why(transition), after)
        )
    return told


def _why(transition: Transition) -> str:
    if transition.source is None:
        return "the application or an operator"
    row = RULE_OF.get((transition.event, Status(transition.source)))
    return row.caused_by if row else ""


def attempts(transitions: Sequence[Transition]) -> list[Attempt]:
    """Every claim, newest first: what people look for is the last."""
    made: list[Attempt] = []
    for transition in transitions:
        if transition.event == CLAIMED:
            made.append(
                Attempt(transition.attempt, transition.token, transition.actor, transition.at)
            )
        elif transition.source == Status.PROCESSING and made and not made[-1].outcome:
            made[-1] = replace(
                made[-1],
                ended=transition.at,
                outcome=transition.event,
                error=transition.detail or None,
            )
    return made[::-1]


def stretches(transitions: Sequence[Transition], now: datetime) -> list[Stretch]:
    """How long the job stood in which status, until it settled or until `now`.

    Short stretches are drawn wider than they are, and the bar is scaled to its width again.
    """
    spans = [span for span in _spans(transitions, now) if span[1] > 0]
    whole = sum(seconds for _, seconds in spans)
    if not whole:
        return []
    widths = [max(seconds / whole * WIDTH, LEAST) for _, seconds in spans]
    scale = WIDTH / sum(widths)
    drawn: list[Stretch] = []
    x = 0.0
    for (status, seconds), width in zip(spans, widths, strict=True):
        drawn.append(Stretch(status, round(x, 2), round(width * scale, 2), seconds))
        x += width * scale
    return drawn


def _spans(transitions: Sequence[Transition], now: datetime) -> Iterator[tuple[str, float]]:
    ends = [*(transition.at for transition in transitions[1:]), now]
    for transition, end in zip(transitions, ends, strict=True):
        last = transition is transitions[-1]
        if not (last and transition.target in SETTLED):
            yield transition.target, (end - transition.at).total_seconds()
