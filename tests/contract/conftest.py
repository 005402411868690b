"""Every test here runs once against each engine and ends with an audit of what it left behind."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tenure import Tenure
from tenure.store import migrate_store, open_store
from tests.contract import situations
from tests.support.clock import Clock
from tests.support.kept_databases import LENT
from tests.support.store import StoreHarness

MANUAL = Path(__file__).parents[2] / "docs" / "how-to" / "deploy.md"
GRANTS = MANUAL.read_text("utf-8").split("**Roles.**")[1].split("```sql")[1].split("```")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ask a rule for connections of callers with every second kind of them, and the next rule with
    the other half. All kinds run the same statements. `make chaos` asks each with each.
    """
    here, rules = Path(__file__).parent, dict[str, int]()
    for item in items:
        if isinstance(item, pytest.Function) and item.path.parent == here:
            kind = item.callspec.indices.get("kind") if hasattr(item, "callspec") else None
            if kind is not None and (kind + rules.setdefault(item.originalname, len(rules))) % 2:
                item.add_marker(pytest.mark.full)


@pytest.fixture
def owner(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The role that made the schema."""
    migrate_store(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def granted_url(postgres_url: str, owner: psycopg.Connection[Any]) -> Iterator[str]:
    """The URL for the role that deploy.md advises for the application."""
    role = f"tenure_{uuid.uuid4().hex}"
    try:
        owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'guest'")
    except psycopg.errors.InsufficientPrivilege as error:
        pytest.skip(f"the server of TENURE_TEST_DATABASE_URL: {error}")
    for statement in GRANTS.split(";")[:-1]:
        owner.execute(statement.replace("TO shop", f"TO {role}").encode())
    yield f"{postgres_url}{'&' if '?' in postgres_url else '?'}user={role}&password=guest"
    owner.execute(f"DROP OWNED BY {role}")
    owner.execute(f"DROP ROLE {role}")


@pytest.fixture
def owner_url(request: pytest.FixtureRequest, database_url: str) -> str:
    """The URL for the role that may change the schema, where `database_url` may not."""
    granted = request.node.callspec.params.get("database_url") == "granted"
    url: str = request.getfixturevalue("postgres_url") if granted else database_url
    return url


@pytest.fixture
def unaudited_harness(database_url: str, owner_url: str) -> Iterator[StoreHarness]:
    """A harness whose data may be broken at the end."""
    clock = Clock(owner_url)
    harness = StoreHarness(database_url, open_store(database_url), clock)
    try:
        yield harness
    finally:
        harness.store.close()  # a test may have opened another one
        clock.close()


@pytest.fixture
def harness(unaudited_harness: StoreHarness) -> Iterator[StoreHarness]:
    """A harness whose data must obey every invariant at the end."""
    yield unaudited_harness
    kept = LENT.get(unaudited_harness.url)
    assert (kept.violations() if kept else unaudited_harness.store.read.violations(10)) == []


@pytest.fixture
def app(harness: StoreHarness) -> Iterator[Tenure]:
    """An application on the database of the harness."""
    with Tenure(harness.url) as app:
        yield app


@pytest.fixture
def ids(harness: StoreHarness) -> dict[str, str]:
    """A job in every situation (`situations.SITUATIONS`): its name -> the id."""
    return situations.fill(harness)
