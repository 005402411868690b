"""Notifies open pages of changes: how many transitions there were, of which jobs, by which rules.

One task follows the ledger for all viewers, as long as there are any. It notifies each viewer at
most twice a second, with a bounded note: under load it reads a sample and skips to the end of the
ledger, because a page that hears of many transitions asks again for everything it shows. A slow
viewer finds one note about all that happened meanwhile, never a queue of notes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from tenure.app.app import Tenure
from tenure.errors import TenureError
from tenure.http.waiting import PING, EventStream, Source
from tenure.rules.ledger import Transition
from tenure.telemetry.repeats import Repeats
from tenure.wire.problems import RETRY_LATER

log = logging.getLogger(__name__)

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
