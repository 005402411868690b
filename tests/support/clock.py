"""A clock for the store that stands still until the test moves it.

Each store reads every time through one function in its database (SQLite: the view `tenure_now`,
PostgreSQL: the function `clock()`). Here that function is replaced by a table with one row.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.support.raw_sql import RawSql

START = datetime(2026, 1, 1, tzinfo=UTC)
TICK = 0.001
"""Seconds; the finest step that both engines store."""
STOPPED: set[str] = set()
"""The URLs of databases that are copies of one whose clock stands still, at START."""


class Clock:
    """Takes over the clock of the store at `url`, whose schema must be there already.

    raw: the connection with which it does so; it is free for other statements.
    """

    def __init__(self, url: str, start: datetime = START) -> None:
        self.now = start
        self.raw = RawSql(url)
        sqlite = self.raw.engine == "sqlite"
        self._table = "tenure_now" if sqlite else "tenure.stopped_clock"
        if url in STOPPED:
            if start != START:
                self.set(start)
            return
        if sqlite:
            self.raw.run("DROP VIEW tenure_now")
            self.raw.run("CREATE TABLE tenure_now (at INTEGER NOT NULL)")
        else:
            self.raw.run("CREATE TABLE tenure.stopped_clock (at timestamptz NOT NULL)")
            self.raw.run(
                "CREATE OR REPLACE FUNCTION tenure.clock() RETURNS timestamptz LANGUAGE sql"
                " STABLE PARALLEL SAFE AS 'SELECT at FROM tenure.stopped_clock'"
            )
        self.raw.run(f"INSERT INTO {self._table} VALUES (?)", self.raw.time(start))

    def set(self, to: datetime) -> datetime:
        """Move the clock, forwards or back; whole milliseconds only."""
        assert to.microsecond % 1000 == 0, "SQLite keeps milliseconds"
        self.now = to
        self.raw.run(f"UPDATE {self._table} SET at = ?", self.raw.time(to))
        return to

    def advance(self, seconds: float) -> datetime:
        """Let `seconds` pass."""
        return self.set(self.now + timedelta(milliseconds=round(seconds * 1000)))

    def close(self) -> None:
        self.raw.close()
