"""The server as a program: where it listens, what it bears, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tenure import Tenure
from tenure.errors import InvalidInput
from tenure.http.protocol import MAX_OVERHEAD_BYTES
from tenure.server import serve
from tenure.settings import Settings
from tests.support.cli import PROGRAM
from tests.support.http import ServerProcess, claim_jobs, report
from tests.support.waiting import WAIT_SECONDS, wait_until

SLOW_APP = """
import time
from tenure import Tenure

app = Tenure()

@app.job
def nap(seconds: float) -> str:
    time.sleep(seconds)
    return "rested"
"""


@pytest.fixture
def server(sqlite_url: str) -> Iterator[ServerProcess]:
    with ServerProcess(sqlite_url) as served:
        yield served


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server for tests that leave it as they found it: a start takes half a second."""
    with ServerProcess(f"sqlite:///{tmp_path_factory.mktemp('server')}/jobs.db") as served:
        yield served


@contextlib.contextmanager
def connected(server: ServerProcess, sent: bytes = b"") -> Iterator[socket.socket]:
    """A connection on which `sent` has been sent."""
    with server.connect() as connection:
        connection.sendall(sent)
        yield connection


def everything(connection: socket.socket) -> bytes:
    """What is answered until the server closes the connection."""
    answered = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            answered += part
    return answered


def wait_until_running(server: ServerProcess, job_id: str) -> None:
    address = f"{server.url}/jobs/{job_id}"
    wait_until(lambda: httpx2.get(address).json()["status"] == "processing", "the job to start")


def closes(connection: socket.socket, endless: bytes, most: int) -> bool:
    """Whether the server closes a connection before `most` bytes have been sent on it."""
    sent = 0
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while sent < most:
            sent += connection.send(endless)
            time.sleep(0.001)
    return sent < most


# --- listening ------------------------------------------------------------------------------------


def test_it_says_where_it_listens(shared_server: ServerProcess) -> None:
    assert re.fullmatch(r"Tenure listens on http://127\.0\.0\.1:[0-9]+", shared_server.greeting)
    assert httpx2.get(f"{shared_server.url}/health").json() == {"status": "ok"}
    assert httpx2.get(f"{shared_server.url}/ready").json() == {"status": "ready"}
    assert "shared_server" not in httpx2.get(f"{shared_server.url}/health").headers


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_it_listens_on_ipv6_loopback(sqlite_url: str, host: str) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback; nothing to do")
    with ServerProcess(sqlite_url, "--host", host) as served:
        assert served.url.startswith("http://[::1]:")
        assert httpx2.get(f"{served.url}/health").status_code == 200


def test_a_port_that_is_taken(shared_server: ServerProcess, tmp_path: Path) -> None:
    port = shared_server.address[1]
    with pytest.raises(InvalidInput, match=f"port {port}.*another port") as refused:
        serve(Tenure(f"sqlite:///{tmp_path}/other.db"), Settings(port=port))
    assert refused.value.path == "port"
    assert not (tmp_path / "other.db").exists(), "nothing was begun"


def test_an_address_of_another_machine(tmp_path: Path) -> None:
    settings = Settings(host="203.0.113.7", port=0, tokens=("t" * 20,))
    with pytest.raises(InvalidInput, match="cannot listen"):
        serve(Tenure(f"sqlite:///{tmp_path}/other.db"), settings)
    settings = Settings(host="no.such.host.invalid", port=0, tokens=("t" * 20,))
    with pytest.raises(InvalidInput, match="not an address"):
        serve(Tenure(f"sqlite:///{tmp_path}/other.db"), settings)


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["worker", "--fake-handlers"]])
def test_a_process_that_may_open_too_few_files_says_what_to_raise(
    tmp_path: Path, command: list[str]
) -> None:
    """It ended with a traceback, wherever the files ran out."""
    limited = ["/bin/sh", "-c", 'ulimit -n 24 && exec "$@"', "sh", *PROGRAM]
    ended = subprocess.run(
        [*limited, *command, "--database", f"sqlite:///{tmp_path}/other.db"],
        check=False,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert ended.returncode == 2
    assert re.fullmatch("Error: .* may open 24 files at once.* raise the limit.*\n", ended.stderr)
    begun = (tmp_path / "other.db").exists()
    assert not begun or command[0] == "worker", "a server begins nothing"


def test_a_database_that_cannot_be_opened_stops_it_at_once(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        ServerProcess(f"sqlite:///{tmp_path}/no/such/folder/jobs.db")


# --- ending ---------------------------------------------------------------------------------------


def test_requests_that_do_not_end_in_time_leave_no_traceback(
    server: ServerProcess, sqlite_url: str
) -> None:
    """One of which half arrived, and two that wait for a database that does not answer."""
    head = b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    job = b'{"type": "a"}'
    half = head + b"Content-Length: 100\r\n\r\n" + job
    whole = head + b"Content-Length: %d\r\n\r\n" % len(job) + job
    thread = b"POST /queues/a/pause HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with contextlib.closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as other:
        other.execute("BEGIN IMMEDIATE")
        with connected(server, half), connected(server, whole), connected(server, thread):
            last = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
            with connected(server, last) as probe:  # the others were accepted before
                assert probe.recv(4096)
            server.process.terminate()
            assert server.process.stderr is not None
            log = ""
            for line in server.process.stderr:
                log += line
                if "graceful shutdown exceeded" in line:
                    other.rollback()  # the thread ends, whose request was cancelled
    assert server.process.wait(30) == 0
    assert "Traceback" not in log
    assert "ASGI callable" not in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_open_polls_and_streams_end_at_once(server: ServerProcess, number: signal.Signals) -> None:
    answers: dict[str, object] = {}
    waiting = threading.Event()

    def poll() -> None:
        body = {"worker": "w", "wait_seconds": 30}
        answers["poll"] = httpx2.post(f"{server.url}/leases", json=body, timeout=60).json()

    def stream() -> None:
        with httpx2.stream("GET", f"{server.url}/events", timeout=60) as response:
            for line in response.iter_lines():
                if line.startswith("retry"):
                    waiting.set()
            answers["stream"] = "ended"

    threads = [threading.Thread(target=poll), threading.Thread(target=stream)]
    for thread in threads:
        thread.start()
    assert waiting.wait(10)
    wait_until(lambda: "w" in httpx2.get(f"{server.url}/workers").text, "the claim to wait")
    with connected(server):  # nothing is asked on this one
        started = time.monotonic()
        server.process.send_signal(number)
        _, log = server.process.communicate(timeout=30)
        took = time.monotonic() - started
    for thread in threads:
        thread.join(10)
    assert server.process.returncode == 0, log
    assert took < 5, f"it took {took:.1f} s to end"
    assert answers == {"poll": [], "stream": "ended"}
    assert "Traceback" not in log
    assert "ERROR" not in log


def test_running_jobs_finish_within_the_grace(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_APP)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with ServerProcess(sqlite_url, "--app", "slow:app", PYTHONPATH=path) as server:
        job = httpx2.post(
            f"{server.url}/jobs", json={"type": "nap", "payload": {"seconds": 1.0}}
        ).json()
        wait_until_running(server, job["id"])
        code, log = server.stop()
    assert code == 0, log
    with Tenure(sqlite_url) as app:
        assert app.get(job["id"]).status == "completed"
        assert app.get(job["id"]).attempts == 1


def test_jobs_that_outlast_the_grace_are_interrupted_and_kept(
    sqlite_url: str, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(SLOW_APP)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    arguments = ("--app", "slow:app", "--grace", "0.2s")
    with ServerProcess(sqlite_url, *arguments, PYTHONPATH=path) as server:
        job = httpx2.post(
            f"{server.url}/jobs", json={"type": "nap", "payload": {"seconds": 3_600}}
        ).json()
        wait_until_running(server, job["id"])
        code, log = server.stop()
    assert code == 0, log
    with Tenure(sqlite_url) as app:
        kept = app.get(job["id"])
        assert (kept.status, kept.attempts, kept.event) == ("pending", 0, "interrupted")


def test_a_second_signal_ends_it_on_the_spot(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_APP)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    arguments = ("--app", "slow:app", "--grace", "1h")
    with ServerProcess(sqlite_url, *arguments, PYTHONPATH=path) as server:
        job = httpx2.post(
            f"{server.url}/jobs", json={"type": "nap", "payload": {"seconds": 3_600}}
        ).json()
        wait_until_running(server, job["id"])
        server.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(httpx2.TransportError):
            while httpx2.get(f"{server.url}/health"):  # until the first signal closed the door
                pass
        server.process.send_signal(signal.SIGTERM)
        server.process.communicate(timeout=WAIT_SECONDS)
    assert server.process.returncode == 130


def test_what_was_accepted_survives_the_server(sqlite_url: str) -> None:
    with ServerProcess(sqlite_url) as server:
        made = [
            httpx2.post(f"{server.url}/jobs", json={"type": "a"}).json()["id"] for _ in range(5)
        ]
        server.process.kill()
        server.process.communicate()
    with Tenure(sqlite_url) as app:
        assert [job.id for job in app.find()] == made[::-1]


# --- what it bears --------------------------------------------------------------------------------


def request(path: str = "/health", *headers: str, host: str = "localhost") -> bytes:
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


@pytest.mark.requirement("C9")
def test_a_head_that_is_too_large_is_refused(shared_server: ServerProcess) -> None:
    long = "x" * MAX_OVERHEAD_BYTES
    for head in (
        request("/health", f"X-Long: {long}"),
        request("/health", *(f"X-{n}: {long[:1000]}" for n in range(100))),
        request("/" + long),
    ):
        with connected(shared_server, head) as connection:
            answered = everything(connection)
        assert answered.startswith(b"HTTP/1.1 400 ") or answered == b""
    assert httpx2.get(f"{shared_server.url}/health").status_code == 200


@pytest.mark.scenario(98)
def test_a_head_without_end_is_cut_off(shared_server: ServerProcess) -> None:
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Endless: "
    with connected(shared_server, head) as connection:
        assert closes(connection, b"x" * 10_000, most=10_000_000)
    assert httpx2.get(f"{shared_server.url}/health").status_code == 200


@pytest.mark.parametrize(
    "bytes_",
    [
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\0" * 100,
    ],
)
def test_what_is_not_http_is_refused(shared_server: ServerProcess, bytes_: bytes) -> None:
    with connected(shared_server, bytes_) as connection:
        connection.shutdown(socket.SHUT_WR)
        answered = everything(connection)
    assert not answered or answered.startswith(b"HTTP/1.1 4")
    assert httpx2.get(f"{shared_server.url}/health").status_code == 200


@pytest.mark.requirement("C6")
@pytest.mark.parametrize(
    "head",
    [
        request("http://evil.example/jobs", host="evil.example"),
        request("http://localhost/jobs", host="evil.example"),
        request("/jobs", host="evil.example"),
        request("/jobs", "Host: evil.example"),
        b"GET /jobs HTTP/1.0\r\n\r\n",
        b"GET /jobs HTTP/1.1\r\nHost:\r\n\r\n",
    ],
)
def test_a_foreign_host_in_every_form(shared_server: ServerProcess, head: bytes) -> None:
    with connected(shared_server, head) as connection:
        assert re.match(rb"HTTP/1\.[01] 4(00|21) ", connection.recv(65_536))


@pytest.mark.scenario(98)
@pytest.mark.requirement("C9")
def test_slow_and_endless_bodies_hold_up_nobody(server: ServerProcess) -> None:
    head = (
        b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 1000\r\n\r\n{"
    )
    with contextlib.ExitStack() as dribbling:
        for _ in range(100):
            dribbling.enter_context(connected(server, head))
        started = time.monotonic()
        for _ in range(20):
            assert httpx2.post(f"{server.url}/jobs", json={"type": "a"}).status_code == 201
        assert time.monotonic() - started < 10
    total = httpx2.get(f"{server.url}/stats").json()["total"]
    assert total == 20, "a client that left half-way added nothing"


def most_memory(server: ServerProcess) -> int:
    """The most memory that the server ever had, in bytes."""
    try:
        status = Path(f"/proc/{server.process.pid}/status").read_text("ascii")
    except OSError:
        pytest.skip("this system does not tell how much memory a process had")
    (kilobytes,) = re.findall(r"^VmHWM:\s+([0-9]+) kB$", status, re.MULTILINE)
    return int(kilobytes) * 1024


MIB = 1024 * 1024


@pytest.mark.scenario(98)
@pytest.mark.requirement("C9")
@pytest.mark.parametrize("length", ["Transfer-Encoding: chunked", "Content-Length: 999999999999"])
def test_endless_bodies_at_once_do_not_fill_the_memory(server: ServerProcess, length: str) -> None:
    """Each may take a body's limit of 1 MiB and a little; without it these would take 400 MiB."""
    head = (
        "POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"{length}\r\n\r\n"
    )
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    assert httpx2.post(f"{server.url}/jobs", json={"type": "a"}).status_code == 201
    before = most_memory(server)
    with contextlib.ExitStack() as attack:
        connections = [attack.enter_context(connected(server, head.encode())) for _ in range(40)]
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for connection in connections:
                connection.sendall(chunk * 15)  # all hold nearly as much as they may
        assert httpx2.post(f"{server.url}/jobs", json={"type": "a"}).status_code == 201
        for connection in connections:
            closes(connection, chunk, most=10 * MIB)
        assert most_memory(server) - before < 160 * MIB
    assert httpx2.get(f"{server.url}/stats").json()["total"] == 2


@pytest.mark.scenario(98)
@pytest.mark.requirement("C9")
def test_a_body_is_not_kept_for_whoever_has_no_token(sqlite_url: str) -> None:
    head = (
        b"POST /jobs/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with (
        ServerProcess(sqlite_url, TENURE_TOKEN="the-token") as server,
        contextlib.ExitStack() as attack,
    ):
        assert httpx2.get(f"{server.url}/jobs").status_code == 401
        before = most_memory(server)
        connections = [attack.enter_context(connected(server, head)) for _ in range(6)]
        for connection in connections:
            assert connection.recv(65_536).startswith(b"HTTP/1.1 401 ")
            closes(connection, chunk, most=8 * MIB)
        assert most_memory(server) - before < 24 * MIB
        assert httpx2.get(f"{server.url}/health").status_code == 200


@pytest.mark.requirement("C13")
def test_json_logs_are_one_event_per_line(sqlite_url: str) -> None:
    with ServerProcess(sqlite_url, "--fake-handlers", "--log-format", "json") as server:
        httpx2.post(f"{server.url}/jobs", json={"type": "a"})
        code, log = server.stop()
    assert code == 0
    for line in log.splitlines():
        event = json.loads(line)
        assert {"time", "level", "logger", "message"} <= event.keys()


@pytest.mark.requirement("C10")
def test_a_server_that_stood_still_ends_no_lease_that_a_heartbeat_would_have_kept(
    sqlite_url: str,
) -> None:
    with ServerProcess(sqlite_url) as server, httpx2.Client(base_url=server.url) as http:
        assert http.post("/jobs", json={"type": "a", "max_retries": 1}).status_code == 201
        time.sleep(0.5)  # so that it has turned before
        (lease,) = claim_jobs(http, lease_seconds=1)
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(4)  # the fault
        server.process.send_signal(signal.SIGCONT)
        time.sleep(1.5)  # more than one sweep
        beaten = http.post("/heartbeats?lease_seconds=30", json=[lease["lease_id"]])
        assert beaten.json()[0]["held"]
        assert report(http, lease, "completed", result=1) == "recorded"
        assert http.get(f"/jobs/{lease['id']}").json()["status"] == "completed"
