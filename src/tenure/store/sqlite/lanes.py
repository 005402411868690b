"""Where a claim looks: lanes, each one queue at one priority, with jobs that are due."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from tenure.jobs.names import serves

# Two searches in the index instead of one comparison of pairs, which would be a walk over every
# pending job of the queue.
NEXT_LANE = """
SELECT * FROM (
    SELECT queue, priority, run_at FROM tenure_job
    WHERE status = 'pending' AND queue = :queue AND priority > :priority
    ORDER BY queue, priority, run_at LIMIT 1)
UNION ALL
SELECT * FROM (
    SELECT queue, priority, run_at FROM tenure_job
    WHERE status = 'pending' AND queue > :queue
    ORDER BY queue, priority, run_at LIMIT 1)
LIMIT 1
"""
PAUSED = "SELECT name FROM tenure_queue WHERE paused_at IS NOT NULL"


class SqliteLanes:
    """The lanes of one connection."""

    def __init__(self) -> None:
        self.last_queue = ""
        """The queue of the last claim. Queues of one priority take turns."""

    def due(
        self, connection: sqlite3.Connection, queues: tuple[str, ...] | None, now: int
    ) -> Sequence[tuple[str, int]]:
        """Return the lanes (queue, priority) with jobs due at `now`, in the order of claims."""
        paused = {name for (name,) in connection.execute(PAUSED)}
        lanes: list[tuple[str, int]] = []
        lane = {"queue": "", "priority": 0}
        while found := connection.execute(NEXT_LANE, lane).fetchone():
            queue, priority, due_at = found
            lane = {"queue": queue, "priority": priority}
            if due_at <= now and queue not in paused and serves(queues, queue):
                lanes.append((queue, priority))
        return sorted(lanes, key=lambda lane: (lane[1], lane[0] <= self.last_queue, lane[0]))
