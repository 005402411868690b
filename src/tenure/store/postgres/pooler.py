"""Recognize a pooler between a connection and the server, by what it lends."""

from __future__ import annotations

import select
from typing import Any

import psycopg

from tenure.store.postgres.connection import CONNECTED, one

BACKEND = "SELECT pg_backend_pid()"
POOLER_ROUNDS = 20
"""In a busy pool of two sessions, a client gets the same one again every second time."""
POOLER_SECONDS = 2.0
"""How long a second client waits for a session before it counts that the pool has none free."""


def pools_transactions(connection: psycopg.Connection[Any]) -> bool:
    """Whether a pooler lends one session of the server to several clients in turn.

    A pooler answers for the server at the start, with its own process number. One in session
    mode does that too, so a second client, which holds a transaction open, decides: either it
    was lent the session that this connection had, or this connection gets another one meanwhile.
    Costs one round trip where there is no pooler. Raises psycopg's errors.
    """
    mine = one(connection, BACKEND)
    if mine == connection.info.backend_pid:
        return False
    password = connection.info.password or None
    other = psycopg.connect(connection.info.dsn, password=password, **CONNECTED)
    try:
        for _ in range(POOLER_ROUNDS):
            theirs = _backend_in_transaction(other)
            if theirs is None:
                return _is_served_before(other, connection)
            if theirs == mine or one(connection, BACKEND) != mine:
                return True
            other.execute("ROLLBACK")
    finally:
        other.close()
    return False


def _is_served_before(other: psycopg.Connection[Any], connection: psycopg.Connection[Any]) -> bool:
    """Whether a client that waits for a session gets one before `connection` has an answer.

    If `connection` keeps one session, its answer comes at once. If not, the other asked first.
    """
    ours, theirs = connection.pgconn, other.pgconn
    ours.send_query(BACKEND.encode())
    try:
        return theirs.socket in select.select([ours.socket, theirs.socket], [], [])[0]
    finally:
        other.close()  # gives the session back that `connection` may wait for
        while ours.get_result():
            pass


def _backend_in_transaction(connection: psycopg.Connection[Any]) -> int | None:
    """The process that serves a new transaction, left open; None if none is to be had in time."""
    server = connection.pgconn
    server.send_query(f"BEGIN; {BACKEND}".encode())
    process: int | None = None
    while True:
        while server.is_busy():
            if not select.select([server.socket], [], [], POOLER_SECONDS)[0]:
                return None
            server.consume_input()
        result = server.get_result()
        if result is None:
            return process
        if result.ntuples:
            process = int(result.get_value(0, 0) or b"0")
