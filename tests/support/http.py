"""Speak HTTP to Tenure in tests: in this process, request by request, or to a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import unquote

import httpx2
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Scope

from tenure import Tenure
from tenure.server import build
from tenure.settings import Settings
from tests.support.cli import PROGRAM, clean_environment
from tests.support.programs import Program

JSON = {"Content-Type": "application/json"}
UNKNOWN_ID = "0190163d-8694-739b-aea5-966c26f8ad90"
"""An id that no job has."""
HERE = ("127.0.0.1", 1)
"""The address of a client on the server's machine."""


@contextlib.contextmanager
def api_client(app: Tenure, settings: Settings | None = None) -> Iterator[TestClient]:
    """A client of the API in this process, which is on the same machine."""
    with TestClient(build(app, settings), base_url="http://localhost", client=HERE) as client:
        client._transport = WholeAnswers(client)
        yield client


class WholeAnswers(httpx2.BaseTransport):
    """Takes one call into the thread of the application for a request and its whole answer.

    Starlette's own takes nine, so that it can stream: three quarters of a short request's time.
    """

    def __init__(self, client: TestClient) -> None:
        self._client = client

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        url, portal = request.url, self._client.portal
        assert portal is not None
        scope = {
            **asgi_scope(request.method, unquote(url.path), query=url.query.decode("ascii")),
            "raw_path": url.raw_path.partition(b"?")[0],
            "scheme": url.scheme,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "client": HERE,
            "server": (url.host, url.port or 80),
            "state": self._client.app_state.copy(),
        }
        status, headers, body = portal.call(self._answer, scope, request)
        return httpx2.Response(status, headers=headers, content=body, request=request)

    async def _answer(
        self, scope: Scope, request: httpx2.Request
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        sent, was_read, is_over = list[Message](), False, asyncio.Event()

        async def receive() -> Message:
            nonlocal was_read
            if was_read:
                await is_over.wait()
                return {"type": "http.disconnect"}
            was_read = True
            return {"type": "http.request", "body": request.read()}

        async def send(message: Message) -> None:
            assert not is_over.is_set(), "there is more after the end of an answer"
            assert (message["type"] == "http.response.start") is (not sent)
            sent.append(message)
            if sent[1:] and not message.get("more_body"):
                is_over.set()

        await self._client.app(scope, receive, send)
        assert is_over.is_set(), "an answer has no end"
        body = b"".join(message.get("body", b"") for message in sent[1:])
        return sent[0]["status"], sent[0]["headers"], b"" if request.method == "HEAD" else body


def assert_problem(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The body of a refusal, which must be a problem of this kind."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["code"] == code, body
    assert body["type"] == f"urn:tenure:problem:{code}"
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == response.headers["x-request-id"]
    return body


def claim_jobs(api: httpx2.Client, limit: int = 1, **more: Any) -> list[dict[str, Any]]:
    """Lease jobs as worker `w`."""
    response = api.post("/leases", json={"worker": "w", "limit": limit, **more})
    assert response.status_code == 200, response.text
    leases: list[dict[str, Any]] = response.json()
    return leases


def report(api: httpx2.Client, lease: dict[str, Any], outcome: str, **more: Any) -> str:
    """Report on one lease; return the answer."""
    entry = {"lease_id": lease["lease_id"], "outcome": outcome, **more}
    response = api.post("/reports", json=[entry])
    assert response.status_code == 200, response.text
    (verdict,) = response.json()
    return str(verdict["answer"])


# --- forms of the dashboard -----------------------------------------------------------------------


def secret_of(web: TestClient, path: str = "/ui/sign-in") -> str:
    """What a form of this browser has to name."""
    found = re.search(r'name="form" value="([0-9a-f]{32})"', web.get(path).text)
    assert found
    return found[1]


def post_form(web: TestClient, path: str, fields: dict[str, Any] | None = None) -> httpx2.Response:
    """Send a form as a browser does."""
    origin = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
    sent = {"form": secret_of(web), **(fields or {})}
    return web.post(path, data=sent, headers=origin, follow_redirects=False)


# --- one request, seen from the server's side -----------------------------------------------------


def asgi_scope(
    method: str, path: str, headers: Mapping[str, str] | None = None, query: str = ""
) -> Scope:
    """A request as a server hands it to the application."""
    sent = {"host": "localhost", "content-type": "application/json", **(headers or {})}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(n.lower().encode(), v.encode("latin-1")) for n, v in sent.items()],
        "client": HERE,
        "server": ("127.0.0.1", 2),
    }


@dataclass
class Exchange:
    """A request that a test can hold open: what is sent to it, and what it answered so far."""

    app: ASGIApp
    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    query: str = ""
    whole: bool = True  # no more of the body will follow
    status: int = 0
    answered: bytes = b""

    def __post_init__(self) -> None:
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._news = asyncio.Event()
        self._scope = asgi_scope(self.method, self.path, self.headers, self.query)

    async def __aenter__(self) -> Exchange:
        first = {"type": "http.request", "body": self.body, "more_body": not self.whole}
        await self._to_app.put(first)
        self.task = asyncio.ensure_future(self.app(self._scope, self._to_app.get, self._receive))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task

    async def _receive(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.answered += message.get("body", b"")
        self._news.set()

    async def hang_up(self) -> None:
        """The client goes away."""
        await self._to_app.put({"type": "http.disconnect"})

    async def wait_for(self, part: bytes) -> None:
        """Wait until `part` has been answered."""
        async with asyncio.timeout(10):
            while part not in self.answered:
                self._news.clear()
                await self._news.wait()

    async def end(self) -> Any:
        """Wait for the end of the answer; its JSON."""
        async with asyncio.timeout(10):
            await self.task
        return json.loads(self.answered) if self.answered else None


# --- a real server --------------------------------------------------------------------------------


class ServerProcess:
    """`tenure serve` as a separate process, on a free port."""

    def __init__(
        self, database: str, *arguments: str, program: Sequence[str] = PROGRAM, **environ: str
    ) -> None:
        self.process = Program(
            [*program, "serve", "--port", "0", "--database", database, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(**environ),
        )
        assert self.process.stdout is not None
        self.greeting = self.process.stdout.readline().strip()
        self.url = self.greeting.rpartition(" ")[2].removesuffix('"}')
        assert self.url.startswith("http"), self.process.communicate()[1]
        host, _, port = self.url.partition("//")[2].rpartition(":")
        self.address = (host, int(port))

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def connect(self) -> socket.socket:
        """A plain connection to it."""
        return socket.create_connection(self.address, timeout=30)

    def stop(self, timeout: float = 30) -> tuple[int, str]:
        """Ask it to stop; its exit code and its log."""
        self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=timeout)
        return self.process.returncode, log


def start_python(code: str, **environ: str) -> subprocess.Popen[str]:
    """Start a separate Python process that runs `code`."""
    return Program(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )
