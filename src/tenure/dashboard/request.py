"""One request to the dashboard: its caller, its fields, and the ways to answer it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlencode

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from tenure.app.app import Tenure
from tenure.dashboard import session
from tenure.errors import Forbidden, InvalidInput, PayloadTooLarge
from tenure.jobs.redaction import Redaction
from tenure.lifecycle import Job
from tenure.tokens.scopes import Caller, Scope
from tenure.wire.problems import Refusal

if TYPE_CHECKING:
    from tenure.dashboard.site import Dashboard

READ, ADMIN, ENQUEUE = (frozenset({s}) for s in (Scope.READ, Scope.ADMIN, Scope.ENQUEUE))
MAX_FORM_BYTES = 64 * 1024
MAX_FIELDS = 600
RECEIVE_SECONDS = 30.0
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy of every page: nothing from other sites, and nothing inline."""
HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "same-origin"}
"""With `no-referrer`, browsers send forms with `Origin: null`, as if from another site."""


@dataclass(slots=True)
class PageRequest:
    """A request that the guard has admitted."""

    site: Dashboard
    http: Request
    caller: Caller
    form: Mapping[str, Sequence[str]] = field(default_factory=dict)
    _now: datetime | None = None

    @property
    def app(self) -> Tenure:
        return self.site.app

    @property
    def redaction(self) -> Redaction:
        return self.site.redaction

    @property
    def now(self) -> datetime:
        """The store's time, read once, so that a page shows one moment."""
        if self._now is None:
            self._now = self.app.core.clock()
        return self._now

    @property
    def actor(self) -> str:
        """The name of the caller in the ledger."""
        return self.caller.name if self.caller.name.startswith("token:") else "dashboard"

    @property
    def may_act(self) -> bool:
        """Whether the page shows buttons."""
        return self.caller.may(ADMIN)

    @property
    def may_enqueue(self) -> bool:
        """Whether sample jobs may be added."""
        return self.caller.may(ENQUEUE)

    def require(self, scopes: frozenset[Scope]) -> None:
        """Raise Forbidden unless the caller has one of the scopes."""
        if not self.caller.may(scopes):
            needed = " or ".join(sorted(scopes))
            raise Forbidden(f"this needs a token with the scope {needed}, or admin")

    # --- what was asked for

    def path(self, name: str) -> str:
        """Return a variable part of the path."""
        return str(self.http.path_params[name])

    def query(self, name: str) -> str:
        """Return a parameter of the query, without surrounding blanks."""
        return self.http.query_params.get(name, "").strip()

    def field(self, name: str) -> str:
        """Return a field of the form, without surrounding blanks."""
        return self.form.get(name, [""])[0].strip()

    # --- how it is answered

    def address(self, path: str, **query: Any) -> str:
        """Return the address of a page below the root path, without empty parameters."""
        given = {name: value for name, value in query.items() if value not in (None, "")}
        asked = f"?{urlencode(given)}" if given else ""
        return quote(self.http.scope.get("root_path", "")) + path + asked

    def shown(self, job: Job) -> Job:
        """Return a job without what is redacted."""
        return self.redaction.job(job)

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """Return a page with the message that the last action left."""
        secret, is_new = session.form_secret(self.http)
        message, tone = session.message(self.http)
        values.update(form_secret=secret, message=message, tone=tone)
        text = self.site.render(template, self, **values)
        response = HTMLResponse(text, status, HEADERS)
        if is_new:
            session.set_form_secret(response, self.http, secret)
        if message:
            session.clear_message(response, self.http)
        return response

    def go(self, where: str, message: str, tone: str = "good") -> Response:
        """Redirect to a page of this dashboard, which then shows `message`."""
        response = RedirectResponse(where, 303)
        session.set_message(response, self.http, message, tone)
        return response


def inside(address: str) -> str:
    """Return `address` if it is a path of this site, else the empty text.

    Browsers read `\\` as `/` and skip blanks, so neither may occur.
    """
    plain = address.startswith("/") and not address.startswith("//")
    return address if plain and address.isprintable() and "\\" not in address else ""


async def read_form(request: Request) -> dict[str, list[str]]:
    """Read the fields of a form, with limits of size, number and time."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Refusal(415, "unsupported_media_type", "No form", "send a form of this dashboard")
    data = bytearray()
    try:
        async with asyncio.timeout(RECEIVE_SECONDS):
            async for chunk in request.stream():
                data += chunk
                if len(data) > MAX_FORM_BYTES:
                    raise PayloadTooLarge(f"over {MAX_FORM_BYTES} bytes of form", path="$")
    except (TimeoutError, ClientDisconnect):
        raise Refusal(408, "request_timeout", "Too slow", "the form did not arrive") from None
    try:
        return parse_qs(data.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise InvalidInput("the form cannot be read", path="$") from None
