"""What becomes of the ticks of a schedule in each situation, written by hand.

`f1` is a job for the first tick; `o` and `m` are ticks that overlapped or were missed. `2-9` is a
range of them. `w` is a job that waits for the one before, `c` a tick that was caught up.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from tests.support.clock import START

OUTAGES = {"none": (60, 60), "within grace": (60, 120), "short": (60, 630), "long": (3600, 37_800)}
"""How often it is due, and when that is seen, in seconds."""
OPTIONS: dict[str, Any] = {
    "one": {},
    "skip": {"missed": "skip"},
    "all": {"missed": "all", "catch_up": 3},
}

HEAD, *LINES = """
              | allow_all           | skip              | buffer_one          | buffer_all             | cancel_other
none one      | f1                  | f1                | f1                  | f1                     | f1
none skip     | f1                  | f1                | f1                  | f1                     | f1
none all      | f1                  | f1                | f1                  | f1                     | f1
within one    | f1 f2               | f1 o2             | f1 f2w              | f1 f2w                 | o1 f2
within skip   | f1 f2               | f1 o2             | f1 f2w              | f1 f2w                 | o1 f2
within all    | f1 f2               | f1 o2             | f1 f2w              | f1 f2w                 | o1 f2
short one     | m1-9 f10            | m1-9 f10          | m1-9 f10            | m1-9 f10               | m1-9 f10
short skip    | m1-9 f10            | m1-9 f10          | m1-9 f10            | m1-9 f10               | m1-9 f10
short all     | m1-6 f7c f8c f9c f10 | m1-6 f7c o8-9c o10 | m1-6 f7c f8cw o9c o10 | m1-6 f7c f8cw f9cw f10w | m1-6 o7-9c f10
long one      | m1-9 f10c           | m1-9 f10c         | m1-9 f10c           | m1-9 f10c              | m1-9 f10c
long skip     | m1-10               | m1-10             | m1-10               | m1-10                  | m1-10
long all      | m1-7 f8c f9c f10c   | m1-7 f8c o9-10c   | m1-7 f8c f9cw o10c  | m1-7 f8c f9cw f10cw    | m1-7 o8-9c f10c
open: none one    | f1              | o1                | f1w                 | f1w                    | f1
open: within one  | f1 f2           | o1-2              | f1w o2              | f1w f2w                | o1 f2
open: short one   | m1-9 f10        | m1-9 o10          | m1-9 f10w           | m1-9 f10w              | m1-9 f10
open: short all   | m1-6 f7c f8c f9c f10 | m1-6 o7-9c o10 | m1-6 f7cw o8-9c o10 | m1-6 f7cw f8cw f9cw f10w | m1-6 o7-9c f10
open: long skip   | m1-10           | m1-10             | m1-10               | m1-10                  | m1-10
""".strip("\n").splitlines()  # noqa: E501
OVERLAPS = [name.strip() for name in HEAD.split("|")[1:]]
TABLE = [
    (row.strip(), overlap, cell.strip())
    for line in LINES
    for row, *cells in [line.split("|")]
    for overlap, cell in zip(OVERLAPS, cells, strict=True)
]
"""Outage and `missed`, `overlap`, what becomes of the ticks. `open`: the last job is unsettled."""


def situation(row: str) -> tuple[float, float, dict[str, Any], bool]:
    """The interval, the seconds until it is seen, the options and whether the last job is open."""
    outage, missed = row.removeprefix("open: ").split()
    name = next(name for name in OUTAGES if name.startswith(outage))
    return (*OUTAGES[name], OPTIONS[missed], row.startswith("open"))


def shown(decided: Iterable[Any], every: float, waits: Iterable[bool] = ()) -> str:
    """Ticks or fires, oldest first, as in the table."""

    def number(at: datetime) -> str:
        return f"{(at - START).total_seconds() / every:.0f}"

    parts = []
    for tick, waiting in zip(decided, [*waits] or [tick.waits for tick in decided], strict=True):
        until = f"-{number(tick.until)}" if tick.until else ""
        how = {"due": "", "caught_up": "c"}.get(tick.how, "" if tick.outcome == "missed" else "?")
        parts.append(f"{tick.outcome[0]}{number(tick.at)}{until}{how}{'w' if waiting else ''}")
    return " ".join(parts)
