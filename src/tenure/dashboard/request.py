"""One request to the dashboard: its caller, its fields, its cookies, and the ways to answer it.

The session of a browser is a secret in a cookie that scripts cannot read and that other sites'
pages do not send. It opens the dashboard and nothing else. `rules/tokens.py` says what is
stored of it. A form shows that it comes from one of our
pages by sending a secret that is also in the browser's cookie for this site. `http/guard.py` has
checked `Origin` before.
"""

from __future__ import annotations

import hmac
import secrets
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request, cookie_parser
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Scope as AsgiScope

from tenure.errors import InvalidInput
from tenure.http.bodies import receive
from tenure.http.guard import NO_CALLER
from tenure.rules.tokens import CALLER, SESSION_SECONDS, Caller, Scope
from tenure.wire.problems import Refusal

if TYPE_CHECKING:
    from tenure.dashboard.site import Dashboard

SESSION = "tenure_session"
FORM = "tenure_form"
MESSAGE = "tenure_message"
SEEN = "tenure_seen"
LASTS = {SESSION: SESSION_SECONDS, FORM: None, MESSAGE: 30, SEEN: 365 * 86_400}
"""Seconds until a browser forgets each cookie."""
MAX_MESSAGE = 300
MAX_FORM_BYTES = 64 * 1024
MAX_FIELDS = 600
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy of every page: nothing from other sites, and nothing inline."""
HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "same-origin"}
"""With `no-referrer`, browsers send forms with `Origin: null`, as if from another site."""


class PageRequest:
    """A request that the guard has seen, and admitted if it found the caller."""

    def __init__(self, site: Dashboard, http: Request) -> None:
        self.site = site
        self.redaction = site.redaction
        self.http = http
        self.caller: Caller = http.scope.get(CALLER, NO_CALLER)
        view = site.view(self.caller.queues)
        self.app, self.cache = view.app, view.cache
        self.fields = http.query_params  # of the query, or of the form that was sent

    @cached_property
    def now(self) -> datetime:
        """The store's time, read once, so that a page shows one moment."""
        return self.app.core.clock()

    @property
    def actor(self) -> str:
        """The name of the caller in the ledger."""
        return "dashboard" if self.caller.name == "http" else self.caller.name

    def may(self, scope: Scope) -> bool:
        """Return whether the caller has a scope, which decides what a page offers."""
        return self.caller.may(frozenset({scope}))

    # --- what was asked for

    def path(self, name: str) -> str:
        """Return a variable part of the path."""
        return str(self.http.path_params[name])

    def field(self, name: str) -> str:
        """Return a field of the query or the form, without surrounding blanks."""
        return self.fields.get(name, "").strip()

    # --- how it is answered

    def address(self, path: str, **query: Any) -> str:
        """Return the address of a page below the root path, without empty parameters."""
        given = {name: value for name, value in query.items() if value not in (None, "")}
        asked = f"?{urlencode(given)}" if given else ""
        return quote(self.http.scope.get("root_path", "")) + path + asked

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """Return a page with the message that the last action left."""
        known = form_secret(self.http)
        secret = known or secrets.token_hex(16)
        tone, _, message = unquote(self.http.cookies.get(MESSAGE, "")).partition(" ")
        asked = "tenure-refresh" not in self.http.headers  # another window may refresh meanwhile
        message = message[:MAX_MESSAGE] if asked and tone in ("good", "bad") else ""
        values.update(request=self, address=self.address, message=message, tone=tone)
        text = self.site.templates.get_template(template).render(values, form_secret=secret)
        response = HTMLResponse(text, status, HEADERS)
        if not known:
            self.set_cookie(response, FORM, secret)
        if message:
            self.set_cookie(response, MESSAGE, "")
        return response

    @property
    def seen(self) -> int:
        """How many jobs had failed for good when this browser last asked for the failures."""
        seen = self.http.cookies.get(SEEN, "")
        return int(seen) if seen.isdecimal() and len(seen) < 10 else 0

    def go(self, where: str, message: str, tone: str = "good") -> Response:
        """Redirect to a page of this dashboard, which then shows `message`."""
        response = RedirectResponse(where, 303)
        self.set_cookie(response, MESSAGE, f"{tone} {message[:MAX_MESSAGE]}")
        return response

    def set_cookie(self, response: Response, name: str, value: str) -> None:
        """Give the browser one of the cookies above; an empty value removes it."""
        response.set_cookie(
            name,
            quote(value),
            max_age=LASTS[name] if value else 0,
            path=self.http.scope.get("root_path", "") or "/",
            httponly=True,
            samesite="strict",
            # Behind a proxy that does TLS, only the browser's `Origin` shows it.
            secure=self.http.url.scheme == "https"
            or self.http.headers.get("origin", "").startswith("https://"),
        )


def session_secret(scope: AsgiScope) -> bytes | None:
    """Return the secret of the session that a request belongs to."""
    lines = [value.decode("latin-1") for name, value in scope["headers"] if name == b"cookie"]
    secret = cookie_parser("; ".join(lines)).get(SESSION)
    return unquote(secret).encode() if secret else None


def form_secret(request: Request) -> str:
    """Return the secret for forms of this browser; empty if it has no cookie of it."""
    known = request.cookies.get(FORM, "")
    return known if len(known) == 32 and known.isalnum() else ""


def inside(address: str) -> str:
    """Return `address` if it is a path of this site, else the empty text.

    Browsers read `\\` as `/` and skip blanks, so neither may occur.
    """
    plain = address.startswith("/") and not address.startswith("//")
    return address if plain and address.isprintable() and "\\" not in address else ""


async def read_form(request: Request) -> QueryParams:
    """Read the fields of a form of this browser, with limits of size, number and time."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Refusal(415, "unsupported_media_type", "No form", "send a form of this dashboard")
    try:
        data = await receive(request, MAX_FORM_BYTES)
    except ClientDisconnect:
        raise Refusal(408, "request_timeout", "Too slow", "the form did not arrive") from None
    try:
        pairs = parse_qsl(data.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise InvalidInput("the form cannot be read", path="$") from None
    form, secret = QueryParams(pairs), form_secret(request)
    if not secret or not hmac.compare_digest(secret.encode(), form.get("form", "").encode()):
        raise Refusal(
            403,
            "cross_site",
            "This form is out of date",
            "the form was not made for this browser, or its cookie is gone; "
            "go back, reload the page and try again",
        )
    return form
