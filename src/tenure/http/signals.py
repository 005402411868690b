"""Signals over HTTP: to a job, and by one-use tokens, also from a page for people.

A token is all that its call needs: the address may be used from anywhere, once. The page of a token
says what it is for, and has one button. It needs no script and no cookie. A mail scanner that
follows the link changes nothing, since only the button does.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable
from html import escape

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from tenure.app import signals
from tenure.errors import IllegalTransition, TenureError
from tenure.http.call import Call, answer, failed
from tenure.rules.signals import Signal, TokenSignal, signal_text
from tenure.values.payload import JsonText
from tenure.values.redaction import Redaction
from tenure.values.text import visible
from tenure.wire import responses
from tenure.wire.problems import RETRY_LATER, Refusal

MAX_LOOKS_A_SECOND = 1_000
"""Tokens that one server looks up in a second, so that guesses cost the database little. As many
as the requests of connections without a caller: with fewer, one stranger could use them all up."""


def send_signal(call: Call) -> Response:
    """Send a signal to a job; the body is its payload."""
    path = call.path
    sent = call.app.signal(
        path["id"],
        path["signal"],
        call.body,
        call.header("Idempotency-Key"),
        actor=call.caller.name,
    )
    return answer(shown(sent, call.redaction))


def list_signals(call: Call) -> Response:
    """Show the signals of a job, in the order in which they came."""
    found = call.app.signals.list(call.path["id"])
    return answer([shown(one, call.redaction) for one in found])


def shown(signal: Signal, redaction: Redaction) -> responses.SignalBody:
    """Return the JSON of a signal, without what is redacted."""
    return responses.signal_body(signal, redaction.document(signal.payload_json))


async def use_signal_token(call: Call) -> Response:
    """Send the signal of a one-use token; the body is the payload if the token has none."""
    payload = None if call.body is None else JsonText(signal_text(call.body, "$"))

    def send() -> Response:
        core, token = call.app.core, call.path["token"]
        if not _is_for_people(call.request):
            return answer(shown(signals.by_token(core, token, payload), call.redaction))
        _, link = signals.of_token(core, token)
        signals.by_token(core, token, payload)
        return _page(f"{_title(link)}: sent", "You can close this page.")

    return await _looked_up(call, send)


async def show_signal_token(call: Call) -> Response:
    """Show people what a one-use token is for, with a button that uses it."""

    def look() -> Response:
        job, link = signals.of_token(call.app.core, call.path["token"])
        says = None if link.payload is None else call.redaction.document(link.payload)
        title = _title(link)
        return _page(title, f"Send this to the job {job.type}:", says=says, button=title)

    return await _looked_up(call, look)


def _title(link: TokenSignal) -> str:
    """Return what people read of a link; a label may be blank."""
    return link.name if link.label is None or link.label.isspace() else link.label


async def _looked_up(call: Call, look: Callable[[], Response]) -> Response:
    """Return what `look` answers; a refusal as a page where a person reads it."""
    try:
        _pace.go()
        return await run_in_threadpool(look)
    except (TenureError, Refusal) as error:
        if not _is_for_people(call.request):
            raise
        status = failed(call.request.scope, error).status_code
        if status in (429, 503):
            text = "The server cannot look at this link now."
            return _page("Try it again in a moment", text, status=status)
        if isinstance(error, IllegalTransition):
            return _page("Nothing is left to answer", f"Its job is {error.status}.", status=status)
        title = "This link does not work (any more)"
        text = "It was used already, or another link of the same question was, or it is wrong."
        return _page(title, text, status=status)


def _is_for_people(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


class _Pace:
    """Lets `MAX_LOOKS_A_SECOND` calls pass; called on the event loop only."""

    def __init__(self) -> None:
        self._until = 0.0
        self._left = 0

    def go(self) -> None:
        now = time.monotonic()
        if now >= self._until:
            self._until, self._left = now + 1, MAX_LOOKS_A_SECOND
        self._left -= 1
        if self._left < 0:
            raise Refusal(
                429,
                "too_many_tokens",
                "Too many tokens at once",
                "this server looks up no more tokens of signals now; try again in a moment",
                RETRY_LATER,
            )


_pace = _Pace()


# --- the page of a token --------------------------------------------------------------------------

STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:12vh auto;padding:0 1.25rem}"
    "h1{font-size:1.5rem;overflow-wrap:anywhere}"
    "pre{padding:.75rem;border:1px solid #8888;border-radius:6px;max-height:40vh;overflow:auto;"
    "white-space:pre-wrap;overflow-wrap:anywhere}"
    "button{font:inherit;font-weight:600;padding:.6rem 1.4rem;border-radius:6px;"
    "border:1px solid #1f6feb;background:#1f6feb;color:#fff;max-width:100%;overflow-wrap:anywhere}"
    "button:focus-visible{outline:3px solid #8ab4f8;outline-offset:2px}"
)
_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_DIGEST}'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Robots-Tag": "noindex, nofollow",
}
"""With those that `guard.HEADERS` adds: it is not stored, and its address is not passed on."""
MAX_SHOWN = 4_000


def _page(
    title: str, text: str, *, says: str | None = None, button: str = "", status: int = 200
) -> Response:
    """Return a page: `says` is what the signal says, and the form has no field."""
    parts = [f"<h1>{_escaped(title)}</h1><p>{_escaped(text)}</p>"]
    if says is not None:
        cut = says if len(says) <= MAX_SHOWN else f"{says[:MAX_SHOWN]} …"
        parts.append(f'<pre tabindex="0">{_escaped(cut)}</pre>')
    if button:
        parts.append(f'<form method="post"><button>{_escaped(button)}</button></form>')
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_escaped(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>"
    )
    return HTMLResponse(html, status, HEADERS)


def _escaped(text: str) -> str:
    return escape(visible(text))
