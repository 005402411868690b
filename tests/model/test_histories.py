"""Both stores agree with the reference, on whatever is done to them in whatever order.

TENURE_MODEL_EXAMPLES is how many histories are played on each engine; the default suits every run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

import hypothesis
import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.model.histories import History
from tests.postgres_server import PostgresServer

STEPS = 40


def play(examples: int, new_database: Callable[[], str], drop: Callable[[str], None]) -> None:
    wanted = int(os.environ.get("TENURE_MODEL_EXAMPLES", examples))
    settings = hypothesis.settings(
        max_examples=wanted,
        stateful_step_count=STEPS,
        suppress_health_check=list(hypothesis.HealthCheck),
    )

    class Played(History):
        pass

    Played.new_database = staticmethod(new_database)
    Played.drop_database = staticmethod(drop)
    run_state_machine_as_test(Played, settings=settings)


@pytest.mark.slow
@pytest.mark.timeout(0 if "TENURE_MODEL_EXAMPLES" in os.environ else 120)
def test_sqlite_agrees_with_the_reference(tmp_path: Path) -> None:
    numbers = count()

    def new() -> str:
        return f"sqlite:///{tmp_path}/{next(numbers)}.db"

    def drop(url: str) -> None:
        for file in tmp_path.glob(Path(url).name + "*"):
            file.unlink()

    play(120, new, drop)


@pytest.mark.slow
@pytest.mark.timeout(0 if "TENURE_MODEL_EXAMPLES" in os.environ else 120)
def test_postgres_agrees_with_the_reference(postgres_server: PostgresServer) -> None:
    numbers = count()

    def new() -> str:
        return postgres_server.create_database(f"history_{os.getpid()}_{next(numbers)}")

    def drop(url: str) -> None:
        postgres_server.drop_database(url.rsplit("/", 1)[-1].partition("?")[0])

    play(40, new, drop)
