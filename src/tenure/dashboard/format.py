"""Numbers, times and lists as the pages write them. Texts of jobs: see `values/text.py`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

SHOWN_CHARACTERS = 4_000
"""Shown of a payload, result or error on the page of a job. A link leads to all of it."""
KEPT = "\n\t\u200c\u200d"
"""Characters of texts that pages do not escape: with the last two, letters and emoji are joined."""


def exactly(time: datetime) -> str:
    """Write a time in UTC, to the millisecond."""
    time = time.astimezone(UTC)
    return time.strftime("%Y-%m-%d %H:%M:%S.") + f"{time.microsecond // 1000:03} UTC"


def rate(per_minute: float) -> str:
    """Write a rate in the unit that reads best."""
    if per_minute <= 0:
        return "0"
    if per_minute >= 600:
        return f"{per_minute / 60:,.0f}/s"
    if per_minute >= 10:
        return f"{per_minute:,.0f}/min"
    return f"{per_minute:.1f}/min" if per_minute >= 0.95 else f"{per_minute * 60:.0f}/h"


def size(text: str) -> str:
    """Write the size of a text in UTF-8."""
    stored = len(text.encode())
    for unit, bytes_ in (("MiB", 1024 * 1024), ("KiB", 1024)):
        if stored >= bytes_:
            return f"{stored / bytes_:.1f} {unit}"
    return f"{stored} bytes"


def pretty(source: str) -> str:
    """Indent JSON text. A large text stays unchanged, because indenting it takes too long."""
    if len(source) > 256 * 1024:
        return source
    return json.dumps(json.loads(source), ensure_ascii=False, indent=2)


def listed(words: Sequence[str], most: int = 3) -> str:
    """Write a list: `a, b and c`, or `a, b, c and 4 more`."""
    if len(words) > most:
        return ", ".join(words[:most]) + f" and {len(words) - most} more"
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""
