"""The cookies of a browser: who is signed in, that a form is ours, what the next page has to say.

The session is the token itself, in a cookie that no script can read and that no other site's page
brings along. So it holds at every server of a database and after a restart, ends for good with its
token, and nothing about it has to be kept. A form proves that one of our pages made it by naming a
secret that only the browser's cookie for this site holds; the check of `Origin` in `security.py`
stands before that.
"""

from __future__ import annotations

import hmac
import secrets
from urllib.parse import quote, unquote

from starlette.requests import Request, cookie_parser
from starlette.responses import Response
from starlette.types import Scope

SESSION = "tenure_session"
FORM = "tenure_form"
SAID = "tenure_said"
SESSION_SECONDS = 12 * 3600
"""A shift. Then the token is asked for again."""
SAID_SECONDS = 30
MAX_SAID = 300
TONES = ("good", "bad")


def session_token(scope: Scope) -> bytes | None:
    """The token of the session that a request belongs to."""
    lines = [value.decode("latin-1") for name, value in scope["headers"] if name == b"cookie"]
    token = cookie_parser("; ".join(lines)).get(SESSION)
    return unquote(token).encode() if token else None


def begin(response: Response, request: Request, token: str) -> None:
    """Sign a browser in."""
    _set(response, request, SESSION, quote(token), SESSION_SECONDS)


def end(response: Response, request: Request) -> None:
    """Sign it out."""
    _set(response, request, SESSION, "", 0)


def form_secret(request: Request) -> tuple[str, bool]:
    """What a form of this browser has to name, and whether the browser has yet to be told."""
    known = request.cookies.get(FORM, "")
    if len(known) == 32 and known.isalnum():
        return known, False
    return secrets.token_hex(16), True


def set_form_secret(response: Response, request: Request, secret: str) -> None:
    """Tell the browser."""
    _set(response, request, FORM, secret, None)


def is_ours(request: Request, named: str) -> bool:
    """Whether a form comes from a page that this browser got from here."""
    secret, unknown = form_secret(request)
    return not unknown and hmac.compare_digest(secret.encode(), named.encode())


def say(response: Response, request: Request, text: str, tone: str) -> None:
    """Have the next page say what came of it."""
    _set(response, request, SAID, quote(f"{tone} {text[:MAX_SAID]}"), SAID_SECONDS)


def said(request: Request) -> tuple[str, str]:
    """What this page is to say, and in which tone; nothing is the empty text."""
    tone, _, text = unquote(request.cookies.get(SAID, "")).partition(" ")
    return (text[:MAX_SAID], tone) if tone in TONES else ("", "")


def hush(response: Response, request: Request) -> None:
    """It has been said."""
    _set(response, request, SAID, "", 0)


def _set(response: Response, request: Request, name: str, value: str, age: int | None) -> None:
    response.set_cookie(
        name,
        value,
        max_age=age,
        path=request.scope.get("root_path", "") or "/",
        httponly=True,
        samesite="strict",
        # Behind a proxy that does TLS, the browser's own word is all there is to go by.
        secure=request.url.scheme == "https"
        or request.headers.get("origin", "").startswith("https://"),
    )
