"""Jobs and the ledger as tables of SQLAlchemy, to be read, and a hook for Alembic."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Double,
    Engine,
    MetaData,
    Table,
    Text,
    TypeDecorator,
)
from sqlalchemy.dialects.postgresql import UUID

from tenure.values.ids import EPOCH
from tenure.values.names import check_kind

PREFIX = "tenure_"
"""Begins the names of the tables on SQLite. On PostgreSQL they are in a schema."""


def tables(engine: Any, *, schema: str = "tenure") -> tuple[Table, Table]:
    """Return the tables `job` and `transition`, for queries and joins with your own tables.

    - `engine`: an `Engine`, `AsyncEngine` or connection; only its dialect is used.
    - `schema`: the schema on PostgreSQL. Default: `tenure`.

    Times are aware, in UTC; `payload`, `result`, `backoff` and `tags` are decoded from JSON. They
    have a separate `MetaData`, so your `create_all` does not make them. Only read them:
    a change in SQL has to obey the table of transitions, and `Tenure.within` adds jobs. What a
    column means is what the field of `Job` and `Transition` with its name means.
    """
    if not hasattr(engine, "dialect"):
        check_kind(engine, Engine, "an Engine, AsyncEngine or connection", "$.engine")
    on_sqlite = engine.dialect.name == "sqlite"
    metadata = MetaData(schema=None if on_sqlite else schema)
    prefix = PREFIX if on_sqlite else ""
    job, transition = (
        Table(f"{prefix}{name}", metadata, *(Column(*each) for each in columns))
        for name, columns in (("job", _JOB), ("transition", _TRANSITION))
    )
    return job, transition


def include_name(name: str | None, type_: str, parents: Mapping[str, str | None]) -> bool:
    """Keep Alembic away from the tables of Tenure, which autogenerate would propose to drop.

    Pass it as `context.configure(..., include_name=include_name)` in `env.py`. It leaves out the
    schema `tenure` of PostgreSQL, and on SQLite the tables whose names begin with `tenure_`.
    """
    if type_ == "schema":
        return name != "tenure"
    return type_ != "table" or not (name or "").startswith(PREFIX)


class _Time(TypeDecorator[datetime]):
    """A time in UTC: `timestamptz` on PostgreSQL, milliseconds since 1970 on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Any) -> Any:
        """Return the type of the column."""
        return BigInteger() if dialect.name == "sqlite" else self.impl

    def process_bind_param(self, value: datetime | None, dialect: Any) -> Any:
        """Return a time as the column holds it."""
        if value is None or dialect.name != "sqlite":
            return value
        return (value - EPOCH) // timedelta(milliseconds=1)

    def process_result_value(self, value: Any, dialect: Any) -> datetime | None:
        """Return what the column holds as a time."""
        if value is None or dialect.name != "sqlite":
            return value if value is None else value.astimezone(UTC)
        return EPOCH + timedelta(milliseconds=value)


class _Json(TypeDecorator[Any]):
    """JSON that is stored as text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:
        """Return a value as text, as far as equal texts are equal values."""
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Any) -> Any:
        """Return the value of a text."""
        return None if value is None else json.loads(value)


def _columns(**kinds: str) -> list[tuple[str, Any]]:
    return [(name, _KINDS[kind]) for kind, names in kinds.items() for name in names.split()]


_KINDS = {
    "ids": Text().with_variant(UUID(as_uuid=False), "postgresql"),
    "texts": Text(),
    "numbers": BigInteger(),
    "seconds": Double(),
    "times": _Time(),
    "values": _Json(),
}
_JOB = _columns(
    ids="id lease_id workflow again_of",
    texts="type queue status event worker actor reason last_error idempotency_key partition",
    numbers="priority attempts max_retries token snoozes need spare",
    seconds="timeout",
    times="created_at run_at start_by started_at finished_at lease_expires_at",
    values="payload result backoff tags",
)
_TRANSITION = _columns(
    ids="job_id lease_id",
    texts="source target event actor detail reason",
    numbers="seq attempt token",
    times="at",
)
