"""Making, listing and revoking the tokens that callers of the HTTP API send: `app.tokens`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from tenure.app.core import Noun
from tenure.errors import InvalidInput
from tenure.rules import tokens as access
from tenure.rules.tokens import AccessToken, check_patterns
from tenure.store.tables import tokens
from tenure.values import durations
from tenure.values.names import check_name

MAX_TOKENS = 1_000
"""How many may be valid at a time: a server keeps them all in memory."""


class Tokens(Noun):
    """The tokens of one database. They take effect on every server within a few seconds."""

    def create(
        self,
        name: str,
        scopes: Iterable[str],
        *,
        queues: Iterable[str] | None = None,
        expires: Any = None,
        actor: str | None = None,
    ) -> tuple[str, AccessToken]:
        """Make a token; return its text, which is shown only this once, and what is kept of it.

        - `name`: 1 to 128 of `A-Z a-z 0-9 _ : - .`; the actor in the ledger is `token:NAME`. A name
          cannot be used again, not even after the token is revoked.
        - `scopes`: one or more of `enqueue`, `work`, `read` and `admin`, which includes the others.
        - `queues`: the only queues that it is for, at most 100: names, or beginnings of names
          with a `*`, such as `shop.*`. Default: None, every queue.
        - `expires`: a duration from now, at least 1 second. Default: None, never.
        - `actor`: who makes it. Default: the application's actor.

        Raises InvalidInput, also if 1,000 tokens are valid already.
        """
        check_name(name, "token", "$.name")
        wanted = access.scopes_of(scopes, "$.scopes")
        patterns = check_patterns(queues, "$.queues")
        lifetime = None if expires is None else durations.seconds(expires, path="$.expires")
        if lifetime is not None and lifetime < 1:
            raise InvalidInput("a token lasts at least 1 second", path="$.expires")
        if sum(token.valid for token in self.list()) >= MAX_TOKENS:
            raise InvalidInput(f"{MAX_TOKENS} tokens are valid: revoke some first", path="$.name")
        secret = access.new_secret()
        now = self._core.clock()
        token = AccessToken(
            name=name,
            prefix=secret[: access.SHOWN],
            digest=access.digest_of(secret.encode()).hex(),
            scopes=wanted,
            queues=patterns,
            created_at=now,
            created_by=self._core.signed(actor),
            expires_at=None if lifetime is None else now + timedelta(seconds=lifetime),
            valid=True,
        )
        if not self._core.store.write("operator", lambda db: tokens.add(db, token)).result():
            raise InvalidInput(
                f"there is, or was, a token called {name}: take another name", path="$.name"
            )
        return secret, self._named(name)

    def list(self) -> list[AccessToken]:
        """Return every token, also expired and revoked ones, newest first."""
        return tokens.every(self._core.store.read)

    def revoke(self, name: str, *, actor: str | None = None) -> AccessToken:
        """Revoke a token for good; return it. One that has ended does not change.

        - `actor`: who revokes it. Default: the application's actor.

        Raises InvalidInput if no token has this name.
        """
        self._named(name)
        by = self._core.signed(actor)
        self._core.store.write("operator", lambda db: tokens.revoke(db, name, by)).result()
        return self._named(name)

    def _named(self, name: str) -> AccessToken:
        for token in self.list():
            if token.name == name:
                return token
        raise InvalidInput("there is no token of this name; `tenure tokens list`", path="$.name")
