"""The tables of the tokens of the HTTP API and of the dashboard's sessions.

The row of a token stays after its revocation.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from tenure.rules.tokens import AccessToken, Scope
from tenure.store.database import Reads, Statements
from tenure.store.rows import fields_of, read_names, selected, write_names

COLUMNS = (
    *("name", "prefix", "digest", "scopes", "queues", "created_by"),
    *("created_at", "expires_at", "used_at", "revoked_at"),
)


def every(db: Reads) -> list[AccessToken]:
    """Return every token, newest first, and whether it is valid now."""
    d = db.dialect
    rows = db.rows(
        f"SELECT revoked_at IS NULL AND (expires_at IS NULL OR expires_at > {d.now}),"
        f" {selected(d, COLUMNS)} FROM {d.table('access')} ORDER BY created_at DESC, name"
    )
    tokens = []
    for valid, *row in rows:
        fields = fields_of(d, COLUMNS, row)
        # A newer version may have scopes that are not known here: they allow nothing.
        scopes = [Scope(scope) for scope in fields["scopes"].split() if scope in set(Scope)]
        read = {"scopes": tuple(scopes), "queues": read_names(fields["queues"])}
        tokens.append(AccessToken(**fields | read, valid=bool(valid)))
    return tokens


def add(db: Statements, token: AccessToken) -> bool:
    """Add a token. Returns False if the name or the digest is taken."""
    d = db.dialect
    scopes, queues = " ".join(token.scopes), write_names(token.queues)
    times = [d.to_bound(time) for time in (token.created_at, token.expires_at)]
    added = db.changed(
        f"INSERT INTO {d.table('access')}"
        " (name, prefix, digest, scopes, queues, created_by, created_at, expires_at)"
        f" VALUES ({d.values(8)}) ON CONFLICT DO NOTHING",
        (token.name, token.prefix, token.digest, scopes, queues, token.created_by, *times),
    )
    return added == 1


def revoke(db: Statements, name: str, actor: str) -> None:
    """End a token. One that has ended keeps its time and the actor who ended it."""
    d = db.dialect
    db.changed(
        f"UPDATE {d.table('access')} SET revoked_at = {d.now}, revoked_by = {d.value}"
        f" WHERE name = {d.value} AND revoked_at IS NULL",
        (actor, name),
    )


def note_use(db: Statements, names: Iterable[str]) -> None:
    d = db.dialect
    statement = f"UPDATE {d.table('access')} SET used_at = {d.now} WHERE name = {d.value}"
    for name in sorted(names):  # the same order everywhere, or two writers could deadlock
        db.changed(statement, (name,))


# --- sessions -------------------------------------------------------------------------------------

MAX_SESSIONS = 1_000
"""How many there may be: a server keeps them all in memory. The oldest makes room for a new one."""


def sessions(db: Reads) -> dict[bytes, bytes]:
    """Return the hidden token of each session that lasts, by the digest of its secret."""
    d = db.dialect
    rows = db.rows(f"SELECT digest, token FROM {d.table('session')} WHERE expires_at > {d.now}")
    return {bytes.fromhex(digest): bytes.fromhex(token) for digest, token in rows}


def add_session(db: Statements, digest: bytes, token: bytes, expires_at: datetime) -> None:
    d = db.dialect
    table = d.table("session")
    db.changed(
        f"DELETE FROM {table} WHERE expires_at <= {d.now} OR digest NOT IN"
        f" (SELECT digest FROM {table} ORDER BY expires_at DESC LIMIT {MAX_SESSIONS - 1})"
    )
    db.changed(
        f"INSERT INTO {table} (digest, token, expires_at) VALUES ({d.values(3)})",
        (digest.hex(), token.hex(), d.to_bound(expires_at)),
    )


def remove(db: Statements, digest: bytes) -> None:
    d = db.dialect
    db.changed(f"DELETE FROM {d.table('session')} WHERE digest = {d.value}", (digest.hex(),))
