"""Connect to PostgreSQL: the URL, the schema in it, poolers, times, and array parameters.

Everything here holds behind a transaction pooler: no session settings and no named prepared
statements unless the session is the server's own (`session.py`). A statement names its schema
(`Address.sql`). A pooler between a connection and the server is recognized by what it lends.
"""

from __future__ import annotations

import functools
import re
import select
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from tenure.errors import InvalidInput
from tenure.store.postgres.address import split_schema

try:
    import psycopg
    import psycopg_pool  # noqa: F401 - the reader needs it: better to say so at once
    from psycopg import conninfo
    from psycopg.adapt import Dumper
    from psycopg.pq import Format
except ImportError as error:
    raise InvalidInput(
        f"the PostgreSQL store needs psycopg, which cannot be imported ({error}): "
        "pip install 'tenure[postgres]'"
    ) from error

OLDEST_SERVER = 14
CONNECT_SECONDS = 10
CONNECT_SECONDS_EACH = 3
"""Where there are several: a frozen one may be tried first, each time."""
SETTINGS: dict[str, Any] = {
    "application_name": "tenure",
    "client_encoding": "utf8",
    "connect_timeout": CONNECT_SECONDS,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds until unanswered data means a dead peer
}
"""Connection settings that a URL may override, each by its own parameter."""

NOW = "(SELECT {s}.clock())"
"""The store's time, read once per statement."""

MAX_HANG_SECONDS = 10.0
"""How long commits may wait for a synchronous standby before no other session joins them."""

HANGING = """
EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep'
    AND clock_timestamp() - state_change > %s * interval '1 second')
"""
"""Whether commits hang. A session that this process gave up still waits, and shows that."""

NOT_IN_PLACE = {"3F000", "42P01", "42883", "42703", "42501"}
"""The SQLSTATEs of what no work can help: the schema, a table, function or column is not there, as
while a backup is restored, or this role may not use it."""

SAFE_PATH = "pg_catalog, pg_temp"
SEARCH_PATH = f"""
CASE WHEN pg_backend_pid() = %s THEN set_config('search_path', '{SAFE_PATH}', false) END
"""
"""Ends the search for functions at those of PostgreSQL, in a session that is our own.

Who may make functions in another schema of the path, as everyone may in `public` up to PostgreSQL
14, could have one called with our rights: `unnest(uuid[])` fits better than `unnest(anyarray)`.
"""

CONNECTED: dict[str, Any] = {"autocommit": True, "prepare_threshold": None}
"""Transactions start by a BEGIN statement, and nothing is prepared on the server at first."""

_is_uuid = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch


@dataclass(frozen=True, slots=True)
class Address:
    """A database and the schema in it."""

    conninfo: str = field(repr=False)  # may hold a password
    schema: str
    several: bool = False
    """Whether it names several hosts, of which the primary is meant."""

    @property
    def quoted(self) -> str:
        """The schema as SQL names it."""
        return f'"{self.schema}"'

    def sql(self, statement: str) -> bytes:
        """The statement with the schema put in for `{s}`, as bytes, which psycopg takes as is."""
        return _with_schema(statement, self.quoted)


@functools.lru_cache(1_000)
def _with_schema(statement: str, schema: str) -> bytes:
    return statement.replace("{s}", schema).encode()


def address_of(url: str) -> Address:
    """Read `postgresql://user@host/database?schema=name`; libpq understands all but the schema.

    Raises InvalidInput, without repeating the URL: it may hold a password.
    """
    schema, rest = split_schema(url)
    try:
        given = conninfo.conninfo_to_dict(rest)
    except psycopg.ProgrammingError:
        raise InvalidInput(
            "not a PostgreSQL URL as libpq reads it: write "
            "postgresql://user:password@host:5432/database, special characters percent-encoded"
        ) from None
    several = "," in str(given.get("host", ""))
    of_several = {"target_session_attrs": "read-write", "connect_timeout": CONNECT_SECONDS_EACH}
    settings: dict[str, Any] = {**SETTINGS, **(of_several if several else {}), **given}
    return Address(conninfo.make_conninfo("", **settings), schema, several)


def connect(address: Address) -> psycopg.Connection[Any]:
    """A new connection, outside any transaction. Raises psycopg's errors."""
    return psycopg.connect(address.conninfo, **CONNECTED)


def name_safely(connection: psycopg.Connection[Any]) -> None:
    """Call no functions of other roles from now on, unless a pooler lends the session."""
    connection.execute(f"SELECT {SEARCH_PATH}", (connection.info.backend_pid,))


def forget_notifications(connection: psycopg.Connection[Any]) -> None:
    """Drop notifications: a pooled session may still listen for the client that had it before."""
    connection.add_notify_handler(lambda _: None)


def one(connection: psycopg.Connection[Any], query: str | bytes, *values: Any) -> Any:
    """The single value that a query answers with, None if there is no row."""
    query = query if isinstance(query, bytes) else query.encode()
    row = connection.execute(query, values or None).fetchone()
    return row[0] if row else None


def route_of(address: Address) -> tuple[list[str], str]:
    """Return the other machines that a connection may go to, and its sslmode.

    Without a connection. What the URL does not say is libpq's default or in the environment.
    """
    defaults = {
        option.keyword.decode(): (option.val or b"").decode()
        for option in psycopg.pq.Conninfo.get_defaults()
    }
    chosen = {**defaults, **conninfo.conninfo_to_dict(address.conninfo)}
    hosts = str(chosen.get("host") or chosen.get("hostaddr") or "").split(",")
    return [host for host in hosts if not _is_here(host)], str(chosen["sslmode"])


def _is_here(host: str) -> bool:
    """Whether a host is a socket's folder, or this machine by a name or address that stays so."""
    return host[:1] in ("", "/", "@") or host in ("localhost", "::1") or host.startswith("127.")


def is_uuid(text: str) -> bool:
    """Whether `text` is a UUID as the store writes it; anything else names nothing stored."""
    return _is_uuid(text) is not None


class BinaryArray(bytes):
    """An array as one parameter in PostgreSQL's binary form, where psycopg would be slow."""


class ArrayDumper(Dumper):
    """Sends such an array unchanged."""

    format = Format.BINARY

    def dump(self, obj: BinaryArray) -> bytes:
        return obj


psycopg.adapters.register_dumper(BinaryArray, ArrayDumper)


def _binary_array(item: str, count: int, cells: bytes, *, nulls: bool) -> BinaryArray:
    """An array of items of the type `item`; `cells` has each of them, with its length before it."""
    # Dimensions, whether there are NULLs, the type of the items; length and first index.
    shape = (1, nulls, _oid(item), count, 1) if count else (0, 0, _oid(item))
    return BinaryArray(struct.pack(f">{len(shape)}i", *shape) + cells)


@functools.cache
def _oid(item: str) -> int:
    return psycopg.adapters.types[item].oid


def uuids(texts: Sequence[str | None]) -> BinaryArray:
    """An array of UUIDs by `is_uuid`, None for NULL.

    A list of UUID objects costs ten times as much to make and to send.
    """
    cells = ["00000010" + text if text else _NULL.hex() for text in texts]
    items = bytes.fromhex("".join(cells).replace("-", ""))
    return _binary_array("uuid", len(texts), items, nulls=None in texts)


_NULL = b"\xff\xff\xff\xff"
BINARY_EPOCH, _MICROSECOND = datetime(2000, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
_integer, _bigint, _float8 = (struct.Struct(f">i{form}").pack for form in "iqd")


def _text_cell(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(4) + data


_CELLS: Mapping[str, Callable[[Any], bytes]] = {
    "text": _text_cell,
    "integer": functools.partial(_integer, 4),
    "bigint": functools.partial(_bigint, 8),
    "float8": functools.partial(_float8, 8),
    "timestamptz": lambda time: _bigint(8, (time - BINARY_EPOCH) // _MICROSECOND),
}


def array_of(item: str, values: Sequence[Any]) -> BinaryArray | None:
    """The parameter for an array of `values` that is a column of an `unnest` with others.

    None if all are NULL: `unnest` fills the column up, in less time than it reads an array. In bulk
    many columns hold one value throughout. A list takes psycopg five times as long.
    """
    first = values[0] if values else None
    if values.count(first) == len(values):
        if first is None and values:
            return None
        if item != "uuid":
            cells = _CELLS[item](first) * len(values) if values else b""
            return _binary_array(item, len(values), cells, nulls=False)
    if item == "uuid":
        return uuids(values)
    cell = _CELLS[item]
    cells = b"".join([_NULL if value is None else cell(value) for value in values])
    return _binary_array(item, len(values), cells, nulls=None in values)


def to_time(stored: datetime) -> datetime:
    """A time selected `AT TIME ZONE 'UTC'`, which keeps it apart from the session's zone."""
    return stored.replace(tzinfo=UTC)


# --- poolers --------------------------------------------------------------------------------------

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
