"""No statement orders by an id that it selects as text.

In `SELECT id::text ... ORDER BY id LIMIT 1`, PostgreSQL orders by what is selected and not by the
column: no index helps, so every row is read and sorted. `ORDER BY job.id` is the column.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenure import store

SOURCES = sorted(Path(store.__file__).parent.rglob("*.py"))
CAST = re.compile(r"\.id\(['\"](\w+)['\"]\)")
ORDERED_BY = re.compile(r"ORDER BY (\w+(?:, \w+)*)\b(?!\.)")


def ordered_as_text(source: str) -> Iterator[str]:
    """The columns that a statement of a module selects as text, and orders by under that name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            statement = ast.unparse(node)
            cast = {*CAST.findall(statement), *(["xid"] if ".place}" in statement else [])}
            for columns in ORDERED_BY.findall(statement):
                yield from cast & set(columns.split(", "))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_statement_orders_by_an_id_as_text(path: Path) -> None:
    assert list(ordered_as_text(path.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    "statement",
    [
        "f\"SELECT {d.id('id')} FROM {job} ORDER BY id DESC LIMIT 1\"",
        'f"SELECT {d.id(\'id\')}, at" f" FROM {job} ORDER BY at, id"',
        'f"SELECT {d.place} FROM {ledger} ORDER BY xid DESC, seq DESC LIMIT 1"',
    ],
)
def test_such_a_statement_is_found(statement: str) -> None:
    assert len(list(ordered_as_text(statement))) == 1
