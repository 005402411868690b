"""How `tenure top` draws the queues. Every text in it is made visible first."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tenure.cli.terminal import COLOURS, ENDLESS, room
from tenure.jobs.text import ago, first_line, visible

BARS = "·▁▂▃▄▅▆▇█"
WITHOUT_TERMINAL = 160
"""Columns of a picture that does not go to a terminal."""
EVENT_OF = {"pending": "enqueued", "processing": "claimed"}
"""The event whose rate is shown below a status, if it has another name."""
MAX_TYPES = 3
Draw = Callable[[dict[str, Any] | None, str], None]


def can_be_redrawn() -> bool:
    """Return True if the output is a terminal whose screen can be redrawn."""
    return sys.stdout.isatty() and not Console().is_dumb_terminal


def show(shown: dict[str, Any]) -> None:
    """Print one picture."""
    width = room()
    console = Console(width=WITHOUT_TERMINAL if width == ENDLESS else width)
    with console.capture() as drawn:
        console.print(_drawn(shown))
    for line in drawn.get().splitlines():
        click.echo(line.rstrip())


@contextmanager
def screen() -> Iterator[Draw]:
    """Use the terminal's alternate screen, and yield the function that draws on it.

    With None instead of a picture it keeps the one before, under a line that says what is wrong.
    """
    kept: list[RenderableType] = [""]
    with Live(console=Console(), screen=True, auto_refresh=False) as live:

        def draw(shown: dict[str, Any] | None, trouble: str) -> None:
            if shown is not None:
                kept[0] = _drawn(shown)
            lines = [_text(trouble, "bold red"), kept[0]] if trouble else [kept[0]]
            live.update(Group(*lines), refresh=True)

        yield draw


def _drawn(shown: dict[str, Any]) -> Group:
    now: datetime = shown["at"]
    return Group(
        _head(shown, now),
        _statuses(shown),
        _Throughput(shown["ended_by_minute"]),
        Text(),
        _queues(shown["queues"], now),
        Text(),
        _workers(shown["workers"], now),
        Text(),
        _failures(shown["failures"], now),
    )


def _head(shown: dict[str, Any], now: datetime) -> Text:
    late = ""
    until = shown["measured_until"]
    if until is not None and (now - until).total_seconds() > 10:
        late = f"   rates and failures as of {ago(until, now)}"
    return _text(f"tenure top   {now:%Y-%m-%d %H:%M:%S}Z{late}   q ends", "bold")


def _statuses(shown: dict[str, Any]) -> Table:
    drawn = _table(*((status, "right") for status in shown["by_status"]), ("", "left"))
    drawn.add_row(*(_text(f"{jobs:,}", COLOURS[s]) for s, jobs in shown["by_status"].items()))
    rates = shown["last_minute"]
    moved = (rates.get(EVENT_OF.get(status, status), 0) for status in shown["by_status"])
    drawn.add_row(*(_text(f"+{count:,}/min", "dim") for count in moved))
    return drawn


@dataclass(frozen=True)
class _Throughput:
    """A bar for each minute; the newest ones if there is no room for all."""

    ended: Sequence[int]

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        most = max(self.ended, default=0)
        words = f"  {self.ended[-1]:,} ended/min, peak {most:,}"
        shown = self.ended[-max(options.max_width - len(words), 1) :]
        bars = "".join(BARS[-(-count * 8 // most) if most else 0] for count in shown)
        yield _text(bars, "green").append(words, style="default")


def _queues(queues: Sequence[dict[str, Any]], now: datetime) -> Table:
    drawn = _table(
        *(("QUEUE", "left"), ("PENDING", "right"), ("PROCESSING", "right")),
        *(("OLDEST DUE", "left"), ("ENDED/MIN", "right"), ("PAUSED", "left")),
    )
    for queue in sorted(queues, key=lambda q: -(q["pending"] + q["processing"])):
        numbers = [f"{queue[n]:,}" for n in ("pending", "processing", "ended_last_minute")]
        paused = _text(ago(queue["paused_at"], now), "yellow" if queue["paused_at"] else "")
        due = ago(queue["oldest_due_at"], now)
        drawn.add_row(_text(queue["name"]), *numbers[:2], due, numbers[2], paused)
    return drawn


def _workers(workers: Sequence[dict[str, Any]], now: datetime) -> Table:
    drawn = _table(("WORKER", "left"), ("SEEN", "left"), ("RUNS", "right"), ("WHAT", "left"))
    for worker in workers:
        types = Counter(job["type"] for job in worker["running"]).most_common()
        what = ", ".join(f"{count} {type}" for type, count in types[:MAX_TYPES])
        what += " …" if len(types) > MAX_TYPES else ""
        name, seen = _text(worker["label"] or worker["id"]), ago(worker["seen_at"], now)
        drawn.add_row(name, seen, str(worker["leases"]), _text(what))
    return drawn


def _failures(failures: Sequence[dict[str, Any]], now: datetime) -> Table:
    drawn = _table(("FAILED", "left"), ("TIMES", "right"), ("LAST", "left"), ("ERROR", "left"))
    for group in failures:
        last, error = ago(group["last_seen_at"], now), _text(first_line(group["error"]), "red")
        drawn.add_row(_text(group["type"]), f"{group['attempts']:,}", last, error)
    return drawn


def _table(*columns: tuple[str, Any]) -> Table:
    """Make a table whose last column takes the room that the others leave."""
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", expand=True)
    for number, (head, justify) in enumerate(columns, 1):
        ratio = 1 if number == len(columns) else None
        drawn.add_column(head, justify=justify, no_wrap=True, overflow="ellipsis", ratio=ratio)
    return drawn


def _text(text: str, style: str = "") -> Text:
    """Make a text without markup, in which no character can act on the terminal."""
    return Text(visible(text), style=style, no_wrap=True, overflow="ellipsis")
