"""Answers that wait: long polls for work, and the event stream of the ledger.

Both wait on a `WorkNotifier`, which rings when there may be work and when the server stops. Nothing
depends on the ring: whoever waits also looks by itself now and then, for jobs become due without
one.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from tenure.app.app import Tenure
from tenure.errors import TenureError
from tenure.jobs.ledger import EventFilter, LedgerEvent, LedgerPage
from tenure.jobs.work import ClaimRequest, Lease, Outcome, Report
from tenure.tokens.scopes import STAY_SECONDS
from tenure.wire import responses
from tenure.wire.problems import RETRY_SECONDS, Refusal

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
"""How often a waiting request looks by itself."""
PING_SECONDS = 15.0
RECONNECT_MILLISECONDS = 1_000
MAX_AT_ONCE = 500
MAX_STREAMS = 100


class WorkNotifier:
    """Wakes whatever waits, on any event loop, when there may be work or the server stops."""

    def __init__(self, listen: Callable[[Callable[[], None]], Callable[[], None]]) -> None:
        """`listen(ring)` has `ring` called when there may be work; it returns the way to end it."""
        self._listen = listen
        self._lock = threading.Lock()
        self._unlisten: Callable[[], None] | None = None
        self._waiters: set[Waiter] = set()
        self.stopped = False
        self.streams = 0  # open event streams

    def start(self) -> None:
        """Let waits begin, again if they were stopped: a lifespan may come more than once."""
        self.stopped = False

    def waiter(self) -> Waiter:
        """Something to wait on, for the calling coroutine; use it in a `with` statement."""
        with self._lock:
            if self._unlisten is None:
                self._unlisten = self._listen(self.notify)
        return Waiter(self._waiters)

    def check_running(self) -> None:
        """Refuse to begin anything when the server stops."""
        if self.stopped:
            raise Refusal(
                503,
                "shutting_down",
                "The server is shutting down",
                "the server is shutting down and takes nothing new; send it again in a moment",
                {"Retry-After": str(RETRY_SECONDS)},
            )

    def notify(self) -> None:
        """Wake everything that waits. Safe from any thread."""
        for waiter in tuple(self._waiters):
            waiter.notify()

    def stop(self) -> None:
        """End every wait, now and from now on. Safe from any thread and from a signal handler."""
        self.stopped = True
        self.notify()

    def close(self) -> None:
        """Stop, and stop listening."""
        self.stop()
        with self._lock:
            unlisten, self._unlisten = self._unlisten, None
        if unlisten is not None:
            unlisten()


class Waiter:
    """One coroutine's place at the notifier. A notification before `wait` is not lost."""

    def __init__(self, place: set[Waiter]) -> None:
        self._place = place
        self._loop = asyncio.get_running_loop()
        self._rung = asyncio.Event()
        self._called = False

    def __enter__(self) -> Waiter:
        self._place.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._place.discard(self)

    def notify(self) -> None:
        """Wake the coroutine; many rings before it runs cost one wake-up."""
        if not self._called:
            self._called = True
            try:
                self._loop.call_soon_threadsafe(self._rung.set)
            except RuntimeError:  # its loop is closed: it waits no more
                self._place.discard(self)

    async def wait(self, seconds: float) -> None:
        """Return at the next ring, or after `seconds`."""
        timer = self._loop.call_later(max(seconds, 0.0), self._rung.set)
        await self._rung.wait()
        timer.cancel()
        self._called = False
        self._rung.clear()


# --- long polls -----------------------------------------------------------------------------------


async def claim(
    app: Tenure, wanted: ClaimRequest, request: Request, notifier: WorkNotifier
) -> Sequence[Lease]:
    """Lease jobs, waiting for some up to `wait_seconds`; nothing when the server stops.

    Nothing is claimed for a client that has gone; what was claimed while it went is handed back,
    so that no job waits for a lease that nobody knows of.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wanted.wait_seconds
    with notifier.waiter() as waiter:
        gone = loop.create_task(_until_gone(request, waiter))
        try:
            await asyncio.sleep(0)  # lets a disconnection that is known already be seen
            while not (gone.done() or notifier.stopped):
                leases = (await asyncio.wrap_future(app.exchange((), wanted))).leases
                if leases and gone.done():
                    await _hand_back(app, leases, wanted.worker)
                    break
                left = deadline - loop.time()
                if leases or left <= 0:
                    return leases
                await waiter.wait(min(left, LOOK_SECONDS))
        finally:
            gone.cancel()
    return ()


async def _until_gone(request: Request, waiter: Waiter) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    waiter.notify()


async def _hand_back(app: Tenure, leases: Sequence[Lease], worker: str) -> None:
    released = [
        Report(lease.id, lease.lease_id, Outcome.RELEASED, actor=worker) for lease in leases
    ]
    await asyncio.wrap_future(app.exchange(released, None))


# --- the event stream -----------------------------------------------------------------------------


async def start_of(app: Tenure, after: str | None, wanted: EventFilter) -> tuple[str, LedgerPage]:
    """Where a stream begins and what it tells first; `after` None begins with what happens next.

    Raises InvalidInput for something that is no position of this store.
    """
    if after is None:
        end = await run_in_threadpool(app.ledger_end)
        return end, LedgerPage((), end, more=False)
    return after, await run_in_threadpool(app.transitions, after, MAX_AT_ONCE, wanted)


async def events(
    app: Tenure,
    notifier: WorkNotifier,
    start: tuple[str, LedgerPage],
    wanted: EventFilter,
    *,
    without_errors: bool = False,
    may_stay: Callable[[], Awaitable[bool]],
) -> AsyncIterator[bytes]:
    """The moves that are wanted as server-sent events, from `start` on until the server stops.

    Each event's `id` is its position, so a client that comes back misses nothing and sees nothing
    twice. Where nothing was wanted for a while, an `id` alone says how far the ledger was read, so
    that nobody who comes back begins far behind. `withheld`: without the errors, which may hold
    what is redacted; a job's history shows them. It ends once the reader `may_stay` no longer, and
    holds at most one page of the ledger; a slow reader slows nobody else.
    """
    with notifier.waiter() as waiter:
        position, transitions = start
        yield f"retry: {RECONNECT_MILLISECONDS}\nid: {position}\n\n".encode()
        loop = asyncio.get_running_loop()
        spoke = asked = loop.time()
        while not notifier.stopped:
            if loop.time() - asked >= STAY_SECONDS:
                asked = loop.time()
                if not await may_stay():
                    return
            if transitions.told:
                yield b"".join(
                    _event(told, without_errors=without_errors) for told in transitions.told
                )
                spoke = loop.time()
            elif loop.time() - spoke >= PING_SECONDS:
                yield f": still here\nid: {transitions.position}\n\n".encode()
                spoke = loop.time()
            if not transitions.more:
                await waiter.wait(LOOK_SECONDS)
            after = transitions.position
            try:
                transitions = await run_in_threadpool(app.transitions, after, MAX_AT_ONCE, wanted)
            except TenureError as error:
                transitions = LedgerPage((), after, more=False)
                log.warning("the event stream cannot read the ledger, trying again: %s", error)


class EventStream(StreamingResponse):
    """The answer that is a stream. It counts from before its first byte until it has ended."""

    def __init__(self, notifier: WorkNotifier, told: AsyncIterator[bytes]) -> None:
        super().__init__(told, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._notifier = notifier

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        if scope["method"] == "HEAD":  # who asks for the head alone does not wait for an end
            await Response(headers=self.headers)(scope, receive, send)
            return
        self._notifier.streams += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._notifier.streams -= 1


def check_room(notifier: WorkNotifier) -> None:
    """Refuse one stream too many, and any when the server stops."""
    notifier.check_running()
    if notifier.streams >= MAX_STREAMS:
        raise Refusal(
            503,
            "too_many_streams",
            "Too many event streams",
            f"{MAX_STREAMS} event streams are open, as many as there may be; try again later",
            {"Retry-After": str(RETRY_SECONDS)},
        )


def _event(told: LedgerEvent, *, without_errors: bool) -> bytes:
    transition = told.transition
    shown = told.without_errors() if without_errors else told
    data = msgspec.json.encode(responses.event_body(shown))  # JSON has no line breaks of its own
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (
        transition.position.encode(),
        transition.event.encode(),
        data,
    )
