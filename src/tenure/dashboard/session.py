"""The cookies of a browser: its session, the secret of its forms, the message on the next page.

The session is the token itself, in a cookie that scripts cannot read and that other sites' pages do
not send. So it is valid on every server of a database and after a restart, it ends with its token,
and nothing about it has to be stored. A form shows that it comes from one of our pages by sending a
secret that is also in the browser's cookie for this site. `http/guard.py` has checked `Origin`
before.
"""

from __future__ import annotations

from urllib.parse import quote, unquote

from starlette.requests import Request, cookie_parser
from starlette.responses import Response
from starlette.types import Scope

SESSION = "tenure_session"
FORM = "tenure_form"
MESSAGE = "tenure_message"
LASTS = {SESSION: 12 * 3600, FORM: None, MESSAGE: 30}
"""Seconds until a browser forgets each cookie: the session after a working day."""
MAX_MESSAGE = 300
TONES = ("good", "bad")


def session_token(scope: Scope) -> bytes | None:
    """Return the token of the session that a request belongs to."""
    lines = [value.decode("latin-1") for name, value in scope["headers"] if name == b"cookie"]
    token = cookie_parser("; ".join(lines)).get(SESSION)
    return unquote(token).encode() if token else None


def form_secret(request: Request) -> str:
    """Return the secret for forms of this browser; empty if it has no cookie of it."""
    known = request.cookies.get(FORM, "")
    return known if len(known) == 32 and known.isalnum() else ""


def message(request: Request) -> tuple[str, str]:
    """Return the message for this page and its tone; empty texts if there is none."""
    tone, _, text = unquote(request.cookies.get(MESSAGE, "")).partition(" ")
    return (text[:MAX_MESSAGE], tone) if tone in TONES else ("", "")


def set_cookie(response: Response, request: Request, name: str, value: str) -> None:
    """Give the browser one of the cookies above; an empty value removes it."""
    response.set_cookie(
        name,
        quote(value),
        max_age=LASTS[name] if value else 0,
        path=request.scope.get("root_path", "") or "/",
        httponly=True,
        samesite="strict",
        # Behind a proxy that does TLS, only the browser's `Origin` shows it.
        secure=request.url.scheme == "https"
        or request.headers.get("origin", "").startswith("https://"),
    )
