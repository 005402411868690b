"""What `tenure verify` checks of jobs that wait: for other jobs, for signals; and of their steps.

A job counts what it waits for as it comes. Here it is counted again, from all dependencies. A job
that waits without a dependency or a signal was added so by hand, and is released by hand.
"""

from __future__ import annotations

from tenure.jobs.graph import met_sql
from tenure.lifecycle import rest_sql
from tenure.store.audit_query import AuditQuery

COUNTED = "a waiting job needs what its dependencies say"
SKIPPED = "a job is skipped if and only if it can no longer run"

EDGES = f"""
    SELECT edge.child, CASE WHEN parent.id IS NULL THEN 'lost'
        WHEN late.parent IS NOT NULL OR NOT {rest_sql("parent.")} THEN 'open'
        WHEN {met_sql("edge", "parent")} THEN 'met' ELSE 'missed' END AS outcome
    FROM {{dependency}} AS edge LEFT JOIN {{job}} AS parent ON parent.id = edge.parent
        LEFT JOIN {{overdue}} AS late ON late.parent = edge.parent AND late.after < edge.child
    WHERE edge.meets <> 'past'"""
"""The outcome of each dependency; only outcomes that should be counted by now."""

GATED = f"""{EDGES} AND edge.gate IS NULL UNION ALL SELECT child,
    CASE WHEN need <= 0 THEN 'met' WHEN spare < 0 THEN 'missed' ELSE 'open' END FROM {{gate}}"""
"""On PostgreSQL, where a job with many parents counts its gates."""


def _sums(parts: str) -> str:
    """A FROM item: of each job what it must still get, and how much of it may fail to come."""
    sums = ", ".join(
        f"sum(CASE outcome WHEN '{outcome}' THEN 1 ELSE 0 END) AS {outcome}"
        for outcome in ("met", "missed", "lost")
    )
    return f"""(
    SELECT job.id, coalesce(job.needs, parts) - met AS need,
        parts - coalesce(job.needs, parts) - missed AS spare, lost
    FROM (SELECT child, count(*) AS parts, {sums} FROM ({parts}) AS part GROUP BY child) AS counted
        JOIN {{job}} AS job ON job.id = child) AS said"""


def _waiting(parts: str) -> AuditQuery:
    return AuditQuery(
        "jobs that wait for others",
        f"""
SELECT job.id AS job_id,
    CASE WHEN job.need <> said.need OR coalesce(job.spare, 0) <> said.spare OR lost > 0
        THEN 'need ' || job.need || ', spare ' || coalesce(job.spare, 0) || '; counted again '
            || said.need || ', ' || said.spare || ', ' || lost || ' lost'
    END AS "{COUNTED}",
    CASE WHEN job.spare < 0
            AND NOT EXISTS (SELECT 1 FROM {{revisit}} AS again WHERE again.job_id = job.id)
        THEN 'spare ' || job.spare || ', and it is not to be skipped'
    END AS "{SKIPPED}"
FROM {_sums(parts)} JOIN {{job}} AS job ON job.id = said.id
WHERE job.status = 'waiting' AND job.token = 0""",
    )


# A unique key that another job holds by now keeps a job from coming back.
DROPPED = AuditQuery(
    "jobs that were skipped",
    f"""
SELECT job.id AS job_id, 'skipped, and spare is ' || said.spare AS "{SKIPPED}"
FROM {_sums(EDGES)} JOIN {{job}} AS job ON job.id = said.id
WHERE job.status = 'cancelled' AND job.event = 'skipped' AND job.unique_key IS NULL
    AND said.spare >= 0 AND lost = 0
    AND NOT EXISTS (SELECT 1 FROM {{revisit}} AS again WHERE again.job_id = job.id)""",
)
OVERDUE = AuditQuery(
    "jobs whose end is not counted everywhere",
    f"""
SELECT late.parent AS job_id, coalesce(job.status || ' as ' || job.event, 'gone')
    || ', to be counted as ' || late.status AS "{COUNTED}"
FROM {{overdue}} AS late LEFT JOIN {{job}} AS job ON job.id = late.parent
WHERE ({rest_sql("job.")} AND job.status = late.status) IS NOT TRUE""",
)
FOLLOWED = AuditQuery(
    "followers",
    """
SELECT job.id AS job_id, coalesce(max(job.followed), 0) || ', there are ' || count(*)
    AS "a job that others wait for counts them"
FROM {dependency} AS edge JOIN {job} AS job ON job.id = edge.parent
GROUP BY job.id HAVING count(*) > coalesce(max(job.followed), 0)""",
)
# Ids rise from parents to children, so a cycle has a dependency that goes the other way.
CYCLES = AuditQuery(
    "circles of jobs",
    """
SELECT start AS job_id, 'it waits for itself' AS "no jobs wait for each other"
FROM (
    WITH RECURSIVE behind (start, id) AS (
        SELECT edge.parent, edge.child FROM {dependency} AS edge
            JOIN {job} AS job ON job.id = edge.child AND job.status = 'waiting'
        WHERE edge.parent > edge.child AND edge.meets <> 'past'
        UNION
        SELECT behind.start, edge.child FROM behind JOIN {dependency} AS edge
            ON edge.parent = behind.id AND edge.meets <> 'past' AND behind.id <> behind.start
            JOIN {job} AS job ON job.id = edge.child AND job.status = 'waiting'
    ) SELECT DISTINCT start FROM behind WHERE id = start
) AS circle""",
)
GATES = AuditQuery(
    "gates of jobs with many parents",
    f"""
SELECT said.child AS job_id, 'gate ' || said.gate || ': need ' || coalesce(gate.need, 0)
    || ', spare ' || coalesce(gate.spare, 0) || '; counted again ' || wanted - met || ', '
    || edges - wanted - missed AS "{COUNTED}"
FROM (
    SELECT child, part.gate, count(*) AS edges, coalesce(min(job.needs), count(*)) AS wanted,
        count(*) FILTER (WHERE outcome = 'met') AS met,
        count(*) FILTER (WHERE outcome = 'missed') AS missed
    FROM ({EDGES.replace("edge.child,", "edge.child, edge.gate,")}) AS part
        JOIN {{job}} AS job ON job.id = child
    WHERE part.gate IS NOT NULL AND job.status = 'waiting' AND job.token = 0
    GROUP BY child, part.gate
) AS said LEFT JOIN {{gate}} AS gate ON gate.child = said.child AND gate.gate = said.gate
WHERE (gate.need = wanted - met AND gate.spare = edges - wanted - missed) IS NOT TRUE""",
)
STEPS = AuditQuery(
    "steps",
    """
SELECT done.job_id, done.what || ' of token ' || done.token AS "a step is of an attempt of its job"
FROM (
    SELECT job_id, token, 'step ' || name AS what FROM {step}
    UNION ALL SELECT job_id, token, 'the state' FROM {checkpoint}
) AS done
WHERE NOT EXISTS (SELECT 1 FROM {transition} AS entry WHERE entry.job_id = done.job_id
    AND entry.event = 'claimed' AND entry.token = done.token)""",
)
# A wait of a job that was ended by hand stays until it expires, and does no harm.
SUSPENDED = AuditQuery(
    "jobs that wait for signals",
    """
SELECT job.id AS job_id, coalesce('it waits for ' || sent.name || ', which has come',
    'it is suspended, and waits for nothing') AS "a suspended job waits for what has not come"
FROM {job} AS job LEFT JOIN {wait} AS wait ON wait.job_id = job.id LEFT JOIN {signal} AS sent
    ON sent.job_id = job.id AND sent.name = wait.name AND sent.number = wait.number
WHERE job.status = 'waiting' AND job.token > 0
    AND (wait.job_id IS NULL OR sent.name IS NOT NULL)""",
)
WORKFLOWS = AuditQuery(
    "workflows",
    f"""
SELECT job.id AS job_id, job.status || ' in ' || coalesce('workflow ' || job.workflow, '')
    AS "a finished workflow has no unsettled job"
FROM {{job}} AS job LEFT JOIN {{workflow}} AS workflow ON workflow.id = job.workflow
WHERE job.workflow IS NOT NULL AND (workflow.id IS NULL OR NOT {rest_sql("job.")}
    AND (workflow.finished_at IS NOT NULL OR job.id <= workflow.settled_to))""",
)
EITHER = (DROPPED, OVERDUE, FOLLOWED, CYCLES, STEPS, SUSPENDED, WORKFLOWS)
ON_SQLITE = (_waiting(EDGES), *EITHER)
ON_POSTGRES = (_waiting(GATED), GATES, *EITHER)
