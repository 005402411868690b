"""Where a claim looks: lanes, each one queue at one priority, with jobs that are due.

Lanes are found by stepping through the index of what is ready, one search per lane, however many
jobs wait in each. A claim leaves dead entries at the head of its lane. PostgreSQL clears them away
as it meets them, unless an old snapshot is still open somewhere (a backup, a forgotten
transaction): then every search walks past all of them again, and claims become slower by the hour.
So each search reports how many entries it walked. Once they are many, lanes are searched from where
the last claim ended, less a margin for transactions that commit late, and only sometimes from the
start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from tenure.jobs.work import ClaimRequest
from tenure.store.postgres.connection import NOW, to_time

MARGIN = timedelta(seconds=1)
MAX_DEAD_ENTRIES = 5_000
"""Dead entries walked in a search from the start beyond which searches begin later."""
FULL_SECONDS = 2.0
FULL_SHARE = 0.1
"""Then a search from the start is made this often, or so that they take this share of the time."""
MAX_LANES = 1_000
MAX_VIEWS = 100
EVER = datetime(1, 1, 1, tzinfo=UTC)

SEARCH_ALL = "SELECT * FROM {s}.lanes()"
SEARCH_QUEUES = "SELECT * FROM {s}.lanes(%b::text[])"
SEARCH_ON = f"""
SELECT {NOW} AT TIME ZONE 'UTC', lane.queue, lane.priority
FROM unnest(%b::text[], %b::bigint[], %b::timestamptz[]) AS lane (queue, priority, since)
CROSS JOIN LATERAL (
    SELECT run_at FROM {{s}}.job
    WHERE status = 'pending' AND queue = lane.queue AND priority = lane.priority AND run_at >= since
    ORDER BY queue, priority, run_at LIMIT 1
) AS head
WHERE head.run_at <= {NOW} AND NOT EXISTS (
    SELECT FROM {{s}}.queue WHERE name = lane.queue AND paused_at IS NOT NULL)
"""


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane with due jobs at `now`; none of them was due before `since`."""

    queue: str
    priority: int
    since: datetime
    now: datetime


@dataclass(slots=True)
class _View:
    """What is known of the lanes for one kind of request."""

    marks: dict[tuple[str, int], datetime] = field(default_factory=dict)
    full_search_at: float = 0.0  # monotonic seconds
    crowded: bool = False  # many dead entries were met since the last full search


Rows = Callable[..., list[Any]]
"""Runs a statement with its values, inside the transaction of the claim."""


class Lanes:
    """The lanes of one store. Its writing threads share what they know; each step is atomic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._views: dict[Any, _View] = {}
        self._last_queue = ""

    def due(self, request: ClaimRequest, rows: Rows) -> list[Lane]:
        """Lanes with jobs that may be claimed now: urgent first, queues of one urgency in turn."""
        view = self._view(request)
        late = self._clock() >= view.full_search_at
        lanes = self._search(request, view, rows) if late else self._search_on(view, rows)
        last = self._last_queue
        return sorted(lanes, key=lambda lane: (lane.priority, lane.queue <= last, lane.queue))

    def are_plain(self, request: ClaimRequest) -> bool:
        """Whether the next search would be from the start, for all that is known here."""
        view = self._view(request)
        return not view.crowded and self._clock() >= view.full_search_at

    def noticed(self, request: ClaimRequest, entries: int) -> None:
        """Note how many dead entries a search from the start walked that was not made here."""
        if entries > MAX_DEAD_ENTRIES:
            self._view(request).crowded = True

    def claimed(self, request: ClaimRequest, lane: Lane, last_run_at: datetime) -> None:
        """Note that jobs of a lane were claimed, in order, up to one due at `last_run_at`."""
        self._last_queue = lane.queue
        self._view(request).marks[lane.queue, lane.priority] = last_run_at - MARGIN

    def _view(self, request: ClaimRequest) -> _View:
        if len(self._views) > MAX_VIEWS:
            self._views.clear()
        # By types as well: what one worker passes over is work for another.
        return self._views.setdefault((request.queues, request.types), _View())

    def _search(self, request: ClaimRequest, view: _View, rows: Rows) -> list[Lane]:
        began = self._clock()
        if request.queues is None:
            found = rows(SEARCH_ALL)
        else:
            found = rows(SEARCH_QUEUES, (list(set(request.queues)),))
        ended = self._clock()
        now = to_time(found[0][1])
        heads = {(row[2], row[3]): to_time(row[4]) for row in found if row[2] is not None}
        view.marks = _marks(view.marks, heads, now)
        view.crowded = False
        many = found[0][0] > MAX_DEAD_ENTRIES
        pause = max(FULL_SECONDS, (ended - began) / FULL_SHARE)
        view.full_search_at = ended + pause if many else 0.0
        return [Lane(*lane, EVER, now) for lane, run_at in heads.items() if run_at <= now]

    def _search_on(self, view: _View, rows: Rows) -> list[Lane]:
        marks = dict(view.marks)
        queues, priorities = [lane[0] for lane in marks], [lane[1] for lane in marks]
        found = rows(SEARCH_ON, (queues, priorities, list(marks.values())))
        return [
            Lane(queue, priority, marks[queue, priority], to_time(now))
            for now, queue, priority in found
        ]


def _marks(
    known: Mapping[tuple[str, int], datetime],
    heads: Mapping[tuple[str, int], datetime],
    now: datetime,
) -> dict[tuple[str, int], datetime]:
    """Where to search on from: lanes that are empty stay known, the next job may come any time."""
    marks = {lane: min(run_at, now) - MARGIN for lane, run_at in heads.items()}
    if len(known) + len(marks) <= MAX_LANES:
        marks = {**dict.fromkeys(known, now - MARGIN), **marks}
    return marks
