"""What every viewer asks for again and again, read once for all of them.

Ten open pages that are told twice a second that something moved would otherwise count a million
jobs twenty times a second. An answer is used again for a moment, for longer the longer it took, so
that looking never costs more than a fraction of what the database can do. Whoever acts sees what
came of it: an action makes all of it forgotten.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from tenure.app import Tenure
from tenure.records import Activity, Count, FailureGroup, QueueState, WorkerState

T = TypeVar("T")

FRESH_SECONDS = 0.4
SHARE = 4
"""An answer that took a second is used for four."""
MOST_SECONDS = 10.0


class Glance:
    """The answers of one application, each used again for a moment. Safe from any thread."""

    def __init__(self, app: Tenure) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}

    def forget(self) -> None:
        """Somebody changed something."""
        with self._lock:
            self._known = {}

    def counts(self) -> list[Count]:
        """Jobs by status, queue and type."""
        return self._once("counts", self._app.stats)

    def queues(self) -> list[QueueState]:
        """Every queue."""
        return self._once("queues", self._app.queues)

    def workers(self) -> list[WorkerState]:
        """Workers that asked for jobs lately."""
        return self._once("workers", self._app.workers)

    def activity(self) -> list[Activity]:
        """The moves of the last hour, by minute."""
        return self._once("activity", self._app.activity)

    def failures(self) -> list[FailureGroup]:
        """Failures by type and error."""
        return self._once("failures", self._app.failures)

    def _once(self, name: str, read: Callable[[], T]) -> T:
        with self._lock:
            known = self._known.setdefault(name, _Known())
        with known.lock:  # those who ask meanwhile wait for the one answer
            if time.monotonic() >= known.until:
                began = time.monotonic()
                known.value = read()
                took = time.monotonic() - began
                known.until = began + took + min(max(FRESH_SECONDS, SHARE * took), MOST_SECONDS)
            value: T = known.value
        return value


class _Known:
    """One answer, and until when it counts."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.until = 0.0
        self.value: Any = None
