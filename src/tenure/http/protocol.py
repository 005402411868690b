"""uvicorn's httptools protocol with the limits that httptools lacks, and answers sent whole.

A request's line and headers may not exceed `MAX_HEAD_BYTES`, and must arrive within `HEAD_SECONDS`
of the connection or of their first byte. Otherwise the connection is closed, so that a slow client
holds a socket for seconds, not for ever. If connections run out, the one that has been idle longest
is closed for a new one.

uvicorn writes the head and the body of an answer to the socket one by one, which takes twice as
many system calls and packets as needed. Here they are sent together.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 20.0
MAX_GATHERED = 64 * 1024
"""Bytes of an answer that may wait for the end of a step of the event loop."""


class HeadTooLarge(Exception):
    """Raised inside the parser, which answers 400 and closes the connection."""


class GatheringTransport:
    """A transport that sends together what is written in one step of the event loop."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._gathered = bytearray()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send `data` at the end of this step of the loop, or now if there is more than fits."""
        if not self._gathered:
            self._loop.call_soon(self._send)
        self._gathered += data
        if len(self._gathered) > MAX_GATHERED:
            self._send()

    def close(self) -> None:
        """Send what was written, then close the connection."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._gathered:
            gathered, self._gathered = self._gathered, bytearray()
            self._transport.write(gathered)


class BoundedProtocol(HttpToolsProtocol):
    """One connection, whose requests have heads limited in size and time."""

    _in_head = True
    _parsed_bytes = 0  # of the head, in complete headers
    _unparsed_bytes = 0  # of the head, in pieces after which it was still incomplete
    _deadline: asyncio.TimerHandle | None = None
    _idle_since = 0.0  # loop time

    def connection_made(self, transport: Any) -> None:
        """Start the first request's deadline, and make room for the next connection."""
        self._idle_since = self.loop.time()
        if self.limit_concurrency and len(self.connections) + 1 >= self.limit_concurrency:
            self._close_longest_idle()
        super().connection_made(cast(asyncio.Transport, GatheringTransport(transport, self.loop)))
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; close if the head is still incomplete and already too long."""
        super().data_received(data)
        if self._in_head:
            if self._deadline is None:
                self._deadline = self.loop.call_later(HEAD_SECONDS, self._close)
            self._unparsed_bytes += len(data)
            if self._unparsed_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The head of the request is too long.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._parsed_bytes = self._unparsed_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._parsed_bytes += len(name) + len(value)
        if self._parsed_bytes > MAX_HEAD_BYTES:
            raise HeadTooLarge
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._cancel_deadline()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def _close_longest_idle(self) -> None:
        idle = [
            other
            for other in self.connections
            if isinstance(other, BoundedProtocol)
            and (other.cycle is None or other.cycle.response_complete)
        ]
        if idle:
            longest = min(idle, key=lambda other: other._idle_since)
            self.connections.discard(longest)  # it no longer counts, although it ends later
            longest._close()

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
