"""The reading side of the store: the questions, the same for both engines.

`sqlite/reader.py` and `postgres/reader.py` say how a statement is executed, and hold the statements
that differ.
"""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from tenure.errors import InvalidInput
from tenure.lifecycle import Job
from tenure.rules.explain import LockHolder
from tenure.rules.ledger import EventFilter, LedgerEvent, LedgerPage, Transition
from tenure.rules.search import Query
from tenure.rules.stats import EVERY_QUEUE, QueueQuery, QueueState, WorkerState
from tenure.rules.tokens import Patterns
from tenure.store import audit
from tenure.store.database import Dialect, check_moved
from tenure.store.notify import Notify
from tenure.store.rows import COLUMNS, job_of, read_tags, selected
from tenure.store.search import Statement
from tenure.store.tables import queues, schedules, workers
from tenure.store.tables.stats import StatsReader
from tenure.values.findings import Progress, no_note, no_progress
from tenure.values.names import check_kind

ENTRY = (
    *("job_id", "at", "source", "target", "event"),
    *("attempt", "token", "actor", "detail", "reason"),
)
"""The columns of a `Transition` between its position and its lease."""

MAX_DETAILS = 4 * 1024 * 1024
"""Characters of errors that a history shows, of those of its job the newest."""
LEFT_OUT = "(left out, as the errors after this one are long)"

MAX_AGAIN = 20
"""Jobs that are listed as running another one again."""
MAX_RUNNING = 10_000
"""Attempts that are looked at for the oldest one of each queue."""

T = TypeVar("T")

_is_number = re.compile("[0-9]{1,18}").fullmatch


class Reader(ABC):
    """Safe to call from any thread. Every method may raise StoreUnavailable."""

    dialect: Dialect
    heads: str
    """A WITH clause with the table `head`: the first job (queue, run_at) of each lane.

    `{only}` is for a condition that leaves the lanes of one queue. `{others}` is where a search
    for a later queue can be left out then: SQLite would read every pending job for it.
    """
    ahead_sql: str
    """Counts the jobs that are due and before a job (queue, priority, run_at, id)."""

    sees_commits = False
    """Whether `watch` calls after every commit of any process."""
    spares_writer = False
    """Whether a transaction that writes should do no reading that can be done before it."""
    questions: Sequence[audit.AuditQuery]
    """What `violations` asks."""
    more_checks: Sequence[str] = ()
    """What `violations` checks beside the questions of `audit`."""

    def __init__(self) -> None:
        d = self.dialect
        self.stats = StatsReader(self)
        self.hears = False
        """Whether `watch` gets every notification, for all that is known."""
        self._job = selected(d, COLUMNS)
        places = [f"t.{column}" for column in d.order]
        self._position = " || '.' || ".join(places)
        self._order, self._reverse = ", ".join(places), f"{' DESC, '.join(places)} DESC"
        self._entry = f"{self._position}, {selected(d, (*ENTRY, 'lease_id'), 't')}"
        self._ledger = f"{d.table('transition')} AS t"

    # --- executing

    @abstractmethod
    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Execute a statement and return the rows of its answer."""

    def rows_soon(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Execute what reads little, for callers who do not wait long for a silent database."""
        return self.rows(statement, values)

    def rows_by_index(self, statement: str, values: Any = ()) -> list[Any]:
        """Execute what reads the end of the ledger, or jobs in the order of an index."""
        return self.rows(statement, values)

    @abstractmethod
    def close(self) -> None:
        """Close the reading connections."""

    @abstractmethod
    def watch(self, notify: Notify, stop: threading.Event) -> None:
        """Call `notify` until `stop` is set: at the start, and when another process has committed.

        It says what that may be about: work, or a worker whose running job was cancelled.
        """

    def attend(self, needed: bool) -> None:  # noqa: B027 - most have nothing to save
        """Note whether a subscriber waits for more than cancels, so that `watch` must be quick."""

    @abstractmethod
    def read_through(self, statement: str, read: Callable[[Iterable[Any]], T]) -> T:
        """Execute a statement that may take minutes; return what `read` makes of its rows."""

    def violations(
        self, limit: int, progress: Progress = no_progress, seen: Callable[[str], object] = no_note
    ) -> list[tuple[str, str, str]]:
        """Return stored facts that break an invariant: (invariant, job id, what was found).

        Calls `seen` with what `audit.Replay.seen` says of each limit.
        """
        found: list[audit.Finding] = []
        more = ("ticks of schedules", *self.more_checks)
        limited = self.rows(audit.used(self.dialect))
        questions = (*self.questions, *(audit.LIMIT_QUERIES if limited else ()))
        for asked in audit.queries(progress, questions, more):
            read = partial(audit.findings, asked, before=tuple(found), limit=limit)
            found += self.read_through(asked.statement(self.dialect), read)
        if limited:
            replay = audit.Replay()
            again = partial(replay.findings, limit=limit)
            found += self.read_through(audit.starts_and_ends(self.dialect), again)
            for sentence in replay.seen():
                seen(sentence)
        return found + schedules.unrecorded(self)[:limit]

    @staticmethod
    @abstractmethod
    def listing(what: str, query: Query) -> Statement:
        """Select `what` of the jobs of a query, in its order."""

    # --- jobs

    def clock(self) -> datetime:
        d = self.dialect
        return d.to_time(self.rows_soon(f"SELECT {d.time(d.now)}")[0][0])

    def check(self) -> None:
        """Raise StoreUnavailable if the store does not answer or, as far as is known, commit."""
        ((moved,),) = self.rows_soon(f"SELECT {self.dialect.moved}")
        check_moved(moved)

    def get(self, job_id: str) -> Job | None:
        """Return the job with an id, None if there is none."""
        d = self.dialect
        if not d.is_id(job_id):
            return None
        statement = f"SELECT {self._job} FROM {d.table('job')} WHERE id = {d.id_value}"
        found = self.rows_soon(statement, (job_id,))
        return job_of(found[0], d.to_time) if found else None

    def settled(self, job_ids: Collection[str]) -> dict[str, Job | None]:
        """Return each of these jobs that exists, or None in its place while it is not settled."""
        d = self.dialect
        found: dict[str, Job | None] = {}
        ended: list[str] = []
        for job_id, has_ended in self._among(f"{d.id('id')}, finished_at IS NOT NULL", job_ids):
            found[job_id] = None
            if has_ended:
                ended.append(job_id)
        jobs = [job_of(row, d.to_time) for row in self._among(self._job, ended)] if ended else []
        return found | {job.id: job for job in jobs if job.finished_at is not None}

    def statuses(self, job_ids: Collection[str]) -> dict[str, str]:
        """Return the status of each of these jobs that is stored, by id."""
        return dict(self._among(f"{self.dialect.id('id')}, status", job_ids)) if job_ids else {}

    def _among(self, what: str, job_ids: Collection[str]) -> list[Any]:
        d = self.dialect
        ids = d.ids(len(job_ids))
        statement = f"SELECT {what} FROM {d.table('job')} WHERE id IN ({ids})"
        return self.rows_soon(statement, tuple(job_ids))

    def again(self, job_id: str) -> list[str]:
        """Return the ids of the newest jobs that run a job again."""
        d = self.dialect
        where = f"again_of = {d.id_value} ORDER BY created_at DESC LIMIT {MAX_AGAIN}"
        statement = f"SELECT {d.id('id')} FROM {d.table('job')} WHERE {where}"
        return [id for (id,) in self.rows_soon(statement, (job_id,))]

    @abstractmethod
    def some(self, query: Query) -> tuple[list[Job], bool]:
        """Return what `find` would, up to `MAX_BYTES`, and whether there may be more.

        No more than these bytes are loaded, and one job.
        """

    def find(self, query: Query) -> list[Job]:
        """Return the jobs of a query, in its order, without the bounds of `search.py`."""
        rows = self.rows_by_index(*self.listing(self._job, query))
        return [job_of(row, self.dialect.to_time) for row in rows]

    def count(self, query: Query) -> int:
        """Return how many jobs `find` would return."""
        statement, values = self.listing("1", query)
        found = self.rows_by_index(f"SELECT count(*) FROM ({statement}) AS found", values)
        return int(found[0][0])

    def ahead(self, job: Job) -> int:
        """Return how many due jobs of its queue would be claimed before this due job.

        Counts up to one more than MAX_AHEAD.
        """
        place = {"queue": job.queue, "priority": job.priority, "id": job.id}
        place["run_at"] = self.dialect.to_bound(job.run_at)
        return int(self.rows_by_index(self.ahead_sql, place)[0][0])

    def lock_holders(self, job_id: str) -> Sequence[LockHolder]:
        """Return the transactions of other programs that have a job locked, if that can be."""
        return ()

    # --- the ledger

    @property
    def start(self) -> str:
        """The position before every entry of the ledger."""
        return ".".join(["0"] * len(self.dialect.order))

    def numbers(self, position: str, path: str = "$.after") -> tuple[int, ...]:
        """Return the numbers of a position, of `start` if it is empty. Raises InvalidInput."""
        check_kind(position or "", str, "the position of a page", path)
        numbers = (position or self.start).split(".")
        if len(numbers) != len(self.dialect.order) or not all(map(_is_number, numbers)):
            raise InvalidInput("no position in this ledger", path=path)
        return tuple(map(int, numbers))

    def history(
        self, job_id: str, *, last: int | None = None, before: str | None = None
    ) -> list[Transition]:
        """Return the transitions of one job, oldest first, with MAX_DETAILS of their errors.

        Of those before a position, or of all, the `last` so many.
        """
        d, values = self.dialect, list[Any]([job_id])
        if not d.is_id(job_id):
            return []
        others = dict.fromkeys(("seq", *d.order, *ENTRY, "lease_id"))
        del others["detail"]
        newer = "sum(length(coalesce(detail, ''))) OVER (ORDER BY seq DESC)"
        own = (
            f"SELECT {', '.join(others)}, CASE WHEN {newer} <= {MAX_DETAILS} THEN detail"
            f" WHEN detail IS NOT NULL THEN '{LEFT_OUT}' END AS detail"
            f" FROM {d.table('transition')} WHERE job_id = {d.id_value}"
        )
        if before is not None:
            own += f" AND seq < {d.value}"
            values.append(self.numbers(before, "$.before")[-1])
        if last is not None:
            own += f" ORDER BY seq DESC LIMIT {int(last)}"
        rows = self.rows(f"SELECT {self._entry} FROM ({own}) AS t ORDER BY t.seq", values)
        return [self._transition(row) for row in rows]

    def histories(self, job_ids: Sequence[str]) -> dict[str, list[Transition]]:
        """Return the transitions of some jobs, oldest first, by the id of the job."""
        d, found = self.dialect, dict[str, list[Transition]]()
        some = d.ids(len(job_ids))
        where = f"t.job_id IN ({some}) ORDER BY t.job_id, t.seq"
        for entry in self._transitions(where, job_ids) if job_ids else ():
            found.setdefault(entry.job_id, []).append(entry)
        return found

    def ledger(self, after: str, limit: int) -> list[Transition]:
        """Return transitions after a position, complete and in an order that never changes."""
        return self._transitions(self._some_after, (*self.numbers(after), limit))

    @property
    def _some_after(self) -> str:
        """The condition of so many entries (parameter) after a position (parameters), in order."""
        d = self.dialect
        return f"{d.after} AND {d.settled} ORDER BY {self._order} LIMIT {d.value}"

    def _transitions(self, where: str, values: Sequence[Any]) -> list[Transition]:
        rows = self.rows(f"SELECT {self._entry} FROM {self._ledger} WHERE {where}", values)
        return [self._transition(row) for row in rows]

    def _transition(self, row: Sequence[Any]) -> Transition:
        position, job_id, at, *rest = row
        return Transition(str(position), job_id, self.dialect.to_time(at), *rest)

    def ledger_end(self, back: int = 0) -> str:
        """Return the position of the newest entry that `ledger` would return, or `back` before it.

        Where there are fewer entries, that is the start.
        """
        d = self.dialect
        found = self.rows(
            f"SELECT {self._position} FROM {self._ledger} WHERE {d.settled}"
            f" ORDER BY {self._reverse} LIMIT 1 OFFSET {d.value}",
            (back,),
        )
        return str(found[0][0]) if found else self.start

    def transitions(self, after: str, limit: int, wanted: EventFilter) -> LedgerPage:
        """Read up to `limit` entries after a position, as `ledger` has them: those wanted."""
        # The end of a stretch first, then what is in it: nothing is ever added before a position
        # that was read, so both see the same entries.
        d = self.dialect
        start = self.numbers(after)
        stretch = f"SELECT {self._order} FROM {self._ledger} WHERE {self._some_after}"
        end = self.rows(
            f"SELECT {d.place}, count(*) OVER () FROM ({stretch}) AS t"
            f" ORDER BY {self._reverse} LIMIT 1",
            (*start, limit),
        )
        if not end:
            return LedgerPage((), ".".join(map(str, start)), more=False)
        *until, count = end[0]
        where, values = [d.after, d.up_to], [*start, *until]
        for column, value, names in (
            ("t.job_id", d.id_value, wanted.job_id and (wanted.job_id,)),
            ("t.event", d.value, wanted.events),
            ("j.type", d.value, wanted.types),
            ("j.queue", d.value, wanted.queues),
        ):
            if names is not None:
                where.append(f"{column} IN ({', '.join([value] * len(names)) or 'NULL'})")
                values += names
        if wanted.within is not None:
            condition, among = d.in_queues("j.queue", wanted.within)
            where.append(condition)
            values += among
        # The limit shows the planner how few jobs it is to look up.
        rows = self.rows(
            f"SELECT {self._entry}, j.type, j.queue, j.tags FROM {self._ledger} {d.with_job}"
            f" WHERE {' AND '.join(where)} ORDER BY {self._order} LIMIT {d.value}",
            (*values, limit),
        )
        events = [
            LedgerEvent(self._transition(entry), type, queue, read_tags(tags))
            for *entry, type, queue, tags in rows
        ]
        return LedgerPage(events, ".".join(map(str, until)), more=count == limit)

    # --- around jobs

    def queues(self, wanted: QueueQuery = EVERY_QUEUE) -> list[QueueState]:
        """Return the queues of a query that have jobs or settings."""
        return queues.listed(self, wanted)[0]

    def lanes(self, within: Patterns) -> list[str]:
        """Return the queues with pending jobs that fit patterns."""
        condition, values = self.dialect.in_queues("queue", within)
        found = self.rows_by_index(
            f"{queues.heads(self)} SELECT DISTINCT queue FROM head WHERE {condition}", values
        )
        return [queue for (queue,) in found]

    def oldest_running(self, queues: Patterns | None = None) -> dict[str, datetime]:
        """Return by queue when the oldest of the attempts began that run, of `MAX_RUNNING`."""
        d = self.dialect
        condition, values = d.in_queues("queue", queues)
        some = f"SELECT queue, started_at FROM {d.processing} WHERE {condition} LIMIT {MAX_RUNNING}"
        statement = f"SELECT queue, {d.time('min(started_at)')} FROM ({some}) AS job GROUP BY queue"
        return {queue: d.to_time(at) for queue, at in self.rows(statement, values)}

    def late_leases(self, queues: Patterns | None = None) -> int:
        """Return how many leases have run out and were not ended by the sweep yet."""
        d = self.dialect
        late = f"lease_expires_at <= {d.now}"
        condition, values = d.in_queues("queue", queues)
        statement = f"SELECT count(*) FROM {d.processing} WHERE {late} AND {condition}"
        return int(self.rows(statement, values)[0][0])

    def workers(self, queues: Patterns | None = None) -> list[WorkerState]:
        """Return the workers seen in the last ten minutes that take from these queues."""
        return workers.seen(self, queues)
