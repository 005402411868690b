"""Who may call: the checks that stand before every route, whatever it does.

Without a token the server answers programs of this machine only. The socket sees to that, and the
`Host` header is checked as well: a page in a browser can make a name of its own point to 127.0.0.1
(DNS rebinding), and only the name gives it away. With tokens, every call but `/health` must bring
one; whether its scopes are enough is for the route to say. Requests that change something are
refused when a browser says that another site sent them.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import re
from collections.abc import Callable, Mapping, Sequence

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenure.app.app import Tenure
from tenure.errors import InvalidInput, StoreUnavailable, Unauthorized
from tenure.http.token_cache import TokenCache
from tenure.settings import Settings
from tenure.tokens.scopes import CALLER, GUARD, Caller
from tenure.wire.problems import MEDIA_TYPE, REQUEST_ID, Refusal, problem_of, request_id_of

log = logging.getLogger(__name__)

MAX_REMEMBERED = 100
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_is_host = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9_.-]{1,253})(:[0-9]{1,5})?").fullmatch


@functools.lru_cache(256)
def is_loopback(host: str) -> bool:
    """Whether `host` names this machine's loopback interface."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_binding(settings: Settings, app: Tenure) -> None:
    """Refuse to listen where others can reach an API that asks for no token."""
    if settings.tokens or is_loopback(settings.host):
        return
    if not any(token.valid for token in app.tokens.list()):
        raise InvalidInput(
            f"{settings.host} can be reached from other machines, and no token is set: set "
            "TENURE_TOKEN (or --token-file), make one with `tenure tokens create`, or listen on "
            "127.0.0.1",
            path="host",
        )


def token_cache(app: Tenure, settings: Settings) -> TokenCache:
    """The tokens that open the API of `app`; where others can reach it, none means nobody."""
    return TokenCache(app, settings.tokens, closed=not is_loopback(settings.host))


def _as_problem(scope: Scope, error: Exception) -> Response:
    """The answer to a program that is refused."""
    problem = problem_of(error, scope["path"], request_id_of(scope["headers"]))
    return Response(problem.body, problem.status, problem.headers, media_type=MEDIA_TYPE)


def _no_session(scope: Scope) -> bytes | None:
    """Programs send their token each time: a cookie must not open the API to pages."""
    return None


class Guard:
    """ASGI middleware with every check of this module."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        tokens: TokenCache,
        open_paths: Sequence[str],
        *,
        session: Callable[[Scope], bytes | None] = _no_session,
        refuse: Callable[[Scope, Exception], Response] = _as_problem,
    ) -> None:
        """`session` finds the token of a browser's session, `refuse` answers who is kept out."""
        self._app = app
        self._tokens = tokens
        self._session = session
        self._refuse = refuse
        self._any_host = not is_loopback(settings.host) and not settings.allowed_hosts
        self._hosts = frozenset({settings.host.lower(), *settings.allowed_hosts})
        self._served: set[bytes] = set()  # Host headers that are known to name this server
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = _with_security_headers(send)
        try:
            self._check(scope)
            scope[CALLER] = await self._caller(scope)
            scope[GUARD] = self
        except (Refusal, Unauthorized, StoreUnavailable) as error:
            response = self._refuse(scope, error)
            if isinstance(error, StoreUnavailable):
                request_id = response.headers[REQUEST_ID]
                log.warning("request %s cannot be let in: %s", request_id, error)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def may_stay(self, scope: Scope) -> bool:
        """Whether whoever sent this request would be let in again; yes while nobody can tell."""
        try:
            let_in: Caller = scope[CALLER]
            return await self._caller(scope) == let_in
        except Unauthorized:
            return False
        except StoreUnavailable:  # there is nothing to read, either
            return True

    def _check(self, scope: Scope) -> None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if not self._any_host and not (len(hosts) == 1 and self._serves(hosts[0])):
            raise Refusal(
                421,
                "host_not_allowed",
                "This host is not served here",
                "the Host header must name this server; add the name to allowed_hosts "
                "(TENURE_ALLOWED_HOSTS) if it is yours",
            )
        if scope["method"] not in SAFE_METHODS:
            self._check_origin(dict(reversed(scope["headers"])))  # the first one of each name

    def _serves(self, host: bytes) -> bool:
        """Whether a Host header names this server."""
        if host not in self._served:
            match = _is_host(host.decode("latin-1").lower())
            name = match[1] if match else ""
            if not name or not (is_loopback(name) or name.strip("[]") in self._hosts):
                return False
            if len(self._served) < MAX_REMEMBERED:
                self._served.add(host)
        return True

    def _check_origin(self, headers: Mapping[bytes, bytes]) -> None:
        """A browser names the page that sends a request; programs do not send these headers."""
        site = headers.get(b"sec-fetch-site", b"none").lower()
        origin = headers.get(b"origin")
        same = origin is None or (
            origin.startswith((b"http://", b"https://"))
            and origin.endswith(b"://" + headers.get(b"host", b""))
        )
        if site not in (b"none", b"same-origin") or not same:
            raise Refusal(
                403,
                "cross_site",
                "Sent by another site",
                "a page of another site sent this request; Tenure takes changes from programs "
                "and from its own pages only",
            )

    async def _caller(self, scope: Scope) -> Caller:
        """Who sent a request; raises Unauthorized unless its token is good."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in self._open_paths:
            return NOBODY
        caller = await self._tokens.caller(_token(scope) or self._session(scope))
        if caller is None:
            raise Unauthorized("send a token of this server as `Authorization: Bearer <token>`")
        return caller


NOBODY = Caller("http", frozenset(), known=False)
"""Whoever asks for what is open to all."""


def _token(scope: Scope) -> bytes | None:
    """The token that a request brings; None if it brings none, or several."""
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
    return token.strip() if scheme.lower() == b"bearer" else None


HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
"""Sent with every answer that does not say something else under the same name."""


def _with_security_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = message["headers"]
            names = {name for name, _ in given}
            message["headers"] = [*given, *(pair for pair in HEADERS if pair[0] not in names)]
        await send(message)

    return send_with_headers
