"""The plan of a statement of the store."""

from __future__ import annotations

from typing import Any

import psycopg

from tenure.store.postgres import statements as sql
from tenure.store.postgres.connection import address_of

Connection = psycopg.Connection[Any]


def plan(raw: Connection, url: str, statement: str, *values: Any, begin: str = sql.BEGIN) -> str:
    """The plan that a statement of the store gets inside one of its transactions."""
    place = address_of(url)
    raw.execute(place.sql(begin))
    by_name = values[0] if values and isinstance(values[0], dict) else None
    rows = raw.execute(b"EXPLAIN " + place.sql(statement), by_name or values or None).fetchall()
    raw.execute("ROLLBACK")
    return "\n".join(line for (line,) in rows)
