"""One connection, seen from its socket: when and in which pieces answers are sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from tenure.http import protocol as limits
from tenure.http.protocol import (
    MAX_GATHERED,
    MAX_OVERHEAD_BYTES,
    OVERHEAD_SECONDS,
    WRITE_SECONDS,
    BoundedProtocol,
    Room,
)

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
CLOSED = b"(closed)"
HALF_CLOSED = b"(half closed)"


class Socket(asyncio.Transport):
    """Keeps what is written to it, piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.sent = asyncio.Event()
        self.closed = asyncio.Event()
        self.reading = True
        self.waiting = 0  # bytes that the client has not taken

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.closed.is_set():
            raise RuntimeError("the handler is closed")  # as uvloop does
        self.pieces.append(bytes(data))
        self.sent.set()

    def close(self) -> None:
        if not self.closed.is_set():
            self.pieces.append(CLOSED)
            self.closed.set()

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return CLOSED in self.pieces

    def write_eof(self) -> None:
        self.pieces.append(HALF_CLOSED)

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def connected(app: ASGIApp, *, of_caller: bool = True) -> tuple[BoundedProtocol, Socket]:
    """A connection to `app` that has just been made."""
    config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_keep_alive=75)
    config.load()
    made = BoundedProtocol(Room(8), config, ServerState(), {}, asyncio.get_running_loop())
    socket = Socket()
    made.connection_made(socket)
    if of_caller:
        made.admit()
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
@pytest.mark.parametrize("declared", [True, False])
async def test_a_client_of_http_1_0_gets_no_chunks(declared: bool) -> None:
    """It took the sizes of the pieces for a part of the answer."""
    protocol, socket = connected(answering(b"ab", b"cd", declared=declared))
    protocol.data_received(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
    await asyncio.wait_for(socket.closed.wait(), 10)
    head, _, body = b"".join(socket.pieces).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body == b"abcd" + CLOSED
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
    assert end in (CLOSED, HALF_CLOSED)
    answer = b"".join(sent)
    assert answer.startswith(b"HTTP/1.1 200")
    assert 0 < answer.find(b"\r\n\r\nabcd") <= answer.find(last)
    protocol.connection_lost(None)


@pytest.mark.anyio
@pytest.mark.parametrize("before", [b"", REQUEST], ids=["first", "second"])
async def test_an_address_that_is_none_is_refused(before: bytes) -> None:
    protocol, socket = connected(answering(b"abcd"))
    if before:
        protocol.data_received(before)
        await asyncio.wait_for(socket.sent.wait(), 10)
        await asyncio.sleep(0)  # the request has ended
        socket.pieces.clear()
    protocol.data_received(b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"".join(socket.pieces).startswith(b"HTTP/1.1 400")
    assert socket.closed.is_set() or HALF_CLOSED in socket.pieces
    protocol.connection_lost(None)


HEAD = REQUEST[:20]
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
TIMES = {
    "nothing": ([], OVERHEAD_SECONDS),
    "a part of a head": ([HEAD], OVERHEAD_SECONDS),
    "a part of a second head": ([REQUEST, HEAD], OVERHEAD_SECONDS),
    "the same, in one packet": ([REQUEST + HEAD], OVERHEAD_SECONDS),
    "empty lines after a request": ([REQUEST, b"\r\n"], OVERHEAD_SECONDS),
    "a part of a chunk's head": ([POST, b"5"], OVERHEAD_SECONDS),
    "a part of a trailer": ([POST, b"0\r\nX: y"], OVERHEAD_SECONDS),
    "an idle connection": ([REQUEST], None),
    "a part of a body": ([POST, b"5\r\nabc"], None),
}


@pytest.mark.anyio
@pytest.mark.parametrize(("packets", "seconds"), TIMES.values(), ids=TIMES)
@pytest.mark.scenario(98)
async def test_what_is_no_body_has_to_come_in_time(
    packets: list[bytes], seconds: float | None
) -> None:
    never = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            await never.wait()
        await answering(b"abcd")(scope, receive, send)

    protocol, socket = connected(app)
    began = protocol.loop.time()
    for packet in packets:
        protocol.data_received(packet)
        if packet.startswith(REQUEST):
            await asyncio.wait_for(socket.sent.wait(), 10)
    protocol.look(began + OVERHEAD_SECONDS - 0.1)
    assert not socket.closed.is_set()
    protocol.look(protocol.loop.time() + OVERHEAD_SECONDS)
    assert socket.closed.is_set() == (seconds is not None)
    protocol.connection_lost(None)
    never.set()


@pytest.mark.anyio
@pytest.mark.scenario(98)
async def test_what_the_server_does_not_read_cannot_come_in_time() -> None:
    """Reading is paused, since a second request waits for the answer to the first."""
    answer = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await answer.wait()
        await answering(b"abcd")(scope, receive, send)

    protocol, socket = connected(slow)
    protocol.data_received(REQUEST + REQUEST + HEAD)
    later = protocol.loop.time() + 10 * OVERHEAD_SECONDS
    protocol.look(later)
    assert not socket.closed.is_set()
    protocol.look(later + OVERHEAD_SECONDS - 1)
    assert not socket.closed.is_set()
    protocol.connection_lost(None)
    answer.set()


@pytest.mark.anyio
@pytest.mark.scenario(98)
async def test_few_requests_of_one_connection_are_kept() -> None:
    """Those that wait for an answer take kilobytes each, however short they are."""
    answer = asyncio.Event()
    answered = []
    every = asyncio.Event()
    many = 5_000

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        answered.append(scope["path"])
        if len(answered) == many:
            every.set()
        await receive()  # which makes uvicorn read on
        await answer.wait()
        await answering(b"abcd")(scope, receive, send)

    protocol, socket = connected(slow)
    protocol.data_received(REQUEST * many)
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(protocol.pipeline) < 30
    assert not socket.reading
    answer.set()
    await asyncio.wait_for(every.wait(), 30)
    assert socket.reading
    protocol.connection_lost(None)


@pytest.mark.anyio
@pytest.mark.parametrize("bad", [b"no HTTP\r\n\r\n", POST + b"x"], ids=["head", "chunk"])
async def test_a_refusal_is_not_taken_for_an_earlier_answer(bad: bytes) -> None:
    """The connection ends instead, and with it what is being answered."""
    ended = asyncio.Event()

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        ended.set()

    protocol, socket = connected(waits)
    protocol.data_received(REQUEST)
    await asyncio.sleep(0)
    protocol.data_received(bad)
    assert socket.pieces == [CLOSED]
    protocol.connection_lost(None)
    await asyncio.wait_for(ended.wait(), 10)


@pytest.mark.anyio
@pytest.mark.scenario(98)
@pytest.mark.parametrize("packets", [[b"no HTTP\r\n\r\n"], [POST, b"no chunk\r\n"]])
async def test_little_is_dropped_after_a_refusal(packets: list[bytes]) -> None:
    protocol, socket = connected(answering(b"abcd"))
    for packet in packets:
        protocol.data_received(packet)
        await asyncio.wait_for(socket.sent.wait(), 10)
    protocol.data_received(b"x" * (MAX_OVERHEAD_BYTES - 1024))
    assert socket.pieces[-1] == HALF_CLOSED
    protocol.data_received(b"x" * 1025)
    assert socket.closed.is_set()
    protocol.connection_lost(None)


@pytest.mark.anyio
@pytest.mark.scenario(98)
@pytest.mark.parametrize("admitted", [True, False])
async def test_strangers_rest_after_each_request(
    monkeypatch: pytest.MonkeyPatch, admitted: bool
) -> None:
    """Not before the first, and no longer once they have a caller."""
    monkeypatch.setattr(limits, "TURN_SECONDS", 60.0 if admitted else 0.01)
    every = asyncio.Event()
    answered: list[float] = []

    def count() -> None:
        answered.append(protocol.loop.time())
        if len(answered) == 3:
            every.set()

    protocol, socket = connected(answering(b"abcd", then=count), of_caller=False)
    sent_at = protocol.loop.time()
    protocol.data_received(REQUEST * 3)
    await asyncio.wait_for(socket.sent.wait(), 10)
    if admitted:
        assert len(answered) == 1
        assert not socket.reading
        protocol.admit()
    await asyncio.wait_for(every.wait(), 10)
    assert admitted or answered[2] - sent_at > 0.015  # the first answer may come late
    protocol.connection_lost(None)


@pytest.mark.anyio
@pytest.mark.scenario(98)
async def test_a_connection_is_read_once_in_a_step() -> None:
    protocol, socket = connected(answering(b"abcd"))
    protocol.data_received(POST)
    await asyncio.wait_for(socket.sent.wait(), 10)
    protocol.data_received(b"10001\r\n" + b" " * 0x10001)
    assert not socket.reading
    await asyncio.sleep(0.01)
    assert socket.reading
    protocol.connection_lost(None)


@pytest.mark.anyio
@pytest.mark.scenario(97)
async def test_a_client_that_leaves_in_the_middle(caplog: pytest.LogCaptureFixture) -> None:
    """Neither an answer that is not sent yet nor requests that are not parsed yet fail."""
    answered = asyncio.Event()

    def leave() -> None:
        protocol.abort()
        protocol.connection_lost(None)
        answered.set()

    protocol, socket = connected(answering(b"abcd", then=leave))
    protocol.data_received(REQUEST * 100)
    await asyncio.wait_for(answered.wait(), 10)
    await asyncio.sleep(0)
    assert socket.pieces == [CLOSED]
    protocol, socket = connected(answering(b"abcd"))
    protocol.data_received(REQUEST * 100)
    protocol.connection_lost(None)
    await asyncio.sleep(0.01)
    assert not caplog.records


@pytest.mark.anyio
@pytest.mark.scenario(98)
async def test_a_client_that_takes_nothing_is_cut_off() -> None:
    protocol, socket = connected(answering(b"abcd"))
    protocol.data_received(REQUEST)
    await asyncio.wait_for(socket.sent.wait(), 10)
    now = protocol.loop.time()
    socket.waiting = 20
    for _ in range(5):
        protocol.look(now)
        now += WRITE_SECONDS - 1
        protocol.look(now)
        socket.waiting -= 1  # a slow one takes something now and then
    assert not socket.closed.is_set()
    protocol.look(now)
    protocol.look(now + WRITE_SECONDS)
    assert socket.closed.is_set()
    protocol.connection_lost(None)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "end", [b"0\r\n\r\n", b"0\r\n\r\n" + REQUEST, b""], ids=["whole", "with another", "never whole"]
)
@pytest.mark.scenario(98)
async def test_an_answer_before_the_whole_request_ends_the_connection(end: bytes) -> None:
    """The client may not listen before it has sent everything: until then this waits, not long."""
    answered: list[bytes] = []
    protocol, socket = connected(answering(b"abcd", then=lambda: answered.append(b"abcd")))
    protocol.data_received(POST)
    await asyncio.wait_for(socket.sent.wait(), 10)
    answer, last = socket.pieces
    assert b"connection: close" in answer
    assert last == HALF_CLOSED
    now = protocol.loop.time()
    protocol.look(now)
    for _ in range(100):
        protocol.data_received(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
    if end:
        protocol.data_received(end)
        for _ in range(3):
            await asyncio.sleep(0)
    else:
        assert not socket.closed.is_set()
        protocol.look(now + OVERHEAD_SECONDS + 1)
    assert socket.pieces == [answer, HALF_CLOSED, CLOSED]
    assert len(answered) == 1, "what follows is not done"
    protocol.connection_lost(None)
