"""The table of the tokens of the HTTP API."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from tenure.store.tables import Table
from tenure.tokens.scopes import AccessToken, Scope

if TYPE_CHECKING:
    from tenure.store.protocol import Database


class StoredTokens(Table):
    """The tokens of a store. The row of a token stays after its revocation."""

    name = "access"

    def every(self) -> list[AccessToken]:
        """Return every token, newest first, and whether it is valid now."""
        d = self._dialect
        times = ("created_at", "expires_at", "used_at", "revoked_at")
        rows = self._rows(
            f"SELECT name, prefix, digest, scopes, created_by, {', '.join(map(d.time, times))},"
            f" revoked_at IS NULL AND (expires_at IS NULL OR expires_at > {d.now})"
            f" FROM {self._table} ORDER BY created_at DESC, name"
        )
        return [self._token_of(row) for row in rows]

    def add(
        self,
        *,
        name: str,
        prefix: str,
        digest: str,
        scopes: Sequence[Scope],
        lifetime: float | None,
        actor: str,
    ) -> Future[bool]:
        """Add a token that is valid for `lifetime` seconds, None for ever.

        The future's result is False if the name or the digest is taken.
        """
        d = self._dialect
        values = (name, prefix, digest, " ".join(scopes), actor, lifetime)
        statement = (
            f"INSERT INTO {self._table}"
            " (name, prefix, digest, scopes, created_by, created_at, expires_at)"
            f" VALUES ({d.values(5)}, {d.now}, {d.later(d.value)})"
            " ON CONFLICT DO NOTHING"
        )
        return self._store.write("operator", lambda db: db.changed(statement, values) == 1)

    def revoke(self, name: str, actor: str) -> Future[None]:
        """End a token. One that has ended keeps its time and the actor who ended it."""
        d = self._dialect
        statement = (
            f"UPDATE {self._table} SET revoked_at = {d.now}, revoked_by = {d.value}"
            f" WHERE name = {d.value} AND revoked_at IS NULL"
        )
        return self._store.write("operator", lambda db: _execute(db, statement, [(actor, name)]))

    def note_use(self, names: Iterable[str]) -> Future[None]:
        """Record that tokens were used now."""
        d = self._dialect
        statement = f"UPDATE {self._table} SET used_at = {d.now} WHERE name = {d.value}"
        # In the same order everywhere, or two writers could wait for each other.
        rows = [(name,) for name in sorted(names)]
        return self._store.write("operator", lambda db: _execute(db, statement, rows))

    def _token_of(self, row: Sequence[Any]) -> AccessToken:
        name, prefix, digest, scopes, created_by, *times, valid = row
        created, expires, used, revoked = times
        d = self._dialect
        return AccessToken(
            name=name,
            prefix=prefix,
            digest=digest,
            # A newer version may have scopes that are not known here: they allow nothing.
            scopes=tuple(Scope(scope) for scope in scopes.split() if scope in set(Scope)),
            created_at=d.to_time(created),
            created_by=created_by,
            expires_at=d.time_or_none(expires),
            used_at=d.time_or_none(used),
            revoked_at=d.time_or_none(revoked),
            valid=bool(valid),
        )


def _execute(db: Database, statement: str, rows: Iterable[Sequence[Any]]) -> None:
    for row in rows:
        db.changed(statement, row)
