"""Server-sent events: the answer that lasts, shared by the API's event stream and the dashboard.

The two differ only in what they send. A source is an asynchronous generator. In each round it
yields the events to send now, as bytes, and the comment to send instead if there are none and the
stream has been silent for `PING_SECONDS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from tenure.http.guard import still_allowed

PING_SECONDS = 15.0
RECHECK_SECONDS = 2.0
"""How often a stream checks that its token is still valid: a stream can last for weeks."""
PING = b": still here\n\n"

Source = AsyncGenerator[tuple[bytes, bytes], None]


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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":  # the head alone, without waiting for an end
            await Response(headers=self.headers)(scope, receive, send)
            return
        self._streams.add(self)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.discard(self)


async def _checked(scope: Scope, source: Source) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    sent_at = checked_at = loop.time()
    async with aclosing(source) as rounds:
        async for events, ping in rounds:
            now = loop.time()
            if now - checked_at >= RECHECK_SECONDS:
                checked_at = now
                if not await still_allowed(scope):
                    return
            if events or now - sent_at >= PING_SECONDS:
                sent_at = now
                yield events or ping
