"""Add jobs that depend on others, and read what an enqueue asks about unique keys.

It looks at the jobs that others depend on, counts what they meet, and ties the others to them. Of
unique keys it reads who holds them, and which job was accepted last. Both are the same for a
connection of a caller and for one of the store, where `run` executes them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from msgspec.structs import replace

from tenure.errors import InvalidInput, JobNotFound, WriteRefused
from tenure.lifecycle import Job, Status, rest_sql
from tenure.rules import dependencies
from tenure.rules.jobs import CheckedJob, LinkedJob
from tenure.rules.tokens import includes
from tenure.rules.unique_keys import Seen, Throttled
from tenure.store.borrowed import drivers
from tenure.store.database import DROPPED, Reads
from tenure.store.rows import TIMED, UNIQUE, added_job
from tenure.store.sqlite.connection import kept
from tenure.store.sqlite.statements import INSERTED
from tenure.store.sqlite.writer import due

# The parents are locked in the order of their ids, so that none of them ends in between.
LOOK = {
    "postgres": f"""
WITH asked AS MATERIALIZED (SELECT CAST(CAST({{p}} AS text) AS json) AS doc
), keyed AS MATERIALIZED (
    SELECT id FROM {{s}}job WHERE idempotency_key = ANY (ARRAY(
        SELECT json_array_elements_text(doc -> 'keys') FROM asked))
), held AS MATERIALIZED (
    SELECT job.* FROM {{s}}job AS job WHERE id = ANY (ARRAY(
        SELECT CAST(json_array_elements_text(doc -> 'parents') AS uuid) FROM asked
        UNION SELECT id FROM keyed))
    ORDER BY id FOR NO KEY UPDATE
)
SELECT CAST(json_build_object('now', {{s}}clock(), 'parents', parents, 'known', known) AS text)
FROM (
    SELECT json_agg(json_build_array(id, queue, status, {rest_sql()}, coalesce(followed, 0)))
        AS parents FROM held) AS a, (
    SELECT json_agg(held) AS known FROM held WHERE id IN (SELECT id FROM keyed)) AS b
""",
    "sqlite": f"""
WITH asked AS MATERIALIZED (SELECT {{p}} AS doc)
SELECT CAST(json_object('now', now.at, 'parents', json((
    SELECT json_group_array(json_array(id, queue, status, {rest_sql()}, coalesce(followed, 0)))
    FROM tenure_job WHERE id IN (SELECT value FROM json_each(doc, '$.parents'))
)), 'known', json((
    SELECT json_group_array({drivers.SQLITE_JOB}) FROM tenure_job
    WHERE idempotency_key IN (SELECT value FROM json_each(doc, '$.keys'))
))) AS BLOB) FROM asked, tenure_now AS now
""",
}
# A separate statement with a lock, because a sweep that ends meanwhile could miss a new follower.
OVERDUE = {
    "postgres": """
SELECT CAST(json_object_agg(parent, after) AS text) FROM (SELECT parent, after FROM {s}overdue
    WHERE parent IN (SELECT CAST(json_array_elements_text(CAST(CAST({p} AS text) AS json)) AS uuid))
    ORDER BY parent FOR NO KEY UPDATE) AS late
""",
    "sqlite": """
SELECT CAST(json_group_object(parent, after) AS BLOB) FROM tenure_overdue
WHERE parent IN (SELECT value FROM json_each({p}))
""",
}
TIES = f"""
SELECT CAST({{array}}(tie.parent, job.queue, job.status, {rest_sql("job.")}, tie.meets, tie.name,
    own.needs) AS {{text}})
FROM {{s}}job AS own JOIN {{s}}dependency AS tie ON tie.child = own.id
    JOIN {{s}}job AS job ON job.id = tie.parent
WHERE own.id = {{id}} AND tie.meets <> 'past' ORDER BY tie.parent
"""
FULL = {
    "postgres": """
SELECT CAST(json_agg(json_build_array(name, max_pending, (SELECT count(*) FROM (
    SELECT FROM {s}ready WHERE queue = name LIMIT max_pending) AS pending)) ORDER BY name) AS text)
FROM {s}queue WHERE max_pending IS NOT NULL
    AND name IN (SELECT json_array_elements_text(CAST(CAST({p} AS text) AS json)))
""",
    "sqlite": """
SELECT CAST(json_group_array(json_array(name, max_pending, (SELECT count(*) FROM tenure_job
    WHERE status = 'pending' AND tenure_job.queue = name))) AS BLOB)
FROM tenure_queue WHERE max_pending IS NOT NULL AND name IN (SELECT value FROM json_each({p}))
""",
}

ENTERED = (*INSERTED, *UNIQUE, *("status", "need", "spare", "needs", "workflow", "followed"))
TIED = ("parent", "child", "meets", "name")
FOLLOWED = {
    "postgres": """
UPDATE {s}job AS job SET followed = coalesce(job.followed, 0) + new.followed
FROM json_populate_recordset(CAST(NULL AS {s}job), CAST(CAST({p} AS text) AS json)) AS new
WHERE job.id = new.id RETURNING 1
""",
    "sqlite": """
UPDATE tenure_job SET followed = coalesce(followed, 0) + (new.value ->> 'followed')
FROM json_each({p}) AS new WHERE tenure_job.id = new.value ->> 'id' RETURNING 1
""",
}
_JSON = "CAST(CAST({p} AS text) AS json)"


def insert(
    engine: str, table: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]
) -> drivers.Steps[None]:
    """Add rows to a table, in parts; raises WriteRefused if it is not all of them."""
    names = ", ".join(columns)
    if engine == "sqlite":
        cells = ", ".join(f"value ->> '{column}'" for column in columns)
        rest = f"SELECT {cells} FROM {drivers.SQLITE_OBJECTS}"
    else:
        rest = f"SELECT {names} FROM json_populate_recordset(CAST(NULL AS {{s}}{table}), {_JSON})"
    statement = f"INSERT INTO {{s}}{table} ({names}) {rest} RETURNING 1"
    for part in drivers.sent(rows):
        added = yield drivers.Ask(statement, drivers.written(part))
        if len(added) < len(part):
            raise WriteRefused(DROPPED)


class Looked(NamedTuple):
    """What came of adding jobs: either all of them were `made`, or none."""

    known: Sequence[tuple[Job, str | None]] = ()  # jobs that have one of the keys; fingerprints
    full: tuple[str, int] | None = None  # a queue without room, and its limit
    made: Sequence[Job] = ()


class _Parent(NamedTuple):
    """A parent as it was found, locked."""

    id: str
    queue: str
    status: str
    rests: bool
    followed: int


def add(
    engine: str,
    checked_jobs: Sequence[CheckedJob],
    known_as: Mapping[str, str],
    *,
    limited: bool = True,
) -> drivers.Steps[Looked]:
    """Add jobs, of which some depend on others, or return why not; then nothing was written.

    `known_as` maps ids of this call to the ids of the jobs that exist already in their place.
    """
    jobs = sorted(checked_jobs, key=lambda a: a.id)  # parents first
    links = _links(engine, jobs, known_as)
    own = {job.id for job in jobs}
    named = {link.parent for link in links} - own
    keys = [job.idempotency_key for job in jobs if job.idempotency_key]
    request = {"parents": sorted(named), "keys": keys}
    ((text,),) = yield drivers.Ask(LOOK[engine], drivers.written(request))
    answer = json.loads(text)
    if answer["known"]:
        return Looked(
            [(drivers.job_in(engine, one), one["fingerprint"]) for one in answer["known"]]
        )
    parents = {values[0]: _Parent(*values) for values in answer["parents"] or ()}
    _check_parents(jobs, parents, known_as)
    overdue = yield from _overdue(engine, parents.values())
    counts = _counts(jobs, links, parents, overdue)
    if limited and (full := (yield from _full(engine, jobs, counts))):
        return Looked(full=full)
    now = drivers.time_in(engine, answer["now"])
    followers = Counter(link.parent for link in links)
    docs, made = list[dict[str, Any]](), list[Job]()
    for job in jobs:
        count = counts.get(job.id)
        new = added_job(job, now, due(job, now), kept=kept)
        waits = count is not None and count.need > 0
        if count is not None:
            status = Status.WAITING if waits else Status.PENDING
            new = replace(new, status=status, need=count.need, spare=count.spare)
        doc = drivers.document(job) | {name: getattr(job, name) for name in UNIQUE}
        doc |= {name: getattr(new, name) for name in ("created_at", *TIMED)}
        doc |= {name: getattr(new, name) for name in ("status", "need", "spare")}
        doc |= {name: getattr(job, name, None) for name in ("needs", "workflow")}
        doc["followed"] = followers.get(job.id)
        docs.append({k: drivers.millis(v) if engine == "sqlite" else v for k, v in doc.items()})
        made.append(new)
    yield from insert(engine, "job", ENTERED, docs)
    if traced := [{"job_id": a.id, "traceparent": a.traceparent} for a in jobs if a.traceparent]:
        yield from insert(engine, "trace", ("job_id", "traceparent"), traced)
    yield from _tie(engine, links, counts, [{"id": i, "followed": followers[i]} for i in parents])
    by_id = {job.id: job for job in made}
    return Looked(made=[by_id[checked_job.id] for checked_job in checked_jobs])


def _links(
    engine: str, jobs: Sequence[CheckedJob], known_as: Mapping[str, str]
) -> list[dependencies.Edge]:
    """Return the dependencies of jobs, each once, on the jobs that exist under the names given."""
    links: list[dependencies.Edge] = []
    for job in jobs:
        if type(job) is LinkedJob:
            once = {known_as.get(edge.job_id, edge.job_id): edge for edge in reversed(job.edges)}
            parents = list(reversed(once.items()))
            for place, (parent, edge) in enumerate(parents):
                gate = (
                    dependencies.gate_of(place, len(parents), job.needs)
                    if engine == "postgres"
                    else None
                )
                links.append(dependencies.Edge(parent, job.id, edge.meets, gate, edge.name))
    if len(links) > dependencies.MAX_LINKS:
        raise InvalidInput(
            f"{len(links)} dependencies at once; add at most {dependencies.MAX_LINKS}", path="$"
        )
    return links


def _check_parents(
    jobs: Sequence[CheckedJob], parents: Mapping[str, _Parent], known_as: Mapping[str, str]
) -> None:
    own = {job.id for job in jobs}
    for job in jobs:
        if type(job) is LinkedJob:
            for edge in job.edges:
                id = known_as.get(edge.job_id, edge.job_id)
                if id not in own and not (
                    id in parents and includes(job.within, parents[id].queue)
                ):
                    raise JobNotFound(edge.job_id)


def _overdue(engine: str, parents: Any) -> drivers.Steps[Mapping[str, str]]:
    """The parents at rest whose followers are not all counted, and the last one that is."""
    many = [parent.id for parent in parents if parent.rests and parent.followed]
    if not many:
        return {}
    ((text,),) = yield drivers.Ask(OVERDUE[engine], drivers.written(many))
    found: dict[str, str] = json.loads(text or "{}")
    return found


def _counts(
    jobs: Sequence[CheckedJob],
    links: Sequence[dependencies.Edge],
    parents: Mapping[str, _Parent],
    overdue: Mapping[str, str],
) -> dict[str, dependencies.Numbers]:
    """What each job that depends on others has to wait for."""
    tallies: dict[str, dict[int | None, dependencies.Tally]] = {}
    for link in links:
        parent = parents.get(link.parent)  # None: it is added with it
        met = None
        if parent and parent.rests and not link.child > overdue.get(link.parent, link.child):
            met = dependencies.is_met(link.meets, parent.status)
        gates = tallies.setdefault(link.child, {})
        gates[link.gate] = gates.get(link.gate, dependencies.Tally()).plus(met)
    counts = {}
    for job in jobs:
        if gates := tallies.get(job.id, {}):
            needs, there = getattr(job, "needs", None), sum(t.parents for t in gates.values())
            counts[job.id] = dependencies.counted(
                gates, None if needs is None else min(needs, there)
            )
    return counts


def _full(
    engine: str, jobs: Sequence[CheckedJob], counts: Mapping[str, dependencies.Numbers]
) -> drivers.Steps[tuple[str, int] | None]:
    """A queue that has no room for those of the jobs that do not wait, and its limit."""
    wanted = Counter(job.queue for job in jobs if job.id not in counts or counts[job.id].need <= 0)
    if wanted:
        ((text,),) = yield drivers.Ask(FULL[engine], drivers.written(sorted(wanted)))
        for name, limit, pending in sorted(json.loads(text or "[]")):
            if pending + wanted[name] > limit:
                return name, limit
    return None


def _tie(
    engine: str,
    links: Sequence[dependencies.Edge],
    counts: Mapping[str, dependencies.Numbers],
    followed: Sequence[Any],
) -> drivers.Steps[None]:
    """Store dependencies and gates, and count followers."""
    rows = [link._asdict() for link in links]
    if rows:
        more = ("gate",) if engine == "postgres" else ()
        yield from insert(engine, "dependency", (*TIED, *more), rows)
    gates = [
        {"child": child, "gate": gate, "need": need, "spare": spare}
        for child, count in counts.items()
        for gate, (need, spare) in count.gates.items()
    ]
    if gates:
        yield from insert(engine, "gate", ("child", "gate", "need", "spare"), gates)
    if followed:
        yield drivers.Ask(FOLLOWED[engine], drivers.written(followed))


def ties(engine: str, job_id: str) -> drivers.Steps[dependencies.Ties]:
    """Return what a job depends on, as the transaction sees it."""
    rows = [json.loads(text) for (text,) in (yield drivers.ask(engine, TIES, job_id))]
    return [dependencies.ParentEdge(*row[:-1]) for row in rows], rows[0][-1] if rows else None


# --- unique keys ----------------------------------------------------------------------------------

T = TypeVar("T")

LOOK_FOR_KEYS = {
    "postgres": "SELECT {s}look_unique({p})",
    "sqlite": f"""
WITH asked AS MATERIALIZED (SELECT {{p}} AS request)
SELECT CAST(json_object('now', now.at, 'held', json((
    SELECT json_group_array(json_object('key', held.key, 'job', {drivers.SQLITE_JOB}))
    FROM tenure_unique_key AS held CROSS JOIN tenure_job ON id = held.job_id
    WHERE held.key IN (SELECT value FROM json_each(request, '$.keys'))
)), 'throttled', json((
    SELECT json_group_array(json_object('key', last.key, 'job_id', last.job_id,
        'expires_at', last.expires_at,
        'job', json((SELECT {drivers.SQLITE_JOB} FROM tenure_job WHERE id = last.job_id))))
    FROM tenure_throttle AS last
    WHERE last.key IN (SELECT value FROM json_each(request, '$.keys')) AND expires_at > now.at
)), 'known', json((
    SELECT json_group_array(idempotency_key) FROM tenure_job
    WHERE idempotency_key IN (SELECT value FROM json_each(request, '$.known'))
))) AS BLOB)
FROM asked, tenure_now AS now
""",
}
_LATER = {
    "postgres": """
SELECT key, job_id, {s}clock() + within * interval '1 second'
FROM json_to_recordset(CAST({p} AS json)) AS new (key text, job_id uuid, within float)
""",
    "sqlite": """
SELECT value ->> 'key', value ->> 'job_id', at + CAST((value ->> 'within') * 1000 AS INTEGER)
FROM json_each({p}), tenure_now WHERE true
""",
}
KEEP = """
INSERT INTO {s}throttle (key, job_id, expires_at) {later}
ON CONFLICT (key) DO UPDATE SET job_id = excluded.job_id, expires_at = excluded.expires_at
RETURNING 1
"""


KEY_OF = """
SELECT CAST({array}(job.unique_key, held.job_id) AS {text})
FROM {s}job AS job LEFT JOIN {s}unique_key AS held
    ON held.key = job.unique_key AND held.job_id <> job.id
WHERE job.id = {id} AND job.unique_until = 'settled'
"""


def keys_of(engine: str, job_id: str) -> drivers.Steps[Mapping[str, tuple[str, str | None]]]:
    """Return what `store/tables/unique_keys.keys_of` returns for one job."""
    rows = yield drivers.ask(engine, KEY_OF, job_id)
    if not rows:
        return {}
    key, holder = json.loads(rows[0][0])
    return {job_id: (key, holder)}


def look(engine: str, jobs: Sequence[CheckedJob]) -> drivers.Steps[Seen]:
    """Return what is stored about the unique keys of jobs.

    On PostgreSQL it locks the keys until the transaction ends, unless there are many, and the
    holders that may change or must not start before. On SQLite the caller has the right to write.
    """
    unique = [(job, job.unique) for job in jobs if job.unique]
    firm = {one.key for _, one in unique if one.rule.changes or one.rule.until == "started"}
    request = {
        "keys": sorted({one.key for _, one in unique}),
        "firm": sorted(firm),
        "known": [job.idempotency_key for job, _ in unique if job.idempotency_key],
    }
    ((text,),) = yield drivers.Ask(LOOK_FOR_KEYS[engine], drivers.written(request))
    answer = json.loads(text)
    return Seen(
        now=drivers.time_in(engine, answer["now"]),
        held={one["key"]: drivers.job_in(engine, one["job"]) for one in answer["held"] or ()},
        throttled={
            one["key"]: Throttled(
                one["job_id"],
                drivers.time_in(engine, one["expires_at"]),
                one["job"] and drivers.job_in(engine, one["job"]),
            )
            for one in answer["throttled"] or ()
        },
        known=frozenset(answer["known"] or ()),
    )


def keep_throttles(engine: str, jobs: Sequence[CheckedJob]) -> drivers.Steps[None]:
    """Note that these jobs were accepted now, where their rules last for a time."""
    rules = [(job.id, job.unique.key, job.unique.rule.within) for job in jobs if job.unique]
    kept = [
        {"key": key, "job_id": job_id, "within": within}
        for job_id, key, within in sorted(rules, key=lambda rule: rule[1])
        if within is not None
    ]
    if kept:
        yield drivers.Ask(KEEP.replace("{later}", _LATER[engine]), drivers.written(kept))


def run(db: Reads, steps: drivers.Steps[T]) -> T:
    """Execute steps on a connection of the store."""
    d, rows = db.dialect, None
    try:
        while True:
            asked = next(steps) if rows is None else steps.send(rows)
            statement = asked.statement.replace("{s}", d.prefix).replace("{p}", d.value)
            rows = db.rows(statement, () if asked.value is None else (asked.value,))
    except StopIteration as end:
        answer: T = end.value
        return answer
