"""Run a test of the contract as the database role that docs/how-to/deploy.md advises, too."""

from __future__ import annotations

import pytest

_granted = pytest.param("granted", marks=[pytest.mark.postgres, pytest.mark.requirement("C11")])

as_granted_role = pytest.mark.parametrize("database_url", [_granted], indirect=True)
"""Run the test on PostgreSQL as this role only."""

also_as_granted_role = pytest.mark.parametrize(
    "database_url",
    ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres), _granted],
    indirect=True,
)
"""Run the test once of each engine, and on PostgreSQL as this role."""
