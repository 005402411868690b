"""A table of effects: a handler adds a row, and a test counts how often it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg

import tenure.sqlite


@contextmanager
def own_connection(url: str) -> Iterator[Any]:
    """A connection whose transactions begin by themselves; closed at the end."""
    connect: Any = tenure.sqlite.connect if url.startswith("sqlite") else psycopg.connect
    with closing(connect(url)) as connection:
        yield connection


def make_effects(url: str) -> None:
    """Create the table."""
    with own_connection(url) as connection:
        connection.execute("CREATE TABLE effect (job TEXT)")
        connection.commit()


def effects(url: str) -> Counter[str]:
    """How many rows each job has there."""
    with own_connection(url) as connection:
        return Counter(job for (job,) in connection.execute("SELECT job FROM effect").fetchall())
