"""The table of the dashboard's sessions."""

from __future__ import annotations

from datetime import datetime

from tenure.store.database import Reads, Statements

MAX_SESSIONS = 1_000
"""How many there may be: a server keeps them all in memory. The oldest makes room for a new one."""


def every(db: Reads) -> dict[bytes, bytes]:
    """Return the hidden token of each session that lasts, by the digest of its secret."""
    d = db.dialect
    rows = db.rows(f"SELECT digest, token FROM {d.table('session')} WHERE expires_at > {d.now}")
    return {bytes.fromhex(digest): bytes.fromhex(token) for digest, token in rows}


def add(db: Statements, digest: bytes, token: bytes, expires_at: datetime) -> None:
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
