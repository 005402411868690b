"""One connection, seen from its socket: when and in which pieces answers are sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from tenure.http import protocol as limits
from tenure.http.protocol import MAX_GATHERED, BoundedProtocol

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
CLOSED = b"(closed)"


class Socket(asyncio.Transport):
    """Keeps what is written to it, piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.sent = asyncio.Event()
        self.closed = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.pieces.append(bytes(data))
        self.sent.set()

    def close(self) -> None:
        self.pieces.append(CLOSED)
        self.closed.set()

    def is_closing(self) -> bool:
        return CLOSED in self.pieces

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


def connected(app: ASGIApp) -> tuple[BoundedProtocol, Socket]:
    """A connection to `app` that has just been made."""
    config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_keep_alive=75)
    config.load()
    made = BoundedProtocol(config, ServerState(), {}, asyncio.get_running_loop())
    socket = Socket()
    made.connection_made(socket)
    return made, socket


def answering(
    *body: bytes, declared: bool = True, then: Callable[[], None] = lambda: None
) -> ASGIApp:
    """An application that sends these pieces in one step of the loop, and does `then` in it."""
    length = [(b"content-length", str(sum(map(len, body))).encode())]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = length if declared else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in body:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        then()

    return app


@pytest.mark.anyio
async def test_an_answer_is_sent_as_one() -> None:
    for declared in (True, False):
        protocol, socket = connected(answering(b"ab", b"cd", declared=declared))
        for number in (1, 2, 3):
            protocol.data_received(REQUEST)
            await asyncio.wait_for(socket.sent.wait(), 10)
            socket.sent.clear()
            assert len(socket.pieces) == number
            head, _, body = socket.pieces[-1].partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert body == (b"abcd" if declared else b"2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n")
        protocol.connection_lost(None)


@pytest.mark.anyio
async def test_much_is_sent_as_it_comes() -> None:
    counts = []
    piece = b"x" * (MAX_GATHERED + 1)
    app = answering(*[piece] * 5, then=lambda: counts.append(len(socket.pieces)))
    protocol, socket = connected(app)
    protocol.data_received(REQUEST)
    await asyncio.wait_for(socket.sent.wait(), 10)
    assert counts == [5]
    assert b"".join(socket.pieces).endswith(b"\r\n\r\n" + piece * 5)
    protocol.connection_lost(None)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("act", "last"),
    [
        (lambda protocol: protocol.data_received(b"no HTTP\r\n\r\n"), b"HTTP/1.1 400"),
        (lambda protocol: protocol.shutdown(), b"abcd"),
    ],
    ids=["refusal", "shutdown"],
)
async def test_nothing_overtakes_an_answer(
    act: Callable[[BoundedProtocol], None], last: bytes
) -> None:
    """Neither the refusal of what comes next nor the end of the connection."""
    protocol, socket = connected(answering(b"abcd", then=lambda: act(protocol)))
    protocol.data_received(REQUEST)
    await asyncio.wait_for(socket.sent.wait(), 10)
    *sent, end = socket.pieces
    assert end == CLOSED
    answer = b"".join(sent)
    assert answer.startswith(b"HTTP/1.1 200")
    assert 0 < answer.find(b"\r\n\r\nabcd") <= answer.find(last)
    protocol.connection_lost(None)


@pytest.mark.anyio
@pytest.mark.parametrize("packets", [[REQUEST, REQUEST[:20]], [REQUEST + REQUEST[:20]]])
@pytest.mark.scenario(98)
async def test_the_head_of_a_later_request_has_its_deadline_too(
    monkeypatch: pytest.MonkeyPatch, packets: list[bytes]
) -> None:
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.1)

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.3)  # an answer may take longer than a head
        await answering(b"abcd")(scope, receive, send)

    protocol, socket = connected(slow if len(packets) > 1 else answering(b"abcd"))
    for packet in packets:
        protocol.data_received(packet)
        await asyncio.wait_for(socket.sent.wait(), 10)
        assert b"200 OK" in socket.pieces[0]
    await asyncio.wait_for(socket.closed.wait(), 10)
    protocol.connection_lost(None)
