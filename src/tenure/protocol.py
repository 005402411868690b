"""uvicorn's httptools protocol with the limits that httptools lacks.

A request's line and headers may not grow beyond `MOST_HEAD_BYTES` and must be there within
`HEAD_SECONDS` of the connection or of their first byte, or the connection is closed: a client that
dribbles holds a socket for seconds, not for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 20.0


class HeadTooLarge(Exception):
    """Raised inside the parser, which answers 400 and closes the connection."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection, whose requests have heads bounded in size and time."""

    _in_head = True
    _parsed_bytes = 0  # of the head, in complete headers
    _unparsed_bytes = 0  # of the head, in pieces after which it was still incomplete
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Give the first request its time."""
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._forget_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; close if the head is still incomplete and already too long."""
        super().data_received(data)
        if self._in_head:
            self._unparsed_bytes += len(data)
            if self._unparsed_bytes > MOST_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The head of the request is too long.")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        if not self._in_head:
            self._in_head = True
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._give_up)
        self._parsed_bytes = self._unparsed_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """One more header."""
        self._parsed_bytes += len(name) + len(value)
        if self._parsed_bytes > MOST_HEAD_BYTES:
            raise HeadTooLarge
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there; the body's deadline is kept where it is read."""
        self._in_head = False
        self._forget_deadline()
        super().on_headers_complete()

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
