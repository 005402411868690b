"""The tables of unique keys: the holders, which triggers keep, and rules that last for a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tenure.store.database import Reads, Statements

FORGET_AT_ONCE = 1_000


def keys_of(db: Reads, job_ids: Sequence[str]) -> Mapping[str, tuple[str, str | None]]:
    """Return the unique key of each job that would hold it again if it were retried.

    With it the id of the job that holds it now, None if none does.
    """
    d = db.dialect
    if not job_ids:
        return {}
    ids = d.ids(len(job_ids))
    rows = db.rows(
        f"SELECT {d.id('job.id')}, job.unique_key, {d.id('held.job_id')}"
        f" FROM {d.table('job')} AS job LEFT JOIN {d.table('unique_key')} AS held"
        f" ON held.key = job.unique_key AND held.job_id <> job.id"
        f" WHERE job.id IN ({ids}) AND job.unique_until = 'settled'",
        job_ids,
    )
    return {job_id: (key, holder) for job_id, key, holder in rows}


def forget(db: Statements) -> int:
    """Delete some rules whose time is over; return how many."""
    d = db.dialect
    table = d.table("throttle")
    over = f"SELECT key FROM {table} WHERE expires_at <= {d.now} ORDER BY expires_at"
    return db.changed(
        f"DELETE FROM {table} WHERE key IN ({over} LIMIT {FORGET_AT_ONCE} {d.free_to_delete})"
    )
