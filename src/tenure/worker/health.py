"""What a supervisor asks a worker: whether it lives, and whether it can run jobs.

`GET /live` and `GET /ready` answer 200 or 503 with a JSON object of reasons, without the extra
`standard`: a worker that needs no server should not install one for its probes.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tenure import forks
from tenure.errors import InvalidInput
from tenure.worker.worker import Worker

log = logging.getLogger(__name__)

MAX_PROBES = 16
"""Connections at once; others are closed unanswered."""
PROBE_SECONDS = 5.0
"""How long a client may take for its request."""
LIVE_SECONDS = 60.0
"""How long the event loop may be blocked before the worker counts as dead."""


class Health:
    """Answers for one worker. Any thread may ask."""

    def __init__(self, worker: Worker, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is in seconds."""
        self._worker = worker
        self._clock = clock
        self._blocked_at: float | None = None  # of the first probe that found it so

    def live(self) -> list[str]:
        """Return why a supervisor should restart the process; nothing while it lives."""
        if self._worker.turns():
            self._blocked_at = None
            return []
        now = self._clock()
        self._blocked_at = now if self._blocked_at is None else self._blocked_at
        blocked = now - self._blocked_at
        if blocked < LIVE_SECONDS:
            return []
        return [f"its event loop has been blocked for {blocked:.0f} s"]

    def ready(self) -> list[str]:
        """Return why it runs no new jobs at present; nothing if it does."""
        blocked = [] if self._worker.turns() else ["its event loop is blocked or has not started"]
        return [*blocked, *self._worker.troubles()]


@contextmanager
def health_served(worker: Worker, address: tuple[str, int]) -> Iterator[int]:
    """Answer probes at (host, port) in the block; yield the port.

    Port 0 lets the system choose one. Raises InvalidInput if the address cannot be used.
    """
    health = Health(worker)
    questions = {"/live": health.live, "/ready": health.ready}

    class Probe(BaseHTTPRequestHandler):
        timeout = PROBE_SECONDS

        def do_GET(self) -> None:
            ask = questions.get(self.path.partition("?")[0])
            reasons = ["ask for /live or /ready"] if ask is None else ask()
            body = json.dumps({"ok": not reasons, "reasons": reasons}).encode()
            self.send_response(404 if ask is None else 503 if reasons else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing: probes come every few seconds."""

    try:
        server = _ProbeServer(address, Probe)
    except OSError as error:
        where = f"{address[0]} port {address[1]}"
        raise InvalidInput(f"cannot listen on {where}: {error}", path="--health") from error
    thread = threading.Thread(target=server.serve_forever, name="tenure-health", daemon=True)
    thread.start()
    port = server.server_address[1]
    log.info("probes are answered on %s port %d: /live and /ready", address[0], port)
    try:
        with forks.kept_from_children(server.socket):
            yield port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _ProbeServer(ThreadingHTTPServer):
    """A thread for each probe, and not more than `MAX_PROBES`."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], probe: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self._room = threading.BoundedSemaphore(MAX_PROBES)
        super().__init__((address[0].strip("[]"), address[1]), probe)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread: a limit of the machine
            self._room.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a probe from %s broke off", client_address)
