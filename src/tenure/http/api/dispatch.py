"""The API as an ASGI application: finds the call that is meant, has it answered, sends the answer.

Starlette's own router would do the same in several layers of calls around every request, which
take a third of its time.
"""

from __future__ import annotations

import functools
import inspect
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tenure import failpoints
from tenure.app.app import Tenure
from tenure.errors import (
    Forbidden,
    PayloadTooLarge,
    SchemaMismatch,
    StoreUnavailable,
    TenureError,
)
from tenure.http.api.events import WorkNotifier
from tenure.http.api.routing import Call, Route, declared_bytes, read_body, read_query, refuse
from tenure.jobs.redaction import Redaction
from tenure.tokens.scopes import CALLER, Caller
from tenure.wire.problems import Refusal, request_id_of

log = logging.getLogger(__name__)

MAX_DISCARDED = 64 * 1024 * 1024
"""Bytes of a refused body that are taken in and thrown away, so that the client reads the answer;
the connection is closed on whoever declares more, or nothing."""

Methods = Mapping[str, Route]


class Dispatcher:
    """Every route of the API. Who calls stands in the scope, put there by `security.Guard`."""

    def __init__(
        self, routes: Sequence[Route], app: Tenure, notifier: WorkNotifier, redaction: Redaction
    ) -> None:
        self._app = app
        self._notifier = notifier
        self._redaction = redaction
        self._fixed: dict[str, dict[str, Route]] = {}
        for route in routes:
            self._fixed.setdefault(route.path, {})[route.method] = route
        self._variable = [
            (_matcher(path), self._fixed.pop(path)) for path in tuple(self._fixed) if "{" in path
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        request = Request(scope, receive)
        try:
            route, path = self._find(scope)
            caller = _allowed(scope, route)
        except (Refusal, Forbidden) as refusal:
            response = refuse(request, refusal, request_id_of(scope["headers"]))
        else:
            call = Call(self._app, self._notifier, request, path, caller, self._redaction)
            response = await _answer(route, call)
        failpoints.hit("http.before_answer")
        await response(scope, receive, send)

    def _find(self, scope: Scope) -> tuple[Route, Mapping[str, str]]:
        """The route of a request and the varying parts of its path; raises Refusal."""
        methods, varying = self._at(scope["path"].removeprefix(scope.get("root_path", "")))
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        if method not in methods:
            raise _wrong_method(methods)
        return methods[method], varying

    def _at(self, path: str) -> tuple[Methods, Mapping[str, str]]:
        """What is served under a path; raises Refusal if nothing is."""
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


def _allowed(scope: Scope, route: Route) -> Caller:
    """Who sent a request, if they may make this call; raises Forbidden."""
    caller: Caller = scope[CALLER]
    if route.scopes and not caller.may(route.scopes):
        needed = " or ".join(sorted(route.scopes))
        raise Forbidden(f"this call needs a token with the scope {needed}, or admin")
    return caller


def _matcher(path: str) -> Callable[[str], re.Match[str] | None]:
    """What matches `/jobs/{id}` with one part of a path, whatever it is, for `id`."""
    return re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", path)).fullmatch


def _wrong_method(methods: Methods) -> Refusal:
    allowed = ", ".join(sorted({*methods, *(["HEAD"] if "GET" in methods else [])}))
    return Refusal(
        405,
        "method_not_allowed",
        "Method not allowed",
        f"this path takes {allowed}",
        {"Allow": allowed},
    )


async def _answer(route: Route, call: Call) -> Response:
    request = call.request
    try:
        call.query = read_query(route, request)
        if route.body is not None:
            call.body = await read_body(route.body, request)
        if _is_async(route.endpoint):
            response: Response = await route.endpoint(call)
        else:
            response = await run_in_threadpool(route.endpoint, call)
    except ClientDisconnect:
        return Response(status_code=499)  # nobody is there to read it
    except (TenureError, Refusal) as error:
        request_id = request_id_of(request.scope["headers"])
        if isinstance(error, StoreUnavailable | SchemaMismatch):
            log.warning("%s %s, request %s: %s", route.method, route.path, request_id, error)
        response = refuse(request, error, request_id)
        if isinstance(error, PayloadTooLarge) and declared_bytes(request) > MAX_DISCARDED:
            response.headers["Connection"] = "close"
        return response
    except Exception as error:
        request_id = request_id_of(request.scope["headers"])
        log.exception("%s %s, request %s failed", route.method, route.path, request_id)
        return refuse(request, error, request_id)
    return response


@functools.cache
def _is_async(endpoint: Callable[[Call], Any]) -> bool:
    return inspect.iscoroutinefunction(endpoint)
