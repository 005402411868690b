"""Who holds up a writer: another process, or another connection of this one."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

WRITE_LOCK = 120
"""The byte of the log's index that a writer locks."""
COMMITS = "tenure.store.sqlite.writer"
"""The module of the calls that also write without a transaction around them."""


def is_held_here(path: Path, ours: Iterable[Callable[[], sqlite3.Connection | None]]) -> bool:
    """Whether a write transaction of this process holds a file, and it is not one of `ours`.

    `ours` return the connections of Tenure that no caller has. Only Linux says so; elsewhere the
    answer is no.
    """
    try:
        found = os.stat(f"{path}-shm")  # noqa: PTH116 - of a path with an ending
        locks = Path("/proc/locks").read_text("ascii").splitlines()
    except OSError:
        return False
    index = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    lock = ["POSIX", "ADVISORY", "WRITE", str(os.getpid()), index, str(WRITE_LOCK)]
    if not any(line.split()[1:7] == lock for line in locks):
        return False
    tops = (frame.f_globals.get("__name__") for frame in sys._current_frames().values())
    return COMMITS not in tops and not any(_is_in_transaction(each()) for each in ours)


def _is_in_transaction(connection: sqlite3.Connection | None) -> bool:
    try:
        return connection is not None and connection.in_transaction
    except sqlite3.ProgrammingError:  # closed meanwhile
        return False
