"""Connections that want to keep others out: 200 of each kind at once, for some seconds.

    python -m tests.chaos.hostile_process PORT SECONDS READ_TOKEN ENQUEUE_TOKEN

A connection that the server ends is opened again a second later, more or less. At the end the
process prints how many connections there were of each kind.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import socket
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

from tenure.dashboard import OPEN_PATHS

CONNECTIONS = 200
BATCH_BYTES = 32 * 1024 * 1024
REOPEN_SECONDS = 1.0
KIB = 1024


@dataclass(frozen=True)
class Kind:
    """What one connection sends without reading: an opening, then a part again and again."""

    opening: bytes
    endless: bytes = b""
    pause: float = 1.0  # in seconds, before each further part
    connections: int = CONNECTIONS


def head(request: str, *headers: str) -> bytes:
    """The head of a request."""
    return "\r\n".join([f"{request} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def bearer(token: str) -> str:
    """The header that brings a token."""
    return f"Authorization: Bearer {token}"


def batch(value: bytes, token: str) -> Kind:
    """Batches of as many values as bytes allow, 4 MiB a second."""
    json_body = ("Content-Type: application/json", f"Content-Length: {BATCH_BYTES}")
    opening = head("POST /jobs/batch", *json_body, bearer(token)) + b"[" + value
    part = (b"," + value) * (256 * KIB // (len(value) + 1))
    return Kind(opening, part, pause=1 / 16, connections=1)


def kinds(read_token: str, enqueue_token: str) -> dict[str, Kind]:
    """Every kind of hostile connection."""
    chunked = head("POST /jobs", "Transfer-Encoding: chunked")
    form = ("Content-Type: application/x-www-form-urlencoded", "Content-Length: 10000")
    (large,) = (path for path in OPEN_PATHS if path.endswith("uPlot.iife.min.js"))
    file = head(f"GET {large}")
    return {
        "trailers": Kind(chunked + b"0\r\n", b"X: y\r\n" * 1_000, pause=0.1),
        "extensions": Kind(chunked + b"1;x=", b"x" * 6_000, pause=0.1),
        "slow heads": Kind(head("GET /health")[:-2], b"X: y\r\n"),
        "slow bodies": Kind(head("POST /ui/sign-in", *form), b"x"),
        "deaf to files": Kind(file * 100, file),
        "deaf to events": Kind(head("GET /events?after=0", bearer(read_token)), head("GET /")),
        "idle": Kind(head("GET /health"), head("GET /health"), pause=5.0),
        "objects": batch(b"{}", enqueue_token),
        "arrays": batch(b"[]", enqueue_token),
        "numbers": batch(b"0", enqueue_token),
    }


class Attack:
    """All connections, and how many there were."""

    def __init__(self, port: int) -> None:
        self.opened: Counter[str] = Counter()
        self._port = port

    async def keep_open(self, name: str, kind: Kind) -> None:
        """Hold a connection of this kind, and open another one when it has ended."""
        while True:
            await asyncio.sleep(random.uniform(0, 2 * REOPEN_SECONDS))
            with suppress(OSError):
                await self._hold(name, kind)

    async def _hold(self, name: str, kind: Kind) -> None:
        deaf = socket.socket()
        deaf.setblocking(False)
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * KIB)
        await asyncio.get_running_loop().sock_connect(deaf, ("127.0.0.1", self._port))
        _, writer = await asyncio.open_connection(sock=deaf)  # reads 128 KiB, and then no more
        self.opened[name] += 1
        try:
            writer.write(kind.opening)
            while not writer.is_closing():
                writer.write(kind.endless)
                await writer.drain()
                await asyncio.sleep(kind.pause)
        finally:
            writer.transport.abort()


async def attack(port: int, seconds: float, *tokens: str) -> None:
    """Attack for so long, then print the counts."""
    attacking = Attack(port)
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as connections:
            for name, kind in kinds(*tokens).items():
                for _ in range(kind.connections):
                    connections.create_task(attacking.keep_open(name, kind))
    print(json.dumps(attacking.opened))


if __name__ == "__main__":
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    asyncio.run(attack(int(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:]))
