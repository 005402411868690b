"""The databases under test: one durable PostgreSQL, one Redis, and SQLite files on the same disk.

Every peer gets the same server with the same settings, fresh for each measurement.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

import psycopg
from psycopg import sql

from bench.catalogue import Subject
from bench.environments import Unavailable
from bench.processes import END_WITH_PARENT, cpu_seconds_with_children
from tests.support.postgres import PostgresServer, PostgresUnavailable

ON_DISK = Path("/var/tmp")  # /tmp may be in memory
START_SECONDS = 10
REDIS_SETTINGS = {"appendonly": "yes", "appendfsync": "everysec", "save": "''"}


class Engine(Protocol):
    """A kind of database, and what the bench does with it beside the queue."""

    version: str
    settings: str

    def fresh(self, subject: Subject) -> str:
        """An empty database; its URL or path, as the subject's adapter takes it."""

    def left(self, subject: Subject, place: str) -> int:
        """How many jobs wait or run, asked behind the queue's back."""

    def calm(self, place: str) -> None:
        """Do what the database would have done by itself some time after a bulk load."""

    def keep(self, place: str) -> None:
        """Keep a copy of the database, which nobody is using, to start again from."""

    def again(self, place: str) -> None:
        """Put the kept copy back."""

    def pinned(self, place: str) -> AbstractContextManager[None]:
        """Hold a snapshot of the database, as a long report or a forgotten session does."""

    def spent(self, place: str) -> dict[str, float]:
        """What the server has used since it started: `cpu` seconds and bytes of `wal`.

        Empty where there is no server, or it is not ours to judge.
        """

    def close(self) -> None:
        """Stop the server and delete its data."""


class Postgres:
    """A PostgreSQL of our own with its defaults, fsync on, reached over a Unix socket."""

    def __init__(self) -> None:
        self._server = PostgresServer(durable=True)
        try:
            self._server.__enter__()
        except PostgresUnavailable as error:
            raise Unavailable(str(error)) from error
        with psycopg.connect(self._url("postgres")) as connection:
            names = ("fsync", "synchronous_commit", "shared_buffers", "max_wal_size", "autovacuum")
            values = [_value(connection, f"SHOW {name}") for name in names]
            self.version = f"PostgreSQL {connection.info.parameter_status('server_version')}"
        self.settings = "defaults: " + ", ".join(map(" ".join, zip(names, values, strict=True)))

    def _url(self, database: str) -> str:
        # The form that every peer's driver understands.
        return f"postgresql:///{database}?host={self._server.folder}&user=postgres"

    def _administer(self, *statements: str, **names: str) -> None:
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            for statement in statements:
                quoted = {key: sql.Identifier(name) for key, name in names.items()}
                connection.execute(sql.SQL(statement).format(**quoted))

    def fresh(self, subject: Subject) -> str:
        name = subject.adapter
        drop = "DROP DATABASE IF EXISTS {name} WITH (FORCE)"
        self._administer(drop, "CREATE DATABASE {name}", "CHECKPOINT", name=name)
        return self._url(name)

    def left(self, subject: Subject, place: str) -> int:
        with psycopg.connect(place) as connection:
            rows = connection.execute(subject.left.encode()).fetchall()
        return int(sum(count for (count,) in rows))

    def calm(self, place: str) -> None:
        with psycopg.connect(place, autocommit=True) as connection:
            connection.execute("VACUUM (ANALYZE)")
            connection.execute("CHECKPOINT")

    def keep(self, place: str) -> None:
        name = _database(place)
        self._copy(name, f"{name} kept")

    def again(self, place: str) -> None:
        name = _database(place)
        self._copy(f"{name} kept", name)
        self._administer("CHECKPOINT")

    def _copy(self, source: str, target: str) -> None:
        self._administer(
            "DROP DATABASE IF EXISTS {target} WITH (FORCE)",
            "CREATE DATABASE {target} TEMPLATE {source} STRATEGY file_copy",
            source=source,
            target=target,
        )

    @contextmanager
    def pinned(self, place: str) -> Iterator[None]:
        with psycopg.connect(place) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.execute("SELECT count(*) FROM pg_class")
            yield

    def spent(self, place: str) -> dict[str, float]:
        cpu = cpu_seconds_with_children(self._server.pid or 0)
        with psycopg.connect(place) as connection:
            wal = _value(connection, "SELECT pg_current_wal_insert_lsn() - '0/0'")
        return {"cpu": cpu, "wal": float(wal)}

    def close(self) -> None:
        self._server.remove()


def _value(connection: psycopg.Connection[tuple[str]], statement: str) -> str:
    row = connection.execute(statement.encode()).fetchone()
    return row[0] if row else ""


def _database(place: str) -> str:
    return place.removeprefix("postgresql:///").partition("?")[0]


class SqliteFiles:
    """A file on disk for each measurement. Its settings are the queue's own."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tenure-bench-", dir=ON_DISK)
        self.version = f"SQLite {sqlite3.sqlite_version}"
        self.settings = "as the queue sets them"

    def fresh(self, subject: Subject) -> str:
        path = Path(self._folder.name) / f"{subject.name}.db"
        _remove(path)
        return f"sqlite:///{path}" if subject.ours else str(path)

    def left(self, subject: Subject, place: str) -> int:
        connection = self._open(place)
        try:
            (count,) = connection.execute(subject.left).fetchone()
        finally:
            connection.close()
        return int(count)

    def _open(self, place: str) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{_path(place)}?mode=ro", uri=True, timeout=10)

    def calm(self, place: str) -> None:
        """Have all of it on disk, or the first commits to come would wait for what came before."""
        _sync(_path(place))

    def keep(self, place: str) -> None:
        _copy_file(_path(place), _path(place).with_suffix(".kept"))

    def again(self, place: str) -> None:
        _copy_file(_path(place).with_suffix(".kept"), _path(place))
        _sync(_path(place))

    @contextmanager
    def pinned(self, place: str) -> Iterator[None]:
        connection = self._open(place)
        try:
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            yield
        finally:
            connection.close()

    def spent(self, place: str) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self._folder.cleanup()


def _path(place: str) -> Path:
    return Path(place.removeprefix("sqlite:///"))


def _remove(path: Path) -> None:
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm", f"{path.name}-checkpoint"):
        path.with_name(name).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def _copy_file(source: Path, target: Path) -> None:
    """Copy a database that nobody has open, with what its log still holds."""
    _remove(target)
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError):
            shutil.copyfile(f"{source}{suffix}", f"{target}{suffix}")


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
            **REDIS_SETTINGS,
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

    def spent(self, place: str) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(START_SECONDS)
        self._folder.cleanup()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


ENGINES: dict[str, Callable[[], Engine]] = {
    "postgres": Postgres,
    "sqlite": SqliteFiles,
    "redis": Redis,
}
