"""Bulk actions: their table, and one batch of an action on all jobs of a filter.

An action goes along the ids of its jobs, oldest first. A batch looks for the next few outside any
transaction. One transaction then changes them by the lifecycle and advances the action's cursor.
The batch is numbered, and that transaction tests the number: of two batches that were prepared side
by side only one is applied. So a crash neither loses nor repeats anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from tenure import failpoints
from tenure.errors import IllegalTransition
from tenure.events import Amended, Cancelled, Event, Retried
from tenure.lifecycle import Job, Status, follow
from tenure.rules import search
from tenure.store import transitions
from tenure.store.database import Reads, Statements, waited_for_a_lock
from tenure.store.rows import read_rows
from tenure.store.search import fits, put_off, some_ids
from tenure.store.tables import dependencies, signals, unique_keys
from tenure.values.ids import BEFORE_ALL

if TYPE_CHECKING:
    from tenure.store import Store
    from tenure.store.database import Database
    from tenure.store.reader import Reader

BATCH = 500
"""Jobs of one batch."""
MAX_KEPT = 1_000
"""Actions on record. When an action starts, the oldest ended actions are deleted."""

COLUMNS = (
    *("id", "action", "filter", "more_retries", "actor", "reason", "created_at", "finished_at"),
    *("stopped_by", "total", "exact", "changed", "refused", "batches", "cursor"),
)

_read_filter = msgspec.json.Decoder(search.Filter).decode


def get(db: Reads, bulk_id: str) -> search.Bulk | None:
    """Return an action, None if it is unknown."""
    d = db.dialect
    found = _read(db, f"WHERE id = {d.id_value}", (bulk_id,)) if d.is_id(bulk_id) else []
    return found[0] if found else None


def latest(db: Reads, limit: int, *, unfinished: bool = False) -> list[search.Bulk]:
    """Return actions, newest first."""
    where = "WHERE finished_at IS NULL" if unfinished else ""
    return _read(db, f"{where} ORDER BY bulk.id DESC LIMIT {db.dialect.value}", (limit,))


def _read(db: Reads, rest: str, values: Sequence[Any]) -> list[search.Bulk]:
    found = read_rows(db, COLUMNS, f"{db.dialect.table('bulk')} AS bulk {rest}", values)
    return [_bulk_of(fields) for fields in found]


def _bulk_of(fields: dict[str, Any]) -> search.Bulk:
    read = {
        "action": search.Action(fields["action"]),
        "filter": _read_filter(fields["filter"]),
        "exact": bool(fields["exact"]),
    }
    return search.Bulk(**fields | read)


def _plain(text: str) -> str:
    """Return a text of a class of the caller, such as Markup, as one that msgspec encodes."""
    return str.__str__(text)


def start(
    db: Statements,
    *,
    id: str,
    action: search.Action,
    filter: search.Filter,
    more_retries: int,
    actor: str,
    reason: str | None = None,
    total: search.Counted,
) -> None:
    """Add an action that begins now, by the store's clock."""
    d = db.dialect
    table, text = d.table("bulk"), msgspec.json.encode(filter, enc_hook=_plain).decode()
    db.changed(
        f"INSERT INTO {table} (id, action, filter, more_retries, actor, reason, total, exact,"
        f" created_at) VALUES ({d.id_value}, {d.values(7)}, {d.now})",
        (id, str(action), text, more_retries, actor, reason, total.jobs, total.exact),
    )
    db.changed(
        f"DELETE FROM {table} WHERE finished_at IS NOT NULL AND id NOT IN"
        f" (SELECT id FROM {table} ORDER BY id DESC LIMIT {d.value})",
        (MAX_KEPT,),
    )


def stop(db: Statements, bulk_id: str, actor: str) -> None:
    """End an action early. One that has ended stays unchanged."""
    d = db.dialect
    db.changed(
        f"UPDATE {d.table('bulk')} SET finished_at = {d.now}, stopped_by = {d.value}"
        f" WHERE id = {d.id_value} AND finished_at IS NULL",
        (actor, bulk_id),
    )


def hold(db: Statements, bulk: search.Bulk) -> bool:
    """Lock the row of `bulk` until the end of the transaction.

    Returns False if the action advanced or ended since `bulk` was read, or if another transaction
    holds the lock.
    """
    d = db.dialect
    statement = (
        f"SELECT 1 FROM {d.table('bulk')} WHERE id = {d.id_value} AND batches = {d.value}"
        f" AND finished_at IS NULL {d.skip_locked}"
    )
    return bool(db.rows(statement, (bulk.id, bulk.batches)))


def advance(db: Statements, bulk: search.Bulk, *, ended: bool) -> None:
    """Store the cursor and the counts of `bulk` after one more batch."""
    d = db.dialect
    db.changed(
        f"UPDATE {d.table('bulk')} SET cursor = {d.id_value}, changed = {d.value},"
        f" refused = {d.value}, batches = batches + 1,"
        f" finished_at = {d.now if ended else 'NULL'} WHERE id = {d.id_value}",
        (bulk.cursor, bulk.changed, bulk.refused, bulk.id),
    )


# --- batches


def about(filter: search.Filter, action: search.Action, **more: Any) -> search.Query:
    """Return the query for the jobs of a filter whose status allows an action."""
    statuses = search.sources(action)
    if filter.status is not None and filter.status not in statuses:
        more["before"] = BEFORE_ALL
    if filter.status is None and len(statuses) == 1:
        filter = replace(filter, status=statuses[0])
    among = statuses if filter.status is None else ()
    more |= {
        "not_due": action is search.Action.RUN_NOW,
        "leaves_snoozed": search.leaves_snoozed(action, filter),
    }
    return search.query_of(filter, among=among, **more)


def next_ids(read: Reader, bulk: search.Bulk) -> tuple[Sequence[str], str | None]:
    """Return the jobs of the next batch, and the last id it looks at, None if there are no more."""
    # Followers first, so that no cancelled parent releases or skips one meanwhile.
    back = bulk.action is search.Action.CANCEL and bulk.filter.workflow is not None
    from_here: dict[str, Any] = {"before" if back else "after": bulk.cursor}
    query = about(bulk.filter, bulk.action, **from_here, oldest_first=not back, limit=BATCH)
    failed = query.status == Status.FAILED
    start = bulk.created_at
    query = replace(query, created_by=start, settled_by=start if failed else None)
    return some_ids(read, query)


def step(store: Store, bulk: search.Bulk) -> bool:
    """Do the next batch of an action, unless another process has done it since `bulk` was read.

    Returns whether this batch was the last one.
    """
    ids, cursor = next_ids(store.read, bulk)
    waits = True

    def act(db: Database) -> bool:
        nonlocal waits
        try:
            return batch(db, bulk, ids, cursor, waits=waits)
        except Exception as error:
            waits = not waited_for_a_lock(error)
            raise

    return store.write("bulk", act).result()


def batch(
    db: Database,
    bulk: search.Bulk,
    job_ids: Sequence[str],
    cursor: str | None,
    *,
    waits: bool = True,
) -> bool:
    """Change these jobs and advance the cursor, unless another process has done this batch.

    Without `waits`, locked jobs count as refused. Returns whether this batch was the last one.
    """
    if not hold(db, bulk):
        return False
    busy = set() if waits else dependencies.held_up(db, sorted(job_ids))
    jobs = db.lock(sorted({*job_ids} - busy))
    now = db.now()
    keys = unique_keys.keys_of(db, list(jobs)) if bulk.action is search.Action.RETRY else {}
    taken: set[str] = set()
    spares = search.leaves_snoozed(bulk.action, bulk.filter)
    off = put_off(db, jobs.values()) if spares or bulk.filter.state else ()
    changes: list[tuple[Job, transitions.Steps]] = []
    for job in jobs.values():
        try:
            late = job.finished_at is not None and job.finished_at > bulk.created_at
            spared = late or (spares and job.id in off)
            # If it is settled, it was so at the start.
            if not spared and fits(bulk.filter, job, now, off):
                steps = follow(job, _event(bulk), now)
                if bulk.action is search.Action.RETRY:
                    transitions.check_retry(job, keys, taken, now)
                changes += [(job, steps)] if transitions.is_changed(job, steps[-1]) else []
        except IllegalTransition:
            continue
    changes, _ = transitions.save_unless_refused(db, changes)
    signals.end_waits(db, [job for job, _ in changes])
    if bulk.action is search.Action.RETRY:
        transitions.restore_behind(db, [job.id for job, _ in changes], bulk.signature)
    failpoints.hit("bulk.between_jobs_and_cursor")
    done = replace(
        bulk,
        cursor=cursor or bulk.cursor,
        changed=bulk.changed + len(changes),
        refused=bulk.refused + len(job_ids) - len(changes),
    )
    ended = cursor is None
    advance(db, done, ended=ended)
    return ended


def _event(bulk: search.Bulk) -> Event:
    actor, reason = bulk.signature, bulk.reason
    match bulk.action:
        case search.Action.RETRY:
            return Retried(more_retries=bulk.more_retries, actor=actor, reason=reason)
        case search.Action.CANCEL:
            return Cancelled(actor=actor, reason=reason)
        case search.Action.RUN_NOW:
            return Amended(delay=0, actor=actor, reason=reason)
