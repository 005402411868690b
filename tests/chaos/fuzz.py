"""Bytes at random for a real server: `python -m tests.chaos.fuzz SECONDS SEED`.

Hypothesis makes connections out of requests, pieces of requests and noise, some of them long. The
server has to live, answer others meanwhile, keep its memory, and never fail over what was sent.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2
import hypothesis
from hypothesis import strategies as st

from tests.support.http import ServerProcess

TOKEN = "the-token-of-an-honest-client"
MAX_PAUSE_SECONDS = 2.0
"""How long /health may take. The machine is busy; what these tests found took longer."""
MAX_GROWTH_MIB = 150
READ_SECONDS = 0.02
HELD = 250
"""Connections that are left open and not read: more than strangers get."""
EXAMPLES = 50
FAULT = re.compile(
    r"^\S+ ERROR (?!tenure\.worker\.(process: (fsync|full_page)|maintenance: job_)).*", re.MULTILINE
)
"""A line of the log about a fault; not about a job, or that PostgreSQL has no fsync in tests."""
KIB = 1024
LONGEST = 256 * KIB

BEARER = f"Authorization: Bearer {TOKEN}\r\n".encode()
LINES = [
    *(b"GET /health HTTP/1.1\r\n", b"GET /stats HTTP/1.1\r\n", b"GET /events HTTP/1.1\r\n"),
    *(b"POST /jobs HTTP/1.1\r\n", b"POST /jobs/batch HTTP/1.1\r\n", b"POST /leases HTTP/1.1\r\n"),
    *(b"POST /ui/sign-in HTTP/1.1\r\n", b"HEAD / HTTP/1.0\r\n", b"PRI * HTTP/2.0\r\n"),
    *(b"GET /ui/jobs?type=%ff&before=%00 HTTP/1.1\r\n", b"GET http://a/../%2f HTTP/1.1\r\n"),
    b"CONNECT 127.0.0.1:22 HTTP/1.1\r\n",
    *(b"Host: localhost\r\n", b"Host: evil.example\r\n", BEARER, b"Cookie: tenure_session=x\r\n"),
    *(b"Content-Type: application/json\r\n", b"Content-Type: text/plain; charset=x\r\n"),
    *(b"Content-Length: 14\r\n", b"Content-Length: 99999999\r\n", b"Content-Length: -1\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n"),
    *(b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"Upgrade: h2c\r\n", b" folded\r\n"),
    *(b"Last-Event-ID: 5\r\n", b"Idempotency-Key: k\r\n", b"Sec-Fetch-Site: cross-site\r\n"),
    *(b"\r\n", b"\n", b"X: ", b"x", b"\0", b"\xff", b"%", b": ", b";"),
    *(b"e\r\n", b'{"type":"abc"}', b"\r\n0\r\n\r\n", b"0\r\n", b"1;x=", b"ffffffffffffffff\r\n"),
    *(b"{", b"[", b"]", b'"', b"\\ud800", b"1e999", b"null", b"," * 10, b"[{}," * 10),
]
GET = b"GET /jobs HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
WHOLE = [
    *(GET + b"\r\n", GET + BEARER + b"\r\n", GET.replace(b"/jobs", b"/health") + b"\r\n"),
    POST + BEARER + b'Content-Length: 14\r\n\r\n{"type":"abc"}',
    POST + BEARER + b'Transfer-Encoding: chunked\r\n\r\ne\r\n{"type":"abc"}\r\n0\r\n\r\n',
    POST + BEARER + b"Transfer-Encoding: chunked\r\n\r\n",
    POST + BEARER.replace(b"the", b"no") + b"Transfer-Encoding: chunked\r\n\r\n",
    POST.replace(b"/jobs", b"/ui/sign-in") + b"Transfer-Encoding: chunked\r\n\r\n",
]


def _repeated(part: bytes, times: int) -> bytes:
    return part * min(times, LONGEST // len(part))


pieces = st.one_of(
    st.sampled_from(WHOLE),
    st.sampled_from(LINES),
    st.binary(max_size=64),
    st.builds(_repeated, st.sampled_from(WHOLE + LINES), st.integers(2, LONGEST)),
)
ends = st.sampled_from(["read", "stop sending", "leave", "stay"])
"""What the client does when it has sent everything."""


def waits(*tasks: Path) -> dict[Path, float]:
    """Seconds for which each thread was ready, and no processor was free."""
    found = {}
    for task in tasks:
        with contextlib.suppress(OSError):  # it has ended, or the system does not say
            found[task] = int((task / "schedstat").read_text("ascii").split()[1]) / 1e9
    return found


class Watch:
    """Asks /health again and again, on new connections, and keeps the longest time it took.

    Without the time for which the machine had no processor for the server or for this process.
    """

    def __init__(self, server: ServerProcess) -> None:
        self.longest = 0.0
        self.failure = ""
        self._url = server.url
        self._process = server.process.pid
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(0.02):
            began, before = time.monotonic(), self._waits()
            try:
                status = httpx2.get(f"{self._url}/health", timeout=60).status_code
                self.failure = self.failure or ("" if status == 200 else f"/health: {status}")
            except httpx2.TransportError as error:
                self.failure = self.failure or f"/health: {error!r}"
            took = time.monotonic() - began
            of_server, own = self._waits()
            of_each = [until - before[0].get(task, 0) for task, until in of_server.items()]
            waited = max(of_each, default=0) + own - before[1]
            self.longest = max(self.longest, took - waited)

    def _waits(self) -> tuple[dict[Path, float], float]:
        of_server = waits(*Path(f"/proc/{self._process}/task").glob("*"))
        return of_server, sum(waits(Path("/proc/thread-self")).values())


class Attack:
    """Connections of one attacker."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.connections = 0
        self._held: deque[socket.socket] = deque()

    def close(self) -> None:
        """Leave everything that was held."""
        while self._held:
            self._held.pop().close()

    def run(self, parts: Sequence[bytes], end: str) -> None:
        """Send `parts` one by one on a new connection, then `end` it; check what is answered."""
        self.connections += 1
        connection = socket.create_connection(self.server.address, timeout=10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(READ_SECONDS)
        with contextlib.suppress(OSError):  # it is too slow, or the server is done with it
            for part in parts:
                connection.sendall(part)
            if end == "stop sending":
                connection.shutdown(socket.SHUT_WR)
        if end == "stay":
            self._held.append(connection)
            if len(self._held) > HELD:
                self._held.popleft().close()
            return
        with connection:
            if end != "leave":
                check_answer(_received(connection))


def _received(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(OSError):
        while len(received) < LONGEST and (part := connection.recv(64 * KIB)):
            received += part
    return received


def check_answer(received: bytes) -> None:
    """It is HTTP, and no failure of the server's own."""
    assert not received or re.match(rb"HTTP/1\.1 [1-5][0-9][0-9] ", received), received[:200]
    assert not re.search(rb"HTTP/1\.1 500 ", received), received[-1_000:]


def memory_mib(server: ServerProcess) -> int:
    """The most memory that the server ever had; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{server.process.pid}/status").read_text("ascii")
        return int(re.findall(r"^VmHWM:\s+([0-9]+) kB$", status, re.MULTILINE)[0]) // KIB
    return 0


@contextlib.contextmanager
def reading_log(server: ServerProcess) -> Iterator[list[str]]:
    """Read the log meanwhile, else a full pipe stops the server; it is whole after the block."""
    log, server.process.stderr = server.process.stderr, None  # `stop` would read it too late
    assert log is not None
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(log), daemon=True)
    reader.start()
    yield lines
    reader.join()
    log.close()


@contextlib.contextmanager
def judged(server: ServerProcess, log_limit: int = 64 * KIB) -> Iterator[Watch]:
    """Watch the server meanwhile, and fail over what it became."""
    httpx2.get(f"{server.url}/stats", headers={"Authorization": f"Bearer {TOKEN}"})
    before = memory_mib(server)
    with reading_log(server) as lines:
        with Watch(server) as watch:
            yield watch
        assert server.process.poll() is None, "the server ended"
        assert not watch.failure, watch.failure
        grown = memory_mib(server) - before
        code, _ = server.stop()
    log = "".join(lines)
    print(f"longest pause {watch.longest:.3f} s, {grown} MiB more", flush=True)
    assert watch.longest < MAX_PAUSE_SECONDS
    assert grown < MAX_GROWTH_MIB
    assert code == 0
    failed = FAULT.search(log)
    assert not failed, log[failed.start() :][:4_000]
    assert len(log) < log_limit, "strangers fill the log"


def fuzz(seconds: float, seed: int, database: str) -> int:
    """Attack a server for about so long; return the number of connections."""
    chance = random.Random(seed)
    with ServerProcess(database, "--log-format", "text", TENURE_TOKEN=TOKEN) as server:
        attack = Attack(server)

        @hypothesis.settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=False)
        @hypothesis.given(st.lists(pieces, min_size=1, max_size=12), ends)
        def attacked(parts: list[bytes], end: str) -> None:
            attack.run(parts, end)
            assert server.process.poll() is None

        with judged(server), contextlib.closing(attack):
            until = time.monotonic() + seconds  # the start of the server may take as long
            while time.monotonic() < until:
                hypothesis.seed(chance.getrandbits(64))(attacked)()
    return attack.connections


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        attempted = fuzz(float(sys.argv[1]), int(sys.argv[2]), f"sqlite:///{folder}/jobs.db")
        print(f"{attempted:,} connections with bytes at random", flush=True)
