"""What surrounds a PostgreSQL database: a pooler before it, something that keeps dead rows.

Questions for `tenure doctor` and for the checks at the start. Nothing is changed.
"""

from __future__ import annotations

import select
from typing import Any

from tenure.store.postgres.connection import CONNECTED

# The import above says what to do where psycopg is missing, so it comes first.
# isort: split
import psycopg

POOLER_ROUNDS = 5
POOLER_SECONDS = 2.0
"""How long a second client waits for a session before the pooler is taken to lend none twice."""

LONG_SECONDS = 300.0
MAX_TRANSACTIONS = 1_000_000
"""How old, in transactions, a snapshot may be whose session this role may not look into."""


def pools_transactions(connection: psycopg.Connection[Any]) -> bool:
    """Whether a pooler lends one session of the server to several clients in turn.

    A pooler answers for the server at the start, with its own process number. One in session
    mode does that too, so a second client, which holds a transaction open, decides: either it
    was lent the session that this connection had, or this connection gets another one meanwhile.
    Costs one round trip where there is no pooler. Raises psycopg's errors.
    """
    mine = _backend(connection)
    if mine == connection.info.backend_pid:
        return False
    password = connection.info.password or None
    other = psycopg.connect(connection.info.dsn, password=password, **CONNECTED)
    try:
        for _ in range(POOLER_ROUNDS):
            theirs = _backend_in_transaction(other)
            if theirs is None:  # it waits until this connection ends: the session is ours alone
                return False
            if theirs == mine or _backend(connection) != mine:
                return True
            other.execute("ROLLBACK")
    finally:
        other.close()
    return False


def _backend(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


def _backend_in_transaction(connection: psycopg.Connection[Any]) -> int | None:
    """The process that serves a new transaction, left open; None if none is to be had in time."""
    server = connection.pgconn
    server.send_query(b"BEGIN; SELECT pg_backend_pid()")
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


# The horizon below which dead rows can be cleared away is that of the oldest snapshot, in this
# database or of a standby. What a role may not look into is judged by its age in transactions.
HOLDERS = """
SELECT format('session %%s of %%s (%%s) has a transaction open%%s; end it with'
        ' SELECT pg_terminate_backend(%%s)', pid, usename,
        coalesce(nullif(application_name, ''), backend_type, 'unknown'),
        ' since ' || date_trunc('second', xact_start), pid)
    FROM pg_stat_activity
    WHERE (datname = current_database() OR backend_type = 'walsender')
        AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL)
        AND pid <> pg_backend_pid() AND coalesce(backend_type, '') <> 'autovacuum worker'
        AND CASE WHEN xact_start IS NULL
            THEN greatest(age(backend_xid), age(backend_xmin)) > %s
            ELSE clock_timestamp() - xact_start > %s * interval '1 second' END
UNION ALL
SELECT format('the prepared transaction %%L of %%s is open since %%s; end it with'
        ' ROLLBACK PREPARED %%L', gid, owner, date_trunc('second', prepared), gid)
    FROM pg_prepared_xacts
    WHERE database = current_database()
        AND clock_timestamp() - prepared > %s * interval '1 second'
UNION ALL
SELECT format('the replication slot %%I is not in use and keeps what its reader has not seen; drop'
        ' it with SELECT pg_drop_replication_slot(%%L), unless its reader comes back', slot_name,
        slot_name)
    FROM pg_replication_slots
    WHERE NOT active AND (xmin IS NOT NULL OR catalog_xmin IS NOT NULL OR restart_lsn IS NOT NULL)
"""


def holds_back(
    connection: psycopg.Connection[Any], longer_than: float = LONG_SECONDS
) -> str | None:
    """What keeps dead rows or the log from being cleared away, and how to end it; None if nothing.

    Counted are transactions open for more than `longer_than` seconds, here or on a standby whose
    snapshots count, prepared ones, and replication slots without a reader. With one of them the
    queue's indexes fill with dead entries, or the disk with log. Raises psycopg's errors.
    """
    values = (MAX_TRANSACTIONS, longer_than, longer_than)
    found = [text for (text,) in connection.execute(HOLDERS, values)]
    return ". ".join(found) or None
