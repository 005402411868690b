"""Which errors are alike: what varies from one to the next is left out. Pure."""

from __future__ import annotations

import re
from functools import lru_cache

MAX_KIND = 200
VARIES = "…"

_varying = re.compile(
    r"""
    '[^']*' | "[^"]*"                                   # what is quoted
    | \d{4}-\d\d-\d\d(?:[T\ ][\d:.]+(?:Z|[+-]\d\d:?\d\d)?)?  # a date, with a time or without
    | \b0x[0-9a-fA-F]+\b
    | \b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b
    | \b(?=[a-fA-F]*\d)[0-9a-fA-F]{8,}\b                # an address, a digest, part of an id
    | \d+(?:[.,:]\d+)*                                  # a number, a duration, an IP address
    """,
    re.VERBOSE,
)


@lru_cache(1_000)
def kind_of(error: str) -> str:
    """The first line of an error with everything that varies replaced by `VARIES`."""
    line = error.partition("\n")[0].strip()
    return _varying.sub(VARIES, line)[:MAX_KIND]
