"""The table of workflows, and what their pages and pictures read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tenure.jobs.queue_rights import Patterns
from tenure.jobs.stacks import Link, Member
from tenure.jobs.workflows import (
    GraphDependency,
    GraphJob,
    GraphPage,
    Relative,
    RelativePage,
    Workflow,
    WorkflowStatus,
    endings_of,
    status_of,
)
from tenure.lifecycle import Status
from tenure.store.dialect import Reads
from tenure.store.rows import read_rows

COLUMNS = ("id", "name", "key", "statuses", "created_at", "created_by", "finished_at")
MAX_MEMBERS, MAX_LINKS = 20_000, 50_000
"""If a workflow has more jobs or dependencies, it is not drawn. A page has fewer dependencies."""
MAX_TYPES = 500
MAX_EXAMINED = 1_000
"""Jobs of a workflow that are examined to find one in the queues of who lists workflows."""


def get(db: Reads, workflow: str, queues: Patterns | None) -> Workflow | None:
    """Return a workflow with its jobs counted in some queues; None if there is none there."""
    d = db.dialect
    found = _read(db, f"WHERE id = {d.id_value}", (workflow,))
    if not found:
        return None
    allowed, values = d.in_queues("queue", queues)
    rows = db.rows(
        f"SELECT status, count(*) FROM {d.table('job')}"
        f" WHERE workflow = {d.id_value} AND {allowed} GROUP BY status",
        (workflow, *values),
    )
    return _workflow(found[0], _in_order(dict(rows))) if rows or queues is None else None


def listed(
    db: Reads,
    queues: Patterns | None,
    *,
    status: WorkflowStatus | None,
    name: str | None,
    limit: int,
    before: str | None,
) -> list[Workflow]:
    """Return workflows, newest first; in some queues, those of whose first jobs one is there."""
    d = db.dialect
    conditions, values = ["1 = 1"], list[Any]()
    if status is WorkflowStatus.RUNNING:
        conditions.append("finished_at IS NULL")
    elif status is not None:
        values += (endings := endings_of(status))
        # SQLite would sort all that have completed, as an index has them in the order of time.
        is_common = d.engine == "sqlite" and status is WorkflowStatus.COMPLETED
        statuses = "+statuses" if is_common else "statuses"
        conditions.append(f"finished_at IS NOT NULL AND {statuses} IN ({d.values(len(endings))})")
    if name is not None:
        conditions.append(f"name = {d.value}")
        values.append(name)
    if before is not None:
        conditions.append(f"id < {d.id_value}")
        values.append(before)
    if queues is not None:
        allowed, more = d.in_queues("queue", queues)
        conditions.append(
            f"EXISTS (SELECT 1 FROM (SELECT queue FROM {d.table('job')} WHERE workflow = "
            f"flow.id ORDER BY id LIMIT {MAX_EXAMINED}) AS one WHERE {allowed})"
        )
        values += more
    rest = f"WHERE {' AND '.join(conditions)} ORDER BY flow.id DESC LIMIT {limit}"
    return [_workflow(fields, None) for fields in _read(db, rest, values)]


def _read(db: Reads, rest: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    return read_rows(db, COLUMNS, f"{db.dialect.table('workflow')} AS flow {rest}", values)


def _workflow(fields: Mapping[str, Any], jobs: Mapping[str, int] | None) -> Workflow:
    own = {name: value for name, value in fields.items() if name != "statuses"}
    endings = None if fields["finished_at"] is None else fields["statuses"] or ""
    return Workflow(**own, status=status_of(endings), jobs=jobs)


def graph(
    db: Reads, workflow: str, queues: Patterns | None, *, limit: int, after: str | None
) -> GraphPage:
    """Return jobs of a workflow in some queues, oldest first, and their dependencies there."""
    d = db.dialect
    allowed, of = d.in_queues("queue", queues)
    begin, first = (f" AND id > {d.id_value}", [after]) if after is not None else ("", [])
    rows = db.rows(
        f"SELECT {d.id('id')}, type, queue, status, needs FROM {d.table('job')} AS job"
        f" WHERE workflow = {d.id_value} AND {allowed}{begin} ORDER BY job.id LIMIT {limit + 1}",
        (workflow, *of, *first),
    )
    jobs = [GraphJob(*row) for row in rows[:limit]]
    if not jobs:
        return GraphPage([], [], None)
    visible, inside = d.in_queues("parent.queue", queues)
    ties = db.rows(
        f"SELECT {d.id('tie.parent')}, {d.id('tie.child')}, tie.meets, tie.name"
        f" FROM {d.table('job')} AS job JOIN {d.table('dependency')} AS tie ON tie.child = job.id"
        f" JOIN {d.table('job')} AS parent ON parent.id = tie.parent AND {visible}"
        f" WHERE job.workflow = {d.id_value} AND job.id >= {d.id_value} AND job.id <= {d.id_value}"
        f" ORDER BY tie.child, tie.parent LIMIT {MAX_LINKS + 1}",
        (*inside, workflow, jobs[0].id, jobs[-1].id),
    )
    shown = {job.id for job in jobs}
    if len(ties) > MAX_LINKS:  # the page ends before the job whose dependencies are cut
        last = ties[-1][1]
        jobs = [job for job in jobs if job.id < last]
        shown = {job.id for job in jobs}
    more = len(rows) > len(jobs)
    dependencies = [GraphDependency(*tie) for tie in ties if tie[1] in shown]
    return GraphPage(jobs, dependencies, jobs[-1].id if more else None)


def relatives(
    db: Reads,
    job_id: str,
    queues: Patterns | None,
    *,
    followers: bool,
    limit: int,
    after: str | None,
) -> RelativePage:
    """Return what a job waits for, or what waits for it, in some queues, oldest first."""
    d = db.dialect
    own, other = ("parent", "child") if followers else ("child", "parent")
    allowed, values = d.in_queues("job.queue", queues)
    begin, first = (f" AND tie.{other} > {d.id_value}", [after]) if after is not None else ("", [])
    rows = db.rows(
        f"SELECT {d.id('job.id')}, job.type, job.queue, job.status, tie.meets, tie.name"
        f" FROM {d.table('dependency')} AS tie JOIN {d.table('job')} AS job ON job.id = tie.{other}"
        f" WHERE tie.{own} = {d.id_value} AND {allowed}{begin}"
        f" ORDER BY tie.{other} LIMIT {limit + 1}",
        (job_id, *values, *first),
    )
    found = [Relative(*row) for row in rows[:limit]]
    return RelativePage(found, found[-1].id if len(rows) > limit else None)


def members(
    db: Reads, workflow: str, queues: Patterns | None
) -> tuple[Sequence[Member], Sequence[Link]] | None:
    """Return the jobs of a workflow in some queues, and what ties them; None if too many."""
    d = db.dialect
    allowed, values = d.in_queues("queue", queues)
    jobs, of = d.table("job"), f"workflow = {d.id_value} AND {allowed}"
    found = db.rows(
        f"SELECT {d.id('id')}, type, status, needs FROM {jobs} AS job WHERE {of}"
        f" ORDER BY job.id LIMIT {MAX_MEMBERS + 1}",
        (workflow, *values),
    )
    if len(found) > MAX_MEMBERS:
        return None
    links = db.rows(
        f"SELECT {d.id('tie.parent')}, {d.id('tie.child')}, tie.meets FROM {jobs} AS job"
        f" JOIN {d.table('dependency')} AS tie ON tie.parent = job.id WHERE job.{of}"
        f" LIMIT {MAX_LINKS + 1}",
        (workflow, *values),
    )
    if len(links) > MAX_LINKS:
        return None
    return found, links


def by_type(db: Reads, workflow: str, queues: Patterns | None) -> Mapping[str, Mapping[str, int]]:
    """Return how many jobs of a workflow there are by type and status."""
    d = db.dialect
    allowed, values = d.in_queues("queue", queues)
    rows = db.rows(
        f"SELECT type, status, count(*) FROM {d.table('job')}"
        f" WHERE workflow = {d.id_value} AND {allowed}"
        f" GROUP BY type, status ORDER BY type LIMIT {MAX_TYPES}",
        (workflow, *values),
    )
    found = defaultdict[str, Counter[str]](Counter)
    for type, status, jobs in rows:
        found[type][status] = jobs
    return {type: _in_order(jobs) for type, jobs in found.items()}


def _in_order(jobs: Mapping[str, int]) -> Mapping[str, int]:
    """Return numbers by status in the order of the lifecycle."""
    return {str(status): jobs[status] for status in Status if jobs.get(status)}
