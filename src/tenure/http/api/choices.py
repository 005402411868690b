"""Which values a field of a request can have, for the refusal of another one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from msgspec import inspect


def choices(kind: Any, path: str) -> set[object]:
    """Return the values of the enumeration at a path, such as `.filter.status` or `[0].outcome`."""
    steps = re.findall(r"[^.\[\]]+", path)
    return set(_choices(inspect.type_info(kind), steps))


def _choices(kind: inspect.Type, steps: list[str]) -> Iterator[object]:
    inner: Iterable[inspect.Type] = ()
    match kind:
        case inspect.EnumType():
            yield from (one.value for one in kind.cls)
        case inspect.LiteralType():
            yield from kind.values
        case inspect.UnionType():
            inner = kind.types
        case inspect.Metadata():
            inner = [kind.type]
        case inspect.ListType() if steps:
            inner, steps = [kind.item_type], steps[1:]
        case inspect.StructType() if steps:
            inner = [one.type for one in kind.fields if one.encode_name == steps[0]]
            steps = steps[1:]
    for each in inner:
        yield from _choices(each, steps)
