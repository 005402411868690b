"""What `make test` leaves to `make chaos`: of each case above the store, one of the engines."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from tests.support.effort import VARIABLE

ROOT = Path(__file__).parents[2]
ENGINES = ("sqlite", "postgres")
TURNS = "tests/faces/test_bulk.py"


@functools.cache
def collected(effort: int, *asked: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *asked]
    environment = {**os.environ, VARIABLE: str(effort)}
    said = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return [line for line in said.stdout.splitlines() if "::" in line]


def engines_of(names: list[str]) -> dict[str, set[str]]:
    """Each case that names an engine, and its engines."""
    found = defaultdict[str, set[str]](set)
    for name in names:
        test, _, case = name.partition("[")
        for engine in ENGINES:
            if engine in case:
                found[f"{test} {case.replace(engine, '')}"].add(engine)
    return found


def test_each_case_above_the_store_runs_on_one_engine_and_all_of_it_on_both() -> None:
    some, everything = engines_of(collected(1, TURNS)), engines_of(collected(2, TURNS))
    assert some.keys() == everything.keys()
    assert {len(engines) for engines in some.values()} == {1}
    assert {*ENGINES} == set.union(*some.values())
    assert all(engines == {*ENGINES} for engines in everything.values())


def test_what_differs_between_engines_and_what_is_asked_for_by_name_is_there() -> None:
    left_out = min({*collected(2, TURNS)} - {*collected(1, TURNS)})
    named = collected(1, left_out, "tests/worker/test_forks.py")
    assert left_out in named
    assert {*ENGINES} in engines_of(named).values()
