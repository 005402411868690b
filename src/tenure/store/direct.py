"""Commits on the thread of a caller, which save waking two threads.

One job that is a whole transaction in one call of the database is added where the caller waits for
it, on another connection, while no other work is near that could share its commit. An exception
such as KeyboardInterrupt may come between any two steps in here, and a signal handler may enqueue,
too. So nothing here is locked: the caller who takes the connection out of the list has it, and if
it gets lost on the way, all later work is queued.
"""

from __future__ import annotations

from collections.abc import Callable

from tenure.store.protocol import Database

CALM_SECONDS = 0.02
"""After so long without other work."""
MAX_COMMITS = 333
"""Then the committing thread has to tidy up."""


class Direct:
    """A connection for callers, or none."""

    def __init__(self, db: Database | None, clock: Callable[[], float]) -> None:
        """`db` must not wait for other writers: what is queued shares the wait."""
        self._clock = clock
        self._free = [db] if db else []
        self._closed = False
        self._commits = 0
        self._crowded = -CALM_SECONDS  # when there was other work, by the clock

    def use(self, act: Callable[[Database], bool]) -> bool:
        """Return whether `act`, called with the connection, has committed; False if it fails.

        Also False, without a call, while others use the connection or other work is near.
        """
        if self._commits >= MAX_COMMITS:
            self.note_other_work()  # so that the thread gets hold of the file
        if self._clock() - self._crowded < CALM_SECONDS:
            return False
        try:
            db = self._free.pop()
        except IndexError:
            return False
        committed = False
        try:
            committed = act(db)
        except Exception:
            db.rollback()
        finally:
            self._free.append(db)
            if self._closed:
                self.close()
        self._commits += committed
        return committed

    def note_other_work(self) -> None:
        self._crowded = self._clock()

    def commits(self) -> int:
        """Return how many commits there were since the last call."""
        commits, self._commits = self._commits, 0
        return commits

    def close(self) -> None:
        """Close the connection, now or after its use."""
        self._closed = True
        while self._free:
            self._free.pop().close()
