"""Cut connections to PostgreSQL that wait too long for an answer.

TCP notices a peer that is gone. It does not notice a pooler or a server that hangs: their machine
still confirms every packet, so a wait for an answer would never end. Therefore one thread of this
process looks at the waiting connections, and cuts each that has waited too long. A cut connection
fails like any broken one, and the next use connects again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg

log = logging.getLogger(__name__)

ANSWER_SECONDS = 60.0
"""How long a statement may take. Tenure's take far less, including a wait for a lock."""
LOOK_SECONDS = 0.2


class Wire:
    """The socket under a connection, which another thread can cut."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        """Close it with the connection: it has its own file descriptor."""
        # The family does not matter here, so that of a Unix socket need not be found out.
        self._socket = socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM)
        self.deadline: float | None = None  # monotonic seconds
        try:
            _watch.add(self)
        except psycopg.OperationalError:
            self._socket.close()
            raise

    def expect(self, seconds: float) -> None:
        """From now on an answer has to come within `seconds`."""
        self.deadline = time.monotonic() + seconds
        _watch.wanted.set()

    def answered(self) -> None:
        """Nothing is waited for any more."""
        self.deadline = None

    def cut(self) -> None:
        """End the connection, so that the thread that waits for it fails."""
        self.deadline = None
        log.warning("the database did not answer in time: its connection is cut")
        with contextlib.suppress(OSError):  # closed meanwhile
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Forget the connection."""
        _watch.remove(self)
        self._socket.close()


@contextlib.contextmanager
def answering(connection: psycopg.Connection[Any], seconds: float) -> Iterator[None]:
    """Cut `connection` if what is done inside takes longer than `seconds`."""
    wire = Wire(connection)
    try:
        wire.expect(seconds)
        yield
    finally:
        wire.close()


class _Watch:
    """The thread that looks. It sleeps while nothing is waited for."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin with nothing, as in the child of a fork, which has none of its parent's threads."""
        self._lock = threading.Lock()
        self._wires: set[Wire] = set()
        self.wanted = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, wire: Wire) -> None:
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="tenure-wire-watch", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # a limit of the machine
                    raise psycopg.OperationalError(f"cannot be watched: {error}") from error
                self._thread = thread
            self._wires.add(wire)

    def remove(self, wire: Wire) -> None:
        with self._lock:
            self._wires.discard(wire)

    def _run(self) -> None:
        while True:
            self.wanted.wait()
            time.sleep(LOOK_SECONDS)
            self.wanted.clear()  # before the look, so that who begins to wait after it wakes us
            with self._lock:
                deadlines = [(wire, wire.deadline) for wire in self._wires]
            now = time.monotonic()
            for wire, deadline in deadlines:
                if deadline is not None:
                    self.wanted.set()
                    if now >= deadline:
                        wire.cut()


_watch = _Watch()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_watch.begin)
