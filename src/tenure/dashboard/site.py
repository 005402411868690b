"""The dashboard as an ASGI application: every page, who may see it, and how errors look.

Pages need the scope `read`, most buttons the scope `admin`. `http/guard.py` has admitted the
request and found its caller. A form must also come from a page of this dashboard.
"""

from __future__ import annotations

import hashlib
import logging
import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from urllib.parse import quote

import jinja2
import msgspec
from anyio import CapacityLimiter, to_thread
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route, Router
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from tenure.app.app import Tenure, limited_to
from tenure.dashboard import (
    format as fmt,
)
from tenure.dashboard import (
    jobs,
    overview,
    queues,
    schedules,
    workflows,
)
from tenure.dashboard import (
    request as dashboard_request,
)
from tenure.dashboard.push import Follower, ReadCache
from tenure.dashboard.request import (
    HEADERS,
    SESSION,
    PageRequest,
    inside,
    read_form,
    session_secret,
)
from tenure.errors import Forbidden, TenureError, Unauthorized
from tenure.http.guard import GUARD, AccessGuard, TokenCache, note_refusal, path_in
from tenure.http.waiting import READS_AT_ONCE, EventStream
from tenure.rules.tokens import Patterns, Scope, tokens_with
from tenure.values import text
from tenure.values.redaction import Redaction
from tenure.wire.problems import Refusal, problem_of

log = logging.getLogger(__name__)

Page = Callable[[PageRequest], Response]
FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"
MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = {
    file.relative_to(STATIC).as_posix(): file.read_bytes()
    for file in sorted(STATIC.rglob("*.*"))
    if file.suffix in MEDIA_TYPES
}
VERSION = hashlib.sha256(b"".join(FILES.values())).hexdigest()[:12]
"""Part of the addresses of the files, so that browsers may keep them for good."""

ICON = "/favicon.ico"
"""What browsers ask for if no page names an icon."""

OPEN_PATHS = (
    ICON,
    "/ui/sign-in",
    "/ui/sign-out",
    *(f"/ui/static/{VERSION}/{name}" for name in FILES),
)
"""Paths that are answered without a token."""

PAGES: dict[str, Page] = {
    "/": overview.show,
    "/ui": overview.moved,
    "/ui/failures": overview.failures,
    "/ui/machine": overview.machine,
    "/ui/workers": queues.workers,
    "/ui/queues": queues.show,
    "/ui/queues/{name}": queues.show_one,
    "/ui/schedules": schedules.listed,
    "/ui/schedules/{name}": schedules.show,
    "/ui/workflows": workflows.listed,
    "/ui/workflows/{id}": workflows.show,
    "/ui/jobs": jobs.listed,
    "/ui/jobs/{id}": jobs.show,
    "/ui/new": dashboard_request.shown(dashboard_request.new),
    "/ui/jobs/{id}/again": dashboard_request.shown(dashboard_request.again),
    "/ui/jobs/{id}/amend": dashboard_request.shown(dashboard_request.amend),
    "/ui/jobs/{id}/parents": workflows.parents,
    "/ui/jobs/{id}/followers": workflows.followers,
    "/ui/jobs/{id}/{part}": jobs.whole,
    "/ui/bulk": jobs.preview_bulk,
    "/ui/bulk/{id}": jobs.show_bulk,
}
ACTIONS: dict[str, tuple[Scope, Page]] = {
    "/ui/samples": (Scope.ENQUEUE, overview.add_samples),
    "/ui/jobs": (Scope.ADMIN, jobs.act_on_selected),
    "/ui/jobs/{id}/retry": (Scope.ADMIN, jobs.retry),
    "/ui/new": (Scope.ENQUEUE, dashboard_request.sent(dashboard_request.new)),
    "/ui/jobs/{id}/again": (Scope.ADMIN, dashboard_request.sent(dashboard_request.again)),
    "/ui/jobs/{id}/amend": (Scope.ADMIN, dashboard_request.sent(dashboard_request.amend)),
    "/ui/jobs/{id}/run-now": (Scope.ADMIN, jobs.run_now),
    "/ui/jobs/{id}/signal": (Scope.ENQUEUE, jobs.signal),
    "/ui/jobs/{id}/cancel": (Scope.ADMIN, jobs.cancel),
    "/ui/queues/{name}/pause": (Scope.ADMIN, queues.pause),
    "/ui/queues/{name}/resume": (Scope.ADMIN, queues.resume),
    "/ui/types/{name}/pause": (Scope.ADMIN, queues.pause_type),
    "/ui/types/{name}/resume": (Scope.ADMIN, queues.resume_type),
    "/ui/queues/{name}/limit": (Scope.ADMIN, queues.limit),
    "/ui/queues/{name}/partition/limit": (Scope.ADMIN, queues.limit_partition),
    "/ui/queues/{name}/partition/pause": (Scope.ADMIN, queues.pause_partition),
    "/ui/queues/{name}/partition/resume": (Scope.ADMIN, queues.resume_partition),
    "/ui/queues/{name}/partition/pass-over": (Scope.ADMIN, queues.pass_over),
    "/ui/schedules/{name}/pause": (Scope.ADMIN, schedules.pause),
    "/ui/schedules/{name}/resume": (Scope.ADMIN, schedules.resume),
    "/ui/schedules/{name}/trigger": (Scope.ADMIN, schedules.trigger),
    "/ui/workflows/{id}/cancel": (Scope.ADMIN, workflows.cancel),
    "/ui/workflows/{id}/retry": (Scope.ADMIN, workflows.retry),
    "/ui/bulk": (Scope.ADMIN, jobs.start_bulk),
    "/ui/bulk/{id}/stop": (Scope.ADMIN, jobs.stop_bulk),
}


def serves(scope: AsgiScope) -> bool:
    """Return whether a request is for the dashboard; every other is for the API."""
    if scope["type"] != "http":
        return False
    path = path_in(scope)
    return path in ("/", "/ui", ICON) or path.startswith("/ui/")


@dataclass(frozen=True, slots=True)
class View:
    """An application as callers with the same rights see it, and what they share."""

    app: Tenure
    cache: ReadCache
    follower: Follower


class Dashboard:
    """The pages of one application, as an ASGI application."""

    def __init__(
        self, app: Tenure, redaction: Redaction, tokens: TokenCache, stopped: Callable[[], bool]
    ) -> None:
        """`stopped` says whether the server stops, which ends the live streams."""
        self.app = app
        self.redaction = redaction
        self._pages = CapacityLimiter(READS_AT_ONCE)
        self._tokens = tokens
        self._stopped = stopped
        self._streams: set[EventStream] = set()
        self._views: dict[Patterns | None, View] = {}
        self.templates = _templates()
        self._router = Router(
            [
                Route(f"/ui/static/{VERSION}/{{name:path}}", self._file),
                Route(ICON, self._icon),
                Route("/ui/live", self._live),
                Route("/ui/sign-in", self._page(self._sign_in), methods=["GET", "POST"]),
                Route("/ui/sign-out", self._page(self._sign_out), methods=["POST"]),
                *(self._route("GET", path, Scope.READ, page) for path, page in PAGES.items()),
                *(self._route("POST", path, *action) for path, action in ACTIONS.items()),
            ],
            redirect_slashes=False,
            default=self._not_found,
        )

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        await self._router(scope, receive, send)

    def view(self, queues: Patterns | None = None) -> View:
        """Return what viewers share who may see these queues; there are as many as such tokens."""
        found = self._views.get(queues)
        if found is None:
            app = limited_to(self.app, queues)
            view = View(app, ReadCache(app), Follower(app, self._stopped, self._streams))
            found = self._views.setdefault(queues, view)
        return found

    # --- pages and forms

    def _page(
        self, answer: Callable[[PageRequest], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint that answers by `answer`, and by a page about the error it raises."""

        async def endpoint(http: Request) -> Response:
            request = PageRequest(self, http)
            try:
                if http.method == "POST":
                    request.fields = await read_form(http)
                return await answer(request)
            except Exception as error:
                return await run_in_threadpool(self.refuse, http.scope, error)

        return endpoint

    def _route(self, method: str, path: str, scope: Scope, page: Page) -> Route:
        async def answer(request: PageRequest) -> Response:
            if not request.may(scope):
                raise Forbidden(f"this needs {tokens_with([scope])}")
            try:
                limiter = self._pages if method == "GET" else None
                return await to_thread.run_sync(page, request, limiter=limiter)
            finally:
                if method == "POST":
                    request.cache.forget()

        return Route(path, self._page(answer), methods=[method])

    def refuse(self, scope: AsgiScope, error: Exception) -> Response:
        """Return the answer to a refused request; without a valid token, the way to sign in."""
        request = PageRequest(self, Request(scope))
        if not isinstance(error, TenureError | Refusal):
            log.error("%s %s failed", scope["method"], request.http.url.path, exc_info=error)
        if not isinstance(error, Unauthorized) or scope[GUARD].credentials(scope) != (None, None):
            note_refusal(scope, error)
        if isinstance(error, Unauthorized):
            return _to_sign_in(request)
        problem, headers = problem_of(error, scope["path"], scope["headers"])
        response = request.page("problem.html", problem.status, problem=problem)
        response.headers.update(headers)
        return response

    async def _not_found(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        error = Refusal(404, "not_found", "No such page", "there is nothing under this address")
        answer = await run_in_threadpool(self.refuse, scope, error)
        await answer(scope, receive, send)

    async def _sign_in(self, request: PageRequest) -> Response:
        posted = request.http.method == "POST"
        token = request.field("token") if posted else ""  # never from an address
        where = inside(request.field("next"))
        caller = await self._tokens.caller(token.encode()) if token else None
        if caller is not None:
            response = RedirectResponse(where or request.address("/"), 303)
            if caller.known:
                secret = await self._tokens.begin_session(token.encode())
                request.set_cookie(response, SESSION, secret)
            return response
        if token:
            guard: AccessGuard = request.http.scope[GUARD]
            ended = self._tokens.ended(token.encode())
            guard.refusals.note(request.http.scope, "sign_in_failed", ended)
        status = 403 if posted else 200
        page = partial(request.page, "sign_in.html", status, next=where, wrong=bool(token))
        return await run_in_threadpool(page)

    async def _sign_out(self, request: PageRequest) -> Response:
        secret = session_secret(request.http.scope)
        if secret is not None:
            await self._tokens.end_session(secret)
        response = request.go(request.address("/ui/sign-in"), "You are signed out.")
        request.set_cookie(response, SESSION, "")
        return response

    # --- files and the stream

    async def _icon(self, _: Request) -> Response:
        return Response(FILES["icon.svg"], media_type=MEDIA_TYPES[".svg"])

    async def _file(self, http: Request) -> Response:
        name = http.path_params["name"]
        if name not in FILES:
            return Response(status_code=404)
        age = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(FILES[name], media_type=MEDIA_TYPES[Path(name).suffix], headers=age)

    async def _live(self, http: Request) -> Response:
        request = PageRequest(self, http)
        may, follower = request.may(Scope.READ), self.view(request.caller.queues).follower
        return follower.stream(http) if may else Response(status_code=403)


def _to_sign_in(request: PageRequest) -> Response:
    http = request.http
    path = http.scope["path"]
    if path == request.address("/ui/live"):
        return Response(status_code=401)
    if http.method == "GET" and http.headers.get("sec-fetch-site") == "cross-site":
        # Browsers do not send the cookie with a link from another site. They send it when this
        # page asks for the same address again.
        return HTMLResponse(_AGAIN, headers=HEADERS)
    if http.method == "POST":  # back to the page of the form
        referer = http.headers.get("referer", "")  # of a browser, or any text
        _, slash, path = referer.partition("://")[2].partition("/")
        where = inside(slash + path)
        said = "Nothing was done: you are signed out."
        return request.go(request.address("/ui/sign-in", next=where), said, "bad")
    asked = quote(path) + f"?{http.url.query}" * bool(http.url.query)
    where = inside(asked) if http.method == "GET" and path != request.address("/") else ""
    return RedirectResponse(request.address("/ui/sign-in", next=where), 303)


_AGAIN = '<!doctype html><meta http-equiv="refresh" content="0"><title>Tenure</title>'


@cache
def _templates() -> jinja2.Environment:
    """Return what compiles each page once: for all sites, it takes longer than to show it."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("tenure.dashboard"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        auto_reload=False,
    )
    made.filters.update(
        number="{:,}".format,
        lasting=text.length,
        rate=fmt.rate,
        visible=partial(text.visible, keep=fmt.KEPT),
        first_line=text.first_line,
        worded=text.worded,
        size=fmt.size,
        listed=fmt.listed,
        shortened=text.shortened,
        exactly=fmt.exactly,
        json=lambda chart: msgspec.json.encode(chart).decode(),
        paths=fmt.paths,
    )
    made.globals.update(
        static=f"/ui/static/{VERSION}", count=text.quantity, command=shlex.join, ago=text.ago
    )
    return made
