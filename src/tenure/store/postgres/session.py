"""One connection to PostgreSQL and its transactions, as the writing side uses them.

One that waits too long for an answer is cut. TCP notices a peer that is gone. It does not notice a
pooler or a server that hangs: their machine still confirms every packet, so a wait for an answer
would never end. Therefore one thread of this process looks at the waiting connections, and cuts
each that has waited too long. A cut connection fails like any broken one, and the next use connects
again.

Where an address names several hosts, a connection that waits for one of them is cut as soon as a
new connection leads to another: that is the primary now, and the former one may be frozen.
"""

from __future__ import annotations

import logging
import math
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, cast

import psycopg
from psycopg import errors, generators
from psycopg.pq import ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGresult

from tenure import forks
from tenure.store.database import ELSEWHERE, Trouble
from tenure.store.postgres import connection as pg
from tenure.store.postgres.statements import BEGIN, HOT, LOCK_JOBS, LOCK_LIMITS

log = logging.getLogger(__name__)

ANSWER_SECONDS = 60.0
"""How long a statement may take. Tenure's take far less, including a wait for a lock."""
LOOK_SECONDS = 0.2
SUSPECT_SECONDS = 3.0
"""How long a wait lasts before it looks which of several hosts is the primary now."""
SEARCH_SECONDS = 0.5
"""The pause between two such looks, as long as the wait lasts."""


class Wire:
    """The socket under a connection, which another thread can cut."""

    def __init__(
        self, connection: psycopg.Connection[Any], address: pg.Address | None = None
    ) -> None:
        """Close it with the connection: it has its own file descriptor.

        `address` is where the connection was made.
        """
        self.address = address if address and address.several else None
        self.server = _server_of(connection)
        # The family does not matter here, so that of a Unix socket need not be found out.
        self._socket = socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM)
        self.deadline: float | None = None  # monotonic seconds
        self.suspect_at = 0.0
        try:
            _watch.add(self)
        except psycopg.OperationalError:
            self._socket.close()
            raise

    def expect(self, seconds: float) -> None:
        """From now on an answer has to come within `seconds`."""
        now = time.monotonic()
        self.suspect_at = now + SUSPECT_SECONDS
        self.deadline = now + seconds
        _watch.wanted.set()

    def answered(self) -> None:
        """Nothing is waited for any more."""
        self.deadline = None

    def is_suspect(self) -> bool:
        """Whether another of several hosts may be the primary now."""
        waits = self.address is not None and self.deadline is not None
        return waits and time.monotonic() >= self.suspect_at

    def cut(self, why: str = "the database did not answer in time") -> None:
        """End the connection, so that the thread that waits for it fails."""
        self.deadline = None
        log.warning("%s: its connection is cut", why)
        with suppress(OSError):  # closed meanwhile
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Forget the connection."""
        _watch.remove(self)
        self._socket.close()


@contextmanager
def answering(
    connection: psycopg.Connection[Any], seconds: float, address: pg.Address | None = None
) -> Iterator[None]:
    """Cut `connection` if what is done inside takes longer than `seconds`.

    `address` is where it was made.
    """
    wire = Wire(connection, address)
    try:
        wire.expect(seconds)
        yield
    finally:
        wire.close()


def _server_of(connection: psycopg.Connection[Any]) -> tuple[str, str, int]:
    info = connection.info
    return info.host, info.hostaddr, info.port


class _Watch:
    """The thread that looks. It sleeps while nothing is waited for."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin with nothing, as in the child of a fork, which has none of its parent's threads."""
        self._lock = threading.Lock()
        self._wires: set[Wire] = set()
        self.wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._search: threading.Thread | None = None

    def add(self, wire: Wire) -> None:
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="tenure-wire-watch", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # a limit of the machine
                    raise psycopg.OperationalError(f"cannot be watched: {error}") from error
                self._thread = thread
            self._wires.add(wire)

    def remove(self, wire: Wire) -> None:
        with self._lock:
            self._wires.discard(wire)

    def _run(self) -> None:
        while True:
            self.wanted.wait()
            time.sleep(LOOK_SECONDS)
            self.wanted.clear()  # before the look, so that who begins to wait after it wakes us
            now = time.monotonic()
            for wire in self._all():
                deadline = wire.deadline
                if deadline is not None:
                    self.wanted.set()
                    if now >= deadline:
                        wire.cut()
                    elif wire.is_suspect():
                        self._start_search(wire.address)

    def _all(self) -> list[Wire]:
        with self._lock:
            return list(self._wires)

    def _start_search(self, address: pg.Address | None) -> None:
        if self._search is None or not self._search.is_alive():
            self._search = threading.Thread(
                None, self._find_primary, "tenure-primary", (address,), daemon=True
            )
            with suppress(RuntimeError):  # a limit of the machine
                self._search.start()

    def _find_primary(self, address: pg.Address) -> None:
        """Cut who waits for another server than the one that new connections lead to."""
        while any(wire.address == address and wire.is_suspect() for wire in self._all()):
            with suppress(psycopg.Error), pg.connect(address) as found:
                for wire in self._all():
                    if wire.address == address and wire.server != _server_of(found):
                        wire.cut("another server is the primary now")
            time.sleep(SEARCH_SECONDS)


_watch = _Watch()
forks.in_child(_watch.begin)

# --- the session ----------------------------------------------------------------------------------

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
    current_setting('default_transaction_isolation'), pg_backend_pid(),
    {pg.HANGING}, {pg.SEARCH_PATH}
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
        self._address = pg.address_of(url)
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
        connection = pg.connect(self._address)
        try:
            self._set_up(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _set_up(self, connection: psycopg.Connection[Any]) -> None:
        connection.add_notice_handler(self._hear)
        pg.forget_notifications(connection)
        with answering(connection, self._patience, self._address):
            values = (pg.MAX_HANG_SECONDS, connection.info.backend_pid)
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
            ((stored,),) = self.rows(f"SELECT {pg.NOW} AT TIME ZONE 'UTC'")
            self._now = pg.to_time(stored)
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
        if getattr(error, "sqlstate", None) in pg.NOT_IN_PLACE and not self._is_of_others(error):
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
