"""How `tenure top` draws the queues. Every text in it is made visible first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import click
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tenure.cli.terminal import COLOURS, ENDLESS, room
from tenure.rules.stats import used
from tenure.values.text import ago, first_line, visible

BARS = "·▁▂▃▄▅▆▇█"
WITHOUT_TERMINAL = 160
"""Columns of a picture that does not go to a terminal."""
EVENT_OF = {"pending": "enqueued", "processing": "claimed"}
"""The event whose rate is shown below a status, if it has another name."""
MAX_TYPES = 3
Draw = Callable[[dict[str, Any] | None, str], None]


def show(shown: dict[str, Any]) -> None:
    """Print one picture."""
    width = room()
    console = Console(width=WITHOUT_TERMINAL if width == ENDLESS else width)
    with console.capture() as drawn:
        console.print(_drawn(shown, console.width))
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
                kept[0] = _drawn(shown, live.console.width)
            lines = [_styled(trouble, "bold red"), kept[0]] if trouble else [kept[0]]
            live.update(Group(*lines), refresh=True)

        yield draw


def _drawn(shown: dict[str, Any], width: int) -> Group:
    now: datetime = shown["at"]
    late, until = "", shown["measured_until"]
    if until is not None and (now - until).total_seconds() > 10:
        late = f"   rates and failures as of {ago(until, now)}"
    return Group(
        _styled(f"tenure top   {now:%Y-%m-%d %H:%M:%S}Z{late}   q ends", "bold"),
        _statuses(used(shown["by_status"]), shown["last_minute"]),
        _throughput(shown["ended_by_minute"], width),
        Text(),
        _queues(shown["queues"], now),
        Text(),
        _workers(shown["workers"], now),
        Text(),
        _failures(shown["failures"], now),
    )


def _statuses(by_status: dict[str, int], rates: dict[str, int]) -> Table:
    counts = [_styled(f"{jobs:,}", COLOURS[status]) for status, jobs in by_status.items()]
    events = (EVENT_OF.get(status, status) for status in by_status)
    changes = [_styled(f"+{rates.get(event, 0):,}/min", "dim") for event in events]
    return _table((*by_status, ""), [(*counts, ""), (*changes, "")], right=by_status)


def _throughput(ended: Sequence[int], width: int) -> Text:
    """Draw a bar for each minute; the newest ones if there is no room for all."""
    most = max(ended, default=0)
    words = f"  {ended[-1]:,} ended/min, peak {most:,}"
    shown = ended[-max(width - len(words), 1) :]
    bars = "".join(BARS[-(-count * 8 // most) if most else 0] for count in shown)
    return _styled(bars, "green").append(words, style="default")


def _queues(queues: Sequence[dict[str, Any]], now: datetime) -> Table:
    rows = []
    for queue in sorted(queues, key=lambda q: -(q["pending"] + q["processing"])):
        paused = _styled(ago(queue["paused_at"], now), "yellow" if queue["paused_at"] else "")
        due = ago(queue["oldest_due_at"], now)
        numbers = [f"{queue[n]:,}" for n in ("pending", "processing", "ended_last_minute")]
        rows.append((queue["name"], *numbers[:2], due, numbers[2], paused))
    heads = ("QUEUE", "PENDING", "PROCESSING", "OLDEST DUE", "ENDED/MIN", "PAUSED")
    return _table(heads, rows, right=("PENDING", "PROCESSING", "ENDED/MIN"))


def _workers(workers: Sequence[dict[str, Any]], now: datetime) -> Table:
    rows = []
    for worker in workers:
        types = Counter(job["type"] for job in worker["running"]).most_common()
        what = ", ".join(f"{count} {type}" for type, count in types[:MAX_TYPES])
        what += " …" if len(types) > MAX_TYPES else ""
        name, seen = worker["label"] or worker["id"], ago(worker["seen_at"], now)
        rows.append((name, seen, str(worker["leases"]), what))
    return _table(("WORKER", "SEEN", "RUNS", "WHAT"), rows, right=("RUNS",))


def _failures(failures: Sequence[dict[str, Any]], now: datetime) -> Table:
    rows = []
    for group in failures:
        last, error = ago(group["last_seen_at"], now), _styled(first_line(group["error"]), "red")
        rows.append((group["type"], f"{group['attempts']:,}", last, error))
    return _table(("FAILED", "TIMES", "LAST", "ERROR"), rows, right=("TIMES",))


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str | Text]], right: Container[str]
) -> Table:
    """Make a table whose last column takes the room that the others leave."""
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", expand=True)
    for head in heads:
        justify: JustifyMethod = "right" if head in right else "left"
        drawn.add_column(head, justify=justify, no_wrap=True, overflow="ellipsis")
    drawn.columns[-1].ratio = 1
    for row in rows:
        drawn.add_row(*(_styled(cell) if isinstance(cell, str) else cell for cell in row))
    return drawn


def _styled(text: str, style: str = "") -> Text:
    """Make a text without markup, in which no character can act on the terminal."""
    return Text(visible(text), style=style, no_wrap=True, overflow="ellipsis")
