"""Payloads, names and Python values for tests of what is accepted and what is refused."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st

from tenure.errors import InvalidInput
from tenure.values.payload import MAX_DEPTH, MAX_INTEGER, MAX_PAYLOAD_BYTES, MIN_INTEGER

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
leaves = (
    st.none()
    | st.booleans()
    | st.integers(MIN_INTEGER, MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
documents = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=8
)
payloads = st.dictionaries(texts, documents)


def same(one: object, other: object) -> bool:
    """Equal, of the same types throughout, keys in the same order, and -0.0 not 0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return one == other


def nested(levels: int) -> Any:
    """A value `levels` deep, objects and arrays in turn."""
    value: Any = "x"
    for level in range(levels):
        value = {"a": value} if level % 2 else [value]
    return value


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Word(enum.StrEnum):
    YES = "yes"


class Text(str):
    __slots__ = ()


class Number(int):
    __slots__ = ()


class Real(float):
    __slots__ = ()


Pair = namedtuple("Pair", "a b")


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 0


class Record(msgspec.Struct):
    when: Any


class Hostile:
    """An object whose every text raises, and not even an Exception."""

    def __repr__(self) -> str:
        raise SystemExit("repr")

    __str__ = __repr__


def brief(value: object) -> str:
    """A test's name for `value`, whatever it is."""
    return value[:40] if isinstance(value, str) and value.isprintable() else type(value).__name__


def refusal(act: Callable[[], object]) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        act()
    error = caught.value
    assert error.path.startswith("$")
    assert len(str(error)) < 1000
    assert str(error).isprintable(), "errors are one line, safe for logs"
    return error


REFUSED_JSON: list[tuple[bytes, str, str]] = [
    # NUL, in a value, deep, in a key
    (rb'{"a": "x\u0000y"}', "$.a", "NUL"),
    (rb'{"a": [1, {"b c": "\u0000"}]}', "$.a[1]['b c']", "NUL"),
    (rb'{"a": {"\u0000": 1}}', "$.a", "in a key, a NUL"),
    (b'{"a": "\0"}', "$", "UTF-8"),
    # lone surrogates, as an escape or as the bytes of one
    (rb'["\ud800"]', "$[0]", "surrogate"),
    (rb'["\udc00\ud800"]', "$[0]", "surrogate"),
    (rb'{"\udfff": 1}', "$", "in a key, half of a surrogate"),
    (b'"\xed\xa0\x80"', "$", "not UTF-8 at byte 1"),
    # numbers
    (b'{"a": NaN}', "$.a", "NaN"),
    (b"[Infinity]", "$[0]", "infinity"),
    (b"-Infinity", "$", "infinity"),
    (b"[1e999]", "$[0]", "infinity"),
    (b"[-1e400]", "$[0]", "infinity"),
    (str(MAX_INTEGER + 1).encode(), "$", "64 bits"),
    (str(MIN_INTEGER - 1).encode(), "$", "64 bits"),
    (b'{"n": ' + b"1" * 30 + b"}", "$.n", "64 bits"),
    (b'{"n": -' + b"7" * 5000 + b"}", "$.n", "64 bits"),
    (b"9" * MAX_PAYLOAD_BYTES, "$", "64 bits"),
    # nesting
    (b"[" * 100_000, "$", f"more than {MAX_DEPTH} levels"),
    (b'{"a":' * 100_000, "$", f"more than {MAX_DEPTH} levels"),
    (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "$", f"more than {MAX_DEPTH} levels"),
    (b'[{"a":' * 60 + b"1" + b"}]" * 60, "$", f"more than {MAX_DEPTH} levels"),
    # keys given twice
    (b'{"a": 1, "a": 1}', "$", "'a' is given twice"),
    (rb'{"k": [{"b": 1, "c": 2, "\u0062": 3}]}', "$.k[0]", "'b' is given twice"),
    (b'{"a": {"": 1, "": 2}, "a": 1}', "$", "'a' is given twice"),
    (b'{"%b": 1, "%b": 2}' % (b"k" * 5000, b"k" * 5000), "$", "is given twice"),
    # encodings
    ("{}".encode("utf-16"), "$", "UTF-8"),
    ("{}".encode("utf-16-le"), "$", "UTF-8"),
    ("{}".encode("utf-32"), "$", "UTF-8"),
    ("{}".encode("utf-32-be"), "$", "UTF-8"),
    (b"\xef\xbb\xbf{}", "$", "byte order mark"),
    ('"é"'.encode("latin-1"), "$", "not UTF-8 at byte 1"),
    (b"\x1f\x8b\x08" + b"\x01" * 20, "$", "not UTF-8 at byte 1"),  # gzip
    (b"\x80\x04K\x01.", "$", "not UTF-8 at byte 0"),  # pickle
    # what is not JSON at all
    (b"", "$", "line 1, column 1"),
    (b" ", "$", "not valid JSON"),
    (b"{", "$", "not valid JSON"),
    (b'{"a": 1,}', "$", "not valid JSON"),
    (b'{"a": 1}\n\nx', "$", "line 3, column 1"),
    (b"[1] [2]", "$", "not valid JSON"),
    (b"01", "$", "not valid JSON"),
    (b"+1", "$", "not valid JSON"),
    (b".5", "$", "not valid JSON"),
    (b"'a'", "$", "not valid JSON"),
    (b"{a: 1}", "$", "not valid JSON"),
    (b'"\n"', "$", "not valid JSON"),
    (b'"\x1b[31m"', "$", "not valid JSON"),
    (rb'"\x41"', "$", "not valid JSON"),
    (rb'"\u12"', "$", "not valid JSON"),
    (b"[}", "$", "not valid JSON"),
    (b"undefined", "$", "not valid JSON"),
    (b"// note\n1", "$", "not valid JSON"),
]

CIRCLE: list[Any] = []
CIRCLE.append({"again": CIRCLE})
SHARED: list[Any] = []  # 40 lists that would be 2**40 in JSON
for _ in range(40):
    SHARED = [SHARED, SHARED]

HOSTILE_NAMES: list[object] = [
    *(
        "../etc/passwd",
        "..",
        ".",
        "a/b",
        "/a",
        "a/",
        "a\\b",
        ".hidden",
        "a.",
        "a..b",
        "-flag",
        ":a",
    ),
    *("a b", " a", "a ", "mail;drop table job", "' or 1=1 --", "<script>", "a&b", "a%20b", "{{x}}"),
    *("é", "e\u0301", "\uff41", "\u0430", "naïve", "a*", "$(x)", "`x`", "a,b", "a@b", "a=b", "a#b"),
]
