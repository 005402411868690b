"""What `tenure doctor` asks a SQLite file."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Collection, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from tenure.store import doctor, migrate
from tenure.store.doctor import ok, problem, warning
from tenure.store.sqlite import connection as sqlite_connection
from tenure.store.sqlite import schema as sqlite_schema
from tenure.store.sqlite.connection import AWAY, OLDEST_SQLITE, resets_wal_unsafely
from tenure.store.sqlite.reader import SqliteReader
from tenure.store.tables import types
from tenure.values.findings import Check

MIN_SPACE = 1024**3
"""Bytes; the log of a SQLite file alone may take some hundred MB while there is a long reader."""
NO_SPACE = 16 * 1024**2
"""Bytes; with less, the next exchange of a worker may not fit."""

SETTINGS: doctor.Settings = {
    "journal_mode": (
        {"wal"},
        "SQLite's write-ahead log does not work here, as on network file systems: move the file "
        "to a local disk",
    ),
    "synchronous": (
        {"full", "extra"},
        "a power cut could lose accepted jobs: report this, it is a fault of Tenure",
    ),
}
LOCK_SECONDS = 2.0
"""How long the check waits for another writer. A transaction of Tenure takes milliseconds."""
SYNCHRONOUS = {0: "off", 1: "normal", 2: "full", 3: "extra"}
AHEAD = """
SELECT (max(coalesce((SELECT at FROM tenure_transition ORDER BY seq DESC LIMIT 1), 0), millis)
    - (SELECT at FROM tenure_now)) / 1000.0 FROM tenure_measured
"""


def sqlite_library(version: tuple[int, int, int]) -> Check:
    """Whether this SQLite can be used, and with what care."""
    found = "SQLite " + ".".join(map(str, version))
    if version < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        return problem(
            "library", found, f"{oldest} or newer is needed: use a Python built with one"
        )
    advice = (
        "before 3.51.3 SQLite can lose a commit made during a checkpoint by another process. "
        "Tenure guards its own checkpoints; do not write to the file with other programs"
    )
    return warning("library", found, advice if resets_wal_unsafely(version) else "")


def file_system(kind: str) -> Check:
    """Whether SQLite's log works on this kind of file system."""
    advice = (
        "locks and log work there only if no more than one kernel opens the file, as the URL says. "
        "If you are not sure, move it to a local disk, or use PostgreSQL"
    )
    found = kind or "not known on this system"
    return warning("file_system", found, advice if kind in sqlite_connection.REMOTE else "")


def space(free: int) -> Check:
    """Whether the disk has room; `free` in bytes."""
    advice = (
        "on a full disk no job is accepted and no result recorded: free some space, or keep "
        "settled jobs for a shorter time (`keep_completed` and others of the settings)"
    )
    kind = problem if free < NO_SPACE else warning
    return kind("disk", f"{free / 1024**2:,.0f} MiB free", advice if free < MIN_SPACE else "")


def files(mode: int, links: int, closed: Collection[str], owner: int | None = None) -> Check:
    """Whether only this user may use the file.

    `mode` and `links` are those of the database file; `closed` names what this user may not read
    and write. `owner` is the id of another user who owns the file.
    """
    found = f"mode {mode & 0o777:o}"
    if closed:
        advice = (
            f"this user may not read and write {', '.join(closed)}: run every program as the same "
            "user, who owns these and may write them"
        )
        return problem("files", found, advice)
    if links > 1:
        advice = (
            "the file has another name as a hard link; a program that opens it by that name uses "
            "another log, which damages the file: remove the other name"
        )
        return problem("files", f"{links} names", advice)
    if owner is not None:
        advice = (
            "that user can read and change every job: run Tenure as the owner of its file, or "
            "chown the file"
        )
        return warning("files", f"owned by user {owner}", advice)
    advice = "every user of this machine can read it with all payloads: chmod o-rwx"
    return warning("files", found, advice if mode & 0o007 else "")


DAMAGED = (
    "stop every process that uses the file, keep a copy of it and of the files -wal and -shm "
    "beside it, then restore a backup. If it is a backup that was just put in place, these two "
    "belong to the file before: delete them and put the backup in place once more"
)


def check_sqlite(url: str) -> Iterator[Check]:
    """The checks of an SQLite file, in order."""
    path = sqlite_connection.path_of(url)
    sqlite_connection.refuse_planted(path)
    yield sqlite_library(sqlite3.sqlite_version_info)
    if not path.exists() and not sqlite_connection.is_log_alone(os.path.realpath(path)):
        if path.parent.is_dir():
            advice = "`tenure migrate` or the next program that starts makes it"
            yield warning("database", "not there yet", advice)
        else:
            advice = f"its folder does not exist: make {path.parent}"
            yield problem("database", "not there yet", advice)
        return
    try:
        yield file_system(sqlite_connection.filesystem_of(path))
        yield space(shutil.disk_usage(path.parent).free)  # a full disk can be why it does not open
        with closing(sqlite_connection.connect(path)) as connection:
            yield ok("database", str(path))
            yield _files(path)
            for name in SETTINGS:
                (value,) = connection.execute(f"PRAGMA {name}").fetchone()
                yield doctor.setting(name, SYNCHRONOUS.get(value, str(value)), SETTINGS)
            version = sqlite_schema.version_of(connection)
            yield doctor.schema(version, migrate.newest("sqlite"))
            if not version:
                return
            triggers = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'")
            yield doctor.guards([name for (name,) in triggers], "sqlite")
            before = time.time()  # noqa: TID251 - the machine's clock is what is checked
            (millis,) = connection.execute(f"SELECT {sqlite_connection.NOW}").fetchone()
            after = time.time()  # noqa: TID251
            yield doctor.clock(millis / 1000, before - 0.001, after)
            (ahead,) = connection.execute(AHEAD).fetchone()
            yield doctor.latest_entry(ahead)
            yield _write_lock(connection, path)
        if version == migrate.newest("sqlite"):
            with closing(SqliteReader(path)) as reader:
                yield doctor.types(reader, types.every(reader).values())
                yield doctor.schedules(reader, reader.clock())
                yield doctor.limits(reader)
    except AWAY as error:  # the folder may be gone by now
        advice = (
            "is it a database of Tenure, and may this user read and write it, the files -wal and "
            "-shm beside it, and its folder?"
        )
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT:
            advice = DAMAGED
        yield problem("database", f"{path}: {error}", advice)


def _write_lock(connection: sqlite3.Connection, path: Path) -> Check:
    connection.execute("PRAGMA busy_timeout = 0")  # `when_free` waits
    try:
        begin = partial(connection.execute, "BEGIN IMMEDIATE")
        sqlite_connection.when_free(begin, patience=LOCK_SECONDS)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        found = f"a transaction has held it for {LOCK_SECONDS:.0f} s or longer"
        advice = (
            "until then no job is added, started or completed. End that transaction: "
            f"`fuser -v {path}` lists the processes that have the file open"
        )
        return warning("write_lock", found, advice)
    connection.execute("ROLLBACK")
    return ok("write_lock", "free")


def _files(path: Path) -> Check:
    found = path.stat()
    beside = [path.with_name(path.name + end) for end in ("", "-wal", "-shm")]
    present = [path.parent, *(file for file in beside if file.exists())]
    closed = [str(each) for each in present if not os.access(each, os.R_OK | os.W_OK)]
    owner = None if found.st_uid == os.geteuid() else found.st_uid
    return files(found.st_mode, found.st_nlink, closed, owner)
