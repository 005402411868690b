"""Commits on the thread of a caller, which save waking two threads.

One job that is a whole transaction in one call of the database is added where the caller waits for
it, on another connection, while no other work is near that could share its commit. An exception
such as KeyboardInterrupt may come between any two steps in here, and a signal handler may enqueue,
too. So nothing here is locked: the caller who takes the connection out of the list has it, and if
it gets lost on the way, all later work is queued.

On PostgreSQL it is the connection of the second committing thread, which takes it away for as long
as there is work for two.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tenure.store.protocol import Database

CALM_SECONDS = 0.02
"""After so long without other work."""
MAX_COMMITS = 333
"""On SQLite, the next commit is the committing thread's, which tidies up."""


class Direct:
    """A connection for callers, or none."""

    def __init__(self, db: Database | None, clock: Callable[[], float]) -> None:
        """`db` must not wait for other writers: what is queued shares the wait."""
        self._clock = clock
        self._free = [db] if db else []
        self._closed = False
        self._commits = 0
        self._crowded = -CALM_SECONDS  # when there was other work, by the clock
        self._is_lent = False
        self.is_used = False  # since the last `rest`

    def use(self, act: Callable[[Database], bool]) -> bool:
        """Return whether `act`, called with the connection, has committed; False if it fails.

        Also False, without a call, while others use the connection or other work is near.
        """
        if self._clock() - self._crowded < CALM_SECONDS:
            return False
        while True:
            try:
                db = self._free.pop()
                break
            except IndexError:
                # Lent for some microseconds, or given back since: that comes before the mark goes.
                if not (self._is_lent or self._free):
                    return False
                time.sleep(0)
        committed = False
        try:
            if db.alone is not None or self._commits < MAX_COMMITS:
                committed = act(db)
        except Exception:
            db.rollback()
        finally:
            self._free.append(db)
            if self._closed:
                self.close()
        self._commits += committed
        self.is_used |= committed
        return committed

    def lend(self, act: Callable[[Database], None]) -> bool:
        """Call `act` with the connection; return False, without a call, while a caller uses it.

        For a committing thread, which would have to connect its own.
        """
        self._is_lent = True  # first: a caller who finds no connection waits for it
        try:
            db = self.take()
            if db is not None:
                try:
                    act(db)
                finally:
                    self.give(db)
        finally:
            self._is_lent = False
        return db is not None

    def tidy(self, db: Database) -> None:
        """Have `db` tidy up, also after the commits of callers, which have to wait meanwhile."""
        if not self._commits or db.alone is not None:
            return db.tidy()
        taken = self.take()  # None if a caller uses it; what that caller adds is queued
        try:
            commits, self._commits = self._commits, 0
            db.tidy(commits)
        finally:
            if taken is not None:
                self.give(taken)

    def take(self) -> Database | None:
        """Take the connection away, None if another thread has it; `give` brings it back."""
        try:
            return self._free.pop()
        except IndexError:
            return None

    def give(self, db: Database) -> None:
        """Bring back what `take` has returned."""
        self._free.append(db)
        if self._closed:
            self.close()

    def rest(self) -> None:
        """Give back what the connection costs, unless it was used since the last call."""
        if not self.is_used and (db := self.take()) is not None:
            try:
                db.rest()
            finally:
                self.give(db)
        self.is_used = False

    def note_other_work(self) -> None:
        self._crowded = self._clock()

    def close(self) -> None:
        """Close the connection, now or after its use."""
        self._closed = True
        while self._free:
            self._free.pop().close()
