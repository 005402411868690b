"""The store on stage: the real one, on SQLite in memory, in one thread, its clock in our hands.

Statements, triggers, `moves`, the lifecycle and group commit are what runs in production. What
differs: the database is in memory, the view `tenure_now` tells virtual time, and a transaction can
be made to fail, or its process to crash, before its commit, in its middle, or just after.
"""

from __future__ import annotations

import functools
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tenure.store import audit
from tenure.store.sqlite import schema as sqlite_schema
from tenure.store.sqlite.files import Files
from tenure.store.sqlite.writer import Sqlite
from tenure.store.tables.stats_sql import SQLITE

START = 1_767_225_600_000
"""When every world begins, in milliseconds: 2026-01-01 UTC."""

LEDGER = "seq, job_id, at, source, target, event, attempt, token, lease_id, actor, detail"
ROW = (
    "id, status, attempts, token, max_retries, run_at, lease_id, lease_expires_at, finished_at,"
    " result, last_error"
)

FAILURES = ("at the begin", "in the middle", "before the commit", "after the commit")
CRASHES = ("crash before the commit", "crash after the commit")


class Crash(BaseException):
    """The process is gone. Not an Exception: nobody may catch it and go on."""


class Stage:
    """One database, and the time that it is in there."""

    def __init__(self) -> None:
        self.now = START
        """What the store's clock shows, in milliseconds."""
        self.connection = sqlite3.connect(
            ":memory:", isolation_level=None, check_same_thread=False, cached_statements=256
        )
        _template().backup(self.connection)
        self.connection.create_function("tenure_virtual_now", 0, lambda: self.now)
        self.connection.execute("DROP VIEW tenure_now")
        self.connection.execute("CREATE VIEW tenure_now AS SELECT tenure_virtual_now() AS at")
        self._read = 0

    def new_entries(self) -> list[tuple[Any, ...]]:
        """What was added to the ledger since the last call."""
        entries = self.connection.execute(
            f"SELECT {LEDGER} FROM tenure_transition WHERE seq > ? ORDER BY seq", (self._read,)
        ).fetchall()
        if entries:
            self._read = entries[-1][0]
        return entries

    def rows(self, job_ids: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """The rows of some jobs, as far as they are there."""
        for job_id in job_ids:
            yield from self.connection.execute(
                f"SELECT {ROW} FROM tenure_job WHERE id = ?", (job_id,)
            )

    def job_ids(self) -> list[str]:
        """Every job there is."""
        return [id for (id,) in self.connection.execute("SELECT id FROM tenure_job ORDER BY id")]

    def history(self, job_id: str) -> list[tuple[int, str, int, int, str]]:
        """The moves of a job, for people: (at, event, attempt, token, detail)."""
        return self.connection.execute(
            "SELECT at, event, attempt, token, coalesce(detail, '') FROM tenure_transition"
            " WHERE job_id = ? ORDER BY seq",
            (job_id,),
        ).fetchall()

    def violations(self) -> list[tuple[str, str, str]]:
        """What `tenure verify` finds: (invariant, job id, what)."""
        found: list[tuple[str, str, str]] = []
        for asked in audit.QUERIES:
            statement = asked.statement(SQLITE)
            found += audit.findings(asked, self.connection.execute(statement), found, 3)
        return found

    def close(self) -> None:
        self.connection.close()


@functools.cache
def _template() -> sqlite3.Connection:
    """An empty database with the schema, made once by the code that makes every schema."""
    template = sqlite3.connect(":memory:", check_same_thread=False)
    with tempfile.TemporaryDirectory(prefix="tenure-simulate-") as folder:
        path = Path(folder) / "template.db"
        sqlite_schema.upgrade(path)
        file = sqlite3.connect(path)
        file.backup(template)
        file.close()
    return template


class NoFiles(Files):
    """Those of a database in memory."""

    def __init__(self) -> None:
        pass

    def check(self) -> None:
        """All is in place."""


class StagedSqlite(Sqlite):
    """The writing side of one process on the stage; see `Database`."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(Path(":memory:"), connect=lambda _: stage.connection)
        self._files = NoFiles()
        self._stage = stage
        self._fault = ""
        self._steps = 0
        self.committed = False

    def arm(self, fault: str, steps: int) -> None:
        """Have `fault` (of FAILURES or CRASHES, or none) happen to the next transaction.

        The one in the middle comes after about `steps` steps of SQLite's machine.
        """
        self._fault, self._steps, self.committed = fault, steps, False

    def begin(self) -> None:
        if self._struck("at the begin"):
            raise sqlite3.OperationalError("unable to open database file")
        super().begin()
        if self._struck("in the middle"):
            # SQLite gives up inside a statement, and undoes the transaction by itself.
            self._stage.connection.set_progress_handler(lambda: 1, self._steps)

    def commit(self) -> None:
        self._calm()
        if self._struck("before the commit"):
            raise sqlite3.OperationalError("disk I/O error")
        if self._struck("crash before the commit"):
            raise Crash
        super().commit()
        self.committed = True
        if self._struck("after the commit"):
            raise sqlite3.OperationalError("disk I/O error")
        if self._struck("crash after the commit"):
            raise Crash

    def rollback(self) -> None:
        self._calm()
        super().rollback()

    def close(self) -> None:
        """Nothing: the stage outlives its processes."""

    def _calm(self) -> None:
        self._stage.connection.set_progress_handler(None, 0)

    def _struck(self, fault: str) -> bool:
        struck = self._fault == fault
        if struck:
            self._fault = ""
        return struck
