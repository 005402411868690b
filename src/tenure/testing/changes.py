"""Changes to a store that only tests make: each in one transaction, under the store's rules."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import uuid4

from tenure.app.waiting import ONE_BY_ONE
from tenure.errors import IllegalTransition, InvalidInput, JobNotFound
from tenure.events import Amended, Cancelled, Claimed
from tenure.lifecycle import Job, decide, legal_events
from tenure.rules.reports import Lease
from tenure.store import search, transitions
from tenure.store.database import Database, Reads
from tenure.store.tables import workers
from tenure.values.ids import EPOCH

ACTOR = "testing"
"""Who acts, in the ledger."""
LEASE_SECONDS = 86_400.0

CLOCK = {
    "sqlite": (
        "DROP VIEW tenure_now",
        "CREATE VIEW tenure_now AS SELECT"
        " CAST((julianday('now') - 2440587.5) * 86400000 + 0.5 AS INTEGER) + {millis} AS at",
    ),
    "postgres": (
        "CREATE OR REPLACE FUNCTION {s}.clock() RETURNS timestamptz LANGUAGE sql STABLE"
        " PARALLEL SAFE AS 'SELECT pg_catalog.clock_timestamp() + interval ''{millis} ms'''",
    ),
}
"""What the clock of each engine is, so many milliseconds ahead."""

CLEARED = (
    *("job", "transition", "trace", "progress", "dependency", "workflow", "fire", "schedule"),
    *("bulk", "throttle", "partition_limit", "queue_limit", "queue", "worker"),
    *("tally", "total", "activity", "failure"),
)
"""The tables that `clear` empties, in this order. Triggers empty the tables that follow jobs."""


def set_clock(db: Database, ahead: timedelta) -> None:
    """Let the store's clock be so far ahead of that of the machine, which makes the ids."""
    search.CLOCKS_APART = max(search.CLOCKS_APART, ahead + timedelta(hours=1))
    millis = str(round(ahead.total_seconds() * 1000))
    for statement in CLOCK[db.dialect.engine]:
        db.changed(statement.replace("{millis}", millis))


def claim(db: Database, job_id: str, worker: str, *, early: bool) -> Lease | None:
    """Lease one job, whatever is before it; an `early` one also before its time and in a pause.

    Otherwise return None in a pause. Raises JobNotFound, or IllegalTransition if it is not pending,
    not due, or refused by a limit.
    """
    job = db.lock([job_id]).get(job_id)
    if job is None:
        raise JobNotFound(job_id)
    now = db.now()
    steps: tuple[Job, ...] = ()
    if job.run_at > now and early:
        steps = (decide(job, Amended(changes={}, delay=0.0, actor=ACTOR), now),)
    if not early and _is_paused(db, job):
        return None
    lease_id = str(uuid4())
    event = Claimed(lease_id=lease_id, lease_seconds=LEASE_SECONDS, actor=worker)
    held = decide((job, *steps)[-1], event, now)
    try:
        transitions.save(db, [(job, (*steps, held))])
    except Exception as error:
        _, _, why = str(error).partition("\n")[0].partition("tenure: ")
        if not why:
            raise
        legal = legal_events(job.status, job.event)
        raise IllegalTransition(job_id, job.status, Claimed.name, legal, why) from error
    assert held.lease_expires_at is not None
    facts = (held.id, held.type, held.queue, held.payload_json, held.attempts, held.max_retries)
    trace = db.traces([job_id]).get(job_id)
    return Lease(*facts, held.token, held.timeout, lease_id, held.lease_expires_at, trace)


def _is_paused(db: Reads, job: Job) -> bool:
    d = db.dialect
    paused = f"name = {d.value} AND paused_at IS NOT NULL"
    statement = f"SELECT 1 FROM {d.table('queue')} WHERE {paused}"
    statement += f" UNION ALL SELECT 1 FROM {d.table('type')} WHERE {paused}"
    return bool(db.rows(statement, (job.queue, job.type)))


def next_times(db: Database) -> list[datetime]:
    """Return when a wait or a lease ends, a schedule is due, or a limit lets a job start.

    A limit that opens with the end of a job has no time.
    """
    d = db.dialect
    queue, part = d.table("queue_limit"), d.table("partition_limit")
    firsts = (
        ("min(expires_at)", d.table("wait")),
        ("min(lease_expires_at)", d.table("job")),
        ("min(next_at)", f"{d.table('schedule')} WHERE paused_at IS NULL"),
        *(("resume_at", table) for table in (queue, part)),
    )
    found = [
        d.time_or_none(time)
        for column, rest in firsts
        for (time,) in db.rows(f"SELECT {d.time(column)} FROM {rest}")
    ]
    opens = db.rows(
        f"SELECT tat - (burst - 1) * every FROM {queue} WHERE every IS NOT NULL UNION ALL"
        f" SELECT part.tat - (per_burst - 1) * per_every FROM {part} AS part"
        f" JOIN {queue} AS own ON own.queue = part.queue WHERE per_every IS NOT NULL"
    )
    rates = [EPOCH + timedelta(microseconds=micros) for (micros,) in opens]
    return [*rates, *(time for time in found if time is not None)]


def clear(db: Database, *, force: bool) -> None:
    """Cancel what is not settled, then delete all jobs and what belongs to them and to queues."""
    d = db.dialect
    others = [one for one in workers.seen(db, None) if not one.id.startswith(ONE_BY_ONE)]
    if others and not force:
        raise InvalidInput(
            f"worker {others[0].label or others[0].id} asked for jobs here in the last ten "
            "minutes: is this a database of tests? clear(force=True) deletes its jobs anyway"
        )
    jobs, now = d.table("job"), db.now()
    unsettled = [
        id for (id,) in db.rows(f"SELECT {d.id('id')} FROM {jobs} WHERE finished_at IS NULL")
    ]
    if unsettled:
        event = Cancelled(actor=ACTOR)
        held = db.lock(sorted(unsettled)).values()
        transitions.save(db, [(job, (decide(job, event, now),)) for job in held])
    for table in CLEARED:
        db.changed(f"DELETE FROM {d.table(table)}")
    db.changed(f"UPDATE {d.table('type')} SET paused_at = NULL WHERE paused_at IS NOT NULL")
