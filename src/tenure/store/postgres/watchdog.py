"""Cut connections to PostgreSQL that wait too long for an answer.

TCP notices a peer that is gone. It does not notice a pooler or a server that hangs: their machine
still confirms every packet, so a wait for an answer would never end. Therefore one thread of this
process looks at the waiting connections, and cuts each that has waited too long. A cut connection
fails like any broken one, and the next use connects again.

Where an address names several hosts, a connection that waits for one of them is cut as soon as a
new connection leads to another: that is the primary now, and the former one may be frozen.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg

from tenure import forks
from tenure.store.postgres.connection import Address, connect

log = logging.getLogger(__name__)

ANSWER_SECONDS = 60.0
"""How long a statement may take. Tenure's take far less, including a wait for a lock."""
LOOK_SECONDS = 0.2
SUSPECT_SECONDS = 3.0
"""How long a wait lasts before it looks which of several hosts is the primary now."""
SEARCH_SECONDS = 0.5
"""The pause between two such looks, as long as the wait lasts."""


class Wire:
    """The socket under a connection, which another thread can cut."""

    def __init__(self, connection: psycopg.Connection[Any], address: Address | None = None) -> None:
        """Close it with the connection: it has its own file descriptor.

        `address` is where the connection was made.
        """
        self.address = address if address and address.several else None
        self.server = _server_of(connection)
        # The family does not matter here, so that of a Unix socket need not be found out.
        self._socket = socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM)
        self.deadline: float | None = None  # monotonic seconds
        self.suspect_at = 0.0
        try:
            _watch.add(self)
        except psycopg.OperationalError:
            self._socket.close()
            raise

    def expect(self, seconds: float) -> None:
        """From now on an answer has to come within `seconds`."""
        now = time.monotonic()
        self.suspect_at = now + SUSPECT_SECONDS
        self.deadline = now + seconds
        _watch.wanted.set()

    def answered(self) -> None:
        """Nothing is waited for any more."""
        self.deadline = None

    def is_suspect(self) -> bool:
        """Whether another of several hosts may be the primary now."""
        waits = self.address is not None and self.deadline is not None
        return waits and time.monotonic() >= self.suspect_at

    def cut(self, why: str = "the database did not answer in time") -> None:
        """End the connection, so that the thread that waits for it fails."""
        self.deadline = None
        log.warning("%s: its connection is cut", why)
        with contextlib.suppress(OSError):  # closed meanwhile
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Forget the connection."""
        _watch.remove(self)
        self._socket.close()


@contextlib.contextmanager
def answering(
    connection: psycopg.Connection[Any], seconds: float, address: Address | None = None
) -> Iterator[None]:
    """Cut `connection` if what is done inside takes longer than `seconds`.

    `address` is where it was made.
    """
    wire = Wire(connection, address)
    try:
        wire.expect(seconds)
        yield
    finally:
        wire.close()


def _server_of(connection: psycopg.Connection[Any]) -> tuple[str, str, int]:
    info = connection.info
    return info.host, info.hostaddr, info.port


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
        self._search: threading.Thread | None = None

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
            now = time.monotonic()
            for wire in self._all():
                deadline = wire.deadline
                if deadline is not None:
                    self.wanted.set()
                    if now >= deadline:
                        wire.cut()
                    elif wire.is_suspect():
                        self._start_search(wire.address)

    def _all(self) -> list[Wire]:
        with self._lock:
            return list(self._wires)

    def _start_search(self, address: Address | None) -> None:
        if self._search is None or not self._search.is_alive():
            self._search = threading.Thread(
                None, self._find_primary, "tenure-primary", (address,), daemon=True
            )
            with contextlib.suppress(RuntimeError):  # a limit of the machine
                self._search.start()

    def _find_primary(self, address: Address) -> None:
        """Cut who waits for another server than the one that new connections lead to."""
        while any(wire.address == address and wire.is_suspect() for wire in self._all()):
            with contextlib.suppress(psycopg.Error), connect(address) as found:
                for wire in self._all():
                    if wire.address == address and wire.server != _server_of(found):
                        wire.cut("another server is the primary now")
            time.sleep(SEARCH_SECONDS)


_watch = _Watch()
forks.in_child(_watch.begin)
