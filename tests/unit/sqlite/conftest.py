"""A file that most tests of the engine need."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenure.store import migrate_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An SQLite file with the schema and no rows."""
    path = tmp_path / "jobs.db"
    migrate_store(f"sqlite:///{path}")
    return path
