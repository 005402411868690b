"""The statements of the statistics, over the dialect of an engine; see `stats.py`.

In them `t` is an entry of the ledger and `j` its job.
"""

from __future__ import annotations

from collections.abc import Sequence

from tenure.jobs.stats import BUCKETS
from tenure.store.dialect import Dialect

MAX_UNCOUNTED = 200_000
"""Transitions since the tally from which on it is faster to count the jobs themselves."""
MAX_FAILURES = 200
"""Kinds of failures that are kept."""
MAX_LINE = 1_000
"""Characters of the first line of an error."""

WAITED = "claimed"
FAILED = ("failed", "lease_expired")
RAN = ("completed", *FAILED)
CANCELLED = "cancelled"
"""Ends an attempt too, if the job was processing. A pending job has no time that could count."""
_ran = ", ".join(f"'{event}'" for event in RAN)
_failed = ", ".join(f"'{event}'" for event in FAILED)

_bucket_names = tuple(f"bucket_{n}" for n in range(len(BUCKETS)))
_sums = ("transitions", "seconds", *_bucket_names)
_sum_types = ("bigint", "double precision", *("bigint",) * len(BUCKETS))


def _cells(*types: str) -> str:
    return ", ".join(f"CAST(new.value ->> {n} AS {type})" for n, type in enumerate(types))


def packed(d: Dialect, statement: str, columns: int) -> str:
    """Return a query that answers with one JSON value, where the dialect prefers that."""
    if not d.packs:
        return statement
    names = ", ".join(f"c{n}" for n in range(columns))
    return (
        f"WITH answer ({names}) AS ({statement})"
        f" SELECT json_group_array(json_array({names})) FROM answer"
    )


# --- from the ledger


def measured(d: Dialect, *, hold: bool = False) -> str:
    """The place up to which the ledger has been added up, and its time."""
    return f"SELECT {d.place}, millis FROM {d.table('measured')}{d.hold * hold}"


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
    statement = f"""
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
    return packed(d, statement, 9)


def failures(d: Dialect) -> str:
    """The attempts that failed between two places, by type and first line."""
    time = d.millis.format(time="t.at")
    statement = f"""
SELECT j.type, substr({d.first_line}, 1, {MAX_LINE}) AS line, count(*), min({time}), max({time}),
    {d.last_job}
FROM {d.table("transition")} AS t {d.with_job}
WHERE t.event IN ({_failed}) AND {d.after} AND {d.up_to} GROUP BY 1, 2
"""
    return packed(d, statement, 6)


def until(d: Dialect) -> str:
    """The time up to which the ledger has been added up: now, unless there is more."""
    now = d.millis.format(time=d.now)
    return (
        f"SELECT CASE WHEN EXISTS (SELECT 1 FROM {d.table('transition')} AS t"
        f" WHERE {d.since}) THEN millis ELSE {now} END FROM {d.table('measured')}"
    )


# --- the counts: the tally and the transitions since


def is_far(d: Dialect) -> str:
    """Whether so many transitions came since the tally that counting the jobs is faster."""
    return f"""
SELECT {d.lost} OR count(*) > {MAX_UNCOUNTED} FROM (
    SELECT 1 FROM {d.table("transition")} AS t WHERE {d.since} LIMIT {MAX_UNCOUNTED + 1}) AS entry
"""


def plain_counts(d: Dialect) -> str:
    """Jobs by status, queue and type, counted."""
    return (
        f"SELECT status, queue, type, count(*) AS jobs FROM {d.table('job')}"
        " GROUP BY status, queue, type ORDER BY status, queue, type"
    )


def _changes(d: Dialect) -> str:
    return f"""
WITH changes AS MATERIALIZED (
    SELECT t.source, t.target, j.queue, j.type, count(*) AS transitions
    FROM {d.table("transition")} AS t {d.with_job} WHERE {d.since}
    GROUP BY t.source, t.target, j.queue, j.type
)"""


def counts(d: Dialect) -> str:
    """Jobs by status, queue and type: the tally with the transitions since."""
    return f"""{_changes(d)}
SELECT status, queue, type, CAST(sum(jobs) AS bigint) AS jobs FROM (
    SELECT status, queue, type, jobs FROM {d.table("tally")}
    UNION ALL SELECT target, queue, type, transitions FROM changes
    UNION ALL SELECT source, queue, type, -transitions FROM changes WHERE source IS NOT NULL
) AS counted GROUP BY status, queue, type HAVING sum(jobs) <> 0 ORDER BY status, queue, type
"""


def miscounts(d: Dialect) -> str:
    """Where the tally with the transitions since differs from the jobs."""
    return f"""{_changes(d)}
SELECT status, queue, type, sum(counted) AS counted, sum(jobs) AS jobs FROM (
    SELECT status, queue, type, jobs AS counted, 0 AS jobs FROM {d.table("tally")}
    UNION ALL SELECT target, queue, type, transitions, 0 FROM changes
    UNION ALL SELECT source, queue, type, -transitions, 0 FROM changes WHERE source IS NOT NULL
    UNION ALL SELECT status, queue, type, 0, count(*) FROM {d.table("job")}
        GROUP BY status, queue, type
) AS difference GROUP BY status, queue, type HAVING sum(counted) <> sum(jobs)
"""


def recount(d: Dialect) -> str:
    """Make the tally with the transitions since agree with the jobs."""
    return (
        f"INSERT INTO {d.table('tally')} AS old (status, queue, type, jobs)"
        f" SELECT status, queue, type, jobs - counted FROM ({miscounts(d)}) AS wrong"
        " WHERE true ON CONFLICT (status, queue, type) DO UPDATE"
        " SET jobs = old.jobs + excluded.jobs"
    )


# --- what is shown


def activity(d: Dialect) -> str:
    """The last minutes, oldest first."""
    minute = d.millis.format(time=d.now)
    columns = ("minute", "type", "queue", "event", *_sums)
    return packed(
        d,
        f"SELECT {', '.join(columns)} FROM {d.table('activity')}"
        f" WHERE minute > {minute} / 60000 - {d.value} ORDER BY minute, type, queue, event",
        len(columns),
    )


def totals(d: Dialect) -> str:
    """All transitions ever, by type, queue and event."""
    columns = ("type", "queue", "event", *_sums)
    selected = f"SELECT {', '.join(columns)} FROM {d.table('total')} ORDER BY type, queue, event"
    return packed(d, selected, len(columns))


def series(d: Dialect) -> str:
    """The types and queues that are counted separately."""
    return packed(d, f"SELECT DISTINCT type, queue FROM {d.table('total')}", 2)


def groups(d: Dialect) -> str:
    """The kinds of failures seen last."""
    return (
        "SELECT type, error, attempts, first_seen, last_seen, last_job_id"
        f" FROM {d.table('failure')} ORDER BY last_seen DESC, type, error LIMIT {d.value}"
    )


# --- adding; rows in the same order everywhere, or two writers could wait for each other


def advance(d: Dialect) -> str:
    """Let the next batch start here, unless another process has added this one up."""
    return (
        f"UPDATE {d.table('measured')} SET {d.set_place},"
        f" millis = CASE WHEN millis < {d.value} THEN {d.value} ELSE millis END WHERE {d.is_at}"
    )


def _upsert(d: Dialect, table: str, key: Sequence[str], types: Sequence[str], changes: str) -> str:
    """Add the rows of a JSON parameter; `changes` is for rows whose `key` is there."""
    columns = (*key, *_COLUMNS[table])
    order = ", ".join(str(n + 1) for n in range(len(key)))
    return (
        f"INSERT INTO {d.table(table)} AS old ({', '.join(columns)})"
        f" SELECT {_cells(*types)} FROM {d.json_rows} WHERE true ORDER BY {order}"
        f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changes}"
    )


_COLUMNS = {
    "tally": ("jobs",),
    "activity": _sums,
    "total": _sums,
    "failure": ("attempts", "first_seen", "last_seen", "last_job_id"),
}
_added = ", ".join(f"{name} = old.{name} + excluded.{name}" for name in _sums)


def add_counts(d: Dialect) -> str:
    """Add to the tally, or subtract from it."""
    key, types = ("status", "queue", "type"), ("text", "text", "text", "bigint")
    return _upsert(d, "tally", key, types, "jobs = old.jobs + excluded.jobs")


def forget_empty(d: Dialect) -> str:
    """Delete the counts that have become 0."""
    return (
        f"DELETE FROM {d.table('tally')} WHERE jobs = 0 AND (status, queue, type) IN"
        f" (SELECT {_cells('text', 'text', 'text')} FROM {d.json_rows})"
    )


def add_activity(d: Dialect) -> str:
    """Add transitions to their minutes."""
    types = ("bigint", "text", "text", "text", *_sum_types)
    return _upsert(d, "activity", ("minute", "type", "queue", "event"), types, _added)


def add_totals(d: Dialect) -> str:
    """Add transitions to the totals."""
    types = ("text", "text", "text", *_sum_types)
    return _upsert(d, "total", ("type", "queue", "event"), types, _added)


def add_failures(d: Dialect) -> str:
    """Add failures to their groups."""
    types = ("text", "text", "bigint", "bigint", "bigint", "text")
    later = "excluded.last_seen >= old.last_seen"
    changes = (
        "attempts = old.attempts + excluded.attempts,"
        " first_seen = CASE WHEN excluded.first_seen < old.first_seen"
        " THEN excluded.first_seen ELSE old.first_seen END,"
        f" last_seen = CASE WHEN {later} THEN excluded.last_seen ELSE old.last_seen END,"
        f" last_job_id = CASE WHEN {later} THEN excluded.last_job_id ELSE old.last_job_id END"
    )
    return _upsert(d, "failure", ("type", "error"), types, changes)


def forget_failures(d: Dialect) -> str:
    """Delete the groups that were seen longest ago."""
    table = d.table("failure")
    return (
        f"DELETE FROM {table} WHERE (type, error) IN (SELECT type, error FROM {table}"
        f" ORDER BY last_seen DESC, type, error LIMIT {MAX_UNCOUNTED} OFFSET {MAX_FAILURES})"
    )
