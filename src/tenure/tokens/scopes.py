"""Who may call the HTTP API, and what for: scopes, tokens and callers. Plain values.

A token has 256 random bits, so keeping its plain SHA-256 is safe: slow hashes protect passwords
that can be guessed, and would cost time in every request.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from msgspec import Struct

from tenure.errors import InvalidInput
from tenure.jobs.names import list_of_names
from tenure.jobs.queue_rights import Patterns

MARK = "tenure_"
"""The beginning of every token, so that people and secret scanners recognise one."""
SHOWN = len(MARK) + 4
"""Characters of a token that are kept and shown, to distinguish it from others."""


class Scope(StrEnum):
    """What a caller may do. `admin` includes the others."""

    ENQUEUE = "enqueue"  # add jobs
    WORK = "work"  # lease jobs, with their payloads, and report on them
    READ = "read"  # see jobs, payloads and results included, history, counts, events
    ADMIN = "admin"  # everything, and alone: cancel, retry, pause, limit


EVERY_SCOPE = frozenset(Scope)


def tokens_with(scopes: Iterable[Scope]) -> str:
    """Say which tokens may do what one of these scopes allows."""
    others = " or ".join(sorted({*scopes} - {Scope.ADMIN}))
    return (
        f"a token with the scope {others}, or admin" if others else "a token with the scope admin"
    )


class Caller(Struct, frozen=True):
    """The sender of a request. `name` is the actor in the ledger."""

    name: str
    scopes: frozenset[Scope]
    known: bool = True  # by a token
    queues: Patterns | None = None  # the only ones it may use

    def worker(self, id: str) -> str:
        """The name of one of its workers, in the ledger too; no other caller has such a name."""
        return f"{self.name}/{id}"

    def may(self, any_of: frozenset[Scope]) -> bool:
        """Whether one of its scopes is enough."""
        return Scope.ADMIN in self.scopes or not self.scopes.isdisjoint(any_of)


CALLER = "tenure.caller"
"""The key in the ASGI scope of a request that holds its `Caller`, once that is known."""

ANONYMOUS = Caller("http", EVERY_SCOPE, known=False)
"""The caller where no token is needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """What is kept of a token: everything but its text."""

    name: str
    prefix: str  # how the token begins
    digest: str = field(repr=False)  # hexadecimal SHA-256 of the token
    scopes: tuple[Scope, ...]
    queues: Patterns | None  # the only ones it is for; None: every queue
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    used_at: datetime | None = None  # to the minute
    revoked_at: datetime | None = None
    valid: bool  # neither expired nor revoked when this was read

    @property
    def caller(self) -> Caller:
        """The caller that sends this token."""
        return Caller(f"token:{self.name}", frozenset(self.scopes), queues=self.queues)


def new_secret() -> str:
    """Return a random token of 256 bits."""
    return MARK + secrets.token_urlsafe(32)


def digest_of(token: bytes) -> bytes:
    """Return what is kept and compared instead of a token."""
    return hashlib.sha256(token).digest()


def scopes_of(names: Iterable[str], path: str) -> tuple[Scope, ...]:
    """Return the named scopes, each once, in the order of `Scope`; raises InvalidInput."""
    given = set(list_of_names(names, path))
    if not given or not given <= set(Scope):
        raise InvalidInput(f"name one or more of {', '.join(Scope)}", path=path)
    return tuple(scope for scope in Scope if scope in given)
