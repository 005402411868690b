"""The simulator's database: the real SQLite store, in memory, in one thread, in virtual time.

Statements, triggers, transitions, the lifecycle and group commit are those of production. Three
things differ: the database is in memory, the view `tenure_now` shows virtual time, and a
transaction can fail, or its process crash, before its commit, in its middle, or just after it.
"""

from __future__ import annotations

import functools
import sqlite3
import tempfile
from collections import namedtuple
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from tenure.store import audit
from tenure.store.sqlite import schema
from tenure.store.sqlite.connection import Files
from tenure.store.sqlite.statements import DIALECT
from tenure.store.sqlite.writer import Sqlite

START = 1_767_225_600_000  # when every world begins, in milliseconds: 2026-01-01 UTC

ROW = (
    "id, status, attempts, token, max_retries, run_at, lease_id, lease_expires_at, finished_at,"
    " result, last_error"
)

FAILURES = ("at the begin", "in the middle", "before the commit", "after the commit")
CRASHES = ("crash before the commit", "crash after the commit")


class SimulatedCrash(BaseException):
    """The process is gone. Not an Exception, so that no code catches it and continues."""


LedgerRow = namedtuple(
    "LedgerRow", "seq job_id at source target event attempt token lease_id actor detail"
)
LEDGER = f"SELECT {', '.join(LedgerRow._fields)} FROM tenure_transition"


class SimulatedDatabase:
    """One database in memory, and the time that its clock shows."""

    def __init__(self) -> None:
        self.now = START
        self.connection = sqlite3.connect(
            ":memory:", isolation_level=None, check_same_thread=False, cached_statements=256
        )
        _template().backup(self.connection)
        self.connection.create_function("tenure_virtual_now", 0, lambda: self.now)
        self.connection.execute("DROP VIEW tenure_now")
        self.connection.execute("CREATE VIEW tenure_now AS SELECT tenure_virtual_now() AS at")
        self._read = 0

    def new_rows(self) -> list[LedgerRow]:
        found = self.connection.execute(f"{LEDGER} WHERE seq > ? ORDER BY seq", (self._read,))
        rows = [LedgerRow._make(row) for row in found]
        if rows:
            self._read = rows[-1].seq
        return rows

    def history(self, job_id: str) -> list[LedgerRow]:
        found = self.connection.execute(f"{LEDGER} WHERE job_id = ? ORDER BY seq", (job_id,))
        return [LedgerRow._make(row) for row in found]

    def jobs(self, job_ids: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        for job_id in job_ids:
            yield from self.connection.execute(
                f"SELECT {ROW} FROM tenure_job WHERE id = ?", (job_id,)
            )

    def job_ids(self) -> list[str]:
        return [id for (id,) in self.connection.execute("SELECT id FROM tenure_job ORDER BY id")]

    def violations(self) -> list[tuple[str, str, str]]:
        """Return what `tenure verify` finds: (invariant, job id, what)."""
        found: list[tuple[str, str, str]] = []
        for query in audit.QUERIES:
            rows = self.connection.execute(query.statement(DIALECT))
            found += audit.findings(query, rows, found, 3)
        return found

    def close(self) -> None:
        self.connection.close()


@functools.cache
def _template() -> sqlite3.Connection:
    """Make an empty database once, with the code that makes every schema."""
    template = sqlite3.connect(":memory:", check_same_thread=False)
    with tempfile.TemporaryDirectory(prefix="tenure-simulate-") as folder:
        path = Path(folder) / "template.db"
        schema.upgrade(path)
        file = sqlite3.connect(path)
        file.backup(template)
        file.close()
    return template


class SimulatedSqlite(Sqlite):
    """The writing side of one simulated process; see the protocol `Database`."""

    def __init__(self, database: SimulatedDatabase) -> None:
        super().__init__(Path(":memory:"), connect=lambda _: database.connection)
        self._files = cast(Files, SimpleNamespace(check=lambda: None))  # it has none
        self._database = database
        self._fault = ""
        self._steps = 0
        self.committed = False

    def arm(self, fault: str, steps: int) -> None:
        """Let `fault`, one of FAILURES or CRASHES or "", happen in the next transaction.

        The fault "in the middle" comes after about `steps` steps of SQLite's virtual machine.
        """
        self._fault, self._steps, self.committed = fault, steps, False

    def begin(self) -> None:
        self._fail("at the begin")
        super().begin()
        if self._fault == "in the middle":
            self._fault = ""
            # SQLite gives up inside a statement, and rolls the transaction back itself.
            self._database.connection.set_progress_handler(lambda: 1, self._steps)

    def commit(self) -> None:
        self._database.connection.set_progress_handler(None, 0)
        self._fail("before the commit")
        super().commit()
        self.committed = True
        self._fail("after the commit")

    def rollback(self) -> None:
        self._database.connection.set_progress_handler(None, 0)
        super().rollback()

    def close(self) -> None:
        pass  # the database outlives the simulated process

    def _fail(self, where: str) -> None:
        fault = self._fault
        if fault.endswith(where):
            self._fault = ""
            raise sqlite3.OperationalError("disk I/O error") if fault == where else SimulatedCrash
