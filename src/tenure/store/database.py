"""What the store needs of a database, and how each engine spells the statements of both.

Each engine has one `Dialect`. The statements of `tables/` and the searches are written over it;
what an engine does in its own way, above all the hot path, is in the engine's `statements.py`.

A `Database` has a small set of set-based statements, and nothing else. It is called inside one
transaction by one thread (the committer's), `reader.Reader` by any thread outside it. Neither
decides anything: guarded writes report which rows they changed, and `transitions.py` asks the
lifecycle what to do about the rest. Side tables are not in here: see `tables/`, which is written
over `Statements`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from msgspec import Struct

from tenure.errors import StoreMoved, StoreUnavailable, TenureError, WriteRefused
from tenure.lifecycle import Job
from tenure.rules.jobs import CheckedJob
from tenure.rules.reports import ClaimRequest, Lease, Report
from tenure.rules.retention import Cutoffs
from tenure.rules.tokens import ANY_REST, Patterns

if TYPE_CHECKING:
    from tenure.store.tables.stats import StatsWriter


class Dialect(Struct, frozen=True, kw_only=True):
    """What differs between the engines. Names in braces in a template are filled in at use."""

    engine: str  # `sqlite` or `postgres`
    prefix: str  # of the name of every table
    value: str  # a parameter
    id_value: str  # a parameter that is the id of a job or of a bulk action
    id_column: str  # template: a `column` of ids as text
    time_column: str  # template: a `column` of times as `to_time` reads it
    now: str  # the store's clock
    duration: str  # template: what so many `seconds` (SQL) add to a time
    pending: str  # a FROM item: id, queue, priority, run_at and type of the pending jobs
    turns: str  # a FROM item: the pending jobs of queues whose partitions take turns, by partition
    processing: str  # a FROM item: the processing jobs, as `job`
    expiring: str  # FROM ... WHERE and the time at which leases may end, of what the sweep reads
    ruled: str  # a FROM item: a row at least if retention has to go by rules
    late: str  # FROM ... WHERE: one row at least if a job has to expire
    skip_locked: str  # at the end of a SELECT: lock its rows to change them, skip locked ones
    free_to_delete: str  # the same to delete them: skip also what a foreign key holds
    folded: str  # template: whether a `column` in lower case (A to Z only) contains the parameter
    is_id: Callable[[str], bool]  # whether a text can be the id of a stored job
    to_time: Callable[[Any], datetime]  # read a stored time
    to_bound: Callable[[datetime | None], Any]  # write a time with which stored times are compared

    # The rest is for statistics: `t` is an entry of the ledger, `j` its job.
    place: str  # the place of an entry in the ledger, or of `measured`, as a SELECT reads it
    order: Sequence[str]  # the columns of a place
    settled: str  # no entry will be added before `t`
    after: str  # `t` is after a place (parameters)
    up_to: str  # `t` is not after a place (parameters)
    is_at: str  # `measured` is at a place (parameters)
    set_place: str  # put `measured` at a place (parameters)
    since: str  # `t` is after `measured`
    lost: str  # the place of `measured` is none of this ledger
    with_job: str  # join the job of `t`
    minute: str  # the minute of `t`
    millis: str  # template: a `time` in milliseconds
    span: str  # template: the seconds from `start` to `end`
    first_line: str  # the first line of `t.detail`
    last_job: str  # the job of the last of the entries of a group
    json_rows: str  # a FROM item: the rows of one JSON parameter, as `new.value`
    json_objects: str  # template: see `objects`
    tags: str  # a FROM item after `job`: each of its tags, as `one.value`
    hold: str  # at the end of a SELECT: lock its rows
    packs: bool  # whether many rows are better read as one JSON value
    moved: str  # the source of what refuses all writes after `tenure move`, NULL if none does
    broken_value: str  # SQL for the name of a condition on values that a job breaks, or NULL
    hold_jobs: str = ""  # the statement after which no other transaction changes jobs
    hold_starts: str = ""  # the statement after which no other one starts jobs of limited queues
    look: str = ""  # the statement of `duties.look`, where the schema has it

    def table(self, name: str) -> str:
        return self.prefix + name

    def objects(self, table: str, columns: Sequence[str]) -> str:
        """Return a FROM item: the objects of one JSON parameter as rows of a table, `new`."""
        cells = ", ".join(f"value ->> '{column}' AS {column}" for column in columns)
        return self.json_objects.format(table=self.table(table), cells=cells)

    def later(self, seconds: str | int) -> str:
        """Return the time so many seconds after now, NULL if they are NULL."""
        return f"{self.now} + {self.duration.format(seconds=seconds)}"

    def values(self, count: int) -> str:
        """Return a list of parameters."""
        return ", ".join([self.value] * count)

    def ids(self, count: int) -> str:
        """Return a list of parameters that are ids."""
        return ", ".join([self.id_value] * count)

    def in_queues(self, column: str, patterns: Patterns | None) -> tuple[str, list[Any]]:
        """Return the condition that a `column` of queues fits patterns, and its values.

        It says what `tokens.includes` says.
        """
        if patterns is None:
            return "1 = 1", []
        either, values = [], list[Any]()
        for pattern in patterns:
            begins = pattern.endswith(ANY_REST)
            part = f"substr({column}, 1, {len(pattern) - 1})" if begins else column
            either.append(f"{part} = {self.value}")
            values.append(pattern.removesuffix(ANY_REST))
        return f"({' OR '.join(either)})", values

    def pause(self, table: str, where: str) -> str:
        """Return an UPDATE: whether it pauses, by whom, why, the values of `where`, and whether."""
        v = self.value
        return (
            f"UPDATE {self.table(table)} SET paused_at = CASE WHEN {v} THEN {self.now} END,"
            f" paused_by = {v}, pause_reason = {v} WHERE {where} AND (paused_at IS NULL) = {v}"
        )

    def time(self, column: str) -> str:
        return self.time_column.format(column=column)

    def as_id(self, text: str) -> str:
        return self.id_value.replace(self.value, text)

    def id(self, column: str) -> str:
        """Return a column of ids as text."""
        return self.id_column.format(column=column)

    def time_or_none(self, stored: Any) -> datetime | None:
        """Read a stored time that may be NULL."""
        return None if stored is None else self.to_time(stored)


class Reads(Protocol):
    """A connection that executes statements in a dialect."""

    dialect: Dialect

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Execute a statement and return the rows of its answer."""


class Statements(Reads, Protocol):
    """A connection that also writes, inside a transaction."""

    def changed(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Execute a statement and return how many rows it changed."""


# --- the database ---------------------------------------------------------------------------------

T = TypeVar("T")


class Trouble(StrEnum):
    """What an exception of a database means for the transaction it ended."""

    RETRY = "retry"  # nothing was committed and the same work may succeed now
    BUSY = "busy"  # others held the database for as long as one waits for them
    UNAVAILABLE = "unavailable"  # the database is away; the outcome may be unknown
    FULL = "full"  # its disk is full, and nothing was committed
    UNCONFIRMED = "unconfirmed"  # committed, but it may still be lost: a repetition would hide that
    MOVED = "moved"  # the jobs are in another database
    REFUSED = "refused"  # by a constraint or a trigger: the work itself cannot succeed
    BUG = "bug"  # nor can this, and it is no error of the database


FULL = "the disk of the database is full, this was not written: free space there, and send it again"
DROPPED = "a trigger that is not from Tenure dropped a new row"
DROPPED_CHANGE = (
    "a trigger that is not from Tenure dropped a change of a job, so nothing was written: let it "
    "pass such changes, or raise an error, which says why"
)
LOCKED = "another transaction has locked what this has to change, so nothing was written"
WHO_LOCKED = (
    "`tenure doctor` lists the transactions that use the tables of jobs for long, and `tenure "
    "explain ID` names who has a due job locked"
)
LOCK_TIMEOUT, CANCELED = "55P03", "57014"
"""The SQLSTATEs of PostgreSQL for a lock, and a statement, that took longer than allowed."""
ELSEWHERE = "tenure: the jobs are elsewhere: "
"""How the message begins with which a database refuses every write after `tenure move`."""


def check_moved(source: str | None) -> None:
    """Raise StoreUnavailable if `tenure move` lets nothing be written here.

    `source` is the SQL of what refuses it. The address that it names is for the log, not for who
    asks over HTTP.
    """
    if source is not None:
        message = source.partition(ELSEWHERE)[2].rpartition("'")[0]
        error = StoreUnavailable(message.replace("''", "'"))
        error._known = (
            "the jobs are in another database, as `tenure move` has noted here: "
            "the log of this program names it"
        )
        raise error


def waited_for_a_lock(error: BaseException) -> bool:
    """Whether the database gave up because another transaction has something locked."""
    return getattr(error, "sqlstate", None) == LOCK_TIMEOUT


def answer_to(trouble: Trouble, error: BaseException) -> TenureError:
    """Return a new exception for a caller whose work an exception of the database has ended.

    Each caller needs one: they add notes and tracebacks to it.
    """
    if trouble is Trouble.MOVED:
        return StoreMoved(str(error).removeprefix(ELSEWHERE).partition("\n")[0])
    if trouble is Trouble.REFUSED:  # what follows the first line may quote the row
        text = str(error).partition("\n")[0]
        return WriteRefused(f"the database refused this, so nothing was written: {text}")
    code = getattr(error, "sqlstate", None)
    if waited_for_a_lock(error) and trouble is Trouble.RETRY:
        answer = StoreUnavailable(f"{LOCKED}: {WHO_LOCKED}")
        answer._is_locked = True
        answer._known = f"{LOCKED}; send it again later"
        return answer
    # What a server adds to its message quotes statements and functions.
    said = getattr(getattr(error, "diag", None), "message_primary", None) or str(error)
    why = said or type(error).__name__  # as of a MemoryError
    hint = f". If it waited for a lock: {WHO_LOCKED}" if code == CANCELED else ""
    answer = StoreUnavailable(f"the database failed: {why}{hint}")
    if trouble is Trouble.FULL:
        answer._known = FULL
    answer._held_here = getattr(error, "held_here", False)
    return answer


class Passed(NamedTuple):
    """The last workflow that retention passes over, and since when it passes over some."""

    since: datetime
    finished_at: Any
    id: str


class Left:
    """How many rows a duty passes over, because the database refused them in calls before.

    A duty reads the first rows that are due, so refused ones could fill each batch. Where they fill
    one, the next call continues behind them, and after the last row they are tried again.
    """

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}

    def of(self, duty: str) -> int:
        """Return after how many rows the batch of a duty begins."""
        return self._rows.get(duty, 0)

    def note(self, duty: str, *, refused: int, full: bool) -> None:
        """Note how many rows of a batch were refused, and if it had as many as a batch may have."""
        self._rows[duty] = self.of(duty) + refused if full else 0


class Alone(Protocol):
    """What is one statement and one transaction, for a database a round trip away."""

    def exchange_alone(
        self, reports: Sequence[Report], claim: ClaimRequest | None
    ) -> tuple[set[str], list[Lease] | None, float | None] | None:
        """Complete attempts and claim jobs: the lease ids that were completed, and the leases.

        The third is the seconds until the next job is due, if there is none and that is known.

        None instead of leases if a claim needs a closer look, and nothing was claimed. None
        instead of all if nothing was done at all.
        """

    def read_alone(self, act: Callable[[Any], T]) -> T:
        """Call `act`, which reads with one statement, outside any transaction."""


class Database(Statements, Protocol):
    """The writing side: one connection, used by one thread."""

    full_at: float
    """When a write found the disk full last, in monotonic seconds."""

    passed: dict[Sequence[str], Passed]
    """By what their jobs ended as: up to where workflows could not be deleted, lately."""

    left: Left
    """What duties pass over, because the database refused it."""

    @property
    def alone(self) -> Alone | None:
        """Claims in one statement; None if there is one writer, without round trips or locks.

        Without it `enqueue_alone` takes one job.
        """

    @property
    def stats(self) -> StatsWriter:
        """What adds the ledger to the statistics."""

    def begin(self, *, limits: bool = False) -> None:
        """Start a write transaction, connecting first if need be.

        One that sets `limits` of queues has to say so: it locks before all others who do.
        """

    def commit(self) -> None:
        """Commit; when this returns the transaction is on disk."""

    def rollback(self) -> None:
        """Undo the transaction; never raises, drops the connection if it is broken."""

    def savepoint(self) -> None:
        """Mark a place inside the transaction to come back to."""

    def undo_to_savepoint(self) -> None:
        """Undo everything since the last `savepoint`."""

    def now(self) -> datetime:
        """Return the store's clock."""

    def enqueue_alone(
        self, checked_jobs: Sequence[CheckedJob], *, whole: bool
    ) -> Mapping[str, Job]:
        """Add jobs by one statement, a whole transaction. Returns id -> job of each added job.

        It leaves out what needs a closer look: jobs whose id or key is there already, or (perhaps
        with others) whose queue has a limit or that are unique. If `whole`, then either all are
        added or none. It may leave all of them out.
        """

    def insert(
        self, checked_jobs: Sequence[CheckedJob], more: Sequence[str] = ()
    ) -> Mapping[str, Job]:
        """Add the jobs whose id and key are new; id -> job for exactly those.

        `more` names columns that are written beside those of every job.
        """

    def known(self, checked_jobs: Sequence[CheckedJob]) -> Mapping[str, tuple[Job, str | None]]:
        """Return the job and fingerprint of each that is there already, by id or by key."""

    def limits(self, queues: Collection[str]) -> Sequence[tuple[str, int]]:
        """Return the queues that have a limit, with it: a count after this holds until the end."""

    def complete(self, reports: Sequence[Report]) -> set[str]:
        """Complete each attempt whose lease is held; return the lease ids that were."""

    def claim(self, request: ClaimRequest, *, wary: bool = False) -> list[Lease]:
        """Lease due pending jobs of queues that are not paused, most urgent first.

        A `wary` one leaves jobs that the database does not let start: see `refusals`.
        """

    def next_due(self, request: ClaimRequest) -> float | None:
        """Return what `lanes.next_due` says; inside a transaction or outside."""

    def keep_traces(self, traces: Sequence[tuple[str, str]]) -> None:
        """Keep (job id, traceparent) of jobs that were just added."""

    def traces(self, job_ids: Sequence[str]) -> Mapping[str, str]:
        """Return job id -> traceparent for the jobs that have one."""

    def hold(self, job_ids: Iterable[str]) -> None:
        """Lock jobs, in the order of their ids, until the end of the transaction."""

    def lock(self, job_ids: Sequence[str]) -> Mapping[str, Job]:
        """Load jobs for changing, locked until the end of the transaction."""

    def busy(self, job_ids: Sequence[str]) -> set[str]:
        """Return the jobs that another transaction has locked; lock the others without waiting."""

    def lock_expired(self, limit: int, after: int = 0) -> list[Job]:
        """Load and lock processing jobs whose lease has run out, oldest first.

        The first ones are left out, as many as `after` says.
        """

    def lock_late(self, limit: int, after: int = 0) -> list[Job]:
        """Load and lock waiting and pending jobs whose `start_by` has passed, as `lock_expired`."""

    def save(self, changes: Sequence[tuple[Job, Job]], more: Sequence[str] = ()) -> int:
        """Write (before, after) pairs, each only if the row still is `before`; return how many.

        `more` names columns that are written beside those of every transition.
        """

    def settled_as(self, leases: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], str]:
        """Return (job id, lease id) -> the event that ended that lease, from the ledger."""

    def renew(self, leases: Sequence[tuple[str, str]], lease_seconds: float) -> set[str]:
        """Extend the leases that are held, never shortening one; return their lease ids."""

    def delete_settled(
        self, cutoffs: Cutoffs, until: int, place: Sequence[int], limit: int
    ) -> tuple[Counter[tuple[str, str, str]], int, Sequence[tuple[Any, TenureError]]]:
        """Delete up to `limit` jobs that settled before their cutoff, and their ledger.

        Only jobs that settled at `until` (milliseconds) or before, and without an entry after
        `place`. Returns how many of a status, queue and type were deleted, how many jobs were put
        aside because their rule keeps them longer or the database refuses to delete them (what is
        behind them may come next), and what it refuses, each with its error.
        """

    def trouble(self, error: Exception) -> Trouble:
        """Return what an exception that ended a transaction means."""

    def announce(self) -> None:
        """Hint to other processes that there may be work; outside any transaction."""

    def tidy(self, others: int = 0) -> None:
        """Do housekeeping after a commit (checkpoints), and `others` of other connections."""

    def rest(self) -> None:
        """Give back what an idle connection costs the server, after some time without use."""

    def close(self) -> None:
        """Close the writing connection."""
