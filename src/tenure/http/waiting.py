"""What lets an answer take its time: waiting for work, and streams of server-sent events.

Nothing depends on a notification. A request that waits also looks for itself now and then, because
jobs become due without one.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from tenure.errors import StoreUnavailable, Unauthorized
from tenure.http.guard import check_again
from tenure.rules.reports import WorkSource
from tenure.rules.tokens import CALLER, Caller
from tenure.telemetry.logs import Repeats
from tenure.wire.problems import RETRY_LATER, Refusal

T = TypeVar("T")

READS_AT_ONCE = 4
"""Pages that are made at once, and as many reads of the API. Each holds the interpreter for
milliseconds: with 40 threads the event loop waited for its turn, and a page took twice the time."""
LOOK_SECONDS = 0.25
"""How often a waiting request looks without a notification."""
SURE_LOOK_SECONDS = 2.0
"""The same where the store is sure to notify, and says when the next job falls due."""
PING_SECONDS = 15.0
RECHECK_SECONDS = 2.0
"""How often a stream checks that its token is still valid: a stream can last for weeks."""
PING = b": still here\n\n"


def look_pause(next_due: float | None) -> float:
    """Return how long to wait for a job after a claim that says when the next one falls due."""
    return LOOK_SECONDS if next_due is None else min(next_due, SURE_LOOK_SECONDS)


class WorkNotifier:
    """Wakes every waiting request, on any event loop."""

    def __init__(self, source: WorkSource, *, mounted: bool) -> None:
        """`mounted`: the server that ends may be that of another application."""
        self._source = source
        self._mounted = mounted
        self._waiters: set[Waiter] = set()
        self._stopped = False
        self.repeats = Repeats()  # what the streams of events have logged
        self.streams: set[EventStream] = set()  # the open streams of events
        self.end_streams: set[EventStream] = set()  # those of workers
        self._thread = ThreadPoolExecutor(1, "tenure-streams")

    def start(self) -> None:
        """Allow waiting, again if it was stopped: an application can have several lifespans."""
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether every wait is to end."""
        return self._stopped or (self._mounted and _host_stops())

    @contextmanager
    def waiter(self, worker: str | None = None) -> Iterator[Waiter]:
        """Yield what the calling coroutine can wait on: for work, or the end of a worker's leases.

        The latter as `WorkSource.on_end` says.
        """
        waiter, source = Waiter(), self._source
        listen = source.on_work if worker is None else partial(source.on_end, worker)
        unlisten = listen(waiter.notify)
        self._waiters.add(waiter)
        try:
            yield waiter
        finally:
            unlisten()
            self._waiters.discard(waiter)

    async def result_of(self, future: Future[T], request: Request, seconds: float) -> T | None:
        """Return the result of a future, which it then cancels.

        None when the time is over, the server stops or the client has gone.
        """
        loop, waiter = asyncio.get_running_loop(), Waiter()
        self._waiters.add(waiter)
        gone = loop.create_task(until_gone(request, waiter))
        future.add_done_callback(lambda _: waiter.notify())
        deadline = loop.time() + seconds
        try:
            while not (future.done() or gone.done() or self.stopped):
                if (left := deadline - loop.time()) <= 0:
                    break
                await waiter.wait(left)
            return future.result() if future.done() else None
        finally:
            self._waiters.discard(waiter)
            gone.cancel()
            future.cancel()

    async def read(self, read: Callable[..., T], *given: Any) -> T:
        """Call `read` for a stream, after what other streams have read.

        Reading holds the interpreter: a hundred streams that read at once would leave the event
        loop little of it.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, read, *given)

    def stop(self) -> None:
        """End every wait, now and from now on. Safe from any thread and from a signal handler."""
        self._stopped = True
        for waiter in tuple(self._waiters):
            waiter.notify()


class Waiter:
    """One waiting coroutine. A notification that comes before `wait` is not lost."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._notified = False

    def notify(self) -> None:
        """Wake the coroutine. Several notifications before it runs cost one wake-up."""
        if not self._notified:
            self._notified = True
            with suppress(RuntimeError):  # the loop is closed, so nothing waits on it
                self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, seconds: float) -> bool:
        """Return at the next notification, or after `seconds`; whether there was one."""
        timer = self._loop.call_later(max(seconds, 0.0), self._event.set)
        await self._event.wait()
        timer.cancel()
        notified, self._notified = self._notified, False
        self._event.clear()
        return notified


async def until_gone(request: Request, waiter: Waiter) -> None:
    """Return, and wake the waiter, when the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    waiter.notify()


def _host_stops() -> bool:
    """Whether uvicorn, which serves the application that this one is mounted in, ends.

    It notifies no mounted application, and waits for the streams of this one. What it keeps for
    its own handler of the signal says so.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return bool(getattr(server, "should_exit", False))


Source = AsyncGenerator[tuple[bytes, bytes], None]
"""Yields in each round the events to send now, as bytes, and the comment to send instead if there
are none and the stream has been silent for `PING_SECONDS`."""


class EventStream(StreamingResponse):
    """Sends what a source yields until the source ends or the caller's token becomes invalid."""

    def __init__(self, scope: Scope, source: Source, streams: set[EventStream]) -> None:
        """`streams` holds this stream from before its first byte until it has ended."""
        super().__init__(
            _checked(scope, source),
            media_type="text/event-stream",
            headers={"X-Accel-Buffering": "no"},
        )
        self._streams = streams
        self.caller: str = scope[CALLER].name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":  # the head alone, without waiting for an end
            await Response(headers=self.headers)(scope, receive, send)
            return
        self._streams.add(self)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.discard(self)


def check_room(streams: set[EventStream], most: int) -> None:
    """Raise Refusal if as many streams are open as there may be."""
    if len(streams) >= most:
        raise _too_many(f"{most} event streams are open, which is the limit")


def check_share(streams: set[EventStream], most: int, caller: Caller) -> None:
    """Raise Refusal like `check_room`, and if a token for some queues has a quarter of the room.

    So no tenant takes the streams of all others.
    """
    check_room(streams, most)
    if caller.queues is None:
        return
    share = most // 4
    if sum(stream.caller == caller.name for stream in streams) >= share:
        raise _too_many(f"{share} event streams are open with this token, which is its share")


def _too_many(said: str) -> Refusal:
    title = "Too many event streams"
    return Refusal(503, "too_many_streams", title, f"{said}; try again later", RETRY_LATER)


async def _checked(scope: Scope, source: Source) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    sent_at = checked_at = loop.time()
    async with aclosing(source) as rounds:
        async for events, ping in rounds:
            now = loop.time()
            if now - checked_at >= RECHECK_SECONDS:
                checked_at = now
                with suppress(StoreUnavailable):  # then there is nothing to read, either
                    try:
                        await check_again(scope)
                    except Unauthorized:
                        return
            if events or now - sent_at >= PING_SECONDS:
                sent_at = now
                yield events or ping
