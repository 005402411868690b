"""Texts that people read in a terminal, on a page or in a log.

Texts from jobs and requests may hold anything. Characters that act on the reader, such as escape
sequences and marks that turn the direction of a line, are written as escapes.
"""

from __future__ import annotations

import re
from datetime import datetime
from itertools import pairwise

_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


UNSTORABLE = "tenure:unstorable"
"""The key in what is stored in place of a result that cannot be stored."""
CUT = "… [{} characters cut] …"
"""In the middle of an error that was shortened, with the number of characters that are missing."""


def visible(text: str, keep: str = "") -> str:
    """Write control and direction characters as escapes, except those in `keep`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def quantity(number: int, one: str) -> str:
    """Write a number with its noun: `1 job`, `3 jobs`."""
    return f"{number:,} {one if number == 1 else one + 's'}"


def worded(action: str, what: str = "") -> str:
    """Say what a bulk action does: `cancel 3 jobs`, `run 3 jobs now`."""
    verb, _, when = action.partition("_")
    return " ".join(word for word in (verb, what, when) if word)


def printable_json(text: str) -> str:
    """Escape such characters in JSON in the way of JSON, so that its value and lines stay."""
    return "\n".join(
        line if line.isprintable() else "".join(map(_json_escape, line))
        for line in text.split("\n")
    )


def _json_escape(character: str) -> str:
    if character.isprintable():
        return character
    units = character.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def shortened(text: str, most: int) -> str:
    """Cut a text after `most` characters, with a mark where it was cut."""
    return text if len(text) <= most else f"{text[:most]}…"


def first_line(error: str | None) -> str:
    """Return the first line of an error, without the module of the exception's class."""
    lines = (error or "").strip().splitlines()
    return re.sub(r"^(?:\w+\.)+(?=\w+(?::|$))", "", lines[0]) if lines else ""


def length(seconds: float) -> str:
    """Write a length of time in the two largest units that matter: `4m 12s`, `2d 3h`, `350ms`."""
    if 0 < seconds < 1:
        return f"{max(round(seconds * 1000), 1)}ms"
    if seconds < 10 and seconds != int(seconds):
        return f"{seconds:.1f}s"
    whole = int(seconds)
    for (unit, size), (smaller, smaller_size) in pairwise(_UNITS):
        if whole >= size:
            count, rest = whole // size, whole % size // smaller_size
            return f"{count}{unit} {rest}{smaller}" if rest else f"{count}{unit}"
    return f"{whole}s"


def ago(time: datetime | None, now: datetime) -> str:
    """Say how long ago a time is, or in how long; `-` for None. `times.js` says the same."""
    if time is None:
        return "-"
    seconds = (now - time).total_seconds()
    spoken = length(int(abs(seconds)))
    return f"{spoken} ago" if seconds > -1 else f"in {spoken}"
