"""The tables of queues with settings, and of limits: of queues, and of some of their partitions.

Triggers of the tables of limits keep slots, turns and lines of the jobs, and the history of the
limits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tenure.errors import LimitConflict
from tenure.lifecycle import Job, Status
from tenure.rules.queues import LimitFacts, Limits, Part, PerPartition, Rate, merged, parse_rate
from tenure.rules.reports import Report
from tenure.rules.search import MAX_AHEAD
from tenure.rules.stats import PartitionState, QueueQuery, QueueState
from tenure.store.database import Reads, Statements
from tenure.store.rows import fields_of, read_rows, selected

if TYPE_CHECKING:
    from tenure.store.reader import Reader

RATE = ("rate_starts", "rate_seconds", "burst", "every")
OF = ("max_running", *RATE)
SETTINGS = (*OF, "partitioned", *(f"per_{name}" for name in OF), "ordered")
WAITS_NOT = "resume_at = NULL, paused_for = NULL"
PARTITION = (
    *("partition", "pending", "running", "max_running", "weight"),
    *("paused_at", "paused_by", "pause_reason", "resume_at"),
)
SETS_LIMITS = "(q.max_running IS NOT NULL OR q.rate_starts IS NOT NULL OR q.partitioned)"
"""Where not, the row says until when the queue waits, or is left over: no running job counts."""
NO_TURNS = (
    "the partitions of the queue take no turns, so this would have no effect: give the queue a"
    " limit per partition first, or only turns"
)
MAX_DELETED = 1_000
MAX_PARTITIONS = 10_000
"""How many partitions of all queues are looked at to count the halted ones: some 10 µs each."""
SPARE_MICROS = 2_000_000
"""How far ahead of its bound a rate may be before it is set right: the clock was put back."""


Limited = Mapping[str, tuple[Limits, int | None, datetime | None]]
"""By queue: its limits, how many jobs they count, and until when a job has it wait."""


def read_limits(db: Reads, queues: Collection[str] | None = None) -> Limited:
    """Return the queues with limits, all or those among `queues`."""
    d = db.dialect
    columns = ("queue", *SETTINGS, "resume_at")
    slots = f"SELECT count(*) FROM {d.table('slot')} AS s WHERE s.queue = q.queue"
    running = f"CASE WHEN {SETS_LIMITS} THEN ({slots}) END"
    if queues is not None and not queues:
        return {}
    where = f" WHERE q.queue IN ({d.values(len(queues))})" if queues else ""
    found = {}
    for *row, taken in db.rows(
        f"SELECT {selected(d, columns, 'q')}, {running} FROM {d.table('queue_limit')} AS q{where}",
        tuple(queues or ()),
    ):
        fields = fields_of(d, columns, row)
        found[fields["queue"]] = (_limits(fields), taken, fields["resume_at"])
    return found


def _limits(row: Mapping[str, Any]) -> Limits:
    def of(prefix: str) -> tuple[int | None, str | None, int | None]:
        starts, seconds, burst, _ = (row[prefix + name] for name in RATE)
        rate = str(Rate(starts, seconds, burst)) if starts else None
        return row[f"{prefix}max_running"], rate, burst

    divided = PerPartition(*of("per_")) if row["partitioned"] else None
    return Limits(*of(""), divided, row["ordered"])


def change(db: Statements, name: str, given: Mapping[str, Any]) -> None:
    """Change the given limits of a queue; without any, it has no row.

    The transaction was started as one that sets limits: others that do wait for it. Raises
    InvalidInput, or LimitConflict after it has written.
    """
    d, table = db.dialect, db.dialect.table("queue_limit")
    old, _, waits_until = read_limits(db, [name]).get(name, (Limits(), 0, None))
    new = merged(old, given)
    if new == old:
        return
    if _shape(new) != _shape(old):  # before a row is locked: who changes a job may wait for it
        _hold(db, d.hold_jobs)
    if new == Limits() and waits_until is None:
        db.changed(f"DELETE FROM {table} WHERE queue = {d.value}", (name,))
    else:
        per = new.per_partition or PerPartition()
        values = (*_settings(new), _is_divided(new), *_settings(per), new.ordered)
        changes = ", ".join(f"{name} = excluded.{name}" for name in SETTINGS)
        db.changed(
            f"INSERT INTO {table} (queue, {', '.join(SETTINGS)})"
            f" VALUES ({d.values(1 + len(SETTINGS))}) ON CONFLICT (queue) DO UPDATE SET {changes}",
            (name, *values),
        )
    if _is_divided(old) and not _is_divided(new):  # now no other transaction pauses a partition
        _check_none_paused(db, name)


def _check_none_paused(db: Statements, queue: str) -> None:
    d = db.dialect
    for (partition,) in db.rows(
        f"SELECT partition FROM {d.table('partition_limit')} WHERE queue = {d.value}"
        " AND paused_at IS NOT NULL ORDER BY partition LIMIT 1",
        (queue,),
    ):
        which = f"partition {partition!r} is" if partition else "the jobs without a partition are"
        raise LimitConflict(f"{which} paused, which needs turns: resume it before turns end")


def _is_divided(limits: Limits) -> bool:
    return limits.per_partition is not None or limits.ordered is not None


def _shape(limits: Limits) -> tuple[object, ...]:
    """Return what slots, turns and lines of jobs depend on, as `shape_of` of PostgreSQL."""
    return (limits != Limits(), _is_divided(limits), limits.ordered)


def _hold(db: Statements, statement: str) -> None:
    if statement:
        db.changed(statement)


def _settings(of: Limits | PerPartition) -> tuple[int | float | None, ...]:
    rate = parse_rate(of.rate, of.burst, "$")
    values = (rate.starts, rate.seconds, rate.burst, rate.every) if rate else (None,) * len(RATE)
    return (of.max_running, *values)


def _check_turns(db: Statements, queue: str) -> None:
    d = db.dialect
    divided = f"SELECT 1 FROM {d.table('queue_limit')} WHERE queue = {d.value} AND partitioned"
    if not db.rows(divided, (queue,)):
        raise LimitConflict(NO_TURNS)


def change_partition(
    db: Statements,
    name: str,
    partition: str,
    *,
    actor: str,
    given: Mapping[str, int | None] | None = None,
    paused: bool | None = None,
    reason: str | None = None,
) -> None:
    """Set columns of a partition, and pause or resume it (None: leave it).

    Raises LimitConflict for what has an effect only if partitions take turns, and they do not.
    """
    d = db.dialect
    table, v, place = d.table("partition_limit"), d.value, (name, partition)
    _hold(db, d.hold_starts)  # before the row is locked: a start may wait for it
    if paused or any(value is not None for value in (given or {}).values()):
        _check_turns(db, name)
    db.changed(
        f"INSERT INTO {table} (queue, partition) VALUES ({v}, {v}) ON CONFLICT DO NOTHING", place
    )
    where = f"queue = {v} AND partition = {v}"
    if given:
        changes = ", ".join(f"{column} = {v}" for column in given)
        db.changed(f"UPDATE {table} SET {changes} WHERE {where}", (*given.values(), *place))
    if paused is not None:
        values = (paused, actor, reason, *place, paused)
        db.changed(d.pause("partition_limit", where), values)
    if paused is False:
        db.changed(f"UPDATE {table} SET {WAITS_NOT} WHERE {where}", place)


def begin_waits(db: Statements, paused: Sequence[tuple[Job, Report]]) -> None:
    """Let the queue or partition of each job wait as long as the job, unless it waits longer.

    Each job has met a rate limit outside. Where there is no row of limits, one is made that says
    nothing else.
    """
    d = db.dialect
    queues = sorted({job.queue for job, _ in paused})
    table = d.table("queue_limit")
    divided = db.rows(
        f"SELECT queue FROM {table} WHERE partitioned AND queue IN ({d.values(len(queues))})",
        queues,
    )
    longest: dict[tuple[str, ...], tuple[float, str]] = {}
    for job, report in paused:
        key: tuple[str, ...] = (job.queue,)
        if report.pause == "partition" and key in map(tuple, divided):
            key = (job.queue, job.partition or "")
        longest[key] = max(longest.get(key, (0.0, "")), (report.delay or 0.0, job.id))
    for key in sorted(longest, key=lambda key: (len(key), key)):  # locked in this order everywhere
        table = d.table("queue_limit" if len(key) == 1 else "partition_limit")
        columns = ", ".join(("queue", "partition")[: len(key)])
        db.changed(
            f"INSERT INTO {table} AS known ({columns}, resume_at, paused_for)"
            f" VALUES ({d.values(len(key))}, {d.later(d.value)}, {d.id_value})"
            f" ON CONFLICT ({columns}) DO UPDATE SET resume_at = excluded.resume_at,"
            " paused_for = excluded.paused_for"
            " WHERE coalesce(known.resume_at < excluded.resume_at, true)",
            (*key, *longest[key]),
        )


def end_wait(db: Statements, queue: str) -> None:
    """Let jobs of a queue start again that wait since one met a rate limit outside."""
    table, v = db.dialect.table("queue_limit"), db.dialect.value
    db.changed(f"UPDATE {table} SET {WAITS_NOT} WHERE queue = {v}", (queue,))


def partitions(db: Reads, queue: str, limit: int) -> list[PartitionState]:
    """Return the partitions of a queue that have jobs or settings, those with most jobs first."""
    d = db.dialect
    v, own = d.value, d.table("partition_limit")
    columns = selected(d, PARTITION, "part")
    found = db.rows(
        f"""
SELECT {columns}, {d.id("job.id")} FROM (
    SELECT sums.*, {", ".join(PARTITION[3:])} FROM (
        SELECT partition, CAST(sum(pending) AS bigint) AS pending,
            CAST(sum(running) AS bigint) AS running
        FROM (
            SELECT partition, count(*) AS pending, 0 AS running FROM {d.turns} WHERE queue = {v}
            GROUP BY priority, partition
            UNION ALL SELECT s.partition, 0, 1 FROM {d.table("queue_limit")} AS q
            JOIN {d.table("slot")} AS s ON s.queue = q.queue WHERE q.queue = {v} AND {SETS_LIMITS}
            UNION ALL SELECT partition, 0, 0 FROM {own} WHERE queue = {v}
        ) AS one GROUP BY partition
    ) AS sums LEFT JOIN {own} AS own ON own.queue = {v} AND own.partition = sums.partition
    ORDER BY pending + running DESC, sums.partition LIMIT {v}
) AS part LEFT JOIN {d.table("job")} AS job ON job.status = 'failed' AND job.id = (
    SELECT id FROM {d.table("line")} AS line WHERE line.queue = {v}
        AND line.partition = part.partition ORDER BY id LIMIT 1)
ORDER BY pending + running DESC, part.partition""",
        (*(queue,) * 4, limit, queue),
    )
    columns_of = (*PARTITION, "halted_by")
    return [PartitionState(**fields_of(d, columns_of, row)) for row in found]


def halted(db: Reads, queue: str, most: int) -> int:
    """Return how many partitions of a queue have a failed job first in line.

    At most so many partitions are looked at. One search in the key of the lines finds each.
    """
    d = db.dialect
    line, v = d.table("line"), d.value
    ((count,),) = db.rows(
        f"""
WITH RECURSIVE part (partition) AS (
    SELECT min(partition) FROM {line} AS line WHERE queue = {v}
    UNION ALL
    SELECT (SELECT min(partition) FROM {line} AS line
        WHERE queue = {v} AND line.partition > part.partition)
    FROM part WHERE part.partition IS NOT NULL
)
SELECT count(*) FROM (SELECT partition FROM part LIMIT {most:d}) AS part
JOIN {d.table("job")} AS job ON job.id = (
    SELECT id FROM {line} AS line WHERE queue = {v} AND line.partition = part.partition
    ORDER BY id LIMIT 1)
WHERE job.status = 'failed'""",
        (queue,) * 3,
    )
    return int(count)


def pass_over(db: Statements, name: str, partition: str, *, actor: str) -> str | None:
    """Take a failed job out of its line if it is the first; return its id."""
    d = db.dialect
    line, place = d.table("line"), f"queue = {d.value} AND partition = {d.value}"
    found = db.rows(
        f"SELECT {d.id('job.id')} FROM {d.table('job')} AS job WHERE status = 'failed' AND id ="
        f" (SELECT id FROM {line} AS line WHERE {place} ORDER BY id LIMIT 1){d.hold}",
        (name, partition),
    )
    for (id,) in found:
        db.changed(f"DELETE FROM {line} WHERE {place} AND id = {d.id_value}", (name, partition, id))
    return found[0][0] if found else None


def tidy(db: Statements) -> None:
    """Delete rows that limit nothing, and set right rates that a clock which was ahead has used."""
    d = db.dialect
    queue, partition = d.table("queue_limit"), d.table("partition_limit")
    now = f"{d.millis.format(time=d.now)} * 1000"
    ahead = f"tat > {now} + {SPARE_MICROS} +"
    of_queue = f"(SELECT per_burst * per_every FROM {queue} AS q WHERE q.queue = {partition}.queue)"
    for table, most in ((queue, "burst * every"), (partition, of_queue)):
        some = f"SELECT 1 FROM {table} WHERE {ahead} {most}"
        if db.rows(f"{some} LIMIT 1"):
            db.changed(f"UPDATE {table} SET tat = {now} + {most} WHERE {ahead} {most}")
    for table, key, settings in (
        (queue, "queue", ("max_running", "every", "NULLIF(partitioned, FALSE)")),
        (partition, "queue, partition", ("max_running", "weight", "paused_at")),
    ):
        idle = (
            f"SELECT {key} FROM {table} WHERE tat <= {now} AND coalesce(resume_at <= {d.now}, true)"
        )
        idle += "".join(f" AND {name} IS NULL" for name in settings)
        idle += f" LIMIT {MAX_DELETED} {d.free_to_delete}"
        db.changed(f"DELETE FROM {table} WHERE ({key}) IN ({idle})")


def facts(db: Reads, job: Job) -> LimitFacts | None:
    """Return the limits of a job's queue and how far they are used; None if it has none."""
    d, name = db.dialect, job.partition or ""
    limits = read_limits(db, [job.queue]).get(job.queue, (None,))[0]
    if limits is None:
        return None
    queue = _part(db, "queue_limit", {"queue": job.queue}, limits.max_running)
    if limits.per_partition is None:  # an ordered queue has it, too
        return LimitFacts(limits=limits, queue=queue)
    place, most = {"queue": job.queue, "partition": name}, limits.per_partition.max_running
    part = _part(db, "partition_limit", place, most, in_order=limits.ordered is not None)
    first = db.rows(
        f"SELECT {d.id('j.id')}, j.status, {d.time('j.run_at')} FROM {d.table('job')} AS j"
        f" WHERE j.id = (SELECT id FROM {d.table('line')} AS line"
        f" WHERE queue = {d.value} AND partition = {d.value} ORDER BY id LIMIT 1)",
        (*place.values(),),
    )
    before = [(id, Status(status), d.to_time(at)) for id, status, at in first if id != job.id]
    ((ahead,),) = db.rows(
        f"SELECT count(*) FROM (SELECT 1 FROM {d.turns} WHERE queue = {d.value}"
        f" AND priority = {d.value} AND partition = {d.value} AND (run_at, id) <"
        f" ({d.value}, {d.id_value}) LIMIT {MAX_AHEAD}) AS first",
        (job.queue, job.priority, name, d.to_bound(job.run_at), job.id),
    )
    return LimitFacts(
        limits=limits,
        queue=queue,
        name=name,
        partition=part,
        ahead=ahead,
        before=next(iter(before), None),
    )


def _part(
    db: Reads, table: str, place: Mapping[str, str], most: int | None, *, in_order: bool = False
) -> Part:
    d, values = db.dialect, tuple(place.values())
    where = " AND ".join(f"x.{column} = {d.value}" for column in place)
    columns = ["max_running", "tat", "resume_at", "paused_for"]
    columns += ["paused_at", "paused_by", "pause_reason"] if "partition" in place else []
    found = read_rows(db, columns, f"{d.table(table)} AS x WHERE {where}", values, "x")
    row = found[0] if found else dict.fromkeys(columns)
    slots = f"FROM {d.table('slot')} AS x WHERE {where}"
    ((running,),) = db.rows(f"SELECT count(*) {slots}", values)
    oldest = db.rows(
        f"SELECT {d.id('j.id')}, {d.time('j.started_at')} FROM {d.table('job')} AS j"
        f" WHERE j.id IN (SELECT job_id {slots}) ORDER BY j.started_at LIMIT 1",
        values,
    )
    paused = None
    if row.get("paused_at") is not None:
        why = f": {row['pause_reason']}" if row["pause_reason"] else ""
        paused = f" by {row['paused_by']}{why}" if row["paused_by"] else why
    most = most if row["max_running"] is None else row["max_running"]
    if in_order:
        most = 1 if most is None else min(most, 1)
    return Part(
        running=running,
        tat=row["tat"] or 0,
        resume_at=row["resume_at"],
        paused_for=row["paused_for"],
        oldest=next(((id, d.to_time(at)) for id, at in oldest), None),
        max_running=most,
        paused=paused,
    )


# --- queues ---------------------------------------------------------------------------------------

FIRST = {
    "name": "name",
    "jobs": "pending + processing DESC, name",
    "attention": "CASE WHEN paused_at IS NOT NULL AND pending > 0 OR pending >= max_pending"
    " THEN 0 ELSE 1 END, CASE WHEN due_at IS NULL THEN 1 ELSE 0 END, due_at,"
    " pending + processing DESC, name",
}
"""The orders of queues. For attention: what is paused or full with jobs, then the longest due."""


def set_queue(
    db: Statements,
    name: str,
    *,
    paused: bool | None = None,
    max_pending: int | None = None,
    actor: str,
    reason: str | None = None,
) -> None:
    """Pause or resume a queue (None: leave it), set its limit (None: leave it, -1: no limit)."""
    d = db.dialect
    table, v = d.table("queue"), d.value
    db.changed(f"INSERT INTO {table} (name) VALUES ({v}) ON CONFLICT DO NOTHING", (name,))
    if paused is not None:
        db.changed(d.pause("queue", f"name = {v}"), (paused, actor, reason, name, paused))
    if max_pending is not None:
        limit = None if max_pending < 0 else max_pending
        db.changed(f"UPDATE {table} SET max_pending = {v} WHERE name = {v}", (limit, name))


def listed(read: Reader, wanted: QueueQuery) -> tuple[list[QueueState], int]:
    """Return the queues of a query with jobs or settings, and how many there are without a limit.

    They are counted and put in order where they are stored: fifty thousand rows take longer to
    fetch than to count.
    """
    d = read.dialect
    where, values = d.in_queues("name", wanted.within)
    for condition, value in (
        (f"name = {d.value}", wanted.name),
        (f"replace(lower(name), {d.value}, '') <> lower(name)", (wanted.search or "").lower()),
        (f"name > {d.value}", wanted.after),
    ):
        if value:
            where, values = f"{where} AND {condition}", [*values, value]
    one = wanted.name is not None
    statement = f"{of_all(read, one=one)} WHERE {where}"
    statement += f" ORDER BY {FIRST[wanted.order]}"
    if wanted.limit is not None:
        statement += f" LIMIT {int(wanted.limit)}"
    ahead = [wanted.name] * (read.heads.count("{only}") + 1) if one else []
    rows = read.stats.counted(statement, (*ahead, *values))
    some = None if wanted.limit is None and wanted.name is None else [name for name, *_ in rows]
    limited = read_limits(read, some)
    return [_state(read, row, limited) for row in rows], rows[0][-1] if rows else 0


def _state(read: Reader, row: Sequence[Any], limited: Limited) -> QueueState:
    name, paused, most, pending, processing, oldest, reason, _ = row
    time = read.dialect.time_or_none
    state = (name, time(paused), most, pending, processing, time(oldest), reason)
    return QueueState(*state, *limited.get(name, ()))


def heads(read: Reader, only: str = "") -> str:
    """The heads of all lanes, or of those of one queue: `only` is a condition."""
    return read.heads.replace("{only}", only).replace("{others}", "AND false" if only else "")


def of_all(read: Reader, *, one: bool = False) -> str:
    """Select all queues, or `one` whose name are the first values, with `{parts}` of counts."""
    d = read.dialect
    only = f"AND queue = {d.value}" if one else ""
    return f"""{heads(read, only)}
SELECT name, {d.time("paused_at")}, max_pending, pending, processing, {d.time("due_at")},
    pause_reason, count(*) OVER ()
FROM (
SELECT name, max(paused_at) AS paused_at, max(max_pending) AS max_pending,
    CAST(sum(pending) AS bigint) AS pending, CAST(sum(processing) AS bigint) AS processing,
    min(due_at) AS due_at, max(pause_reason) AS pause_reason
FROM (
    SELECT name, paused_at, max_pending, 0 AS pending, 0 AS processing, NULL AS due_at,
        pause_reason, 1 AS setting
    FROM {d.table("queue")}
    UNION ALL SELECT queue, NULL, NULL, 0, 0, run_at, NULL, 0 FROM head WHERE run_at <= {d.now}
    UNION ALL SELECT queue, NULL, NULL, CASE status WHEN 'pending' THEN jobs ELSE 0 END,
        CASE status WHEN 'processing' THEN jobs ELSE 0 END, NULL, NULL, 0
    FROM ({{parts}}) AS counted WHERE status IN ('pending', 'processing') {only}
    UNION ALL SELECT queue, NULL, NULL, 0, 0, NULL, NULL, 1 FROM {d.table("queue_limit")}
) AS part GROUP BY name
HAVING sum(pending) <> 0 OR sum(processing) <> 0 OR max(setting) = 1) AS queue
"""
