"""What `tenure doctor` asks a PostgreSQL database."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from typing import Any

from tenure.jobs.findings import Check
from tenure.store import doctor, migrate
from tenure.store.doctor import ok, problem, warning
from tenure.store.postgres import connection as postgres_connection
from tenure.store.postgres import probes
from tenure.store.postgres import schema as postgres_schema

# The imports above say what to do where psycopg is missing.
# isort: split
import psycopg

SETTINGS: doctor.Settings = {
    "fsync": ({"on"}, "a crash of the machine can lose or damage data: set fsync = on"),
    "full_page_writes": (
        {"on"},
        "a crash of the machine can damage data: set full_page_writes = on, unless the file "
        "system writes pages whole",
    ),
    "synchronous_commit": (
        {"on", "local", "remote_write", "remote_apply"},
        "a crash of the server can lose jobs that were accepted: set synchronous_commit = on, "
        "for the server or for Tenure's role",
    ),
    "default_transaction_read_only": (
        {"off"},
        "nothing can be written by this role or database: set default_transaction_read_only = off",
    ),
}
AHEAD = """
SELECT (SELECT extract(epoch FROM at - {s}.clock())::float8
    FROM {s}.transition ORDER BY xid DESC, seq DESC LIMIT 1)
"""
UNLOGGED = """
SELECT coalesce(array_agg(relname::text ORDER BY relname), '{}') FROM pg_class
WHERE relnamespace = to_regnamespace(quote_ident(%s)) AND relkind = 'r' AND relpersistence = 'u'
"""
FROM_ELSEWHERE = """
SELECT EXISTS (SELECT FROM {s}.transition WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()))
"""


def server(version: int, oldest: int) -> Check:
    """Whether the PostgreSQL server is new enough; `version` as in server_version_num."""
    found = f"PostgreSQL {version // 10_000}.{version % 10_000}"
    advice = f"PostgreSQL {oldest} or newer is needed"
    return problem("server", found, advice if version // 10_000 < oldest else "")


def role(in_recovery: bool) -> Check:
    """Whether the server is one that can be written to."""
    if not in_recovery:
        return ok("role", "primary")
    advice = "a standby cannot be written to: give the URL of the primary"
    return problem("role", "standby", advice)


def ledger(from_elsewhere: bool) -> Check:
    """Whether the ledger's transactions are this cluster's: a restore brings those of another."""
    if not from_elsewhere:
        return ok("ledger", "its transactions are this cluster's")
    advice = (
        "this database was restored from another cluster, and the event stream holds back what it "
        "brought and mixes up what follows: see `Restore a dump` in "
        "docs/how-to/back-up-and-upgrade.md"
    )
    return problem("ledger", "it names transactions of the future", advice)


def pooler(lends_by_transaction: bool) -> Check:
    """Whether there is a pooler in transaction mode before the server."""
    if not lends_by_transaction:
        return ok("pooler", "none, or one that lends whole sessions")
    advice = (
        "Tenure works through it, but hears of other processes' jobs by polling only: give workers "
        "a direct address if the wait matters"
    )
    return warning("pooler", "lends sessions by transaction", advice)


def transport(hosts: Collection[str], sslmode: str) -> Check:
    """Whether a machine in between can read or answer what is sent to other machines."""
    if not hosts:
        return ok("transport", "stays on this machine")
    advice = (
        "a machine in between can read every payload or pose as the server: add "
        "sslmode=verify-full to the URL, and sslrootcert if you made the certificate yourself"
    )
    found = f"sslmode={sslmode} to {', '.join(hosts)}"
    return warning("transport", found, advice if sslmode != "verify-full" else "")


def dead_rows(holder: str | None) -> Check:
    """Whether something keeps dead rows from being cleared away."""
    if holder is None:
        return ok("vacuum", "nothing holds it back")
    advice = f"claims slow down, and the disk fills, as long as this lasts: {holder}"
    return warning("vacuum", "held back", advice)


def logged(unlogged: Collection[str]) -> Check:
    """Whether every table survives a crash of the server."""
    if not unlogged:
        return ok("tables", "all are logged")
    advice = f"a crash of the server empties {', '.join(unlogged)}: ALTER TABLE … SET LOGGED"
    return problem("tables", "unlogged", advice)


def check_postgres(url: str) -> Iterator[Check]:
    """The checks of a PostgreSQL database, in order."""
    address = postgres_connection.address_of(url)
    yield transport(*postgres_connection.route_of(address))
    try:
        with postgres_connection.connect(address) as connection:
            version = connection.info.server_version
            yield server(version, postgres_connection.OLDEST_SERVER)
            yield role(_one(connection, "SELECT pg_is_in_recovery()"))
            yield pooler(probes.pools_transactions(connection))
            yield dead_rows(probes.holds_back(connection))
            for name in SETTINGS:
                value = _one(connection, "SELECT current_setting(%s)", name)
                yield doctor.setting(name, value, SETTINGS)
            found = postgres_schema.version_of(connection, address)
            yield doctor.schema(found, migrate.newest("postgres"))
            if found:
                yield doctor.guards(_triggers(connection, address.schema), "postgres")
                yield ledger(_one(connection, address.sql(FROM_ELSEWHERE)))
                yield logged(_one(connection, UNLOGGED, address.schema))
                yield doctor.newest_entry(_one(connection, address.sql(AHEAD)))
            before = time.time()  # noqa: TID251 - the machine's clock is what is checked
            now = _one(connection, "SELECT clock_timestamp()")
            after = time.time()  # noqa: TID251
            yield doctor.clock(now, before, after)
    except psycopg.Error as error:
        advice = f"{error}: is the server running, and may this user connect?"
        yield problem("database", "does not answer", advice)


def _triggers(connection: Any, schema: str) -> list[str]:
    """The triggers in force in a schema, whatever the session's replication role."""
    return [
        name
        for (name,) in connection.execute(
            "SELECT tgname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid"
            " WHERE relnamespace = to_regnamespace(quote_ident(%s)) AND tgenabled = 'A'",
            (schema,),
        )
    ]


def _one(connection: Any, statement: str | bytes, *values: Any) -> Any:
    (value,) = connection.execute(statement, values or None).fetchone()
    return value
