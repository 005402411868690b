"""Whole numbers within bounds, and sizes in bytes as people write them."""

from __future__ import annotations

import re
from typing import Any

from tenure.errors import InvalidInput

_UNITS = {"": 1, "k": 10**3, "Ki": 2**10, "M": 10**6, "Mi": 2**20, "G": 10**9, "Gi": 2**30}
_size = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?(k|Ki|M|Mi|G|Gi|)B")


def size_in_bytes(value: Any, path: str) -> int:
    """Return a size as a number of bytes; raises InvalidInput for another text, or above 1 PiB."""
    if isinstance(value, str):
        if (found := _size.fullmatch(value.strip())) is None:
            raise InvalidInput("write a size as a number of bytes, 500MB or 512MiB", path=path)
        value = int(float(found[1]) * _UNITS[found[2]])
    return whole(value, 1, 2**50, path)


def whole(value: Any, low: int, high: int, path: str) -> int:
    """`value` if it is a whole number from `low` to `high`; raises InvalidInput at `path`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidInput(f"give a whole number from {low} to {high}", path=path)
    return value
