"""Where tests of the suite run jobs."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tenure import Tenure, testing
from tenure.store import migrate_store

Enter = Callable[[Tenure], testing.Jobs]

PLACES = [
    "file",
    "sqlite transaction",
    pytest.param("database", marks=pytest.mark.postgres),
    pytest.param("transaction", marks=pytest.mark.postgres),
]


@contextmanager
def transaction(url: str) -> Iterator[Any]:
    """Give a connection to a new database, in a transaction that is rolled back."""
    migrate_store(url)
    if url.startswith("sqlite:"):
        path = url.removeprefix("sqlite:///")
        connection: Any = sqlite3.connect(path, check_same_thread=False)
    else:
        connection = psycopg.connect(url)
    with closing(connection):
        yield connection
        connection.rollback()


@pytest.fixture(params=PLACES)
def enter(request: pytest.FixtureRequest) -> Iterator[Enter]:
    """Let an application use a file, a database, or a transaction, until the test ends.

    What is there is sound at the end.
    """
    place = request.param
    engine = "sqlite" if place.startswith("sqlite") else "postgres"
    url = "" if place == "file" else request.getfixturevalue(f"{engine}_url")
    with ExitStack() as stack:

        def begin(app: Tenure) -> testing.Jobs:
            if place == "file":
                jobs = stack.enter_context(testing.on(app))
            elif place == "database":
                jobs = stack.enter_context(testing.on(app, url))
            else:
                connection = stack.enter_context(transaction(url))
                jobs = stack.enter_context(testing.within(app, connection))
            stack.callback(lambda: _check(app))
            return jobs

        yield begin


def _check(app: Tenure) -> None:
    assert app.verify() == []


@pytest.fixture
def nowhere(tmp_path: Path) -> Tenure:
    """An application whose own database is not there, and is never made."""
    return Tenure(f"sqlite:///{tmp_path}/missing/jobs.db")
