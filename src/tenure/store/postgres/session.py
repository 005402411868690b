"""One connection to PostgreSQL and its transactions, as the writing side uses them."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, cast

import psycopg
from psycopg import errors, generators
from psycopg.pq import ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGresult

from tenure.store.postgres.connection import (
    HANGING,
    MAX_HANG_SECONDS,
    NOT_IN_PLACE,
    NOW,
    SEARCH_PATH,
    address_of,
    connect,
    forget_notifications,
    to_time,
)
from tenure.store.postgres.statements import BEGIN, HOT, LOCK_JOBS, LOCK_LIMITS
from tenure.store.postgres.watchdog import ANSWER_SECONDS, Wire, answering
from tenure.store.protocol import ELSEWHERE, Trouble

WAIT_FOR_STANDBY = "SyncRepWaitForLSN"
"""The function of PostgreSQL in which a commit waits for its standby. A notice names it in every
language, while its message is translated."""

PREPARED = b"enqueue_one"
"""The name of the one statement that `_execute_directly` is for."""

NOTHING_COMMITTED = (
    errors.SerializationFailure,
    errors.DeadlockDetected,
    errors.LockNotAvailable,
)
OVER_LIMIT = "TN006"
"""The SQLSTATE of a start that a limit refuses. Claims look first: it changed in between."""
AWAY = (
    OSError,  # no file descriptor is left
    MemoryError,
    psycopg.OperationalError,
    psycopg.InterfaceError,
    errors.ReadOnlySqlTransaction,  # a former primary, still answering at the same address
    errors.IdleInTransactionSessionTimeout,
    errors.TransactionTimeout,
)


ROLE = f"""
SELECT current_setting('synchronous_commit'), current_setting('client_min_messages'),
    current_setting('default_transaction_isolation'), pg_backend_pid(), {HANGING}, {SEARCH_PATH}
"""


_plpgsql_function = re.compile(r"PL/pgSQL.*?\(").search
_last_word = re.compile(r"([a-z_]+)\($").search


class Unconfirmed(psycopg.OperationalError):
    """A commit that may still be lost: no standby has it."""


class PostgresSession:
    """A connection that connects when it is used, and again after it broke."""

    def __init__(self, url: str, on_connect: Callable[[], None] = lambda: None) -> None:
        """`on_connect` is called after each connect, the first one included."""
        self.full_at = -math.inf
        self._address = address_of(url)
        self._on_connect = on_connect
        self._connection: psycopg.Connection[Any] | None = None
        self._wire: Wire | None = None
        self._patience = ANSWER_SECONDS
        self._begin = BEGIN
        self._runs_alone = False  # statements that are whole transactions
        self._lock = LOCK_JOBS
        self._has_prepared = False  # what `_execute_directly` executes
        self._sent = False  # a statement whose answer was not read
        self._started = True  # False: BEGIN is still to be sent, with the first statement
        self._now: datetime | None = None
        self._marked = False
        self._warnings: list[str] = []
        self._cut_short: list[str] = []  # warnings that a wait for a standby was cut short

    def begin(self, *, limits: bool = False) -> None:
        """Begin with the first statement, which saves a round trip where that needs no values."""
        self._connect()
        self._started = False
        self._lock = LOCK_LIMITS if limits else LOCK_JOBS
        self._now = None
        self._marked = False

    def _connect(self) -> None:
        if self._connection is not None:
            return
        connection = connect(self._address)
        try:
            self._set_up(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _set_up(self, connection: psycopg.Connection[Any]) -> None:
        connection.add_notice_handler(self._hear)
        forget_notifications(connection)
        with answering(connection, self._patience, self._address):
            values = (MAX_HANG_SECONDS, connection.info.backend_pid)
            waits, level, isolation, process, hang, _ = (
                connection.execute(ROLE, values).fetchone() or [""] * 6
            )
        if hang and waits != "local":
            # It has to be closed: the server would keep it as long, one more at each try.
            raise psycopg.OperationalError("commits wait for a synchronous standby")
        # Whatever the role is set to: a commit that is answered is on disk, and a warning that its
        # wait for a standby was cut short is sent.
        self._begin = (
            BEGIN
            + "; SET LOCAL synchronous_commit = on" * (waits == "off")
            + "; SET LOCAL client_min_messages = warning" * (level == "error")
        )
        # A statement without BEGIN has what the role is set to, such as another level of isolation.
        self._runs_alone = self._begin == BEGIN and isolation == "read committed"
        # A pooler answers with another process number. It may lend each transaction another
        # session, which knows nothing of what was prepared in the one before.
        if process == connection.info.backend_pid:
            connection.prepare_threshold = 1
        self._has_prepared = self._sent = False
        self._on_connect()
        self._wire = Wire(connection, self._address)

    def _hear(self, notice: errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self._warnings.append(notice.message_primary or "")
            if notice.source_function == WAIT_FOR_STANDBY:
                self._cut_short.append(notice.message_primary or "")

    def commit(self) -> None:
        if not self._started:  # there was nothing to do
            self._started = True
            return
        self._warnings.clear()
        done = self._run("COMMIT").statusmessage
        # It warns when there was no transaction, or when the wait for a standby was cut short.
        if done != "COMMIT" or self._warnings:
            raise Unconfirmed(f"COMMIT ended in {done}: {'; '.join(self._warnings)}")

    def rollback(self) -> None:
        self._started = True
        self._has_prepared = False  # psycopg deallocates everything after a rollback
        if self._sent:  # its answer may be what did not come: a new connection waits for nothing
            self.close()
        if self._connection is None:
            return
        try:
            if self._connection.info.transaction_status is not TransactionStatus.IDLE:
                self._run("ROLLBACK")
        except (psycopg.Error, MemoryError):
            self.close()

    def savepoint(self) -> None:
        self._run(
            "RELEASE SAVEPOINT tenure; SAVEPOINT tenure" if self._marked else "SAVEPOINT tenure"
        )
        self._marked = True

    def undo_to_savepoint(self) -> None:
        self._run("ROLLBACK TO SAVEPOINT tenure")
        self._has_prepared = False

    def _run(
        self, statement: str, values: Any = None, *, binary: bool = False
    ) -> psycopg.Cursor[Any]:
        connection, wire, sql = self._connection, self._wire, self._address.sql
        if connection is None or wire is None:
            raise psycopg.OperationalError("not connected")
        wire.expect(self._patience)
        try:
            self._skip_answer(connection)
            if not self._started:
                self._started = True
                begin = f"{self._begin}; {self._lock}"
                if values is None:
                    cursor = connection.execute(sql(f"{begin}; {statement}"), prepare=False)
                    while cursor.nextset():
                        pass
                    return cursor
                connection.execute(sql(begin), prepare=False)
                wire.expect(self._patience)  # each answer has its own time
            prepare = statement in HOT
            return connection.execute(sql(statement), values, binary=binary, prepare=prepare)
        finally:
            wire.answered()

    def _send(self, statement: str) -> None:
        """Send what is not to be waited for. Several statements are one transaction.

        With another thread and connection for this, work would come to both in turn, and each
        finds the caches cold that the other has filled.
        """
        if self._connection is None or self._wire is None:
            raise psycopg.OperationalError("not connected")
        self._wire.expect(self._patience)
        try:
            self._skip_answer(self._connection)
            self._connection.pgconn.send_query(self._address.sql(statement))
            self._sent = True
        finally:
            self._wire.answered()

    def _skip_answer(self, connection: psycopg.Connection[Any]) -> None:
        """Wait for the answer to the last `_send`, and ignore it: a lost connection shows next."""
        if self._sent:
            # `get_result` alone would wait with the interpreter's lock held.
            connection.wait(generators.fetch_many(connection.pgconn))
            self._sent = False

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._run(statement, values or None, binary=True).fetchall()

    def changed(self, statement: str, values: Sequence[Any] = ()) -> int:
        return self._run(statement, values or None).rowcount

    def now(self) -> datetime:
        """The clock, read once per transaction."""
        if self._now is None:
            ((stored,),) = self.rows(f"SELECT {NOW} AT TIME ZONE 'UTC'")
            self._now = to_time(stored)
        return self._now

    # --- a statement that is a whole transaction

    def _commits_alone(self) -> bool:
        """Return whether such a statement is as safe as a transaction. Connects."""
        self._connect()
        self._cut_short.clear()
        return self._runs_alone

    def _check_confirmed(self) -> None:
        """Raise Unconfirmed if no standby has what the last such statement committed."""
        if self._cut_short:
            raise Unconfirmed(self._cut_short[0])

    def _execute_directly(self, statement: str, values: Sequence[bytes | None]) -> PGresult:
        """Call libpq: psycopg takes as long to prepare the parameters as the server to execute."""
        assert self._connection is not None
        assert self._wire is not None
        self._wire.expect(self._patience)
        server, sql = self._connection.pgconn, self._address.sql(statement)
        try:
            self._skip_answer(self._connection)
            if self._connection.prepare_threshold is None:
                server.send_query_params(sql, values, result_format=Format.BINARY)
            else:
                if not self._has_prepared:
                    prepared = server.prepare(PREPARED, sql)
                    if prepared.status != ExecStatus.COMMAND_OK:
                        error = error_of(prepared)
                        if not isinstance(error, errors.DuplicatePreparedStatement):
                            raise error
                    self._has_prepared = True
                row = cast(Any, values)  # NULLs are None
                server.send_query_prepared(PREPARED, row, result_format=Format.BINARY)
            result: PGresult
            # The last one, as libpq answers: a pooler may add that the connection ends.
            *_, result = self._connection.wait(generators.execute(server))
        finally:
            self._wire.answered()
        if result.status != ExecStatus.TUPLES_OK:
            raise error_of(result)
        return result

    # --- after a transaction

    def trouble(self, error: Exception) -> Trouble:
        if isinstance(error, NOTHING_COMMITTED) or getattr(error, "sqlstate", "") == OVER_LIMIT:
            return Trouble.RETRY
        if str(error).startswith(ELSEWHERE):
            return Trouble.MOVED
        taken = error.diag.table_name if isinstance(error, errors.UniqueViolation) else ""
        if taken in ("unique_key", "job"):
            return Trouble.RETRY  # which looks again, and finds the holder of the key
        if isinstance(error, Unconfirmed):
            return Trouble.UNCONFIRMED
        if isinstance(error, AWAY):
            if isinstance(error, errors.DiskFull):
                self.full_at = time.monotonic()
                return Trouble.FULL
            if isinstance(error, errors.ReadOnlySqlTransaction):
                self.close()  # a new connection may find the new primary
            return Trouble.UNAVAILABLE
        if getattr(error, "sqlstate", None) in NOT_IN_PLACE and not self._is_of_others(error):
            return Trouble.UNAVAILABLE
        return Trouble.REFUSED if isinstance(error, psycopg.DatabaseError) else Trouble.BUG

    def _is_of_others(self, error: Any) -> bool:
        """Whether the innermost function in which an error arose is not one of Tenure's.

        The server's language is not known, but it names each function: without its schema if the
        search path leads there, as it may behind a pooler.
        """
        named = _plpgsql_function(error.diag.context or "")
        if named is None:
            return False
        from tenure.store.postgres.schema import functions

        where = named[0].replace('"', "")  # keywords are quoted
        name = _last_word(where)
        ours = f"{self._address.schema}." in where
        return not ours and ("." in where or name is None or name[1] not in functions())

    def close(self) -> None:
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
            self._connection = None
        if self._wire is not None:
            self._wire.close()
            self._wire = None


def error_of(result: PGresult) -> psycopg.Error:
    """Return the error in a result: without an error code, that of a lost connection.

    libpq can say so in a result before it marks the connection as bad.
    """
    error = errors.error_from_result(result)
    return error if error.sqlstate else psycopg.OperationalError(str(error))
