"""Who may call the HTTP API, and what for: scopes, tokens and callers. Plain values.

A token is 256 bits of chance, so a plain SHA-256 of it is safe to keep: there is no dictionary to
try, which is what slow hashes of passwords are against, and every request has to make one.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from tenure.errors import InvalidInput

MARK = "tenure_"
"""What every token begins with, so that people and secret scanners recognise one."""
SHOWN = len(MARK) + 4
"""Characters of a token that are kept, to tell it from others."""


class Scope(StrEnum):
    """What a caller may do. `admin` includes the others."""

    ENQUEUE = "enqueue"  # add jobs
    WORK = "work"  # lease jobs, with their payloads, and report on them
    READ = "read"  # see jobs, payloads and results included, history, counts, events
    ADMIN = "admin"  # everything, and alone: cancel, retry, pause, limit


EVERY_SCOPE = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request. `name` is the actor in the ledger."""

    name: str
    scopes: frozenset[Scope]
    known: bool = True  # by a token

    def may(self, any_of: frozenset[Scope]) -> bool:
        """Whether one of its scopes is enough."""
        return Scope.ADMIN in self.scopes or not self.scopes.isdisjoint(any_of)


CALLER = "tenure.caller"
"""Where a request says who sent it, once that is known: a key of its ASGI scope."""

ANYBODY = Caller("http", EVERY_SCOPE, known=False)
"""Where no token is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """A token as it is kept: everything but the token itself."""

    name: str
    prefix: str  # how the token begins
    digest: str = field(repr=False)  # hexadecimal SHA-256 of the token
    scopes: tuple[Scope, ...]
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    used_at: datetime | None  # to the minute
    revoked_at: datetime | None
    valid: bool  # neither expired nor revoked when this was read

    @property
    def caller(self) -> Caller:
        """Who sends it."""
        return Caller(f"token:{self.name}", frozenset(self.scopes))


def new_secret() -> str:
    """A token nobody can guess."""
    return MARK + secrets.token_urlsafe(32)


def digest_of(token: bytes) -> bytes:
    """What is kept and compared instead of a token."""
    return hashlib.sha256(token).digest()


def scopes_of(names: Iterable[str], path: str) -> tuple[Scope, ...]:
    """The scopes that are named, each once, in the order of `Scope`; raises InvalidInput."""
    given = set(names)
    if not given or not given <= set(Scope):
        raise InvalidInput(f"name one or more of {', '.join(Scope)}", path=path)
    return tuple(scope for scope in Scope if scope in given)
