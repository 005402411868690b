"""One durable Redis for all peers on it, as `servers.Engine` asks of a database."""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.catalogue import Subject
from bench.environments import ON_DISK, Unavailable
from bench.processes import END_WITH_PARENT, cpu_seconds_with_children

START_SECONDS = 10
SETTINGS = {"appendonly": "yes", "appendfsync": "everysec", "save": "''"}


class Redis:
    """A Redis of our own that appends every write to a file and syncs it once a second."""

    def __init__(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise Unavailable("needs redis-server, which is not installed")
        self._folder = tempfile.TemporaryDirectory(prefix="tenure-bench-", dir=ON_DISK)
        self._password = secrets.token_hex(16)
        self._port = _free_port()
        settings = {
            **SETTINGS,
            "bind": "127.0.0.1",
            "port": str(self._port),
            "requirepass": self._password,
            "dir": self._folder.name,
        }
        self._process = subprocess.Popen(
            [*END_WITH_PARENT, program, "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        with self._process.stdin as stdin:  # not as arguments, which every user could read
            stdin.write("".join(f"{k} {v}\n" for k, v in settings.items()).encode())
        self._connection = self._connect()
        info = str(self._ask("INFO", "server"))
        self.version = "Redis " + info.partition("redis_version:")[2].partition("\r")[0]
        self.settings = "appendonly yes, appendfsync everysec, no snapshots"

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", self._port))
                break
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise Unavailable("redis-server did not come up") from None
                time.sleep(0.02)
        self._answers = connection.makefile("rb")
        self._connection = connection
        self._ask("AUTH", self._password)
        return connection

    def _ask(self, *words: str) -> int | str | None:
        """One command in Redis's protocol (RESP2), and its answer."""
        encoded = [word.encode() for word in words]
        parts = [b"*%d\r\n" % len(encoded), *(b"$%d\r\n%b\r\n" % (len(w), w) for w in encoded)]
        self._connection.sendall(b"".join(parts))
        line = self._answers.readline()
        kind, rest = line[:1], line[1:].strip()
        if kind == b"-":
            raise RuntimeError(f"Redis refused {words[0]}: {rest.decode()}")
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self._answers.read(size + 2)[:-2].decode()
        return int(rest) if kind == b":" else rest.decode()

    def fresh(self, subject: Subject) -> str:
        self._ask("FLUSHALL")
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def left(self, subject: Subject, place: str) -> int:
        return int(self._ask("EVAL", subject.left, "0") or 0)

    def calm(self, place: str) -> None:
        """Nothing to do: Redis rewrites its file when it sees fit."""

    def keep(self, place: str) -> None:
        raise Unavailable("no copies of Redis")

    def again(self, place: str) -> None:
        raise Unavailable("no copies of Redis")

    @contextmanager
    def pinned(self, place: str) -> Iterator[None]:
        yield  # Redis keeps no snapshots for readers

    @contextmanager
    def held(self, subject: Subject, place: str) -> Iterator[None]:
        self._ask("CLIENT", "PAUSE", "120000", "WRITE")
        try:
            yield
        finally:
            self._ask("CLIENT", "UNPAUSE")

    def spent(self, place: str) -> dict[str, float]:
        return {"cpu": cpu_seconds_with_children(self._process.pid)}

    def image_bytes(self, place: str, since: float) -> float | None:
        return None

    def connections(self, place: str) -> int:
        said = str(self._ask("INFO", "clients"))
        return int(said.partition("connected_clients:")[2].split()[0]) - 1

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(START_SECONDS)
        self._folder.cleanup()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
