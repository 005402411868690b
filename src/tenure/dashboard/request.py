"""One request for a page, or of a form: who sends it, what it says, and the ways to answer it."""

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
"""Content-Security-Policy of every page: nothing from elsewhere, and nothing inline."""
HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "same-origin"}
"""With `no-referrer`, browsers send forms with `Origin: null`, as if from another site."""


@dataclass(slots=True)
class PageRequest:
    """A request, read and let in."""

    site: Dashboard
    request: Request
    caller: Caller
    form: Mapping[str, Sequence[str]] = field(default_factory=dict)
    _now: datetime | None = None

    @property
    def app(self) -> Tenure:
        """The one door."""
        return self.site.app

    @property
    def redaction(self) -> Redaction:
        """What is not shown."""
        return self.site.redaction

    @property
    def now(self) -> datetime:
        """The store's clock when it was first asked for here: all of a page is of one moment."""
        if self._now is None:
            self._now = self.app.ping()
        return self._now

    @property
    def actor(self) -> str:
        """Who did it, for the ledger."""
        return self.caller.name if self.caller.name.startswith("token:") else "dashboard"

    @property
    def may_act(self) -> bool:
        """Whether there are buttons."""
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

    # --- what was asked

    def path(self, name: str) -> str:
        """A varying part of the path."""
        return str(self.request.path_params[name])

    def query(self, name: str) -> str:
        """A parameter of the address, without the blanks that people paste along."""
        return self.request.query_params.get(name, "").strip()

    def field(self, name: str) -> str:
        """A field of the form."""
        return self.form.get(name, [""])[0].strip()

    # --- how it is answered

    def address(self, path: str, **query: Any) -> str:
        """Where a page is, wherever the dashboard is mounted; empty parameters are left out."""
        given = {name: value for name, value in query.items() if value not in (None, "")}
        asked = f"?{urlencode(given)}" if given else ""
        return quote(self.request.scope.get("root_path", "")) + path + asked

    def shown(self, job: Job) -> Job:
        """A job without what is redacted."""
        return self.redaction.job(job)

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """A page."""
        secret, is_new = session.form_secret(self.request)
        said, tone = session.said(self.request)
        text = self.site.render(template, self, form_secret=secret, said=said, tone=tone, **values)
        response = HTMLResponse(text, status, HEADERS)
        if is_new:
            session.set_form_secret(response, self.request, secret)
        if said:
            session.hush(response, self.request)
        return response

    def go(self, where: str, said: str = "", tone: str = "good") -> Response:
        """Go to a page of ours, which then says what came of it."""
        response = RedirectResponse(where, 303)
        if said:
            session.say(response, self.request, said, tone)
        return response


def inside(address: str) -> str:
    """`address` if it is one of this site, as a path; else the empty text.

    Browsers read `\\` as `/` and skip blanks, so only what is plainly a path counts.
    """
    plain = address.startswith("/") and not address.startswith("//")
    return address if plain and address.isprintable() and "\\" not in address else ""


async def read_form(request: Request) -> dict[str, list[str]]:
    """The fields of a form, bounded in size, number and time."""
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
