"""What happened to jobs: counted, `app.stats`, and as the ledger itself, `app.events`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from msgspec.structs import replace

from tenure.app.core import Core, Noun
from tenure.errors import InvalidInput
from tenure.lifecycle import EVENTS
from tenure.rules.ledger import EventFilter, LedgerPage
from tenure.rules.search import MAX_LISTED
from tenure.rules.stats import Activity, Count, FailureGroup, Total
from tenure.rules.tokens import includes, require
from tenure.store.tables import queues, schedules
from tenure.store.work import nothing
from tenure.values.ids import check_id
from tenure.values.names import check_kind, check_name, list_of_names
from tenure.values.numbers import whole

MAX_HALTING = 100
"""Queues in which halted partitions are counted."""
MAX_MINUTES = 24 * 60
MAX_BACK = 10_000
MAX_READ = 10_000
EVERYTHING = EventFilter()


class Statistics(Noun):
    """Statistics of one database. `counts` is exact at any time.

    `activity`, `totals` and `failures` are added up in the background, by servers and by workers
    beside the database. They reach as far as `measured_until` says.
    """

    def counts(self) -> list[Count]:
        """Return the number of jobs by status, queue and type, at this moment."""
        counts = self._core.limited_store.read.stats.counts()
        return [count for count in counts if includes(self._core.queues, count.queue)]

    def activity(self, minutes: int = 60) -> list[Activity]:
        """Return the transitions of the last `minutes` by minute, type, queue and event.

        - `minutes`: 1 to 1,440. Default: 60.

        Minutes without transitions are left out. Pairs of type and queue beyond the first 200 are
        added up under the name `(other)`. Raises InvalidInput.
        """
        wanted = whole(minutes, 1, MAX_MINUTES, "$.minutes")
        activity = self._core.limited_store.read.stats.activity(wanted)
        return [one for one in activity if includes(self._core.queues, one.queue)]

    def totals(self) -> list[Total]:
        """Return the transitions since the beginning, by type, queue and event.

        The numbers never fall, also where jobs are deleted.
        """
        totals = self._core.limited_store.read.stats.totals()
        return [total for total in totals if includes(self._core.queues, total.queue)]

    def failures(self, limit: int = 50) -> list[FailureGroup]:
        """Return failed attempts by type, queue and kind of error, those seen last first.

        - `limit`: 1 to 500 groups. Default: 50.

        The 200 kinds that were seen last are kept. Raises InvalidInput.
        """
        most, core = whole(limit, 1, MAX_LISTED, "$.limit"), self._core
        return core.limited_store.read.stats.failures(most, core.queues)

    def measured_until(self) -> datetime | None:
        """Return the time that `activity`, `totals` and `failures` reach; None before the first.

        This is about now, unless more happens than the background work can add up meanwhile.
        """
        return self._core.limited_store.read.stats.until()

    def late_leases(self) -> int:
        """Return the number of leases that have expired and that no sweep has ended yet."""
        return self._core.limited_store.read.late_leases(self._core.queues)

    def oldest_running(self) -> dict[str, datetime]:
        """Return by queue when the running attempt started that has run longest.

        At most 10,000 attempts are looked at.
        """
        return self._core.limited_store.read.oldest_running(self._core.queues)

    def halted_partitions(self) -> dict[str, int]:
        """Return by queue how many partitions wait behind a failed job: see `halted_by`.

        For queues that are limited with `ordered="halt"`. At most 10,000 partitions are looked at,
        as many of each queue in which jobs have failed, and 100 such queues; others are left out.
        """
        return halted(self._core, self.counts())

    def next_tick(self) -> datetime | None:
        """Return the earliest tick of all schedules that is not decided yet; None if there is none.

        A tick that is due is decided within a second or two, if a process does it.
        """
        if self._core.queues is not None:
            return None
        rest = "WHERE next_at IS NOT NULL ORDER BY next_at LIMIT 1"
        found = schedules.read(self._core.limited_store.read, rest)
        return found[0].next_at if found else None

    def recount(self) -> int:
        """Make `counts` agree with the jobs; return how many counts were wrong.

        Only needed after rows were changed by hand. Reads every job; on SQLite, writers wait.
        """
        recounted = self._core.store.write("measure", lambda db: db.stats.recount(), brings=nothing)
        return recounted.result()


def halted(core: Core, counts: Sequence[Count]) -> dict[str, int]:
    """Return `halted_partitions`, given the numbers of jobs."""
    read, failed = core.limited_store.read, {one.queue for one in counts if one.status == "failed"}
    halting = [
        queue
        for queue, (limit, *_) in queues.read_limits(read).items()
        if limit.ordered == "halt" and includes(core.queues, queue)
    ]
    none = dict.fromkeys((queue for queue in halting if queue not in failed), 0)
    looked_at = [queue for queue in halting if queue in failed][:MAX_HALTING]
    most = queues.MAX_PARTITIONS // max(len(looked_at), 1)
    return none | {queue: queues.halted(read, queue, most) for queue in looked_at}


class Events(Noun):
    """The ledger of one database: every transition of every job, in an order that never changes."""

    def read(
        self, after: str = "", limit: int = MAX_LISTED, filter: EventFilter = EVERYTHING
    ) -> LedgerPage:
        """Return the next `limit` transitions after a position, without gaps.

        - `after`: the `position` of the page before, or of `end`. Default: from the beginning.
        - `limit`: how many transitions to look at, 1 to 10,000. Default: 500.
        - `filter`: which of them to return, by event, job type and queue. Default: all.

        Each transition comes with the type and queue of its job. Continue at the `position` of the
        page, also when it holds no transition. Raises InvalidInput.
        """
        check_kind(filter, EventFilter, "an EventFilter of tenure.rules.ledger", "$.filter")
        if not set(list_of_names(filter.events or (), "$.events")).issubset(EVENTS):
            said = f"no such event; give one of {', '.join(EVENTS)}"
            raise InvalidInput(said, path="$.events")
        if filter.job_id is not None:
            check_id(filter.job_id, "$.job_id")
        for at, what in (("types", "job type"), ("queues", "queue")):
            for name in list_of_names(getattr(filter, at) or (), f"$.{at}"):
                check_name(name, what, f"$.{at}")
        require(self._core.queues, filter.queues or ())
        most = whole(limit, 1, MAX_READ, "$.limit")
        wanted = replace(filter, within=self._core.queues)
        return self._core.limited_store.read.transitions(after, most, wanted)

    def end(self, back: int = 0) -> str:
        """Return the position of the newest transition, or of the one `back` before it.

        - `back`: 0 to 10,000 transitions. Default: 0.

        Raises InvalidInput.
        """
        return self._core.limited_store.read.ledger_end(whole(back, 0, MAX_BACK, "$.back"))
