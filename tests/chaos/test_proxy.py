"""The proxy does what it says, with an echo for a target."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tenure import Tenure
from tests.support.proxy import Proxy
from tests.support.waiting import WAIT_SECONDS, wait_until

HEARD: list[bytes] = []


class Echo(socketserver.BaseRequestHandler):
    """Sends back what it gets."""

    request: socket.socket

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := self.request.recv(1_000_000):
                HEARD.append(data)
                self.request.sendall(data)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


class UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


@contextlib.contextmanager
def running(server: socketserver.BaseServer) -> Iterator[None]:
    HEARD.clear()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    server = Server(("127.0.0.1", 0), Echo)
    with running(server), Proxy(("127.0.0.1", server.server_address[1])) as made:
        yield made


@pytest.fixture
def web(proxy: Proxy) -> Iterator[Proxy]:
    """A proxy that believes to be in front of a web server. It echoes: requests are answers."""
    with Proxy(f"http://{proxy.address[0]}:{proxy.address[1]}") as made:
        yield made


class Client:
    """One connection."""

    def __init__(self, proxy: Proxy) -> None:
        self.socket = socket.create_connection(proxy.address, timeout=WAIT_SECONDS)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def hear(self, count: int) -> bytes:
        """So many bytes, or less if the other side ends; ConnectionResetError if it breaks off."""
        heard = b""
        while len(heard) < count and (data := self.socket.recv(count - len(heard))):
            heard += data
        return heard

    def hears_nothing(self, seconds: float = 0.2) -> bool:
        self.socket.settimeout(seconds)
        try:
            return self.socket.recv(1) is None
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(WAIT_SECONDS)


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Client]:
    with Client(proxy) as made:
        made.say(b"hello")
        assert made.hear(5) == b"hello"
        yield made


def test_passes_on_in_both_directions_and_to_the_end(proxy: Proxy, client: Client) -> None:
    big = bytes(3_000_000)
    threading.Thread(target=client.say, args=(big,), daemon=True).start()
    assert client.hear(len(big)) == big
    client.socket.shutdown(socket.SHUT_WR)
    assert client.hear(1) == b""
    wait_until(lambda: proxy.connections == 0, "the connection to end")
    assert proxy.counts == {"connections": 1}


def test_reaches_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "echo"
    with running(UnixServer(str(path), Echo)), Proxy(path) as proxy, Client(proxy) as client:
        client.say(b"hello")
        assert client.hear(5) == b"hello"


def test_a_target_that_is_away_is_a_reset(tmp_path: Path) -> None:
    with Proxy(tmp_path / "nobody") as proxy:
        with pytest.raises(ConnectionResetError), Client(proxy) as client:  # perhaps already here
            client.hear(1)
        assert proxy.counts == {"connections": 1}


@pytest.mark.parametrize("way", ["requests", "answers"])
def test_delay(proxy: Proxy, client: Client, way: str) -> None:
    proxy.delay(0.3, requests=way == "requests", answers=way == "answers")
    began = time.monotonic()
    client.say(b"slow")
    assert client.hear(4) == b"slow"
    assert time.monotonic() - began >= 0.3
    proxy.pass_on()
    client.say(b"fast")
    assert client.hear(4) == b"fast"


def test_delayed_pieces_do_not_wait_for_each_other(proxy: Proxy, client: Client) -> None:
    proxy.delay(0.5)
    began = time.monotonic()
    for _ in range(40):
        client.say(b"x")
        time.sleep(0.01)  # pieces of their own; if they arrive as one, nothing is lost
    assert client.hear(40) == b"x" * 40
    assert time.monotonic() - began < 10  # one after the other takes 20 seconds


@pytest.mark.parametrize("way", ["requests", "answers"])
def test_black_hole(proxy: Proxy, client: Client, way: str) -> None:
    proxy.black_hole(requests=way == "requests", answers=way == "answers")
    client.say(b"anybody")
    with Client(proxy) as new:
        new.say(b"there?")
        assert new.hears_nothing()
    assert client.hears_nothing()
    if way == "answers":
        wait_until(lambda: b"anybody" in HEARD)
    assert [b"hello"] + [b"anybody"] * (way == "answers") == HEARD
    proxy.pass_on()
    client.say(b"now?")
    with Client(proxy) as new:
        new.say(b"now")
        assert new.hear(3) == b"now"
    assert client.hears_nothing()


def test_refuse(proxy: Proxy, client: Client) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionResetError):
        client.hear(1)
    with pytest.raises(ConnectionRefusedError):
        Client(proxy)
    proxy.pass_on()
    with Client(proxy) as again:
        again.say(b"hello")
        assert again.hear(5) == b"hello"
    assert proxy.counts["connections cut"] == 1


def test_reset(proxy: Proxy, client: Client) -> None:
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.hear(1)
    with Client(proxy) as again:
        again.say(b"hello")
        assert again.hear(5) == b"hello"


def test_reset_after_some_bytes(proxy: Proxy, client: Client) -> None:
    proxy.reset_after(7)
    client.say(b"one")
    assert client.hear(3) == b"one"
    client.say(b"twothree")
    assert client.hear(4) == b"twot"
    with pytest.raises(ConnectionResetError):
        client.hear(1)


def test_drop_answers(proxy: Proxy, client: Client) -> None:
    proxy.drop_answers(b"COMMIT")
    client.say(b"BEGIN")
    assert client.hear(5) == b"BEGIN"
    client.say(b"COMMIT")
    with pytest.raises(ConnectionResetError):
        client.hear(1)
    assert HEARD == [b"hello", b"BEGIN", b"COMMIT"]
    with Client(proxy) as again:  # only the one
        again.say(b"COMMIT")
        assert again.hear(6) == b"COMMIT"
    assert proxy.counts["answers dropped"] == 1


def test_hold_and_let_go(proxy: Proxy, client: Client) -> None:
    proxy.hold(b"late", times=2)
    client.say(b"late")
    with Client(proxy) as other:
        other.say(b"on time")
        assert other.hear(7) == b"on time"
        other.say(b"late too")
        wait_until(lambda: proxy.counts["requests held"] == 2)
    # The other one has given up; it is delivered all the same.
    assert HEARD == [b"hello", b"on time"]
    proxy.let_go()
    assert client.hear(4) == b"late"
    wait_until(lambda: b"late too" in HEARD)


def test_a_web_request_in_pieces_is_held_as_one(web: Proxy) -> None:
    web.hold(b"late")
    with Client(web) as client:
        head = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n"
        client.say(head)
        assert client.hears_nothing()
        client.say(b"late")
        wait_until(lambda: web.counts["requests held"] == 1)
        assert HEARD == []
        web.let_go()
        assert client.hear(len(head) + 4) == head + b"late"


def test_a_rule_may_come_in_the_middle_of_a_web_request(web: Proxy) -> None:
    request = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody"
    with Client(web) as client:
        client.say(request[:-4])
        wait_until(lambda: web.counts["connections"] == 1)
        assert client.hears_nothing(0.05)
        web.drop_answers(b"another request")
        client.say(request[-4:])
        assert client.hear(len(request)) == request


def test_repeat_requests(web: Proxy) -> None:
    web.repeat_requests(b"POST /jobs")
    request = b"POST /jobs HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody"
    with Client(web) as client:
        client.say(request)
        assert client.hear(len(request)) == request
        wait_until(lambda: web.copies == [request])
    assert [request, request] == HEARD
    assert web.counts["requests repeated"] == 1


def test_only_web_requests_can_be_repeated(proxy: Proxy) -> None:
    with pytest.raises(ValueError, match="only HTTP"):
        proxy.repeat_requests()


def test_in_front_of_postgresql(postgres_url: str) -> None:
    with Proxy(postgres_url) as proxy, Tenure(proxy.url_of(postgres_url)) as app:
        job = app.enqueue("work")
        assert app.get(job.id) == job
        with psycopg.connect(proxy.url_of(postgres_url)) as connection:
            proxy.drop_answers(b"SELECT 2")
            assert connection.execute("SELECT 1").fetchone() == (1,)
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 2")
            connection.close()
        assert proxy.counts["connections"] >= 2
        assert proxy.counts["answers dropped"] == 1
