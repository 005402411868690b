"""What happens to workflows: they are added, extended, finished and, once they are old, deleted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from tenure.errors import InvalidInput, KeyConflict, WorkflowNotFound
from tenure.jobs.enqueue import CheckedJob, Enqueued
from tenure.jobs.ids import AFTER_ALL, BEFORE_ALL
from tenure.jobs.queue_rights import Patterns
from tenure.jobs.workflows import ENDINGS, WorkflowStatus, endings_of
from tenure.store import enqueue
from tenure.store.deletion import Kind, Refused, delete
from tenure.store.dialect import Dialect, Reads, Statements
from tenure.store.protocol import Database, Passed

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
    from tenure.store.borrowed import unique_keys, workflows  # they come with drivers of callers

    known = unique_keys.run(db, workflows.begin(db.dialect.engine, new, len(jobs)))
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
