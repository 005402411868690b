"""The hook that keeps Alembic away from Tenure's tables, as the page shows it."""

from __future__ import annotations

from typing import Any

import sqlalchemy

from tenure import Tenure
from tests.docs.pages import DOCS, Page


def test_the_hook_of_the_page_leaves_the_tables_of_tenure_out(database_url: str) -> None:
    """Autogenerate, which asks the hook for each schema and table, proposed to drop all 14."""
    blocks = Page(DOCS / "how-to" / "can-tenure.md").blocks
    (code,) = (block.text for block in blocks if "def include_name" in block.text)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - the page's own example
    include_name = names["include_name"]
    with Tenure(database_url):
        engine = sqlalchemy.create_engine(
            database_url.replace("postgresql:", "postgresql+psycopg:")
        )
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE customer (name text)"))
            inspector = sqlalchemy.inspect(connection)
            kept, left_out = set(), set()
            for schema in set(inspector.get_schema_names()) - {"information_schema"}:
                shown = include_name(schema, "schema", {})
                for table in inspector.get_table_names(schema):
                    is_kept = shown and include_name(table, "table", {"schema_name": schema})
                    (kept if is_kept else left_out).add(table)
        engine.dispose()
    assert kept == {"customer"}
    assert {"job", "transition"} <= {name.removeprefix("tenure_") for name in left_out}
