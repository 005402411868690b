"""Random graphs of jobs end on both databases as on the reference, row by row at every step.

Some are played with bounds so low that ten jobs meet gates and overdue parents.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from tenure.store import migrate_store, open_store
from tests.model.graph_reference import Bounds
from tests.model.graphs import low_bounds, play
from tests.support.clock import Clock
from tests.support.effort import EVERYTHING
from tests.support.raw_sql import RawSql

SEED = os.environ.get("TENURE_CHAOS_SEED", "1")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600 if EVERYTHING else 300)]


@pytest.fixture(params=[True, False], ids=["low bounds", "bounds"])
def gated_above(request: pytest.FixtureRequest) -> Iterator[Bounds]:
    """The numbers of parents above which PostgreSQL counts in gates."""
    with low_bounds(request.param) as gated_above:
        yield gated_above


@pytest.fixture
def new_url(gated_above: Bounds, database_url: str) -> str:
    """A database whose schema has these bounds."""
    migrate_store(database_url)
    return database_url


@pytest.mark.scenario(112)
@pytest.mark.parametrize(
    ("histories", "jobs"), [(3, 60), pytest.param(6, 600, marks=pytest.mark.full)]
)
def test_graphs_end_as_on_the_reference(
    new_url: str, gated_above: Bounds, histories: int, jobs: int
) -> None:
    on_postgres = not new_url.startswith("sqlite")
    played = 0
    with (
        closing(open_store(new_url)) as store,
        closing(RawSql(new_url)) as raw,
        closing(Clock(new_url)) as clock,
    ):
        for number in range(histories):
            seed = f"{SEED} {number}"
            game = play(
                store, raw, clock, seed, jobs, gated_above=gated_above if on_postgres else None
            )
            played += len(game.graph.nodes)
        assert store.read.violations(10) == []
    assert played >= histories * jobs
