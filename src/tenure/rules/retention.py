"""How long settled jobs are kept: the rules of types and queues, and which of them holds.

Pure, and the same for both engines. The most specific rule holds: what an operator says about the
type, then what `@app.job` says about it, then what an operator says about the queue, and then the
setting of the process that deletes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec

from tenure.errors import InvalidInput
from tenure.lifecycle import SETTLED
from tenure.rules.stats import KnownType
from tenure.values import durations

FOREVER = "forever"
FOREVER_SECONDS = 1e12
"""How `forever` is stored: longer than any duration that a rule may have."""
STATUSES = tuple(sorted(map(str, SETTLED)))
KEEPS = tuple(f"keep_{status}" for status in STATUSES)
"""Options of `@app.job`."""
Subject = Literal["type", "handler", "queue"]
"""What a rule is about: a type, a type by its `@app.job`, or a queue."""
FROM_SPECIFIC: tuple[Subject, ...] = ("type", "handler", "queue")


class DeclaredType(KnownType, frozen=True, kw_only=True, gc=False):
    """What a worker says about a type: beside that, the seconds to keep its jobs, by status."""

    keep: Mapping[str, float] = {}


class RetentionRule(msgspec.Struct, frozen=True):
    """How many seconds the jobs of a type or of a queue are kept once they are settled, by status.

    `subject` says what `name` names: a `type`, a type by its `handler`, that is by `@app.job`, or a
    `queue`. None: the rule says nothing about that status. 1e12 seconds: forever.
    """

    subject: Subject
    name: str
    completed: float | None = None
    cancelled: float | None = None
    failed: float | None = None


def age(value: Any, path: str) -> float:
    """Return how many seconds a duration, `forever` or 1e12 is; raises InvalidInput at `path`."""
    if value in (FOREVER, FOREVER_SECONDS):
        return FOREVER_SECONDS
    try:
        return durations.seconds(value, path=path)
    except InvalidInput as flaw:
        raise InvalidInput(f"{flaw.message}; or {FOREVER!r}", path=path) from flaw


def kept_for(seconds: float) -> float:
    """Return how long a rule keeps jobs that says so many seconds: beyond ten years, forever."""
    return FOREVER_SECONDS if seconds > durations.MAX_SECONDS else seconds


def said(seconds: float) -> str:
    """Say how long a rule keeps jobs."""
    return FOREVER if seconds >= FOREVER_SECONDS else str(timedelta(seconds=seconds))


class RetentionRules:
    """The rules of a database, to look up which one holds."""

    def __init__(self, rules: Iterable[RetentionRule]) -> None:
        self.every = tuple(rules)
        self._by_name = {(rule.subject, rule.name): rule for rule in self.every}

    def seconds(self, status: str, queue: str, type: str) -> float | None:
        """Return how long the rule that holds keeps such jobs; None if there is none."""
        for subject in FROM_SPECIFIC:
            rule = self._by_name.get((subject, queue if subject == "queue" else type))
            if rule is not None and (found := getattr(rule, status)) is not None:
                return float(found)
        return None


@dataclass(frozen=True, slots=True)
class Cutoffs:
    """Before when the jobs of a status must have settled to be deleted at `now`.

    `otherwise` is that time for jobs without a rule, None if they are kept. `wait` is how much
    longer all are kept.
    """

    rules: RetentionRules
    status: str
    now: datetime
    otherwise: datetime | None
    wait: timedelta = timedelta(0)

    def of(self, queue: str, type: str) -> datetime | None:
        """Return the time for the jobs of a queue and type; None if they are kept forever."""
        seconds = self.rules.seconds(self.status, queue, type)
        found = self.otherwise if seconds is None else self._before(seconds)
        return found and found - self.wait

    @property
    def latest(self) -> datetime | None:
        """The latest of these times: nothing that settled after it is deleted."""
        ages = (getattr(rule, self.status) for rule in self.rules.every)
        times = [self.otherwise, *(self._before(age) for age in ages if age is not None)]
        found = max((time for time in times if time is not None), default=None)
        return found and found - self.wait

    def _before(self, seconds: float) -> datetime | None:
        return None if seconds >= FOREVER_SECONDS else self.now - timedelta(seconds=seconds)


def declared(options: Mapping[str, Any]) -> dict[str, float]:
    """Return what `keep_completed` and the others of `@app.job` say, by status; InvalidInput."""
    given = {status: options.get(name) for status, name in zip(STATUSES, KEEPS, strict=True)}
    return {s: age(value, f"$.keep_{s}") for s, value in given.items() if value is not None}
