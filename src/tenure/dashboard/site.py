"""The dashboard as an ASGI application: every page, who may see it, and how errors look.

Pages are for who may read, buttons for who may do everything. `security.Guard` has let the request
in and says who sends it; a form must also come from one of our own pages.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import partial
from importlib import resources
from typing import Any
from urllib.parse import quote

import jinja2
import msgspec
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from tenure.app.app import Tenure
from tenure.dashboard import bulk, jobs, overview, queues, session
from tenure.dashboard import charts as series
from tenure.dashboard import format as words
from tenure.dashboard.cache import ReadCache
from tenure.dashboard.push import Follower
from tenure.dashboard.request import ADMIN, ENQUEUE, HEADERS, READ, PageRequest, inside, read_form
from tenure.errors import TenureError, Unauthorized
from tenure.http.token_cache import TokenCache
from tenure.jobs import text
from tenure.jobs.redaction import Redaction
from tenure.tokens import scopes as access
from tenure.tokens.scopes import CALLER, Caller
from tenure.wire.problems import ProblemBody, Refusal, problem_of, request_id_of

log = logging.getLogger(__name__)

Page = Callable[[PageRequest], Response]
FOLDER = resources.files("tenure.dashboard")
STATIC = {
    "tenure.css": "text/css; charset=utf-8",
    "tenure.js": "text/javascript; charset=utf-8",
    "live.js": "text/javascript; charset=utf-8",
    "forms.js": "text/javascript; charset=utf-8",
    "times.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "machine.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "vendor/idiomorph.min.js": "text/javascript; charset=utf-8",
    "vendor/uPlot.iife.min.js": "text/javascript; charset=utf-8",
    "vendor/uPlot.min.css": "text/css; charset=utf-8",
}
FILES = {name: FOLDER.joinpath("static", name).read_bytes() for name in STATIC}
VERSION = hashlib.sha256(b"".join(FILES.values())).hexdigest()[:12]
"""Of the files. It stands in their addresses, so browsers may keep them for good."""

ICON = "/favicon.ico"
"""What browsers ask for by themselves where no page names an icon."""

OPEN_PATHS = (
    ICON,
    "/ui/sign-in",
    "/ui/sign-out",
    *(f"/ui/static/{VERSION}/{name}" for name in STATIC),
)
"""What is answered without a token."""

PAGES: dict[str, Page] = {
    "/": overview.show,
    "/ui/failures": overview.failures,
    "/ui/machine": overview.machine,
    "/ui/workers": queues.workers,
    "/ui/queues": queues.show,
    "/ui/jobs": jobs.listed,
    "/ui/jobs/{id}": jobs.show,
    "/ui/jobs/{id}/{part}": jobs.whole,
    "/ui/bulk": bulk.preview,
    "/ui/bulk/{id}": bulk.show,
}
ACTIONS: dict[str, tuple[frozenset[access.Scope], Page]] = {
    "/ui/samples": (ENQUEUE, overview.add_samples),
    "/ui/jobs": (ADMIN, jobs.act_on_selected),
    "/ui/jobs/{id}/retry": (ADMIN, jobs.retry),
    "/ui/jobs/{id}/cancel": (ADMIN, jobs.cancel),
    "/ui/queues/{name}/pause": (ADMIN, queues.pause),
    "/ui/queues/{name}/resume": (ADMIN, queues.resume),
    "/ui/queues/{name}/limit": (ADMIN, queues.limit),
    "/ui/bulk": (ADMIN, bulk.start),
    "/ui/bulk/{id}/stop": (ADMIN, bulk.stop),
}


def serves(path: str) -> bool:
    """Whether a path is the dashboard's; every other is the API's."""
    return path in ("/", "/ui", ICON) or path.startswith("/ui/")


class Dashboard:
    """The pages of one application."""

    def __init__(
        self, app: Tenure, redaction: Redaction, tokens: TokenCache, stopped: Callable[[], bool]
    ) -> None:
        """`stopped` tells when the server stops, which ends the live streams."""
        self.app = app
        self.redaction = redaction
        self.glance = ReadCache(app)
        self._tokens = tokens
        self._follower = Follower(app, stopped)
        self._templates = _templates()
        self._router = Router(
            [
                Route(f"/ui/static/{VERSION}/{{name:path}}", self._file),
                Route(ICON, self._icon),
                Route("/ui/sign-in", self._sign_in, methods=["GET", "POST"]),
                Route("/ui/sign-out", self._sign_out, methods=["POST"]),
                Route("/ui/live", self._live),
                *(
                    Route(path, partial(self._act, scopes, action), methods=["POST"])
                    for path, (scopes, action) in ACTIONS.items()
                ),
                *(Route(path, partial(self._show, page)) for path, page in PAGES.items()),
            ],
            redirect_slashes=False,
            default=self._nothing,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._router(scope, receive, send)

    def render(self, template: str, visit: PageRequest, **values: Any) -> str:
        """A page as text."""
        return self._templates.get_template(template).render(
            visit=visit,
            address=visit.address,
            static=visit.address(f"/ui/static/{VERSION}"),
            **values,
        )

    # --- pages and forms

    async def _show(self, page: Page, request: Request) -> Response:
        visit = PageRequest(self, request, request.scope[CALLER])
        try:
            visit.require(READ)
            return await run_in_threadpool(page, visit)
        except Exception as error:
            return await run_in_threadpool(self._failed, request, error)

    async def _act(
        self, scopes: frozenset[access.Scope], action: Page, request: Request
    ) -> Response:
        visit = PageRequest(self, request, request.scope[CALLER])
        try:
            visit.form = await read_form(request)
            self._check_origin(visit)
            visit.require(scopes)
            return await run_in_threadpool(action, visit)
        except Exception as error:
            return await run_in_threadpool(self._failed, request, error)
        finally:
            self.glance.forget()

    def _check_origin(self, visit: PageRequest) -> None:
        if not session.is_ours(visit.request, visit.field("form")):
            raise Refusal(
                403,
                "cross_site",
                "This form is out of date",
                "the form was not made for this browser, or its cookie is gone; "
                "go back, reload the page and try again",
            )

    def _failed(self, request: Request, error: Exception) -> Response:
        if not isinstance(error, TenureError | Refusal):
            log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return self.refuse(request.scope, error)

    def refuse(self, scope: Scope, error: Exception) -> Response:
        """The answer to a request that is refused; without a token that is the way to sign in."""
        request = Request(scope)
        problem = problem_of(error, scope["path"], request_id_of(scope["headers"]))
        if isinstance(error, Unauthorized):
            return self._to_sign_in(request)
        visit = PageRequest(self, request, scope.get(CALLER, NOBODY))
        body = msgspec.json.decode(problem.body, type=ProblemBody)
        response = visit.page("problem.html", problem.status, problem=body)
        response.headers.update(problem.headers)
        return response

    def _to_sign_in(self, request: Request) -> Response:
        visit = PageRequest(self, request, NOBODY)
        path = request.scope["path"]
        if path == visit.address("/ui/live"):
            return Response(status_code=401)
        if request.method == "GET" and request.headers.get("sec-fetch-site") == "cross-site":
            # The cookie stays behind when a page of another site links here; asked for again
            # from here, it comes along.
            return HTMLResponse(_AGAIN, headers=HEADERS)
        asked = quote(path) + f"?{request.url.query}" * bool(request.url.query)
        where = inside(asked) if request.method == "GET" and path != visit.address("/") else ""
        return RedirectResponse(visit.address("/ui/sign-in", next=where), 303)

    async def _nothing(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        error = Refusal(404, "not_found", "No such page", "there is nothing under this address")
        await (await run_in_threadpool(self._failed, request, error))(scope, receive, send)

    # --- signing in and out

    async def _sign_in(self, request: Request) -> Response:
        visit = PageRequest(self, request, NOBODY)
        try:
            if request.method == "GET":
                where = inside(visit.query("next"))
                return await run_in_threadpool(visit.page, "sign_in.html", next=where, wrong=False)
            visit.form = await read_form(request)
            self._check_origin(visit)
            token, where = visit.field("token"), inside(visit.field("next")) or visit.address("/")
            if token and await self._tokens.caller(token.encode()) is not None:
                response = RedirectResponse(where, 303)
                session.begin(response, request, token)
                return response
            return await run_in_threadpool(
                visit.page, "sign_in.html", 403, next=where, wrong=bool(token)
            )
        except Exception as error:
            return await run_in_threadpool(self._failed, request, error)

    async def _sign_out(self, request: Request) -> Response:
        visit = PageRequest(self, request, NOBODY)
        try:
            visit.form = await read_form(request)
            self._check_origin(visit)
        except Exception as error:
            return await run_in_threadpool(self._failed, request, error)
        response = visit.go(visit.address("/ui/sign-in"), "You are signed out.")
        session.end(response, request)
        return response

    # --- what is no page

    async def _icon(self, _: Request) -> Response:
        return Response(FILES["icon.svg"], media_type=STATIC["icon.svg"])

    async def _file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in FILES:
            return Response(status_code=404)
        age = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(FILES[name], media_type=STATIC[name], headers=age)

    async def _live(self, request: Request) -> Response:
        caller: Caller = request.scope[CALLER]
        if not caller.may(READ):
            return Response(status_code=403)
        return self._follower.stream(request)


NOBODY = Caller("", frozenset(), known=False)
_AGAIN = '<!doctype html><meta http-equiv="refresh" content="0"><title>Tenure</title>'


def _templates() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("tenure.dashboard"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        auto_reload=False,
    )
    made.filters.update(
        number=words.number,
        lasting=text.length,
        rate=words.rate,
        visible=partial(text.visible, keep="\n\t"),
        first_line=text.first_line,
        size=words.size,
        listed=words.listed,
        shortened=text.shortened,
        exactly=words.exactly,
        json=series.as_json,
        paths=series.paths,
    )
    made.globals.update(count=words.count, command=words.command, ago=text.ago, svg=Markup)
    return made
