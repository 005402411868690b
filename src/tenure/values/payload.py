"""What a payload may contain, checked once for both stores.

A payload is accepted only if Python, SQLite, PostgreSQL and JSON all keep it unchanged. Everything
else is refused with InvalidInput, which says what, where and what to do instead. It never repeats a
value, because values may be secrets. Results of handlers are never refused: see
`handlers.results`.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import os
import re
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from functools import cache
from itertools import accumulate
from math import isfinite
from typing import Any

import msgspec

from tenure.errors import InvalidInput, PayloadTooLarge

MAX_PAYLOAD_BYTES = 1024 * 1024
"""Largest payload as compact JSON in UTF-8."""

MAX_DEPTH = 100
"""Most objects and arrays inside one another, with the outermost."""

MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1


class JsonText(str):
    """The text of a payload or result that was checked. It takes less memory than the values."""


def parse(
    data: bytes,
    *,
    limit: int = MAX_PAYLOAD_BYTES,
    max_depth: int = MAX_DEPTH,
    lenient: bool = False,
) -> object:
    """Read JSON text from outside: RFC 8259, in UTF-8, by the rules of `check`.

    A body that carries payloads is longer and deeper than they are: raise `limit` (bytes) and
    `max_depth` by what surrounds them. With `lenient`, strings and integers that no store keeps are
    let through, as reports need: `results.result_text` makes them storable.

    Raises PayloadTooLarge for more than `limit` bytes, which are not read. Raises InvalidInput for
    another encoding or a byte order mark, malformed JSON, a key given twice in one object, and
    nesting deeper than `max_depth`.
    """
    if len(data) > limit:
        raise too_large(f"{len(data)} bytes of JSON", limit, "$")
    if not lenient and (b"\0" in data or data.startswith(_BYTE_ORDER_MARKS)):
        raise InvalidInput("not plain UTF-8; send UTF-8 without byte order mark or NUL", path="$")
    if not lenient and may_nest_deeper(data, max_depth):
        raise InvalidInput(f"nested more than {max_depth} levels deep; flatten it", path="$")
    try:
        text = data.decode()
        if lenient:
            return decoder(lenient=True).decode(text)
        value = decoder(lenient=False).decode(text)
    except UnicodeDecodeError as flaw:
        raise InvalidInput(f"not UTF-8 at byte {flaw.start}; send UTF-8", path="$") from None
    except RecursionError:
        raise InvalidInput("nested too deep; flatten it", path="$") from None
    except json.JSONDecodeError as flaw:
        where = f"line {flaw.lineno}, column {flaw.colno}"
        raise InvalidInput(f"not valid JSON at {where}: {flaw.msg}", path="$") from None
    walk(value, "$", limit, max_depth)
    return value


def check(value: object, *, path: str = "$") -> None:
    """Raise InvalidInput unless `value` is plain JSON that every store keeps unchanged.

    Allowed are dict with str keys, list, str, int within 64 bits, finite float, bool and None, and
    no subclasses of these: what is read back must be equal and of the same types. Paths in errors
    begin with `path`.
    """
    walk(value, path, MAX_PAYLOAD_BYTES, MAX_DEPTH)


def canonical(payload: object, *, path: str = "$.payload") -> str:
    """Return a checked payload as the text to store: compact JSON, keys in their given order.

    Raises InvalidInput if `payload` is not a dict or breaks a rule of `check`, and PayloadTooLarge
    for more than `MAX_PAYLOAD_BYTES`.
    """
    if type(payload) is JsonText:
        return payload
    if type(payload) is not dict:
        kind = type(payload).__name__
        said = f"a value of type {kind}; a payload is a JSON object (a dict)"
        raise InvalidInput(said, path=path)
    if (quick := _text_if_flat(payload)) is not None:
        return quick
    walk(payload, path, MAX_PAYLOAD_BYTES, MAX_DEPTH)
    text = msgspec.json.encode(payload)  # after the walk, because it writes NaN as null
    if len(text) > MAX_PAYLOAD_BYTES:
        raise too_large(f"{len(text)} bytes as JSON", MAX_PAYLOAD_BYTES, path)
    return text.decode()


def _text_if_flat(payload: dict[Any, Any]) -> str | None:
    """Return what `canonical` returns, in half the time, for an object of plain values only.

    Return None for any other object, and for one that may break a rule: `walk` knows which one.
    """
    budget = MAX_PAYLOAD_BYTES
    for name, item in payload.items():
        kind = type(item)
        if kind is str:
            budget -= len(item)
        elif kind is int:
            if not MIN_INTEGER <= item <= MAX_INTEGER:
                return None
        elif kind is float:
            if not isfinite(item):
                return None
        elif kind is not bool and item is not None:
            return None
        if type(name) is not str:
            return None
    if budget < 0:
        return None
    try:
        text = msgspec.json.encode(payload)
    except UnicodeEncodeError:
        return None
    may_hold_nul = _BACKSLASH in text and b"\\u0000" in text
    return None if may_hold_nul or len(text) > MAX_PAYLOAD_BYTES else text.decode()


def load(text: str) -> dict[str, object]:
    """Read what `canonical` wrote. Raises InvalidInput if it was damaged in the store."""
    try:
        return _load_object(text)
    except (msgspec.DecodeError, ValueError, RecursionError) as flaw:
        raise InvalidInput(f"the stored payload is damaged: {flaw}", path="$.payload") from None


def damage(text: str) -> str:
    """Return what is wrong with a stored payload that other JSON is to embed; "" if nothing is.

    Its values are not decoded. JSON that is nested too deep is damaged, too: the reader of what
    embeds it would refuse all of that.
    """
    try:
        data = text.encode()
        if may_nest_deeper(data, MAX_DEPTH):
            return f"the stored payload is nested more than {MAX_DEPTH} levels deep"
        _skim_object(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as flaw:
        return f"the stored payload is damaged: {flaw}"
    return ""


Parts = Callable[[Any], Collection[Any]]
"""Returns the values inside a value that is not plain JSON."""


def walk(root: object, path: str, budget: int, max_depth: int, parts: Parts | None = None) -> None:
    """Visit every value under `root` in document order; refuse the first that breaks a rule.

    Each value and each character of text costs one of `budget`. JSON is never shorter than that, so
    a root that costs more is over `budget` bytes. The walk also ends where few objects, shared
    among themselves, would make an endless text. With `parts`, only size and depth are checked, and
    values of any type are entered.
    """
    try:
        left = _Walk(max_depth, parts).through((("", root),), budget, 0)
    except _Flaw as flaw:
        raise InvalidInput(str(flaw), path=path + _steps(flaw.way[-2::-1])) from None
    if left < 0:
        raise too_large(f"at least {budget - left} bytes as JSON", budget, path)


class _Flaw(Exception):
    """A broken rule. `way` has the keys to it, the last one first."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.way: list[Any] = []


class _Walk:
    """One walk. Returns what is left of the budget, below 0 once it is spent."""

    def __init__(self, max_depth: int, parts: Parts | None) -> None:
        self._max_depth = max_depth
        self._parts = parts

    def through(self, items: Iterable[tuple[Any, Any]], budget: int, depth: int) -> int:
        key: Any = None
        problem = ""
        try:
            for key, item in items:  # noqa: B007 - the handler below reads it
                kind = type(item)
                if kind is str:
                    budget -= len(item)
                    if "\0" in item or not (item.isascii() or _is_unicode(item)):
                        problem = _flaw_of(item)
                elif kind is int:
                    if not MIN_INTEGER <= item <= MAX_INTEGER:
                        problem = "an integer beyond 64 bits; pass it as a string"
                elif kind is dict or kind is list:
                    budget = self._into(item, budget, depth)
                    if budget < 0:
                        return budget
                elif kind is float:
                    if not isfinite(item):
                        problem = "NaN or infinity, which JSON does not have; pass null or a string"
                elif kind is not bool and item is not None:
                    if self._parts is None:
                        problem = _misfit(item)
                    else:
                        budget = self._into(self._parts(item), budget, depth)
                        if budget < 0:
                            return budget
                if problem and self._parts is None:
                    raise _Flaw(problem)
        except _Flaw as flaw:
            flaw.way.append(key)
            raise
        return budget

    def _into(self, inner: Any, budget: int, depth: int) -> int:
        if depth >= self._max_depth and (inner or self._parts is None):
            problem = f"nested more than {self._max_depth} levels deep, or in itself; flatten it"
            raise _Flaw(problem)
        budget -= len(inner)
        if budget < 0:
            return budget
        if type(inner) is not dict:
            return self.through(enumerate(inner), budget, depth + 1)
        if self._parts is None:
            budget -= _length_of_keys(inner)
        return self.through(inner.items(), budget, depth + 1)


def _length_of_keys(keys: dict[Any, Any]) -> int:
    length = 0
    for name in keys:
        if type(name) is not str:
            kind = type(name).__name__
            raise _Flaw(f"a key of type {kind}; keys are strings, convert it with str()")
        if "\0" in name or not (name.isascii() or _is_unicode(name)):
            raise _Flaw(f"in a key, {_flaw_of(name)}")
        length += len(name)
    return length


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _flaw_of(text: str) -> str:
    if "\0" in text:
        return "a NUL character (U+0000), which databases refuse; remove it, or pass base64"
    return "half of a surrogate pair, which is not Unicode text; remove it, or pass base64"


_ADVICE: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (enum.Enum, "pass value.value, and annotate the handler's parameter with the enum"),
    ((datetime.date, datetime.time), "pass value.isoformat(), and annotate the parameter with it"),
    (datetime.timedelta, "pass value.total_seconds()"),
    ((decimal.Decimal, uuid.UUID), "pass str(value), and annotate the parameter with it"),
    ((bytes, bytearray, memoryview), "pass base64.b64encode(value).decode()"),
    ((tuple, list), "pass list(value)"),
    ((set, frozenset), "pass sorted(value)"),
    (dict, "pass dict(value)"),
    (msgspec.Struct, "pass msgspec.to_builtins(value), and annotate the parameter with it"),
    (str, 'pass value + "", which is a plain str'),
    (os.PathLike, "pass str(value)"),
    (int, "pass int(value)"),
    (float, "pass float(value)"),
)


def _misfit(value: object) -> str:
    """Say why a value that is not plain JSON is refused, and what to pass instead."""
    if type(value) is _GivenTwice:
        return f"the key {_quoted(value.name)} is given twice in this object; remove one"
    kind = type(value)
    advice = "use only dict, list, str, int, float, bool and None"
    for kinds, hint in _ADVICE:
        if issubclass(kind, kinds):
            advice = hint
            break
    else:
        if dataclasses.is_dataclass(kind):
            advice = "pass dataclasses.asdict(value), and annotate the parameter with it"
        elif hasattr(kind, "tolist"):  # arrays and scalars of NumPy and its kin
            advice = "pass value.tolist()"
    return f"a value of type {kind.__name__}; {advice}"


def _steps(keys: list[Any]) -> str:
    """Write the way from the root to a value: `.to[3]['odd key']`; cut the middle of long ones."""
    steps = "".join(
        f"[{key}]" if type(key) is int else f".{key}" if _is_word(key) else f"[{_quoted(key)}]"
        for key in keys
    )
    return steps if len(steps) <= 240 else f"{steps[:120]}…{steps[-120:]}"


def _quoted(text: str) -> str:
    return ascii(text) if len(text) <= 40 else ascii(text[:40]) + "…"


def too_large(what: str, limit: int, path: str) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"{what}; the limit is {limit} bytes; keep large data elsewhere and pass its address",
        path=path,
    )


def may_nest_deeper(data: bytes, max_depth: int) -> bool:
    """Return whether reading `data` as JSON would enter more than `max_depth` levels.

    Exact for valid JSON, and never too low. Called before the reader, which recurses.
    """
    if data.count(b"[") + data.count(b"{") <= max_depth:
        return False
    unescaped = data.replace(rb"\\", b"").replace(rb"\"", b"")
    brackets = b"".join(unescaped.split(b'"')[::2]).translate(None, _NO_BRACKETS)
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > max_depth


def decoder(*, lenient: bool) -> json.JSONDecoder:
    """Return what reads JSON text for `parse`, without its other checks."""
    return _LENIENT if lenient else _STRICT


class _GivenTwice:
    """An object with a key given twice. The walk reports it with its path."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        [(self.name, _)] = Counter(name for name, _ in pairs).most_common(1)


def _object(pairs: list[tuple[str, Any]]) -> object:
    made = dict(pairs)
    return made if len(made) == len(pairs) else _GivenTwice(pairs)


def _distinct(pairs: list[tuple[str, Any]]) -> object:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise InvalidInput("a key is given twice in one object; remove one", path="$")
    return made


def _no_constant(name: str) -> object:
    raise InvalidInput(f"{name} is not JSON; send null or a string", path="$")


def _integer(digits: str) -> int:
    """Read an integer. Longer ones are out of range, and reading them takes quadratic time."""
    return int(digits) if len(digits) <= len(str(MIN_INTEGER)) else MAX_INTEGER + 1


_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)
_LENIENT = json.JSONDecoder(
    object_pairs_hook=_distinct, parse_int=_integer, parse_constant=_no_constant
)
_skim_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_load_object = msgspec.json.Decoder(dict[str, Any]).decode
_BACKSLASH = ord("\\")
_STEPS = {ord(bracket): step for bracket, step in zip("[{]}", (1, 1, -1, -1), strict=True)}
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_is_word = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}").fullmatch

# --- types ----------------------------------------------------------------------------------------

_learning = threading.Lock()


def learn(kind: Any) -> None:
    """Prepare a type that values will be read as. Call it first where threads read.

    msgspec 0.22 learns a type from its first value, lets other threads in meanwhile, and crashes if
    two threads do so at once.
    """
    with suppress(TypeError):  # it has no JSON form, as who reads it will say, or no hash
        _learn(kind)


@cache
def _learn(kind: Any) -> None:
    with _learning:
        msgspec.json.Decoder(kind)
