"""Your connection to the file of the jobs, for your own tables."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tenure.errors import InvalidInput
from tenure.store.sqlite import connection as store_connection


def connect(path: str | Path) -> sqlite3.Connection:
    """Return a connection for your tables, as careful with the file as Tenure is.

    - `path`: the file, or the URL of the jobs (`sqlite:///jobs.db`). It is made if it is not there.

    Commits are on disk when they answer, and no checkpoint of it can lose one of another process.
    It begins a transaction with your first `INSERT`, `UPDATE` or `DELETE`, and waits up to 10
    seconds for other writers. Use it on one thread. Raises InvalidInput and StoreUnavailable.
    """
    if not isinstance(path, str | Path):
        raise InvalidInput(f"give the file or its URL, not {type(path).__name__}", path="path")
    text = str(path)
    file = store_connection.path_of(text) if text.startswith("sqlite:") else Path(text)
    connection = store_connection.connect(file)
    connection.isolation_level = "IMMEDIATE"
    connection.is_lent = True
    return connection
