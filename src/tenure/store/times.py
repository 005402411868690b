"""Set right what a clock that was ahead has left behind, once it has been put back."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tenure.errors import WriteRefused
from tenure.events import SWEEP, Amended
from tenure.jobs.text import quantity
from tenure.lifecycle import follow
from tenure.store.protocol import DROPPED_CHANGE, Database
from tenure.store.refusals import unless_refused
from tenure.store.tables import limits
from tenure.store.transitions import Steps, save_unless_refused

log = logging.getLogger(__name__)

MIN_STEP_SECONDS = 60
"""Smaller steps back are waited for."""
MAX_LEFT_SECONDS = 3_600
"""How long a lease may still last after a step back. Its holder renews it as always."""


def set_right(db: Database, limit: int) -> list[Steps]:
    """Shorten up to `limit` leases, and make up to `limit` jobs due; return the steps of the jobs.

    That the clock was put back shows in the statistics, which have reached a time still to come.
    A job was not delayed if it was to run when it was added, or was retried by the clock by which
    it was claimed. Others may have been delayed by the application, and wait. Rates are set right
    without such a sign, and rows of limits that limit nothing are deleted.
    """
    limits.tidy(db)
    d = db.dialect
    ahead = f"millis > {d.millis.format(time=d.now)} + {MIN_STEP_SECONDS * 1000}"
    if not db.rows(f"SELECT 1 FROM {d.table('measured')} WHERE {ahead}"):
        return []
    job, end = d.table("job"), d.later(MAX_LEFT_SECONDS)
    lasting = (
        f"SELECT {d.id('id')} FROM {job} AS job"
        f" WHERE status = 'processing' AND lease_expires_at > {end}"
        f" ORDER BY job.id LIMIT {d.value} OFFSET {d.value} {d.skip_locked}"
    )

    def shorten(ids: Sequence[str]) -> int:
        these = f"id IN ({d.ids(len(ids))})"
        shortened = db.changed(f"UPDATE {job} SET lease_expires_at = {end} WHERE {these}", ids)
        if shortened < len(ids):
            raise WriteRefused(DROPPED_CHANGE)
        return shortened

    ids = [id for (id,) in db.rows(lasting, (limit, db.left.of("lasting")))]
    shortened, unshortened = unless_refused(db, shorten, ids) if ids else ([], [])
    db.left.note("lasting", refused=len(unshortened), full=len(ids) >= limit)
    if shortened:
        leases = quantity(sum(shortened), "lease")
        log.warning("the clock was put back: %s shortened to an hour", leases)
    late = (
        f"SELECT {d.id('id')} FROM {job} WHERE status = 'pending' AND run_at > {d.now}"
        f" AND (run_at = created_at OR event = 'retried'"
        f" AND started_at > {d.now} AND run_at >= started_at)"
        f" LIMIT {d.value} OFFSET {d.value} {d.skip_locked}"
    )
    jobs = db.lock([id for (id,) in db.rows(late, (limit, db.left.of("late")))])
    due = Amended(changes={"run_at": db.now()}, actor=SWEEP)
    changes = [(job, follow(job, due, db.now())) for job in jobs.values()]
    saved, unsaved = save_unless_refused(db, changes)
    db.left.note("late", refused=len(unsaved), full=len(jobs) >= limit)
    for _, refusal in [] if shortened or saved else [*unshortened, *unsaved]:
        raise refusal
    return [steps for _, steps in saved]
