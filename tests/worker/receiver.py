"""A receiver of webhooks, and what delivers to it."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tenure import Tenure
from tenure.worker.webhook_delivery import WebhookDelivery
from tests.support.workers import running_sweeper


class Receiver(ThreadingHTTPServer):
    """A receiver that keeps what it was sent; it answers with `answers` in turn, then with 204."""

    daemon_threads = True

    def __init__(self, *answers: bytes, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Taking)
        if tls is not None:  # spoken in the thread of each request, so that nobody waits for it
            self.socket = tls.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
        self.answers = list(answers)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """Nothing: who connects may turn away."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def messages(self) -> list[Any]:
        """The bodies, as JSON."""
        return [json.loads(body) for _, _, body in self.requests]


class Taking(BaseHTTPRequestHandler):
    """Takes one message; a connection that comes to nothing is none."""

    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.path, headers, body))
        answers = self.server.answers
        self.wfile.write(answers.pop(0) if answers else b"HTTP/1.1 204 No Content\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """Nothing: the requests are kept."""


@contextlib.contextmanager
def receiving(*answers: bytes, tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    receiver = Receiver(*answers, tls=tls)
    try:
        yield receiver
    finally:
        receiver.shutdown()
        receiver.server_close()


@contextlib.contextmanager
def delivering(app: Tenure, *, private: bool = True) -> Iterator[WebhookDelivery]:
    """What a server does for webhooks."""
    delivery = WebhookDelivery(app, private=private)
    delivery.start()
    try:
        with running_sweeper(app):
            yield delivery
    finally:
        delivery.stop()
