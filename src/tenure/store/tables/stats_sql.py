"""The statements of the statistics, over the dialect of an engine; see `stats.py`.

In them `t` is an entry of the ledger and `j` its job.
"""

from __future__ import annotations

from collections.abc import Sequence

from tenure.lifecycle import FAILURES
from tenure.rules.stats import BUCKETS
from tenure.store.database import Dialect

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


def end(d: Dialect) -> str:
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


def sums(d: Dialect) -> str:
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


def failures(d: Dialect) -> str:
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
