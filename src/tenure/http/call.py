"""One HTTP call: how it is described, what it takes and answers, how it is found, read and run.

A `Route` describes a call of the API: its path, its scopes, its body, its answers. `Dispatcher` is
the API as an ASGI application: it finds the `Route` of a request, checks the caller's scopes, reads
and checks query and body, and passes them as a `Call` to the endpoint. An endpoint makes one call
on the application and encodes the answer. A plain `def` endpoint runs in a thread, an `async def`
endpoint on the event loop. Errors become problems.

Starlette's router does the same through several layers of calls per request, which take a third of
a request's time.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, urlencode
from uuid import UUID

import msgspec
from anyio import CapacityLimiter, to_thread
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from tenure import errors, failpoints
from tenure.app.app import Tenure, limited_to
from tenure.http.bodies import JSON, SMALL_BODY, BodyReader, convert
from tenure.http.guard import LINK_PATH, as_problem, loggable, path_in
from tenure.http.waiting import READS_AT_ONCE, WorkNotifier
from tenure.lifecycle import Job
from tenure.rules.steps import JobProgress
from tenure.rules.tokens import CALLER, Caller, Scope, tokens_with
from tenure.values.redaction import Redaction
from tenure.wire import responses
from tenure.wire.problems import REQUEST_ID, RETRY_LATER, Refusal

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class Call:
    """One request, read and checked."""

    app: Tenure  # limited to the queues of the caller
    notifier: WorkNotifier
    request: Request
    path: Mapping[str, str]  # the variable parts of the path
    caller: Caller
    redaction: Redaction
    body: Any = None
    query: Any = None
    reader: BodyReader | None = None  # if the body is large

    async def compute(self, make: Callable[..., T], *given: Any) -> T:
        """Call `make`, off the event loop if the body is large: its cost grows with the body."""
        return make(*given) if self.reader is None else await self.reader.run(make, *given)

    def shown(self, job: Job, progress: JobProgress | None = None) -> responses.JobBody:
        """Return the JSON of a job, without what is redacted."""
        job = self.redaction.job(job) if self.redaction.keys else job
        return responses.job_body(job, progress)

    def address(self, path: str) -> str:
        """Return `path` as the client sees it, wherever the API is mounted."""
        root = self.request.scope.get("root_path", "")
        return f"{quote(root)}{path}" if root else path

    def header(self, name: str) -> str | None:
        """Return a header, or None; raises InvalidInput if it was sent several times."""
        values = self.request.headers.getlist(name)
        if len(values) > 1:
            raise errors.InvalidInput("send this header once", path=name)
        return values[0] if values else None

    def take_no_key(self, advice: str) -> None:
        """Raise InvalidInput for an `Idempotency-Key`: a call that ignored it would add twice."""
        if self.header("Idempotency-Key") is not None:
            raise errors.InvalidInput(
                f"this call takes no such header; {advice}", path="Idempotency-Key"
            )

    def check_running(self) -> None:
        """Raise Refusal if the server is shutting down."""
        if self.notifier.stopped:
            raise Refusal(
                503,
                "shutting_down",
                "The server is shutting down",
                "the server is shutting down and takes nothing new; send it again in a moment",
                RETRY_LATER,
            )


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return `value` as a JSON response."""
    return Response(msgspec.json.encode(value), status, headers, media_type=JSON)


# --- pages ----------------------------------------------------------------------------------------

Cursor = Annotated[str, Meta(pattern="^[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}$")]
"""The last id of a page without its hyphens. Clients send it back unchanged."""


def id_of(cursor: str | UnsetType) -> str | None:
    """Return the last id of the page before; None for the first page."""
    return None if cursor is UNSET else str(UUID(cursor))


def next_page(call: Call, path: str, last: str | None) -> dict[str, str]:
    """Return the header with the address of the page behind an id; none for None."""
    if last is None:
        return {}
    query = {**call.request.query_params, "cursor": last.replace("-", "")}
    return {"Link": f'<{call.address(path)}?{urlencode(query)}>; rel="next"'}


# --- finding and running a call ------------------------------------------------------------------


class Dispatcher:
    """The API as an ASGI application. `AccessGuard` has put the caller into the scope."""

    def __init__(
        self, routes: Sequence[Route], app: Tenure, notifier: WorkNotifier, redaction: Redaction
    ) -> None:
        self._app = app
        self._notifier = notifier
        self._redaction = redaction
        self._reads = CapacityLimiter(READS_AT_ONCE)
        # Apart, so that no batch of jobs delays a heartbeat or a report.
        self._work_reader, self._reader = BodyReader(), BodyReader()
        self._fixed: dict[str, dict[str, Route]] = {}
        for route in routes:
            self._fixed.setdefault(route.path, {})[route.method] = route
        self._variable = [
            (compile_path(path)[0].fullmatch, self._fixed.pop(path))
            for path in tuple(self._fixed)
            if "{" in path
        ]

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        try:
            response = await self._run(Request(scope, receive))
        except ClientDisconnect:
            response = Response(status_code=499)  # the client is gone and does not read it
        except Exception as error:
            response = failed(scope, error)
        failpoints.hit("http.before_answer")
        await response(scope, receive, send)

    async def _run(self, request: Request) -> Response:
        route, path = self._find(request.scope)
        caller: Caller = request.scope[CALLER]
        if route.scopes and not caller.may(route.scopes):
            raise errors.Forbidden(f"this call needs {tokens_with(route.scopes)}")
        app = limited_to(self._app, caller.queues)
        call = Call(app, self._notifier, request, path, caller, self._redaction)
        call.query = _read_query(route, request)
        if route.body is not None:
            reader = self._work_reader if Scope.WORK in route.scopes else self._reader
            call.body, is_large = await reader.read(route.body, request)
            call.reader = reader if is_large else None
        if route.is_async:
            response: Response = await route.endpoint(call)
        else:
            # Changes wait for commits, which take as many at once as there are.
            limiter = self._reads if route.method == "GET" else None
            response = await to_thread.run_sync(route.endpoint, call, limiter=limiter)
        return response

    def _find(self, scope: AsgiScope) -> tuple[Route, Mapping[str, str]]:
        """Return the route of a request and the variable parts of its path; raises Refusal."""
        methods, variables = self._at(path_in(scope))
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        if method not in methods:
            allowed = ", ".join(sorted({*methods, *(["HEAD"] if "GET" in methods else [])}))
            raise Refusal(
                405,
                "method_not_allowed",
                "Method not allowed",
                f"this path takes {allowed}",
                {"Allow": allowed},
            )
        return methods[method], variables

    def _at(self, path: str) -> tuple[Mapping[str, Route], Mapping[str, str]]:
        if path in self._fixed:  # /jobs/batch before /jobs/{id}
            return self._fixed[path], {}
        for match, methods in self._variable:
            if found := match(path):
                return methods, found.groupdict()
        raise Refusal(
            404,
            "not_found",
            "No such path",
            "nothing is served under this path; /openapi.json lists what is",
        )


def failed(scope: AsgiScope, error: Exception) -> Response:
    """Return the answer to a call that failed, and log what is not the caller's doing."""
    response = as_problem(scope, error)
    path = quote(loggable(scope["path"]), errors="replace")
    what = f"{scope['method']} {path}, request {response.headers[REQUEST_ID]}"
    if isinstance(
        error,
        errors.StoreUnavailable | errors.StoreMoved | errors.SchemaMismatch | errors.WriteRefused,
    ):
        log.warning("%s: %s", what, error)
    elif not isinstance(error, errors.TenureError | Refusal):
        log.error("%s failed", what, exc_info=error)
    return response


def _read_query(route: Route, request: Request) -> Any:
    """Return the query as the type that `route` takes; raises InvalidInput if it does not fit."""
    if route.query is None and not request.scope["query_string"]:
        return None
    given = request.query_params.multi_items()
    values = dict(given)
    if len(values) < len(given):
        raise errors.InvalidInput("a query parameter is given twice; give each once", path="query")
    known = route.query.__struct_encode_fields__ if route.query else ()
    for name in values:
        if name not in known:
            allowed = f"this call takes {', '.join(known)}" if known else "this call takes none"
            raise errors.InvalidInput(
                f"no such query parameter; {allowed}", path=f"query {name}"[:80]
            )
    return route.query and convert(values, route.query, strict=False, root="query ")


# --- routes ---------------------------------------------------------------------------------------

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
