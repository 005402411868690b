"""Connections to one PostgreSQL database that has the schema."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tenure import Tenure
from tenure.store.postgres.reader import PostgresReader
from tenure.store.postgres.writer import Postgres
from tests.unit.postgres.connections import Connection


@pytest.fixture
def url(postgres_url: str) -> str:
    """The URL of a database with the schema in it."""
    return postgres_url


@pytest.fixture
def app(postgres_url: str) -> Iterator[Tenure]:
    """An application whose data must obey every invariant at the end."""
    with Tenure(postgres_url) as app:
        yield app
        assert app.verify() == []


@pytest.fixture
def raw(url: str) -> Iterator[Connection]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def db(url: str) -> Iterator[Postgres]:
    database = Postgres(url)
    yield database
    database.close()


@pytest.fixture
def other(url: str) -> Iterator[Postgres]:
    """A second writing connection, as another process has one."""
    database = Postgres(url)
    yield database
    database.close()


@pytest.fixture
def reader(url: str) -> Iterator[PostgresReader]:
    found = PostgresReader(url)
    yield found
    found.close()
