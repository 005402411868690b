"""What describes a call of the HTTP API: its path, its scopes, its body, its answers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from tenure.http.api.bodies import SMALL_BODY
from tenure.http.guard import LINK_PATH
from tenure.tokens.scopes import Scope

if TYPE_CHECKING:
    from tenure.http.api.call import Call

SCHEDULE = "/schedules/{name}"
TO_JOB = "/jobs/{id}/signals/{signal}"
LINK = f"{LINK_PATH}{{token}}"
OF_LEASE = "/leases/{lease}"
OF_LIMITS = ("/queues/{name}/limit", "/queues/{name}/partition")


@dataclass(frozen=True, slots=True)
class Body:
    """The body that a call takes: its type, its largest size and depth, whether it is optional."""

    type: Any
    limit: int = SMALL_BODY  # bytes
    depth: int = 8  # levels of nesting
    optional: bool = False
    form: bool = False  # an empty form of a page is as no body
    lenient: bool = False  # for reports: text and numbers that no database keeps are let through
    item: Any = None  # the type of each item, if the body is an array
    most: int = 0  # items


@dataclass(frozen=True, slots=True)
class Reply:
    """One way in which a call succeeds."""

    type: Any  # of the JSON; None if the answer is never JSON
    text: str
    status: int = 200
    also: tuple[str, ...] = ()  # media types other than JSON, sent unless JSON is asked for
    headers: tuple[str, ...] = ()


class Route:
    """One call of the API."""

    def __init__(
        self,
        method: str,
        path: str,
        scopes: frozenset[Scope],
        endpoint: Callable[[Call], Any],
        *answers: Reply,
        body: Body | None = None,
        query: type[Struct] | None = None,
        headers: Sequence[str] = (),
    ) -> None:
        """Describe a call that reads `headers` and needs one of `scopes`, or no token if none."""
        self.method, self.path, self.scopes, self.endpoint = method, path, scopes, endpoint
        self.answers = {answer.status: answer for answer in answers}
        self.body, self.query, self.headers = body, query, headers
        self.is_async = inspect.iscoroutinefunction(endpoint)
        self.summary = (inspect.getdoc(endpoint) or "").partition("\n")[0]
        first, *others = endpoint.__name__.split("_")
        self.name = first + "".join(map(str.capitalize, others))

    @property
    def refusals(self) -> tuple[int, ...]:
        """The statuses of refusals that depend on what the call does."""
        if self.path.startswith(("/jobs", "/workflows")) and 201 in self.answers:
            return (404, 409, 422, 429)
        if self.path == LINK:
            return (404, 409, 429)
        if "{id}" in self.path and self.path != TO_JOB:
            changes_a_job = self.path.startswith("/jobs/") and self.method != "GET"
            return (404, 409) if changes_a_job else (404,)
        if self.path.startswith(OF_LEASE):
            return (409,)
        if self.path == TO_JOB:
            return (404, 409, 422)
        if self.path in OF_LIMITS:
            return (409,)
        if self.path == f"{SCHEDULE}/trigger":
            return (404, 422)
        if self.path.startswith(SCHEDULE):
            return {"PUT": (409, 412), "DELETE": (404, 412)}.get(self.method, (404,))
        return ()
