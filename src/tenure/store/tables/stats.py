"""What the ledger adds up to: counts, activity, totals and kinds of failures.

Nothing is counted while jobs change. Afterwards a *batch* of the ledger, from where the last one
ended, is added up in one statement on a reading connection. One transaction adds the sums to a few
small tables and keeps the place where the next batch starts, unless another process has changed
that place. So each entry counts exactly once, however many processes do this and whenever they die.

The tally (jobs by status, queue and type) is exact at any moment: what it says of that place, and
the transitions since, are read in one statement.

In the statements `t` is an entry of the ledger and `j` its job.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from tenure import failpoints
from tenure.lifecycle import FAILURES
from tenure.rules.stats import BUCKETS, Activity, Count, FailureGroup, Total
from tenure.rules.tokens import Patterns
from tenure.store.database import Dialect, Statements
from tenure.store.rows import as_json
from tenure.values.ids import EPOCH

if TYPE_CHECKING:
    from tenure.store.database import Database
    from tenure.store.reader import Reader

MAX_UNCOUNTED = 200_000
"""Transitions since the tally from which on it is faster to count the jobs themselves."""
MIN_UNCOUNTED = 20_000
"""Transitions up to which it is fast enough to count them, however few jobs there are."""
MAX_LINE = 1_000
"""Characters of the first line of an error."""

WAITED = "claimed"
RAN = ("completed", *FAILURES)
CANCELLED = "cancelled"
"""Ends an attempt too, if the job was processing. A pending job has no time that could count."""
_ran = ", ".join(f"'{event}'" for event in RAN)
_failed = ", ".join(f"'{event}'" for event in FAILURES)

SUMS = ("transitions", "seconds", *(f"bucket_{n}" for n in range(len(BUCKETS))))
"""The columns of `activity` and `total` that are added up."""
COUNTED = ("status", "queue", "type")
_TEXTS = {*COUNTED, "event", "error", "last_job_id"}


def cells(columns: Sequence[str]) -> str:
    """A select list that reads these columns from the cells of a row of `json_rows`."""
    types = {**dict.fromkeys(_TEXTS, "text"), "seconds": "double precision"}
    return ", ".join(
        f"CAST(new.value ->> {n} AS {types.get(name, 'bigint')})" for n, name in enumerate(columns)
    )


# --- from the ledger


def end_sql(d: Dialect) -> str:
    """The last place of the ledger."""
    newest = ", ".join(f"t.{column} DESC" for column in d.order)
    return f"SELECT {d.place} FROM {d.table('transition')} AS t ORDER BY {newest} LIMIT 1"


def next_entry(d: Dialect) -> str:
    """The time of the first entry after a place."""
    order = ", ".join(f"t.{column}" for column in d.order)
    return (
        f"SELECT {d.millis.format(time='t.at')} FROM {d.table('transition')} AS t"
        f" WHERE {d.after} ORDER BY {order} LIMIT 1"
    )


def batch_end(d: Dialect) -> str:
    """Where the next batch ends: its last entry, how many there are, and their latest time."""
    order = ", ".join(d.order)
    back = ", ".join(f"batch.{column} DESC" for column in d.order)
    return f"""
WITH batch AS MATERIALIZED (
    SELECT {order}, at FROM {d.table("transition")} AS t WHERE {d.after} AND {d.settled}
    ORDER BY {order} LIMIT {d.value}
)
SELECT {d.place}, (SELECT count(*) FROM batch),
    (SELECT {d.millis.format(time="max(at)")} FROM batch)
FROM batch ORDER BY {back} LIMIT 1
"""


def sums_sql(d: Dialect) -> str:
    """The transitions between two places.

    How long a job waited for a claim is known as long as its row is of that attempt: a retry
    changes its `run_at`. When an attempt started is in the row as long, and after that in the
    ledger.
    """
    started = (
        "CASE WHEN j.token = t.token THEN j.started_at ELSE (SELECT c.at"
        f" FROM {d.table('transition')} AS c WHERE c.job_id = t.job_id"
        f" AND c.token = t.token AND c.event = '{WAITED}' LIMIT 1) END"
    )
    bounds = enumerate(BUCKETS[:-1])
    classes = " ".join(f"WHEN seconds <= {bound} THEN {n}" for n, bound in bounds)
    # Materialized, or the seconds would be computed again for each class.
    return f"""
WITH timed AS MATERIALIZED (
    SELECT {d.minute} AS minute, j.type, j.queue, t.event, t.source, t.target,
        CASE WHEN t.event = '{WAITED}' AND j.token = t.token AND j.event <> 'retried'
                AND j.run_at <= t.at THEN {d.span.format(start="j.run_at", end="t.at")}
            WHEN t.event IN ({_ran}) OR t.event = '{CANCELLED}' AND t.source = 'processing'
                THEN {d.span.format(start=started, end="t.at")}
        END AS seconds
    FROM {d.table("transition")} AS t {d.with_job} WHERE {d.after} AND {d.up_to}
)
SELECT minute, type, queue, event, source, target,
    CASE WHEN seconds >= 0 THEN CASE {classes} ELSE {len(BUCKETS) - 1} END END AS bucket,
    count(*), sum(seconds)
FROM timed GROUP BY 1, 2, 3, 4, 5, 6, 7
"""


def failures_sql(d: Dialect) -> str:
    """The attempts that failed between two places, by type, queue and first line."""
    time = d.millis.format(time="t.at")
    return f"""
SELECT j.type, j.queue, substr({d.first_line}, 1, {MAX_LINE}) AS line, count(*),
    min({time}), max({time}), {d.last_job}
FROM {d.table("transition")} AS t {d.with_job}
WHERE t.event IN ({_failed}) AND {d.after} AND {d.up_to} GROUP BY 1, 2, 3
"""


def until(d: Dialect) -> str:
    """The time up to which the ledger has been added up: now, unless there is more."""
    now = d.millis.format(time=d.now)
    return (
        f"SELECT CASE WHEN EXISTS (SELECT 1 FROM {d.table('transition')} AS t"
        f" WHERE {d.since}) THEN millis ELSE {now} END FROM {d.table('measured')}"
    )


# --- the counts: the tally and the transitions since


def is_far(d: Dialect) -> str:
    """Whether so many transitions came since the tally that counting the jobs is faster.

    A transition takes nearly twice as long as a job.
    """
    tallied = f"(SELECT coalesce(sum(jobs), 0) FROM {d.table('tally')})"
    return f"""
SELECT {d.lost} OR count(*) > {MAX_UNCOUNTED}
    OR (count(*) > {MIN_UNCOUNTED} AND count(*) > {tallied}) FROM (
    SELECT 1 FROM {d.table("transition")} AS t WHERE {d.since} LIMIT {MAX_UNCOUNTED + 1}) AS entry
"""


def counts(d: Dialect) -> str:
    """Jobs by status, queue and type: the tally with the transitions since."""
    return f"""
SELECT status, queue, type, CAST(sum(jobs) AS bigint) AS jobs FROM ({parts(d)}) AS counted
GROUP BY status, queue, type HAVING sum(jobs) <> 0 ORDER BY status, queue, type
"""


def parts(d: Dialect) -> str:
    """What `counts` adds up."""
    return f"""
WITH changes AS MATERIALIZED (
    SELECT t.source, t.target, j.queue, j.type, count(*) AS transitions
    FROM {d.table("transition")} AS t {d.with_job} WHERE {d.since}
    GROUP BY t.source, t.target, j.queue, j.type
)
SELECT status, queue, type, jobs FROM {d.table("tally")}
UNION ALL SELECT target, queue, type, transitions FROM changes
UNION ALL SELECT source, queue, type, -transitions FROM changes WHERE source IS NOT NULL
"""


def filled(d: Dialect, statement: str) -> str:
    """A statement with the counts put in for `{counts}`, and what they add up for `{parts}`."""
    return statement.replace("{counts}", counts(d)).replace("{parts}", parts(d))


def miscounts(d: Dialect) -> str:
    """Where the counts differ from the jobs."""
    return f"""
SELECT status, queue, type, sum(counted) AS counted, sum(jobs) AS jobs FROM (
    SELECT status, queue, type, jobs AS counted, 0 AS jobs FROM ({counts(d)}) AS counts
    UNION ALL SELECT status, queue, type, 0, count(*) FROM {d.table("job")}
        GROUP BY status, queue, type
) AS difference GROUP BY status, queue, type HAVING sum(counted) <> sum(jobs)
"""


# --- adding; rows in the same order everywhere, or two writers could wait for each other


def _upsert(d: Dialect, table: str, key: Sequence[str], others: Sequence[str], change: str) -> str:
    """Add the rows of a JSON parameter; `change` is for rows whose `key` is there."""
    columns = (*key, *others)
    order = ", ".join(str(n + 1) for n in range(len(key)))
    return (
        f"INSERT INTO {d.table(table)} AS old ({', '.join(columns)})"
        f" SELECT {cells(columns)} FROM {d.json_rows} WHERE true ORDER BY {order}"
        f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {change}"
    )


_SUMMED = {
    "tally": (COUNTED, ("jobs",)),
    "activity": (("minute", "type", "queue", "event"), SUMS),
    "total": (("type", "queue", "event"), SUMS),
}
"""Table -> its key, and the columns that are added up."""


def add(d: Dialect, table: str) -> str:
    """Add rows to a table of sums."""
    key, sums = _SUMMED[table]
    change = ", ".join(f"{name} = old.{name} + excluded.{name}" for name in sums)
    return _upsert(d, table, key, sums, change)


def add_failures(d: Dialect) -> str:
    later = "excluded.last_seen >= old.last_seen"
    change = (
        "attempts = old.attempts + excluded.attempts,"
        " first_seen = CASE WHEN excluded.first_seen < old.first_seen"
        " THEN excluded.first_seen ELSE old.first_seen END,"
        f" last_seen = CASE WHEN {later} THEN excluded.last_seen ELSE old.last_seen END,"
        f" last_job_id = CASE WHEN {later} THEN excluded.last_job_id ELSE old.last_job_id END"
    )
    others = ("attempts", "first_seen", "last_seen", "last_job_id")
    return _upsert(d, "failure", ("type", "queue", "error"), others, change)


# --- batches --------------------------------------------------------------------------------------

MAX_ENTRIES = 2_000
"""Ledger entries in a batch."""
MAX_SERIES = 200
"""Pairs of type and queue with separate activity and totals. The rest is `OTHER`."""
OTHER = "(other)"
"""No type and no queue can have this name."""
MINUTES_KEPT = 25 * 60
MAX_FAILURES = 200
"""Kinds of failures that are kept."""
MAX_KIND = 200
"""Characters of a kind."""
VARIES = "…"

Place = tuple[Any, ...]
"""Of an entry in the ledger."""

Rows = Callable[[str, Sequence[Any]], list[Any]]
"""Executes a statement with its values and returns the rows of its answer."""


class StatsBatch(Struct, frozen=True):
    """The sums of a part of the ledger: after `start`, up to and including `end`."""

    start: Place
    end: Place
    transitions: int
    millis: int  # the latest time in it
    sums: Sequence[Sequence[Any]]
    """Rows of minute, type, queue, event, source, target, bucket, transitions, seconds."""
    failures: Sequence[Sequence[Any]]
    """Rows of type, queue, first line, attempts, first time, last time, last job."""


def _answer(
    d: Dialect, rows: Rows, statement: str, columns: int, values: Sequence[Any] = ()
) -> list[Any]:
    """Return the rows of a statement, read as one JSON value where the dialect prefers that."""
    if not d.packs:
        return rows(statement, values)
    names = ", ".join(f"c{n}" for n in range(columns))
    packed = f"SELECT json_group_array(json_array({names})) FROM answer"
    ((text,),) = rows(f"WITH answer ({names}) AS ({statement}) {packed}", values)
    return _decode(text)


_decode = msgspec.json.Decoder(list[list[Any]]).decode


def _measured(d: Dialect, rows: Rows, *, hold: bool = False) -> Sequence[Any]:
    """Return the place up to which the ledger is added up, and its time."""
    statement = f"SELECT {d.place}, millis FROM {d.table('measured')}{d.hold * hold}"
    (place,) = rows(statement, ())
    return tuple(place)


def next_batch(
    d: Dialect, rows: Rows, *, hold: bool = False, known: Place | None = None
) -> tuple[Sequence[Any], StatsBatch | None]:
    """Return the place up to which the ledger is added up, with its time, and the batch after it.

    `hold` locks the place until the end of the transaction. There is no batch if the place is not
    the `known` one, because then another process does this work.
    """
    place = _measured(d, rows, hold=hold)
    start = tuple(place[:-1])
    if known is not None and start != known:
        return place, None
    ends = rows(batch_end(d), (*start, MAX_ENTRIES))
    if not ends:
        return place, None
    *end, transitions, millis = ends[0]
    between = (*start, *end)
    sums = _answer(d, rows, sums_sql(d), 9, between)
    failed = any(event in FAILURES for _, _, _, event, *_ in sums)
    failures = _answer(d, rows, failures_sql(d), 7, between) if failed else []
    return place, StatsBatch(start, tuple(end), transitions, millis, sums, failures)


def add_next(
    db: Database, known: Place | None, read: tuple[Place, StatsBatch | None] | None
) -> tuple[Place, int]:
    """Add the next batch to the tables; return the place up to which all is added, and how many.

    `read` is that batch, if it is read already.
    """
    if read is None:
        (*at, _), batch = next_batch(db.dialect, db.rows, known=known)
        read = (tuple(at), batch)
    failpoints.hit("measure.between_read_and_write")
    place, batch = read
    if batch is None or not db.stats.add(batch, db.now()):
        return place, 0
    return batch.end, batch.transitions


def reach(db: Database) -> tuple[Place, timedelta]:
    """Return the last place of the ledger, and how far the statistics are behind if they are."""
    d = db.dialect
    (end,) = db.rows(end_sql(d))
    *_, millis = _measured(d, db.rows)
    return tuple(end), db.now() - EPOCH - timedelta(milliseconds=millis)


class StatsReader:
    """What is read: what must go by an index by `rows_by_index`, most of a table by `rows`."""

    def __init__(self, read: Reader) -> None:
        self._read = read
        self._dialect = read.dialect

    def counts(self) -> list[Count]:
        """Return the jobs by status, queue and type, exact at this moment."""
        return [Count(*row) for row in self.counted("{counts}")]

    def counted(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Execute a statement with the counts put in for `{counts}`, or `{parts}` of counts.

        They are counted the faster way.
        """
        d = self._dialect
        ((far,),) = self._read.rows_by_index(is_far(d))
        if not far:
            return self._read.rows_by_index(filled(d, statement), values)
        plain = (
            f"SELECT status, queue, type, count(*) AS jobs FROM {d.table('job')}"
            " GROUP BY status, queue, type ORDER BY status, queue, type"
        )
        return self._read.rows(re.sub("{counts}|{parts}", plain, statement), values)

    def next_batch(self, known: Place | None) -> tuple[Place, StatsBatch | None]:
        """Return the place up to which the ledger is added up, and the next batch of it.

        There is no batch if nothing is new, or if the place is not the `known` one.
        """
        (*place, _), batch = next_batch(self._dialect, self._read.rows_by_index, known=known)
        return tuple(place), batch

    def activity(self, minutes: int) -> list[Activity]:
        """Return the counts of transitions of the last minutes. Later entries may not be in yet."""
        d = self._dialect
        key = ("minute", "type", "queue", "event")
        now = d.millis.format(time=d.now)
        where = f"WHERE minute > {now} / 60000 - {d.value}"
        found = self._sums(self._read.rows_by_index, "activity", key, where, (minutes,))
        return [Activity(*(*row, _time(minute * 60_000))) for minute, *row in found]

    def totals(self) -> list[Total]:
        """Return all transitions that are added up."""
        found = self._sums(self._read.rows, "total", ("type", "queue", "event"))
        return [Total(*row) for row in found]

    def _sums(
        self, rows: Rows, table: str, key: Sequence[str], where: str = "", values: Place = ()
    ) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a table of sums, in the order of its key; the last field: buckets."""
        columns = (*key, *SUMS)
        statement = (
            f"SELECT {', '.join(columns)} FROM {self._dialect.table(table)} {where}"
            f" ORDER BY {', '.join(key)}"
        )
        for row in _answer(self._dialect, rows, statement, len(columns), values):
            at = len(row) - len(BUCKETS)
            yield (*row[:at], tuple(row[at:]))

    def failures(self, limit: int, queues: Patterns | None = None) -> list[FailureGroup]:
        """Return the kinds of failures seen last. The latest failures may not be in yet."""
        d = self._dialect
        where, values = d.in_queues("queue", queues)
        statement = (
            "SELECT type, queue, error, attempts, first_seen, last_seen, last_job_id"
            f" FROM {d.table('failure')} WHERE {where}"
            f" ORDER BY last_seen DESC, type, queue, error LIMIT {d.value}"
        )
        found = self._read.rows(statement, (*values, limit))
        return [
            FailureGroup(type, queue, error, attempts, _time(first), _time(last), job_id)
            for type, queue, error, attempts, first, last, job_id in found
        ]

    def until(self) -> datetime | None:
        """Return up to when the ledger is added up, None if not even its first entry is."""
        ((millis,),) = self._read.rows_by_index(until(self._dialect))
        return _time(millis) if millis else None


def _time(millis: int) -> datetime:
    return EPOCH + timedelta(milliseconds=millis)


class StatsWriter:
    """What is written, inside the transaction of a connection."""

    def __init__(self, db: Statements) -> None:
        self._db = db
        self._dialect = db.dialect
        self._series: set[tuple[str, str]] = set()

    def add(self, batch: StatsBatch, now: datetime) -> bool:
        """Add a batch to the tables. Returns False if another process has, and changes nothing."""
        d, changed = self._dialect, self._db.changed
        advance = (
            f"UPDATE {d.table('measured')} SET {d.set_place},"
            f" millis = CASE WHEN millis < {d.value} THEN {d.value} ELSE millis END"
            f" WHERE {d.is_at}"
        )
        if changed(advance, (*batch.end, batch.millis, batch.millis, *batch.start)) != 1:
            return False
        self._count(tallied(batch.sums))
        oldest = int((now - EPOCH).total_seconds()) // 60 - MINUTES_KEPT
        by_minute, in_all = added(batch.sums, self._separate(batch.sums), oldest)
        changed(add(d, "total"), (as_json(in_all),))
        if by_minute:
            changed(add(d, "activity"), (as_json(by_minute),))
        changed(f"DELETE FROM {d.table('activity')} WHERE minute < {d.value}", (oldest,))
        if batch.failures:
            changed(add_failures(d), (as_json(grouped(batch.failures)),))
            table = d.table("failure")
            key = "type, queue, error"
            kept = f"SELECT {key} FROM {table} ORDER BY last_seen DESC, {key} LIMIT {MAX_FAILURES}"
            changed(f"DELETE FROM {table} WHERE ({key}) NOT IN ({kept})")
        return True

    def catch_up(self, now: datetime) -> Sequence[Any]:
        """Add the next batch in this transaction; return the place and time reached then.

        The time is now if no entry follows. No other transaction changes the place before this one
        ends.
        """
        d, rows = self._dialect, self._db.rows
        (*place, millis), batch = next_batch(d, rows, hold=True)
        if batch is not None and self.add(batch, now):
            place, millis = [*batch.end], max(batch.millis, millis)
        if not rows(next_entry(d), place):
            millis = max((now - EPOCH) // timedelta(milliseconds=1), millis)
        return (*place, millis)

    def take_out(self, jobs: Mapping[tuple[str, str, str], int]) -> None:
        """Take deleted jobs out of the tally, by status, queue and type."""
        self._count({key: -count for key, count in jobs.items()})

    def recount(self) -> int:
        """Make the counts agree with the jobs; return how many were wrong. Other writers wait."""
        d = self._dialect
        _measured(d, self._db.rows, hold=True)
        return self._db.changed(
            f"INSERT INTO {d.table('tally')} AS old (status, queue, type, jobs)"
            f" SELECT status, queue, type, jobs - counted FROM ({miscounts(d)}) AS wrong"
            " WHERE true ON CONFLICT (status, queue, type) DO UPDATE"
            " SET jobs = old.jobs + excluded.jobs"
        )

    def _count(self, jobs: Mapping[tuple[str, str, str], int]) -> None:
        d = self._dialect
        rows = as_json([(*key, count) for key, count in jobs.items() if count])
        self._db.changed(add(d, "tally"), (rows,))
        self._db.changed(
            f"DELETE FROM {d.table('tally')} WHERE jobs = 0 AND (status, queue, type) IN"
            f" (SELECT {cells(COUNTED)} FROM {d.json_rows})",
            (rows,),
        )

    def _separate(self, sums: Iterable[Sequence[Any]]) -> set[tuple[str, str]]:
        """Return the pairs of type and queue that are counted separately, new ones included."""
        met = {(type, queue) for _, type, queue, *_ in sums}
        if met - self._series:
            every = f"SELECT DISTINCT type, queue FROM {self._dialect.table('total')}"
            found = _answer(self._dialect, self._db.rows, every, 2)
            self._series = {(type, queue) for type, queue in found}
            room = max(MAX_SERIES - len(self._series), 0)
            return self._series | set(sorted(met - self._series)[:room])
        return self._series


def tallied(sums: Iterable[Sequence[Any]]) -> Mapping[tuple[str, str, str], int]:
    """Return how transitions change the tally: (status, queue, type) -> jobs more."""
    jobs: Counter[tuple[str, str, str]] = Counter()
    for _, type, queue, _, source, target, _, transitions, _ in sums:
        jobs[target, queue, type] += transitions
        if source is not None:
            jobs[source, queue, type] -= transitions
    return jobs


def added(
    sums: Iterable[Sequence[Any]], separate: set[tuple[str, str]], oldest: int
) -> tuple[list[Sequence[Any]], list[Sequence[Any]]]:
    """Return what transitions add to the minutes from `oldest` on and to the totals, as rows."""
    minutes: dict[tuple[Any, ...], list[Any]] = {}
    in_all: dict[tuple[Any, ...], list[Any]] = {}
    for minute, type, queue, event, _, _, bucket, transitions, seconds in sums:
        series = (type, queue) if (type, queue) in separate else (OTHER, OTHER)
        rows = [in_all.setdefault((*series, event), [0, 0.0, *_none])]
        if minute >= oldest:
            rows.append(minutes.setdefault((minute, *series, event), [0, 0.0, *_none]))
        for row in rows:
            row[0] += transitions
            if bucket is not None:
                row[1] += seconds
                row[2 + bucket] += transitions
    return [(*k, *v) for k, v in minutes.items()], [(*k, *v) for k, v in in_all.items()]


_none = (0,) * len(BUCKETS)


def grouped(failures: Iterable[Sequence[Any]]) -> list[Sequence[Any]]:
    """Return failures by type, queue and kind, as rows."""
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for type, queue, line, attempts, first, *last in failures:
        group = groups.setdefault((type, queue, kind_of(line or "")), [0, first, *last])
        group[0] += attempts
        group[1] = min(group[1], first)
        group[2:] = max(group[2:], last)
    return [(*key, *group) for key, group in groups.items()]


_varying = re.compile(
    r"""
    '[^']*' | "[^"]*"                                   # what is quoted
    | \d{4}-\d\d-\d\d(?:[T\ ][\d:.]+(?:Z|[+-]\d\d:?\d\d)?)?  # a date, with a time or without
    | \b0x[0-9a-fA-F]+\b
    | \b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b
    | \b(?=[a-fA-F]*\d)[0-9a-fA-F]{8,}\b                # an address, a digest, part of an id
    | \d+(?:[.,:]\d+)*                                  # a number, a duration, an IP address
    """,
    re.VERBOSE,
)


@lru_cache(1_000)
def kind_of(error: str) -> str:
    """The first line of an error with everything replaced that varies from one to the next."""
    line = error.partition("\n")[0].strip()
    return _varying.sub(VARIES, line)[:MAX_KIND]
