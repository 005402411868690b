"""Who may call: the checks that every request passes, the valid tokens, and what was refused.

Without tokens only programs on this machine are answered: the peer's address must be of loopback,
and so must every name in the settings and in the `Host` header. A page in a browser can make its
own host name point to 127.0.0.1 (DNS rebinding), and a proxy passes on requests of other machines:
only the name shows it. Otherwise every call but `/health` must send a token. The route decides
whether its scopes are enough. Requests that change something are refused if a browser says that
another site sent them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import filterfalse
from math import inf

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenure.app.app import Tenure
from tenure.errors import Forbidden, InvalidInput, StoreUnavailable, TenureError, Unauthorized
from tenure.rules.tokens import (
    ANONYMOUS,
    CALLER,
    EVERY_SCOPE,
    Caller,
    digest_of,
    hidden,
    new_session_secret,
    scopes_of,
)
from tenure.settings import Settings, is_loopback
from tenure.telemetry.logs import Repeats
from tenure.values.names import check_label
from tenure.values.text import shortened
from tenure.wire.problems import MEDIA_TYPE, REQUEST_ID, Refusal, problem_of

log = logging.getLogger(__name__)

Authorize = Callable[[Scope], Awaitable[tuple[str, Iterable[str]] | None]]
"""Returns the name and the scopes of the user who sent a request; None if it knows of none."""
NO_CALLER = Caller("http", frozenset(), known=False)
"""The caller of a path that is open to all."""
GUARD = "tenure.guard"
"""The key of a request's ASGI scope under which its guard is found."""
ADMITTED = "tenure.admitted"
"""The key of a request's ASGI scope for what `http/protocol.py` wants called if it has a caller."""
MAX_REMEMBERED = 100
"""Host headers of which a guard remembers whether they name this server."""
MIN_TOKEN = 20
"""Characters of a token of the settings, where other machines can send guesses."""
REMEDY = "set TENURE_TOKEN (or --token-file), make one with `tenure tokens create`"
NOTHING_SENT = "send a token of this server as `Authorization: Bearer <token>`"
NOT_VALID = (
    "the token is wrong, was revoked or has expired; see `tenure tokens list`, or make another"
    " with `tenure tokens create`"
)
LINK_PATH = "/signals/"
"""Begins the paths that end with a one-use token. A caller who has such an address may use it
from any site: it is in mails, and only its token counts."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_is_host = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9_.-]{1,253})(:[0-9]{1,5})?").fullmatch


def path_in(scope: Scope) -> str:
    """Return the path of a request below the path that the application is mounted at."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def check_binding(settings: Settings, app: Tenure) -> None:
    """Raise InvalidInput if the address is for other machines and no token is valid."""
    if not is_loopback(settings.host) and _is_closed(settings, app):
        raise InvalidInput(
            f"{settings.host} can be reached from other machines, and no token is set: {REMEDY}, "
            "or listen on 127.0.0.1",
            path="host",
        )


def warn_if_closed(settings: Settings, app: Tenure) -> None:
    """Log a warning if every request will be refused because no token is valid."""
    if _is_closed(settings, app):
        log.warning(
            "every request but /health is refused, because %s can be reached from other machines "
            "and no token is set: %s, or serve only names of loopback",
            ", ".join(filterfalse(is_loopback, (settings.host, *settings.allowed_hosts))),
            REMEDY,
        )


def _is_closed(settings: Settings, app: Tenure) -> bool:
    if settings.tokens or not settings.is_exposed:
        return False
    return not any(token.valid for token in app.tokens.list())


def check_tokens(settings: Settings) -> None:
    """Raise InvalidInput if other machines could guess a token of the settings."""
    shortest = min(map(len, settings.tokens), default=MIN_TOKEN)
    if settings.is_exposed and shortest < MIN_TOKEN:
        raise InvalidInput(
            f"a token of {shortest} characters can be guessed from other machines; use at least "
            f"{MIN_TOKEN}: make one with `openssl rand -hex 32` or `tenure tokens create`",
            path="tokens",
        )


def note_refusal(scope: Scope, error: Exception) -> None:
    """Count and log a request that is refused because of its caller; ignore other errors."""
    code = getattr(error, "code", "")
    if code in REASONS:
        guard: AccessGuard = scope[GUARD]
        guard.refusals.note(scope, code, guard.tokens.ended(*guard.credentials(scope)))


def as_problem(scope: Scope, error: Exception) -> Response:
    """Return the answer to a request that failed with `error`."""
    note_refusal(scope, error)
    body, headers = problem_of(error, scope["path"], scope["headers"])
    return Response(msgspec.json.encode(body), body.status, headers, media_type=MEDIA_TYPE)


class AccessGuard:
    """The ASGI middleware with every check of this module."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        tokens: TokenCache,
        open_paths: Sequence[str],
        refusals: Refusals,
        *,
        authorize: Authorize | None = None,
        session: Callable[[Scope], bytes | None] = lambda _: None,
        refuse: Callable[[Scope, Exception], Response] = as_problem,
        linked: bool = False,
    ) -> None:
        """Guard `app`. `authorize` is asked before tokens, and with it any host is served unless
        the settings name some. `session` finds the secret of a browser's session, `refuse` refuses.

        `linked`: pages of other sites may have links to it, as to pages for people.

        The API has no sessions: a cookie must not open it to the pages of other sites.
        """
        self.tokens = tokens
        self.refusals = refusals
        self._app = app
        self._authorize = authorize
        self._session = session
        self._refuse = refuse
        self._linked = linked
        is_local = authorize is None and is_loopback(settings.host)
        self._any_host = not is_local and not settings.allowed_hosts
        self._hosts = frozenset({settings.host.lower(), *settings.allowed_hosts})
        self._serves = functools.lru_cache(MAX_REMEMBERED)(self._names_this_server)
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        send = _with_security_headers(send)
        scope[GUARD] = self
        try:
            self._check(scope)
            scope[CALLER] = caller = await self.caller_of(scope)
            if ADMITTED in scope and caller is not NO_CALLER:
                scope[ADMITTED]()
        except (Refusal, Unauthorized, Forbidden, StoreUnavailable) as error:
            response = self._refuse(scope, error)
            if isinstance(error, StoreUnavailable):
                request_id = response.headers[REQUEST_ID]
                log.warning("request %s cannot be authorized: %s", request_id, error)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

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
        if path_in(scope).startswith(LINK_PATH):
            return
        headers = dict(reversed(scope["headers"]))  # the first one of each name
        if scope["method"] not in SAFE_METHODS:
            self._check_origin(headers)
        elif headers.get(b"sec-fetch-site") == b"cross-site" and not (
            self._linked and headers.get(b"sec-fetch-dest") == b"document"
        ):
            raise _cross_site("a page of another site may only have links to pages of Tenure")

    def _names_this_server(self, host: bytes) -> bool:
        match = _is_host(host.decode("latin-1").lower())
        return match is not None and (is_loopback(match[1]) or match[1].strip("[]") in self._hosts)

    def _check_origin(self, headers: Mapping[bytes, bytes]) -> None:
        # A browser names the page that sends a request. Programs do not send these headers.
        site = headers.get(b"sec-fetch-site", b"none").lower()
        origin = headers.get(b"origin")
        same = origin is None or (
            origin.startswith((b"http://", b"https://"))
            and origin.endswith(b"://" + headers.get(b"host", b""))
        )
        if site not in (b"none", b"same-origin") or not same:
            raise _cross_site("Tenure takes changes from programs and from its own pages only")

    def credentials(self, scope: Scope) -> tuple[bytes | None, bytes | None]:
        """Return the token that a request brings or, without one, the secret of its session."""
        token = _token(scope) or None
        return token, self._session(scope) if token is None else None

    async def caller_of(self, scope: Scope) -> Caller:
        """Return who sent a request; raises Unauthorized unless its user or token is valid."""
        path = path_in(scope)
        if path in self._open_paths or path.startswith(LINK_PATH):
            return NO_CALLER
        if self._authorize is not None and (user := await self._authorize(scope)) is not None:
            return _user(*user)
        caller = await self.tokens.caller(*self.credentials(scope))
        if caller is None or (caller is ANONYMOUS and not _is_from_here(scope)):
            raise Unauthorized(NOT_VALID if _token(scope) else NOTHING_SENT)
        return caller


def _user(name: object, scopes: Iterable[str]) -> Caller:
    """Return the caller that `authorize` has named; without scopes it may do nothing."""
    label = check_label(name, "user", "authorize").replace("/", "_")  # which separates a worker
    allowed = scopes_of(scopes, "authorize") if scopes else ()
    return Caller(f"user:{label}", frozenset(allowed), known=False)


def _cross_site(rule: str) -> Refusal:
    why = f"a page of another site sent this request; {rule}"
    return Refusal(403, "cross_site", "Sent by another site", why)


def _is_from_here(scope: Scope) -> bool:
    """Return whether a process of this machine sent a request; False if the server cannot say."""
    peer = scope.get("client")
    return peer is not None and is_loopback(peer[0])


async def check_again(scope: Scope) -> None:
    """Raise Unauthorized unless the caller of an admitted request would be admitted again now.

    A request that waits asks this before it does anything: its token may be revoked meanwhile.
    Raises StoreUnavailable if that depends on a database that does not answer.
    """
    guard: AccessGuard = scope[GUARD]
    if await guard.caller_of(scope) != scope[CALLER]:
        raise Unauthorized("the token of this request allows it no longer")


def _token(scope: Scope) -> bytes | None:
    """Return the token that a request brings; None if it brings none, or several."""
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
    return token.strip() if scheme.lower() == b"bearer" else None


HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
"""Sent with every answer, unless the answer sets a header of the same name."""


def _with_security_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = message["headers"]
            names = {name for name, _ in given}
            message["headers"] = [*given, *(pair for pair in HEADERS if pair[0] not in names)]
        await send(message)

    return send_with_headers


# --- tokens ---------------------------------------------------------------------------------------
# To check a token is one lookup, by its digest. The tokens in the database are read again when
# they are older than `FRESH_SECONDS`; meanwhile requests use the older ones. From `STALE_SECONDS`
# on requests wait for the read. So a token that was revoked or has expired is refused everywhere
# within seconds, and no token that could have been revoked is accepted without the database. A
# new token is accepted at once. The lookup need not take constant time: its time reveals
# something about the digest of a guess, but nothing about the tokens.

OWNER = Caller("http", EVERY_SCOPE)
"""The caller with a token of the settings."""
FRESH_SECONDS = 1.0
STALE_SECONDS = 5.0
PAUSE_SECONDS = 0.1
"""An unknown token waits until the last read is so old: guesses cost ten reads a second."""
RECORD_SECONDS = 60.0
"""How often the use of a token is recorded."""


class TokenCache:
    """The valid tokens of this server. Can be used on one event loop after another."""

    def __init__(self, app: Tenure, given: tuple[str, ...], *, closed: bool) -> None:
        """`given` are tokens with every scope; `closed` asks for a token even if none exists."""
        self._app = app
        self._given = frozenset(digest_of(token.encode()) for token in given)
        self._closed = closed or bool(given)
        self._stored: dict[bytes | None, Caller] = {}
        self._ended: dict[bytes | None, str] = {}
        self._sessions: dict[bytes, bytes] = {}
        self._any_stored = False
        self._read_at = -inf
        self._reading: asyncio.Future[None] | None = None
        self._started = self._read_last = 0  # numbers of reads: the clock has milliseconds
        self._used: set[str] = set()
        self._recorded: dict[str, float] = {}
        self._repeats = Repeats()

    async def caller(self, token: bytes | None, session: bytes | None = None) -> Caller | None:
        """Return the caller of a token or, if none was sent, of the secret of a session.

        None if it is not valid. Raises StoreUnavailable if that depends on a database that does not
        answer.
        """
        digest = None if token is None else digest_of(token)
        if digest in self._given:
            return OWNER
        if digest is None and session is None and not self._is_open:
            return None
        loop, before = asyncio.get_running_loop(), self._started
        if self._is_open or self._find(digest, session) is not None:
            age = max(loop.time() - self._read_at, 0.0)
            if age > STALE_SECONDS:
                await asyncio.shield(self._read())
            elif age > FRESH_SECONDS:
                self._read()
        if self._is_open:
            return ANONYMOUS
        while (found := self._find(digest, session)) is None and self._read_last <= before:
            if (pause := self._read_at + PAUSE_SECONDS - loop.time()) > 0:
                await asyncio.sleep(pause)
            else:
                await asyncio.shield(self._read())
        if found is not None and found is not OWNER:
            self._used.add(found.name)
        return found

    def ended(self, token: bytes | None, session: bytes | None = None) -> str | None:
        """Return the name of a token in the database that has expired or was revoked."""
        digest = None if token is None else digest_of(token)
        return self._ended.get(self._of_session(session) if digest is None else digest)

    def _find(self, digest: bytes | None, session: bytes | None) -> Caller | None:
        digest = self._of_session(session) if digest is None else digest
        return OWNER if digest in self._given else self._stored.get(digest)

    def _of_session(self, session: bytes | None) -> bytes | None:
        token = None if session is None else self._sessions.get(digest_of(session))
        return None if session is None or token is None else hidden(token, session)

    async def begin_session(self, token: bytes) -> str:
        """Begin a session for a token, which must be valid; return the secret of the session."""
        secret = new_session_secret()
        key = secret.encode()
        session = digest_of(key), hidden(digest_of(token), key)
        await asyncio.to_thread(self._app.core.begin_session, *session)
        return secret

    async def end_session(self, session: bytes) -> None:
        """End the session of a secret, if there is one: here at once, elsewhere within seconds."""
        await asyncio.to_thread(self._app.core.end_session, digest_of(session))
        before = self._started
        while self._read_last <= before:
            await asyncio.shield(self._read())

    @property
    def _is_open(self) -> bool:
        """Whether no token is needed; never again once there was one in the database."""
        return not self._closed and not self._any_stored

    def _read(self) -> asyncio.Future[None]:
        """Read the database's tokens again, once for all requests that ask meanwhile."""
        loop = asyncio.get_running_loop()
        reading = self._reading
        if reading is None or reading.done() or reading.get_loop() is not loop:
            self._started += 1
            reading = self._reading = loop.create_task(self._read_now(self._started))
            # Retrieves a failure, which is logged already, so that asyncio does not warn of it.
            reading.add_done_callback(lambda done: done.cancelled() or done.exception())
        return reading

    async def _read_now(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            tokens = await asyncio.to_thread(self._app.tokens.list)
            sessions = await asyncio.to_thread(self._app.core.sessions)
        except TenureError as error:
            if self._repeats.is_due(error):
                log.warning("cannot read the tokens of the HTTP API: %s", error)
            raise StoreUnavailable("the database did not answer") from error
        self._stored = {bytes.fromhex(t.digest): t.caller for t in tokens if t.valid}
        self._ended = {bytes.fromhex(t.digest): t.name for t in tokens if not t.valid}
        self._sessions = sessions
        self._any_stored = bool(tokens)
        self._read_at, self._read_last = began, number
        self._record_use(began)

    def _record_use(self, now: float) -> None:
        due = {name for name in self._used if now >= self._recorded.get(name, now)}
        self._used.clear()
        if due:
            self._recorded.update(dict.fromkeys(due, now + RECORD_SECONDS))
            names = [name.removeprefix("token:") for name in due]
            # No request waits for it. A role that may not write here does not record it.
            with contextlib.suppress(TenureError):
                self._app.core.note_token_use(names)


# --- refused requests -----------------------------------------------------------------------------
# Every one is counted, since the start of this process; one a second is logged. So a flood of
# guesses shows in the metrics and does not fill the log.

REASONS: Mapping[str, str] = {
    "unauthorized": "no valid token",
    "forbidden": "its token lacks the scope",
    "cross_site": "sent by a page of another site",
    "host_not_allowed": "its Host is not served here",
    "sign_in_failed": "signing in needs a valid token",
}
"""The codes of the errors that are counted, and what the log says of them."""
LOG_SECONDS = 1.0
MAX_PATH = 200
"""Characters of a path that are logged."""

_secret = re.compile(r"(/(?:signals|leases)/)[^/]+")


def loggable(path: str) -> str:
    """Return a path without one-use tokens and lease ids: who reads a log must not use them."""
    return _secret.sub(r"\1...", path)


class Refusals:
    """The refused requests of one server. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(REASONS, 0)
        self._logged_at = -inf
        self._not_logged = 0

    def counts(self) -> dict[str, int]:
        """Return how many requests were refused, by the code of the error."""
        with self._lock:
            return self._counts.copy()

    def note(self, scope: Scope, code: str, ended: str | None) -> None:
        """Count a refused request; log it unless another one was logged less than a second ago.

        `ended` is the name of the token that it brought, if that has expired or was revoked.
        """
        with self._lock:
            self._counts[code] += 1
            now = time.monotonic()
            if now - self._logged_at < LOG_SECONDS:
                self._not_logged += 1
                return
            self._logged_at = now
            not_logged, self._not_logged = self._not_logged, 0
        log.warning(
            "refused %s %s from %s: %s%s%s",
            scope["method"],
            shortened(loggable(scope["path"]), MAX_PATH),
            (scope.get("client") or ("an unknown address",))[0],
            REASONS[code],
            f"; its token {ended} is revoked or has expired" if ended else "",
            f"; {not_logged} more since the last line" if not_logged else "",
        )
