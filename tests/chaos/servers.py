"""Servers that a test may stop, crash and set up as it likes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

import pytest

from tests.postgres_server import PostgresServer, PostgresUnavailable


@contextlib.contextmanager
def own_server(settings: Mapping[str, str] | None = None) -> Iterator[PostgresServer]:
    """A server of our own that keeps what it has committed. Where there is none, only CI fails."""
    try:
        with PostgresServer(durable=True, settings=settings) as server:
            yield server
    except PostgresUnavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no PostgreSQL: {error}")
