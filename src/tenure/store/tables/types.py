"""The table of types: the options of `@app.job`, for enqueues without the handler."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from msgspec.structs import asdict

from tenure.errors import InvalidInput
from tenure.rules.jobs import TypeOptions, defaults_of
from tenure.rules.stats import StoredType, TypeState
from tenure.rules.tokens import Patterns
from tenure.store.database import Reads, Statements
from tenure.store.rows import read_names, read_policy, read_rows, write_names, write_policy

MAX_TYPES = 2_000
"""Types that are kept, those seen last."""
MAX_OF_QUEUES = MAX_TYPES // 4
"""The same of types that count in certain queues: one tenant pushes out no others."""
OPTIONS = TypeOptions.__struct_fields__
NAMED = ("name", *OPTIONS, "queues")
PLAIN = (*NAMED, "seen_at", "paused_at", "paused_by", "pause_reason")
COLUMNS = (*PLAIN, "schema")


def save(db: Statements, types: Mapping[str, TypeOptions], queues: Patterns | None) -> None:
    """Store the options of types, by name. They count for jobs in these queues, None for all."""
    changes = ", ".join(f"{name} = excluded.{name}" for name in (*NAMED[1:], "schema", "seen_at"))
    for name, options in sorted(types.items()):  # in one order, so that no two wait in a circle
        _add(db, name, options, queues, f"UPDATE SET {changes}")
    if queues is not None:
        _keep(db, MAX_OF_QUEUES, f"AND queues = {db.dialect.value}", [write_names(queues)])
    _keep(db, MAX_TYPES)


def _keep(db: Statements, most: int, of: str = "", values: Sequence[Any] = ()) -> None:
    """Delete the types beyond so many, except paused ones."""
    table = db.dialect.table("type")
    others = f"SELECT name FROM {table} WHERE paused_at IS NULL {of}"
    others += f" ORDER BY seen_at DESC LIMIT {MAX_TYPES} OFFSET {most}"
    some = f"SELECT name FROM {table} WHERE name IN ({others}) {db.dialect.free_to_delete}"
    db.changed(f"DELETE FROM {table} WHERE name IN ({some})", values)


def _add(
    db: Statements, name: str, options: TypeOptions, queues: Patterns | None, on_conflict: str
) -> None:
    d = db.dialect
    values = [getattr(options, option) for option in OPTIONS[:-1]]
    values += [write_policy(options.backoff), write_names(queues)]
    db.changed(
        f"INSERT INTO {d.table('type')} ({', '.join(NAMED)}, schema, seen_at)"
        f" VALUES ({d.values(len(NAMED) + 1)}, {d.now}) ON CONFLICT (name) DO {on_conflict}",
        (name, *values, getattr(options, "schema", None)),
    )


def set_paused(
    db: Statements, name: str, *, paused: bool, actor: str, reason: str | None = None
) -> None:
    """Pause or resume a type, whether it is known or not."""
    d = db.dialect
    _add(db, name, TypeOptions(), (), "NOTHING")  # of no queue: any token may declare it
    db.changed(d.pause("type", f"name = {d.value}"), (paused, actor, reason, name, paused))


def every(db: Reads, columns: Sequence[str] = COLUMNS) -> dict[str, TypeState]:
    """Return the types by name; of PLAIN columns, without the schemas.

    Options that no job may have, which SQL wrote, do not count.
    """
    found = {}
    for fields in read_rows(db, columns, f"{db.dialect.table('type')} ORDER BY name"):
        fields["backoff"] = read_policy(fields["backoff"])
        state = TypeState(**{**fields, "queues": read_names(fields["queues"])})
        with suppress(InvalidInput):
            defaults_of({name: fields[name] for name in OPTIONS[:-1]}, state)
            found[state.name] = state
    return found


def read(rows: Iterable[Sequence[Any]]) -> dict[str, StoredType]:
    """Return the options of rows of NAMED, by the name of the type, as `every` does."""
    found = {}
    for name, *values, queues in rows:
        options = dict(zip(OPTIONS, values, strict=True))
        with suppress(InvalidInput):
            policy = read_policy(options["backoff"])
            valid = defaults_of({**options, "backoff": policy}, TypeOptions())
            found[name] = StoredType(**asdict(valid), queues=read_names(queues))
    return found
