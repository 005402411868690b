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
            other.pgconn.send_query(f"BEGIN; {BACKEND}".encode())
            if not _is_answered(other):
                if not _keeps(connection, mine, other):
                    return True
                if not _is_answered(other):  # on a busy machine it was only late
                    return False
            if _process(other) == mine or one(connection, BACKEND) != mine:
                return True
            other.execute("ROLLBACK")
            if one(connection, BACKEND) != mine:  # else two clients may keep lending the same two
                return True
    finally:
        other.close()
    return False


def _keeps(connection: psycopg.Connection[Any], mine: int, other: psycopg.Connection[Any]) -> bool:
    """Whether `connection` has its session at once, while another client waits for one.

    If it keeps none, the other asked first.
    """
    ours, theirs = connection.pgconn, other.pgconn
    ours.send_query(BACKEND.encode())
    if theirs.socket in select.select([ours.socket, theirs.socket], [], [])[0]:
        other.close()  # gives the session back that `connection` may wait for
    return _process(connection) == mine and not other.closed


def _is_answered(connection: psycopg.Connection[Any]) -> bool:
    """Wait until there is an answer; return False if none comes in time."""
    server = connection.pgconn
    while server.is_busy():
        if not select.select([server.socket], [], [], POOLER_SECONDS)[0]:
            return False
        server.consume_input()
    return True


def _process(connection: psycopg.Connection[Any]) -> int:
    """Read the answer: the process that serves a connection."""
    process = 0
    while (result := connection.pgconn.get_result()) is not None:
        if result.ntuples:
            process = int(result.get_value(0, 0) or 0)
    return process
