"""What is done once for all viewers: to read what pages show, and to notify pages of changes.

Ten open pages that refresh twice a second would otherwise count a million jobs twenty times a
second. A value is used again for a moment, longer the longer it took to read, so that viewers never
cost more than a fraction of what the database can do. If there is an older value, a page does not
wait long for a new one: it shows the older one and how old it is, while the new one is read. An
action clears everything but the counts, so that its effect is seen.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from tenure.app.app import Tenure
from tenure.app.jobs import queues_shown
from tenure.errors import StoreUnavailable, TenureError
from tenure.http.waiting import PING, EventStream, Source
from tenure.rules.ledger import Transition
from tenure.rules.stats import PartitionState
from tenure.telemetry.logs import Repeats
from tenure.wire.problems import RETRY_LATER

log = logging.getLogger(__name__)

T = TypeVar("T")

FRESH_SECONDS = 0.4
SHARE = 4
"""A value that took a second to read is used for four."""
MAX_SECONDS = 10.0
WAIT_SECONDS = 0.05
"""How long a page waits for a new value if there is an older one. Counting takes longer only while
the statistics are far behind the ledger."""
OLD_SECONDS, OLD_WAIT_SECONDS = 60.0, 2.0
"""How long it waits if the older value is older than that: no page was read meanwhile."""
MAX_QUEUES = 200
"""Queues on a page. If there are more, they are sorted by `attention`."""
READERS = 8
MAX_VALUES = 100
"""From so many values on, old values are removed before another is read."""


@dataclass(frozen=True, slots=True)
class Lag:
    """How many seconds the shown values are behind."""

    rates: float  # and failures
    jobs: float  # the numbers of jobs


@dataclass(slots=True)
class _Entry:
    """The last value of one kind, and the read of the next, if one is under way."""

    value: Any = None
    began: float | None = None  # its read; None until there was one
    until: float = 0.0  # it counts as new
    reading: Future[Any] | None = None

    def read(self, ask: Callable[[], Any]) -> Any:
        began = time.monotonic()
        value = ask()
        ended = time.monotonic()
        lasts = min(max(FRESH_SECONDS, SHARE * (ended - began)), MAX_SECONDS)
        self.value, self.began, self.until = value, began, ended + lasts
        return value


class ReadCache:
    """The values of one application, each used again for a moment. Safe from any thread."""

    def __init__(self, app: Tenure) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="tenure-dashboard")
        self.counts = partial(self.once, "counts", app.stats.counts)
        self.queues = partial(self.once, "queues", partial(queues_shown, app.core, "", MAX_QUEUES))
        self.workers = partial(self.once, "workers", app.workers.list)
        self.types = partial(self.once, "types", app.types.list)
        self.activity = partial(self.once, "activity", app.stats.activity)
        self.next_tick = partial(self.once, "next_tick", app.stats.next_tick)
        self.trouble = partial(self.once, "trouble", partial(_trouble, app, Repeats()))
        self.failures = partial(self.once, "failures", app.stats.failures)
        self.measured_until = partial(self.once, "measured_until", app.stats.measured_until)

    def partitions(self, queue: str) -> Sequence[PartitionState]:
        """Return the partitions with most jobs of a queue with limits; there are few of these."""
        return self.once(f"partitions of {queue}", partial(self._app.queues.partitions, queue))

    def forget(self) -> None:
        """Clear the values after a change. Old counts are kept in case new ones take long."""
        with self._lock:
            counted = self._entries.get("counts", _Entry())
            self._entries = {"counts": replace(counted, until=0.0, reading=None)}

    def lag(self, now: datetime, *names: str) -> Lag:
        """Return how old rates are at `now`, and how old the oldest of the values `names` is."""
        until = self.measured_until()
        with self._lock:
            shown = [self._entries.get(name, _Entry()).began for name in names]
        at = time.monotonic()
        oldest = min((began for began in shown if began is not None), default=at)
        behind = 0.0 if until is None else max((now - until).total_seconds(), 0.0)
        return Lag(behind, at - oldest)

    def begin(self) -> None:
        """Start to read what may take long, without waiting for it."""
        for shared in (self.counts, self.queues):
            self._reading(*shared.args)

    def once(self, name: str, ask: Callable[[], T]) -> T:
        """Return what `ask` returns, or what it returned a moment ago under this name."""
        entry, reading = self._reading(name, ask)
        value: T = entry.value
        if reading is not None:
            with suppress(TimeoutError):  # the read continues for the next caller
                value = reading.result(_wait(entry))
        return value

    def _reading(self, name: str, ask: Callable[[], Any]) -> tuple[_Entry, Future[Any] | None]:
        """Return the last value, and the read of the next if the last is not new any more."""
        with self._lock:
            if len(self._entries) >= MAX_VALUES and name not in self._entries:
                now = time.monotonic()
                self._entries = {n: one for n, one in self._entries.items() if now < one.until}
            entry = self._entries.setdefault(name, _Entry())
            if time.monotonic() < entry.until:
                return entry, None
            if entry.reading is None or entry.reading.done():
                entry.reading = self._readers.submit(entry.read, ask)
            return entry, entry.reading


def _wait(entry: _Entry) -> float | None:
    """Return how many seconds a page waits for the next value; None for as long as it takes."""
    if entry.began is None:
        return None
    is_old = time.monotonic() - entry.began > OLD_SECONDS
    return OLD_WAIT_SECONDS if is_old else WAIT_SECONDS


def _trouble(app: Tenure, repeats: Repeats) -> str | None:
    """Return, and log, why the store cannot commit, as far as is known; None if it can."""
    try:
        app.core.check_store()
    except StoreUnavailable as error:
        if repeats.is_due(error):
            log.warning("the dashboard says that nothing can be stored: %s", error)
        return error._known or str(error)
    return None


# --- notes of changes -----------------------------------------------------------------------------
# A note says how many transitions there were, of which jobs, by which rules. One task follows the
# ledger for all viewers, as long as there are any. It notifies each viewer at most twice a second,
# with a bounded note: under load it reads a sample and skips to the end of the ledger, because a
# page that hears of many transitions asks again for everything it shows. A slow viewer finds one
# note about all that happened meanwhile, never a queue of notes.

NOTIFY_SECONDS = 0.5
START_SECONDS = 0.02
RECONNECT_MILLISECONDS = 2_000
SAMPLE = 400
"""Transitions that are read per round. If there are more, the rest is skipped."""
MAX_NAMED = 50
"""Jobs that a note names. If there are more, every page counts as concerned."""
MAX_VIEWERS = 200
UNREAD = "the dashboard cannot read the ledger, trying again"


@dataclass(slots=True, eq=False)
class _Viewer:
    """One open page, and what happened since it was last notified."""

    news: asyncio.Event = field(default_factory=asyncio.Event)
    transitions: int = 0
    jobs: set[str] | None = field(default_factory=set)  # None: too many to name
    arrows: Counter[str] = field(default_factory=Counter)

    def add(self, transitions: Sequence[Transition], *, skipped: bool) -> None:
        """Add `transitions`; `skipped` says that there were more."""
        self.transitions += len(transitions)
        if self.jobs is not None:
            self.jobs.update(transition.job_id for transition in transitions)
            if skipped or len(self.jobs) > MAX_NAMED:
                self.jobs = None
        self.arrows.update(f"{one.source or ''} {one.event}" for one in transitions)
        self.news.set()

    def take(self) -> bytes:
        """Return the note as a server-sent event, and begin a new one; nothing if it is empty."""
        if not self.transitions:
            return b""
        data = {
            "transitions": self.transitions,
            "jobs": None if self.jobs is None else sorted(self.jobs),
            "arrows": self.arrows,
        }
        self.transitions, self.jobs, self.arrows = 0, set(), Counter()
        self.news.clear()
        return b"event: transitions\ndata: %b\n\n" % msgspec.json.encode(data)


class Follower:
    """Follows the ledger for every viewer of this server who may see the same queues."""

    def __init__(self, app: Tenure, stopped: Callable[[], bool], streams: set[EventStream]) -> None:
        """`streams` holds the open streams of the whole server."""
        self._app = app
        self._stopped = stopped
        self._streams = streams
        self._viewers: set[_Viewer] = set()
        self._following: asyncio.Task[None] | None = None
        self._position: str | None = None  # None until it follows
        self._repeats = Repeats()

    def stream(self, request: Request) -> Response:
        """Return the stream of one viewer; a refusal if there are too many viewers."""
        if self._stopped() or len(self._streams) >= MAX_VIEWERS:
            return Response(status_code=503, headers=RETRY_LATER)
        return EventStream(request.scope, self._notes(), self._streams)

    async def _notes(self) -> Source:
        viewer = _Viewer()
        self._viewers.add(viewer)
        try:
            await self._start()
            yield f"retry: {RECONNECT_MILLISECONDS}\nevent: hello\ndata: {{}}\n\n".encode(), PING
            while not self._stopped():
                with suppress(TimeoutError):
                    await asyncio.wait_for(viewer.news.wait(), NOTIFY_SECONDS)
                yield viewer.take(), PING
        finally:
            self._viewers.discard(viewer)

    async def _start(self) -> None:
        """Return once the ledger is followed."""
        loop, following = asyncio.get_running_loop(), self._following
        if following is None or following.done() or following.get_loop() is not loop:
            self._position = None
            self._following = loop.create_task(self._follow())
        while self._position is None and not self._stopped():  # noqa: ASYNC110 another task's
            await asyncio.sleep(START_SECONDS)

    async def _follow(self) -> None:
        while self._viewers and not self._stopped():
            try:
                await self._read()
            except Exception as error:  # without this task, viewers would wait for ever
                if self._repeats.is_due(error):
                    expected = isinstance(error, TenureError)
                    level = logging.WARNING if expected else logging.ERROR
                    log.log(level, "%s: %s", UNREAD, error, exc_info=None if expected else error)
            await asyncio.sleep(NOTIFY_SECONDS)

    async def _read(self) -> None:
        if self._position is None:
            self._position = await run_in_threadpool(self._app.events.end)
        read = await run_in_threadpool(self._app.core.ledger, self._position, SAMPLE)
        transitions, reached, skipped = read
        end = await run_in_threadpool(self._app.events.end) if skipped else reached
        self._position = end
        for viewer in tuple(self._viewers) if transitions else ():
            viewer.add(transitions, skipped=skipped)
