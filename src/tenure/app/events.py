"""The ledger of all jobs, as a stream: `app.events`."""

from __future__ import annotations

from tenure.app.core import MAX_LISTED, Core
from tenure.jobs.enqueue import whole
from tenure.jobs.ledger import EventFilter, LedgerPage

MAX_BACK = 10_000
EVERYTHING = EventFilter()


class Events:
    """The ledger of one database: every transition of every job, in an order that never changes."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def read(
        self, after: str = "", limit: int = MAX_LISTED, filter: EventFilter = EVERYTHING
    ) -> LedgerPage:
        """Return the next `limit` transitions after a position, without gaps.

        - `after`: the `position` of the page before, or of `end`. Default: from the beginning.
        - `limit`: how many transitions to look at. Default: 500.
        - `filter`: which of them to return, by event, job type and queue. Default: all.

        Each transition comes with the type and queue of its job. Go on at the `position` of the
        page, also when it holds no transition.
        """
        return self._core.store.read.transitions(after, limit, filter)

    def end(self, back: int = 0) -> str:
        """Return the position of the newest transition, or of the one `back` before it.

        - `back`: 0 to 10,000 transitions. Default: 0.

        Raises InvalidInput.
        """
        return self._core.store.read.ledger_end(whole(back, 0, MAX_BACK, "$.back"))
