"""Payloads: what is accepted is kept exactly, the rest is refused with its place.

Every line of the rule on bad input has its rows in `REFUSED_JSON` (tests/support/payloads.py) and
`REFUSED_VALUES`; a property then puts every kind of flaw anywhere into random documents. Results
and errors of handlers: test_results.py; names: test_payload_names.py.
"""

from __future__ import annotations

import ast
import contextlib
import datetime
import decimal
import json
import math
import pathlib
import re
import subprocess
import sys
import tracemalloc
import uuid
from collections import OrderedDict, defaultdict, deque
from typing import Any

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tenure.errors import InvalidInput, PayloadTooLarge
from tenure.values import payload as rules
from tenure.values.payload import (
    MAX_DEPTH,
    MAX_INTEGER,
    MAX_PAYLOAD_BYTES,
    MIN_INTEGER,
    canonical,
    check,
    load,
    parse,
)
from tests.support.payloads import (
    CIRCLE,
    REFUSED_JSON,
    SHARED,
    Colour,
    Hostile,
    Level,
    Number,
    Pair,
    Point,
    Real,
    Record,
    Text,
    Word,
    brief,
    documents,
    nested,
    payloads,
    refusal,
    same,
)

# --- reading JSON from outside ---------------------------------------------------------------


@pytest.mark.scenario(89, 90, 91, 92, 93)
@pytest.mark.requirement("C10")
@pytest.mark.parametrize(("data", "path", "reason"), REFUSED_JSON)
def test_parse_refuses(data: bytes, path: str, reason: str) -> None:
    error = refusal(lambda: parse(data))
    assert error.path == path
    assert reason in error.message
    assert error.code == "invalid_input"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"{}", {}),
        (b" \t\r\n[ ] ", []),
        (b"null", None),
        (b"-0.0", -0.0),
        (b"0", 0),
        (b"1.0", 1.0),
        (b"1E2", 100.0),
        (b"9007199254740993", 2**53 + 1),
        (str(MAX_INTEGER).encode(), MAX_INTEGER),
        (str(MIN_INTEGER).encode(), MIN_INTEGER),
        (rb'"\ud83d\ude00\u0041\/"', "\U0001f600A/"),
        (b'{"b": 1, "a": 2, "__proto__": 3, "": 4}', {"b": 1, "a": 2, "__proto__": 3, "": 4}),
        ('["\u00e9", "e\u0301"]'.encode(), ["\u00e9", "e\u0301"]),  # normal forms are kept apart
        ('{"\u00e9": 1, "e\u0301": 2}'.encode(), {"\u00e9": 1, "e\u0301": 2}),
        ('"\u200f\u2028"'.encode(), "\u200f\u2028"),
        (rb'"\u001b[31m\n"', "\x1b[31m\n"),
        (rb'"\\u0000"', r"\u0000"),  # six characters that only look like an escape
        (rb'{"a": "\"[{", "b": "\\", "c": ["\\\""]}', {"a": '"[{', "b": "\\", "c": ['\\"']}),
    ],
)
def test_parse_keeps(data: bytes, expected: object) -> None:
    assert same(parse(data), expected)


def test_parse_bounds_the_body_before_reading_it() -> None:
    assert parse(b'"' + b"x" * 8 + b'"', limit=10) == "x" * 8
    error = refusal(lambda: parse(b"\xff" * 11, limit=10))
    assert isinstance(error, PayloadTooLarge)
    assert error.code == "payload_too_large"
    assert "11 bytes" in error.message
    assert "limit is 10 " in error.message
    refusal(lambda: parse(b" " * (MAX_PAYLOAD_BYTES + 1)))


@pytest.mark.parametrize("surroundings", [0, 1, 2])
def test_parse_allows_for_what_surrounds_a_payload(surroundings: int) -> None:
    body: Any = nested(MAX_DEPTH)
    for _ in range(surroundings):
        body = [body]
    data = json.dumps(body).encode()
    assert parse(data, max_depth=MAX_DEPTH + surroundings) == body
    refusal(lambda: parse(data, max_depth=MAX_DEPTH + surroundings - 1))


@given(documents, st.sampled_from([None, 2]), st.booleans())
def test_parse_reads_what_python_writes(value: object, indent: int | None, escape: bool) -> None:
    assert same(parse(json.dumps(value, indent=indent, ensure_ascii=escape).encode()), value)


@given(st.binary() | st.text(alphabet='[]{}",:\\u0d8c19eE.+- \n').map(str.encode))
def test_parse_refuses_or_gives_what_check_allows(data: bytes) -> None:
    try:
        value = parse(data)
    except InvalidInput:
        return
    check(value)
    assert same(parse(msgspec.json.encode(value)), value)


bracketed = st.text('[]{}"\\a', max_size=5)
towers = st.recursive(
    bracketed, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(bracketed, inner)
)


@given(towers, st.integers(0, 6))
@example([[]] * 6, 2)
@example({"a": [[]]}, 2)
@example(["[[[[", '"]'], 1)
def test_depth_is_known_before_reading(value: object, max_depth: int) -> None:
    def depth(value: object) -> int:
        if isinstance(value, dict):
            return 1 + max(map(depth, value.values()), default=0)
        return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0

    data = json.dumps(value).encode()
    assert rules.may_nest_deeper(data, max_depth) == (depth(value) > max_depth)


@given(st.text(alphabet="[]{}", min_size=1, max_size=60), st.integers(0, 8))
@example("[[[]", 2)
@example("[{[[]]", 3)
def test_the_reader_never_goes_deeper_than_forecast(brackets: str, max_depth: int) -> None:
    """Also for broken JSON: what the reader entered before it saw the fault."""
    entered, deepest = 0, 0
    closing = []
    for bracket in brackets:
        if bracket in "[{":
            closing.append("]" if bracket == "[" else "}")
            entered += 1
            deepest = max(deepest, entered)
        elif not closing or closing.pop() != bracket:
            break
        else:
            entered -= 1
    if deepest > max_depth:
        assert rules.may_nest_deeper(brackets.encode(), max_depth)


def test_bombs_do_not_lean_on_the_recursion_limit() -> None:
    """An application may have raised it; then recursion would end in a crash, not an error."""
    code = """
import sys; sys.setrecursionlimit(10**7)
from tenure.values.payload import check; from tenure.values.payload import parse
from tenure.handlers.results import result_text
from tenure.errors import InvalidInput
deep = []
for _ in range(10**6): deep = [deep]
circle = []; circle.append(circle)
for act in (lambda: parse(b"[" * 10**6), lambda: parse(b'{"a":[' * 10**5), lambda: check(deep),
            lambda: check(circle)):
    try: act()
    except InvalidInput: print("refused")
print(len(result_text((circle,))) < 9999, len(result_text((deep,))) < 9999, flush=True)
import os; os._exit(0)  # taking `deep` apart is not our subject
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.stdout.split() == ["refused"] * 4 + ["True"] * 2, ran.stderr


ONE_MEBIBYTE_OF: dict[str, bytes] = {
    "open brackets": b"[",
    "open objects": b'{"a":',
    "empty lists": b"[],",
    "empty strings": b'"",',
    "ladders": b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b",",
    "ladders of objects": b'{"a":' * (MAX_DEPTH - 1) + b"1" + b"}" * (MAX_DEPTH - 1) + b",",
    "digits": b"1",
    "fractions": b"0." + b"1" * 1000 + b",",
    "long integers": b"1" * 4000 + b",",
    "backslashes": b"\\",
    "escapes": rb'"\ud83d\ude00",',
    "half escapes": rb'"\ud83d",',
    "quotes": b'"',
    "repeated keys": b'{"a":1,"a":1},',
    "closing brackets": b"]",
    "mixed brackets": b"[}",
}


@pytest.mark.requirement("C10")
@pytest.mark.parametrize("opening", [b"", b"[", b'{"a":"'])
@pytest.mark.parametrize("unit", ONE_MEBIBYTE_OF.values(), ids=ONE_MEBIBYTE_OF.keys())
def test_a_hostile_mebibyte_is_linear_work(unit: bytes, opening: bytes) -> None:
    """No clock here: anything quadratic in these shapes runs into the test's time limit."""
    room = MAX_PAYLOAD_BYTES - len(opening) - 2
    data = opening + unit * (room // len(unit)) + (b"0]" if opening == b"[" else b"")
    assert len(data) <= MAX_PAYLOAD_BYTES
    with contextlib.suppress(InvalidInput):
        parse(data)


# --- checking Python values ------------------------------------------------------------------

REFUSED_VALUES: list[tuple[object, str, str]] = [
    ((1, 2), "tuple", "list(value)"),
    (Pair(1, 2), "Pair", "list(value)"),
    ({1, 2}, "set", "sorted(value)"),
    (frozenset(), "frozenset", "sorted(value)"),
    (b"x", "bytes", "b64encode"),
    (bytearray(b"x"), "bytearray", "b64encode"),
    (datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), "datetime", "value.isoformat()"),
    (datetime.date(2026, 1, 2), "date", "value.isoformat()"),
    (datetime.time(1), "time", "value.isoformat()"),
    (datetime.timedelta(1), "timedelta", "total_seconds"),
    (uuid.UUID(int=0), "UUID", "str(value)"),
    (decimal.Decimal(1), "Decimal", "str(value)"),
    (pathlib.PurePosixPath("a"), "PurePosixPath", "str(value)"),
    (Point(1), "Point", "dataclasses.asdict(value)"),
    (Record(1), "Record", "to_builtins(value)"),
    (Colour.RED, "Colour", "value.value"),
    (Level.HIGH, "Level", "value.value"),
    (Word.YES, "Word", "value.value"),
    (Text("x"), "Text", 'value + ""'),
    (Number(1), "Number", "int(value)"),
    (Real(1), "Real", "float(value)"),
    (OrderedDict(a=1), "OrderedDict", "dict(value)"),
    (defaultdict(list), "defaultdict", "dict(value)"),
    (deque([1]), "deque", "use only dict, list"),
    (1j, "complex", "use only dict, list"),
    (object(), "object", "use only dict, list"),
    (object, "type", "use only dict, list"),
    (len, "builtin_function_or_method", "use only dict, list"),
    (iter([1]), "list_iterator", "use only dict, list"),
    (range(3), "range", "use only dict, list"),
    (Hostile(), "Hostile", "use only dict, list"),
    (math.nan, "NaN", "null"),
    (math.inf, "infinity", "null"),
    (-math.inf, "infinity", "null"),
    (MAX_INTEGER + 1, "64 bits", "string"),
    (MIN_INTEGER - 1, "64 bits", "string"),
    (10**6000, "64 bits", "string"),
    ("a\0b", "NUL", "base64"),
    ("\ud800", "surrogate", "base64"),
    ("é\udfff", "surrogate", "base64"),
    ({1: "a"}, "key of type int", "str()"),
    ({None: "a"}, "key of type NoneType", "str()"),
    ({(1,): "a"}, "key of type tuple", "str()"),
    ({Word.YES: 1}, "key of type Word", "str()"),
    ({Text("a"): 1}, "key of type Text", "str()"),
    ({"a\0": 1}, "in a key, a NUL", "base64"),
    ({"\udc00": 1}, "in a key, half of a surrogate", "base64"),
]
FLAWS = [flaw for flaw, _, _ in REFUSED_VALUES]


@pytest.mark.scenario(96)
@pytest.mark.scenario(54)
@pytest.mark.parametrize(("value", "what", "advice"), REFUSED_VALUES, ids=brief)
def test_check_refuses(value: object, what: str, advice: str) -> None:
    for path, wrapped in (("$", value), ("$.a", {"a": value}), ("$[2]", [1, True, value])):
        error = refusal(lambda wrapped=wrapped: check(wrapped))  # type: ignore[misc]
        assert error.path == path
        assert what in error.message
        assert advice in error.message


@pytest.mark.scenario(54)
@pytest.mark.parametrize(("value", "what", "advice"), REFUSED_VALUES, ids=brief)
def test_canonical_refuses_the_same(value: object, what: str, advice: str) -> None:
    error = refusal(lambda: canonical({"a": value}))
    assert error.path == "$.payload.a"
    assert what in error.message
    if type(value) is dict:
        error = refusal(lambda: canonical(value))
        assert error.path == "$.payload"
        assert what in error.message


STEP = re.compile(r"""\.(?P<word>\w+)|\[(?P<literal>\d+|'.*?'|".*?")\]""")


@given(payloads, st.sampled_from(FLAWS), st.data())
def test_a_flaw_anywhere_is_found_where_it_is(payload: Any, flaw: object, data: Any) -> None:
    """The path of the error, followed step by step, leads to the flaw."""
    assume(payload)
    inner: Any = payload
    while inner and isinstance(inner, dict | list):
        holder: Any = inner
        key = data.draw(st.sampled_from(range(len(holder)) if type(holder) is list else [*holder]))
        if data.draw(st.booleans()):
            break
        inner = holder[key]
    holder[key] = flaw
    error = refusal(lambda: canonical(payload))
    assume("…" not in error.path)
    found: Any = {"payload": payload}
    for step in STEP.finditer(error.path):
        found = found[step["word"] or ast.literal_eval(step["literal"])]
    assert found is flaw


@given(payloads)
def test_canonical_keeps_a_payload_exactly(payload: dict[str, Any]) -> None:
    check(payload)
    text = canonical(payload)
    assert same(load(text), payload)
    assert same(parse(text.encode()), payload)
    assert same(json.loads(text), payload), "other readers of JSON agree"
    assert canonical(load(text)) == text, "there is one text for one payload"


def test_canonical_text_is_compact_ordered_and_readable() -> None:
    payload = {"b": [1, 2.5, None, True], "a": {"é": "ü\u2028"}, "__proto__": '\x01\x7f\n"\\'}
    assert canonical(payload) == (
        '{"b":[1,2.5,null,true],"a":{"é":"ü\u2028"},"__proto__":"\\u0001\x7f\\n\\"\\\\"}'
    )


@pytest.mark.parametrize(
    "number",
    [
        *(0, -0.0, 0.0, 1, 1.0, True, 2**53 + 1, float(2**53), MIN_INTEGER, MAX_INTEGER),
        *(5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 0.1, 1 / 3, 1e16, 1e23),
        123456789012345680.0,
    ],
)
def test_numbers_keep_value_and_type(number: float) -> None:
    assert same(load(canonical({"n": number})), {"n": number})


@pytest.mark.parametrize("value", [None, [], "{}", 1, True, [("a", 1)], OrderedDict(a=1), b"{}"])
def test_a_payload_is_an_object(value: object) -> None:
    error = refusal(lambda: canonical(value, path="$[3].payload"))
    assert error.path == "$[3].payload"
    assert type(value).__name__ in error.message
    assert "JSON object" in error.message


@pytest.mark.parametrize("character", ["x", "é", "\U0001f600", "\n", "\x01", '"'])
def test_size_is_counted_in_stored_bytes(character: str) -> None:
    cost = len(json.dumps(character, ensure_ascii=False).encode()) - 2
    room = MAX_PAYLOAD_BYTES - len(canonical({"a": ""}))
    fits = {"a": character * (room // cost) + "x" * (room % cost)}
    text = canonical(fits)
    assert len(text.encode()) == MAX_PAYLOAD_BYTES
    assert load(text) == fits
    assert parse(text.encode()) == fits
    error = refusal(lambda: canonical({"a": fits["a"] + "x"}))
    assert isinstance(error, PayloadTooLarge)
    assert error.path == "$.payload"
    assert str(MAX_PAYLOAD_BYTES) in error.message
    assert f"{MAX_PAYLOAD_BYTES + 1} bytes" in error.message


@pytest.mark.parametrize(
    "value",
    [
        {"a": "x" * 50_000_000},
        {"a": [0] * MAX_PAYLOAD_BYTES},
        {"a": ["x" * 1000] * 10_000_000},
        {"a": SHARED},
        {"x" * MAX_PAYLOAD_BYTES: 1},
    ],
    ids=["long", "wide", "shared text", "shared lists", "key"],
)
def test_too_much_is_refused_without_writing_it_out(value: dict[str, Any]) -> None:
    for error in (refusal(lambda: canonical(value)), refusal(lambda: check(value))):
        assert isinstance(error, PayloadTooLarge)
        assert str(MAX_PAYLOAD_BYTES) in error.message


def test_a_text_that_is_refused_for_its_length_is_not_written_out_first() -> None:
    text = "x" * MAX_PAYLOAD_BYTES
    payload = {f"key{n}": text for n in range(100)}
    tracemalloc.start()
    error = refusal(lambda: canonical(payload))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(error, PayloadTooLarge)
    assert most < MAX_PAYLOAD_BYTES


def test_the_same_depth_everywhere() -> None:
    deepest = {"a": nested(MAX_DEPTH - 1)}
    check(deepest)
    assert load(canonical(deepest)) == parse(json.dumps(deepest).encode()) == deepest
    too_deep = {"a": nested(MAX_DEPTH)}
    for act in (lambda: check(too_deep), lambda: canonical(too_deep), lambda: check(CIRCLE)):
        assert f"more than {MAX_DEPTH} levels" in refusal(act).message
    refusal(lambda: parse(json.dumps(too_deep).encode()))
    check(nested(MAX_DEPTH))
    refusal(lambda: check([nested(MAX_DEPTH)]))


def test_paths_stay_short_and_printable() -> None:
    value: Any = object()
    for _ in range(MAX_DEPTH - 1):
        value = {"\x1b[31m\u202e" + "k" * 5000: value}
    error = refusal(lambda: check(value))
    assert len(error.path) < 300
    assert error.path.isascii() or "…" in error.path


@pytest.mark.requirement("C12")
@pytest.mark.parametrize(
    "secret", [b"hunter2", ("hunter2",), 10**30 + 424242, "hunter2\0", {"a": Text("hunter2")}]
)
def test_refusals_never_repeat_a_value(secret: object) -> None:
    message = str(refusal(lambda: canonical({"password": secret})))
    assert "hunter2" not in message
    assert "424242" not in message
    assert "$.payload.password" in message


@pytest.mark.parametrize(
    "damaged",
    [
        *("", "{", "[]", "null", '{"a":NaN}', '{"a":1e999}', "\ud800"),
        '{"a":' + "[" * 100_000,
        '{"a":' + "1" * 5000 + "}",
    ],
    ids=brief,
)
def test_load_refuses_what_canonical_never_wrote(damaged: str) -> None:
    error = refusal(lambda: load(damaged))
    assert error.path == "$.payload"
    assert "damaged" in error.message
