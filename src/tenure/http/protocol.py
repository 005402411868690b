"""uvicorn's httptools protocol with the limits that httptools lacks, and answers sent whole.

Bytes that are no body, such as heads, chunk heads and trailers, may not exceed `MAX_OVERHEAD_BYTES`
in a row, and must arrive within `OVERHEAD_SECONDS`. A client that does not read is cut off after
`WRITE_SECONDS`. `Room` bounds how many connections there are. So a slow client holds a socket for
seconds, not for ever.

An answer that comes before the whole request ends the connection, in order: the server closes its
side, and drops what still arrives for up to `OVERHEAD_SECONDS`. If it closed the socket at once,
the client would see a reset instead of the answer.

uvicorn writes the head and the body of an answer to the socket one by one, which takes twice as
many system calls and packets as needed. Here they are sent together.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from math import inf
from typing import Any, cast

from starlette.types import Message, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tenure.http.guard import ADMITTED

log = logging.getLogger(__name__)

MAX_OVERHEAD_BYTES = 64 * 1024
OVERHEAD_SECONDS = 20.0
WRITE_SECONDS = 30.0
"""How long a client may take none of the bytes that wait for it."""
MAX_STRANGERS = 200
"""Connections on which no request has had a caller yet."""
MIN_PARSED = 512
"""Bytes that are parsed at once, and what follows them up to the end of a head."""
TURN_SECONDS = 0.001
"""All strangers together send one part in this time: a request, or what one read brings."""
MAX_GATHERED = 64 * 1024
"""Bytes of an answer that may wait for the end of a step of the event loop."""


class Refused(Exception):
    """Raised inside the parser, which answers 400 and closes the connection."""


class GatheringTransport:
    """A transport that sends together what is written in one step of the event loop."""

    unread = False
    """Whether a request has started and not ended, so that the client may not listen yet."""
    half_closed = False
    """Whether nothing more is sent, while the client may still send."""
    held = False
    """Whether nothing is read, although uvicorn would read on."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._gathered = bytearray()
        self._written = 0
        self._taken = -1  # bytes that the client had taken at the last look
        self._taken_at = 0.0

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
        """Send what was written, then close the connection; only this side if `unread`."""
        self._send()
        if self.half_closed or not self.unread or self._transport.is_closing():
            self._transport.close()
            return
        self.half_closed = True
        self._transport.resume_reading()
        try:
            self._transport.write_eof()
        except OSError:  # the client is gone
            self._transport.close()

    def hold_reading(self) -> None:
        """Read nothing until it is released."""
        self.held = True
        self._transport.pause_reading()

    def release_reading(self, *, paused: bool) -> None:
        """Read again, unless it is `paused` for another reason."""
        self.held = False
        if not paused:
            self._transport.resume_reading()

    def resume_reading(self) -> None:
        """Read again, unless it is held."""
        if not self.held:
            self._transport.resume_reading()

    def is_closing(self) -> bool:
        """Return whether nothing more can be sent."""
        return self.half_closed or self._transport.is_closing()

    def is_stuck(self, now: float) -> bool:
        """Return whether the client has taken nothing that waits for it for `WRITE_SECONDS`."""
        waiting = self._transport.get_write_buffer_size()
        taken = self._written - waiting
        if not waiting or taken != self._taken:
            self._taken, self._taken_at = taken, now
        return now - self._taken_at >= WRITE_SECONDS

    def _send(self) -> None:
        gathered, self._gathered = self._gathered, bytearray()
        if gathered and not self.is_closing():
            self._written += len(gathered)
            self._transport.write(gathered)


class Room:
    """The connections of one server. For each that is too many, another one is aborted."""

    def __init__(self, places: int) -> None:
        """Hold `places` connections, of which strangers get `MAX_STRANGERS` or half."""
        self.places = places
        self._max_strangers = min(MAX_STRANGERS, places // 2)
        self._strangers: dict[BoundedProtocol, None] = {}  # the oldest first
        self._logged = False

    def enter(self, newcomer: BoundedProtocol) -> None:
        """Take in a connection. Close the oldest stranger or the longest idle one if need be."""
        if len(self._strangers) >= self._max_strangers:
            self._abort(next(iter(self._strangers)))
        connections = cast("set[BoundedProtocol]", newcomer.connections)
        if len(connections) + 1 >= self.places:
            idle = [one for one in connections if one.is_idle]
            if idle:
                self._abort(min(idle, key=lambda one: one.idle_since))
        self._strangers[newcomer] = None

    def admit(self, connection: BoundedProtocol) -> None:
        """Count a connection as a caller's from now on, or not at all if it has ended."""
        self._strangers.pop(connection, None)

    def turn_seconds(self, connection: BoundedProtocol) -> float:
        """Return how long a connection rests after each part that it sends; 0 if a caller's."""
        strangers = len(self._strangers)
        return strangers * TURN_SECONDS if connection in self._strangers else 0.0

    def _abort(self, connection: BoundedProtocol) -> None:
        if not self._logged:
            self._logged = True
            log.warning(
                "there are too many connections. For each new one, the server closes the oldest "
                "connection without a valid token, or else the one that is idle for longest. "
                "This is logged once"
            )
        connection.abort()


class BoundedProtocol(HttpToolsProtocol):
    """One connection, bounded in what it may hold and for how long."""

    transport: Any
    cycle: Any  # of the newest request; None before the first
    _in_head = True
    _head_bytes = 0  # of the URL and of complete headers
    _other_bytes = 0  # that came since anything else than overhead did
    _unparsed = b""
    _resting = False  # while others have their turn
    _refused = False  # as no HTTP, or too large: the parser gets nothing more
    _advanced = False  # by this read: a request or a piece of its body began or ended
    _keep_alive = True  # if the whole request arrives before the answer
    _due = inf  # loop time
    idle_since = 0.0  # loop time

    def __init__(self, room: Room, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._room = room
        self._unanswered: deque[Any] = deque()  # uvicorn's cycles, in the order of their requests

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being answered."""
        return not self._unanswered

    def connection_made(self, transport: Any) -> None:
        """Start the first request's deadline, and make room for the next connection."""
        self.idle_since = self.loop.time()
        self._due = self.idle_since + OVERHEAD_SECONDS
        self._room.enter(self)
        super().connection_made(cast(asyncio.Transport, GatheringTransport(transport, self.loop)))

    def connection_lost(self, exc: Exception | None) -> None:
        self._room.admit(self)
        self._unparsed = b""
        self._end_answer()
        super().connection_lost(exc)

    def abort(self) -> None:
        """End the connection at once. It no longer counts."""
        self._room.admit(self)
        self.connections.discard(self)
        self.transport.abort()

    def look(self, now: float) -> None:
        """Abort the connection if its client is too slow, at loop time `now`."""
        if self.transport.half_closed:
            self._due = min(self._due, now + OVERHEAD_SECONDS)
        elif self.flow.read_paused or self._unparsed:  # what the server does not read cannot arrive
            self._due = max(self._due, now + OVERHEAD_SECONDS)
        if now >= self._due or self.transport.is_stuck(now):
            self.abort()

    # --- what arrives

    def data_received(self, data: bytes) -> None:
        """Parse it; refuse too much that is no body."""
        self._advanced = False
        self._unparsed += data
        self._parse()
        if not self._advanced and not self._unparsed:
            self._due = min(self._due, self.loop.time() + OVERHEAD_SECONDS)
            self._other_bytes += len(data)
            if self._other_bytes > MAX_OVERHEAD_BYTES:
                if self.transport.is_closing():
                    self.abort()
                else:
                    self.send_400_response("The request is too long, even without its body.")

    def _parse(self) -> None:
        """Parse what has arrived, while no request waits: each that waits takes some kilobytes.

        Then let others have their turn: uvloop would read up to 32 times from one connection.
        """
        while not self._resting and (not self.pipeline or self.transport.is_closing()):
            if not self._unparsed:
                break
            turn = self._room.turn_seconds(self)
            end = self._unparsed.find(b"\r\n\r\n", 0 if turn else MIN_PARSED) + 4
            part = self._unparsed[:end] if end > 3 else self._unparsed
            self._unparsed = self._unparsed[len(part) :]
            if not self._refused:
                super().data_received(part)
            if turn or len(part) > MAX_GATHERED:
                self._resting = True
                self.loop.call_later(turn, self._continue)
        if self._unparsed or self._resting:
            self.transport.hold_reading()
        elif self.transport.held:
            paused = self.flow.read_paused and not self.transport.half_closed
            self.transport.release_reading(paused=paused)

    def _continue(self) -> None:
        if self._resting:
            self._resting = False
            self._parse()

    def _advance(self, due: float = inf) -> None:
        self._advanced = True
        self._other_bytes = 0
        if not self.transport.half_closed:
            self._due = due

    def on_message_begin(self) -> None:
        if self.transport.is_closing():  # after the request whose answer ends the connection
            raise Refused
        super().on_message_begin()
        self._in_head = self.transport.unread = True
        self._head_bytes = 0
        self._advance(self.loop.time() + OVERHEAD_SECONDS)

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:  # a trailer: uvicorn would add it to the head
            raise Refused
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_OVERHEAD_BYTES:
            raise Refused

    def on_headers_complete(self) -> None:
        self._advance()
        cast("dict[str, Any]", self.scope)[ADMITTED] = self.admit
        super().on_headers_complete()  # raises for a bad address
        self._in_head = False
        self._unanswered.append(self.cycle)
        if self.scope["http_version"] == "1.0":
            self.cycle.send = _without_chunks(self.cycle)
        self._keep_alive, self.cycle.keep_alive = self.cycle.keep_alive, False

    def on_body(self, body: bytes) -> None:
        self._advance()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._advance()
        self.transport.unread = False
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keep_alive
        super().on_message_complete()
        if self.transport.half_closed:
            self.transport.close()

    def admit(self) -> None:
        """Count this connection as a caller's from now on."""
        self._room.admit(self)
        self._continue()

    # --- what is answered

    def on_response_complete(self) -> None:
        self.idle_since = self.loop.time()
        self._unanswered.popleft()
        super().on_response_complete()
        if self._unparsed:
            self._parse()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be read, and close; without a word if an answer is due before."""
        self._refused = True
        self._other_bytes = 0
        if self.transport.is_closing():
            return
        unread = not self._in_head and not self.cycle.response_started
        if len(self._unanswered) == unread:  # every request before this one is answered
            super().send_400_response(msg)
            self._end_answer()
        else:
            self.abort()

    def _end_answer(self) -> None:
        """Let the request that is being answered know that there is no client any more."""
        if self._unanswered:  # uvicorn ends the newest, which waits if there are several
            self._unanswered[0].disconnected = True
            self._unanswered[0].message_event.set()

    def shutdown(self) -> None:
        self._keep_alive = False
        super().shutdown()


def _without_chunks(cycle: Any) -> Send:
    """Return the `send` of a cycle whose client, of HTTP/1.0, does not know chunks.

    uvicorn would send them. An answer of unknown length ends with the connection.
    """
    send: Send = cycle.send
    declared = True

    async def send_plain(message: Message) -> None:
        nonlocal declared
        if message["type"] == "http.response.start":
            declared = any(name.lower() == b"content-length" for name, _ in message["headers"])
            cycle.chunked_encoding = None if declared else False
        elif not declared:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    return send_plain
