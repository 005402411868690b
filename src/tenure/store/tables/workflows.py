"""The table of workflows: what their pages and pictures read, and what happens to workflows.

They are added, extended, finished and, once they are old, deleted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from tenure.errors import InvalidInput, KeyConflict, WorkflowNotFound
from tenure.lifecycle import Status
from tenure.rules.jobs import CheckedJob, Enqueued
from tenure.rules.tokens import Patterns
from tenure.rules.workflows import (
    ENDINGS,
    GraphDependency,
    GraphJob,
    GraphPage,
    Link,
    Member,
    Relative,
    RelativePage,
    Workflow,
    WorkflowStatus,
    endings_of,
    status_of,
)
from tenure.store import enqueue
from tenure.store.database import Database, Dialect, Passed, Reads, Statements
from tenure.store.refusals import Kind, Refused, delete
from tenure.store.rows import read_rows
from tenure.values.ids import AFTER_ALL, BEFORE_ALL

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


# --- adding ---------------------------------------------------------------------------------------

MAX_JOBS = 100_000
"""Jobs of a workflow."""
MAX_LOOKED = 1_000
"""Workflows that one call looks at."""
STRIDE = 100
"""Jobs that have to settle until that is noted: a note is a write."""
PASSED_FOR = timedelta(hours=1)
SETS = tuple(words for status in WorkflowStatus for words in endings_of(status))
"""Every value of `workflow.statuses`."""


class New(NamedTuple):
    """A workflow to add, or to extend."""

    id: str
    name: str
    key: str | None
    fingerprint: str | None
    created_by: str


class Stored(NamedTuple):
    """The workflow that was added, or was there, and the ids of the jobs that were asked for."""

    workflow: str
    jobs: Sequence[str]
    added: Sequence[Enqueued] = ()
    created: bool = False


def add(
    db: Database, new: New, jobs: Sequence[CheckedJob], queues: Patterns | None = None
) -> Stored:
    """Add a workflow with jobs, unless one with its key is there; raises KeyConflict."""
    from tenure.store.borrowed import dependencies, workflows  # they come with drivers of callers

    known = dependencies.run(db, workflows.begin(db.dialect.engine, new, len(jobs)))
    return known or _with_jobs(db, new.id, jobs)


def extend(
    db: Database, new: New, jobs: Sequence[CheckedJob], queues: Patterns | None = None
) -> Stored:
    """Add jobs to a workflow, unless it has them by this key. It is locked before.

    Raises WorkflowNotFound or KeyConflict.
    """
    d = db.dialect
    here = f"FROM {d.table('workflow')} WHERE id = {d.id_value}"
    members = f"FROM {d.table('job')} WHERE workflow = {d.id_value}"
    allowed, values = d.in_queues("queue", queues)
    there = d.is_id(new.id) and db.rows(f"SELECT 1 {here} {d.hold}", (new.id,))
    if queues is not None and there:
        there = db.rows(f"SELECT 1 {members} AND {allowed} LIMIT 1", (new.id, *values))
    if not there:
        raise WorkflowNotFound(new.id)
    if new.key is not None and (known := db.known(jobs)):
        if [known.get(job.id, (job, None))[1] for job in jobs] != [new.fingerprint] * len(jobs):
            raise KeyConflict(new.key, workflow_id=new.id)
        return Stored(new.id, [known[job.id][0].id for job in jobs])
    ((count,),) = db.rows(f"SELECT count(*) {members}", (new.id,))
    if count + len(jobs) > MAX_JOBS:
        raise InvalidInput(f"the workflow would have more than {MAX_JOBS:,} jobs: begin another")
    return _with_jobs(db, new.id, jobs)


def _with_jobs(db: Database, workflow: str, jobs: Sequence[CheckedJob]) -> Stored:
    added = enqueue.add_together(db, jobs)
    return Stored(workflow, [one.job.id for one in added], added, created=True)


def last_open(db: Reads, workflow: str, before: str) -> str | None:
    """Return the last job of a workflow before an id that is not settled; None if all are."""
    d = db.dialect
    found = db.rows(
        f"SELECT {d.id('id')} FROM {d.table('job')} AS job WHERE workflow = {d.id_value}"
        f" AND id < {d.id_value} AND finished_at IS NULL ORDER BY job.id DESC LIMIT 1",
        (workflow, before),
    )
    return found[0][0] if found else None


# --- the end of a workflow


def unfinished(db: Reads, before: str) -> tuple[Sequence[str], str]:
    """Return the workflows of which there is something to note, and where to look next.

    Looks at some workflows before an id that are not known to be finished, newest first.
    """
    d = db.dialect
    among = f"FROM {d.table('job')} AS job WHERE workflow = one.id AND job.id > {_done(d)}"
    passed = f"SELECT job.id {among} ORDER BY job.id LIMIT 1 OFFSET {STRIDE}"
    rows = db.rows(
        f"SELECT {d.id('one.id')}, ({_open(d)}) IS NULL OR ({passed}) < ({_open(d)})"
        f" FROM (SELECT id, settled_to FROM {d.table('workflow')} WHERE finished_at IS NULL"
        f" AND id < {d.id_value} ORDER BY id DESC LIMIT {MAX_LOOKED}) AS one ORDER BY 1 DESC",
        (before,),
    )
    return [id for id, due in rows if due], rows[-1][0] if len(rows) == MAX_LOOKED else AFTER_ALL


def finish(db: Statements, workflows: Sequence[str]) -> None:
    """Note how far workflows are, and what their jobs ended as if none is left.

    They are locked first, and looked at again in another statement: what adds a job to one, or lets
    one of its jobs run again, locks it too.
    """
    d = db.dialect
    table, job = d.table("workflow"), d.table("job")
    some = d.ids(len(workflows))
    held = db.rows(
        f"SELECT {d.id('id')} FROM {table} WHERE id IN ({some}) {d.skip_locked}", workflows
    )
    if not held:
        return
    said = "CASE WHEN status = 'cancelled' AND event = 'skipped' THEN 'skipped' ELSE status END"
    words = " || ".join(
        f"max(CASE {said} WHEN '{word}' THEN '{word} ' ELSE '' END)" for word in ENDINGS
    )
    ended = f"SELECT rtrim({words}) FROM {job} WHERE workflow = one.id"
    reached = (
        f"SELECT job.id FROM {job} AS job WHERE workflow = one.id"
        f" AND job.id < coalesce(({_open(d)}), {d.as_id(repr(AFTER_ALL))})"
        f" ORDER BY job.id DESC LIMIT 1"
    )
    db.changed(
        f"UPDATE {table} AS one SET settled_to = ({reached}),"
        f" finished_at = CASE WHEN ({_open(d)}) IS NULL THEN {d.now} END,"
        f" statuses = CASE WHEN ({_open(d)}) IS NULL THEN coalesce(({ended}), '') END"
        f" WHERE id IN ({d.ids(len(held))}) AND finished_at IS NULL",
        [id for (id,) in held],
    )


def _done(d: Dialect) -> str:
    return f"coalesce(one.settled_to, {d.as_id(repr(BEFORE_ALL))})"


def _open(d: Dialect) -> str:
    """Select the first job of the workflow `one` that is not settled."""
    return (
        f"SELECT job.id FROM {d.table('job')} AS job WHERE workflow = one.id"
        f" AND job.id > {_done(d)} AND finished_at IS NULL ORDER BY job.id LIMIT 1"
    )


# --- retention


def prune(
    db: Database, before: Mapping[str, datetime], place: Sequence[int], limit: int
) -> tuple[Counter[Kind], Refused]:
    """Delete up to `limit` jobs of a workflow that is old enough, and with the last one itself.

    `before` is that of jobs, by status: each status that the workflow has must be given, and the
    earliest time holds. Jobs with an entry of the ledger after `place` are left, and jobs that
    others wait for: a workflow that has only such jobs is passed over. So is, for an hour, one of
    which the database refused to delete a job. Returns how many of a status, queue and type were
    deleted, and what was refused.
    """
    d = db.dialect
    table, job = d.table("workflow"), d.table("job")
    its = f"FROM {job} AS job WHERE workflow = one.id"
    for time in sorted(set(before.values())):
        words = tuple(word for word in SETS if _time_of(word, before) == time)
        if not words:
            continue
        mark = db.passed.get(words)
        if mark and not mark.since <= db.now() < mark.since + PASSED_FOR:
            mark = None
        behind = f" AND (finished_at, id) > ({d.value}, {d.id_value})" if mark else ""
        # The index has the oldest of each set of statuses first. Of several sets all would be read,
        # and so would all jobs for the plan that a condition with EXISTS may get.
        in_order = "ORDER BY one.finished_at, one.id LIMIT 1"
        oldest = (
            f"SELECT {d.id('one.id')} FROM {table} AS one WHERE statuses = word.word"
            f" AND finished_at < {d.value}{behind} AND ((SELECT 1 {its} LIMIT 1) IS NULL"
            f" OR (SELECT 1 {its} AND {_is_unneeded(d)} LIMIT 1) IS NOT NULL) {in_order}"
        )
        sets = f"WITH word (word) AS (VALUES {', '.join([f'({d.value})'] * len(words))})"
        rows = db.rows(
            f"{sets} SELECT ({oldest}) FROM word",
            (*words, d.to_bound(time), *(mark[1:] if mark else ()), *place),
        )
        if not (ids := [id for (id,) in rows if id is not None]):
            continue
        found = db.rows(  # again as above: one may run again by now
            f"SELECT {d.id('id')}, finished_at FROM {table} AS one WHERE id IN ({d.ids(len(ids))})"
            f" AND statuses IN ({d.values(len(words))}) AND finished_at < {d.value}"
            f" {in_order} {d.free_to_delete}",
            (*ids, *words, d.to_bound(time)),
        )
        for id, finished_at in found:
            rows = _unneeded(db, f"workflow = {d.id_value}", [id], place, limit)
            gone, refused = delete(db, rows)
            if refused:
                db.passed[words] = Passed(mark.since if mark else db.now(), finished_at, id)
            elif len(rows) < limit:
                empty = f"NOT EXISTS (SELECT 1 FROM {job} WHERE workflow = {d.id_value})"
                db.changed(f"DELETE FROM {table} WHERE id = {d.id_value} AND {empty}", (id, id))
            return gone, refused
    return Counter(), []


def _time_of(words: str, before: Mapping[str, datetime]) -> datetime | None:
    """Return before when a workflow with such endings has to be finished; None: it is kept."""
    statuses = {"cancelled" if word == "skipped" else word for word in words.split()}
    if not statuses <= before.keys():
        return None
    return min(before[status] for status in statuses or before)


def prune_unchanged(
    db: Database, entries: Mapping[str, int], place: Sequence[int]
) -> tuple[Counter[Kind], Refused]:
    """Delete the jobs outside workflows whose ledger has as many entries as given by id.

    Jobs with an entry after `place` are left. Returns what `prune` returns.
    """
    d = db.dialect
    some = d.ids(len(entries))
    where = f"workflow IS NULL AND id IN ({some})"
    rows = _unneeded(db, where, list(entries), place, len(entries))
    counts = dict(  # under the locks: a new statement sees what was committed before them
        db.rows(
            f"SELECT {d.id('job_id')}, count(*) FROM {d.table('transition')}"
            f" WHERE job_id IN ({some}) GROUP BY job_id",
            list(entries),
        )
    )
    return delete(db, [row for row in rows if counts[row[0]] == entries[row[0]]])


def _unneeded(
    db: Statements, where: str, values: Sequence[Any], place: Sequence[int], limit: int
) -> list[Any]:
    """Lock and return settled jobs without an entry after `place`, for which no job waits."""
    d = db.dialect
    return db.rows(
        f"SELECT {d.id('id')}, status, queue, type FROM {d.table('job')} AS job WHERE {where}"
        f" AND {_is_unneeded(d)} ORDER BY job.id DESC LIMIT {d.value} {d.free_to_delete}",
        (*values, *place, limit),
    )


def _is_unneeded(d: Dialect) -> str:
    after = f"{d.table('transition')} AS t WHERE t.job_id = job.id AND {d.after}"
    waits = (
        f"SELECT 1 FROM {d.table('dependency')} AS tie"
        f" JOIN {d.table('job')} AS child ON child.id = tie.child"
        f" WHERE tie.parent = job.id AND child.finished_at IS NULL AND job.followed > 0"
    )
    halts = (
        f"SELECT count(*) FROM {d.table('line')} AS line WHERE line.queue = job.queue"
        " AND line.partition = coalesce(job.partition, '') AND line.id = job.id"
    )
    return (
        f"job.finished_at IS NOT NULL AND (SELECT count(*) FROM {after}) = 0"
        f" AND NOT EXISTS ({waits}) AND (job.status <> 'failed' OR ({halts}) = 0)"
    )
