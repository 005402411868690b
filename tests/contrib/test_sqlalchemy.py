"""The tables for SQLAlchemy are those of the database, and their values those of Tenure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Engine, select

from tenure import Tenure
from tenure.contrib.sqlalchemy import include_name, tables

pytestmark = pytest.mark.each_engine  # they have other names, types and places of tables
NOT_SHOWN = {"fingerprint", "needs", "followed", "unique_key", "unique_until", "xid"}
"""Columns of which neither `Job` nor `Transition` tells."""


@pytest.fixture
def engine(app_on_each_engine: Tenure) -> Iterator[Engine]:
    url = app_on_each_engine.database.replace("postgresql:", "postgresql+psycopg:")
    engine = sqlalchemy.create_engine(url)
    yield engine
    engine.dispose()


@pytest.mark.filterwarnings("ignore:Did not recognize type .xid8.")
def test_the_columns_are_those_of_the_database(engine: Engine) -> None:
    inspector = sqlalchemy.inspect(engine)
    for table in tables(engine):
        found = {c["name"] for c in inspector.get_columns(table.name, schema=table.schema)}
        assert found - NOT_SHOWN == set(table.columns.keys())


def test_values_are_those_of_jobs(app_on_each_engine: Tenure, engine: Engine) -> None:
    app = app_on_each_engine
    due = datetime(2030, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    added = app.enqueue("send", {"to": ["ä"]}, run_at=due, tags=["a", "b"], timeout=2.5)
    job, transition = tables(engine)
    with engine.begin() as connection:
        row = connection.execute(select(job)).mappings().one()
        entry = connection.execute(select(transition)).mappings().one()
        found = select(job.c.id).where(job.c.run_at == due, job.c.tags == ["a", "b"])
        late = select(job.c.id).where(job.c.run_at > due + timedelta(seconds=1))
        assert connection.execute(found).scalars().all() == [added.id]
        assert connection.execute(late).scalars().all() == []
        joined = select(job.c.type).join(transition, transition.c.job_id == job.c.id)
        assert connection.execute(joined).scalars().all() == ["send"]
    for name in row.keys() - {"backoff"}:  # what is not used is NULL
        assert (row[name] or None) == (same(getattr(added, name)) or None), name
    (known,) = app.history(added.id)
    for name in entry.keys() - {"seq"}:
        assert entry[name] == getattr(known, name), name


def same(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_alembic_sees_no_table_of_tenure(engine: Engine) -> None:
    """Autogenerate, which asks the hook for each schema and table, proposed to drop all 14."""
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE customer (name text)"))
        inspector = sqlalchemy.inspect(connection)
        kept, left_out = set(), set()
        for schema in set(inspector.get_schema_names()) - {"information_schema"}:
            shown = include_name(schema, "schema", {})
            for table in inspector.get_table_names(schema):
                is_kept = shown and include_name(table, "table", {"schema_name": schema})
                (kept if is_kept else left_out).add(table)
    assert kept == {"customer"}
    assert include_name("tenure_job_id", "column", {"table_name": "customer"})
    assert {"job", "transition"} <= {name.removeprefix("tenure_") for name in left_out}
