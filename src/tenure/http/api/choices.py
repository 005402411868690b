"""What a refusal says of the value of a field: which other ones the field can have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from msgspec import inspect

A_TIME = "not a time; write it with its zone, such as 2026-11-24T15:42:00Z, in an address %2B for +"


def advice(message: str, kind: Any, path: str) -> str:
    """Return what msgspec says of the value at a path of `kind`, as callers understand it.

    A refusal repeats no value.
    """
    if message.startswith("Invalid enum value"):
        return f"give one of {', '.join(sorted(map(str, choices(kind, path))))}"
    if "datetime" in message:
        return A_TIME
    if "matching regex" in message and path.endswith("cursor"):
        return "not a cursor; send the address in the `Link` of the page before"
    if message.startswith("Expected"):
        return _quoted.sub(lambda found: _word.sub(_in_json, found[0]), message)
    return message


_quoted, _word = re.compile("`[^`]*`"), re.compile(r"\w+")
_TYPES = {"int": "integer", "float": "number", "str": "string", "bool": "boolean"}


def _in_json(word: re.Match[str]) -> str:
    return _TYPES.get(word[0], word[0])


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
