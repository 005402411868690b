"""Making, listing and revoking the tokens that callers of the HTTP API send: `app.tokens`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from tenure.errors import InvalidInput
from tenure.jobs import durations, payload
from tenure.tokens import scopes as access
from tenure.tokens.scopes import AccessToken, Scope

MAX_TOKENS = 1_000
"""Valid ones at a time: a server keeps them all at hand."""


class Keeper(Protocol):
    """What keeps tokens; the store does."""

    def tokens(self) -> list[AccessToken]:
        """Every token there ever was, newest first."""

    def add_token(
        self,
        *,
        name: str,
        prefix: str,
        digest: str,
        scopes: Sequence[Scope],
        lifetime: float | None,
        actor: str,
    ) -> Future[bool]:
        """Keep a new one; False if the name is taken."""

    def revoke_token(self, name: str, actor: str) -> Future[None]:
        """End one."""


class Tokens:
    """The tokens of one database. They take effect on every server within a few seconds."""

    def __init__(self, keeper: Callable[[], Keeper], actor: str) -> None:
        self._keeper = keeper
        self._actor = actor

    def create(
        self,
        name: str,
        scopes: Iterable[str],
        *,
        expires: Any = None,
        actor: str | None = None,
    ) -> tuple[str, AccessToken]:
        """Make a token; the only time it is seen, and what is kept of it.

        `name` is new for ever, for the ledger tells by it who did what; `expires` is a duration
        from now. Raises InvalidInput.
        """
        payload.check_name(name, "token", "$.name")
        wanted = access.scopes_of(scopes, "$.scopes")
        lifetime = None if expires is None else durations.seconds(expires, path="$.expires")
        if lifetime is not None and lifetime < 1:
            raise InvalidInput("a token lasts at least 1 second", path="$.expires")
        if sum(token.valid for token in self.list()) >= MAX_TOKENS:
            raise InvalidInput(f"{MAX_TOKENS} tokens are valid: revoke some first", path="$.name")
        secret = access.new_secret()
        added = self._keeper().add_token(
            name=name,
            prefix=secret[: access.SHOWN],
            digest=access.digest_of(secret.encode()).hex(),
            scopes=wanted,
            lifetime=lifetime,
            actor=actor or self._actor,
        )
        if not added.result():
            raise InvalidInput(
                f"there is, or was, a token called {name}: take another name", path="$.name"
            )
        return secret, self._named(name)

    def list(self) -> list[AccessToken]:
        """Every token there ever was, newest first."""
        return self._keeper().tokens()

    def revoke(self, name: str, *, actor: str | None = None) -> AccessToken:
        """End a token, for good; one that has ended stays as it is. Raises InvalidInput."""
        self._named(name)
        self._keeper().revoke_token(name, actor or self._actor).result()
        return self._named(name)

    def _named(self, name: str) -> AccessToken:
        for token in self.list():
            if token.name == name:
                return token
        raise InvalidInput("there is no token of this name; `tenure tokens list`", path="$.name")
