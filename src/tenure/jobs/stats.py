"""Statistics: counts of jobs, totals of transitions, groups of failures."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from math import inf


@dataclass(frozen=True, slots=True)
class Count:
    """How many jobs stand in one status of one queue and type."""

    status: str
    queue: str
    type: str
    jobs: int


BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, inf)
"""Upper bounds, in seconds, of the classes that waiting and run times are counted in."""


@dataclass(frozen=True, slots=True)
class Total:
    """The moves of one event in one queue and type since the beginning, and how long they took.

    `seconds` and `buckets` are of waiting (due until claimed) for `claimed`, and of running for
    `completed`, `failed`, `lease_expired` and those `cancelled` while running. `buckets` counts the
    times up to each of `BUCKETS` and above the one before it; a move whose time is not known any
    more is in none of them, so that their sum may be less than `moves`.
    """

    type: str
    queue: str
    event: str
    transitions: int
    seconds: float
    buckets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Activity:
    """The same for one minute, which begins at `minute`."""

    minute: datetime
    type: str
    queue: str
    event: str
    transitions: int
    seconds: float
    buckets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Attempts of one type that failed alike: `error` is the first line, what varies left out."""

    type: str
    error: str
    attempts: int
    first_seen_at: datetime
    last_seen_at: datetime
    last_job_id: str  # which retention may have deleted since
