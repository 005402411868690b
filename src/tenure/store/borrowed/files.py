"""A connection of SQLite that a caller lends: is it to the file of the jobs, and is it careful?"""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path

from tenure.errors import InvalidInput
from tenure.store.borrowed.drivers import Ask, Steps
from tenure.store.sqlite.connection import resets_wal_unsafely

log = logging.getLogger(__name__)

OTHER_FILE = (
    "the main file of this connection is {main}, and the jobs are in {jobs}. A commit to two files "
    "is not one commit: after a crash, one file can have it and the other not. Keep your tables in "
    "the file of the jobs, where all names of Tenure begin with tenure_. Or write a row that says "
    "what to do, commit, and then enqueue a job with an idempotency_key that names the row"
)
MAY_LOSE = (
    "a connection to %s on which jobs are added has synchronous below FULL: a power cut can lose "
    "the last jobs, together with your own rows. Set `PRAGMA synchronous = FULL` on it, or use "
    "tenure.sqlite.connect()"
)
CHECKPOINTS = (
    "a connection to %s on which jobs are added has automatic checkpoints. With these, SQLite %s "
    "can lose a commit of another process: set `PRAGMA wal_autocheckpoint = 0` on it, or use "
    "tenure.sqlite.connect(), or SQLite 3.51.3 or newer"
)
TEST_FOLDER = "tenure-test-"
"""The beginning of the names of folders in which `tenure.testing` makes databases."""
IN_A_TEST = (
    "these jobs are in a file that `tenure.testing` made. In your transaction they have to be in "
    "the database of your connection: give its URL to `testing.on`"
)
FULL = 2

MAIN = Ask("SELECT CAST(file AS BLOB) FROM pragma_database_list WHERE name = 'main'")
"""As bytes, since the caller's connection decides what becomes of a text."""

_warned: set[tuple[str, Path]] = set()
"""A warning about a file is logged once by each process."""


def is_of_a_test(path: Path | None) -> bool:
    """Whether `tenure.testing` made this file."""
    return path is not None and path.parent.name.startswith(TEST_FOLDER)


def check_file(path: Path) -> Steps[None]:
    """Raise InvalidInput unless the connection's main file is `path`; warn of its settings."""
    ((main,),) = yield MAIN
    if not (main and _is_same_file(path, main)):
        if is_of_a_test(path):
            raise InvalidInput(IN_A_TEST, path="connection")
        name = os.fsdecode(main) if main else "in memory"
        raise InvalidInput(OTHER_FILE.format(main=name, jobs=path), path="connection")
    if (MAY_LOSE, path) not in _warned:
        ((synchronous,),) = yield Ask("PRAGMA synchronous")
        if synchronous < FULL:
            _warned.add((MAY_LOSE, path))
            log.warning(MAY_LOSE, path)
    if (CHECKPOINTS, path) not in _warned and resets_wal_unsafely(sqlite3.sqlite_version_info):
        ((pages,),) = yield Ask("PRAGMA wal_autocheckpoint")
        if pages:
            _warned.add((CHECKPOINTS, path))
            log.warning(CHECKPOINTS, path, sqlite3.sqlite_version)


def _is_same_file(path: Path, other: bytes) -> bool:
    try:
        return path.samefile(os.fsdecode(other))
    except FileNotFoundError:
        return False
