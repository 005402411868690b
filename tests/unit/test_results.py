"""What handlers produce: any result and any exception becomes text that can be stored."""

from __future__ import annotations

import datetime
import decimal
import inspect
import math
import pathlib
import re
import uuid
from collections import OrderedDict
from collections.abc import Callable, Generator
from types import FunctionType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tenure.errors import PermanentFailure
from tenure.handlers.results import (
    MAX_ERROR_BYTES,
    MAX_EXCEPTIONS,
    MAX_FRAMES,
    MAX_RESULT_BYTES,
    describe_exception,
    error_text,
    result_text,
    success,
)
from tenure.values.payload import MAX_DEPTH, parse
from tests.support.payloads import (
    CIRCLE,
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
    same,
)

# --- results ---------------------------------------------------------------------------------


def read_back(text: str) -> Any:
    """A result as its readers see it; every result there can be must pass."""
    assert len(text.encode()) <= MAX_RESULT_BYTES
    return parse(text.encode())


@pytest.mark.parametrize(
    ("result", "stored"),
    [
        (None, None),
        ("done", "done"),
        ({"n": 1, "x": [1.5, True]}, {"n": 1, "x": [1.5, True]}),
        ((1, 2), [1, 2]),
        ({3}, [3]),
        (Pair(1, 2), [1, 2]),
        ({1: "a"}, {"1": "a"}),
        (OrderedDict(a=1), {"a": 1}),
        (Point(1, [Point(2)]), {"x": 1, "y": [{"x": 2, "y": 0}]}),
        (Record(datetime.date(2026, 1, 2)), {"when": "2026-01-02"}),
        (datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), "2026-01-02T00:00:00Z"),
        (uuid.UUID(int=0), "00000000-0000-0000-0000-000000000000"),
        (decimal.Decimal("1.10"), "1.10"),
        (Colour.RED, "red"),
        ([Level.HIGH, Word.YES], [3, "yes"]),
        ([Text("t"), Number(1), Real(0.5)], ["t", 1, 0.5]),
        (b"\0\xff", "AP8="),
        ((nested(MAX_DEPTH - 1),), [nested(MAX_DEPTH - 1)]),
    ],
)
def test_results_are_written_as_json(result: object, stored: object) -> None:
    assert same(read_back(result_text(result)), stored)


@given(documents)
def test_plain_results_are_kept_exactly(value: object) -> None:
    assert same(read_back(result_text(value)), value)


UNSTORABLE: list[tuple[object, str, str]] = [
    (math.nan, "nan", "NaN"),
    ({"a": [math.inf]}, "inf", "$.result.a[0]: NaN or infinity"),
    ("a\0b", "a\u2400b", "NUL"),
    ("\ud800", r"\ud800", "surrogate"),
    ({"\0": 1}, r"{'\x00': 1}", "in a key, a NUL"),
    (Point("\0"), "Point(x=", "$.result.x: a NUL"),
    (2**64, str(2**64), "64 bits"),
    (10**6000, "<int", "4300 digits"),
    (object(), "<object object", "no form in JSON"),
    (lambda: 1, "<lambda>", "no form in JSON"),
    (ValueError("x"), "ValueError('x')", "no form in JSON"),
    (pathlib.PurePosixPath("/a"), "PurePosixPath('/a')", "no form in JSON"),
    ({(1,): 2}, "{(1,): 2}", "key"),
    (Hostile(), "<Hostile>", "no form in JSON"),
    ([Hostile()], "<list>", "no form in JSON"),
    (CIRCLE, "[{'again': [{...}]}]", "levels deep"),
    (SHARED, "[[[[...], [...]],", f"limit is {MAX_RESULT_BYTES} bytes"),
    (tuple(SHARED), "([[[...], [...]], [[...]", f"limit is {MAX_RESULT_BYTES} bytes"),
    (Point(CIRCLE), "Point(", "levels deep"),
    (nested(MAX_DEPTH + 1), "[", "levels deep"),
    ((nested(MAX_DEPTH),), "(", "levels deep"),
    ("x" * MAX_RESULT_BYTES, "xxx", f"limit is {MAX_RESULT_BYTES} bytes"),
    ("\u20ac" * (MAX_RESULT_BYTES // 3), "\u20ac" * 100, f"limit is {MAX_RESULT_BYTES} bytes"),
    ("\x01" * (MAX_RESULT_BYTES // 2), "\x01" * 100, f"limit is {MAX_RESULT_BYTES} bytes"),
    (["x" * 10_000_000], "['xxx", f"limit is {MAX_RESULT_BYTES} bytes"),
    (b"x" * MAX_RESULT_BYTES, "b'xxx", f"limit is {MAX_RESULT_BYTES} bytes"),
    ([[[[[list(range(50))] * 50] * 50] * 50] * 50] * 50, "[[[[...]", "limit is"),
]


@pytest.mark.scenario(87, 88, 89, 90)
@pytest.mark.parametrize(("result", "shown", "reason"), UNSTORABLE, ids=brief)
def test_what_cannot_be_stored_is_shown_instead(result: object, shown: str, reason: str) -> None:
    note = read_back(result_text(result))
    assert list(note) == ["tenure:unstorable", "reason"]
    assert shown in note["tenure:unstorable"]
    assert reason in note["reason"]


def test_an_awaitable_that_is_no_task_is_shown() -> None:
    """As the handle of a job is: a failure would run the handler again, and add its job again."""

    class Handle:
        def __await__(self) -> Generator[Any, Any, None]:
            yield

    note = read_back(success(Handle()).result or "")
    assert "no form in JSON" in note["reason"]


def test_a_coroutine_that_is_returned_is_closed() -> None:
    """Its author would be warned a second time, at some later moment, that nothing awaited it."""

    async def send() -> None: ...

    returned = send()
    with pytest.raises(TypeError, match="a coroutine was returned"):
        success(returned)
    assert inspect.getcoroutinestate(returned) == inspect.CORO_CLOSED


def test_the_largest_result_that_fits() -> None:
    fits = "x" * (MAX_RESULT_BYTES - 2)
    assert read_back(result_text(fits)) == fits
    assert "tenure:unstorable" in read_back(result_text(fits + "x"))


@given(st.text(st.sampled_from('\0\x01"\\\ud800é\U0001f600x')))
def test_a_note_always_fits(unit: str) -> None:
    for result in (unit * (MAX_RESULT_BYTES // max(len(unit), 1)), [unit] * 100, {"\0" + unit: 1}):
        read_back(result_text(result))


class Raises:
    """Raises `error` from whatever is asked of it."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __getattribute__(self, name: str) -> Any:
        raise object.__getattribute__(self, "_error")

    def __repr__(self) -> str:
        raise object.__getattribute__(self, "_error")


@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), MemoryError(), Exception("\0")]
)
def test_a_result_that_raises_is_stored_all_the_same(error: BaseException) -> None:
    for result in (Raises(error), [Raises(error)], {"a": (Raises(error),)}, Point(Raises(error))):
        assert "tenure:unstorable" in read_back(result_text(result))


# --- errors ----------------------------------------------------------------------------------

any_text = st.text(st.characters() | st.sampled_from("\0\ud800é\U0001f600"))


@pytest.mark.scenario(87, 94)
@given(any_text, st.integers(64, 400))
@example("", 64)
@example(" \n", 64)
@example("\0" * 1000, 64)
def test_error_text_is_storable_bounded_and_never_empty(text: str, limit: int) -> None:
    clean = error_text(text, limit)
    assert 0 < len(clean.encode()) <= limit, "encodes, so it has no surrogates"
    assert "\0" not in clean
    assert error_text(clean, limit) == clean
    if text.strip() and len(text.encode("utf-8", "surrogatepass")) * 2 <= limit:
        assert clean == text.replace("\0", "\u2400").encode("utf-8", "backslashreplace").decode()


@given(st.text("abcé\U0001f600\0", min_size=300), st.integers(64, 300))
def test_error_text_keeps_head_and_tail_and_counts_the_rest(text: str, limit: int) -> None:
    clean = error_text(text, limit)
    shown = text.replace("\0", "\u2400")
    match = re.fullmatch(r"(.+)… \[(\d+) characters cut\] …(.+)", clean, re.DOTALL)
    assert match is not None
    head, missing, tail = match.groups()
    assert shown.startswith(head)
    assert shown.endswith(tail)
    assert len(head) + int(missing) + len(tail) == len(shown)
    assert len(clean.encode()) > limit - 16, "the room is used"


def test_error_text_at_its_limit() -> None:
    assert error_text("x" * MAX_ERROR_BYTES) == "x" * MAX_ERROR_BYTES
    assert "characters cut" in error_text("x" * (MAX_ERROR_BYTES + 1))
    assert len(error_text("€" * 5_000_000).encode()) <= MAX_ERROR_BYTES
    assert error_text("") == error_text(" \n ") == "(no message)"
    assert error_text("x" * 40, 1) == "x" * 40
    assert error_text("x" * 65, 1) == error_text("x" * 65, 64) != "x" * 65


def caught(act: Callable[[], object]) -> BaseException:
    try:
        act()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def fail(secret: str = "hunter2", depth: int = 0) -> None:  # noqa: S107
    if depth:
        fail(secret, depth - 1)
    raise ValueError("the message")


@pytest.mark.requirement("C12")
def test_an_exception_is_described_headline_first_and_without_locals() -> None:
    error = caught(fail)
    lines = describe_exception(error).splitlines()
    assert lines[0] == "ValueError: the message"
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-2].startswith(f'  File "{__file__}", line ')
    assert lines[-2].endswith(", in fail")
    assert lines[-1] == '    raise ValueError("the message")'
    secret = "hunt" + "er3"
    assert secret not in describe_exception(caught(lambda: fail(secret)))


def test_names_of_exceptions_say_their_module() -> None:
    assert describe_exception(KeyError("a")) == "KeyError: 'a'"
    assert describe_exception(ValueError()) == "ValueError"
    assert describe_exception(PermanentFailure("no")) == "tenure.errors.PermanentFailure: no"
    assert describe_exception(SystemExit(3)) == "SystemExit: 3"


def test_notes_causes_and_groups_are_described() -> None:
    def chain() -> None:
        try:
            fail()
        except ValueError as inner:
            inner.add_note("look here")
            raise RuntimeError("outer") from inner

    text = describe_exception(caught(chain))
    assert text.startswith("RuntimeError: outer\n")
    assert "\ncaused by ValueError: the message\nlook here\nTraceback" in text

    def during() -> None:
        try:
            fail()
        except ValueError:
            raise KeyError("second")  # noqa: B904

    assert "\nraised while handling ValueError: the message\n" in describe_exception(caught(during))

    def hidden() -> None:
        try:
            fail()
        except ValueError:
            raise KeyError("second") from None

    assert "the message" not in describe_exception(caught(hidden))

    group = ExceptionGroup("several", [ValueError("one"), ExceptionGroup("in", [KeyError("two")])])
    assert describe_exception(group).splitlines() == [
        "ExceptionGroup: several (2 sub-exceptions): ValueError: one",
        "part 1 of 2: ValueError: one",
        "part 2 of 2: ExceptionGroup: in (1 sub-exception)",
        "part 1 of 1: KeyError: 'two'",
    ]
    noted = ValueError("one\nline")
    outer = ExceptionGroup("out", [ExceptionGroup("in", [noted])])
    outer.add_note("a note")
    first, second = describe_exception(outer).splitlines()[:2]
    assert first == "ExceptionGroup: out (1 sub-exception): ValueError: one"
    assert second == "a note"


def test_many_frames_are_cut_in_the_middle() -> None:
    lines = describe_exception(caught(lambda: fail(depth=500))).splitlines()
    files = [line for line in lines if line.startswith("  File ")]
    assert len(files) == MAX_FRAMES
    assert f"  … [{503 - MAX_FRAMES} frames cut] …" in lines
    assert "in caught" in files[0]
    assert lines[-1] == '    raise ValueError("the message")'
    few = describe_exception(caught(lambda: fail(depth=MAX_FRAMES - 3)))
    assert "frames cut" not in few
    assert few.count("  File ") == MAX_FRAMES


def test_the_same_place_in_two_files_is_told_apart(tmp_path: pathlib.Path) -> None:
    for name in ("one", "two"):
        file = tmp_path / name
        file.write_text(f"x = 1\nx / 0  # of {name}\n")
        work = FunctionType(compile(file.read_text(), str(file), "exec"), {})
        for _ in range(2):
            lines = describe_exception(caught(work)).splitlines()
            assert lines[-2:] == [
                f'  File "{file}", line 2, in <module>',
                f"    x / 0  # of {name}",
            ]


def circular() -> BaseException:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    return one


def long_chain() -> BaseException:
    error: BaseException = ValueError("root")
    for i in range(10_000):
        outer = ValueError(f"number {i}")
        outer.__context__ = error
        error = outer
    return error


def deep_group() -> BaseException:
    group: Exception = ValueError("root")
    for i in range(300):
        group = ExceptionGroup(f"level {i}", [group])
    return group


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit("not even this")

    __repr__ = __str__


class NotText(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]  # noqa: PLE0307


class NoNotes(Exception):
    __notes__ = property(lambda self: 1 / 0)


class NoCause(Exception):
    __cause__ = property(lambda self: 1 / 0)


class StrangeText(Exception):
    class Text(str):
        __slots__ = ()

        def replace(self, *_: Any) -> str:
            raise RuntimeError

        def encode(self, *_: Any) -> bytes:
            raise RuntimeError

    def __str__(self) -> str:
        return self.Text("strange")


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (Mute(), "Mute: (its text could not be made: SystemExit)"),
        (NotText(), "NotText: (its text could not be made: TypeError)"),
        (NoNotes("x"), "(describing this NoNotes raised ZeroDivisionError)"),
        (NoCause("x"), "NoCause: x"),
        (StrangeText(), "StrangeText: strange"),
        (ValueError("x" * 10_000_000), "characters cut] …"),
        (ValueError("\0" * 10_000_000), "\u2400"),
        (ValueError("a\0b\ud800"), "ValueError: a\u2400b\\ud800"),
        (ValueError(*["x" * 1000] * 1000), "ValueError: ('xxx"),
        (circular(), "ValueError: one\ncaused by ValueError: other"),
        (long_chain(), "(further exceptions are not shown)"),
        (deep_group(), "(further exceptions are not shown)"),
        (ExceptionGroup("wide", [ValueError("x" * 9999)] * 5000), "part 1 of 5000: "),
        (BaseExceptionGroup("base", [KeyboardInterrupt(), SystemExit(1)]), "SystemExit: 1"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (caught(lambda: exec(compile("1/0", "<gone>", "exec"))), 'File "<gone>", line 1'),  # noqa: S102
    ],
)
def test_any_exception_is_described_within_bounds(error: BaseException, shown: str) -> None:
    text = describe_exception(error)
    assert shown in text
    assert 0 < len(text.encode()) <= MAX_ERROR_BYTES
    assert "\0" not in text
    assert sum(
        line.startswith(("part ", "caused by", "raised while")) for line in text.splitlines()
    ) < (MAX_EXCEPTIONS)


def test_recursion_is_described() -> None:
    def endless() -> None:
        endless()

    text = describe_exception(caught(endless))
    assert text.startswith("RecursionError: maximum recursion depth exceeded")
    assert "frames cut" in text


@given(any_text, st.lists(any_text, max_size=3))
def test_any_message_is_described(message: str, notes: list[str]) -> None:
    error = ValueError(message)
    for note in notes:
        error.add_note(note)
    text = describe_exception(error)
    assert text.startswith("ValueError")
    assert len(text.encode()) <= MAX_ERROR_BYTES
    assert "\0" not in text
