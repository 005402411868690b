"""Both stores agree with the reference, on whatever is done to them in whatever order.

TENURE_MODEL_FACTOR plays so many times more histories than every run does.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.model.histories import History
from tests.model.walks import Walk
from tests.support.postgres import PostgresServer

FACTOR = int(os.environ.get("TENURE_MODEL_FACTOR", "1"))
SHORT, LONG = 40, 120  # steps


def more(number: int) -> Any:
    """What only `make chaos` plays: of 20 broken rules, five long histories have caught each."""
    return pytest.param(number, marks=pytest.mark.full)


# To Hypothesis, a timeout in the middle of a history is "inconsistent data generation".
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 * FACTOR)]


@pytest.fixture
def on_sqlite(tmp_path: Path, sqlite_template: Path) -> type[History]:
    """The game on SQLite files, a new one for each history."""
    numbers = count()

    def new() -> str:
        path = tmp_path / f"{next(numbers)}.db"
        shutil.copy(sqlite_template, path)
        return f"sqlite:///{path}"

    def drop(url: str) -> None:
        for file in tmp_path.glob(Path(url).name + "*"):
            file.unlink()

    return played_on(new, drop)


@pytest.fixture
def on_postgres(postgres_server: PostgresServer, postgres_template: str) -> type[History]:
    """The game on PostgreSQL databases, a new one for each history."""
    numbers = count()

    def name(number: int) -> str:
        return f"tenure_history_{os.getpid()}_{number}"

    made: dict[str, str] = {}

    def new() -> str:
        database = name(next(numbers))
        url = postgres_server.create_database(database, postgres_template)
        made[url] = database
        return url

    def drop(url: str) -> None:
        postgres_server.drop_database(made.pop(url))

    return played_on(new, drop)


def played_on(new: Callable[[], str], drop: Callable[[str], None]) -> type[History]:
    class Played(History):
        pass

    Played.new_database = staticmethod(new)
    Played.drop_database = staticmethod(drop)
    return Played


def play(game: type[History], examples: int) -> None:
    settings = hypothesis.settings(
        max_examples=examples * FACTOR,
        stateful_step_count=SHORT,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    run_state_machine_as_test(game, settings=settings)


def walk(game: type[History], first: int, seeds: int) -> None:
    for seed in range(first * FACTOR, (first + seeds) * FACTOR):
        machine = game()
        try:
            Walk(machine, seed).go(LONG)
        finally:
            machine.teardown()


@pytest.mark.parametrize("examples", [15, more(135)])
def test_short_histories_on_sqlite(on_sqlite: type[History], examples: int) -> None:
    play(on_sqlite, examples)


@pytest.mark.parametrize("examples", [10, more(40)])
def test_short_histories_on_postgres(on_postgres: type[History], examples: int) -> None:
    play(on_postgres, examples)


@pytest.mark.parametrize("first", [0, more(5), more(10), more(15), more(20), more(25)])
def test_long_histories_on_sqlite(on_sqlite: type[History], first: int) -> None:
    walk(on_sqlite, first, 5)


@pytest.mark.parametrize("first", [0, more(4)])
def test_long_histories_on_postgres(on_postgres: type[History], first: int) -> None:
    walk(on_postgres, first, 4)
