"""One request to the dashboard: its caller, its fields, its cookies, its forms, and its answer.

The session of a browser is a secret in a cookie that scripts cannot read and that other sites'
pages do not send. It opens the dashboard and nothing else. `rules/tokens.py` says what is stored of
it. A form shows that it comes from one of our pages by sending a secret that is also in the
browser's cookie for this site. `http/guard.py` has checked `Origin` before.

The forms are those for a new job, for running a job again and for changing one that waits. The
inputs of the payload are made from the JSON schema of its type: one for each argument that is a
text, a number, a date, a truth value or a choice, and JSON for the others.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlencode

from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request, cookie_parser
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Scope as AsgiScope

from tenure.dashboard import format as fmt
from tenure.errors import IllegalTransition, InvalidInput
from tenure.http.bodies import receive
from tenure.http.guard import NO_CALLER
from tenure.lifecycle import Job
from tenure.rules.tokens import CALLER, SESSION_SECONDS, Caller, Scope
from tenure.values.payload import parse
from tenure.values.text import printable_json, visible
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


# --- inputs ---------------------------------------------------------------------------------------

KINDS = {"string": "text", "integer": "integer", "number": "number", "boolean": "checkbox"}
"""The input for each type of a JSON schema; JSON is typed for the others."""
VALUES: Mapping[str, Sequence[type]] = {
    "text": (str,),
    "date": (str,),
    "integer": (int,),
    "number": (int, float),
    "checkbox": (bool,),
}
"""The values that an input can hold."""
MAX_REFERENCES = 5
MAX_PAYLOAD_BYTES = MAX_FORM_BYTES // 2
"""Of a payload as browsers send it: the rest of a form is for its names and what is typed."""


@dataclass(slots=True)
class Field:
    """An input: for the argument or the option `name`, with what it holds as `text`."""

    name: str
    kind: str = "text"
    text: str = ""
    hint: str = ""
    choices: Sequence[Any] = ()
    required: bool = False
    error: str = ""

    def read(self, text: str) -> Any:
        """Return the value that was typed; raises InvalidInput."""
        self.text = text
        if self.kind == "checkbox":
            return bool(text)
        if self.kind == "choice":
            return next((each for each in self.choices if str(each) == text), text)
        if self.kind == "json":
            return parse(text.encode())
        if self.kind in ("text", "date"):
            return text
        with suppress(InvalidInput):
            if type(number := parse(text.encode())) in VALUES[self.kind]:
                return number
        raise InvalidInput(f"give a {'whole ' if self.kind == 'integer' else ''}number")


@dataclass(slots=True)
class Form:
    """A page with a form. `send` does what it is for with a payload and options."""

    title: str
    type: str
    send: Callable[..., Job]
    payload: list[Field] = field(default_factory=list)
    options: list[Field] = field(default_factory=list)
    note: str = ""

    def refuse(self, error: InvalidInput) -> None:
        """Show an error at its field, or else above the form."""
        fields = {f"$.payload.{one.name}": one for one in self.payload}
        fields |= {f"$.{one.name}": one for one in self.options}
        if found := fields.get(error.path.partition("[")[0]):
            found.error = error.message
        else:
            self.note = str(error)


def payload_fields(schema: str | None, payload: Mapping[str, Any]) -> list[Field]:
    """Return the inputs for a payload; one for all of it if its type has none, or nonsense."""
    with suppress(ValueError, TypeError, AttributeError, LookupError, RecursionError):
        whole = json.loads(schema or "{}")
        root = _resolved(whole, whole)
        if properties := root.get("properties"):
            return [
                _field(name, _resolved(whole, properties.get(name, {})), payload, root)
                for name in dict.fromkeys((*properties, *payload))
            ]
    text = printable_json(fmt.pretty(json.dumps(payload)))
    return [Field("", "json", text, "JSON object", required=True)]


def _resolved(whole: Any, part: Any) -> Any:
    """Return a part of a schema, what it refers to, or what it is if it is not null."""
    for _ in range(MAX_REFERENCES):
        others = [one for one in part.get("anyOf", ()) if one != {"type": "null"}]
        if "$ref" in part:
            part = whole["$defs"].get(part["$ref"].rpartition("/")[2], {})
        elif len(others) == 1:
            (part,) = others
    return part


def _field(name: str, part: Any, payload: Mapping[str, Any], root: Any) -> Field:
    kind = KINDS.get(part.get("type"), "json")
    if part.get("format") == "date":
        kind = "date"
    choices, value = tuple(part.get("enum", ())), payload.get(name, part.get("default"))
    known = name in payload or value is not None
    if choices and (not known or value in choices):
        kind = "choice"
    elif known and (type(value) not in VALUES.get(kind, ()) or not _is_kept(kind, value)):
        kind = "json"
    text = str(value)
    if kind == "json":
        text = printable_json(json.dumps(value, ensure_ascii=False, indent=2))
    hint = "JSON" if kind == "json" else str(part.get("format", part.get("type", "")))
    # A blank field that is not required is left out; but a box may be emptied, and what was blank
    # stays so.
    blank = known and (kind == "checkbox" or not str(value).strip())
    required = name in root.get("required", ()) or blank
    return Field(name, kind, text if known and value is not False else "", hint, choices, required)


def _is_kept(kind: str, value: object) -> bool:
    """Return whether a browser shows, and sends back, what an input of this kind was made with."""
    if kind == "date":
        return bool(re.fullmatch(r"\d{4}-\d\d-\d\d", str(value), re.ASCII))
    text = str(value)
    return "\n" not in text and visible(text, keep=fmt.KEPT) == text


def shown(make: Callable[[PageRequest], Form]) -> Callable[[PageRequest], Response]:
    return lambda request: request.page("form.html", form=make(request))


def sent(make: Callable[[PageRequest], Form]) -> Callable[[PageRequest], Response]:
    """Return what answers a sent form: the page of the job, or the form with its errors."""

    def answer(request: PageRequest) -> Response:
        form = make(request)
        payload = _read(request, form.payload, "payload.")
        options = _read(request, form.options, "")
        # No input is ignored: the job may have been tried since the form was shown.
        extra = not form.payload and any(name.startswith("payload.") for name in request.fields)
        if not extra and not any(each.error for each in (*form.payload, *form.options)):
            try:
                given = {"payload": payload.get("", payload)} if form.payload else {}
                job = form.send(**given, **options, actor=request.actor)
                where = request.address(f"/ui/jobs/{job.id}")
                return request.go(where, f"Done: the job is {job.status}.")
            except IllegalTransition as refused:
                form.note = str(refused)
            except InvalidInput as error:
                form.refuse(error)
        return request.page("form.html", 422, form=form)

    return answer


def _read(request: PageRequest, fields: Sequence[Field], prefix: str) -> dict[str, Any]:
    """Return the values of the fields that hold something, and note errors at the others."""
    values: dict[str, Any] = {}
    for each in fields:
        text = request.fields.get(prefix + each.name, "")
        if not text.strip() and not each.required:
            each.text = ""
            continue
        try:
            values[each.name] = each.read(text)
        except InvalidInput as error:
            each.error = error.message
    return values


# --- the forms ------------------------------------------------------------------------------------


def new(request: PageRequest) -> Form:
    type = request.http.query_params.get("type", "").strip()
    form = Form("New job", type, partial(request.app.enqueue, type))
    form.payload = payload_fields(_schema(request, type), {}) if type else []
    form.options = _options("queue", "priority", "max_retries", "delay")
    return form


def again(request: PageRequest) -> Form:
    """A job that does again what another one did."""
    job = request.app.get(request.path("id"))
    form = Form("Run again", job.type, partial(request.app.run_again, job.id))
    form.options = _options("queue", "priority", "max_retries", "delay")
    return _with_payload(request, form, job)


def amend(request: PageRequest) -> Form:
    job = request.app.get(request.path("id"))
    form = Form("Change", job.type, partial(request.app.amend, job.id))
    form.options = _options("priority", "max_retries", "delay", "timeout", "reason")
    for each in form.options[:2]:
        each.text = str(getattr(job, each.name))
    if not job.token:
        return _with_payload(request, form, job)
    form.note = "The job was tried, so its payload can no longer change."
    return form


HINTS = {"delay": "from now: 30s, 1h30m", "timeout": "of one attempt: 30s"} | dict.fromkeys(
    NUMBERS := ("priority", "max_retries"), "integer"
)


def _options(*names: str) -> list[Field]:
    kinds = {name: "integer" if name in NUMBERS else "text" for name in names}
    return [Field(name, kind, hint=HINTS.get(name, "")) for name, kind in kinds.items()]


def _with_payload(request: PageRequest, form: Form, job: Job) -> Form:
    if request.redaction.job(job).payload_json != job.payload_json:
        form.note = "This server redacts values of the payload, so it cannot be changed here."
        return form
    fields = payload_fields(_schema(request, job.type), job.payload)
    if sum(len(quote_plus(each.text)) for each in fields) > MAX_PAYLOAD_BYTES:
        form.note = "The payload is too large to be changed here, so it stays unchanged."
    else:
        form.payload = fields
    return form


def _schema(request: PageRequest, type: str) -> str | None:
    return next((each.schema for each in request.app.types.list() if each.name == type), None)
