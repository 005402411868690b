"""The statements of the rollup, in the words of each database; see `measures`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tenure.jobs.stats import BUCKETS
from tenure.lifecycle import ATTEMPT_ENDS, FAILURES

FAR = 200_000
"""Entries since the tally from which on it takes less time to count the jobs themselves."""
MAX_FAILURES = 200
"""Kinds of failures that are kept."""
MAX_LINE = 1_000

WAITED = "claimed"
CANCELLED = "cancelled"
"""Ends the attempt of a job that was running. A job that was pending has no time to count."""
_ran = ", ".join(f"'{event}'" for event in ATTEMPT_ENDS)
_failed = ", ".join(f"'{event}'" for event in FAILURES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What differs between the databases; `{value}` in a template stands for a parameter.

    `t` is an entry of the ledger and `j` its job.
    """

    table: str  # a template: the name of a table
    value: str
    now: str
    place: str  # of an entry or of `measured`, as it is read
    order: Sequence[str]
    settled: str  # no entry will come before t
    after: str
    upto: str
    guard: str
    advance: str
    since: str  # t has not been measured
    lost: str  # the place is none in this ledger
    with_job: str
    minute: str
    millis: str  # a template: a time in milliseconds
    span: str  # a template: the seconds between two times
    line: str  # the first line of t.detail
    last_job: str
    rows: str  # a FROM item: the rows of one JSON parameter, as new.value
    hold: str  # a row lock
    packs: bool  # whether rows are handed over as one

    def named(self, name: str) -> str:
        """The name of a table."""
        return self.table.format(name=name)

    def _cells(self, *types: str) -> str:
        return ", ".join(f"CAST(new.value ->> {n} AS {type})" for n, type in enumerate(types))

    def _read(self, statement: str, columns: int) -> str:
        """A query, its rows packed into one where each costs the interpreter's lock."""
        if not self.packs:
            return statement
        names = [f"c{n}" for n in range(columns)]
        return (
            f"WITH answer ({', '.join(names)}) AS ({statement})"
            f" SELECT json_group_array(json_array({', '.join(names)})) FROM answer"
        )

    # --- reading

    def held(self, *, hold: bool = False) -> str:
        """The place up to which the ledger has been measured."""
        return f"SELECT {self.place}, millis FROM {self.named('measured')}{self.hold * hold}"

    def end(self) -> str:
        """Where the next bite ends: its last entry, how many there are, and their latest time."""
        order = ", ".join(self.order)
        back = ", ".join(f"bite.{column} DESC" for column in self.order)
        return f"""
WITH bite AS MATERIALIZED (
    SELECT {order}, at FROM {self.named("transition")} AS t WHERE {self.after} AND {self.settled}
    ORDER BY {order} LIMIT {self.value}
)
SELECT {self.place}, (SELECT count(*) FROM bite),
    (SELECT {self.millis.format(time="max(at)")} FROM bite)
FROM bite ORDER BY {back} LIMIT 1
"""

    def sums(self) -> str:
        """The transitions between two places.

        How long a job waited for a claim is known while its row still is of that attempt: a retry
        gives it another time to run at. When an attempt began stands in the row as long, and then
        in the ledger.
        """
        began = (
            f"CASE WHEN j.token = t.token THEN j.started_at ELSE (SELECT c.at"
            f" FROM {self.named('transition')} AS c WHERE c.job_id = t.job_id"
            f" AND c.token = t.token AND c.event = '{WAITED}' LIMIT 1) END"
        )
        bounds = enumerate(BUCKETS[:-1])
        classes = " ".join(f"WHEN seconds <= {bound} THEN {n}" for n, bound in bounds)
        # Materialized, or the seconds would be worked out for each class anew.
        statement = f"""
WITH move AS MATERIALIZED (
    SELECT {self.minute} AS minute, j.type, j.queue, t.event, t.source, t.target,
        CASE WHEN t.event = '{WAITED}' AND j.token = t.token AND j.event <> 'retried'
                AND j.run_at <= t.at THEN {self.span.format(start="j.run_at", end="t.at")}
            WHEN t.event IN ({_ran}) OR t.event = '{CANCELLED}' AND t.source = 'processing'
                THEN {self.span.format(start=began, end="t.at")}
        END AS seconds
    FROM {self.named("transition")} AS t {self.with_job} WHERE {self.after} AND {self.upto}
)
SELECT minute, type, queue, event, source, target,
    CASE WHEN seconds >= 0 THEN CASE {classes} ELSE {len(BUCKETS) - 1} END END AS bucket,
    count(*), sum(seconds)
FROM move GROUP BY 1, 2, 3, 4, 5, 6, 7
"""
        return self._read(statement, 9)

    def failures(self) -> str:
        """The attempts that failed between two places, by type and first line."""
        time = self.millis.format(time="t.at")
        statement = f"""
SELECT j.type, substr({self.line}, 1, {MAX_LINE}) AS line, count(*), min({time}), max({time}),
    {self.last_job}
FROM {self.named("transition")} AS t {self.with_job}
WHERE t.event IN ({_failed}) AND {self.after} AND {self.upto} GROUP BY 1, 2
"""
        return self._read(statement, 6)

    def _moved(self) -> str:
        """Moves since the tally, by where from and where to."""
        return f"""
    SELECT t.source, t.target, j.queue, j.type, count(*) AS transitions
    FROM {self.named("transition")} AS t {self.with_job} WHERE {self.since}
    GROUP BY t.source, t.target, j.queue, j.type"""

    def is_far(self) -> str:
        """Whether so many transitions came since the tally that counting the jobs is faster."""
        return f"""
SELECT {self.lost} OR count(*) > {FAR} FROM (
    SELECT 1 FROM {self.named("transition")} AS t WHERE {self.since} LIMIT {FAR + 1}) AS entry
"""

    def counts(self) -> str:
        """Jobs by status, queue and type: the tally and the transitions since."""
        return f"""
WITH moved AS MATERIALIZED ({self._moved()}
)
SELECT status, queue, type, CAST(sum(jobs) AS bigint) AS jobs FROM (
    SELECT status, queue, type, jobs FROM {self.named("tally")}
    UNION ALL SELECT target, queue, type, transitions FROM moved
    UNION ALL SELECT source, queue, type, -transitions FROM moved WHERE source IS NOT NULL
) AS both_counts GROUP BY status, queue, type HAVING sum(jobs) <> 0 ORDER BY status, queue, type
"""

    def plain_counts(self) -> str:
        """The same from the jobs themselves."""
        return (
            f"SELECT status, queue, type, count(*) AS jobs FROM {self.named('job')}"
            " GROUP BY status, queue, type ORDER BY status, queue, type"
        )

    def miscounts(self) -> str:
        """Where the tally, with the transitions since, differs from the jobs."""
        return f"""
WITH moved AS MATERIALIZED ({self._moved()}
)
SELECT '' AS job_id, status, queue, type, sum(counted) AS counted, sum(jobs) AS jobs FROM (
    SELECT status, queue, type, jobs AS counted, 0 AS jobs FROM {self.named("tally")}
    UNION ALL SELECT target, queue, type, transitions, 0 FROM moved
    UNION ALL SELECT source, queue, type, -transitions, 0 FROM moved WHERE source IS NOT NULL
    UNION ALL SELECT status, queue, type, 0, count(*) FROM {self.named("job")}
        GROUP BY status, queue, type
) AS both_counts GROUP BY status, queue, type HAVING sum(counted) <> sum(jobs)
"""

    def recount(self) -> str:
        """Make the tally, with the transitions since, agree with the jobs."""
        return (
            f"INSERT INTO {self.named('tally')} AS old (status, queue, type, jobs)"
            f" SELECT status, queue, type, jobs - counted FROM ({self.miscounts()}) AS wrong"
            " WHERE true ON CONFLICT (status, queue, type) DO UPDATE"
            " SET jobs = old.jobs + excluded.jobs"
        )

    def until(self) -> str:
        """Up to when the ledger has been measured, in milliseconds: now, unless there is more."""
        now = self.millis.format(time=self.now)
        return (
            f"SELECT CASE WHEN EXISTS (SELECT 1 FROM {self.named('transition')} AS t"
            f" WHERE {self.since}) THEN millis ELSE {now} END FROM {self.named('measured')}"
        )

    def activity(self) -> str:
        """The last minutes, oldest first."""
        minute = self.millis.format(time=self.now)
        return self._read(
            f"SELECT minute, type, queue, event, transitions, seconds, {_buckets}"
            f" FROM {self.named('activity')} WHERE minute > {minute} / 60000 - {self.value}"
            " ORDER BY minute, type, queue, event",
            6 + len(BUCKETS),
        )

    def totals(self) -> str:
        """Everything since the beginning."""
        return self._read(
            f"SELECT type, queue, event, transitions, seconds, {_buckets}"
            f" FROM {self.named('total')} ORDER BY type, queue, event",
            5 + len(BUCKETS),
        )

    def series(self) -> str:
        """The types and queues that are counted separately."""
        return self._read(f"SELECT DISTINCT type, queue FROM {self.named('total')}", 2)

    def groups(self) -> str:
        """The failures seen last."""
        return (
            "SELECT type, error, attempts, first_seen, last_seen, last_job_id"
            f" FROM {self.named('failure')} ORDER BY last_seen DESC, type, error"
            f" LIMIT {self.value}"
        )

    # --- adding; rows in one order for everybody, so that nobody waits in a circle

    def move_on(self) -> str:
        """Let the next bite begin here, unless somebody else has measured this one."""
        return (
            f"UPDATE {self.named('measured')} SET {self.advance},"
            f" millis = CASE WHEN millis < {self.value} THEN {self.value} ELSE millis END"
            f" WHERE {self.guard}"
        )

    def count(self) -> str:
        """Add to the tally, or take out of it."""
        return (
            f"INSERT INTO {self.named('tally')} AS old (status, queue, type, jobs)"
            f" SELECT {self._cells('text', 'text', 'text', 'bigint')}"
            f" FROM {self.rows} WHERE true ORDER BY 1, 2, 3"
            " ON CONFLICT (status, queue, type) DO UPDATE SET jobs = old.jobs + excluded.jobs"
        )

    def forget_empty(self) -> str:
        """Drop what has come down to nothing."""
        return (
            f"DELETE FROM {self.named('tally')} WHERE jobs = 0 AND (status, queue, type) IN"
            f" (SELECT {self._cells('text', 'text', 'text')} FROM {self.rows})"
        )

    def _add_transitions(self, table: str, key: Sequence[tuple[str, str]]) -> str:
        names = ", ".join(name for name, _ in key)
        sums = ("transitions", "seconds", *_names)
        types = (*(type for _, type in key), "bigint", "double precision", *_bigints)
        added = ", ".join(f"{name} = old.{name} + excluded.{name}" for name in sums)
        order = ", ".join(str(n) for n in range(1, len(key) + 1))
        return (
            f"INSERT INTO {self.named(table)} AS old ({names}, {', '.join(sums)})"
            f" SELECT {self._cells(*types)} FROM {self.rows} WHERE true ORDER BY {order}"
            f" ON CONFLICT ({names}) DO UPDATE SET {added}"
        )

    def add_activity(self) -> str:
        """Add transitions to their minutes."""
        return self._add_transitions("activity", (("minute", "bigint"), *_SERIES))

    def add_totals(self) -> str:
        """Add transitions to those of all time."""
        return self._add_transitions("total", _SERIES)

    def forget_minutes(self) -> str:
        """Drop the minutes before one."""
        return f"DELETE FROM {self.named('activity')} WHERE minute < {self.value}"

    def add_failures(self) -> str:
        """Add failures to their groups."""
        later = "excluded.last_seen >= old.last_seen"
        return (
            f"INSERT INTO {self.named('failure')} AS old"
            " (type, error, attempts, first_seen, last_seen, last_job_id)"
            f" SELECT {self._cells('text', 'text', 'bigint', 'bigint', 'bigint', 'text')}"
            f" FROM {self.rows} WHERE true ORDER BY 1, 2"
            " ON CONFLICT (type, error) DO UPDATE SET attempts = old.attempts + excluded.attempts,"
            " first_seen = CASE WHEN excluded.first_seen < old.first_seen"
            " THEN excluded.first_seen ELSE old.first_seen END,"
            f" last_seen = CASE WHEN {later} THEN excluded.last_seen ELSE old.last_seen END,"
            f" last_job_id = CASE WHEN {later} THEN excluded.last_job_id ELSE old.last_job_id END"
        )

    def forget_failures(self) -> str:
        """Drop the groups that were seen longest ago."""
        table = self.named("failure")
        return (
            f"DELETE FROM {table} WHERE (type, error) IN (SELECT type, error FROM {table}"
            f" ORDER BY last_seen DESC, type, error LIMIT {FAR} OFFSET {MAX_FAILURES})"
        )


_names = tuple(f"bucket_{n}" for n in range(len(BUCKETS)))
_bigints = ("bigint",) * len(BUCKETS)
_buckets = ", ".join(_names)
_SERIES = (("type", "text"), ("queue", "text"), ("event", "text"))

SQLITE = Words(
    table="tenure_{name}",
    value="?",
    now="(SELECT at FROM tenure_now)",
    place="seq",
    order=("seq",),
    settled="true",
    after="t.seq > ?",
    upto="t.seq <= ?",
    guard="seq = ?",
    advance="seq = ?",
    since="t.seq > (SELECT seq FROM tenure_measured)",
    lost="false",
    # The order is given: the planner must not walk the jobs.
    with_job="CROSS JOIN tenure_job AS j ON j.id = t.job_id",
    minute="t.at / 60000",
    millis="{time}",
    span="({end} - {start}) / 1000.0",
    line="substr(t.detail, 1, instr(t.detail || char(10), char(10)) - 1)",
    last_job="substr(max(printf('%020d', t.at) || t.job_id), 21)",
    rows="json_each(?) AS new",
    hold="",
    packs=True,
)
POSTGRES = Words(
    table="{{s}}.{name}",
    value="%s",
    now="(SELECT {s}.clock())",
    place="xid::text, seq",
    order=("xid", "seq"),
    settled="t.xid < pg_snapshot_xmin(pg_current_snapshot())",
    after="(t.xid, t.seq) > (%s::text::xid8, %s::bigint)",
    upto="(t.xid, t.seq) <= (%s::text::xid8, %s::bigint)",
    guard="xid = %s::text::xid8 AND seq = %s",
    advance="xid = %s::text::xid8, seq = %s",
    since="(t.xid, t.seq) > (SELECT xid, seq FROM {s}.measured)",
    lost="(SELECT xid FROM {s}.measured) >= pg_snapshot_xmax(pg_current_snapshot())",
    # The limit, which changes nothing, keeps the planner from walking the jobs.
    with_job="CROSS JOIN LATERAL (SELECT type, queue, token, event, run_at, started_at"
    " FROM {s}.job WHERE id = t.job_id LIMIT 1) AS j",
    minute="floor(date_part('epoch', t.at) / 60)::bigint",
    millis="floor(date_part('epoch', {time}) * 1000)::bigint",
    span="date_part('epoch', {end} - {start})",
    line="split_part(t.detail, E'\\n', 1)",
    last_job="(array_agg(t.job_id::text ORDER BY t.at DESC, t.seq DESC))[1]",
    rows="json_array_elements(%s::json) AS new (value)",
    hold=" FOR UPDATE",
    packs=False,
)
