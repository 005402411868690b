"""Describes the API as OpenAPI 3.1, from the routes and the types they take and answer.

Only what a type cannot say is written by hand: which JSON a database keeps, how durations are
written, and which refusals every call can meet.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import inspect

import tenure
from tenure.http.bodies import JSON
from tenure.http.call import LINK
from tenure.http.schedules import MATCH_PATTERN
from tenure.rules import unique_keys
from tenure.rules.dependencies import MAX_PARENTS
from tenure.rules.retention import FOREVER_SECONDS
from tenure.rules.signals import MAX_SIGNAL_NAME
from tenure.rules.tokens import Scope
from tenure.values import durations, ids
from tenure.values.names import KEY_PATTERN, MAX_KEY_LENGTH, MAX_NAME_LENGTH, NAME_PATTERN
from tenure.wire import problems

if TYPE_CHECKING:
    from tenure.http.call import Reply, Route

PYTHON_END = rb"\\Z"
"""The end of a pattern in Python, as JSON. Every other language has `$` for it."""
TEMPLATE = "#/components/schemas/{name}"
ALWAYS = (400, 421, 503)
"""Refusals that every call can meet. `_refusals` adds what depends on the route."""


def _some_of(*parts: str) -> str:
    """Return a pattern of one or more of the parts, in this order."""
    behind = ("".join(f"({one})?" for one in parts[at + 1 :]) for at in range(len(parts)))
    return "|".join(part + rest for part, rest in zip(parts, behind, strict=True))


def _duration(description: str, minimum: float) -> dict[str, Any]:
    first = "[1-9]" if minimum else "[0-9]"
    n = f"{first}[0-9]{{0,2}}"
    seconds = rf"{n}(\.[0-9]{{1,3}})?"
    units = _some_of(f"{first}[0-9]?w", f"{n}d", f"{n}h", f"{n}m", f"{seconds}s", f"{n}ms")
    plain = rf"{first}[0-9]{{0,7}}(\.[0-9]{{1,6}})?"
    pattern = f"^({units})$|^{plain}$|^PT({_some_of(f'{n}H', f'{n}M', f'{seconds}S')})$"
    number = {"type": "number", "minimum": minimum, "maximum": durations.MAX_SECONDS}
    text = {"type": "string", "pattern": pattern, "maxLength": durations.MAX_LENGTH}
    return {"description": description, "anyOf": [number, text]}


HAND_WRITTEN: Mapping[str, Any] = {
    # Without references to each other: generators of clients leave out every call that has one.
    "Json": {"description": "Any JSON whose texts have no NUL and whose integers have 64 bits."},
    "JsonObject": {
        "description": "Such an object; of a payload, the keyword arguments of its handler.",
        "type": "object",
        "additionalProperties": True,
    },
    "Duration": _duration("Seconds, or text: `30s`, `1h30m`, `250ms`, `PT5M`.", 0),
    "Age": {
        "description": "How long settled jobs are kept.",
        "anyOf": [
            {"$ref": "#/components/schemas/Duration"},
            {"const": "forever"},
            {"type": "number", "minimum": FOREVER_SECONDS, "maximum": FOREVER_SECONDS},
        ],
    },
    "StartBy": {
        "description": "A time, or the time from now: a job not started by then is cancelled.",
        "anyOf": [
            {"$ref": "#/components/schemas/PositiveDuration"},
            {"type": "string", "format": "date-time", "pattern": "^[1-8]"},
        ],
    },
    "Needs": {
        "description": "How many of the dependencies in `depends_on` have to be met.",
        "anyOf": [
            {"type": "string", "enum": ["all", "any"]},
            {"type": "integer", "minimum": 1, "maximum": MAX_PARENTS},
        ],
    },
    "UniqueBy": {
        "description": "Names of payload values; a key, which types can share; or null for the"
        " whole payload.",
        "anyOf": [
            {"type": "null"},
            {"type": "string", "maxLength": MAX_KEY_LENGTH, "pattern": KEY_PATTERN},
            {
                "type": "array",
                "maxItems": unique_keys.MAX_VALUES,
                "items": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": unique_keys.MAX_PATH_LENGTH,
                },
            },
        ],
    },
    "PositiveDuration": _duration("A duration above 0, of a microsecond or more.", 0.000001),
}

TOKEN = {
    "type": "http",
    "scheme": "bearer",
    "description": "Each call names the scopes, one of which the token needs; `admin` is enough for"
    " every call.",
}

_GIVEN = {"not": {"type": "null"}}
_ONE_TIME = {
    "not": {
        "description": "Give `delay` or `run_at`, not both.",
        "required": ["delay", "run_at"],
        "properties": {"delay": _GIVEN, "run_at": _GIVEN},
    }
}
RULES: Mapping[str, Any] = dict.fromkeys(
    ("EnqueueRequest", "AgainRequest", "AmendRequest", "FollowUpRequest", "WorkflowJob"), _ONE_TIME
)
"""Rules between several fields of a type."""

PATH_PARAMETERS: Mapping[str, Any] = {
    "id": {"type": "string", "pattern": ids.ID_PATTERN},
    "signal": {"type": "string", "pattern": NAME_PATTERN, "maxLength": MAX_SIGNAL_NAME},
    "token": {"type": "string", "pattern": "^[A-Za-z0-9_-]{22}$"},
    "lease": {"type": "string", "description": "A lease id as `POST /leases` gave it."},
    "name": {"type": "string", "pattern": NAME_PATTERN, "maxLength": MAX_NAME_LENGTH},
}
REQUEST_HEADERS: Mapping[str, Any] = {
    "traceparent": {
        "type": "string",
        "description": "W3C Trace Context, kept for workers that ask. Ignored if it is not valid.",
    },
    "Idempotency-Key": {
        "type": "string",
        "pattern": KEY_PATTERN,
        "maxLength": MAX_KEY_LENGTH,
        "description": "The same key and body again is answered as the first request was.",
    },
    "If-Match": {
        "type": "string",
        "pattern": MATCH_PATTERN,
        "description": "The `ETag` of the schedule as it was read, or `*`: if there is one.",
    },
    "If-None-Match": {
        "type": "string",
        "pattern": r"^\*$",  # for generators of clients that know no constant in a header
        "description": "Only make it, if there is none; not with `If-Match`.",
    },
    "Last-Event-ID": {
        "type": "string",
        "maxLength": 64,
        "description": "The `id` of the last event received; the stream continues after it.",
    },
}
ANSWER_HEADERS = {
    problems.REQUEST_ID: "The problem's `request_id`: the request's own, if it had one.",
    "Location": "Where the job is.",
    "ETag": "The edition, which rises with every change.",
    "Link": 'The next page, `rel="next"`; absent when this is the last.',
    "Retry-After": "Seconds.",
    "WWW-Authenticate": "`Bearer`: send a token.",
}


@functools.cache
def document(routes: tuple[Route, ...], *, secured: bool) -> bytes:
    """Return the description as JSON; `secured` says whether calls need a token."""
    schemas = _Schemas(routes)
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas, secured)
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Tenure",
            "version": tenure.__version__,
            "summary": "A job queue that keeps every job it accepts.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {"schemas": {**schemas.shared, **HAND_WRITTEN}},
    }
    if secured:
        described["components"]["securitySchemes"] = {"token": TOKEN}
    return msgspec.json.encode(described).replace(PYTHON_END, b"$")


class _Schemas:
    """The schema of every type that a route takes or answers."""

    def __init__(self, routes: Sequence[Route]) -> None:
        answers: list[Any] = [problems.ProblemBody]
        queries, bodies = list[Any](), list[Any]()
        for route in routes:
            answers += [answer.type for answer in route.answers.values()]
            queries += [route.query] if route.query else []
            bodies += [route.body.type] if route.body else []
        types = [*answers, *queries, *bodies]
        schemas, components = msgspec.json.schema_components(types, ref_template=TEMPLATE)
        self._of = dict(zip(map(str, types), schemas, strict=True))
        self.components = {
            name: {**schema, **RULES.get(name, {})} for name, schema in components.items()
        }
        asked = _classes(bodies)
        for cls, kind in _classes(answers).items():
            if cls not in asked:
                self.components[cls.__name__]["required"] = _always_there(kind)
        self.shared = {
            name: schema
            for name, schema in self.components.items()
            if name not in {query.__name__ for query in queries}  # they are parameters
        }

    def of(self, type: Any) -> Any:
        """Return the schema of a type, mostly a reference."""
        return self._of[str(type)]

    def properties(self, type: Any) -> Mapping[str, Any]:
        """Return the schemas of a struct's fields."""
        found: Mapping[str, Any] = self.components[type.__name__]["properties"]
        return found

    def required(self, type: Any) -> Sequence[str]:
        """Return the fields of a struct that cannot be left out."""
        found: Sequence[str] = self.components[type.__name__].get("required", ())
        return found


Class = inspect.StructType | inspect.DataclassType


def _classes(types: Sequence[Any]) -> dict[type, Class]:
    """Return every class whose values are in those of the types, with what msgspec knows of it."""
    found: dict[type, Class] = {}
    left: list[Any] = list(inspect.multi_type_info(types))
    while left:
        kind = left.pop()
        if isinstance(kind, Class) and kind.cls not in found:
            found[kind.cls] = kind
            left += [field.type for field in kind.fields]
        parts = (getattr(kind, name, ()) for name in ("type", "item_type", "value_type"))
        left += [*(part for part in parts if part), *getattr(kind, "types", ())]
    return found


def _always_there(kind: Class) -> list[str]:
    """Return the fields that the JSON of a class has, whatever their values."""
    omits = isinstance(kind, inspect.StructType) and kind.cls.__struct_config__.omit_defaults
    none = msgspec.NODEFAULT  # the default of a field that may be left out is no default here
    return [
        field.encode_name
        for field in kind.fields
        if field.required
        or not (omits or (field.default is none and field.default_factory is none))
    ]


def _operation(route: Route, schemas: _Schemas, secured: bool) -> dict[str, Any]:
    answers = {
        str(status): _answer(answer, schemas) for status, answer in sorted(route.answers.items())
    }
    for status in _refusals(route, secured):
        answers.setdefault(str(status), _problem(status, schemas))
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": _parameters(route, schemas),
        "responses": answers,
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": not route.body.optional,
            "description": f"At most {route.body.limit} bytes.",
            "content": {JSON: {"schema": schemas.of(route.body.type)}},
        }
    if secured:
        operation["security"] = [{"token": [scope]} for scope in Scope if scope in route.scopes]
    return operation


def _refusals(route: Route, secured: bool) -> list[int]:
    statuses = {*ALWAYS, *route.refusals}
    if (route.method, route.path) != ("GET", LINK):
        statuses.add(403)
    if route.body is not None:
        statuses |= {408, 413, 415}
    if secured and route.scopes:
        statuses |= {401, 403}
    return sorted(statuses)


def _answer(answer: Reply, schemas: _Schemas) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for media_type in answer.also:  # first: it is what a client gets that asks for no type
        content[media_type] = {"schema": {"type": "string"}}
    if answer.type is not None:
        content[JSON] = {"schema": schemas.of(answer.type)}
    described: dict[str, Any] = {"description": answer.text, "content": content}
    if answer.headers:
        described["headers"] = _headers(*answer.headers)
    return described


def _problem(status: int, schemas: _Schemas) -> dict[str, Any]:
    return {
        "description": HTTPStatus(status).phrase,
        "content": {problems.MEDIA_TYPE: {"schema": schemas.of(problems.ProblemBody)}},
        "headers": _headers(problems.REQUEST_ID, *problems.HEADERS.get(status, ())),
    }


def _headers(*names: str) -> dict[str, Any]:
    return {
        name: {"description": ANSWER_HEADERS[name], "schema": {"type": "string"}} for name in names
    }


def _parameters(route: Route, schemas: _Schemas) -> list[dict[str, Any]]:
    in_path = re.findall(r"{(\w+)}", route.path)
    in_query = schemas.properties(route.query) if route.query else {}
    needed = schemas.required(route.query) if route.query else ()
    return [
        *(_parameter("path", name, PATH_PARAMETERS[name], required=True) for name in in_path),
        *(
            _parameter("query", name, _without_null(schema), required=name in needed)
            for name, schema in in_query.items()
        ),
        *(_parameter("header", name, REQUEST_HEADERS[name]) for name in route.headers),
    ]


def _parameter(place: str, name: str, schema: Any, *, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": place, "required": required, "schema": schema}


def _without_null(schema: Mapping[str, Any]) -> Any:
    """Return `schema` without null: a query parameter can be left out, not null."""
    some = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    return some[0] if len(some) == 1 else schema
