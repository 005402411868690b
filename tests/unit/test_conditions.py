"""The generated conditions are never NULL: a trigger or CHECK is silent where one is."""

from __future__ import annotations

import itertools
import random
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from tenure.lifecycle import Status, limit_sql, rest_sql, room_sql
from tenure.store import constraints

NULLABLE = ("snoozes", "need", "spare", "start_by", "started_at", "finished_at")
VALUES = {"status": Status, "event": ("claimed", "snoozed", "skipped", "expired", "nonsense")}


def rows(columns: tuple[str, ...]) -> Iterator[tuple[object, ...]]:
    """Every combination of statuses and events, each with NULL and 1 in the others: in all ways
    where these are no more than 100, else in 100 ways by chance."""
    chance = random.Random(7)
    named = [VALUES.get(column.split(".")[-1]) for column in columns]
    others = named.count(None)
    ways = list(itertools.product((None, 1), repeat=others)) if others < 7 else None
    for values in itertools.product(*filter(None, named)):
        for way in ways or (chance.choices((None, 1), k=others) for _ in range(100)):
            given, rest = iter(values), iter(way)
            yield tuple(next(given) if each else next(rest) for each in named)


COLUMNS = frozenset(
    (*NULLABLE, *VALUES, "attempts", "token", "max_retries", "lease_id", "lease_expires_at")
) | {"worker", "last_error", "priority", "actor"}
CONDITIONS = {
    "illegal change": constraints.illegal_change("IS NOT"),
    "illegal setting": constraints.illegal_setting("IS NOT"),
    "illegal insert": constraints.ILLEGAL_INSERT,
    "illegal delete": constraints.ILLEGAL_DELETE,
    "amended": constraints.amended("IS NOT", "OLD", "NEW"),
    "rest": rest_sql(),
    "room": room_sql(),
    "limit": limit_sql(),
    **constraints.row_rules(),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_is_never_null(name: str) -> None:
    condition = CONDITIONS[name]
    used = set(re.findall(r"\b(?:OLD|NEW)\.\w+", condition)) or {
        word for word in re.findall(r"\b[a-z_]+\b", condition) if word in COLUMNS
    }
    varied = tuple(c for c in sorted(used) if c.split(".")[-1] in (*NULLABLE, *VALUES))
    fixed = [c for c in sorted(used) if c not in varied]
    names = [c.replace(".", "_") for c in (*varied, *fixed)]
    text = re.sub(r"\b(OLD|NEW)\.", r"\1_", condition)
    place = ", ".join("?" * len(names))
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"CREATE TABLE it ({', '.join(names)})")
        connection.executemany(
            f"INSERT INTO it VALUES ({place})", ((*row, *[1] * len(fixed)) for row in rows(varied))
        )
        null = f"SELECT * FROM it WHERE ({text}) IS NULL LIMIT 1"
        assert connection.execute(null).fetchall() == []
