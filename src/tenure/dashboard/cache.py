"""What every viewer asks for again and again, read once for all of them.

Ten open pages that are told twice a second that something moved would otherwise count a million
jobs twenty times a second. An answer is used again for a moment, for longer the longer it took, so
that looking never costs more than a fraction of what the database can do. No page waits long for a
new answer where there is an older one: it shows that, says of when it is, and the new one is read
beside. Whoever acts sees what came of it: an action makes all but the counts forgotten.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

from tenure.app.app import Tenure
from tenure.jobs.states import QueueState, WorkerState
from tenure.jobs.stats import Activity, Count, FailureGroup

T = TypeVar("T")

FRESH_SECONDS = 0.4
SHARE = 4
"""An answer that took a second is used for four."""
MAX_SECONDS = 10.0
PATIENCE = 0.05
"""Seconds that a page waits for a new answer where there is an older one. Counting takes longer
only while the measures are far behind the ledger, as after a storm; see `store/measures.py`."""
READERS = 8


@dataclass(frozen=True, slots=True)
class Lag:
    """By how many seconds rates and failures, and the numbers of jobs, are behind."""

    rates: float
    jobs: float


@dataclass(frozen=True, slots=True)
class _Answer:
    """What was read: from when on, and until when it counts as new."""

    value: Any
    began: float
    until: float


class _Known:
    """The last answer to one question, and the reading of the next."""

    def __init__(self, answer: _Answer | None = None) -> None:
        self.answer = answer
        self.reading: Future[_Answer] | None = None

    def read(self, ask: Callable[[], Any]) -> _Answer:
        began = time.monotonic()
        value = ask()
        ended = time.monotonic()
        lasts = min(max(FRESH_SECONDS, SHARE * (ended - began)), MAX_SECONDS)
        self.answer = _Answer(value, began, ended + lasts)
        return self.answer


class ReadCache:
    """The answers of one application, each used again for a moment. Safe from any thread."""

    def __init__(self, app: Tenure) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="tenure-glance")

    def forget(self) -> None:
        """Somebody changed something. Old counts still do where new ones take long."""
        with self._lock:
            counted = self._known.get("counts", _Known()).answer
            self._known = {}
            if counted is not None:
                self._known["counts"] = _Known(replace(counted, until=0.0))

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

    def lag(self, now: datetime, *names: str) -> Lag:
        """How old rates are at `now`, and the oldest of the answers that are called `names`."""
        until = self._once("measured", self._app.measured_until)
        with self._lock:
            known = [self._known.get(name, _Known()).answer for name in names]
        at = time.monotonic()
        oldest = min((one.began for one in known if one is not None), default=at)
        behind = 0.0 if until is None else max((now - until).total_seconds(), 0.0)
        return Lag(behind, at - oldest)

    def begin(self) -> None:
        """Read beforehand what may take long, and do not wait for it."""
        for name, ask in (("counts", self._app.stats), ("queues", self._app.queues)):
            self._reading(name, ask)

    def _once(self, name: str, ask: Callable[[], T]) -> T:
        answer, reading = self._reading(name, ask)
        if reading is not None:
            with suppress(TimeoutError):  # it goes on; whoever asks next may have it
                answer = reading.result(None if answer is None else PATIENCE)
        assert answer is not None
        value: T = answer.value
        return value

    def _reading(
        self, name: str, ask: Callable[[], Any]
    ) -> tuple[_Answer | None, Future[_Answer] | None]:
        """The last answer, and the reading of the next if that one is not new any more."""
        with self._lock:
            known = self._known.setdefault(name, _Known())
            if known.answer is not None and time.monotonic() < known.answer.until:
                return known.answer, None
            if known.reading is None or known.reading.done():
                known.reading = self._readers.submit(known.read, ask)
            return known.answer, known.reading
