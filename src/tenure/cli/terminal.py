"""How answers look in a terminal: aligned tables that fit, short times, and nothing that can act.

Types, errors and payloads come from whoever enqueues jobs, so every text from a job passes
`visible`: control characters, escape sequences and direction marks are shown, never sent.
"""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any

import click
import msgspec

from tenure.cli.command import WIDE
from tenure.jobs import durations
from tenure.jobs.progress import Progress, no_progress
from tenure.jobs.text import length, printable_json, visible

GAP = "  "
CUT = "…"
NOTE = "    "
ENDLESS = 1_000_000
MAX_LINES = 40
MAX_EXCERPT = 10_000
NARROWEST = 10
"""Columns of the terminal that a text is given before a column of the table is left out."""
COLOURS = {
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

Cell = str | int | None


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    spare: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> None:
    """Print rows under their heads; numbers to the right, statuses coloured, no row wrapped.

    Where they do not fit the terminal, empty columns and then those named in `spare` are left out,
    then long texts are cut, with a mark. The first column is never cut: it holds what a user
    copies. With --wide, or on the way to a file or another program, everything is printed. `notes`
    are printed below their row, where they are not empty.
    """
    columns = [[head, *(_text(row[number]) for row in rows)] for number, head in enumerate(heads)]
    numeric = {
        head
        for number, head in enumerate(heads)
        if rows and all(isinstance(row[number], int) for row in rows)
    }
    columns, left_out = _chosen(columns, room(), spare)
    widths = [max(map(width_of, column)) for column in columns]
    _shrink(widths, room())
    for number, row in enumerate(zip(*columns, strict=True)):
        cells = []
        for text, width, column in zip(row, widths, columns, strict=True):
            cell = _fit(text, width, column[0] in numeric)
            cells.append(tint(cell, text) if number and column[0] in TINTED else cell)
        click.echo(GAP.join(cells).rstrip())
        if number and notes and notes[number - 1]:
            click.echo(fitting(NOTE + visible(notes[number - 1]), room()))
    if left_out:
        click.echo(f"(no room for {', '.join(left_out)}: --wide shows all)", err=True)


def print_json(value: Any) -> None:
    """Print one JSON document, indented; characters that could act are written as escapes."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    for line in text.split("\n"):
        click.echo(printable_json(line))


def print_json_line(value: Any) -> None:
    """Print one JSON document on one line."""
    line = msgspec.json.encode(value).decode()
    click.echo(printable_json(line))


def indented(text: str, by: str = NOTE) -> str:
    """A text of several lines, such as a traceback, each line made visible and indented."""
    return "\n".join(by + visible(line) for line in text.splitlines())


def excerpt(text: str) -> str:
    """A text of several lines, indented; on a terminal no more of it than can be looked over."""
    width = room()
    if width is None:
        return indented(text)
    lines = text[:MAX_EXCERPT].splitlines()[:MAX_LINES]
    shown = [fitting(line, width) for line in indented("\n".join(lines)).split("\n")]
    left = len(text) - sum(len(line) + 1 for line in lines)
    if left > 0:
        shown.append(f"{NOTE}{CUT} {left:,} more characters: --wide shows all")
    return "\n".join(shown)


def laid_out(document: str) -> str:
    """A JSON text on one line if the terminal has room for it, else with its structure shown."""
    width = room()
    if width is None or len(NOTE) + width_of(document) <= width:
        return document
    return msgspec.json.format(document, indent=2)


def wrapped(text: str) -> str:
    """A sentence or more, broken between words where the terminal ends."""
    return click.wrap_text(visible(text), width=room() or ENDLESS)


def when(time: datetime | None) -> str:
    """A time, in UTC, to the second."""
    return "-" if time is None else time.strftime("%Y-%m-%d %H:%M:%SZ")


def apart(before: datetime, after: datetime) -> str:
    """How long one time is after another: to the hundredth of a second below ten seconds."""
    seconds = max((after - before).total_seconds(), 0.0)
    if seconds < 10:
        return durations.text(round(seconds, 2 if seconds >= 0.1 else 3))
    return length(seconds)


def attempts(made: int, limit: int) -> str:
    """Attempts made of those allowed: `1/3`."""
    return f"{made}/{max(limit, 1)}"


def _text(cell: Cell) -> str:
    return "-" if cell is None or cell == "" else visible(str(cell))


def room() -> int | None:
    """Columns there are; None where nothing needs to fit."""
    context = click.get_current_context(silent=True)
    if context is not None and context.meta.get(WIDE):
        return None
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return shutil.get_terminal_size().columns
    return None


def is_plain() -> bool:
    """Whether colours are not wanted (https://no-color.org) or the terminal can do none."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM", "dumb") == "dumb"


@contextmanager
def progress_bar(what: str, *, shown: bool = True, steady: bool = False) -> Iterator[Progress]:
    """Show beside the answer what is being done and how far it has come; tell it by what is given.

    Only on a terminal, on standard error, and gone at the end. Where the work is `steady`, each
    part takes about as long as another, it also says when it will be done. The cursor stays
    visible: whoever is killed meanwhile leaves the terminal as it was.
    """
    if not shown or os.environ.get("TERM", "dumb") == "dumb" or not sys.stderr.isatty():
        yield no_progress
        return
    from rich import progress as rich
    from rich.console import Console
    from rich.table import Column

    columns = [
        rich.SpinnerColumn(),
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(bar_width=24),
        rich.TextColumn("{task.fields[part]}", style="progress.download"),
        rich.TimeRemainingColumn() if steady else rich.TimeElapsedColumn(),
        rich.TextColumn(
            "{task.fields[doing]}",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis"),
        ),
    ]
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.console.show_cursor(show=True)
        task = bar.add_task(what, total=None, part="", doing="")

        def progress(done: int, total: int | None, doing: str) -> None:
            part = f"{done:,}" if total is None else f"{done:,}/{total:,}"
            bar.update(task, completed=done, total=total, part=part, doing=doing)

        yield progress


@contextmanager
def later_progress(what: str) -> Iterator[Progress]:
    """The same, shown from the first time on that it is told something."""
    with ExitStack() as begun:
        shown: list[Progress] = []

        def progress(done: int, total: int | None, doing: str) -> None:
            if not shown:
                shown.append(begun.enter_context(progress_bar(what)))
            shown[0](done, total, doing)

        yield progress


def tint(text: str, word: str | None = None) -> str:
    """`text` in the colour of a status (`word`, if it is not the text itself), on a terminal."""
    colour = COLOURS.get(text if word is None else word)
    if colour is None or is_plain() or not sys.stdout.isatty():
        return text
    return click.style(text, fg=colour)


def _chosen(
    columns: list[list[str]], room: int | None, spare: Sequence[str]
) -> tuple[list[list[str]], list[str]]:
    """The columns that there is room for, and the heads of those left out that held something."""
    left_out: list[str] = []
    if room is None:
        return columns, left_out
    empty = [column[0] for column in columns[1:] if set(column[1:]) <= {"-"}]
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


def _shrink(widths: list[int], room: int | None) -> None:
    """Take from the widest column, the first excepted, until the line fits."""
    if room is None or len(widths) < 2:
        return
    while sum(widths) + len(GAP) * (len(widths) - 1) > room:
        widest = max(range(1, len(widths)), key=lambda number: widths[number])
        if widths[widest] <= 1:
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


def fitting(text: str, width: int | None) -> str:
    """`text` as it is, or cut to `width` columns with a mark at its end."""
    if width is None or width_of(text) <= width:
        return text
    taken, used = [], 0
    for character in text:
        used += width_of(character)
        if used >= width:
            break
        taken.append(character)
    return "".join(taken) + CUT


def _fit(text: str, width: int, right: bool) -> str:
    text = fitting(text, width)
    padding = " " * (width - width_of(text))
    return padding + text if right else text + padding
