"""Bytes at random for a few seconds; `make chaos` sends them beside all other tests."""

from __future__ import annotations

import random

import pytest

from tests.chaos.fuzz import fuzz


@pytest.mark.scenario(98)
@pytest.mark.chaos
def test_bytes_at_random(sqlite_url: str, chance: random.Random) -> None:
    assert fuzz(3, chance.randrange(2**31), sqlite_url) > 0
