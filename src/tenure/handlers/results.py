"""What became of a call of a handler: a result or an exception, as text that every store keeps.

Nothing here raises: a job must settle whatever its handler returned or raised. A result that cannot
be stored unchanged becomes a note that says so, of bounded size.
"""

from __future__ import annotations

import dataclasses
import json
import linecache
import reprlib
from collections.abc import Collection, Iterator, Sequence
from datetime import date, time
from functools import lru_cache
from traceback import walk_tb
from types import (
    AsyncGeneratorType,
    CoroutineType,
    FrameType,
    GeneratorType,
    TracebackType,
)
from typing import Any, TypeGuard, cast

import msgspec

from tenure.errors import InvalidInput, PayloadTooLarge, PermanentFailure, ResultTruncated
from tenure.handlers import arguments
from tenure.handlers.registry import WITHIN, Handler, PlainFailure
from tenure.rules.reports import Parked, Pause, RateLimited, RetryAfter, Snooze, Wait
from tenure.values.payload import MAX_DEPTH, JsonText, learn, too_large, walk
from tenure.values.text import CUT, UNSTORABLE

MAX_RESULT_BYTES = 64 * 1024
"""Largest result as compact JSON. Results are stored in the job's row, read with it, and reported
by the hundred in one transaction. Larger output belongs in a file or an object store, with its
address as the result."""

MAX_ERROR_BYTES = 16 * 1024
"""Longest text of an error in UTF-8: a message and `MAX_FRAMES` frames with source lines."""

MAX_PREVIEW_BYTES = MAX_RESULT_BYTES // 8
"""Longest preview of a result that cannot be stored. JSON may need six bytes for one of them."""

MAX_MESSAGE_BYTES = MAX_ERROR_BYTES // 4
MAX_FRAMES = 30
MAX_EXCEPTIONS = 10
PAUSES: tuple[Pause, ...] = ("queue", "partition")
"""The widest first."""


class Ending(msgspec.Struct, frozen=True, gc=False):
    """How a call of a handler ended: it returned `result`, as JSON text, if `error` is None."""

    result: str | None = None
    error: str | None = None  # why it did not return, for people
    retryable: bool = True
    delay: float | None = None  # seconds until it runs again, if the handler said that
    snoozed: bool = False  # nothing has failed
    pause: Pause | None = None  # what is to wait together with a job that is snoozed
    flaw: str | None = None  # why the result is only a note
    completes: bool = False  # in a transaction of the handler, if that was committed
    wait: Wait | None = None  # what the job waits for, if it is suspended
    jobs: str | None = None  # the jobs that a handler in a child process adds, as JSON


def success(value: object) -> Ending:
    """Return the ending of a handler that returned `value`.

    Raises TypeError for a coroutine, task or generator: what the handler was to do may not be done.
    """
    if value is None:
        return Ending()
    text, flaw = _stored(value)
    if flaw is not None:
        _refuse_unfinished(value)
    return Ending(text, flaw=flaw)


def _refuse_unfinished(value: object) -> None:
    """Raise TypeError if work is left to do in a value, which has no form in JSON then."""
    is_task = hasattr(type(value), "_asyncio_future_blocking")  # what asyncio.isfuture looks for
    if is_task or isinstance(value, CoroutineType):
        if isinstance(value, CoroutineType):
            value.close()
        kind = type(value).__name__
        raise TypeError(f"a {kind} was returned, which nothing awaits: await it in an `async def`")
    if isinstance(value, GeneratorType | AsyncGeneratorType) and value.__name__ != "<genexpr>":
        raise TypeError("a generator was returned, which is not run: return what it yields, a list")


def failure(error: BaseException, handler: Handler | None = None) -> Ending:
    """Return the ending of a handler that raised; the traceback begins in the handler.

    `handler` says which errors are permanent. Never raises, whatever the class of the error
    defines, because the job must settle.
    """
    try:
        ours = traceback_of(error)
        if ours is not None and ours.tb_next is not None:
            within = ours.tb_next.tb_frame.f_code in WITHIN and ours.tb_next.tb_next
            _cut_traceback(error, within or ours.tb_next)
        if issubclass(type(error), PlainFailure):
            plain = cast(PlainFailure, error)
            return Ending(error=str(plain), retryable=plain.retryable, delay=plain.delay)
        text, every = describe_exception(error), _parts(error)
        parts = [part for part in every if type(part) is not Parked]
        if not parts:
            return _parking(text, every)
        if any(_is_permanent(part, handler) for part in parts):
            return Ending(error=text, retryable=False)
        delays = [part.seconds for part in parts if _is_postponed(part)]
        snoozed = all(issubclass(type(part), Snooze) for part in parts)
        asked = {part.pause for part in parts if isinstance(part, RateLimited)} if snoozed else ()
        pause = next((one for one in PAUSES if one in asked), None)
        return Ending(error=text, delay=max(delays, default=None), snoozed=snoozed, pause=pause)
    except BaseException:
        return Ending(error=f"{type.__repr__(type(error))} was raised, and cannot be read")


def _parking(text: str, parked: Sequence[Any]) -> Ending:
    """Return the ending of a handler of which all tasks are parked; the shortest sleep counts."""
    first = min(parked, key=lambda one: (one.wait is not None, one.delay))
    return Ending(error=text, delay=first.delay, snoozed=True, wait=first.wait)


# The definitions of BaseException, because those of a handler's own class may raise.
traceback_of = vars(BaseException)["__traceback__"].__get__
_cut_traceback = BaseException.with_traceback
_parts_of = vars(BaseExceptionGroup)["exceptions"].__get__


def _parts(error: BaseException) -> list[BaseException]:
    """Return the error, or all parts of the group that it is: one task of many may have failed."""
    waiting, found = [error], []
    while waiting:
        one = waiting.pop()
        if issubclass(type(one), BaseExceptionGroup):
            waiting += _parts_of(one)
        else:
            found.append(one)
    return found


def _is_postponed(error: BaseException) -> TypeGuard[RetryAfter | Snooze]:
    return issubclass(type(error), RetryAfter | Snooze)  # not by its own account of its class


def _is_permanent(error: BaseException, handler: Handler | None) -> bool:
    """Whether trying again cannot help; one such part of a group is enough, it would come again."""
    kind = type(error)
    if issubclass(kind, PermanentFailure | ResultTruncated):  # it never changes
        return True
    if handler is None or issubclass(kind, RetryAfter | Snooze):
        return False
    return issubclass(kind, handler.permanent) or not (
        handler.retry_on is None or issubclass(kind, handler.retry_on)
    )


def result_text(value: object) -> str:
    """Return any result of a handler as JSON text of at most `MAX_RESULT_BYTES`; never raises.

    Dataclasses, msgspec structs, dates, UUIDs, decimals, enums, tuples and sets are written as
    msgspec writes them. What JSON or a database cannot keep becomes an object that says so:
    `{"tenure:unstorable": "the beginning of its repr", "reason": "why"}`.
    """
    return _stored(value)[0]


def read_result(
    text: str | None, returns: Any, what: str, advice: str = "", path: str = "$.result"
) -> Any:
    """Return a stored result as an annotation says.

    Raises InvalidInput if it does not fit, with the advice.
    """
    if text is None or text == "null":
        return None
    try:
        learn(returns)
        return msgspec.json.decode(text, type=returns, dec_hook=arguments.decoded)
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        said = f"{what} does not fit the annotation, {returns}: {arguments.advised(error)}{advice}"
        raise InvalidInput(said, path=path) from error


def _stored(value: object) -> tuple[str, str | None]:
    """Return the text of a result, and why it is only a note."""
    if type(value) is JsonText:
        return value, None
    try:
        return storable_result(value), None
    except BaseException as flaw:  # a handler's object may raise anything, even SystemExit
        reason = error_text(f"{type(flaw).__name__}: {_spoken(flaw)}", MAX_MESSAGE_BYTES)
    note = {UNSTORABLE: _preview(value), "reason": reason}
    return msgspec.json.encode(note).decode(), reason


def storable_result(value: object) -> str:
    """Return a result as JSON text; raises InvalidInput, or anything, if it has none."""
    try:
        walk(value, "$.result", MAX_RESULT_BYTES, MAX_DEPTH)
    except PayloadTooLarge:
        raise
    except InvalidInput:
        # Size and depth first: the conversion knows no bounds.
        walk(value, "$.result", MAX_RESULT_BYTES, MAX_DEPTH, _members)
        plain = msgspec.to_builtins(
            value, enc_hook=_without_subclass, builtin_types=arguments.TIMES
        )
        plain = msgspec.to_builtins(arguments.with_texts(plain), str_keys=True)
        value = json.loads(json.dumps(plain))  # NaN stays to be refused
        walk(value, "$.result", MAX_RESULT_BYTES, MAX_DEPTH)
    text = msgspec.json.encode(value)
    if len(text) > MAX_RESULT_BYTES:
        raise too_large(f"{len(text)} bytes as JSON", MAX_RESULT_BYTES, "$.result")
    return text.decode()


def _members(value: object) -> Collection[Any]:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if arguments.is_model(type(value)):
        return list(vars(value).values())
    if isinstance(value, msgspec.Struct):
        return [getattr(value, name) for name in value.__struct_fields__]
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return []


def _without_subclass(value: object) -> object:
    """Return a model as JSON values, or the plain value of a subclass of str, int, …"""
    if arguments.is_model(type(value)) or isinstance(value, date | time):
        return arguments.encoded(value)
    for kind, plain in _PLAIN:
        if isinstance(value, kind):
            return plain(value)
    raise TypeError(f"a value of type {type(value).__name__} has no form in JSON")


_PLAIN: Any = ((str, str.__str__), (int, int.__int__), (float, float.__float__))

_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 3, 1000, 1000
_short.maxdict = _short.maxlist = _short.maxtuple = _short.maxset = _short.maxfrozenset = 12


def _preview(value: object) -> str:
    try:
        return error_text(value if type(value) is str else _short.repr(value), MAX_PREVIEW_BYTES)
    except BaseException:
        return f"<{type(value).__name__}>"


def error_text(text: str, limit: int = MAX_ERROR_BYTES) -> str:
    """Return a text that can be stored: at most `limit` bytes in UTF-8 (64 or more), never empty.

    NUL becomes the symbol for it, a lone surrogate its escape. A long text keeps its head and its
    tail, with a mark between that says how many characters are missing. Never raises.
    """
    limit = max(limit, 64)  # room for the mark
    if not text.strip():
        return "(no message)"
    if text.isascii() and len(text) <= limit and "\0" not in text:
        return text
    data = text.replace("\0", "\N{SYMBOL FOR NULL}").encode("utf-8", "backslashreplace")
    if len(data) <= limit:
        return data.decode()
    room = limit - len(CUT.format(len(data)).encode())
    head = data[: room - room // 3].decode(errors="ignore")
    tail = data[-(room // 3) :].decode(errors="ignore")
    missing = len(data.decode()) - len(head) - len(tail)
    return head + CUT.format(missing) + tail


def describe_exception(exc: BaseException) -> str:
    """Describe an exception as an `error_text`: type and message, frames, and causes.

    The first line names the error, and one part of a group. Frames are shown without local
    variables, which may hold secrets. At most `MAX_EXCEPTIONS` of a chain or group and `MAX_FRAMES`
    of each; never raises.
    """
    lines: list[str] = []
    try:
        lines.extend(_lines(exc))  # keeps what came before if the next line raises
    except BaseException as flaw:  # an exception's class may define anything
        lines.append(f"(describing this {type(exc).__name__} raised {type(flaw).__name__})")
    return error_text("\n".join(lines))


def _lines(exc: BaseException) -> Iterator[str]:
    waiting = [("", exc)]
    seen: set[int] = set()
    while waiting and len(seen) < MAX_EXCEPTIONS:
        relation, one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield relation + (_headline(one) if relation else _first_line(one))
        if one.__traceback__ is not None:
            yield "Traceback (most recent call last):"
            yield from _places(one.__traceback__)
        related: list[tuple[str, BaseException]] = []
        if one.__cause__ is not None:
            related.append(("caused by ", one.__cause__))
        elif one.__context__ is not None and not one.__suppress_context__:
            related.append(("raised while handling ", one.__context__))
        if isinstance(one, BaseExceptionGroup):
            parts = one.exceptions[:MAX_EXCEPTIONS]
            related += [
                (f"part {i + 1} of {len(one.exceptions)}: ", e) for i, e in enumerate(parts)
            ]
        waiting[:0] = related
    if waiting:
        yield "(further exceptions are not shown)"


def _first_line(exc: BaseException) -> str:
    """Return the headline of an error; lists show its first line, so a group's names a part."""
    said, part = _headline(exc), exc
    while issubclass(type(part), BaseExceptionGroup):
        part = _parts_of(part)[0]
    if part is exc:
        return said
    first, *notes = said.split("\n", 1)
    return "\n".join([f"{first}: {_headline(part).partition(chr(10))[0]}", *notes])


def _headline(exc: BaseException) -> str:
    kind = type(exc)
    module = "" if kind.__module__ in {"builtins", "__main__"} else f"{kind.__module__}."
    said = [_spoken(exc)]
    if notes := getattr(exc, "__notes__", None):
        said += map(_spoken, list(notes)[:MAX_EXCEPTIONS])
    message = "\n".join([error_text(part, MAX_MESSAGE_BYTES) for part in said if part])
    return f"{module}{kind.__qualname__}: {message}" if message else f"{module}{kind.__qualname__}"


def _places(traceback: TracebackType) -> list[str]:
    """Write the frames that an exception passed through, at most `MAX_FRAMES`."""
    frames = list(walk_tb(traceback))
    half = MAX_FRAMES // 2
    cut = len(frames) - MAX_FRAMES
    if cut > 0:
        del frames[half : half + cut]
    places = [_place(*frame) for frame in frames]
    if cut > 0:
        places.insert(half, f"  … [{cut} frames cut] …")
    return places


def _place(frame: FrameType, line: int | None) -> str:
    code = frame.f_code
    linecache.lazycache(code.co_filename, frame.f_globals)  # for sources in archives
    return _place_in(code.co_filename, line or 0, code.co_qualname)  # None in generated code


@lru_cache(1_000)
def _place_in(file: str, line: int, name: str) -> str:
    """Write a place in the code with its source; cached, because many failures share it."""
    source = linecache.getline(file, line).strip()
    place = f'  File "{file}", line {line}, in {name}'
    return f"{place}\n    {source[:200]}" if source else place


def _spoken(value: object) -> str:
    """Return `str(value)`, or a note that it raised."""
    try:
        return str.__str__(str(value))
    except BaseException as flaw:
        return f"(its text could not be made: {type(flaw).__name__})"
