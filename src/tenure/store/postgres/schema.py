"""The schema of the PostgreSQL store: its version, and how it gets there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from tenure import failpoints
from tenure.errors import SchemaMismatch, StoreUnavailable
from tenure.lifecycle import RULE_OF, Rule, Status
from tenure.store import constraints, duties, migrate
from tenure.store.postgres import connection as pg
from tenure.store.postgres.statements import DIALECT, ENTERING, ENTERING_VALUES, NEW, type_of
from tenure.values.findings import Progress, no_progress

# The import above says what to do where psycopg is missing, so it comes first.
# isort: split
import psycopg
from psycopg import errors

# Held until the migration commits: of several starters one migrates, the others wait and find it
# done. The transaction owns it, not the session, so that poolers do not matter.
LOCK = "SELECT pg_advisory_xact_lock(pg_catalog.hashtextextended('tenure ' || %s, 0))"
# A starter that is frozen in the middle must not keep the others waiting for ever; and a step that
# waits for a table must not for long, since other statements queue behind it: it is tried again.
FROZEN = "SET LOCAL idle_in_transaction_session_timeout = '10s'"
WAITING = "SET LOCAL lock_timeout = '10s'"
SAFELY = f"SET LOCAL search_path = {pg.SAFE_PATH}"
# A transaction of a caller continues with the path that it had.
REMEMBER = "SELECT pg_catalog.set_config('tenure.path', current_setting('search_path'), true)"
RETURN = "SELECT set_config('search_path', current_setting('tenure.path'), true)"
# The functions have the name that the schema was made with.
VERSION = """
SELECT max(version), (
    SELECT substring(prosrc FROM '"(\\w+)"[.]job') FROM pg_catalog.pg_proc
    WHERE proname = 'locked' AND pronamespace = to_regnamespace(%s))
FROM {s}.schema_version
"""
SHORT = (("claimed", Status.PENDING), ("completed", Status.PROCESSING))
"""The transitions for which a trigger has a shorter way."""
PLANS = {
    "by_index": "SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off",
    "by_loops": "SET enable_hashjoin = off SET enable_mergejoin = off",
}
"""Settings of functions that look up a few rows, whatever the planner thinks of the tables."""
RARE = ("timeout", "idempotency_key", "partition", "tags", "unique_key", "workflow", "need")
"""Columns that most new jobs leave out."""
UNTRIED = (
    *("started_at", "finished_at", "worker", "lease_id", "lease_expires_at"),
    *("result", "last_error", "snoozes"),
)
"""Columns that new jobs leave out."""
TRIES = 4
"""Transactions of one upgrade that PostgreSQL may end as deadlocks."""


@cache
def functions() -> frozenset[str]:
    """Return the names of the functions of the schema."""
    texts = [text for _, text in migrate.steps("postgres")]
    return frozenset(re.findall(r"FUNCTION {schema}\.(\w+)", "\n".join(texts)))


def upgrade(url: str, progress: Progress = no_progress) -> int:
    """Create or upgrade the schema, all of it in one transaction; the version it now has.

    Nothing is locked and no right to create is needed where the schema is current. Raises
    SchemaMismatch for what is newer, foreign, too old a server or forbidden, and StoreUnavailable.
    """
    address = pg.address_of(url)
    with _connected(address) as connection:
        for left in reversed(range(TRIES)):
            try:
                _upgrade(connection, address, progress)
                break
            except errors.DeadlockDetected:  # with a transaction that uses the tables
                if not left:
                    raise
        version = version_of(connection, address)
    migrate.check(version, migrate.newest("postgres"), f"schema {address.schema}")
    return version


def _upgrade(connection: psycopg.Connection[Any], address: pg.Address, progress: Progress) -> None:
    if version_of(connection, address) < migrate.newest("postgres"):
        with connection.transaction():
            connection.execute(f"{FROZEN}; {SAFELY}")
            connection.execute(LOCK, (address.schema,))
            connection.execute(WAITING)
            if pg.one(connection, "SELECT to_regnamespace(%s)", address.quoted) is None:
                connection.execute(address.sql("CREATE SCHEMA {s}"))
            for step in _steps(address, version_of(connection, address), progress):
                connection.execute(step.encode())
        failpoints.hit("migrate.after_commit")


def script(url: str, version: int, *, begin: bool = True) -> str:
    """Return the SQL that `upgrade` would run on a schema of this version: for psql, or without
    `begin` for a transaction that is open."""
    address = pg.address_of(url)
    make = "" if version else f"CREATE SCHEMA IF NOT EXISTS {address.quoted};\n"
    lock = LOCK.replace("%s", f"'{address.schema}'")
    steps = "\n".join(_steps(address, version))
    sql = f"{SAFELY};\n{lock};\n{WAITING};\n{make}{steps}"
    return f"BEGIN;\n{sql}COMMIT;\n" if begin else f"{REMEMBER};\n{sql}{RETURN};\n"


def found(url: str) -> int:
    """The schema's version at `url`; 0 where there is none."""
    address = pg.address_of(url)
    with _connected(address) as connection:
        return version_of(connection, address)


@contextmanager
def _connected(address: pg.Address) -> Iterator[psycopg.Connection[Any]]:
    try:
        with pg.connect(address) as connection:
            # Who waited for another starter has to see what that one made, whatever the default.
            connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
            _check_server(connection)
            yield connection
    except psycopg.OperationalError as error:
        raise StoreUnavailable(f"the database did not answer: {error}") from error
    except errors.ReadOnlySqlTransaction as error:  # a standby, or a setting of this role
        raise StoreUnavailable(f"the database failed: {error}") from error
    except errors.InsufficientPrivilege as error:
        raise SchemaMismatch(
            f"this role may not set up or use schema {address.schema}: "
            f"{error.diag.message_primary}; run `tenure migrate` once as a role that may, and "
            "grant this one the use of its tables"
        ) from error
    except (errors.DuplicateTable, errors.DuplicateFunction, errors.UndefinedColumn) as error:
        raise SchemaMismatch(
            f"schema {address.schema} holds something else than Tenure's tables: "
            f"{error.diag.message_primary}; choose another with ?schema=name"
        ) from error
    except psycopg.DatabaseError as error:  # such as from an event trigger of the database
        raise SchemaMismatch(
            f"schema {address.schema} cannot be set up or read: {error.diag.message_primary}"
        ) from error


def version_of(connection: psycopg.Connection[Any], address: pg.Address) -> int:
    """The schema's version; 0 for a database without Tenure's tables.

    Raises SchemaMismatch if it was renamed, and StoreUnavailable if it has no version.
    """
    if not pg.one(connection, "SELECT to_regclass(%s)", f"{address.quoted}.schema_version"):
        return 0
    found = connection.execute(address.sql(VERSION), (address.quoted,)).fetchone()
    version, name = found or (None, None)
    if name is not None and name != address.schema:
        raise SchemaMismatch(
            f"schema {address.schema} was renamed, and its functions look for {name}: ALTER SCHEMA "
            f"{address.schema} RENAME TO {name}. `tenure move` moves jobs to another schema"
        )
    if version is None:
        raise StoreUnavailable(
            f"schema {address.schema} shows no version: it is being restored, or row-level "
            "security hides it from this role, or it was copied without its rows: drop such a "
            "copy, and run `tenure migrate`"
        )
    return int(version)


def _check_server(connection: psycopg.Connection[Any]) -> None:
    major = connection.info.server_version // 10_000
    if major < pg.OLDEST_SERVER:
        raise SchemaMismatch(
            f"PostgreSQL {major} is too old; {pg.OLDEST_SERVER} or newer is needed"
        )
    encoding = pg.one(connection, "SHOW server_encoding")
    if encoding != "UTF8":
        raise SchemaMismatch(
            f"the database's encoding is {encoding}, which cannot hold every payload; "
            "create one with ENCODING 'UTF8'"
        )


def _steps(address: pg.Address, version: int, progress: Progress = no_progress) -> Iterator[str]:
    """Yield the SQL of each step after `version`, which also notes its number."""
    clock = pg.NOW.replace("{s}", address.quoted)
    names = {
        **migrate.generated("IS DISTINCT FROM", clock, "greatest", "o", "n", {}),
        **_conditions(address.quoted),
        **_columns(),
        **migrate.SPELLED["postgres"],
        "of": f"{address.quoted}.",
        "buckets": migrate.buckets("bigint"),
        **PLANS,
        "channel": address.schema,
        "duties": ", ".join(f"{duty} boolean" for duty in duties.searches(DIALECT)),
        "look": ",\n        ".join(duties.answers(DIALECT)).replace("{s}", address.quoted),
    }
    for number, step in migrate.pending("postgres", version, progress):
        yield step.format_map({**names, "schema": address.quoted})
        table = f"{address.quoted}.schema_version (version, applied_at)"
        yield f"INSERT INTO {table} VALUES ({number}, {clock});\n"


def _conditions(schema: str) -> dict[str, str]:
    """What triggers ask of rows, by placeholder."""
    json_type = "json_typeof({}::json)"
    set_later = constraints.enforced(constraints.postgres_values(json_type, schema, "NEW."))
    new = constraints.enforced(constraints.postgres_values(json_type, schema, "n."))
    result = {"result_is_json": new.pop("result_is_json")}  # a new job has none
    del set_later["result_is_json"]
    every = {**constraints.in_reach("n."), "times_in_reach": constraints.postgres_times("n.")}
    every |= constraints.row_rules("n.")
    illegal_change = constraints.illegal_change("IS DISTINCT FROM")
    counts = _renamed(constraints.is_no_transition("IS DISTINCT FROM"), OLD="o", NEW="n")
    illegal_entry = _renamed(constraints.ILLEGAL_INSERT, NEW="n")
    unfit_new, unfit = constraints.unfit(new | every), constraints.unfit(every | result)
    fit_entry = f"NOT ({illegal_entry}) AND NOT ({unfit_new})"
    pending = {"status": f"'{Status.PENDING}'::text"}
    waiting = {"status": f"'{Status.WAITING}'::text"}
    fresh = pending | {"attempts": "0", "token": "0"}
    missing = {column: f"NULL::{type_of(column)}" for column in (*RARE, *UNTRIED)}
    return {
        "values_of_a_job": ", ".join(constraints.VALUES_OF_A_JOB),
        "broken_value": constraints.broken(set_later),
        "unfit_job": constraints.unfit(set_later),
        "broken_new_value": constraints.broken(new | every),
        "unfit_new_job": unfit_new,
        "unfit_change": unfit,
        "broken_change": constraints.broken(every | result),
        "illegal_entry": illegal_entry,
        "illegal_move": _renamed(illegal_change, OLD="o", NEW="n"),
        "is_entry": _known(fit_entry, n=pending),
        "is_plain": " AND ".join(f"n.{column} = {value}" for column, value in fresh.items())
        + f" AND num_nonnulls({', '.join(f'n.{column}' for column in missing)}) = 0",
        "is_plain_entry": _known(fit_entry, n=fresh | missing),
        "is_counted": _known(f"{counts} AND NOT ({unfit}) AND n.spare >= 0", o=waiting, n=waiting),
        **{f"is_{event}": _legal(RULE_OF[event, status], unfit) for event, status in SHORT},
        "partition_is_short_text": constraints.postgres_values("", "")["partition_is_short_text"],
        "is_policy": constraints.postgres_policy("value"),
    }


def _legal(rule: Rule, unfit: str) -> str:
    """The condition that a change of a row is this transition, of a job without a unique key."""
    between = f"o.status = '{rule.source}' AND n.status = '{rule.target}'"
    condition = f"{_renamed(constraints.is_legal(rule), OLD='o', NEW='n')} AND NOT ({unfit})"
    before, after = {"status": f"'{rule.source}'::text"}, {"status": f"'{rule.target}'::text"}
    condition = _known(condition, o=before, n=after)
    # IS TRUE: bool_and passes over a row whose condition is NULL.
    return f"({between} AND n.unique_key IS NULL AND {condition}) IS TRUE"


def _known(condition: str, **rows: Mapping[str, str]) -> str:
    """Put in known values of each row: the planner, once a session, takes away what is decided."""
    for row, values in rows.items():
        for column, value in values.items():
            condition = re.sub(rf"\b{row}\.{column}\b", value, condition)
    return condition


def _columns() -> dict[str, str]:
    """The columns of jobs that are added, by placeholder."""
    return {
        "entering": ", ".join(ENTERING),
        "entering_types": ", ".join(f"{column} {type_of(column)}" for column in ENTERING),
        "entering_values": ", ".join(ENTERING_VALUES),
        "new_columns": ", ".join(NEW),
        "new_values": ", ".join(f"{column} {type_of(column)}" for column in NEW),
        "doc_values": ", ".join(f"doc.{column}" for column in NEW),
        "new_names": ", ".join(f"new_{column}" for column in NEW),
        "new_arrays": ", ".join(f"new_{column} {type_of(column)}[]" for column in NEW),
    }


def _renamed(condition: str, **names: str) -> str:
    for old, new in names.items():
        condition = condition.replace(f"{old}.", f"{new}.")
    return condition
