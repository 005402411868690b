"""Who may call, and what for: the queues, scopes and tokens of callers, and sessions. Plain values.

The rights to queues are patterns: the name of a queue, or its beginning and a `*`. None instead of
patterns means every queue. `Core` applies them to each call, `Dialect.in_queues` says the same in
SQL.

A token has 256 random bits, so keeping its plain SHA-256 is safe: slow hashes protect passwords
that can be guessed, and would cost time in every request.

A browser with the dashboard keeps the secret of a session instead of a token. A session is a row in
the database: the digest of its secret, and the digest of its token, hidden with the secret. So a
reader of the database can neither make a session nor test guesses of a token of the settings.
Without its token a session is worth nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from operator import xor

from msgspec import Struct

from tenure.errors import Forbidden, InvalidInput
from tenure.values.names import RESERVED, check_open, list_of_names, some_or_any

# --- queues ---------------------------------------------------------------------------------------

Patterns = tuple[str, ...]

MAX_PATTERNS = 100
ANY_REST = "*"


def check_patterns(given: Iterable[str] | None, path: str) -> Patterns | None:
    """Return valid patterns, each once, sorted; None for every queue. Raises InvalidInput.

    No pattern includes a queue of Tenure itself: its jobs hold events of every other queue.
    """
    patterns = some_or_any(given, "queue", path)
    if patterns is None:
        return None
    if len(patterns) > MAX_PATTERNS:
        raise InvalidInput(f"name at most {MAX_PATTERNS} queues", path=path)
    return tuple(sorted({_checked(pattern, path) for pattern in patterns}))


def _checked(pattern: str, path: str) -> str:
    if not pattern.endswith(ANY_REST):
        return check_open(pattern, "queue", path)
    beginning = pattern.removesuffix(ANY_REST)
    if RESERVED.startswith(beginning):
        raise InvalidInput(
            f"{pattern} would include the queues of Tenure itself, which begin with {RESERVED}: "
            "write more of the name before the *",
            path=path,
        )
    check_open(f"{beginning}x", "queue", path)  # a beginning may end with a dot
    return pattern


def includes(patterns: Patterns | None, queue: str) -> bool:
    return patterns is None or any(
        queue.startswith(each[:-1]) if each.endswith(ANY_REST) else queue == each
        for each in patterns
    )


def covers(patterns: Patterns | None, others: Patterns | None) -> bool:
    if patterns is None or others is None:
        return patterns is None
    return all(includes(patterns, each) for each in others)  # no name contains a *


def require(patterns: Patterns | None, queues: Iterable[str]) -> None:
    """Raise Forbidden if one of these queues is not among the patterns.

    It does not say which: it may be one that the caller did not name, such as that of a type.
    """
    if not all(includes(patterns, queue) for queue in queues):
        raise Forbidden(
            f"this token is for the queues {', '.join(patterns or ())} and for no other: name one "
            "of them as the queue (a job without one is in that of its type, or in `default`), or "
            "use another token"
        )


def own_key(queue: str, key: str) -> str:
    """Return an idempotency key as stored for a caller with rights to some queues.

    It counts within the queue alone, so that it says nothing about jobs of other queues. The space
    keeps it apart from every key of other callers.
    """
    return f"{queue} {key}"


# --- tokens ---------------------------------------------------------------------------------------

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


# --- sessions -------------------------------------------------------------------------------------

SESSION_SECONDS = 12 * 3600
"""How long a session lasts: a working day."""


def new_session_secret() -> str:
    """Return a random secret of 256 bits."""
    return secrets.token_urlsafe(32)


def hidden(token_digest: bytes, secret: bytes) -> bytes:
    """Hide the digest of a session's token with the session's secret. Applied twice, show it."""
    return bytes(map(xor, token_digest, hmac.digest(secret, b"token of a session", "sha256")))
