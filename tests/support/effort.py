"""How hard the tests try: `make test` does what shows a fault soon, `make chaos` all there is."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

VARIABLE = "TENURE_CHAOS_EFFORT"
EFFORT = int(os.environ.get(VARIABLE, "1"))
"""How many times as much to do as in `make test`: 1 there, more in `make chaos`."""
EVERYTHING = EFFORT > 1
MANY_ROWS = 1_000_000 if EVERYTHING else 100_000
"""The rows of a table whose plans are looked at."""
SUITES = Path(__file__).parents[1]
ABOVE_THE_ENGINES = {"chaos", "contrib", "django", "faces", "testing", "worker"}
"""Suites about what stands above the store; `contract`, `model` and `unit` test the engines."""


def on_either_engine(
    names: str, *cases: Sequence[Any], indirect: Sequence[str] = ()
) -> pytest.MarkDecorator:
    """Run a test once for each of its cases, on one engine and then the other in turn.

    `make chaos` runs each on both. For what the engines have no part in, but for being there. A
    product of cases has what is odd in number last, so that all pairs with an engine are there.
    """
    each = list[Any]()
    for number, case in enumerate(cases):
        for engine in ("sqlite", "postgres"):
            marks = [] if engine == "sqlite" else [pytest.mark.postgres]
            if (engine == "postgres") != number % 2:
                marks.append(pytest.mark.full)
            each.append(pytest.param(engine, *case, marks=marks))
    return pytest.mark.parametrize(
        f"database_url, {names}", each, indirect=["database_url", *indirect]
    )


def take_turns(items: list[pytest.Item]) -> None:
    """Leave each case of the suites above the engines one engine; the others are `full`.

    Which one is left depends on the name of the case: on either engine runs about one half of each
    file. A test that is marked `each_engine` shows what the engines do in different ways.
    """
    cases = defaultdict[str, list[pytest.Item]](list)
    for item in items:
        suite = item.path.relative_to(SUITES).parts[0]
        if suite in ABOVE_THE_ENGINES and isinstance(item, pytest.Function):
            given = item.callspec.params.values() if hasattr(item, "callspec") else ()
            engine = next((each for each in ("sqlite", "postgres") if each in given), "")
            passed_by = item.get_closest_marker("full") or item.get_closest_marker("each_engine")
            if engine and not passed_by:
                test, _, case = item.nodeid.partition("[")
                cases[f"{test} {case.replace(engine, '', 1)}"].append(item)
    for name, on_engines in cases.items():
        del on_engines[crc32(name.encode()) % len(on_engines)]
        for item in on_engines:
            item.add_marker(pytest.mark.full)
