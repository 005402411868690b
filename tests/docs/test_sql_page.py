"""The SQL of the page on enqueueing from SQL runs on PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tenure import Tenure
from tests.docs.pages import ROOT, Page

PAGE = Page(Path(ROOT) / "docs" / "how-to" / "from-sql.md")


@pytest.mark.postgres
def test_the_statements_of_the_page_run(postgres_url: str) -> None:
    statements = [block.text for block in PAGE.blocks if block.language == "sql"]
    with Tenure(postgres_url) as app, psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE orders (number integer)")
        connection.execute("DROP ROLE IF EXISTS producer")
        connection.execute("CREATE ROLE producer")
        for statement in statements:
            connection.execute(statement.encode())
        connection.execute("INSERT INTO orders VALUES (17)")
        connection.execute("SET ROLE producer")
        connection.execute("SELECT tenure.enqueue('ship')")
        connection.execute("RESET ROLE")
        connection.execute("DROP OWNED BY producer; DROP ROLE producer")
        connection.commit()
        payloads = [job.payload for job in app.find(type="ship")]
        assert payloads == [{}, {"order": 17}]
        assert len(app.find()) == 2 + statements[0].count("SELECT tenure.enqueue")
