"""Statements over many rows, which are bound all at once.

Each statement that fires triggers costs a separate journal: row-by-row `executemany` was four times
slower. Rows as JSON took twice as long to read as to write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

SHAPES = (1, 8, 32, 128, 512)
"""Rows in one statement. Few shapes: each is a separate statement to prepare and to keep."""


class OverRows:
    """A statement over rows, which stand for its `{rows}`: a table `name` with these columns.

    There are as many rows as one of `SHAPES`; unneeded ones are all NULL.
    """

    def __init__(self, name: str, columns: Sequence[str], statement: str) -> None:
        row = f"({', '.join('?' * len(columns))})"
        self._width = len(columns)
        # The name of the columns is given inside, since Python counts changed rows only where a
        # statement begins with INSERT or UPDATE.
        table = f"(WITH {name} ({', '.join(columns)}) AS (VALUES {{}}) SELECT * FROM {name})"
        self._texts = {
            shape: statement.replace("{rows}", table.format(", ".join([row] * shape)))
            for shape in SHAPES
        }

    def calls(self, rows: Sequence[Sequence[Any]], *values: Any) -> Iterator[tuple[str, list[Any]]]:
        """The statements over all rows, with their parameters: `values`, then the rows."""
        start = 0
        while start < len(rows):
            shape = _shape(len(rows) - start)
            some = rows[start : start + shape]
            padding = [None] * (self._width * (shape - len(some)))
            yield self._texts[shape], [*values, *chain.from_iterable(some), *padding]
            start += shape


def _shape(rows: int) -> int:
    """The next shape for so many rows: the largest they fill, or one that takes few of them in."""
    if rows > SHAPES[-2]:
        return next(shape for shape in reversed(SHAPES) if shape <= rows)
    return next(shape for shape in SHAPES if shape >= rows)
