"""Bytes and requests at random for a few seconds; `make chaos` sends them beside all tests."""

from __future__ import annotations

import random

import pytest

from tests.chaos.fuzz import fuzz
from tests.chaos.misuse import misuse


@pytest.mark.scenario(98)
@pytest.mark.chaos
def test_bytes_at_random(sqlite_url: str, chance: random.Random) -> None:
    assert fuzz(3, chance.randrange(2**31), sqlite_url) > 0


@pytest.mark.scenario(119)
@pytest.mark.requirement("C16")
@pytest.mark.chaos
def test_requests_at_random(database_url: str, chance: random.Random, effort: int) -> None:
    assert misuse(4 * effort, chance.randrange(2**31), database_url) > 0
