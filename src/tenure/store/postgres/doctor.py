"""What `tenure doctor` asks a PostgreSQL database."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from typing import Any

from tenure.errors import SchemaMismatch
from tenure.rules.explain import LockHolder, named
from tenure.store import doctor, migrate
from tenure.store.doctor import ok, problem, warning
from tenure.store.postgres import connection as pg
from tenure.store.postgres import schema as postgres_schema
from tenure.store.postgres.reader import FOR_LONG, PostgresReader, lock_holder
from tenure.store.tables import types
from tenure.values.findings import Check
from tenure.values.names import listed
from tenure.values.text import quantity

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
SELECT greatest((SELECT extract(epoch FROM at)::float8 FROM {s}.transition
    ORDER BY xid DESC, seq DESC LIMIT 1), millis / 1000.0) - extract(epoch FROM {s}.clock())::float8
FROM {s}.measured
"""
TRIGGERS = """
SELECT coalesce(array_agg(tgname::text), '{}')
FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
WHERE relnamespace = to_regnamespace(quote_ident(%s)) AND tgenabled = 'A'
"""
"""Those in force, whatever the session's replication role."""
UNLOGGED = """
SELECT coalesce(array_agg(relname::text ORDER BY relname), '{}') FROM pg_class
WHERE relnamespace = to_regnamespace(quote_ident(%s)) AND relkind = 'r' AND relpersistence = 'u'
"""
LEDGER_RIGHTS = """
SELECT has_table_privilege(oid, 'TRUNCATE'), pg_has_role(relowner, 'USAGE') FROM pg_class
WHERE oid = to_regclass(%s)
"""
LACKING = """
SELECT string_agg(verb, ', ' ORDER BY place) || ' on ' || relname FROM pg_class,
    unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) WITH ORDINALITY AS needed (verb, place)
WHERE relnamespace = to_regnamespace(quote_ident(%s)) AND relkind = 'r'
    AND NOT has_table_privilege(oid, verb)
GROUP BY relname ORDER BY relname
"""
# A policy that lets this role do everything hides nothing, unless a restrictive one does.
HIDING = """
SELECT coalesce(array_agg(relname::text ORDER BY relname), '{}') FROM pg_class
WHERE relnamespace = to_regnamespace(quote_ident(%s)) AND relkind = 'r' AND row_security_active(oid)
    AND (SELECT count(*) FILTER (WHERE NOT polpermissive) > 0 OR count(*) FILTER (
            WHERE polcmd = '*' AND pg_get_expr(polqual, polrelid) = 'true'
                AND coalesce(pg_get_expr(polwithcheck, polrelid), 'true') = 'true') = 0
        FROM pg_policy WHERE polrelid = pg_class.oid AND EXISTS (
            SELECT FROM unnest(polroles) AS one (role)
            WHERE role = 0 OR pg_has_role(role, 'USAGE')))
"""
CREATORS = """
SELECT DISTINCT format('REVOKE CREATE ON SCHEMA %%I FROM %%s', nspname,
    coalesce(quote_ident(rolname), 'PUBLIC'))
FROM pg_namespace CROSS JOIN aclexplode(coalesce(nspacl, acldefault('n', nspowner))) AS granted
    LEFT JOIN pg_roles ON pg_roles.oid = grantee
WHERE nspname IN ('public', %s) AND privilege_type = 'CREATE'
    AND grantee <> nspowner
    AND grantee IS DISTINCT FROM (SELECT relowner FROM pg_class WHERE oid = to_regclass(%s))
    AND rolname IS DISTINCT FROM current_user AND rolsuper IS NOT TRUE
ORDER BY 1
"""
FROM_ELSEWHERE = """
SELECT EXISTS (SELECT FROM {s}.transition WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()))
"""
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
# Locks with which no job can be added or changed. Claims, reports and autovacuum take none of them.
# Those of a prepared transaction belong to no session, but to whom its number is locked for.
LOCKED = """
WITH locked AS (
    SELECT pid, relname, virtualtransaction
    FROM pg_locks JOIN pg_class ON pg_class.oid = relation
    WHERE granted AND relkind = 'r' AND relnamespace = to_regnamespace(quote_ident(%s))
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))
SELECT format('session %%s of %%s (%%s) has the table %%I locked%%s; end it with'
        ' SELECT pg_terminate_backend(%%s)', pid, usename,
        coalesce(nullif(application_name, ''), backend_type, 'unknown'), relname,
        ' since ' || date_trunc('second', xact_start), pid)
    FROM locked JOIN pg_stat_activity USING (pid)
    WHERE pid <> pg_backend_pid()
UNION ALL
SELECT format('the prepared transaction %%L of %%s has the table %%I locked since %%s; end it with'
        ' ROLLBACK PREPARED %%L', gid, owner, relname, date_trunc('second', prepared), gid)
    FROM locked JOIN pg_locks AS own USING (virtualtransaction)
        JOIN pg_prepared_xacts ON transaction = own.transactionid
    WHERE locked.pid IS NULL AND own.pid IS NULL AND own.granted
"""

USE_SECONDS = 10.0
"""How long a transaction may use the tables of jobs: Tenure's end long before that."""
LOCK_SECONDS = 2.0
"""A lock that ends sooner is no problem: setting limits and migrations take some."""
LONG_SECONDS = 300.0
MAX_TRANSACTIONS = 1_000_000
"""How old, in transactions, a snapshot may be whose session this role may not look into."""


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
        return ok("ledger", "all its transactions are of this cluster")
    advice = (
        "this database was restored from another cluster. The event stream holds back the entries "
        "from there and mixes up the order of new ones: see `Restore a dump` in "
        "docs/how-to/back-up-and-upgrade.md"
    )
    return problem("ledger", "it has transactions that this cluster has not reached", advice)


def pooler(lends_by_transaction: bool) -> Check:
    """Whether there is a pooler in transaction mode before the server."""
    if not lends_by_transaction:
        return ok("pooler", "none, or one that gives each client a whole session")
    advice = (
        "Tenure works through it, but notices jobs of other processes only by polling: give "
        "workers a direct address if that is too slow"
    )
    return warning("pooler", "gives a client a session for one transaction at a time", advice)


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
        return ok("vacuum", "nothing keeps dead rows")
    advice = f"claims become slower and the disk fills until this ends: {holder}"
    return warning("vacuum", "dead rows are kept", advice)


def locks(holder: str | None) -> Check:
    """Whether a transaction keeps others from the tables."""
    if holder is None:
        return ok("locks", "no table is locked")
    advice = f"what needs the table waits until this ends, and so do the other checks: {holder}"
    return problem("locks", "a table is locked", advice)


def transactions(holders: Sequence[LockHolder]) -> Check:
    """Whether transactions that may have jobs locked are open for longer than Tenure's are."""
    found = quantity(len(holders), "transaction")
    if not holders:
        return ok("transactions", "none uses the tables of jobs for long")
    advice = (
        "no worker takes the jobs that such a transaction has locked, and commands and reports "
        f"on them wait until it ends: {named(holders)}"
    )
    return warning("transactions", f"{found} may have had jobs locked for long", advice)


def logged(unlogged: Collection[str]) -> Check:
    """Whether every table survives a crash of the server."""
    if not unlogged:
        return ok("tables", "all are logged")
    advice = f"a crash of the server empties {', '.join(unlogged)}: ALTER TABLE … SET LOGGED"
    return problem("tables", "unlogged", advice)


def rights(truncates: bool, owns: bool, *, lacking: Sequence[str]) -> Check:
    """Whether this role can do what Tenure does, and no more.

    More would be to write a ledger entry for a transition that never happened.
    """
    if owns:
        return ok("rights", "this role owns the tables, so it could drop their triggers")
    if truncates:
        advice = (
            "this role could write entries into the ledger by its own trigger: REVOKE TRUNCATE on "
            "the table transition, and grant what docs/how-to/deploy.md says"
        )
        return problem("rights", "may truncate the ledger", advice)
    if lacking:
        others = f", and others on {len(lacking) - 3} more tables" * (len(lacking) > 3)
        advice = (
            f"what needs {'; '.join(lacking[:3])}{others} will fail: grant what "
            "docs/how-to/deploy.md says, unless this role is meant to do less"
        )
        return warning("rights", "this role lacks some", advice)
    return ok("rights", "this role cannot switch off the triggers")


def hiding(tables: Collection[str]) -> Check:
    """Whether policies may keep rows from this role: it would read that there are fewer jobs."""
    if not tables:
        return ok("rows", "this role sees all rows")
    advice = (
        f"this role may not see, add or change some rows of {', '.join(tables)}, so that jobs do "
        "not run or seem to be missing, and `tenure verify` finds violations that are none: ALTER "
        "TABLE … DISABLE ROW LEVEL SECURITY, or CREATE POLICY … USING (true) for this role"
    )
    return warning("rows", "row-level security may hide some", advice)


def creators(revokes: Sequence[str]) -> Check:
    """Whether other roles may make functions where they could be called with this role's rights."""
    if not revokes:
        return ok("schemas", "other roles cannot add functions")
    advice = (
        "a function could be called in place of one of PostgreSQL, with the rights of your "
        f"application: {'; '.join(listed(revokes))}"
    )
    return warning("schemas", "other roles may add functions", advice)


def check_postgres(url: str) -> Iterator[Check]:
    """The checks of a PostgreSQL database, in order."""
    address = pg.address_of(url)
    yield transport(*pg.route_of(address))
    try:
        with pg.connect(address) as connection:
            pg.name_safely(connection)
            version = connection.info.server_version
            yield server(version, pg.OLDEST_SERVER)
            yield role(pg.one(connection, "SELECT pg_is_in_recovery()"))
            yield pooler(pg.pools_transactions(connection))
            yield dead_rows(holds_back(connection))
            for name in SETTINGS:
                value = pg.one(connection, "SELECT current_setting(%s)", name)
                yield doctor.setting(name, value, SETTINGS)
            yield locks(holder := locked(connection, address.schema))
            if holder is not None:
                return
            found = postgres_schema.version_of(connection, address)
            yield doctor.schema(found, migrate.newest("postgres"))
            if found:
                yield transactions(long_users(connection, address))
                yield doctor.guards(pg.one(connection, TRIGGERS, address.schema), "postgres")
                table = f"{address.quoted}.transition"
                of_ledger = connection.execute(LEDGER_RIGHTS, (table,)).fetchone() or (1, 0)
                lacking = [text for (text,) in connection.execute(LACKING, (address.schema,))]
                yield rights(*of_ledger, lacking=lacking)
                yield hiding(pg.one(connection, HIDING, address.schema))
                rows = connection.execute(CREATORS, (address.schema, table))
                yield creators([text for (text,) in rows])
                yield ledger(pg.one(connection, address.sql(FROM_ELSEWHERE)))
                yield logged(pg.one(connection, UNLOGGED, address.schema))
                yield doctor.latest_entry(pg.one(connection, address.sql(AHEAD)))
            before = time.time()  # noqa: TID251 - the machine's clock is what is checked
            now = pg.one(connection, "SELECT extract(epoch FROM clock_timestamp())::float8")
            after = time.time()  # noqa: TID251
            yield doctor.clock(now, before, after)
        if found == migrate.newest("postgres"):
            with closing(PostgresReader(url)) as reader:
                yield doctor.types(reader, types.every(reader).values())
                yield doctor.schedules(reader, reader.clock())
                yield doctor.limits(reader)
    except SchemaMismatch as error:
        yield problem("schema", "renamed", str(error))
    except psycopg.errors.InsufficientPrivilege as error:
        advice = f"{error}: grant this role what docs/how-to/deploy.md says"
        yield problem("database", "this role may not read it", advice)
    except psycopg.Error as error:
        advice = f"{error}: is the server running, and may this user connect?"
        yield problem("database", "does not answer", advice)


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


def locked(connection: psycopg.Connection[Any], schema: str) -> str | None:
    """Which transactions keep a table locked for `LOCK_SECONDS`, and how to end them; None if none.

    Raises psycopg's errors.
    """

    def look() -> set[str]:
        return {text for (text,) in connection.execute(LOCKED, (schema,))}

    return ". ".join(sorted(_lasting(look))) or None


def long_users(connection: psycopg.Connection[Any], address: pg.Address) -> list[LockHolder]:
    """Which transactions may have had jobs locked for more than `USE_SECONDS`, oldest first.

    Those of which this role may not read since when they are open are looked at for `LOCK_SECONDS`.
    Raises psycopg's errors.
    """

    def look() -> dict[str, LockHolder]:
        rows = connection.execute(address.sql(FOR_LONG), (USE_SECONDS,))
        return {row[0]: lock_holder(row) for row in rows}

    found = look()
    unknown = {key for key, each in found.items() if each.since is None}
    lasting = _lasting(lambda: unknown & look().keys()) if unknown else set()
    return [each for key, each in found.items() if each.since is not None or key in lasting]


def _lasting(look: Callable[[], set[str]]) -> set[str]:
    """What each look finds that is taken within `LOCK_SECONDS`."""
    until = time.monotonic() + LOCK_SECONDS
    lasting = look()
    while lasting and time.monotonic() < until:
        time.sleep(0.1)
        lasting &= look()
    return lasting
