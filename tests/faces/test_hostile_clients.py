"""Clients that want to keep others out: what each may hold, and that honest ones are served."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path

import httpx2
import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from tenure import Tenure, server
from tenure.dashboard import OPEN_PATHS, site
from tenure.http import bodies
from tenure.http.guard import ADMITTED
from tenure.http.protocol import MAX_OVERHEAD_BYTES, BoundedProtocol, Room
from tenure.http.waiting import READS_AT_ONCE
from tenure.server import MAX_UNSENT, build
from tenure.settings import Settings
from tests.support.cli import PROGRAM
from tests.support.http import Exchange, ServerProcess
from tests.support.waiting import WAIT_SECONDS, wait_until

TOKEN = "the-token-of-an-honest-client"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
PATIENCE = 20.0
"""Seconds for two answers, on a machine that does much else."""
KIB, MIB = 1024, 1024 * 1024
LOOKS = 50
"""In a row that see the same, if nothing more is sent."""
CHUNK = b"10000\r\n" + b" " * 0x10000 + b"\r\n"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that asks for a token. Every test leaves it as it was."""
    url = f"sqlite:///{tmp_path_factory.mktemp('guarded')}/jobs.db"
    with ServerProcess(url, TENURE_TOKEN=TOKEN) as served:
        yield served


def head(path: str, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *headers, "", ""]
    return "\r\n".join(lines).encode()


CHUNKED = "Transfer-Encoding: chunked"
JSON = "Content-Type: application/json"
FORM = "Content-Type: application/x-www-form-urlencoded"
BEHIND = {"trailer": b"0\r\nX: ", "trailers": b"0\r\n", "extension": b"1;x="}


def taken(server: ServerProcess, opening: bytes, endless: bytes, most: int = 16 * MIB) -> int:
    """How many bytes the server takes after `opening`; at most `most`."""
    sent = 0
    with server.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * KIB)
        connection.sendall(opening)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while sent < most:
                sent += connection.send(endless)
    return sent


@pytest.mark.scenario(98)
@pytest.mark.requirement("C9")
@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
@pytest.mark.parametrize("path", ["/jobs", "/ui/sign-in"], ids=["refused", "open"])
def test_what_is_no_body_has_an_end(guarded: ServerProcess, path: str, behind: bytes) -> None:
    opening = head(path, FORM, CHUNKED) + behind
    line = b"X: y\r\n" * 1_000 if behind == b"0\r\n" else b"x" * 10_000
    assert taken(guarded, opening, line) < 16 * MIB, "what sockets hold, and 64 KiB"
    assert httpx2.get(f"{guarded.url}/health").status_code == 200


def queued(server: ServerProcess, connection: socket.socket) -> int:
    """How many bytes the kernel has taken from the server that the client has not."""
    ends = [f":{port:04X}" for port in (server.address[1], connection.getsockname()[1])]
    for line in Path("/proc/net/tcp").read_text().splitlines():
        _, local, remote, _, queues, *_ = line.split()
        if [local[-5:], remote[-5:]] == ends:
            return int(queues.partition(":")[0], 16)
    return 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.scenario(98)
@pytest.mark.requirement("C9")
def test_little_is_made_for_a_client_that_does_not_read(guarded: ServerProcess) -> None:
    """Linux took 2.7 MB of a stream for each of 100 clients, so 8,000 pages were read for them."""
    (large,) = (path for path in OPEN_PATHS if path.endswith("uPlot.iife.min.js"))
    request = f"GET {large} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * KIB)
        deaf.connect(guarded.address)
        deaf.sendall(request * 200)  # 10 MB of answers
        seen: list[int] = []

        def is_full() -> bool:
            seen.append(queued(guarded, deaf))
            return len(seen) > LOOKS and seen[-LOOKS] == seen[-1] > 0

        wait_until(is_full, "the server to have sent what it may")
    assert seen[-1] < MAX_UNSENT + 256 * KIB


@pytest.mark.scenario(98)
@pytest.mark.requirement("C3")
def test_a_trailer_signs_nobody_in(guarded: ServerProcess) -> None:
    trailer = b"0\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n\r\n"
    with guarded.connect() as connection:
        connection.sendall(head("/jobs", JSON, CHUNKED) + b'e\r\n{"type":"abc"}\r\n' + trailer)
        assert connection.recv(64 * KIB).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 401 "))


@pytest.mark.scenario(98)
def test_small_chunks_are_no_overhead(guarded: ServerProcess) -> None:
    """Their heads are three times as long as what they bring."""
    body = b'{"type":"abc","payload":{"text":"' + b"x" * 200_000 + b'"}}'
    chunks = b"".join(b"2\r\n%b\r\n" % body[at : at + 2] for at in range(0, len(body) - 1, 2))
    rest = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body) % 2, body[-1:]) if len(body) % 2 else b"0\r\n\r\n"
    with guarded.connect() as connection:
        connection.sendall(head("/jobs", JSON, CHUNKED, f"Authorization: Bearer {TOKEN}"))
        connection.sendall(chunks + rest)
        assert connection.recv(64 * KIB).startswith(b"HTTP/1.1 201 ")


@pytest.mark.scenario(98)
def test_good_requests_in_one_packet_are_answered(guarded: ServerProcess) -> None:
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    many = 2 * MAX_OVERHEAD_BYTES // len(one)
    answered = b""
    with guarded.connect() as connection:
        connection.sendall(one * many + one[:20])
        while answered.count(b'{"status":"ok"}') < many:
            part = connection.recv(64 * KIB)
            assert part, answered[-200:]
            answered += part
        connection.sendall(one[20:])
        assert connection.recv(64 * KIB).startswith(b"HTTP/1.1 200 ")


@pytest.mark.scenario(94)
@pytest.mark.parametrize("length", [4, 20, 100])
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
@pytest.mark.parametrize("token", [True, False], ids=["too large", "no token"])
def test_a_client_that_sends_too_much_sees_the_answer(
    guarded: ServerProcess, length: int, declared: bool, token: bool
) -> None:
    """It sends everything before it listens; it must not be met by a reset."""
    bearer = [f"Authorization: Bearer {TOKEN}"] * token
    size = f"Content-Length: {length * MIB}" if declared else CHUNKED
    with guarded.connect() as connection:
        connection.sendall(head("/jobs", JSON, size, *bearer))
        for _ in range(length * 16):
            connection.sendall(CHUNK[7:-2] if declared else CHUNK)
        if not declared:
            connection.sendall(b"0\r\n\r\n")
        answered = b""
        while part := connection.recv(64 * KIB):
            answered += part
    assert answered.startswith(b"HTTP/1.1 413 " if token else b"HTTP/1.1 401 ")
    assert b"connection: close" in answered


# --- places ---------------------------------------------------------------------------------------


@pytest.fixture
def many_files() -> Iterator[None]:
    """This process may open some thousand connections."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < 5_000:
        pytest.skip("this system allows a process too few files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (5_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


GET_AS_CALLER = (
    f"GET /nothing HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
).encode()


def is_open(connection: socket.socket) -> bool:
    connection.settimeout(0.05)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return True
    except ConnectionResetError:
        return False


ATTACKS = {
    "idle": b"",
    "answered": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "slow forms": head("/ui/sign-in", FORM, "Content-Length: 100"),
}


@pytest.mark.scenario(98)
@pytest.mark.requirement("C9")
@pytest.mark.parametrize("files", ["-S -n 512", "-n 512"], ids=["raised", "fixed"])
def test_connections_without_a_token_keep_nobody_out(
    sqlite_url: str, files: str, many_files: None
) -> None:
    """Under a limit of 512 files, which the server may raise or not."""
    limited = ("/bin/sh", "-c", f'ulimit {files} && exec "$@"', "sh")
    with (
        ServerProcess(sqlite_url, program=[*limited, *PROGRAM], TENURE_TOKEN=TOKEN) as server,
        httpx2.Client(base_url=server.url, headers=BEARER, timeout=PATIENCE) as early,
        contextlib.ExitStack() as attack,
    ):
        assert early.get("/stats").status_code == 200
        for opening in ATTACKS.values():
            for _ in range(700):
                attack.enter_context(server.connect()).sendall(opening)
            began = time.monotonic()
            assert early.get("/stats").status_code == 200
            late = httpx2.get(f"{server.url}/stats", headers=BEARER, timeout=PATIENCE)
            assert late.status_code == 200
            assert time.monotonic() - began < PATIENCE
        many = []
        for _ in range(600):  # a caller's connections may take all places
            many.append(attack.enter_context(server.connect()))
            many[-1].sendall(GET_AS_CALLER)
            assert many[-1].recv(64 * KIB).startswith(b"HTTP/1.1 404 ")
        assert is_open(many[-1])
        assert is_open(many[0]) is files.startswith("-S"), "512 files are too few for all"
        assert (
            httpx2.get(f"{server.url}/stats", headers=BEARER, timeout=PATIENCE).status_code == 200
        )
        attack.close()
        _, log = server.stop()
    assert log.count("too many connections") == 1


@contextlib.asynccontextmanager
async def served(app: ASGIApp, room: Room) -> AsyncIterator[tuple[str, int]]:
    """The address of a server in this process."""
    config = uvicorn.Config(
        app, log_config=None, lifespan="off", ws="none", limit_concurrency=room.places
    )
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(
        lambda: BoundedProtocol(room, config, state, {}, loop), "127.0.0.1", 0
    )
    async with listening:
        yield listening.sockets[0].getsockname()


@pytest.mark.anyio
@pytest.mark.scenario(98)
async def test_idle_connections_of_callers_keep_nobody_out() -> None:
    """The longest idle one is closed; those that are answered are not."""
    go_on = asyncio.Event()
    busy = asyncio.Event()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        scope[ADMITTED]()
        if scope["path"] == "/slow":
            busy.set()
            await go_on.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    places = 8
    async with served(answer, Room(places)) as address, contextlib.AsyncExitStack() as opened:

        async def ask(path: str) -> asyncio.StreamReader:
            reader, writer = await asyncio.open_connection(*address)
            opened.callback(writer.close)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            return reader

        async def first_line(reader: asyncio.StreamReader) -> bytes:
            return await asyncio.wait_for(reader.readline(), 10)

        slow = await ask("/slow")
        await asyncio.wait_for(busy.wait(), 10)
        asked = [await ask("/") for _ in range(3 * places)]
        assert [(await first_line(one))[:12] for one in asked] == [b"HTTP/1.1 204"] * 3 * places
        assert await asyncio.wait_for(asked[0].read(), 10) is not None  # it ends
        go_on.set()
        assert (await first_line(slow)).startswith(b"HTTP/1.1 204")


@pytest.mark.anyio
@pytest.mark.scenario(98)
@pytest.mark.parametrize(("path", "waits"), [("/ui/sign-in", False), ("/ui/jobs", True)])
async def test_a_body_without_a_caller_has_less_time(
    monkeypatch: pytest.MonkeyPatch, sqlite_url: str, path: str, waits: bool
) -> None:
    monkeypatch.setattr(bodies, "OPEN_RECEIVE_SECONDS", 0.1)
    with Tenure(sqlite_url) as app:
        site = build(app, Settings(tokens=(TOKEN,)))
        headers = {**BEARER, "content-type": FORM.partition(" ")[2]}
        async with Exchange(site, "POST", path, headers=headers, whole=False) as exchange:
            done, _ = await asyncio.wait([exchange.task], timeout=0.5 if waits else 10)
            assert bool(done) is not waits
            assert exchange.status == (0 if waits else 408)


@pytest.mark.scenario(98)
def test_a_server_looks_for_slow_clients(sqlite_url: str) -> None:
    hurried = (
        "from tenure.http import protocol; protocol.OVERHEAD_SECONDS = 0.2; "
        "from tenure.cli import main; main()"
    )
    with (
        ServerProcess(sqlite_url, program=[sys.executable, "-c", hurried]) as server,
        server.connect() as connection,
    ):
        assert connection.recv(1) == b""


@pytest.mark.anyio
@pytest.mark.scenario(98)
@pytest.mark.parametrize("path", ["/jobs", "/ui/jobs"])
async def test_few_reads_are_made_at_once(
    sqlite_url: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 threads made pages at once: a hundred readers, and /health took 2.5 seconds."""
    under_way: list[object] = []
    go_on = threading.Event()

    def held(read: Callable[..., object], request: object) -> object:
        under_way.append(request)
        go_on.wait(WAIT_SECONDS)
        return read(request)

    monkeypatch.setitem(site.PAGES, "/ui/jobs", partial(held, site.PAGES["/ui/jobs"]))
    for route in server.ROUTES:
        if (route.method, route.path) == ("GET", "/jobs"):
            monkeypatch.setattr(route, "endpoint", partial(held, route.endpoint))
    with Tenure(sqlite_url) as app:
        built = build(app)
        async with contextlib.AsyncExitStack() as readers:
            for _ in range(10 * READS_AT_ONCE):
                await readers.enter_async_context(Exchange(built, "GET", path))
            few = partial(wait_until, lambda: len(under_way) >= READS_AT_ONCE, "the first reads")
            await asyncio.to_thread(few)
            for _ in range(LOOKS):  # in which another one would begin
                await asyncio.sleep(0.001)
            at_once = len(under_way)
            go_on.set()
    assert at_once == READS_AT_ONCE
