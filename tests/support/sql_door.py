"""Adding jobs by SQL, as programs in other languages do, with the options of Python."""

from __future__ import annotations

import json
import re
import sqlite3
from datetime import datetime
from typing import Any

import psycopg

EXPRESSIONS = {
    "payload": "%s::jsonb",
    "backoff": "%s::jsonb",
    "timeout": "make_interval(secs => %s)",
    "delay": "make_interval(secs => %s)",
    "priority": "%s::integer",
    "max_retries": "%s::integer",
}


class SqlDoor:
    """One connection that commits each statement by itself."""

    def __init__(self, url: str) -> None:
        self.engine = "sqlite" if url.startswith("sqlite:") else "postgres"
        self.connection: Any
        if self.engine == "sqlite":
            path = url.removeprefix("sqlite:///")
            self.connection = sqlite3.connect(path, isolation_level=None)
        else:
            self.connection = psycopg.connect(url, autocommit=True)

    def enqueue(self, type: str, payload: str, **options: Any) -> str | None:
        """Add a job; return its id where the engine answers with one."""
        given = {"type": type, "payload": payload, **options}
        values = [self._stored(name, value) for name, value in given.items()]
        if self.engine == "sqlite":
            marks = ", ".join("?" * len(given))
            statement = f"INSERT INTO tenure_enqueue ({', '.join(given)}) VALUES ({marks})"
            self.connection.execute(statement, values)
            return None
        names = ", ".join(f"{name} => {EXPRESSIONS.get(name, '%s')}" for name in given)
        ((id,),) = self.connection.execute(f"SELECT tenure.enqueue({names})", values).fetchall()
        return str(id)

    def _stored(self, name: str, value: Any) -> Any:
        if self.engine == "sqlite" and isinstance(value, int | float):
            return value
        if name == "backoff" or (name == "tags" and self.engine == "sqlite"):
            return json.dumps(value)
        if self.engine == "sqlite" and isinstance(value, datetime):
            return round(value.timestamp() * 1000)
        return value

    def close(self) -> None:
        self.connection.close()


def code_of(error: Exception) -> str:
    """The code of a refusal, as `TenureError.code` has it; "" if the database says otherwise."""
    found = re.match("tenure: ([a-z_]+): ", str(error))
    return found[1] if found else ""
