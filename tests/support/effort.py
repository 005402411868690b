"""How hard the tests try: `make test` does what shows a fault soon, `make chaos` all there is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest

VARIABLE = "TENURE_CHAOS_EFFORT"
EFFORT = int(os.environ.get(VARIABLE, "1"))
"""How many times as much to do as in `make test`: 1 there, more in `make chaos`."""
EVERYTHING = EFFORT > 1
MANY_ROWS = 1_000_000 if EVERYTHING else 100_000
"""The rows of a table whose plans are looked at."""


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
