"""An application on each database, and on SQLite alone where the engine does not matter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tenure import Tenure
from tests.clock import Clock


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Tenure]:
    """An application on a new SQLite file. What the engine cannot change is tested on one."""
    with Tenure(sqlite_url) as made:
        yield made


@pytest.fixture
def either(database_url: str) -> Iterator[Tenure]:
    """An application on a new database, once of each engine."""
    with Tenure(database_url) as made:
        yield made


@pytest.fixture
def clock(either: Tenure) -> Iterator[Clock]:
    """The store's clock, which stands still: no lease runs out but when the test says so."""
    clock = Clock(either.database)
    yield clock
    clock.close()
