"""A small HTTP client that is quick enough not to be what is measured.

    python -m bench.http_load HOST PORT CLIENTS SECONDS

Each client posts jobs over one connection kept open, the next as soon as the last was answered.
It reads no more of an answer than its status and length. Prints what it found as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

from bench.adapter import run_loop
from bench.workload import PAYLOAD_BYTES, payload

CREATED = b"201"
BODY_BYTES = len('{"type":"send","payload":}') + PAYLOAD_BYTES
HEAD_END = b"\r\n\r\n"


def request(host: str, n: int) -> bytes:
    """`POST /jobs` for job number `n`."""
    body = json.dumps({"type": "send", "payload": payload(n)}, separators=(",", ":"))
    head = (
        f"POST /jobs HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {BODY_BYTES}\r\n\r\n"
    )
    return (head + body).encode()


def take_answer(received: bytearray) -> bytes | None:
    """Remove one whole answer from what was received; its status, None if it is not all there."""
    head_end = received.find(HEAD_END)
    if head_end < 0:
        return None
    head = bytes(received[:head_end]).lower()
    _, found, rest = head.partition(b"\r\ncontent-length:")
    if not found:
        raise ValueError("an answer without Content-Length")
    end = head_end + len(HEAD_END) + int(rest.split(b"\r\n", 1)[0])
    if len(received) < end:
        return None
    del received[:end]
    return head[9:12]


class Client(asyncio.Protocol):
    """One connection: posts, waits for the answer, posts again until the deadline."""

    def __init__(self, host: str, numbers: Iterator[int], deadline: float) -> None:
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waits: list[float] = []
        self._host = host
        self._numbers = numbers
        self._deadline = deadline
        self._received = bytearray()
        self._sent_at = 0.0
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._post()

    def _post(self) -> None:
        message = request(self._host, next(self._numbers))
        self._sent_at = time.monotonic()
        self._transport.write(message)

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            status = take_answer(self._received)
            if status is None:
                return
            if status != CREATED:
                raise ValueError(f"answered with {status.decode()}")
        except ValueError as error:
            self._end(error)
            return
        now = time.monotonic()
        self.waits.append(now - self._sent_at)
        if now < self._deadline:
            self._post()
        else:
            self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error or ConnectionError("the server closed the connection"))

    def _end(self, error: Exception | None) -> None:
        if not self.finished.done():
            if error is None:
                self.finished.set_result(None)
            else:
                self.finished.set_exception(error)
            self._transport.close()


async def load(host: str, port: int, clients: int, seconds: float) -> dict[str, float]:
    """Post from `clients` connections at once for so many seconds."""
    loop = asyncio.get_running_loop()
    numbers = count()
    started, cpu = time.monotonic(), time.process_time()
    connected = [
        (await loop.create_connection(lambda: Client(host, numbers, started + seconds), host, port))
        for _ in range(clients)
    ]
    await asyncio.gather(*(client.finished for _, client in connected))
    took = time.monotonic() - started
    waits = sorted(wait for _, client in connected for wait in client.waits)
    return {
        "jobs": len(waits),
        "rate": len(waits) / took,
        "p50_ms": waits[len(waits) // 2] * 1000,
        "p99_ms": waits[-(-99 * len(waits) // 100) - 1] * 1000,
        "client_cores": (time.process_time() - cpu) / took,
    }


def main(arguments: list[str]) -> None:
    host, port, clients, seconds = arguments
    print(json.dumps(run_loop(load(host, int(port), int(clients), float(seconds)))))


if __name__ == "__main__":
    main(sys.argv[1:])
