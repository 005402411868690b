"""The dashboard and the API beside a Django project, for the users that are signed in there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from importlib import import_module
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, quote

from django.conf import settings
from django.contrib.auth import get_user
from django.contrib.auth.views import redirect_to_login
from django.core.handlers.asgi import ASGIRequest
from django.db import close_old_connections

from tenure.contrib.django import app
from tenure.errors import Forbidden
from tenure.server import build

Application = Callable[..., Any]

SIGN_IN = "/ui/sign-in"


def is_superuser(user: Any) -> bool:
    """Return whether a user may do everything."""
    return bool(user.is_superuser)


def asgi(
    application: Application,
    prefix: str = "/jobs",
    *,
    allow: Callable[[Any], bool | Iterable[str]] = is_superuser,
) -> Application:
    """Return an ASGI application that serves the dashboard and the API below a path, and Django.

    Users are those of Django's sessions; the history of jobs names them. Who is not signed in is
    sent to `LOGIN_URL`, and a user who may do nothing gets the status 403. Programs can send a
    token of `tenure tokens create`.

    - `application`: that of `get_asgi_application()`. It gets every other request.
    - `prefix`: the path, which begins with a slash and does not end with one.
    - `allow`: takes a user who is signed in. It returns True for one who may do everything, False
      for one who may do nothing, or some of the scopes `read`, `enqueue`, `work` and `admin`.
      Default: superusers may do everything.

    Requests that change something are refused if another site sent them, as ever.
    """
    sessions = import_module(settings.SESSION_ENGINE).SessionStore

    def find(scope: Any) -> tuple[str, Iterable[str]] | None:
        close_old_connections()
        try:
            request = ASGIRequest(scope, BytesIO())
            request.session = sessions(request.COOKIES.get(settings.SESSION_COOKIE_NAME))
            user = get_user(request)
            may = user.is_authenticated and allow(user)
            if user.is_authenticated and not may and b"authorization" not in dict(scope["headers"]):
                # The login of the admin would send back who is signed in already.
                raise Forbidden("you may do nothing here: sign in with another name, or ask for it")
            return (str(user.get_username()), ("admin",) if may is True else may) if may else None
        finally:
            close_old_connections()

    async def authorize(scope: Any) -> tuple[str, Iterable[str]] | None:
        return await asyncio.to_thread(find, scope)

    built = build(app, authorize=authorize)

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        root = scope.get("root_path", "")
        path = scope.get("path", "").removeprefix(root)
        if scope["type"] != "http" or not f"{path}/".startswith(f"{prefix}/"):
            await application(scope, receive, send)
            return
        mounted = {**scope, "root_path": root + prefix}
        if path == prefix:
            mounted["path"] += "/"
        await built(mounted, receive, _to_login(send, root + prefix))

    return serve


def _to_login(send: Application, root: str) -> Application:
    """Return a `send` that leads to the login of the project who is to sign in with a token."""

    async def send_on(message: Any) -> None:
        headers = [(name, _login(root, value)) for name, value in message.get("headers", ())]
        await send({**message, "headers": headers} if headers else message)

    return send_on


def _login(root: str, value: bytes) -> bytes:
    """Return a header's value, or the address of the login if it is that of the sign-in page."""
    page, _, query = value.decode("latin-1").partition("?")
    if page != quote(root) + SIGN_IN:
        return value
    (back,) = parse_qs(query).get("next", [f"{root}/"])
    return redirect_to_login(back).url.encode("latin-1")
