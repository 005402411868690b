"""A proxy that breaks the network between a client and PostgreSQL, or between a client and our API.

    with Proxy(postgres_url) as proxy:
        app = Tenure(proxy.url_of(postgres_url))
        proxy.drop_answers(b"COMMIT")

It listens on TCP on the loopback interface, whatever it forwards to, and runs in a thread. A method
takes effect before it returns; `pass_on` undoes everything. Methods for single requests
(`drop_answers`, `hold`, `repeat_requests`) find them by bytes that they contain.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading
import urllib.parse
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from tests.support import fault_counts

T = TypeVar("T")

Target = str | tuple[str, int] | Path
READ_BYTES = 64 * 1024
SECONDS = 10.0  # for a change to take effect


@dataclass
class Rule:
    """What is to happen to the next `times` requests that contain `match`."""

    action: str
    match: bytes
    times: int


@dataclass
class Way:
    """One direction: how long it takes, and whether anything arrives."""

    seconds: float = 0.0
    open: bool = True


@dataclass(eq=False)
class Link:
    """A connection of a client, and ours to the target."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    dead: set[str] = field(default_factory=set)  # ways on which bytes were lost: for good
    swallowed: bytearray | None = None  # the answer that is being dropped
    answered: asyncio.Event = field(default_factory=asyncio.Event)  # since something was held
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Proxy:
    """In front of `target`: a URL of PostgreSQL or HTTP, a (host, port), or a Unix socket."""

    def __init__(self, target: Target) -> None:
        self._connect, self._protocol = _target(target)
        self.counts: Counter[str] = Counter()
        """What was done so far, in words: `connections`, `answers dropped`, `requests held`, …"""
        self.copies: list[bytes] = []
        """The answers to what `repeat_requests` sent once more."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._ways = {"requests": Way(), "answers": Way()}
        self._rules: list[Rule] = []
        self._links: set[Link] = set()
        self._handing_over: set[asyncio.Task[None]] = set()
        self._bytes_left: int | None = None  # of answers, until a connection is reset
        self._released = asyncio.Event()
        self._listener: asyncio.Server | None = None
        # Bound as long as the proxy lives, and never listening: it keeps the port while we refuse.
        self._guard = _bound(0)
        self.address: tuple[str, int] = self._guard.getsockname()

    def __enter__(self) -> Self:
        self._thread.start()
        self._ask(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._ask(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        self._loop.close()
        self._guard.close()

    def lead_to(self, target: Target) -> None:
        """Connections that are made from now on lead there; those that are open stay."""
        self._connect, self._protocol = _target(target)

    def url_of(self, url: str) -> str:
        """`url`, which leads to the target, led through here."""
        parts = urllib.parse.urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        netloc = f"{user}{at}{self.address[0]}:{self.address[1]}"
        query = parts.query
        if self._protocol == "postgresql":
            own = ("host", "hostaddr", "port", "sslmode", "gssencmode")
            kept = [p for p in query.split("&") if p and p.partition("=")[0] not in own]
            query = "&".join([*kept, "sslmode=disable", "gssencmode=disable"])
        return urllib.parse.urlunsplit(parts._replace(netloc=netloc, query=query))

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._links)

    # --- what can be done to the network

    def pass_on(self) -> None:
        """Be a good network again; what was lost stays lost, and what is held stays held."""

        async def change() -> None:
            self._ways = {"requests": Way(), "answers": Way()}
            self._rules.clear()
            self._bytes_left = None
            await self._listen()

        self._ask(change())

    def delay(self, seconds: float, *, requests: bool = True, answers: bool = False) -> None:
        """Deliver what arrives from now on `seconds` later."""
        self._set(requests=requests, answers=answers, seconds=seconds)

    def black_hole(self, *, requests: bool = True, answers: bool = True) -> None:
        """Take everything, pass nothing on, close nothing.

        Connections that live through this never work again, as when a router forgets them.
        """

        async def change() -> None:
            for name, wanted in (("requests", requests), ("answers", answers)):
                if wanted:
                    self._ways[name].open = False
                    for link in self._links:
                        link.dead.add(name)

        self._ask(change())

    def refuse(self) -> None:
        """Reset what is open, and refuse new connections."""

        async def change() -> None:
            await self._stop_listening()
            self._reset_all()

        self._ask(change())

    def reset(self) -> None:
        """Reset every open connection; new ones are served."""

        async def change() -> None:
            self._reset_all()

        self._ask(change())

    def reset_after(self, count: int) -> None:
        """Pass on `count` more bytes of answers, then reset the connection they went over."""

        async def change() -> None:
            self._bytes_left = count

        self._ask(change())

    def drop_answers(self, match: bytes = b"", times: int = 1) -> None:
        """Pass requests on, wait for the whole answer, throw it away and reset the connection."""
        self._add(Rule("drop", match, times))

    def hold(self, match: bytes = b"", times: int = 1) -> None:
        """Keep requests back, with what follows them, until `let_go`.

        They are delivered even if the client has given up by then.
        """
        self._add(Rule("hold", match, times))

    def let_go(self) -> None:
        """Deliver what is held."""

        async def change() -> None:
            self._released.set()
            self._released = asyncio.Event()

        self._ask(change())

    def repeat_requests(self, match: bytes = b"", times: int = 1) -> None:
        """Deliver requests twice (HTTP only), the second over a connection of our own."""
        if self._protocol != "http":
            raise ValueError("only HTTP requests can be repeated")
        self._add(Rule("repeat", match, times))

    # --- how

    def _ask(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(SECONDS)

    def _set(self, *, requests: bool, answers: bool, seconds: float) -> None:
        async def change() -> None:
            self._ways["requests"].seconds = seconds if requests else 0.0
            self._ways["answers"].seconds = seconds if answers else 0.0

        self._ask(change())

    def _add(self, rule: Rule) -> None:
        async def change() -> None:
            self._rules.append(rule)

        self._ask(change())

    async def _listen(self) -> None:
        if self._listener is None:
            listener = _bound(self.address[1])
            self._listener = await asyncio.start_server(self._serve, sock=listener, backlog=1024)

    async def _stop_listening(self) -> None:
        """Close the listener. asyncio leaks a connection that it is about to serve meanwhile."""
        if self._listener is None:
            return
        for listening in self._listener.sockets:
            self._loop.remove_reader(listening.fileno())
        for _ in range(3):  # steps of the loop in which connections that are accepted begin
            await asyncio.sleep(0)
        self._listener.close()
        self._listener = None

    async def _close(self) -> None:
        await self._stop_listening()
        for link in list(self._links):
            self._abort(link)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for _ in range(3):  # steps of the loop in which transports close
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        link = Link(client, dead={name for name, way in self._ways.items() if not way.open})
        self._links.add(link)
        self.counts["connections"] += 1
        try:
            if link.dead:
                await self._swallow(reader)
                return
            answers, link.server = await self._connect()
            link.tasks = [
                asyncio.ensure_future(self._pass_requests(link, reader)),
                asyncio.ensure_future(self._pass_answers(link, answers)),
            ]
            await asyncio.gather(*link.tasks)
        except (OSError, asyncio.CancelledError):
            self._abort(link)
        finally:
            self._links.discard(link)
            for writer in (link.client, link.server):
                if writer is not None:
                    writer.close()

    async def _swallow(self, reader: asyncio.StreamReader) -> None:
        while await reader.read(READ_BYTES):
            pass

    async def _pass_requests(self, link: Link, reader: asyncio.StreamReader) -> None:
        assert link.server is not None
        link.answered.set()
        kept = b""  # a request that is not complete yet
        async for data in self._arrivals(reader, "requests"):
            kept += data
            if "requests" in link.dead:
                kept = b""
                continue
            if not self._is_whole(kept):  # a rule may come between head and body
                continue
            request, kept = kept, b""
            if (rule := self._rule_for(request)) is not None:
                if rule.action == "hold":
                    self.counts["requests held"] += 1
                    link.answered.clear()
                    await self._released.wait()
                elif rule.action == "drop":
                    link.swallowed = bytearray()
                else:
                    self.counts["requests repeated"] += 1
                    self._hand_over(self._repeat(request))
            if "requests" in link.dead:
                continue
            link.server.write(request)
            await link.server.drain()
        await link.answered.wait()  # who reads the end with the request may not answer at all
        if not link.dead:
            link.server.write_eof()

    async def _pass_answers(self, link: Link, reader: asyncio.StreamReader) -> None:
        async for data in self._arrivals(reader, "answers"):
            link.answered.set()
            if link.swallowed is not None:
                link.swallowed += data
                if self._is_answered(bytes(link.swallowed)):
                    self.counts["answers dropped"] += 1
                    fault_counts.count("answers dropped")
                    self._reset(link)
                    return
                continue
            if "answers" in link.dead:
                continue
            if self._bytes_left is not None and len(data) >= self._bytes_left:
                link.client.write(data[: self._bytes_left])
                await link.client.drain()
                self._bytes_left = None
                self._reset(link)
                return
            if self._bytes_left is not None:
                self._bytes_left -= len(data)
            link.client.write(data)
            await link.client.drain()
        if not link.dead:
            link.client.write_eof()

    async def _arrivals(self, reader: asyncio.StreamReader, name: str) -> AsyncIterator[bytes]:
        """What comes in, each piece as much later as the network takes."""
        arrived: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def take() -> None:
            data = b"begin"
            while data:
                try:
                    data = await reader.read(READ_BYTES)
                except OSError:
                    data = b""
                arrived.put_nowait((self._loop.time() + self._ways[name].seconds, data))

        taking = asyncio.ensure_future(take())
        try:
            while True:
                due, data = await arrived.get()
                if (left := due - self._loop.time()) > 0:
                    await asyncio.sleep(left)
                if not data:
                    return
                yield data
        finally:
            taking.cancel()

    def _rule_for(self, request: bytes) -> Rule | None:
        for rule in self._rules:
            if rule.match in request:
                rule.times -= 1
                if rule.times == 0:
                    self._rules.remove(rule)
                return rule
        return None

    def _hand_over(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._handing_over.add(task)
        task.add_done_callback(self._handing_over.discard)

    async def _repeat(self, request: bytes) -> None:
        reader, writer = await self._connect()
        answer = b""
        with contextlib.closing(writer):
            writer.write(request)
            while not self._is_answered(answer) and (data := await reader.read(READ_BYTES)):
                answer += data
        self.copies.append(answer)

    def _is_whole(self, request: bytes) -> bool:
        return self._protocol != "http" or _http_is_whole(request)

    def _is_answered(self, answer: bytes) -> bool:
        if self._protocol == "http":
            return _http_is_whole(answer)
        if self._protocol == "postgresql":  # it is ready for the next query
            return answer[-6:-1] == b"Z\0\0\0\5"
        return answer != b""

    def _reset_all(self) -> None:
        for link in list(self._links):
            self._reset(link)

    def _reset(self, link: Link) -> None:
        if link in self._links:
            self.counts["connections cut"] += 1
            fault_counts.count("connections cut")
            self._abort(link)

    def _abort(self, link: Link) -> None:
        self._links.discard(link)
        for writer in (link.client, link.server):
            if writer is None or writer.transport.is_closing():
                continue
            with contextlib.suppress(OSError):  # to close at once and discard is to send RST
                plain = writer.get_extra_info("socket")
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        for task in link.tasks:
            task.cancel()


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def _target(target: Target) -> tuple[Callable[[], Coroutine[Any, Any, Streams]], str]:
    """How to connect to the target, and which protocol it speaks, if we know."""
    if isinstance(target, Path):
        return lambda: asyncio.open_unix_connection(str(target)), ""
    if isinstance(target, tuple):
        return lambda: asyncio.open_connection(*target), ""
    parts = urllib.parse.urlsplit(target)
    query = dict(urllib.parse.parse_qsl(parts.query))
    host = query.get("host") or parts.hostname or "127.0.0.1"
    if parts.scheme == "http":
        return lambda: asyncio.open_connection(host, parts.port or 80), "http"
    port = int(query.get("port") or parts.port or 5432)
    if host.startswith("/"):
        path = f"{host}/.s.PGSQL.{port}"
        return lambda: asyncio.open_unix_connection(path), "postgresql"
    return lambda: asyncio.open_connection(host, port), "postgresql"


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound


_length = re.compile(rb"(?i)\r\ncontent-length: *(\d+)").search


def _http_is_whole(message: bytes) -> bool:
    """Whether a request or an answer is there to its end."""
    head, end, body = message.partition(b"\r\n\r\n")
    if not end:
        return False
    if b"transfer-encoding: chunked" in head.lower():
        return body.endswith(b"0\r\n\r\n")
    length = _length(head)
    return len(body) >= (int(length[1]) if length else 0)
