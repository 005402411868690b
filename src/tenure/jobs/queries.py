"""What can be asked about jobs, and the answers: filters, pages, counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from tenure.lifecycle import Job

MAX_AHEAD = 10_000
"""Most jobs that are counted ahead of a job."""
MAX_SEARCHED_FOR = 200
"""Longest text to search for, in characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Selects the jobs that match every field that is set."""

    status: str | None = None
    type: str | None = None
    queue: str | None = None
    created_after: datetime | None = None  # inclusive, by the store's clock
    created_before: datetime | None = None  # exclusive
    error: str | None = None  # substring of `last_error`, without regard to ASCII case
    text: str | None = None  # substring of the payload's JSON, likewise
    hidden: tuple[str, ...] = ()  # keys whose values are not searched


@dataclass(frozen=True, slots=True, kw_only=True)
class Query(Filter):
    """A query of a store: the jobs of a filter in the order of their ids, newest first.

    The ids `before` and `after` are exclusive; `through` is the last id to look at.
    """

    limit: int = 50
    before: str | None = None
    after: str | None = None
    through: str | None = None
    oldest_first: bool = False
    most: int | None = None  # rows up to `through`, if set
    gather: bool = False  # the status has few jobs: read all of them, and sort
    among: tuple[str, ...] = ()  # any of these statuses
    created_by: datetime | None = None  # inclusive
    settled_by: datetime | None = None  # inclusive


def query_of(filter: Filter, **more: Any) -> Query:
    """Return the query for the jobs of a filter."""
    return Query(**{each.name: getattr(filter, each.name) for each in fields(Filter)}, **more)


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs of a filter. `next` is the `before` of the next page, None on the last one.

    `searched_all` is false if the search stopped at the limit of rows for one call, so that there
    may be more jobs than it found.
    """

    jobs: Sequence[Job]
    next: str | None
    searched_all: bool


@dataclass(frozen=True, slots=True)
class Counted:
    """The number of jobs that match a filter; the least number if not `exact`."""

    jobs: int
    exact: bool
