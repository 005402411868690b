"""What `tenure doctor` asks a database: do the settings hold on which Tenure's promises rest?

Nothing is created or changed: a database that is not there yet, or has an older schema, is reported
as such. The verdicts are pure functions of what was read; reading stands below them.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from tenure.errors import TenureError
from tenure.jobs.findings import Check, CheckResult
from tenure.store import migrate
from tenure.store.sqlite import filesystems

MAX_CLOCK_DIFFERENCE = 1.0
"""Seconds; below it nobody notices that `run_at` of callers and the store's clock differ."""
LITTLE_SPACE = 1024**3
"""Bytes; the log of a SQLite file alone may take some hundred MB while there is a long reader."""


def check_store(url: str) -> list[Check]:
    """Every check of the database at `url`; a database that does not answer is a problem, too."""
    read = check_postgres if url.startswith(("postgresql:", "postgres:")) else check_sqlite
    checks: list[Check] = []
    try:
        checks.extend(read(url))
    except TenureError as error:
        checks.append(Check("database", CheckResult.PROBLEM, "cannot be used", str(error)))
    return checks


def schema_version(url: str) -> int:
    """The version of the schema at `url`; 0 where there is none, or where nothing answers."""
    found = [check.found for check in check_store(url) if check.name == "schema"]
    return int(found[0]) if found and found[0].isdigit() else 0


# --- verdicts ---------------------------------------------------------------------------------


def schema(found: int, needed: int) -> Check:
    """Whether the schema is the one that this version of Tenure works with."""
    if found > needed:
        advice = f"this Tenure knows schemas up to {needed}: upgrade Tenure on this machine"
        return Check("schema", CheckResult.PROBLEM, str(found), advice)
    if found < needed:
        advice = f"version {needed} is made by `tenure migrate`, or by the next program that starts"
        return Check("schema", CheckResult.WARNING, str(found or "none yet"), advice)
    return Check("schema", CheckResult.OK, str(found))


def guards(present: Collection[str], engine: str) -> Check:
    """Whether every trigger that guards the jobs and the ledger is there and switched on."""
    expected = trigger_names(sql for _, sql in migrate.steps(engine))
    missing = sorted(expected - set(present))
    if missing:
        advice = (
            f"missing or switched off: {', '.join(missing)}. Illegal moves are not refused. "
            "Find out who removed them, run `tenure verify`, restore the database from a backup "
            "or a dump of the schema"
        )
        return Check(
            "guards", CheckResult.PROBLEM, f"{len(expected) - len(missing)} triggers", advice
        )
    return Check("guards", CheckResult.OK, f"{len(expected)} triggers")


def trigger_names(scripts: Iterator[str]) -> set[str]:
    """The triggers that stand after the scripts have run."""
    names: set[str] = set()
    for script in scripts:
        for verb, name in re.findall(r"\b(CREATE|DROP) TRIGGER (?:IF EXISTS )?(\w+)", script):
            (names.add if verb == "CREATE" else names.discard)(name)
    return names


def clock(store: datetime, before: float, after: float) -> Check:
    """How far the store's clock is from this machine's, read (Unix seconds) around the answer."""
    told = store.timestamp()
    difference = told - min(max(told, before), after)
    found = f"{difference:+.1f} s from this machine"
    if abs(difference) <= MAX_CLOCK_DIFFERENCE:
        return Check("clock", CheckResult.OK, found)
    advice = (
        "jobs run by the store's clock: a run_at computed on this machine comes that much off; "
        "synchronise both by NTP"
    )
    return Check("clock", CheckResult.WARNING, found, advice)


def sqlite_library(version: tuple[int, int, int]) -> Check:
    """Whether this SQLite can be used, and with what care."""
    from tenure.store.sqlite.connection import OLDEST_SQLITE, resets_wal_unsafely

    found = "SQLite " + ".".join(map(str, version))
    if version < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        advice = f"{oldest} or newer is needed: use a Python built with one"
        return Check("library", CheckResult.PROBLEM, found, advice)
    if resets_wal_unsafely(version):
        advice = (
            "before 3.51.3 SQLite can lose a commit made during a checkpoint by another process. "
            "Tenure guards its own checkpoints; do not write to the file with other programs"
        )
        return Check("library", CheckResult.WARNING, found, advice)
    return Check("library", CheckResult.OK, found)


SQLITE_SETTINGS: Mapping[str, tuple[Collection[str], str]] = {
    "journal_mode": (
        {"wal"},
        "the write-ahead log cannot be used here; network file systems do not carry it: "
        "move the file to a local disk",
    ),
    "synchronous": (
        {"full", "extra"},
        "a power cut could lose accepted jobs: report this, it is a fault of Tenure",
    ),
}
SYNCHRONOUS = {0: "off", 1: "normal", 2: "full", 3: "extra"}
POSTGRES_SETTINGS: Mapping[str, tuple[Collection[str], str]] = {
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


def setting(name: str, value: str, wanted: Mapping[str, tuple[Collection[str], str]]) -> Check:
    """Whether a setting has a value with which the promises hold."""
    good, advice = wanted[name]
    if value in good:
        return Check(name, CheckResult.OK, value)
    return Check(name, CheckResult.PROBLEM, value, advice)


def server(version: int, oldest: int) -> Check:
    """Whether the PostgreSQL server is new enough; `version` as in server_version_num."""
    found = f"PostgreSQL {version // 10_000}.{version % 10_000}"
    if version // 10_000 < oldest:
        return Check(
            "server", CheckResult.PROBLEM, found, f"PostgreSQL {oldest} or newer is needed"
        )
    return Check("server", CheckResult.OK, found)


def role(in_recovery: bool) -> Check:
    """Whether the server is one that can be written to."""
    if in_recovery:
        advice = "a standby cannot be written to: give the URL of the primary"
        return Check("role", CheckResult.PROBLEM, "standby", advice)
    return Check("role", CheckResult.OK, "primary")


def ledger(from_elsewhere: bool) -> Check:
    """Whether the ledger's transactions are this cluster's: a restore brings those of another."""
    if not from_elsewhere:
        return Check("ledger", CheckResult.OK, "its transactions are this cluster's")
    advice = (
        "this database was restored from another cluster, and the event stream holds back what it "
        "brought and mixes up what follows: see `Restore a dump` in "
        "docs/how-to/back-up-and-upgrade.md"
    )
    return Check("ledger", CheckResult.PROBLEM, "it names transactions of the future", advice)


def file_system(kind: str) -> Check:
    """Whether SQLite's log works on this kind of file system."""
    if kind in filesystems.REMOTE:
        advice = (
            "locks and log do not work there unless one kernel alone opens the file, which the URL "
            "vouches for: else move it to a local disk, or use PostgreSQL"
        )
        return Check("file_system", CheckResult.WARNING, kind, advice)
    return Check("file_system", CheckResult.OK, kind or "not known on this system")


def space(free: int) -> Check:
    """Whether the disk has room; `free` in bytes."""
    found = f"{free / 1024**2:,.0f} MiB free"
    if free >= LITTLE_SPACE:
        return Check("disk", CheckResult.OK, found)
    advice = (
        "on a full disk no job is accepted and no result recorded until there is room: free some, "
        "or have settled jobs deleted sooner (`keep` in the settings)"
    )
    return Check("disk", CheckResult.WARNING, found, advice)


def files(mode: int, links: int, closed: Collection[str]) -> Check:
    """Whether this user, and nobody else, may use the file.

    `mode` and `links` are those of the database file; `closed` names what this user may not read
    and write.
    """
    found = f"mode {mode & 0o777:o}"
    if closed:
        advice = (
            f"this user may not read and write {', '.join(closed)}: another made it. Run every "
            "program as the same user, and give the files to that one"
        )
        return Check("files", CheckResult.PROBLEM, found, advice)
    if links > 1:
        advice = (
            "the file has another name as a hard link; a program that opens it by that name uses "
            "another log, which damages the file: remove the other name"
        )
        return Check("files", CheckResult.PROBLEM, f"{links} names", advice)
    if mode & 0o007:
        advice = "every user of this machine can open it, payloads and all: chmod o-rwx"
        return Check("files", CheckResult.WARNING, found, advice)
    return Check("files", CheckResult.OK, found)


def newest_entry(seconds_ahead: float | None) -> Check:
    """Whether the ledger's last entry is of the past; None for an empty ledger."""
    if seconds_ahead is None or seconds_ahead <= MAX_CLOCK_DIFFERENCE:
        return Check("time", CheckResult.OK, "the newest move is not of the future")
    advice = (
        "the store's clock was set back after that move: leases of then run on, and retries wait, "
        "until it gets there. Find out which time is the right one"
    )
    return Check(
        "time",
        CheckResult.WARNING,
        f"the newest move is {seconds_ahead:.0f} s in the future",
        advice,
    )


def pooler(lends_by_transaction: bool) -> Check:
    """Whether a pooler in transaction mode stands before the server."""
    if not lends_by_transaction:
        return Check("pooler", CheckResult.OK, "none, or one that lends whole sessions")
    advice = (
        "Tenure works through it, but hears of other processes' jobs by polling only: give workers "
        "a direct address if the wait matters"
    )
    return Check("pooler", CheckResult.WARNING, "lends sessions by transaction", advice)


def transport(hosts: Collection[str], sslmode: str) -> Check:
    """Whether what goes to other machines can be read or answered by somebody in between."""
    if not hosts:
        return Check("transport", CheckResult.OK, "stays on this machine")
    found = f"sslmode={sslmode} to {', '.join(hosts)}"
    if sslmode == "verify-full":
        return Check("transport", CheckResult.OK, found)
    advice = (
        "whoever stands between can read every payload or pose as the server: add "
        "sslmode=verify-full to the URL, and sslrootcert if the certificate is of your own making"
    )
    return Check("transport", CheckResult.WARNING, found, advice)


def dead_rows(holder: str | None) -> Check:
    """Whether something keeps dead rows from being cleared away."""
    if holder is None:
        return Check("vacuum", CheckResult.OK, "nothing holds it back")
    advice = f"claims slow down, and the disk fills, as long as this lasts: {holder}"
    return Check("vacuum", CheckResult.WARNING, "held back", advice)


def logged(unlogged: Collection[str]) -> Check:
    """Whether every table survives a crash of the server."""
    if not unlogged:
        return Check("tables", CheckResult.OK, "all are logged")
    advice = f"a crash of the server empties {', '.join(unlogged)}: ALTER TABLE … SET LOGGED"
    return Check("tables", CheckResult.PROBLEM, "unlogged", advice)


# --- reading ----------------------------------------------------------------------------------


def check_sqlite(url: str) -> Iterator[Check]:
    """The checks of an SQLite file, in order."""
    from tenure.store.sqlite import connection as sqlite_connection
    from tenure.store.sqlite import schema as sqlite_schema

    path = sqlite_connection.path_of(url)
    filesystems.refuse_planted(path)
    yield sqlite_library(sqlite3.sqlite_version_info)
    if not path.exists():
        health = CheckResult.WARNING if path.parent.is_dir() else CheckResult.PROBLEM
        advice = "`tenure migrate` or the next program that starts makes it"
        if health is CheckResult.PROBLEM:
            advice = f"its folder does not exist: make {path.parent}"
        yield Check("database", health, "not there yet", advice)
        return
    try:
        connection = sqlite_connection.connect(path)
        try:
            yield Check("database", CheckResult.OK, str(path))
            yield file_system(filesystems.filesystem_of(path))
            yield space(shutil.disk_usage(path.parent).free)
            yield _files(path)
            for name in SQLITE_SETTINGS:
                (value,) = connection.execute(f"PRAGMA {name}").fetchone()
                yield setting(name, SYNCHRONOUS.get(value, str(value)), SQLITE_SETTINGS)
            version = sqlite_schema.version_of(connection)
            yield schema(version, migrate.newest("sqlite"))
            if not version:
                return
            triggers = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'")
            yield guards([name for (name,) in triggers], "sqlite")
            before = time.time()  # noqa: TID251 - the machine's clock is what is checked
            (millis,) = connection.execute(f"SELECT {sqlite_connection.NOW}").fetchone()
            after = time.time()  # noqa: TID251
            yield clock(sqlite_connection.to_time(millis), before - 0.001, after)
            (ahead,) = connection.execute(SQLITE_AHEAD).fetchone() or (None,)
            yield newest_entry(ahead)
        finally:
            connection.close()
    except sqlite3.Error as error:
        advice = "is it a database of Tenure, and may this user read and write it and its folder?"
        yield Check("database", CheckResult.PROBLEM, f"{path}: {error}", advice)


def check_postgres(url: str) -> Iterator[Check]:
    """The checks of a PostgreSQL database, in order."""
    from tenure.store.postgres import connection as postgres_connection
    from tenure.store.postgres import probes as postgres_probes
    from tenure.store.postgres import schema as postgres_schema

    # Not before the line above, which says what to do where it is missing.
    psycopg = importlib.import_module("psycopg")
    place = postgres_connection.place_of(url)
    yield transport(*postgres_connection.route_of(place))
    try:
        with postgres_connection.connect(place) as connection:
            version = connection.info.server_version
            yield server(version, postgres_connection.OLDEST_SERVER)
            yield role(_one(connection, "SELECT pg_is_in_recovery()"))
            yield pooler(postgres_probes.pools_transactions(connection))
            yield dead_rows(postgres_probes.holds_back(connection))
            for name in POSTGRES_SETTINGS:
                value = _one(connection, "SELECT current_setting(%s)", name)
                yield setting(name, value, POSTGRES_SETTINGS)
            found = postgres_schema.version_of(connection, place)
            yield schema(found, migrate.newest("postgres"))
            if found:
                yield guards(_triggers(connection, place.schema), "postgres")
                yield ledger(_one(connection, place.sql(FROM_ELSEWHERE)))
                yield logged(_one(connection, UNLOGGED, place.schema))
                yield newest_entry(_one(connection, place.sql(POSTGRES_AHEAD)))
            before = time.time()  # noqa: TID251 - the machine's clock is what is checked
            now = _one(connection, "SELECT clock_timestamp()")
            after = time.time()  # noqa: TID251
            yield clock(now, before, after)
    except psycopg.Error as error:
        advice = f"{error}: is the server running, and may this user connect?"
        yield Check("database", CheckResult.PROBLEM, "does not answer", advice)


SQLITE_AHEAD = """
SELECT (at - (SELECT at FROM tenure_now)) / 1000.0 FROM tenure_transition ORDER BY seq DESC LIMIT 1
"""
POSTGRES_AHEAD = """
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


def _files(path: Path) -> Check:
    found = path.stat()
    beside = [path.with_name(path.name + end) for end in ("", "-wal", "-shm")]
    present = [path.parent, *(file for file in beside if file.exists())]
    closed = [str(each) for each in present if not os.access(each, os.R_OK | os.W_OK)]
    return files(found.st_mode, found.st_nlink, closed)


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
