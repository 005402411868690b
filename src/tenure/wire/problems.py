"""Errors over HTTP: `application/problem+json` (RFC 9457), written and read by one table.

Each row of `KINDS` says how one class of error looks over HTTP: its status, and which of its
attributes are members of the body. The server writes by it and the client reads by it, so the
client raises the exception that the server raised. Bodies never have a traceback, SQL, a file name
or a database address. They have the id of the request, as the server's log has.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tenure.errors import (
    BulkNotFound,
    Forbidden,
    IllegalTransition,
    InvalidInput,
    JobNotFound,
    KeyConflict,
    LeaseLost,
    PayloadTooLarge,
    QueueFull,
    ReportConflict,
    SchemaMismatch,
    StoreUnavailable,
    TenureError,
    Unauthorized,
)

MEDIA_TYPE = "application/problem+json"
URN = "urn:tenure:problem:"
REQUEST_ID = "X-Request-Id"
RETRY_SECONDS = 1
"""Value of Retry-After when a queue is full or the database does not answer."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How one class of error is written. `members`: name -> attribute and constructor argument."""

    error: type[TenureError]
    status: int
    title: str
    members: Mapping[str, str] = field(default_factory=dict)
    detail: str = ""  # replaces the error's text, which may name internals


INPUT = {"detail": "message", "path": "path"}
KINDS: tuple[Kind, ...] = (
    Kind(PayloadTooLarge, 413, "Payload too large", INPUT),
    Kind(InvalidInput, 400, "Invalid input", INPUT),
    Kind(Unauthorized, 401, "Authentication required"),
    Kind(Forbidden, 403, "Not permitted"),
    Kind(JobNotFound, 404, "No such job", {"job_id": "job_id"}),
    Kind(BulkNotFound, 404, "No such bulk action", {"bulk_id": "bulk_id"}),
    Kind(
        IllegalTransition,
        409,
        "The job's status does not allow this",
        {
            "job_id": "job_id",
            "status_of_job": "status",
            "event": "event",
            "legal_events": "legal",
            "reason": "reason",
        },
    ),
    Kind(LeaseLost, 409, "Lease lost", {"job_id": "job_id", "ended_by": "ended_by"}),
    Kind(
        ReportConflict,
        409,
        "Another outcome is on record",
        {"job_id": "job_id", "reported": "reported", "recorded": "recorded"},
    ),
    Kind(
        KeyConflict,
        422,
        "The idempotency key was used for another request",
        {"idempotency_key": "key", "job_id": "job_id"},
    ),
    Kind(QueueFull, 429, "The queue is full", {"queue": "queue", "max_pending": "max_pending"}),
    Kind(
        StoreUnavailable,
        503,
        "The database did not answer",
        detail="the database did not answer and the outcome may be unknown; send it again, "
        "with an idempotency key if one job must not become two",
    ),
    Kind(
        SchemaMismatch,
        503,
        "The database schema does not match",
        detail="the database's schema does not fit this version of Tenure; see the server's log",
    ),
)

Maybe = msgspec.UnsetType


class ProblemBody(msgspec.Struct, frozen=True, kw_only=True):
    """A problem of RFC 9457. Programs decide by `code`, which is stable."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str | Maybe = msgspec.UNSET
    path: str | Maybe = msgspec.UNSET
    job_id: str | Maybe = msgspec.UNSET
    bulk_id: str | Maybe = msgspec.UNSET
    status_of_job: str | Maybe = msgspec.UNSET
    event: str | Maybe = msgspec.UNSET
    legal_events: Sequence[str] | Maybe = msgspec.UNSET
    reason: str | Maybe = msgspec.UNSET
    ended_by: str | Maybe = msgspec.UNSET
    reported: str | Maybe = msgspec.UNSET
    recorded: str | Maybe = msgspec.UNSET
    idempotency_key: str | Maybe = msgspec.UNSET
    queue: str | Maybe = msgspec.UNSET
    max_pending: int | Maybe = msgspec.UNSET


class Refusal(Exception):
    """A request that HTTP refuses before Tenure sees it: wrong method, host or media type."""

    def __init__(
        self,
        status: int,
        code: str,
        title: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.title = title
        self.detail = detail
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem as a response: status, headers and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def request_id_of(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """Return the `X-Request-Id` of a refused request if it is plain, otherwise a new id."""
    given = [value for name, value in headers if name == b"x-request-id"]
    if len(given) == 1 and _is_plain(given[0]):
        return given[0].decode()
    return secrets.token_hex(8)


_is_plain = re.compile(rb"[A-Za-z0-9_.-]{1,64}").fullmatch


def problem_of(error: Exception, instance: str, request_id: str) -> Problem:
    """Return the problem for an error; `instance` is the path of the request."""
    about = {"instance": instance, "request_id": request_id}
    if isinstance(error, Refusal):
        return _problem(error.status, error.code, error.title, error.detail, about, error.headers)
    for kind in KINDS:
        if isinstance(error, kind.error):
            return _of_kind(kind, error, about)
    text = "the server failed on this request; its log says why"
    return _problem(500, "internal_error", "Internal error", text, about, {})


def _of_kind(kind: Kind, error: TenureError, about: Mapping[str, str]) -> Problem:
    members = {member: getattr(error, name) for member, name in kind.members.items()}
    members = {member: value for member, value in members.items() if value not in ("", None)}
    detail = members.pop("detail", None) or kind.detail or str(error)
    headers: dict[str, str] = {}
    if kind.status in (429, 503):
        headers["Retry-After"] = str(RETRY_SECONDS)
    if kind.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="tenure"'
    return _problem(kind.status, error.code, kind.title, detail, about, headers, members)


def _problem(
    status: int,
    code: str,
    title: str,
    detail: str,
    about: Mapping[str, str],
    headers: Mapping[str, str],
    members: Mapping[str, Any] | None = None,
) -> Problem:
    body = ProblemBody(
        type=f"{URN}{code}",
        title=title,
        status=status,
        detail=storable(detail),
        code=code,
        **{name: _clean(value) for name, value in {**about, **(members or {})}.items()},
    )
    named = {**headers, REQUEST_ID: about["request_id"]}
    return Problem(status, named, msgspec.json.encode(body))


def _clean(value: Any) -> Any:
    return storable(value) if isinstance(value, str) else value


def storable(text: str) -> str:
    """Escape what UTF-8 cannot encode; paths and messages may quote the request."""
    return text.encode("utf-8", "backslashreplace").decode()


def error_of(status: int, body: bytes) -> TenureError:
    """Return the exception for an error response.

    Every 5xx is StoreUnavailable: the client may ask again. A response that is not a problem of
    Tenure is a TenureError.
    """
    try:
        problem = msgspec.json.decode(body, type=ProblemBody)
    except (msgspec.DecodeError, msgspec.ValidationError):
        text = f"the server answered {status} without saying why"
        return StoreUnavailable(text) if status >= 500 else TenureError(text)
    kinds = [kind for kind in KINDS if kind.status == problem.status]
    kind = next((k for k in kinds if k.members is INPUT or k.error.code == problem.code), None)
    if kind is None or status >= 500:
        return StoreUnavailable(problem.detail) if status >= 500 else TenureError(problem.detail)
    if not kind.members:
        return kind.error(problem.detail)
    values = {
        name: value
        for member, name in kind.members.items()
        if (value := getattr(problem, member)) is not msgspec.UNSET
    }
    if kind.members is INPUT:
        values["code"] = problem.code
    try:
        return kind.error(**values)
    except TypeError:  # a member is missing: a newer or older server
        return TenureError(problem.detail)
