"""What follows from endings and retries for jobs that wait: they are skipped, restored, or counted.

The triggers of the jobs count each ending, and release each job for which it was the last one. Two
tables say what is left: `revisit` has jobs for which this module decides whether they can still
run, and `overdue` has jobs with more followers than one statement counts.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import TypeAlias

from tenure import failpoints
from tenure.errors import TenureError
from tenure.events import Restored, Retried, Skipped, Unblocked
from tenure.jobs.graph import Edge, Numbers, Tally, met_sql, restored_by, skipped_by
from tenure.lifecycle import Job, Status, decide, follow, rest_sql
from tenure.store import transitions
from tenure.store.protocol import Database
from tenure.store.refusals import unless_refused
from tenure.store.tables import unique_keys
from tenure.store.transitions import Steps

AT_ONCE = 1_000
"""Jobs of which one transaction decides."""
DOOMED = "job.status = 'waiting' AND job.token = 0 AND edge.meets = 'completed'"
"""What a job that is skipped can doom: it will not complete."""
Refused: TypeAlias = list[tuple[str, TenureError]]
"""Jobs that the database refuses to change, each with its error."""
SKIPPED = "job.status = 'cancelled' AND job.event = 'skipped'"


def advance(db: Database) -> bool:
    """Count what is overdue and decide what is to be decided, some of it; return if any was left.

    Call again while it is. What the database refuses stays for a later call; its error is raised
    if nothing else was left.
    """
    counted, refused = _count_on(db)
    decided, more = decide_some(db)
    for _, refusal in [] if counted or decided else (*refused, *more):
        raise refusal
    return counted or bool(decided)


def _count_on(db: Database) -> tuple[bool, Refused]:
    """Count for more followers of jobs with overdue ones; return if there was such a job."""
    d = db.dialect
    some_of = f"LIMIT {AT_ONCE} OFFSET {db.left.of('overdue')}"
    overdue = f"{d.table('overdue')} AS one"
    named = f"SELECT {d.id('parent')} FROM {overdue} ORDER BY one.parent {some_of}"
    parents = [id for (id,) in db.rows(named)]
    refused: Refused = []
    for some in [parents] * bool(parents) if d.engine == "sqlite" else [[id] for id in parents]:
        counted, more = unless_refused(db, partial(_count, db), some)
        refused += more
        if any(counted):
            return True, refused
    db.left.note("overdue", refused=len(refused), full=len(parents) == AT_ONCE)
    return False, refused


def _count(db: Database, parents: Sequence[str]) -> bool:
    d = db.dialect
    if d.engine == "sqlite":
        among = f"parent IN ({d.ids(len(parents))})"
        return db.changed(f"DELETE FROM {d.table('overdue')} WHERE {among}", parents) > 0
    ((counted,),) = db.rows(f"SELECT {d.table('follow_on')}({AT_ONCE}, {d.id_value})", parents)
    return int(counted) >= 0


def decide_some(db: Database) -> tuple[list[str], Refused]:
    """Skip and restore what `revisit` names, and what is behind it.

    Returns what was named and decided, and what the database refuses to change. If it refuses a job
    behind one, that one is decided without those behind, which `revisit` then names.
    """
    d = db.dialect
    some_of = f"LIMIT {AT_ONCE} OFFSET {db.left.of('revisit')}"
    revisit = f"{d.table('revisit')} AS one"
    named = f"SELECT {d.id('job_id')} FROM {revisit} ORDER BY one.job_id {some_of}"
    ids = [id for (id,) in db.rows(named)]
    decided, refused = unless_refused(db, partial(_decide, db), ids) if ids else ([], [])
    for id, _ in [*refused]:
        more, still = unless_refused(db, partial(_decide, db, alone=True), [id])
        decided += more
        refused = [one for one in refused if one[0] != id] + still
    db.left.note("revisit", refused=len(refused), full=len(ids) == AT_ONCE)
    return [id for some in decided for id in some], refused


def _decide(db: Database, ids: Sequence[str], *, alone: bool = False) -> Sequence[str]:
    failpoints.hit("dependencies.before_decide")
    _forget(db, {*ids, *_skip(db, ids, alone=alone), *_restore(db, ids, alone=alone)})
    return ids


def retry(db: Database, job_id: str, event: Retried) -> Job:
    """Do what `transitions.apply` does, and restore what was skipped because of the failure."""
    job = transitions.apply(db, job_id, event)
    restore_behind(db, [job_id], event.actor)
    return job


def restore_behind(db: Database, parents: Sequence[str], actor: str) -> None:
    """Restore what was skipped because of jobs that are tried again: the first ones of it."""
    d = db.dialect
    if not parents:
        return
    children = db.rows(
        f"SELECT DISTINCT {d.id('job.id')} FROM {d.table('dependency')} AS edge"
        f" JOIN {d.table('job')} AS job ON job.id = edge.child AND {SKIPPED}"
        f" WHERE edge.parent IN ({d.ids(len(parents))}) LIMIT {AT_ONCE}",
        parents,
    )
    if children:
        _forget(db, _restore(db, [id for (id,) in children], actor))


def _skip(db: Database, roots: Sequence[str], *, alone: bool) -> Iterable[str]:
    jobs = _lock(db, sorted(roots) if alone else _behind(db, roots, DOOMED))
    # One that was claimed waits for a signal.
    waiting = [j for j in jobs.values() if j.status is Status.WAITING and not j.token]
    spare = {job.id: job.spare or 0 for job in waiting}
    doomed = [id for id in roots if spare.get(id, 0) < 0]
    if doomed:
        links = [link for link in _links(db, spare) if link.gate is None]
        now, skipped = db.now(), skipped_by(doomed, spare, links)
        events = {id: Skipped(spare=left) for id, left in skipped.items()}
        # Children first: a parent would be counted for them.
        transitions.save(db, [(jobs[id], follow(jobs[id], it, now)) for id, it in events.items()])
    return doomed


def _restore(
    db: Database, roots: Sequence[str], actor: str = "store", *, alone: bool = False
) -> Iterable[str]:
    reached = sorted(roots) if alone else _behind(db, roots, SKIPPED)
    jobs = {
        job.id: job
        for job in _lock(db, reached).values()
        if job.status is Status.CANCELLED and job.event == Skipped.name
    }
    taken = set[str]()
    for id, (key, holder) in unique_keys.keys_of(db, list(jobs)).items():
        if holder is not None or key in taken:
            del jobs[id]
        taken.add(key)
    if jobs:
        counts = restored_by(_needs(db, jobs), _tallies(db, jobs), _links(db, jobs))
        now = db.now()
        # Parents first: a trigger counts each change for the children that wait already.
        changes = [(jobs[id], _restored(jobs[id], it, actor, now)) for id, it in counts.items()]
        _set_gates(db, counts)
        transitions.save(db, changes)
    return reached


def _restored(job: Job, count: Numbers, actor: str, now: datetime) -> Steps:
    """The steps of a job that waits again, and of one for which by now enough has come."""
    back = decide(job, Restored(need=max(count.need, 1), spare=count.spare, actor=actor), now)
    if count.need > 0:
        return (back,)
    return (back, decide(back, Unblocked(need=count.need), now))


# --- SQL ------------------------------------------------------------------------------------------


def _behind(db: Database, roots: Sequence[str], which: str) -> list[str]:
    """Return jobs and the jobs behind them by dependencies that match `which`, ordered by id."""
    d = db.dialect
    rows = db.rows(
        f"WITH RECURSIVE behind (id) AS (SELECT id FROM {d.table('job')} WHERE id IN"
        f" ({d.ids(len(roots))}) UNION SELECT edge.child FROM behind"
        f" JOIN {d.table('dependency')} AS edge ON edge.parent = behind.id"
        f" JOIN {d.table('job')} AS job ON job.id = edge.child AND {which})"
        f" SELECT {d.id('id')} FROM behind LIMIT {AT_ONCE}",
        roots,
    )
    return sorted(id for (id,) in rows)


def _lock(db: Database, ids: Sequence[str]) -> Mapping[str, Job]:
    """Lock jobs and return them; before them their gates, as endings do."""
    d = db.dialect
    if d.engine == "postgres" and ids:
        gates = f"SELECT 1 FROM {d.table('gate')} WHERE child IN ({d.ids(len(ids))})"
        db.rows(f"{gates} ORDER BY child, gate {d.hold}", ids)
    return db.lock(ids)


def _links(db: Database, jobs: Collection[str]) -> list[Edge]:
    """The dependencies between jobs."""
    d = db.dialect
    gate = "NULL" if d.engine == "sqlite" else "gate"
    among, ids = d.ids(len(jobs)), list(jobs)
    rows = db.rows(
        f"SELECT {d.id('edge.parent')}, {d.id('child')}, meets, {gate}, NULL,"
        f" late.parent IS NOT NULL FROM {d.table('dependency')} AS edge {_late(db)}"
        f" WHERE edge.parent IN ({among}) AND (child IN ({among})) IS TRUE AND meets <> 'past'",
        (*ids, *ids),
    )
    return [Edge(*row) for row in rows]


def _late(db: Database) -> str:
    """Join what says that the ending of a parent counts later for a child."""
    overdue = db.dialect.table("overdue")
    return f"LEFT JOIN {overdue} AS late ON late.parent = edge.parent AND late.after < edge.child"


def _needs(db: Database, jobs: Collection[str]) -> dict[str, int | None]:
    d = db.dialect
    needs = f"SELECT {d.id('id')}, needs FROM {d.table('job')} WHERE id IN ({d.ids(len(jobs))})"
    return dict(db.rows(needs, [*jobs]))


def _tallies(db: Database, jobs: Collection[str]) -> dict[str, dict[int | None, Tally]]:
    """What the parents of jobs that are not among them have come to, by gate.

    A deleted parent had ended in a way that is not known. An overdue parent counts later.
    """
    d = db.dialect
    gate = "NULL" if d.engine == "sqlite" else "gate"
    ids, given = d.ids(len(jobs)), list(jobs)
    sums = ", ".join(
        f"CAST(sum(CASE WHEN {which} THEN 1 ELSE 0 END) AS int)" for which in ("met", "NOT met")
    )
    rows = db.rows(
        f"SELECT {d.id('child')}, gate, count(*), {sums} FROM (SELECT edge.child, {gate} AS gate,"
        f" CASE WHEN parent.id IS NULL THEN edge.meets = 'settled'"
        f" WHEN late.parent IS NULL AND {rest_sql('parent.')}"
        f" THEN {met_sql('edge', 'parent')} END AS met"
        f" FROM {d.table('dependency')} AS edge"
        f" LEFT JOIN {d.table('job')} AS parent ON parent.id = edge.parent"
        f" {_late(db)} WHERE edge.child IN ({ids}) AND edge.parent NOT IN ({ids})"
        " AND edge.meets <> 'past'"
        ") AS one GROUP BY child, gate",
        (*given, *given),
    )
    tallies: dict[str, dict[int | None, Tally]] = {}
    for child, number, *counts in rows:
        tallies.setdefault(child, {})[number] = Tally(*counts)
    return tallies


def _set_gates(db: Database, counts: Mapping[str, Numbers]) -> None:
    gates = [
        {"child": child, "gate": gate, "need": need, "spare": spare}
        for child, count in counts.items()
        for gate, (need, spare) in count.gates.items()
    ]
    if gates:
        d, columns = db.dialect, ("child", "gate", "need", "spare")
        db.changed(
            f"UPDATE {d.table('gate')} AS old SET need = new.need, spare = new.spare"
            f" FROM {d.objects('gate', columns)}"
            " WHERE old.child = new.child AND old.gate = new.gate",
            (json.dumps(gates),),
        )


def _forget(db: Database, job_ids: Iterable[str]) -> None:
    """Remove decided jobs from `revisit`. The triggers keep jobs that still have to be skipped."""
    ids, d = sorted(job_ids), db.dialect
    if ids:
        db.changed(f"DELETE FROM {d.table('revisit')} WHERE job_id IN ({d.ids(len(ids))})", ids)
