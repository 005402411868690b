"""How hard the battery tries, and by which chance: little in `make test`, more in `make chaos`."""

from __future__ import annotations

import os
import random

import pytest

from tenure import Tenure
from tests.support.effort import EFFORT

SEED = "TENURE_CHAOS_SEED"


@pytest.fixture
def effort() -> int:
    """How many times as much to do as in `make test`: 1 there, more in `make chaos`."""
    return EFFORT


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """The only source of chance: the seed of the run and the name of the test."""
    return random.Random(f"{os.environ.get(SEED, '1')} {request.node.name}")


@pytest.fixture
def app(app_on_each_engine: Tenure) -> Tenure:
    """Here, faults are tried on each engine."""
    return app_on_each_engine
