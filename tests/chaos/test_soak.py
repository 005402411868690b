"""Everything at once, for a few seconds; `make chaos` does so for minutes, or hours if asked to."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.soak import soak
from tests.support.postgres import PostgresServer


@pytest.mark.scenario(101)
@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_everything_at_once(
    tmp_path: Path, chance: random.Random, postgres_server: PostgresServer
) -> None:
    assert soak(5, chance.randrange(2**31), tmp_path) == []
