"""Forms for a new job, for running a job again and for changing one that waits.

The inputs of the payload are made from the JSON schema of its type: one for each argument that is
a text, a number, a date, a truth value or a choice, and JSON for the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote_plus

from starlette.responses import Response

from tenure.dashboard import format as fmt
from tenure.dashboard.request import MAX_FORM_BYTES, PageRequest
from tenure.errors import IllegalTransition, InvalidInput
from tenure.lifecycle import Job
from tenure.values.payload import parse
from tenure.values.text import printable_json, visible

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
