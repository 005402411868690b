"""Hints to other processes that there may be new jobs."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tenure import failpoints
from tenure.store.protocol import Database
from tenure.telemetry.repeats import Repeats

log = logging.getLogger(__name__)

ANNOUNCE_SECONDS = 0.005
"""Other processes are notified of new jobs at once, but not more often than this."""
LATE_SECONDS = 0.1  # then a thread uses another connection than that of callers


class Announcements:
    """What a store owes other processes: hints, on which nothing depends. For any thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` is in seconds."""
        self._clock = clock
        self._announced = -ANNOUNCE_SECONDS
        self._owed_at = 0.0
        self._is_owed = self._is_planned = False
        self._repeats = Repeats()

    def owe(self) -> None:
        """Note that there may be new work."""
        if not self._is_owed:
            self._owed_at = self._clock()
        self._is_owed = True

    def are_late(self) -> bool:
        """Whether one has been owed for so long that no caller's connection is worth the wait."""
        return self._clock() - self._owed_at > LATE_SECONDS

    def pause(self) -> float | None:
        """Return the seconds until the next one is to be made, None if none is owed."""
        wait = self._announced + ANNOUNCE_SECONDS - self._clock()
        return max(wait, 0) if self._is_owed else None

    def plan(self) -> bool:
        """Return whether one is owed that no thread was to make yet; the caller sees to that."""
        is_new = self._is_owed and not self._is_planned
        self._is_planned |= is_new
        return is_new

    def make(self, db: Database) -> None:
        """Make the one that is owed. After a failure the next commit makes another."""
        self._is_owed = self._is_planned = False  # first: others may owe one again meanwhile
        self._announced = self._clock()
        try:
            failpoints.hit("announce.before")
            db.announce()
        except Exception as error:
            if self._repeats.is_due(error):
                log.warning("waiting workers were not notified of new jobs: %s", error)
            db.rollback()
