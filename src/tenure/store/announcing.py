"""When a process notifies others of new jobs: at once, but not more often than each 5 ms."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tenure import failpoints
from tenure.store.protocol import Database

log = logging.getLogger(__name__)

ANNOUNCE_SECONDS = 0.005


class Announcements:
    """What a store owes other processes: hints, on which nothing depends. For any thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` is in seconds."""
        self._clock = clock
        self._announced = -ANNOUNCE_SECONDS
        self._is_owed = False
        self._is_planned = False

    def owe(self) -> None:
        """Note that there may be new work."""
        self._is_owed = True

    def pause(self) -> float | None:
        """Return the seconds until the next one is to be made, None if none is owed."""
        if not self._is_owed:
            return None
        return max(self._announced + ANNOUNCE_SECONDS - self._clock(), 0)

    def plan(self) -> bool:
        """Return whether one is owed that no thread was to make yet; the caller sees to that."""
        if not self._is_owed or self._is_planned:
            return False
        self._is_planned = True
        return True

    def make(self, db: Database) -> None:
        """Make the one that is owed. After a failure the next commit makes another."""
        # First: other threads may owe one again meanwhile.
        self._is_owed = self._is_planned = False
        self._announced = self._clock()
        try:
            failpoints.hit("announce.before")
            db.announce()
        except Exception as error:
            log.warning("waiting workers were not notified of new jobs: %s", error)
            db.rollback()
