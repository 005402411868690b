"""How numbers, times and foreign texts are written on the pages. Pure.

Texts from jobs may hold anything. Jinja escapes what HTML would read as markup; characters that
would act on the reader instead, such as marks that turn the direction of a line, are written as
escapes here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime

from tenure.jobs.redaction import MARK

SHOWN_CHARACTERS = 4_000
"""Of a payload, a result or an error on the page of a job; the rest is one link away."""

UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


def length(seconds: float) -> str:
    """A length of time in the two largest units that matter: `4m 12s`, `2d 3h`, `350ms`."""
    if 0 < seconds < 1:
        return f"{max(round(seconds * 1000), 1)}ms"
    if seconds < 10 and seconds != int(seconds):
        return f"{seconds:.1f}s"
    whole = int(seconds)
    for number, (unit, size) in enumerate(UNITS):
        if whole >= size:
            rest = whole % size
            if number + 1 < len(UNITS) and rest >= UNITS[number + 1][1]:
                smaller, smaller_size = UNITS[number + 1]
                return f"{whole // size}{unit} {rest // smaller_size}{smaller}"
            return f"{whole // size}{unit}"
    return "0s"


def ago(time: datetime, now: datetime) -> str:
    """How long ago, or in how long; the pages' script says the same as time goes on."""
    seconds = (now - time).total_seconds()
    if abs(seconds) < 1:
        return "just now"
    spoken = length(int(abs(seconds)))
    return f"{spoken} ago" if seconds > 0 else f"in {spoken}"


def exactly(time: datetime) -> str:
    """A time in UTC, to the millisecond."""
    return time.strftime("%Y-%m-%d %H:%M:%S.") + f"{time.microsecond // 1000:03} UTC"


def number(value: float) -> str:
    """A number with its thousands apart."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def count(value: int, one: str, many: str = "") -> str:
    """`1 job`, `3 jobs`."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def rate(per_minute: float) -> str:
    """How often something happens, in the unit that reads best."""
    if per_minute <= 0:
        return "0"
    if per_minute >= 600:
        return f"{per_minute / 60:,.0f}/s"
    if per_minute >= 10:
        return f"{per_minute:,.0f}/min"
    return f"{per_minute:.1f}/min" if per_minute >= 0.95 else f"{per_minute * 60:.0f}/h"


def size(text: str) -> str:
    """How long a text is, in bytes as they are stored."""
    there = len(text.encode())
    for unit, bytes_ in (("MiB", 1024 * 1024), ("KiB", 1024)):
        if there >= bytes_:
            return f"{there / bytes_:.1f} {unit}"
    return f"{there} bytes"


def seen(text: str) -> str:
    """A text with what acts on its reader written as escapes; lines and indents stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def shortened(text: str, most: int = SHOWN_CHARACTERS) -> str:
    """The beginning of a text."""
    return text if len(text) <= most else text[:most] + "…"


def first_line(text: str | None) -> str:
    """The first line of an error, which names it, without the module of its class."""
    lines = (text or "").strip().splitlines()
    return re.sub(r"^(?:\w+\.)+(?=\w+(?::|$))", "", lines[0]) if lines else ""


def pretty(source: str) -> str:
    """JSON text, indented; large ones as they are, for indenting them takes longer than reading."""
    if len(source) > 256 * 1024:
        return source
    return json.dumps(json.loads(source), ensure_ascii=False, indent=2)


def has_hidden(text: str) -> bool:
    """Whether something of it is redacted."""
    return MARK in text


def command(*words: str) -> str:
    """A command line; what a shell would read as more than a word is quoted."""
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    if re.fullmatch(r"[\w@%+=:,./-]+", word):
        return word
    return "'" + word.replace("'", "'\"'\"'") + "'"


def listed(words: Sequence[str], most: int = 3) -> str:
    """`a, b and c`, or `a, b, c and 4 more`."""
    if len(words) > most:
        return ", ".join(words[:most]) + f" and {len(words) - most} more"
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""
