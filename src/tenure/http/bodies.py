"""The bodies of requests: received, decoded and checked without holding up the event loop.

No body holds the event loop for more than milliseconds. The values of a body are counted in its
bytes while it arrives, and one with too many is refused before the rest of it is received. A small
body is decoded where it arrives. Others are decoded on one thread, one after the other. Decoding
holds the interpreter, so that an array is decoded item by item there, and other threads get their
turn between two items.

What is decoded becomes the type that the call takes. A refusal names the field that does not fit,
and what it can be, but repeats no value.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import json
import re
import typing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import inspect
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from tenure.errors import InvalidInput, PayloadTooLarge
from tenure.http.guard import NO_CALLER
from tenure.rules.tokens import CALLER
from tenure.values import payload
from tenure.values.payload import learn
from tenure.wire import requests
from tenure.wire.problems import RETRY_LATER, Refusal

if TYPE_CHECKING:
    from tenure.http.call import Body

T = TypeVar("T")

JSON = "application/json"
SMALL_BODY = 64 * 1024
"""Largest request without a payload, and what may surround a payload, in bytes."""
READ_IN_PLACE = 16 * 1024
"""Largest body that is decoded and checked on the event loop, in bytes."""
MAX_VALUES = 100_000
"""Values of one job or report."""
MAX_BATCH_VALUES = 1_000_000
MAX_ITEM_BYTES = 2 * payload.MAX_PAYLOAD_BYTES
"""Largest job or report of a batch, with its place in the array."""
MAX_HELD_BYTES = 64 * 1024 * 1024
"""Bytes of all bodies that one `BodyReader` holds. Above that it accepts small bodies only."""
ADVICE = "send fewer, or keep large data elsewhere and pass its address"
SLICE = 32 * 1024
"""Bytes that are looked at in one step while values are counted."""
RECEIVE_SECONDS = 60.0
"""Time that a body may take to arrive. A slow client must not hold a request open for longer."""
OPEN_RECEIVE_SECONDS = 5.0
"""The same, on paths that are open to all."""


class BodyReader:
    """Reads bodies, and does the work that large ones bring on a thread, one after the other."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "tenure-bodies")
        self._held = 0

    async def read(self, body: Body, request: Request) -> tuple[Any, bool]:
        """Return the body as the type that the call takes, and whether it is large.

        Raises InvalidInput or Refusal.
        """
        if body.form and _is_empty_form(request):
            return None, False
        _check_media_type(request, optional=body.optional)
        held = 0
        values = _Values(MAX_BATCH_VALUES if body.item else MAX_VALUES)

        def hold(part: bytes) -> None:
            nonlocal held
            held += len(part)
            self._held += len(part)
            if self._held > MAX_HELD_BYTES and held > SMALL_BODY:
                raise _crowded()
            values.arrived(part, small=held <= READ_IN_PLACE)

        try:
            data = await receive(request, body.limit, hold)
            if not data and body.optional:
                return body.type() if isinstance(body.type, type) else None, False
            if not data:
                raise InvalidInput("the request has no body; send JSON", path="$")
            if len(data) <= READ_IN_PLACE:
                return _read_whole(data, body), False
            return await self.run(_read_large, data, body), True
        finally:
            self._held -= held

    async def run(self, make: Callable[..., T], *given: Any) -> T:
        """Call `make` on the thread, after what other requests have it do."""
        call = functools.partial(contextvars.copy_context().run, make, *given)
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _crowded() -> Refusal:
    return Refusal(
        503,
        "too_many_bodies",
        "Too many large bodies",
        f"this server already holds {MAX_HELD_BYTES} bytes of requests, which is its limit; send "
        "it again in a moment, in smaller parts",
        RETRY_LATER,
    )


def _check_media_type(request: Request, *, optional: bool) -> None:
    """Refuse everything but plain JSON in UTF-8: other sites' pages could send forms or text."""
    if [pair for pair in request.scope["headers"] if pair[0] in _ABOUT_BODIES] == _PLAIN:
        return  # as nearly all send it; what follows takes eight times as long
    given = request.headers.getlist("content-type")
    if not given and optional:
        return
    media_type, _, parameters = (given[0] if len(given) == 1 else "").partition(";")
    charset = parameters.strip().lower().replace('"', "").replace(" ", "")
    (encoding, *_) = request.headers.getlist("content-encoding") or ["identity"]
    if media_type.strip().lower() != JSON or charset not in ("", "charset=utf-8"):
        advice = f"send Content-Type: {JSON}, in UTF-8"
    elif encoding.strip().lower() != "identity":
        advice = "send the body without Content-Encoding"
    else:
        return
    raise Refusal(415, "unsupported_media_type", "Unsupported media type", advice, {"Accept": JSON})


def _is_empty_form(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_form = kind == "application/x-www-form-urlencoded"
    return is_form and request.headers.get("content-length") == "0"


_ABOUT_BODIES = frozenset({b"content-type", b"content-encoding"})
_PLAIN = [(b"content-type", JSON.encode())]


async def receive(
    request: Request, limit: int, hold: Callable[[bytes], None] = lambda part: None
) -> bytes:
    """Receive the body, at most `limit` bytes, in time. The rest of a larger one is not read.

    `hold` is called with each part; what it raises ends the body.
    """
    if _declared_bytes(request.headers) > limit:
        raise PayloadTooLarge(f"over the limit of {limit} bytes here", path="$")
    task = asyncio.current_task()
    assert task is not None
    # Like `asyncio.timeout`, at a third of the cost, which would exceed that of reading the body.
    seconds = OPEN_RECEIVE_SECONDS if request.scope[CALLER] is NO_CALLER else RECEIVE_SECONDS
    timer = asyncio.get_running_loop().call_later(seconds, task.cancel, _TOO_SLOW)
    received = BytesIO()  # which gives what it holds without another copy of it
    size = 0
    try:
        more = True
        while more:  # as `request.stream` does, without a generator
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk, more = message.get("body", b""), message.get("more_body", False)
            size += len(chunk)
            if size > limit:
                raise PayloadTooLarge(f"over the limit of {limit} bytes here", path="$")
            hold(chunk)
            received.write(chunk)
        return received.getvalue()
    except asyncio.CancelledError as cancelled:
        if cancelled.args != (_TOO_SLOW,) or task.uncancel():  # another cancellation
            raise
        raise Refusal(
            408,
            "request_timeout",
            "The body took too long",
            f"the body did not arrive within {seconds:g} seconds",
            {"Connection": "close"},
        ) from None
    finally:
        timer.cancel()


_TOO_SLOW = "the body took too long"


def _declared_bytes(headers: Headers) -> int:
    """Return the declared length of a body; 0 if none is declared."""
    length = headers.get("content-length", "0")
    return int(length) if length.isdecimal() and len(length) < 16 else 10**16


# --- decoding -------------------------------------------------------------------------------------


def _read_whole(data: bytes, body: Body) -> Any:
    value = payload.parse(data, limit=body.limit, max_depth=body.depth, lenient=body.lenient)
    return convert(value, body.type)


def _read_large(data: bytes, body: Body) -> Any:
    """Do what `_read_whole` does, arrays item by item."""
    return _read_items(data, body) if body.item else _read_whole(data, body)


class _Values:
    """Counts the values of a JSON text that comes in parts; the keys of objects do not count.

    Counted is what precedes a value: a comma or an open bracket, outside of strings.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._in_string = False
        self._escape = b""  # its other half is in the next part
        self._early = b""  # not counted unless more follows

    def arrived(self, part: bytes, *, small: bool) -> None:
        """Count a part of a body, unless all is small until now; raises PayloadTooLarge."""
        if small:
            self._early += part
            return
        part, self._early = self._early + part, b""
        if self.reach(part, 0, len(part)) < len(part):
            raise PayloadTooLarge(f"more than {self._most} values; {ADVICE}", path="$")

    def reach(self, data: bytes, start: int, stop: int) -> int:
        """Return where there are too many, at most a slice earlier; `stop` if there are not."""
        for at in range(start, stop, SLICE):
            plain = self._escape + data[at : min(at + SLICE, stop)]
            plain = plain.replace(rb"\\", b"").replace(rb"\"", b"")
            self._escape = plain[-1:] if plain.endswith(b"\\") else b""
            parts = plain.split(b'"')
            self._count += len(b"".join(parts[self._in_string :: 2]).translate(None, _UNCOUNTED))
            self._in_string ^= len(parts) % 2 == 0
            if self._count > self._most:
                return at
        return stop


def _read_items(data: bytes, body: Body) -> list[Any]:
    """Return the items of an array, decoded, checked and converted one by one."""
    items: list[Any] = []
    for item in _items(data, body):
        path = f"$[{len(items)}]"
        if len(items) == body.most:
            raise InvalidInput(f"more than {body.most} items; send fewer at once", path="$")
        if not body.lenient:
            payload.walk(item, path, MAX_ITEM_BYTES, body.depth - 1)
        made = convert(item, body.item, root=path)
        if isinstance(made, requests.Request):
            made.pack(path)  # else the garbage collector would walk a million values
        items.append(made)
    return items


def _items(data: bytes, body: Body) -> Iterator[object]:
    """Yield the items of an array.

    Only a window of the text is decoded at a time, so that a huge item is refused unread. Where a
    window cuts an item, the next one begins before it.
    """
    decode = payload.decoder(lenient=body.lenient).raw_decode
    start = count = 0
    while True:
        stop = min(start + MAX_ITEM_BYTES, len(data))
        if stop - start > 2 * MAX_VALUES:
            stop = _Values(MAX_VALUES + SLICE).reach(data, start, stop)
        text, stop = _window(data, start, stop, body)
        at = end = 0
        try:
            while True:
                item, end = _next(decode, text, at, is_first=count == 0)
                if item is _END:
                    break
                yield item
                at, count = end, count + 1
        except RecursionError:
            raise InvalidInput("nested too deep; flatten it", path=f"$[{count}]") from None
        except json.JSONDecodeError as flaw:
            near_end = flaw.msg.startswith("Unterminated") or flaw.pos > len(text) - MAX_MARK
            if stop == len(data) or not near_end:
                place = start + len(text[: flaw.pos].encode())
                problem = f"not the JSON that this call takes, at byte {place}: {flaw.msg}"
                raise InvalidInput(problem, path="$") from None
            if at == 0:
                limits = f"more than {MAX_ITEM_BYTES} bytes or {MAX_VALUES} values"
                raise PayloadTooLarge(f"{limits}; {ADVICE}", path=f"$[{count}]") from None
            start += len(text[:at].encode())
            continue
        if text[end:].strip(BLANKS) or data[stop:].strip(BLANKS.encode()):
            raise InvalidInput("something follows the array; send one value", path="$")
        return


def _window(data: bytes, start: int, stop: int, body: Body) -> tuple[str, int]:
    """Return the text of a part of `data`, and where it stops: before a character it would cut."""
    while stop < len(data) and data[stop] & 0xC0 == 0x80:
        stop -= 1
    part = data[start:stop]
    if not body.lenient and payload.may_nest_deeper(part, body.depth):
        raise InvalidInput(f"nested more than {body.depth} levels deep; flatten it", path="$")
    try:
        return part.decode(), stop
    except UnicodeDecodeError as flaw:
        raise InvalidInput(
            f"not UTF-8 at byte {start + flaw.start}; send UTF-8", path="$"
        ) from None


def _next(
    decode: Callable[[str, int], tuple[object, int]], text: str, at: int, *, is_first: bool
) -> tuple[object, int]:
    """Return the next item of an array, or `_END`, and where that ends in `text`.

    `at` is the end of the item before, or the place before the array. Raises JSONDecodeError.
    """
    at = _past_blanks(text, at)
    if not is_first and text[at : at + 1] == "]":
        return _END, at + 1
    expected = "[" if is_first else ","
    if text[at : at + 1] != expected:
        raise json.JSONDecodeError(f"Expecting {expected!r}", text, at)
    at = _past_blanks(text, at + 1)
    if is_first and text[at : at + 1] == "]":
        return _END, at + 1
    return decode(text, at)


def _past_blanks(text: str, at: int) -> int:
    found = _find_other(text, at)
    return found.start() if found else len(text)


_END = object()
BLANKS = " \t\n\r"
_find_other = re.compile(f"[^{BLANKS}]").search
MAX_MARK = len(r"\ud83d\ude00")
"""Characters before the end of a text in which a reader may miss what comes behind it."""
_UNCOUNTED = bytes(set(range(256)) - set(b",[{"))


# --- converting -----------------------------------------------------------------------------------


def convert(value: object, kind: type[T], *, strict: bool = True, root: str = "$") -> T:
    """Return `value` as `kind`; raises InvalidInput with the path of the field that does not fit.

    `value` is what a JSON parser returns. `strict=False` is for queries: it reads numbers in text.
    """
    try:
        return msgspec.convert(_whole(value, kind), kind, strict=strict)
    except UnicodeEncodeError:
        raise InvalidInput("half of a surrogate pair in a name; remove it", path=root) from None
    except msgspec.ValidationError as flaw:
        message, _, path = str(flaw).partition(" - at `$")
        path = path.rstrip("`")
        message = advice(message, kind, path)
        if not root.startswith("$"):
            path = path.lstrip(".")
        raise InvalidInput(message, path=f"{root}{path}") from None


def _whole(value: object, kind: Any) -> object:
    """Return `value` with 58.0 as 58 where an integer is wanted: JSON has one kind of number."""
    inner = _inner_structs(kind)
    if isinstance(value, dict) and not inner and float not in map(type, value.values()):
        return value
    while typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is list and isinstance(value, list):
        return [_whole(item, typing.get_args(kind)[0]) for item in value]
    if not isinstance(value, dict) or not _is_struct(kind):
        return value
    whole = _whole_fields(kind)
    return {
        name: int(item)
        if type(item) is float and name in whole and item.is_integer()
        else (_whole(item, inner[name]) if name in inner else item)
        for name, item in value.items()
    }


@functools.cache
def _inner_structs(kind: Any) -> dict[str, Any]:
    """The fields of a struct that are structs or lists of them, also if they may be None."""
    learn(kind)
    types = typing.get_type_hints(kind) if _is_struct(kind) else {}
    inner = {}
    for name, type in types.items():
        union = typing.get_origin(type) in (typing.Union, UnionType)
        for one in typing.get_args(type) if union else (type,):
            if _is_struct(one) or any(map(_is_struct, typing.get_args(one))):
                inner[name] = one
    return inner


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


@functools.cache
def _whole_fields(kind: type[msgspec.Struct]) -> frozenset[str]:
    types = typing.get_type_hints(kind)  # without their annotations
    return frozenset(name for name, type in types.items() if int in (type, *typing.get_args(type)))


# --- advice ---------------------------------------------------------------------------------------

A_TIME = "not a time; write it with its zone, such as 2026-11-24T15:42:00Z, in an address %2B for +"
_quoted, _word = re.compile("`[^`]*`"), re.compile(r"\w+")
_TYPES = {"int": "integer", "float": "number", "str": "string", "bool": "boolean"}


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
