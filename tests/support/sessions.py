"""Sessions of PostgreSQL that one test after the other uses.

A new session costs the server 5 to 20 ms for what it reads of the catalogue, for triggers that it
compiles and for plans. So in a database that is kept, `close` of psycopg cleans a session as
`DISCARD ALL` does, but for its plans, and the next connection with the same parameters is a new
object of psycopg on that session. One that is in a transaction, or cannot be cleaned, is closed.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from typing import Any, cast

import psycopg
from psycopg import conninfo, pq
from psycopg.pq import abc

PARKED = "parked by tests"
"""The name of a session that nobody uses."""

CLEAN = f"""
SET SESSION AUTHORIZATION DEFAULT; RESET ALL; DEALLOCATE ALL; CLOSE ALL; UNLISTEN *;
SELECT pg_advisory_unlock_all(), pg_stat_force_next_flush(); DISCARD TEMP; DISCARD SEQUENCES;
SET application_name = '{PARKED}'
"""
MOST = 8
"""Sessions with the same parameters that are kept."""

ANSWERS = {pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK}

_free: dict[tuple[Any, ...], dict[str, list[abc.PGconn]]] = {}
"""A database -> parameters -> sessions that nobody uses."""
_close = psycopg.Connection.close
_connect = psycopg.Connection._connect_gen.__func__  # type: ignore[attr-defined]
_process = os.getpid()
_finished = pq.PGconn.connect_start(b"host=/nowhere")
_finished.finish()


def keep(url: str) -> None:
    """Keep the sessions with a database from now on: those of its own address, without a proxy."""
    _free[_named(url)] = {}
    psycopg.Connection._connect_gen = classmethod(_connect_or_take)  # type: ignore[assignment]
    psycopg.Connection.close = _close_or_park  # type: ignore[assignment, method-assign]


def drop(url: str) -> None:
    """Close the sessions with a database that nobody uses, and keep no more."""
    for sessions in _free.pop(_named(url)).values():
        for session in sessions:
            session.finish()


def _named(parameters: str) -> tuple[Any, ...]:
    given = conninfo.conninfo_to_dict(parameters)
    return tuple(given.get(name) for name in ("host", "dbname", "user"))


def _connect_or_take(cls: type[psycopg.Connection[Any]], parameters: str = "") -> Any:
    free = _free.get(_named(parameters))
    if free is None or os.getpid() != _process:
        return (yield from _connect(cls, parameters))
    sessions = free.setdefault(parameters, [])
    while sessions:
        session = sessions.pop()
        if session.exec_(b"RESET application_name").status == pq.ExecStatus.COMMAND_OK:
            connection = cls(session)
            break
        session.finish()
    else:
        connection = yield from _connect(cls, parameters)
    cast("Any", connection)._sessions = sessions
    return connection


def _close_or_park(connection: psycopg.Connection[Any]) -> None:
    session, sessions = connection.pgconn, getattr(connection, "_sessions", None)
    if sessions is None or len(sessions) >= MOST or not _is_clean(connection):
        _close(connection)
        return
    session.notice_handler = session.notify_handler = None
    connection._closed, connection.pgconn = True, _finished
    sessions.append(session)


def _is_clean(connection: psycopg.Connection[Any]) -> bool:
    """Whether the session of a connection could be cleaned."""
    session = connection.pgconn
    if os.getpid() != _process or connection.lock.locked():
        return False
    if session.transaction_status == pq.TransactionStatus.ACTIVE:  # the store reads answers late
        with suppress(psycopg.OperationalError):
            _skip_answers(session)
    if session.transaction_status != pq.TransactionStatus.IDLE:
        return False
    cleaned = session.exec_(CLEAN.encode()).status == pq.ExecStatus.COMMAND_OK
    while session.notifies():
        pass
    return cleaned


def _skip_answers(session: abc.PGconn) -> None:
    """Read what the server answers, until it takes longer than a second or all of it is read."""
    session.flush()
    while select.select([session.socket], [], [], 1.0)[0]:
        session.consume_input()
        while not session.is_busy():
            answer = session.get_result()
            if answer is None or answer.status not in ANSWERS:
                return
