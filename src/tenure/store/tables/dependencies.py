"""Reads the table of dependencies. `store/borrowed/links.py` writes it."""

from __future__ import annotations

from tenure.store.dialect import Reads


def parents(db: Reads, job_id: str) -> list[tuple[str, str, str, str]]:
    """Return each job that a job waits or waited for: id, queue, status, and what meets it."""
    d = db.dialect
    found = db.rows(
        f"SELECT {d.id('job.id')}, job.queue, job.status, meets"
        f" FROM {d.table('dependency')} AS dependency"
        f" JOIN {d.table('job')} AS job ON job.id = dependency.parent"
        f" WHERE dependency.child = {d.id_value} AND meets <> 'past' ORDER BY dependency.parent",
        (job_id,),
    )
    return [(id, queue, status, meets) for id, queue, status, meets in found]
