"""The databases under test: one durable PostgreSQL, one Redis, and SQLite files on the same disk.

Every peer gets the same server with the same settings, fresh for each measurement.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

import psycopg
from psycopg import sql

from bench.catalogue import Subject
from bench.environments import ON_DISK, Unavailable
from bench.processes import cpu_seconds_with_children
from bench.redis_server import Redis
from tests.support.postgres import PostgresServer, PostgresUnavailable

WRITE_BACK_SECONDS = 30
WRITTEN_BELOW_MB = 16
SHOWN = (
    *("fsync", "synchronous_commit", "shared_buffers", "max_wal_size", "wal_compression"),
    "autovacuum",
)
CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
IMAGES = """
    SELECT sum(fpi_size) FROM pg_get_wal_stats('0/0'::pg_lsn + %s::numeric,
        pg_current_wal_flush_lsn(), true)
"""


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

    def held(self, subject: Subject, place: str) -> AbstractContextManager[None]:
        """Keep every claim of a job waiting until the block ends."""

    def pinned(self, place: str) -> AbstractContextManager[None]:
        """Hold a snapshot of the database, as a long report or a forgotten session does."""

    def spent(self, place: str) -> dict[str, float]:
        """What the server has used since it started, of itself and all its processes.

        `cpu` in seconds; on PostgreSQL also bytes of `wal`, and `writes`: the transactions that
        wrote. Empty where there is no server.
        """

    def image_bytes(self, place: str, since: float) -> float | None:
        """How much of the `wal` written since then is images of pages; None if it is gone."""

    def connections(self, place: str) -> int:
        """How many connections to the database are open; 0 where there are none."""

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
            connection.execute("CREATE EXTENSION pg_walinspect")
            values = [_value(connection, f"SHOW {name}") for name in SHOWN]
            self.version = f"PostgreSQL {connection.info.parameter_status('server_version')}"
        self.settings = "defaults: " + ", ".join(map(" ".join, zip(SHOWN, values, strict=True)))

    def _url(self, database: str) -> str:
        # The form that every peer's driver understands.
        return f"postgresql:///{database}?host={self._server.folder}&user=postgres"

    def _administer(self, *statements: str, **names: str) -> None:
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            for statement in statements:
                quoted = {key: sql.Identifier(name) for key, name in names.items()}
                connection.execute(sql.SQL(statement).format(**quoted))

    def fresh(self, subject: Subject) -> str:
        name = subject.program
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
    def held(self, subject: Subject, place: str) -> Iterator[None]:
        with psycopg.connect(place) as connection:
            connection.execute(f"LOCK TABLE {subject.table} IN EXCLUSIVE MODE".encode())
            yield

    @contextmanager
    def pinned(self, place: str) -> Iterator[None]:
        with psycopg.connect(place) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.execute("SELECT count(*) FROM pg_class")
            yield

    def spent(self, place: str) -> dict[str, float]:
        with psycopg.connect(place) as connection:
            wal = _value(connection, "SELECT pg_current_wal_insert_lsn() - '0/0'")
            writes = _value(connection, "SELECT pg_snapshot_xmax(pg_current_snapshot())")
        cpu = cpu_seconds_with_children(self._server.pid or 0)
        return {"cpu": cpu, "wal": float(wal), "writes": float(writes)}

    def image_bytes(self, place: str, since: float) -> float | None:
        with psycopg.connect(self._url("postgres")) as connection:
            try:
                return float(_value(connection, IMAGES, since) or 0)
            except psycopg.Error:  # a checkpoint has removed the beginning
                return None

    def connections(self, place: str) -> int:
        with psycopg.connect(self._url("postgres")) as connection:
            return int(_value(connection, CONNECTIONS, _database(place)))

    def close(self) -> None:
        self._server.remove()


def _value(connection: psycopg.Connection[tuple[str]], statement: str, *values: object) -> str:
    row = connection.execute(statement.encode(), values or None).fetchone()
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
        _sync(_path(place).parent)

    def keep(self, place: str) -> None:
        self._copy(_path(place), _path(place).with_suffix(".kept"))

    def again(self, place: str) -> None:
        self._copy(_path(place).with_suffix(".kept"), _path(place))

    def _copy(self, source: Path, target: Path) -> None:
        """Copy a file, and have the kernel write all of it, or it would do that beside a drain."""
        _copy_file(source, target)
        _sync(target.parent)
        deadline = time.monotonic() + WRITE_BACK_SECONDS
        while _unwritten_mb() > WRITTEN_BELOW_MB and time.monotonic() < deadline:
            time.sleep(0.1)

    @contextmanager
    def held(self, subject: Subject, place: str) -> Iterator[None]:
        connection = sqlite3.connect(_path(place), isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield
        finally:
            connection.close()

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

    def image_bytes(self, place: str, since: float) -> float | None:
        return None

    def connections(self, place: str) -> int:
        return 0

    def close(self) -> None:
        self._folder.cleanup()


def _path(place: str) -> Path:
    return Path(place.removeprefix("sqlite:///"))


def _remove(path: Path) -> None:
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm", f"{path.name}-checkpoint"):
        path.with_name(name).unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Have every file of the folder on disk."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def _unwritten_mb() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    waiting = [line.split()[1] for line in lines if line.startswith(("Dirty:", "Writeback:"))]
    return sum(map(int, waiting)) / 1024


def _copy_file(source: Path, target: Path) -> None:
    """Copy a database that nobody has open, with what its log still holds."""
    _remove(target)
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError):
            shutil.copyfile(f"{source}{suffix}", f"{target}{suffix}")


ENGINES: dict[str, Callable[[], Engine]] = {
    "postgres": Postgres,
    "sqlite": SqliteFiles,
    "redis": Redis,
}
