"""Sessions of the dashboard: a secret that a browser keeps instead of a token. Plain values.

A session is a row in the database: the digest of its secret, and the digest of its token, hidden
with the secret. So a reader of the database can neither make a session nor test guesses of a token
of the settings. Without its token a session is worth nothing.
"""

from __future__ import annotations

import hmac
import secrets
from operator import xor

SESSION_SECONDS = 12 * 3600
"""How long a session lasts: a working day."""


def new_session_secret() -> str:
    """Return a random secret of 256 bits."""
    return secrets.token_urlsafe(32)


def hidden(token_digest: bytes, secret: bytes) -> bytes:
    """Hide the digest of a session's token with the session's secret. Applied twice, show it."""
    return bytes(map(xor, token_digest, hmac.digest(secret, b"token of a session", "sha256")))
