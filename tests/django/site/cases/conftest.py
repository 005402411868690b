"""Fixtures of the cases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tenure import testing
from tenure.contrib.django import app


@pytest.fixture(scope="module")
def cleared(django_db_setup: Any) -> Iterator[None]:
    """Take no jobs of other modules, nor leave them any: Django truncates its own tables only."""
    clear()
    yield
    clear()


def clear() -> None:
    app.close()
    with testing.on(app, app.database) as jobs:
        jobs.clear(force=True)
