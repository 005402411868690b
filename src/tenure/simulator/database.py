"""The simulator's database: the real SQLite store, in memory, in one thread, in virtual time.

Statements, triggers, transitions, the lifecycle and group commit are those of production. Three
things differ: the database is in memory, the view `tenure_now` shows virtual time, and a
transaction can fail, or its process crash, before its commit, in its middle, or just after it.
"""

from __future__ import annotations

import functools
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tenure.errors import StoreUnavailable
from tenure.lifecycle import Job
from tenure.rules.jobs import CheckedJob
from tenure.rules.ledger import Transition
from tenure.store import transitions
from tenure.store.sqlite import schema
from tenure.store.sqlite.connection import MEMORY, to_millis
from tenure.store.sqlite.reader import SqliteReader
from tenure.store.sqlite.writer import Sqlite
from tenure.store.tables import queues, retention
from tenure.store.work import CallWork, EnqueueWork, ExchangeWork, Work

START = datetime(2026, 1, 1, tzinfo=UTC)  # when every world begins

FAILURES = ("at the begin", "in the middle", "before the commit", "after the commit")
CRASHES = ("crash before the commit", "crash after the commit")


class SimulatedCrash(BaseException):
    """The process is gone. Not an Exception, so that no code catches it and continues."""


UNKNOWN = StoreUnavailable("no answer came: the outcome of the call is unknown")
ON_STORE: Mapping[str, Callable[..., Any]] = {
    "renew": lambda db, leases, seconds: db.renew(leases, seconds),
    "sweep": lambda db, limit: {steps[0].id for steps in transitions.sweep(db, limit)},
    "prune": lambda db, settled_before: retention.prune(db, settled_before, 500),
    "apply": lambda db, job_id, event: transitions.apply(db, job_id, event).id,
    "set_queue": lambda db, name, paused, max_pending: queues.set_queue(
        db, name, paused=paused, max_pending=max_pending, actor="operator"
    ),
}
"""What a store does for a call, other than an enqueue or an exchange."""


@dataclass(slots=True)
class StoreCall:
    """A call of a store, as it arrives there: a method of `ExpectedStore` and its arguments."""

    caller: str
    verb: str
    arguments: tuple[Any, ...]
    reply: Callable[[Any], None]
    work: Work = field(init=False)

    def __post_init__(self) -> None:
        if self.verb == "enqueue":
            self.work = EnqueueWork(*self.arguments)
        elif self.verb == "exchange":
            self.work = ExchangeWork(*self.arguments)
        else:
            self.work = CallWork(self.verb, lambda db: ON_STORE[self.verb](db, *self.arguments))

    @property
    def answer(self) -> Any:
        """A result, a TenureError, an unexpected error, or UNKNOWN if the store gave none."""
        error = self.work.future.exception() if self.work.future.done() else UNKNOWN
        if error is None:
            return self.work.future.result()
        return UNKNOWN if isinstance(error, StoreUnavailable) else error


class SimulatedDatabase(SqliteReader):
    """One database in memory, the time that its clock shows, and the reading side."""

    def __init__(self) -> None:
        super().__init__(MEMORY)
        self.now = START
        self.connection = sqlite3.connect(
            MEMORY, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        _template().backup(self.connection)
        self.connection.create_function("tenure_virtual_now", 0, lambda: to_millis(self.now))
        self.connection.execute("DROP VIEW tenure_now")
        self.connection.execute("CREATE VIEW tenure_now AS SELECT tenure_virtual_now() AS at")
        self._read = self.start

    @contextmanager
    def connected(self) -> Iterator[sqlite3.Connection]:
        yield self.connection

    def new_transitions(self) -> Sequence[Transition]:
        """Return the transitions that were recorded since the last call."""
        rows = self.ledger(self._read, 1_000_000)
        if rows:
            self._read = rows[-1].position
        return rows

    def job_ids(self) -> list[str]:
        return [id for (id,) in self.rows("SELECT id FROM tenure_job ORDER BY id")]


@functools.cache
def _template() -> sqlite3.Connection:
    """Make an empty database once, with the code that makes every schema."""
    template = sqlite3.connect(MEMORY, check_same_thread=False)
    with tempfile.TemporaryDirectory(prefix="tenure-simulate-") as folder:
        path = Path(folder) / "template.db"
        schema.upgrade(path)
        with closing(sqlite3.connect(path)) as file:
            file.backup(template)
    return template


class SimulatedSqlite(Sqlite):
    """The writing side of one simulated process; see the protocol `Database`."""

    def __init__(self, database: SimulatedDatabase) -> None:
        super().__init__(MEMORY, connect=lambda _: database.connection)
        self._fault = ""
        self._steps = 0
        self.committed = False

    def run(self, commit: Callable[[], None], fault: str, steps: int) -> None:
        """Call `commit`, and let `fault`, one of FAILURES or CRASHES or "", happen in it.

        The fault "in the middle" comes after about `steps` steps of SQLite's virtual machine.
        """
        self._fault, self._steps, self.committed = fault, steps, False
        try:
            commit()
        except SimulatedCrash:
            self.rollback()

    def begin(self, *, limits: bool = False) -> None:
        self._fail("at the begin")
        super().begin(limits=limits)
        self._fail_in_the_middle()

    def commit(self) -> None:
        self._db.set_progress_handler(None, 0)
        self._fail("before the commit")
        super().commit()
        self.committed = True
        self._fail("after the commit")

    def enqueue_alone(
        self, checked_jobs: Sequence[CheckedJob], *, whole: bool
    ) -> Mapping[str, Job]:
        self._fail("at the begin")
        self._fail("before the commit")
        self._connected()
        self._fail_in_the_middle()
        made = super().enqueue_alone(checked_jobs, whole=whole)
        self._db.set_progress_handler(None, 0)
        if made:
            self.committed = True
            self._fail("after the commit")
        return made

    def _fail_in_the_middle(self) -> None:
        if self._fault == "in the middle":
            self._fault = ""
            # SQLite gives up inside a statement, and rolls the transaction back itself.
            self._db.set_progress_handler(lambda: 1, self._steps)

    def rollback(self) -> None:
        if self._connection is not None:
            self._connection.set_progress_handler(None, 0)
        super().rollback()

    def close(self) -> None:
        pass  # the database outlives the simulated process

    def _fail(self, where: str) -> None:
        fault = self._fault
        if fault.endswith(where):
            self._fault = ""
            raise sqlite3.OperationalError("disk I/O error") if fault == where else SimulatedCrash
