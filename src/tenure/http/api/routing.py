"""One HTTP call, described once: what it takes, what it answers, and how its body is read.

The list of `Route`s is the API: what is served and the OpenAPI description are both made from it.
An endpoint gets a `Call` whose body and query have been read, bounded and checked, makes one call
on the application and encodes the answer. A plain `def` endpoint runs in a thread, an `async def`
one on the event loop.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from tenure.app.app import Tenure
from tenure.errors import InvalidInput, PayloadTooLarge
from tenure.http.api.events import WorkNotifier
from tenure.jobs import payload
from tenure.jobs.redaction import NOTHING_HIDDEN, Redaction
from tenure.lifecycle import Job
from tenure.tokens.scopes import ANYBODY, Caller, Scope
from tenure.wire import responses
from tenure.wire.problems import MEDIA_TYPE, Refusal, problem_of

JSON = "application/json"
SMALL_BODY = 64 * 1024
"""Bytes of a request that carries no payload, and of what surrounds one that does."""
RECEIVE_SECONDS = 60.0
"""A body that has not arrived by then is given up: nobody may hold a request open by dribbling."""


@dataclass(frozen=True, slots=True)
class Body:
    """What a call takes: a type, how large and deep it may be, and whether it may be left out."""

    type: Any
    limit: int = SMALL_BODY  # bytes
    depth: int = 8  # levels of nesting
    optional: bool = False
    lenient: bool = False  # reports: what JSON allows and a database does not is made storable


@dataclass(frozen=True, slots=True)
class Answer:
    """One way in which a call succeeds."""

    type: Any  # of the JSON; None if it never is JSON
    text: str
    also: tuple[str, ...] = ()  # media types beside JSON
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Route:
    """One call of the API."""

    method: str
    path: str
    name: str
    endpoint: Callable[[Call], Any]
    scopes: frozenset[Scope]  # one of which a caller needs; none: answered without a token
    answers: Mapping[int, Answer]
    refusals: tuple[int, ...] = ()  # beside those that every call can meet
    body: Body | None = None
    query: type[msgspec.Struct] | None = None
    headers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # name -> schema

    @property
    def summary(self) -> str:
        """The first line of the endpoint's docstring."""
        return (inspect.getdoc(self.endpoint) or "").partition("\n")[0]


@dataclass(slots=True)
class Call:
    """One request, read and checked."""

    app: Tenure
    notifier: WorkNotifier
    request: Request
    path: Mapping[str, str]  # its parts that vary
    caller: Caller = ANYBODY
    redaction: Redaction = NOTHING_HIDDEN
    body: Any = None
    query: Any = None

    def shown(self, job: Job) -> responses.JobBody:
        """A job as it is answered."""
        return responses.job_body(self.redaction.job(job))

    def address(self, path: str) -> str:
        """Where `path` of this API is, as seen by the client, wherever the API is mounted."""
        root = self.request.scope.get("root_path", "")
        return f"{quote(root)}{path}" if root else path

    def header(self, name: str) -> str | None:
        """A header that may be given once; raises InvalidInput if it was given several times."""
        values = sent(self.request, name.lower().encode())
        if len(values) > 1:
            raise InvalidInput("give this header once", path=name)
        return values[0] if values else None


T = TypeVar("T")


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(msgspec.json.encode(value), status, headers, media_type=JSON)


def refuse(request: Request, error: Exception, request_id: str) -> Response:
    """The answer for an error."""
    problem = problem_of(error, quote(request.scope.get("path", "")), request_id)
    return Response(problem.body, problem.status, problem.headers, media_type=MEDIA_TYPE)


# --- reading what was sent ------------------------------------------------------------------------


def sent(request: Request, header: bytes) -> list[str]:
    """What a header was given as, in lower case; as often as it was given."""
    headers = request.scope["headers"]
    return [value.decode("latin-1") for name, value in headers if name == header]


def read_query(route: Route, request: Request) -> Any:
    """The query as `route` takes it; raises InvalidInput if it does not fit."""
    if route.query is None and not request.scope["query_string"]:
        return None
    given = request.query_params.multi_items()
    values = dict(given)
    if len(values) < len(given):
        raise InvalidInput("a query parameter is given twice; give each once", path="query")
    known = route.query.__struct_encode_fields__ if route.query else ()
    for name in values:
        if name not in known:
            allowed = f"this call takes {', '.join(known)}" if known else "this call takes none"
            raise InvalidInput(f"no such query parameter; {allowed}", path=f"query {name}"[:80])
    return convert(values, route.query, strict=False, root="query ") if route.query else None


async def read_body(body: Body, request: Request) -> Any:
    """The body as `body` describes it; raises InvalidInput or Refusal if it does not fit."""
    _check_media_type(request, optional=body.optional)
    data = await _receive(request, body.limit)
    if not data and body.optional:
        return body.type()
    if not data:
        raise InvalidInput("the request has no body; send JSON", path="$")
    if body.lenient:
        value = read_leniently(data)
    else:
        value = payload.parse(data, limit=body.limit, max_depth=body.depth)
    return convert(_whole(value, body.type), body.type)


def _check_media_type(request: Request, *, optional: bool) -> None:
    """JSON in UTF-8, as it is. A form or text, which a foreign page could send, is refused."""
    given = sent(request, b"content-type")
    if not given and optional:
        return
    media_type, _, parameters = (given[0] if len(given) == 1 else "").partition(";")
    charset = parameters.strip().lower().replace('"', "").replace(" ", "")
    (encoding, *_) = sent(request, b"content-encoding") or ["identity"]
    if media_type.strip().lower() != JSON or charset not in ("", "charset=utf-8"):
        raise _unsupported(f"send Content-Type: {JSON}, in UTF-8")
    if encoding.strip().lower() != "identity":
        raise _unsupported("send the body as it is, without Content-Encoding")


def _unsupported(detail: str) -> Refusal:
    headers = {"Accept": JSON}
    return Refusal(415, "unsupported_media_type", "Unsupported media type", detail, headers)


async def _receive(request: Request, limit: int) -> bytes:
    """The body, never more than `limit` bytes of it, within `RECEIVE_SECONDS`."""
    if sent(request, b"content-length") and declared_bytes(request) > limit:
        raise PayloadTooLarge(f"over the limit of {limit} bytes here", path="$")
    task = asyncio.current_task()
    assert task is not None
    # `asyncio.timeout`, at a third of its price: here it would cost more than reading the body.
    timer = asyncio.get_running_loop().call_later(RECEIVE_SECONDS, task.cancel, _TOO_SLOW)
    try:
        return await _whole_body(request, limit)
    except asyncio.CancelledError as cancelled:
        if cancelled.args != (_TOO_SLOW,) or task.uncancel():  # somebody else wants it to end
            raise
        raise Refusal(
            408,
            "request_timeout",
            "The body took too long",
            f"the body did not arrive within {RECEIVE_SECONDS:g} seconds",
            {"Connection": "close"},
        ) from None
    finally:
        timer.cancel()


_TOO_SLOW = "the body took too long"


async def _whole_body(request: Request, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise PayloadTooLarge(f"over the limit of {limit} bytes here", path="$")
        chunks.append(chunk)
        more = message.get("more_body", False)
    return b"".join(chunks)


def declared_bytes(request: Request) -> int:
    """The length that a request says its body has; without one, more than any limit."""
    (length, *_) = sent(request, b"content-length") or [""]
    return int(length) if length.isdecimal() and len(length) < 16 else 10**16


def convert(value: object, type: type[T], *, strict: bool = True, root: str = "$") -> T:
    """`value` as `type`; raises InvalidInput with the path of the field that does not fit."""
    try:
        return msgspec.convert(value, type, strict=strict)
    except UnicodeEncodeError:
        raise InvalidInput("half of a surrogate pair in a name; remove it", path=root) from None
    except msgspec.ValidationError as flaw:
        message, _, path = str(flaw).partition(" - at `$")
        path = path.rstrip("`")
        if root != "$":
            path = path.lstrip(".")
        raise InvalidInput(message, path=f"{root}{path}") from None


def _whole(value: object, kind: Any) -> object:
    """`value` with 58.0 as 58 where a whole number is wanted: JSON knows one kind of number."""
    if typing.get_origin(kind) is typing.Annotated or typing.get_origin(kind) is list:
        inner = typing.get_args(kind)[0]
        if isinstance(value, list) and typing.get_origin(kind) is list:
            return [_whole(item, inner) for item in value]
        return _whole(value, inner)
    if not isinstance(value, dict) or not issubclass(kind, msgspec.Struct):
        return value
    whole = _whole_fields(kind)
    return {
        name: int(item) if type(item) is float and name in whole and item.is_integer() else item
        for name, item in value.items()
    }


@functools.cache
def _whole_fields(kind: type[msgspec.Struct]) -> frozenset[str]:
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    return frozenset(field.encode_name for field in info.fields if _is_whole(field.type))


def _is_whole(kind: msgspec.inspect.Type) -> bool:
    if isinstance(kind, msgspec.inspect.Metadata):
        return _is_whole(kind.type)
    if isinstance(kind, msgspec.inspect.UnionType):
        return any(map(_is_whole, kind.types))
    return isinstance(kind, msgspec.inspect.IntType)


def read_leniently(data: bytes) -> object:
    """A report: well-formed JSON in UTF-8, whatever its strings and numbers hold.

    What a handler produced is no reason not to settle its job. NUL, halves of surrogate pairs and
    endless integers come through here and are made storable further on.
    """
    try:
        return json.loads(
            data.decode(),
            parse_int=_bounded_integer,
            parse_constant=_no_constant,
            object_pairs_hook=_distinct,
        )
    except UnicodeDecodeError as flaw:
        raise InvalidInput(f"not UTF-8 at byte {flaw.start}; send UTF-8", path="$") from None
    except RecursionError:
        raise InvalidInput("nested too deep; flatten it", path="$") from None
    except json.JSONDecodeError as flaw:
        where = f"line {flaw.lineno}, column {flaw.colno}"
        raise InvalidInput(f"not valid JSON at {where}: {flaw.msg}", path="$") from None


def _bounded_integer(digits: str) -> int:
    return int(digits) if len(digits) <= 20 else 10**20


def _no_constant(name: str) -> object:
    raise InvalidInput(f"{name} is not JSON; send null or a string", path="$")


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise InvalidInput("a key is given twice in one object; remove one", path="$")
    return made
