"""What may be stored: payloads and names, checked once above both stores.

The one rule: a payload is accepted only if Python, SQLite, PostgreSQL and JSON all keep it exactly
as it is. Everything else is refused with InvalidInput, which says what, where and what to do
instead, and never repeats a value, for values may be secrets. What handlers produce is another
matter: see produced.py.

Pure: values in, values out. Limits come first, then reading and checking, then names.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import functools
import json
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from math import isfinite
from typing import Any

import msgspec

from tenure.errors import InvalidInput, PayloadTooLarge

MAX_PAYLOAD_BYTES = 1024 * 1024
"""Of a payload as compact JSON in UTF-8."""

MAX_DEPTH = 100
"""Objects and arrays inside one another, the outermost counted."""

MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1

MAX_NAME_LENGTH = 128
MAX_KEY_LENGTH = 255
MAX_LABEL_LENGTH = 255

NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_:-]*(\.[A-Za-z0-9_:-]+)*$"
"""Of job types and queues, as JSON Schema wants it. They stand in addresses, file names and metric
labels, so there is no slash and no space, and a dot stands only between other characters."""

KEY_PATTERN = "^[!-~]+$"
"""Of idempotency keys: visible ASCII."""


# --- reading and checking --------------------------------------------------------------------


def parse(data: bytes, *, limit: int = MAX_PAYLOAD_BYTES, max_depth: int = MAX_DEPTH) -> object:
    """The value of a JSON text from outside: RFC 8259, in UTF-8, held to the rules of `check`.

    Refuses more than `limit` bytes unread (PayloadTooLarge). Raises InvalidInput for another
    encoding or a byte order mark, malformed JSON, a key given twice in one object, and nesting
    deeper than `max_depth`. A body that carries payloads is longer and deeper than they are: raise
    both limits by what surrounds them.
    """
    if len(data) > limit:
        raise too_large(f"{len(data)} bytes of JSON", limit, "$")
    if b"\0" in data or data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise InvalidInput("not plain UTF-8; send UTF-8 without byte order mark or NUL", path="$")
    if _may_nest_deeper(data, max_depth):
        raise InvalidInput(f"nested more than {max_depth} levels deep; flatten it", path="$")
    try:
        value = _read_json(data.decode())
    except UnicodeDecodeError as flaw:
        raise InvalidInput(f"not UTF-8 at byte {flaw.start}; send UTF-8", path="$") from None
    except json.JSONDecodeError as flaw:
        where = f"line {flaw.lineno}, column {flaw.colno}"
        raise InvalidInput(f"not valid JSON at {where}: {flaw.msg}", path="$") from None
    walk(value, "$", limit, max_depth)
    return value


def check(value: object, *, path: str = "$") -> None:
    """Raise InvalidInput unless `value` is plain JSON that every store keeps exactly as it is.

    Allowed are dict with str keys, list, str, int within 64 bits, finite float, bool and None, and
    no subclasses of these: what is read back must be equal and of the same types. `path` is where
    `value` stands, and begins the path in the error.
    """
    walk(value, path, MAX_PAYLOAD_BYTES, MAX_DEPTH)


def canonical(payload: object, *, path: str = "$.payload") -> str:
    """A checked payload as the text that is stored: compact JSON, keys in their given order.

    Raises InvalidInput if `payload` is not a dict or breaks a rule of `check`, and PayloadTooLarge
    for more than `MAX_PAYLOAD_BYTES`.
    """
    if type(payload) is dict and (quick := _text_if_flat(payload)) is not None:
        return quick
    if type(payload) is not dict:
        kind = type(payload).__name__
        raise InvalidInput(f"a {kind}; a payload is a JSON object (a dict)", path=path)
    walk(payload, path, MAX_PAYLOAD_BYTES, MAX_DEPTH)
    text = msgspec.json.encode(payload)  # after the walk: it would write NaN as null
    if len(text) > MAX_PAYLOAD_BYTES:
        raise too_large(f"{len(text)} bytes as JSON", MAX_PAYLOAD_BYTES, path)
    return text.decode()


def _text_if_flat(payload: dict[Any, Any]) -> str | None:
    """What `canonical` returns, in half the time, for an object of plain values only.

    None if it is another, or may break a rule: the walk knows which, and where.
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
    """The payload that `canonical` wrote. Raises InvalidInput if it was damaged in the store."""
    try:
        return _load_object(text)
    except (msgspec.DecodeError, ValueError, RecursionError) as flaw:
        raise InvalidInput(f"the stored payload is damaged: {flaw}", path="$.payload") from None


def walk(root: object, path: str, budget: int, max_depth: int) -> None:
    """Visit every value under `root` in document order; refuse the first that breaks a rule.

    `budget` is spent on every value and every character of text. JSON is never shorter than that,
    so what outruns it is over `budget` bytes; and the walk ends even where few objects, shared
    among themselves, would make an endless text.
    """
    limit = budget
    outer: list[tuple[Iterator[tuple[Any, Any]], Any]] = []  # what is unfinished around `items`
    items: Iterator[tuple[Any, Any]] | None = iter([("", root)])
    problem = ""
    while items is not None:
        for key, item in items:
            kind = type(item)
            if kind is str:
                budget -= len(item)
                if "\0" in item or not (item.isascii() or _is_unicode(item)):
                    problem = _flaw_of(item)
                    break
            elif kind is int:
                if not MIN_INTEGER <= item <= MAX_INTEGER:
                    problem = "an integer beyond 64 bits; pass it as a string"
                    break
            elif kind is dict or kind is list:
                budget -= len(item)
                if len(outer) >= max_depth:
                    problem = f"nested more than {max_depth} levels deep, or in itself; flatten it"
                elif kind is list:
                    outer.append((items, key))
                    items = enumerate(item)
                elif not (problem := _key_problem(item)):
                    budget -= sum(map(len, item))
                    outer.append((items, key))
                    items = iter(item.items())
                break
            elif kind is float:
                if not isfinite(item):
                    problem = "NaN or infinity, which JSON does not have; pass null or a string"
                    break
            elif kind is not bool and item is not None:
                problem = _misfit(item)
                break
        else:
            items = outer.pop()[0] if outer else None
        if problem:
            keys = [*(outer_key for _, outer_key in outer), key]
            raise InvalidInput(problem, path=path + _steps(keys[1:]))
        if budget < 0:
            raise too_large(f"at least {limit - budget} bytes as JSON", limit, path)


def _key_problem(keys: dict[Any, Any]) -> str:
    for name in keys:
        if type(name) is not str:
            return f"a key of type {type(name).__name__}; keys are strings, convert it with str()"
        if "\0" in name or not (name.isascii() or _is_unicode(name)):
            return f"in a key, {_flaw_of(name)}"
    return ""


def _is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8: it has no lone surrogates."""
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
    (str, "pass str(value)"),
    (int, "pass int(value)"),
    (float, "pass float(value)"),
)


def _misfit(value: object) -> str:
    """Why a value of no plain type is refused, with what to pass in its place."""
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
        elif hasattr(kind, "__fspath__"):
            advice = "pass str(value)"
        elif hasattr(kind, "tolist"):  # arrays and scalars of NumPy and its kin
            advice = "pass value.tolist()"
    return f"a value of type {kind.__name__}; {advice}"


def _steps(keys: list[Any]) -> str:
    """The way from the root to a value, as in `.to[3]['odd key']`, its middle cut if very long."""
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


def _may_nest_deeper(data: bytes, max_depth: int) -> bool:
    """Whether reading `data` as JSON would enter more than `max_depth` levels.

    Exact for valid JSON, and never too low. Asked first, because the reader recurses. Strings and
    everything else but brackets are dropped; then each pass takes away the innermost level.
    """
    if data.count(b"[") + data.count(b"{") <= max_depth:
        return False
    unescaped = data.replace(rb"\\", b"").replace(rb"\"", b"")
    brackets = b"".join(unescaped.split(b'"')[::2]).translate(_ONE_BRACKET, _NO_BRACKETS)
    for level in range(max_depth):
        outer = brackets.replace(b"[]", b"")
        if len(outer) == len(brackets):  # nothing is left, or only what does not match
            return level + brackets.count(b"[") > max_depth
        brackets = outer
    return bool(brackets)


class _GivenTwice:
    """Stands for an object with a key given twice, until the walk reports it with its path."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        [(self.name, _)] = Counter(name for name, _ in pairs).most_common(1)


def _object(pairs: list[tuple[str, Any]]) -> object:
    made = dict(pairs)
    return made if len(made) == len(pairs) else _GivenTwice(pairs)


def _integer(digits: str) -> int:
    """Bounded before conversion, which takes quadratic time: whatever is longer is out of range."""
    return int(digits) if len(digits) <= len(str(MIN_INTEGER)) else MAX_INTEGER + 1


_read_json = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer).decode
_load_object = msgspec.json.Decoder(dict[str, Any]).decode
_BACKSLASH = ord("\\")
_ONE_BRACKET = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_is_word = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}").fullmatch


# --- names -----------------------------------------------------------------------------------

_is_name = functools.lru_cache(1024)(re.compile(NAME_PATTERN.strip("^$")).fullmatch)
_is_key = re.compile(KEY_PATTERN.strip("^$")).fullmatch


def several(names: Iterable[str], path: str) -> tuple[str, ...]:
    """`names` as a tuple; raises InvalidInput for one text, whose letters would pass for names."""
    if isinstance(names, str):
        raise InvalidInput("give a list of names, even of one: not a text", path=path)
    return tuple(names)


def check_name(value: object, what: str, path: str) -> str:
    """`value` if it can name a job type or a queue; raises InvalidInput otherwise.

    `what` says what is named ("job type", "queue"); see `NAME_PATTERN`.
    """
    if isinstance(value, str) and len(value) <= MAX_NAME_LENGTH:
        name = str.__str__(value)  # of a subclass, too: the cache compares names
        if _is_name(name):
            return name
    raise InvalidInput(
        f"not a name for a {what}; use 1 to {MAX_NAME_LENGTH} of A-Z a-z 0-9 _ : - and single "
        "dots between them, beginning with a letter, a digit or _",
        path=path,
    )


def check_key(value: object, path: str) -> str:
    """`value` if it can be an idempotency key; raises InvalidInput otherwise."""
    if isinstance(value, str) and len(value) <= MAX_KEY_LENGTH and _is_key(value):
        return str.__str__(value)
    raise InvalidInput(
        f"not an idempotency key; use 1 to {MAX_KEY_LENGTH} visible ASCII characters, no spaces",
        path=path,
    )


def check_label(value: object, what: str, path: str) -> str:
    """`value` if it is a line of text for people, such as a worker's name; or InvalidInput."""
    text = value if isinstance(value, str) and len(value) <= MAX_LABEL_LENGTH else ""
    if text.isprintable() and text.strip():
        return str.__str__(text)
    raise InvalidInput(
        f"not a label for a {what}; use 1 to {MAX_LABEL_LENGTH} printable characters on one line",
        path=path,
    )
