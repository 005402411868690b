"""What open pages are told: that something moved, which jobs, and along which arrows.

One reader follows the ledger for all viewers, only while there are some. It tells each at most
twice a second, and what it tells is bounded: under load it reads a sample and skips to the end of
the ledger, for a page that is told "much moved" asks again for all it shows. A viewer that is slow
finds one note that says everything, never a queue of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from tenure.app.app import Tenure
from tenure.errors import TenureError
from tenure.jobs.ledger import Transition
from tenure.tokens.scopes import STAY_SECONDS
from tenure.wire.problems import RETRY_SECONDS

log = logging.getLogger(__name__)

TELL_SECONDS = 0.5
START_SECONDS = 0.02
PING_SECONDS = 15.0
RECONNECT_MILLISECONDS = 2_000
SAMPLE = 400
"""Moves that are looked at per round; beyond, the ledger is not read on but skipped."""
MAX_NAMED = 50
"""Jobs that are named; beyond, every page counts as concerned."""
MAX_VIEWERS = 200


@dataclass(slots=True)
class Note:
    """What moved since a viewer was last told."""

    transitions: int = 0
    jobs: set[str] | None = field(default_factory=set)  # None: too many to name
    arrows: Counter[str] = field(default_factory=Counter)

    def add(self, transitions: Sequence[Transition], *, skipped: bool) -> None:
        """Take in what moved."""
        self.transitions += len(transitions)
        if self.jobs is not None:
            self.jobs.update(transition.job_id for transition in transitions)
            if skipped or len(self.jobs) > MAX_NAMED:
                self.jobs = None
        self.arrows.update(
            f"{transition.source or ''} {transition.event}" for transition in transitions
        )

    def event(self) -> bytes:
        """The note as a server-sent event."""
        told = {
            "transitions": self.transitions,
            "jobs": None if self.jobs is None else sorted(self.jobs),
            "arrows": self.arrows,
        }
        return b"event: moved\ndata: %b\n\n" % msgspec.json.encode(told)


class _Viewer:
    """One open page: what it has not been told yet."""

    def __init__(self) -> None:
        self.note = Note()
        self.news = asyncio.Event()

    def progress(self, transitions: Sequence[Transition], *, skipped: bool) -> None:
        self.note.add(transitions, skipped=skipped)
        self.news.set()

    def take(self) -> Note:
        note, self.note = self.note, Note()
        self.news.clear()
        return note


class Follower:
    """Follows the ledger for every viewer of this server."""

    def __init__(self, app: Tenure, stopped: Callable[[], bool]) -> None:
        self._app = app
        self._stopped = stopped
        self._viewers: set[_Viewer] = set()
        self._following: asyncio.Task[None] | None = None
        self._position: str | None = None  # None until it follows

    def stream(self, may_stay: Callable[[], Awaitable[bool]]) -> Response:
        """The stream of one viewer, until that `may_stay` no longer."""
        if self._stopped() or len(self._viewers) >= MAX_VIEWERS:
            return Response(status_code=503, headers={"Retry-After": str(RETRY_SECONDS)})
        return StreamingResponse(
            self._told(may_stay),
            media_type="text/event-stream",
            headers={"X-Accel-Buffering": "no"},
        )

    async def _told(self, may_stay: Callable[[], Awaitable[bool]]) -> AsyncIterator[bytes]:
        viewer = _Viewer()
        self._viewers.add(viewer)
        try:
            await self._follow()
            yield f"retry: {RECONNECT_MILLISECONDS}\nevent: hello\ndata: {{}}\n\n".encode()
            quiet = 0.0
            asked = _loop().time()
            while not self._stopped():
                if _loop().time() - asked >= STAY_SECONDS:
                    asked = _loop().time()
                    if not await may_stay():
                        return
                try:
                    await asyncio.wait_for(viewer.news.wait(), TELL_SECONDS)
                except TimeoutError:
                    quiet += TELL_SECONDS
                    if quiet >= PING_SECONDS:
                        quiet = 0.0
                        yield b": still here\n\n"
                else:
                    quiet = 0.0
                    yield viewer.take().event()
        finally:
            self._viewers.discard(viewer)

    async def _follow(self) -> None:
        """See to it that the ledger is followed, from now on at the latest."""
        following = self._following
        if following is None or following.done() or following.get_loop() is not _loop():
            self._position = None
            self._following = _loop().create_task(self._watch())
        while self._position is None and not self._stopped():  # noqa: ASYNC110 another task's
            await asyncio.sleep(START_SECONDS)

    async def _watch(self) -> None:
        while self._viewers and not self._stopped():
            try:
                await self._look()
            except TenureError as error:
                log.warning("the dashboard cannot read the ledger, trying again: %s", error)
            except Exception:  # who waits for news would wait for ever
                log.exception("the dashboard cannot read the ledger, trying again")
            await asyncio.sleep(TELL_SECONDS)

    async def _look(self) -> None:
        if self._position is None:
            self._position = await run_in_threadpool(self._app.ledger_end)
        transitions = await run_in_threadpool(self._app.ledger, self._position, SAMPLE)
        if not transitions:
            return
        skipped = len(transitions) == SAMPLE
        end = await run_in_threadpool(self._app.ledger_end) if skipped else transitions[-1].position
        self._position = end
        for viewer in tuple(self._viewers):
            viewer.progress(transitions, skipped=skipped)


def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()
