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
from urllib.parse import quote

import msgspec

from tenure import errors
from tenure.rules.ledger import EventName, StatusName

MEDIA_TYPE = "application/problem+json"
URN = "urn:tenure:problem:"
REQUEST_ID = "X-Request-Id"
RETRY_LATER = {"Retry-After": "1"}
"""Sent when a queue is full, the database does not answer, or the server stops."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How one class of error is written. `members`: name -> attribute and constructor argument."""

    error: type[errors.TenureError]
    status: int
    title: str
    members: Mapping[str, str] = field(default_factory=dict)
    detail: str = ""  # replaces the error's text, which may name internals


INPUT = {"detail": "message", "path": "path"}
KINDS: tuple[Kind, ...] = (
    Kind(errors.PayloadTooLarge, 413, "Payload too large", INPUT),
    Kind(errors.InvalidInput, 400, "Invalid input", INPUT),
    Kind(errors.Unauthorized, 401, "Authentication required"),
    Kind(errors.Forbidden, 403, "Not permitted"),
    Kind(errors.JobNotFound, 404, "No such job", {"job_id": "job_id"}),
    Kind(errors.BulkNotFound, 404, "No such bulk action", {"bulk_id": "bulk_id"}),
    Kind(errors.ScheduleNotFound, 404, "No such schedule", {"schedule": "name"}),
    Kind(errors.SignalTokenNotFound, 404, "No such token"),
    Kind(errors.WorkflowNotFound, 404, "No such workflow", {"workflow_id": "workflow_id"}),
    Kind(
        errors.IllegalEdition,
        409,
        "The schedule cannot be changed so",
        {"schedule": "name", "edition": "edition", "reason": "reason"},
    ),
    Kind(
        errors.IllegalTransition,
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
    Kind(errors.LeaseLost, 409, "Lease lost", {"job_id": "job_id", "ended_by": "ended_by"}),
    Kind(
        errors.KeyConflict,
        422,
        "The idempotency key was used for another request",
        {"idempotency_key": "key", "job_id": "job_id", "workflow_id": "workflow_id"},
        "this idempotency key was used with a different request; send the first request "
        "unchanged, or choose a new key",
    ),
    Kind(errors.DuplicateJob, 409, "Another job is the same", {"job_id": "job_id"}),
    Kind(
        errors.QueueFull,
        429,
        "The queue is full",
        {"queue": "queue", "max_pending": "max_pending"},
        "the queue has as many pending jobs as its limit allows; try again later",
    ),
    Kind(errors.LimitConflict, 409, "The limits of the queue do not allow this"),
    Kind(
        errors.WriteRefused,
        409,
        "The database refused this",
        detail="a rule of the database, such as a trigger, refused this and nothing was written; "
        "see the server's log",
    ),
    Kind(
        errors.StoreUnavailable,
        503,
        "The database is not available",
        detail="the database did not answer and the outcome may be unknown; send it again, "
        "with an idempotency key if one job must not become two",
    ),
    Kind(
        errors.StoreMoved,
        503,
        "The jobs are in another database",
        detail="the jobs were moved to another database; send it again when the server was started "
        "again with that address",
    ),
    Kind(
        errors.SchemaMismatch,
        503,
        "The database schema does not match",
        detail="the database's schema does not fit this version of Tenure; see the server's log",
    ),
)

HEADERS: Mapping[int, Mapping[str, str]] = {
    401: {"WWW-Authenticate": 'Bearer realm="tenure"'},
    429: RETRY_LATER,
    503: RETRY_LATER,
}
"""What is sent with the errors of `KINDS`, by status."""

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
    schedule: str | Maybe = msgspec.UNSET
    workflow_id: str | Maybe = msgspec.UNSET
    edition: int | Maybe = msgspec.UNSET
    status_of_job: StatusName | Maybe = msgspec.UNSET
    event: str | Maybe = msgspec.UNSET
    legal_events: Sequence[EventName] | Maybe = msgspec.UNSET
    reason: str | Maybe = msgspec.UNSET
    ended_by: str | Maybe = msgspec.UNSET
    idempotency_key: str | Maybe = msgspec.UNSET
    queue: str | Maybe = msgspec.UNSET
    max_pending: int | Maybe = msgspec.UNSET


@dataclass(eq=False)
class Refusal(Exception):
    """A request that HTTP refuses before Tenure sees it: wrong method, host or media type."""

    status: int
    code: str
    title: str
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)


INTERNAL = Refusal(
    500, "internal_error", "Internal error", "the server failed on this request; its log says why"
)


def problem_of(
    error: Exception, path: str, headers: Sequence[tuple[bytes, bytes]]
) -> tuple[ProblemBody, dict[str, str]]:
    """Return the problem for an error, and the headers of its answer.

    `path` and `headers` are those of the request. The `X-Request-Id` is the request's own if that
    is plain, otherwise new.
    """
    refusal, given = _refusal_of(error)
    members: Any = {n: storable(it) if isinstance(it, str) else it for n, it in given.items()}
    ids = [value for name, value in headers if name == b"x-request-id"]
    plain = len(ids) == 1 and _is_plain(ids[0])
    request_id = ids[0].decode() if plain else secrets.token_hex(8)
    body = ProblemBody(
        type=f"{URN}{refusal.code}",
        title=refusal.title,
        status=refusal.status,
        detail=storable(refusal.detail),
        instance=quote(storable(path)),
        code=refusal.code,
        request_id=request_id,
        **members,
    )
    return body, {**refusal.headers, REQUEST_ID: request_id}


_is_plain = re.compile(rb"[A-Za-z0-9_.-]{1,64}").fullmatch


def _refusal_of(error: Exception) -> tuple[Refusal, dict[str, Any]]:
    """Return how HTTP refuses because of an error, and the members that the body also has."""
    if isinstance(error, Refusal):
        return error, {}
    for kind in KINDS:
        if isinstance(error, kind.error):
            given = {member: getattr(error, name) for member, name in kind.members.items()}
            members = {member: value for member, value in given.items() if value not in ("", None)}
            known = getattr(error, "_known", "")
            detail = members.pop("detail", None) or known or kind.detail or str(error)
            headers = HEADERS.get(kind.status, {})
            return Refusal(kind.status, error.code, kind.title, detail, headers), members
    return INTERNAL, {}


def storable(text: str) -> str:
    """Escape what UTF-8 cannot encode; paths and messages may quote the request."""
    return text.encode("utf-8", "backslashreplace").decode()


OF_REQUESTS = frozenset({400, 403, 405, 411, 413, 414, 415, 422, 431})
"""Statuses with which a gateway may refuse one request, such as a large one, and not the others."""


def error_of(status: int, body: bytes) -> errors.TenureError:
    """Return the exception for an error response.

    Every 5xx is StoreUnavailable: the client may ask again. Of what is no problem of Tenure, only
    an answer that can be about the request itself is another TenureError.
    """
    try:
        problem = msgspec.json.decode(body, type=ProblemBody)
    except msgspec.MsgspecError:
        text = f"the server answered {status} without saying why: is there something before it?"
        return errors.TenureError(text) if status in OF_REQUESTS else errors.StoreUnavailable(text)
    if status >= 500:
        return errors.StoreUnavailable(problem.detail)
    kinds = [kind for kind in KINDS if kind.status == problem.status]
    kind = next((k for k in kinds if k.members is INPUT or k.error.code == problem.code), None)
    if kind is None:
        return errors.TenureError(problem.detail)
    if not kind.members:
        return kind.error(problem.detail)
    given = {name: getattr(problem, member) for member, name in kind.members.items()}
    values = {name: value for name, value in given.items() if value is not msgspec.UNSET}
    if kind.members is INPUT:
        values["code"] = problem.code
    try:
        return kind.error(**values)
    except TypeError:  # a member is missing: a newer or older server
        return errors.TenureError(problem.detail)
