"""Whether the files of an open SQLite database are still those with its names.

A database that is moved or replaced under a running process, or whose log is deleted, still works
for processes that have it open: they write to files that no other process can find, and what they
acknowledge is lost with them. SQLite does not notice in WAL mode. So the names are looked at before
each write.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path


class Files:
    """The files of one connection: the database, its log, and the log's index."""

    def __init__(self, path: Path) -> None:
        """To be made when the connection has been used: before that there may be no log."""
        self._names = [f"{path}{ending}" for ending in ("", "-wal", "-shm")]
        self._known = [identity(name) for name in self._names]

    def check(self) -> None:
        """Raise sqlite3.OperationalError if a name now means another file, or none."""
        for name, known in zip(self._names, self._known, strict=True):
            if identity(name) != known:
                raise sqlite3.OperationalError(
                    f"{name} was replaced, moved or deleted while it was open. Nothing more is "
                    "written, since no process would find it: stop every process that uses this "
                    "database, put its files in order, and start them again"
                )


def identity(name: str | Path) -> tuple[int, int] | None:
    """Return what identifies a file whatever its name, None if there is none."""
    try:
        found = os.stat(name)  # noqa: PTH116 - on the way of every write: half as long as Path's
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
