"""Connections to a SQLite file: settings that the promises rest on, times, and checkpoints."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from tenure.errors import InvalidInput

BUSY_TIMEOUT_MS = 10_000
CHECKPOINT_BYTES = 4 * 1024 * 1024
CHECKPOINT_BYTES_MAX = 256 * 1024 * 1024
CHECKPOINT_TIMEOUT_MS = 500
OLDEST_SQLITE = (3, 38, 0)


def path_of(url: str) -> Path:
    """The file of a `sqlite:///relative.db` or `sqlite:////absolute.db` URL."""
    path = url.removeprefix("sqlite:///")
    if path == url or not path or path == ":memory:" or "?" in path:
        raise InvalidInput(
            f"{url!r} names no SQLite file; write sqlite:///jobs.db or sqlite:////var/lib/jobs.db"
        )
    return Path(path).absolute()


def connect(path: Path) -> sqlite3.Connection:
    """A connection with every setting that the promises rest on."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise InvalidInput(f"SQLite {sqlite3.sqlite_version} is too old; 3.38 or newer is needed")
    fresh = not path.exists()
    connection = sqlite3.connect(
        path,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
        timeout=BUSY_TIMEOUT_MS / 1000,
    )
    if fresh:
        with suppress(OSError):
            path.chmod(0o600)
    _use_log(connection)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA cache_size = -65536")
    if resets_wal_unsafely(sqlite3.sqlite_version_info):
        connection.execute("PRAGMA wal_autocheckpoint = 0")
    return connection


def _use_log(connection: sqlite3.Connection) -> None:
    """Switch a new file to the write-ahead log.

    While another starter is writing its first transaction, SQLite refuses that at once instead of
    waiting for it; so the waiting is done here.
    """
    give_up = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > give_up:
                raise
            time.sleep(0.01)
        else:
            return


def resets_wal_unsafely(version: tuple[int, int, int]) -> bool:
    """Whether this SQLite can lose a commit made while another connection checkpoints.

    Fixed in 3.51.3, and in the maintenance releases 3.50.7 and 3.44.6. On older libraries only one
    process at a time checkpoints, with TRUNCATE, which keeps writers out (`Checkpoints`).
    """
    branch = version[:2]
    if branch == (3, 50):
        return version < (3, 50, 7)
    if branch == (3, 44):
        return version < (3, 44, 6)
    return version < (3, 51, 3)


def to_time(millis: int) -> datetime:
    """A stored time."""
    return datetime.fromtimestamp(millis / 1000, UTC)


def to_millis(time: datetime) -> int:
    """A time as stored."""
    return round(time.timestamp() * 1000)


def kept(time: datetime) -> datetime:
    """A time as it will be read again: to the millisecond."""
    return to_time(to_millis(time))


NOW = "(SELECT at FROM tenure_now)"
"""The store's clock, in milliseconds."""


class Checkpoints:
    """Empties the log into the database, on libraries where SQLite must not do it by itself.

    A reader that stays open keeps the log from being emptied: then the next try waits until the log
    has doubled, so that a long reader costs few tries.
    """

    def __init__(self, path: Path) -> None:
        self._wal = path.with_name(path.name + "-wal")
        self._needed = resets_wal_unsafely(sqlite3.sqlite_version_info)
        self._due_at = CHECKPOINT_BYTES
        self._lock = CheckpointLock(path)

    def run(self, connection: sqlite3.Connection) -> None:
        """Checkpoint if the log has grown and no other process is at it; not in a transaction."""
        if not self._needed or (size := _size(self._wal)) < self._due_at:
            return
        with self._lock as held:
            if not held:
                return
            connection.execute(f"PRAGMA busy_timeout = {CHECKPOINT_TIMEOUT_MS}")
            (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        grown = size + min(size, CHECKPOINT_BYTES_MAX)
        self._due_at = grown if busy else CHECKPOINT_BYTES


class CheckpointLock:
    """Elects the one process that checkpoints: a lock on a file of its own, never on SQLite's."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + "-checkpoint")
        self._file: int | None = None

    def __enter__(self) -> bool:
        try:
            import fcntl
        except ImportError:  # not POSIX: SQLite's own locks have to do
            return True
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
