"""How answers look in a terminal: plain aligned tables, short times, and nothing that can act.

Types, errors and payloads come from whoever enqueues jobs, so every text from a job passes
`visible`: control characters, escape sequences and direction marks are shown, never sent.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click
import msgspec

from tenure import durations
from tenure.logs import visible as visible

GAP = "  "
NARROWEST = 8
"""Columns that a column keeps when the table has to shrink."""

Cell = str | int | None


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Print rows under their heads; numbers to the right, long texts cut to fit the terminal.

    The first column is never cut: it holds what a user copies. Where the output goes to a file or
    another program, nothing is.
    """
    numeric = [
        bool(rows) and all(isinstance(row[number], int) for row in rows)
        for number in range(len(heads))
    ]
    texts = [list(heads), *([_text(cell) for cell in row] for row in rows)]
    widths = [max(width_of(row[number]) for row in texts) for number in range(len(heads))]
    _shrink(widths, room())
    for row in texts:
        cells = zip(row, widths, numeric, strict=True)
        line = GAP.join(_fit(text, width, right) for text, width, right in cells)
        click.echo(line.rstrip())


def print_json(value: Any) -> None:
    """Print one JSON document, indented; characters that could act are written as escapes."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    for line in text.split("\n"):
        click.echo(line if line.isprintable() else _escaped_json(line))


def indented(text: str, by: str = "    ") -> str:
    """A text of several lines, such as a traceback, each line made visible and indented."""
    return "\n".join(by + visible(line) for line in text.splitlines())


def first_line(text: str | None) -> str:
    """The first line of an error, which names it, without the module of its class."""
    lines = (text or "").splitlines()
    return re.sub(r"^(?:\w+\.)+(?=\w+(?::|$))", "", lines[0]) if lines else ""


def when(time: datetime | None) -> str:
    """A time, in UTC, to the second."""
    return "-" if time is None else time.strftime("%Y-%m-%d %H:%M:%SZ")


def ago(time: datetime | None, now: datetime) -> str:
    """How long ago, or in how long, in the two largest units that matter."""
    if time is None:
        return "-"
    seconds = (now - time).total_seconds()
    length = durations.roughly(float(_rounded(abs(seconds))))
    return f"{length} ago" if seconds >= 0 else f"in {length}"


def attempts(made: int, limit: int) -> str:
    """Attempts made of those allowed: `1/3`."""
    return f"{made}/{max(limit, 1)}"


def _rounded(seconds: float) -> int:
    for unit, coarse in ((86_400, 3_600), (3_600, 60)):
        if seconds >= unit:
            return int(seconds) // coarse * coarse
    return int(seconds)


def _text(cell: Cell) -> str:
    return "-" if cell is None or cell == "" else visible(str(cell))


def room() -> int | None:
    """Columns there are; None where nothing needs to fit."""
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return shutil.get_terminal_size().columns
    return None


def _shrink(widths: list[int], room: int | None) -> None:
    """Take from the widest column, the first excepted, until the line fits."""
    if room is None or len(widths) < 2:
        return
    while sum(widths) + len(GAP) * (len(widths) - 1) > room:
        widest = max(range(1, len(widths)), key=lambda number: widths[number])
        if widths[widest] <= NARROWEST:
            return
        widths[widest] -= 1


def width_of(text: str) -> int:
    """Columns that a terminal gives to a text without control characters."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _fit(text: str, width: int, right: bool) -> str:
    if width_of(text) > width:
        while width_of(text) > width - 1:
            text = text[:-1]
        text += "…"
    padding = " " * (width - width_of(text))
    return padding + text if right else text + padding


def _escaped_json(line: str) -> str:
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)
