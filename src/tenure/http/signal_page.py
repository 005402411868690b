"""The page of a one-use token: what it is for, and one button. It needs no script and no cookie.

A mail scanner that follows the link changes nothing, since only the button does.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape

from tenure.jobs.text import visible

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


def page(title: str, text: str, says: str | None, button: str) -> str:
    """Return a page: `says` is what the signal says, and the form has no field."""
    parts = [f"<h1>{_escaped(title)}</h1><p>{_escaped(text)}</p>"]
    if says is not None:
        cut = says if len(says) <= MAX_SHOWN else f"{says[:MAX_SHOWN]} …"
        parts.append(f'<pre tabindex="0">{_escaped(cut)}</pre>')
    if button:
        parts.append(f'<form method="post"><button>{_escaped(button)}</button></form>')
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_escaped(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>"
    )


def _escaped(text: str) -> str:
    return escape(visible(text))
