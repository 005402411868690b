"""The table of tokens, in the words of each database. What it decides stands in its statements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tenure.tokens.scopes import AccessToken, Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What differs between the databases; `{value}` in a template stands for a parameter."""

    table: str
    now: str
    value: str
    lifetime: str  # seconds from now, NULL for ever
    time: str  # a column as it is read

    def read(self) -> str:
        """Every token, newest first, and whether it is valid now."""
        times = ("created_at", "expires_at", "used_at", "revoked_at")
        columns = ", ".join(self.time.format(column=column) for column in times)
        return (
            f"SELECT name, prefix, digest, scopes, created_by, {columns},"
            f" revoked_at IS NULL AND (expires_at IS NULL OR expires_at > {self.now})"
            f" FROM {self.table} ORDER BY created_at DESC, name"
        )

    def add(self) -> str:
        """A new one, unless its name or digest is there already."""
        v = self.value
        return (
            f"INSERT INTO {self.table}"
            " (name, prefix, digest, scopes, created_by, created_at, expires_at)"
            f" VALUES ({v}, {v}, {v}, {v}, {v}, {self.now}, {self.lifetime})"
            " ON CONFLICT DO NOTHING"
        )

    def revoke(self) -> str:
        """Once: who revoked it first stays on record."""
        return (
            f"UPDATE {self.table} SET revoked_at = {self.now}, revoked_by = {self.value}"
            f" WHERE name = {self.value} AND revoked_at IS NULL"
        )

    def use(self) -> str:
        """It was used just now."""
        return f"UPDATE {self.table} SET used_at = {self.now} WHERE name = {self.value}"


SQLITE_NOW = "(SELECT at FROM tenure_now)"
SQLITE = Words(
    table="tenure_access",
    now=SQLITE_NOW,
    value="?",
    lifetime=f"{SQLITE_NOW} + CAST(? * 1000 AS INTEGER)",
    time="{column}",
)
POSTGRES_NOW = "(SELECT {s}.clock())"
POSTGRES = Words(
    table="{s}.access",
    now=POSTGRES_NOW,
    value="%s",
    lifetime=f"{POSTGRES_NOW} + %s::double precision * interval '1 second'",
    time="{column} AT TIME ZONE 'UTC'",
)


class TokenTable:
    """The writing side, inside the transaction of its database."""

    def __init__(self, words: Words, run: Callable[[str, Sequence[Any]], Any]) -> None:
        """`run` executes a statement and returns its cursor."""
        self._words = words
        self._run = run

    def add(
        self,
        *,
        name: str,
        prefix: str,
        digest: str,
        scopes: Sequence[Scope],
        lifetime: float | None,
        actor: str,
    ) -> bool:
        """Add a token that is valid for `lifetime` seconds; False if its name is taken."""
        values = (name, prefix, digest, " ".join(scopes), actor, lifetime)
        return bool(self._run(self._words.add(), values).rowcount)

    def revoke(self, name: str, actor: str) -> None:
        """End a token; one that has ended stays as it is."""
        self._run(self._words.revoke(), (actor, name))

    def note_use(self, names: Iterable[str]) -> None:
        """Write down that these are in use."""
        for name in sorted(names):  # in one order for everybody, so that nobody waits in a circle
            self._run(self._words.use(), (name,))


def token_of(row: Sequence[Any], to_time: Callable[[Any], datetime]) -> AccessToken:
    """A row of `Words.read`."""
    name, prefix, digest, scopes, created_by, created, expires, used, revoked, valid = row

    def time(stored: Any) -> datetime | None:
        return None if stored is None else to_time(stored)

    return AccessToken(
        name=name,
        prefix=prefix,
        digest=digest,
        # Of a newer version there may be scopes that are not known here: they allow nothing.
        scopes=tuple(Scope(scope) for scope in scopes.split() if scope in set(Scope)),
        created_at=to_time(created),
        created_by=created_by,
        expires_at=time(expires),
        used_at=time(used),
        revoked_at=time(revoked),
        valid=bool(valid),
    )
