"""A plain connection to a store's database, as an operator with an SQL client has."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg

from tenure.lifecycle import Status
from tenure.store.constraints import row_rules

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

NAMES = {
    "sqlite": {
        "{job}": "tenure_job",
        "{transition}": "tenure_transition",
        "{tag}": "tenure_tag",
        "{queue}": "tenure_queue",
        "{worker}": "tenure_worker",
        "{tally}": "tenure_tally",
        "{activity}": "tenure_activity",
        "{session}": "tenure_session",
        "{schedule}": "tenure_schedule",
        "{fire}": "tenure_fire",
        "{dependency}": "tenure_dependency",
        "{workflow}": "tenure_workflow",
        "{overdue}": "tenure_overdue",
        "{revisit}": "tenure_revisit",
        "{step}": "tenure_step",
        "{checkpoint}": "tenure_checkpoint",
        "{signal}": "tenure_signal",
        "{wait}": "tenure_wait",
        "{signal_token}": "tenure_signal_token",
        "{queue_limit}": "tenure_queue_limit",
        "{partition_limit}": "tenure_partition_limit",
        "{slot}": "tenure_slot",
        "{line}": "tenure_line",
        "{limit_change}": "tenure_limit_change",
        "{unique_key}": "tenure_unique_key",
        "{throttle}": "tenure_throttle",
        "{retention}": "tenure_retention",
        "{webhook}": "tenure_webhook",
        "{now}": "(SELECT at FROM tenure_now)",
        "{later}": "(SELECT at + 60000 FROM tenure_now)",
        "{new_lease}": "lower(hex(randomblob(16)))",
    },
    "postgres": {
        "{job}": "tenure.job",
        "{transition}": "tenure.transition",
        "{tag}": "tenure.tag",
        "{queue}": "tenure.queue",
        "{worker}": "tenure.worker",
        "{tally}": "tenure.tally",
        "{activity}": "tenure.activity",
        "{session}": "tenure.session",
        "{schedule}": "tenure.schedule",
        "{fire}": "tenure.fire",
        "{dependency}": "tenure.dependency",
        "{workflow}": "tenure.workflow",
        "{gate}": "tenure.gate",
        "{overdue}": "tenure.overdue",
        "{revisit}": "tenure.revisit",
        "{step}": "tenure.step",
        "{checkpoint}": "tenure.checkpoint",
        "{signal}": "tenure.signal",
        "{wait}": "tenure.wait",
        "{signal_token}": "tenure.signal_token",
        "{queue_limit}": "tenure.queue_limit",
        "{partition_limit}": "tenure.partition_limit",
        "{slot}": "tenure.slot",
        "{line}": "tenure.line",
        "{limit_change}": "tenure.limit_change",
        "{unique_key}": "tenure.unique_key",
        "{throttle}": "tenure.throttle",
        "{retention}": "tenure.retention",
        "{webhook}": "tenure.webhook",
        "{now}": "tenure.clock()",
        "{later}": "(tenure.clock() + interval '60 seconds')",
        "{new_lease}": "gen_random_uuid()",
        "?": "%s",
    },
}

Refused = (sqlite3.IntegrityError, psycopg.Error)
"""What a database raises when it refuses a statement."""


class RawSql:
    """Runs SQL on either engine: names in braces and `?` are replaced as the engine needs.

    It connects for the first statement: many tests have one and run none.
    """

    def __init__(self, url: str) -> None:
        self.engine = "sqlite" if url.startswith("sqlite:") else "postgres"
        self.changed = 0  # rows that the last statement changed
        self._url = url

    @cached_property
    def _connection(self) -> Any:
        if self.engine == "postgres":
            return psycopg.connect(self._url, autocommit=True, prepare_threshold=None)
        path = Path(self._url.removeprefix("sqlite:///"))
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        return connection

    def run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run one statement in its own transaction and return its rows, if there are any."""
        for name, meaning in NAMES[self.engine].items():
            statement = statement.replace(name, meaning)
        cursor = self._connection.execute(statement, values)
        self.changed = cursor.rowcount
        return cursor.fetchall() if cursor.description else []

    def value(self, statement: str, *values: Any) -> Any:
        """The one value that a query gives."""
        ((found,),) = self.run(statement, *values)
        return found

    def contents(self) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """Every job and every ledger entry, column for column."""
        jobs = self.run("SELECT * FROM {job} ORDER BY id")
        return jobs, self.run("SELECT * FROM {transition} ORDER BY seq")

    def time(self, at: datetime) -> Any:
        """A time as the engine stores it."""
        return round((at - EPOCH).total_seconds() * 1000) if self.engine == "sqlite" else at

    def later(self, column: str, seconds: int) -> str:
        """A time in a column, so many seconds later."""
        if self.engine == "sqlite":
            return f"{column} + {seconds * 1000}"
        return f"{column} + interval '{seconds} seconds'"

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Several statements as one transaction, undone if one of them is refused."""
        self.run("BEGIN IMMEDIATE" if self.engine == "sqlite" else "BEGIN")
        try:
            yield
        except BaseException:
            self.run("ROLLBACK")
            raise
        self.run("COMMIT")

    def drop_triggers(self) -> None:
        """Take every trigger away."""
        if self.engine == "sqlite":
            for (name,) in self.run("SELECT name FROM sqlite_schema WHERE type = 'trigger'"):
                self.run(f"DROP TRIGGER {name}")
            return
        for (table,) in self.run(
            "SELECT oid::regclass::text FROM pg_class WHERE relhastriggers"
            " AND relnamespace = 'tenure'::regnamespace"
        ):
            self.run(f"ALTER TABLE {table} DISABLE TRIGGER ALL")

    def without_triggers(self, statement: str, *values: Any) -> None:
        """Run a statement while the triggers of the jobs are off."""
        if self.engine == "sqlite":
            triggers = self.run(
                "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'"
                " AND tbl_name = 'tenure_job'"
            )
            for name, _ in triggers:
                self.run(f"DROP TRIGGER {name}")
            self.run(statement, *values)
            for _, text in triggers:
                self._connection.execute(text)
            return
        self.run("ALTER TABLE tenure.job DISABLE TRIGGER USER")
        self.run(statement, *values)
        for (name,) in self.run(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = 'tenure.job'::regclass"
            " AND NOT tgisinternal"
        ):
            self.run(f'ALTER TABLE tenure.job ENABLE ALWAYS TRIGGER "{name}"')

    def drop_checks(self) -> None:
        """Take away what must hold of every row, from this connection at least."""
        if self.engine == "sqlite":
            self.run("PRAGMA ignore_check_constraints = ON")
            return
        # A trigger asks there what holds of every row, also where it knows the status.
        for name in ("record_entry", "record_move"):
            text = str(self.value(f"SELECT pg_get_functiondef('tenure.{name}'::regproc)"))
            for rule in row_rules("n.").values():
                for status in ("n.status", *(f"'{status}'::text" for status in Status)):
                    text = text.replace(f"({rule.replace('n.status', status)})", "(true)")
            self.run(text.replace("%", "%%"))

    def deadlocks(self) -> int:
        """How many deadlocks the server has ended in this database."""
        if self.engine == "sqlite":
            return 0  # it has one writer at a time
        return int(
            self.value("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        )

    def close(self) -> None:
        if "_connection" in vars(self):
            self._connection.close()
