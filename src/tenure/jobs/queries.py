"""What can be asked about jobs, and the answers: filters, pages, counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from tenure.lifecycle import Job

MAX_AHEAD = 10_000
"""Jobs that go before one, as far as they are counted."""
MAX_SEARCHED_FOR = 200
"""Characters of a text that is searched for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which jobs are meant: those that fit every field that is set."""

    status: str | None = None
    type: str | None = None
    queue: str | None = None
    created_after: datetime | None = None  # by the store's clock; at that time counts
    created_before: datetime | None = None  # at that time does not
    error: str | None = None  # stands in the last error; A to Z and a to z are the same
    text: str | None = None  # stands in the payload's JSON; likewise
    hidden: tuple[str, ...] = ()  # keys whose values `error` and `text` do not find


@dataclass(frozen=True, slots=True, kw_only=True)
class Query(Filter):
    """What a store is asked for: jobs of a filter in the order of their ids, newest first.

    `before` and `after` are ids that are left out, `through` is the last one to look at.
    """

    limit: int = 50
    before: str | None = None
    after: str | None = None
    through: str | None = None
    oldest_first: bool = False
    most: int | None = None  # rows up to `through`, where that is set
    gather: bool = False  # those of the status are few: read them all, and sort
    among: tuple[str, ...] = ()  # statuses, any of which will do
    created_by: datetime | None = None  # at that time counts
    settled_by: datetime | None = None  # likewise


def query_of(filter: Filter, **more: Any) -> Query:
    """The query for the jobs of a filter."""
    return Query(**{each.name: getattr(filter, each.name) for each in fields(Filter)}, **more)


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs of a filter, and where to go on: the `before` of the next page, None at the end.

    `searched_all` is false if there may be more than were found, because the search stopped after
    as many rows as one call looks at.
    """

    jobs: Sequence[Job]
    next: str | None
    searched_all: bool


@dataclass(frozen=True, slots=True)
class Counted:
    """How many jobs fit a filter; at least so many if it is not `exact`."""

    jobs: int
    exact: bool
