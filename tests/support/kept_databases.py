"""Databases of PostgreSQL that one test after the other uses, empty each time.

To copy a database and to drop it takes a fifth of a short test's time, and the first audit in it as
much again. So a test that leaves the schema as it was gives its database to the next one. All rows
are deleted in between, and the sessions of the test are ended. A database whose schema was touched
is dropped.

In these databases the triggers fire in every session but those that replay what another server has
done: only so can rows be deleted which the triggers keep. Tenure's own schema has them fire in
those too (`ENABLE ALWAYS`). Tests that look at that take a database of their own.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import psycopg

from tenure.store.postgres.reader import PostgresReader
from tests.support.clock import STOPPED, Clock
from tests.support.postgres import PostgresServer
from tests.support.waiting import wait_until

MOST_ENTRIES = 1_000
"""In the ledger, of all tests together. A store searches in another way where claims meet thousands
of dead rows."""

KEEPING = "tests"
"""The name of the sessions that stay."""

T = TypeVar("T")

CATALOGS = ("class", "attribute", "proc", "trigger", "constraint", "index", "type", "namespace")
MORE_CATALOGS = ("policy", "rewrite", "default_acl", "extension", "db_role_setting", "statistic")
LARGE = {"attribute": "attrelid", "proc": "oid", "statistic": "starelid", "type": "oid"}
"""Catalogues of which most came with the server: what has a number below 16384."""
STATE = " UNION ALL ".join(
    f"SELECT '{name}', count(*), max(xmin::text::bigint) FROM pg_{name}"
    + (f" WHERE {LARGE[name]} >= 16384" if name in LARGE else "")
    for name in (*CATALOGS, *MORE_CATALOGS)
)
"""What changes as soon as anything in the schema does, or ANALYZE tells the planner of rows."""

ENTRIES = "SELECT last_value FROM tenure.transition_seq_seq"

RELATIONS = (
    "SELECT oid::regclass::text FROM pg_class"
    " WHERE relnamespace = 'tenure'::regnamespace AND relkind = %s"
)
OTHERS = (
    "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND backend_type = 'client backend'"
)


class PreparedReader(PostgresReader):
    """Asks on one connection, in plans that it keeps."""

    def __init__(self, url: str, connection: psycopg.Connection[Any]) -> None:
        super().__init__(url)
        self._kept = connection

    def read_through(self, statement: str, read: Callable[[Iterable[Any]], T]) -> T:
        return read(self._kept.execute(self._address.sql(statement)).fetchall())

    def _ask(self, ask: Callable[[psycopg.Connection[Any]], T], seconds: float = 0.0) -> T:
        return ask(self._kept)


class Kept:
    """One database, and a connection to it that stays."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.url = url
        self.entries = 0
        self.connection = psycopg.connect(
            url, autocommit=True, prepare_threshold=0, application_name=KEEPING
        )
        self.connection.execute("SET session_replication_role = replica")
        self._reader = PreparedReader(url, self.connection)

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement, in a plan that is kept; return its rows."""
        return self.connection.execute(statement.encode()).fetchall()

    def violations(self) -> list[tuple[str, str, str]]:
        """Audit the data with statements that are prepared already."""
        return self._reader.violations(10)


LENT: dict[str, Kept] = {}
"""The databases that tests have now: URL -> what is kept."""


class Keeper:
    """Lends copies of a database, `template`; if `stopped`, their clocks stand still."""

    def __init__(self, server: PostgresServer, template: str, *, stopped: bool = False) -> None:
        self._server = server
        self._stopped = stopped
        self._template = f"tenure_test_{uuid.uuid4().hex}"
        url = server.create_database(self._template, template)
        if stopped:
            Clock(url).close()
        with psycopg.connect(url, autocommit=True) as connection:
            triggers = connection.execute(
                "SELECT tgrelid::regclass::text, quote_ident(tgname) FROM pg_trigger"
                " WHERE tgenabled = 'A'"
            )
            for table, name in triggers.fetchall():
                connection.execute(f"ALTER TABLE {table} ENABLE TRIGGER {name}".encode())
            self._state = connection.execute(STATE).fetchall()
            self._emptying = emptying(connection)
        self._free: list[Kept] = []

    def lend(self) -> str:
        """Return the URL of a database with the schema and no rows."""
        if not self._free:
            name = f"tenure_test_{uuid.uuid4().hex}"
            self._free.append(Kept(name, self._server.create_database(name, self._template)))
        kept = self._free.pop()
        LENT[kept.url] = kept
        if self._stopped:
            STOPPED.add(kept.url)
        return kept.url

    def take_back(self, url: str) -> None:
        """Empty a database for the next test, or drop it if it can never be."""
        kept = LENT.pop(url)
        with contextlib.suppress(psycopg.Error):
            wait_until(lambda: not kept.rows(OTHERS), "the sessions of the test have ended")
            if kept.rows(STATE) == self._state:
                kept.entries += kept.rows(ENTRIES)[0][0]
                if kept.entries < MOST_ENTRIES:
                    for statement in self._emptying:
                        kept.connection.execute(statement.encode())
                    self._free.append(kept)
                    return
        self._drop(kept)

    def close(self) -> None:
        """Drop the databases that are free, and the template."""
        for kept in self._free:
            self._drop(kept)
        self._server.drop_database(self._template)

    def _drop(self, kept: Kept) -> None:
        kept.connection.close()
        self._server.drop_database(kept.name)


def emptying(connection: psycopg.Connection[Any]) -> list[str]:
    """Return statements that leave a database as it is now, whatever rows it will have.

    One deletes all rows: it is planned once, where one for each table took six times as long.
    """
    deletions, insertions = [], []
    for number, (table,) in enumerate(connection.execute(RELATIONS, ("r",)).fetchall()):
        deletions.append(f"d{number} AS (DELETE FROM {table})")
        rows = connection.execute(f"SELECT json_agg(t) FROM {table} AS t".encode()).fetchone()
        if rows and rows[0]:
            text = json.dumps(rows[0]).replace("'", "''")
            found = f"json_populate_recordset(NULL::{table}, '{text}')"
            insertions.append(f"INSERT INTO {table} SELECT * FROM {found}")
    resets = ["pg_stat_reset()"]
    for (sequence,) in connection.execute(RELATIONS, ("S",)).fetchall():
        resets.append(f"setval('{sequence}', 1, false)")
    return [f"WITH {', '.join(deletions)} SELECT {', '.join(resets)}", *insertions]
