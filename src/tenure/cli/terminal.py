"""How answers look in a terminal: aligned tables that fit, short times, no control characters.

Types, errors and payloads come from the callers that enqueue jobs, so every text from a job passes
`visible`: control characters, escape sequences and direction marks are shown, never sent.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.util import find_spec
from typing import Any, TextIO

import click

from tenure.cli.command import WIDE
from tenure.errors import TenureError
from tenure.values.findings import Progress, no_progress
from tenure.values.text import ago, length, printable_json, visible

GAP = "  "
CUT = "…"
NOTE = "    "
ENDLESS = sys.maxsize
MAX_LINES = 40
MAX_EXCERPT = 10_000
NARROWEST = 10
"""Width that every text gets before a column of the table is left out."""
COLOURS = {
    "waiting": "blue",
    "pending": "yellow",
    "processing": "cyan",
    "completed": "green",
    "failed": "red",
    "cancelled": "magenta",
    "ok": "green",
    "warning": "yellow",
    "problem": "red",
}
TINTED = ("STATUS", "FROM", "TO", "HEALTH")

Cell = str | int | datetime | Sequence[str] | None


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    now: datetime | None = None,
    spare: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> None:
    """Print rows under their heads: numbers to the right, statuses coloured, no row wrapped.

    Times are written relative to `now`, several texts of one cell side by side. If the rows do not
    fit the terminal, empty columns are left out, then those in `spare`, then long texts are cut,
    with a mark. The first column is never cut, because users copy it. With --wide, or in a file or
    pipe, everything is printed. `notes` are printed below their rows.
    """
    width = room()
    cells = list(zip(heads, *rows, strict=True))
    right = {head for head, *below in cells if below and all(isinstance(c, int) for c in below)}
    columns = [[head, *(_text(cell, now) for cell in below)] for head, *below in cells]
    columns, left_out = _chosen(columns, width, spare)
    widths = _shrunk([max(map(width_of, column)) for column in columns], width)
    for number, row in enumerate(zip(*columns, strict=True)):
        line = []
        for (head, *_), text, size in zip(columns, row, widths, strict=True):
            cut = fitting(text, size)
            padding = " " * (size - width_of(cut))
            cell = padding + cut if head in right else cut + padding
            line.append(tint(cell, text) if number and head in TINTED else cell)
        click.echo(GAP.join(line).rstrip())
        if number and notes and notes[number - 1]:
            click.echo(fitting(NOTE + visible(notes[number - 1]), width))
    if left_out:
        click.echo(f"(no room for {', '.join(left_out)}: --wide shows all)", err=True)


def _text(cell: Cell, now: datetime | None) -> str:
    if isinstance(cell, datetime):
        return when(cell) if now is None else ago(cell, now)
    text = str(cell) if isinstance(cell, str | int) else " ".join(cell or ())
    return visible(text) or "-"


def _chosen(
    columns: list[list[str]], room: int, spare: Sequence[str]
) -> tuple[list[list[str]], list[str]]:
    """Return the columns that fit, and the heads of those left out that were not empty."""
    empty = [column[0] for column in columns[1:] if set(column[1:]) <= {"-"}]
    left_out: list[str] = []
    for head in (*empty, *spare):
        least = [min(max(map(width_of, column)), NARROWEST) for column in columns[1:]]
        needed = max(map(width_of, columns[0])) + sum(least) + len(GAP) * len(least)
        kept = [column for column in columns if column[0] != head]
        if needed <= room or len(kept) == len(columns):
            continue
        columns = kept
        if head not in empty:
            left_out.append(head)
    return columns, left_out


def _shrunk(widths: list[int], room: int) -> list[int]:
    """Make the widest column narrower, but never the first, until the line fits."""
    first, *others = widths
    while first + sum(others) + len(GAP) * len(others) > room and max(others, default=1) > 1:
        others[others.index(max(others))] -= 1
    return [first, *others]


def print_json(value: Any, *, indent: int = 2) -> None:
    """Print one JSON document, with control characters as escapes; on one line if indent is -1."""
    import msgspec

    try:
        text = msgspec.json.format(msgspec.json.encode(value), indent=indent).decode()
    except msgspec.DecodeError as flaw:
        raise TenureError(
            f"a stored payload or result is not JSON ({flaw}); leave out --json to see its text"
        ) from None
    click.echo(printable_json(text))


def excerpt(text: str) -> str:
    """Indent a text of several lines; on a terminal, cut it to what can be read there."""
    width = room()
    lines = text.splitlines()
    left = 0
    if width < ENDLESS:
        lines = text[:MAX_EXCERPT].splitlines()[:MAX_LINES]
        left = len(text) - sum(len(line) + 1 for line in lines)
    shown = [fitting(NOTE + visible(line), width) for line in lines]
    if left > 0:
        shown.append(f"{NOTE}{CUT} {left:,} more characters: --wide shows all")
    return "\n".join(shown)


def laid_out(document: str) -> str:
    """Return a JSON text on one line if that fits the terminal, else indented."""
    import msgspec

    if fitting(document, room() - len(NOTE)) == document:
        return document
    with suppress(msgspec.DecodeError):  # a row that raw SQL wrote may hold anything
        return msgspec.json.format(document, indent=2)
    return document


def when(time: datetime | None) -> str:
    """Write a time in UTC, to the second."""
    return "-" if time is None else time.strftime("%Y-%m-%d %H:%M:%SZ")


def apart(before: datetime, after: datetime) -> str:
    """Write the time between two times, to the hundredth of a second below ten seconds."""
    seconds = max((after - before).total_seconds(), 0.0)
    return f"{seconds:.3g}s" if 1 <= seconds < 10 else length(seconds)


def attempts(made: int, limit: int) -> str:
    """Write attempts made of those allowed: `1/3`."""
    return f"{made}/{max(limit, 1)}"


def room() -> int:
    """Return the width of the terminal; ENDLESS if everything is printed whole."""
    import shutil

    context = click.get_current_context(silent=True)
    wide = context is not None and context.meta.get(WIDE)
    if wide or not (sys.stdout.isatty() or "COLUMNS" in os.environ):
        return ENDLESS
    return shutil.get_terminal_size().columns


def can_act(stream: TextIO) -> bool:
    """Return True if a stream is a terminal that understands escape sequences."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


@contextmanager
def progress_bar(what: str, *, shown: bool = True, steady: bool = False) -> Iterator[Progress]:
    """Show a progress bar on standard error, if that is a terminal and rich is installed.

    Yields what updates it.

    It disappears at the end. If the work is `steady`, so that all parts take about as long, it also
    estimates the remaining time. The cursor stays visible, so that a killed process leaves the
    terminal intact.
    """
    if not (shown and can_act(sys.stderr) and find_spec("rich")):
        yield no_progress
        return
    from rich import progress as rich
    from rich.console import Console
    from rich.table import Column

    one_line = Column(no_wrap=True, overflow="ellipsis")
    columns = [
        rich.SpinnerColumn(),
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(bar_width=24),
        rich.TextColumn("{task.fields[part]}", style="progress.download"),
        rich.TimeRemainingColumn() if steady else rich.TimeElapsedColumn(),
        rich.TextColumn("{task.fields[doing]}", markup=False, table_column=one_line),
    ]
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.console.show_cursor(show=True)
        task = bar.add_task(what, total=None, part="", doing="")

        def progress(done: int, total: int | None, doing: str) -> None:
            part = f"{done:,}" if total is None else f"{done:,}/{total:,}"
            bar.update(task, completed=done, total=total, part=part, doing=doing)

        yield progress


def tint(text: str, word: str | None = None) -> str:
    """Colour `text` for a terminal by the status that it, or `word`, is."""
    colour = COLOURS.get(text if word is None else word)
    if colour is None or os.environ.get("NO_COLOR") or not can_act(sys.stdout):
        return text
    return click.style(text, fg=colour)


def width_of(text: str) -> int:
    """Return the width of a text without control characters."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def fitting(text: str, width: int) -> str:
    """Cut `text` to `width` columns, with a mark at its end."""
    if 2 * len(text) <= width or width_of(text) <= width:  # no character is wider than two columns
        return text
    taken, used = [], 0
    for character in text:
        used += width_of(character)
        if used >= width:
            break
        taken.append(character)
    return "".join(taken) + CUT
