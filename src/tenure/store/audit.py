"""What `tenure verify` checks in the stored data, in SQL that both engines read.

An invariant is a sentence. A query reads a table once, in one statement, so all its rows belong to
the same state of the data. Its columns, each with the sentence as its name, say of a row what
breaks the invariant. The legal transitions come from the lifecycle table.

The data cannot show two things. Nothing is left of a deleted job, so deletion by retention and loss
look the same. Times can be out of order because a clock was set back.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

from tenure import lifecycle
from tenure.rules.dependencies import met_sql
from tenure.store.constraints import SETTLED_SQL, quoted
from tenure.store.database import Dialect
from tenure.store.tables import stats
from tenure.values.findings import Progress


class AuditQuery(Struct, frozen=True):
    """A SELECT of a job and, in columns that are named for invariants, of what breaks them.

    Such a column is NULL in rows that break nothing. Names in braces stand for tables and
    `miscounts`.
    """

    about: str
    select: str

    @property
    def invariants(self) -> list[str]:
        return re.findall(r'AS "(.+)"', self.select)

    def statement(self, dialect: Dialect) -> str:
        """Return the SQL that selects the rows which break an invariant."""
        broken = " OR ".join(f'"{name}" IS NOT NULL' for name in self.invariants)
        text = f"SELECT * FROM ({self.select}) AS seen WHERE {broken}"
        parts = {"broken_value": dialect.broken_value, "tags": dialect.tags}
        parts |= {"miscounts": stats.miscounts(dialect), "turns": dialect.turns}
        name = re.compile("{([a-z_]+)}")
        return name.sub(lambda it: parts.get(it[1]) or dialect.table(it[1]), text)


Finding = tuple[str, str, str]
"""(invariant, job id, what was found)."""


def findings(
    asked: AuditQuery, rows: Iterable[Sequence[Any]], before: Iterable[Finding], limit: int
) -> list[Finding]:
    """Return what the rows show, at most `limit` per invariant, counting those found `before`."""
    listed = Counter(invariant for invariant, _, _ in before)
    found = []
    for job_id, *answers in rows:
        for invariant, answer in zip(asked.invariants, answers, strict=True):
            if answer is not None and listed[invariant] < limit:
                listed[invariant] += 1
                found.append((invariant, str(job_id), str(answer)))
    return found


def queries(
    progress: Progress, questions: Sequence[AuditQuery], more: Sequence[str] = ()
) -> Iterator[AuditQuery]:
    """Yield the queries in turn; before each, report how many invariants were checked.

    `more` names checks that the caller makes afterwards.
    """
    total = sum(len(asked.invariants) for asked in questions) + len(more)
    done = 0
    for asked in questions:
        progress(done, total, asked.about)
        yield asked
        done += len(asked.invariants)
    for number, check in enumerate(more):
        progress(done + number, total, check)


# --- invariants -----------------------------------------------------------------------------------

EDITED = "ledger entries were edited or deleted: do not trust the history of this job"
BYPASSED = (
    "the row was changed while the triggers were off: find out by whom, and correct it by hand "
    "according to `tenure jobs show`"
)

TICKS = "every tick that was due is on record"
"""Checked by computing the ticks again: `store.tables.schedules.unrecorded`."""
SOUND = "the tables and their indexes are sound"
"""Checked on SQLite files only, by SQLite itself."""
HELD = "each start kept to the limits of its time"
FOLLOWED = "slots, turns and lines are those of the jobs"
"""Both are checked where queues have limits."""

INVARIANTS: Mapping[str, str] = {
    "every transition in the ledger is legal": EDITED,
    "each entry starts where the one before it ended": EDITED,
    "the ledger ends in the job's status": "a transition is missing from the "
    f"ledger, or {BYPASSED}",
    "a claim raises the token by one and nothing else changes it": "an outside system may "
    f"have accepted the work of an attempt whose lease had ended; {EDITED}",
    "each entry names its attempt": EDITED,
    "attempts are the claims that were not returned": f"{BYPASSED}. Too low a count lets the "
    "job run more often than its limit",
    "no job ran more often than its limit": "its handler has run more often than allowed, or "
    "can: look at what it did outside, and whether the limit was lowered by hand",
    "no job was returned without end": "look for the worker that keeps returning it: its log "
    "says why",
    "snoozes are those in the ledger": f"{BYPASSED}. Too low a count lets the job be snoozed more "
    "often than is allowed",
    "a waiting job waits for something": f"nothing will ever release it: {BYPASSED}",
    "a lease is given out once": "each of two attempts could report for the other. No manual SQL "
    "can cause this: report it as a fault of Tenure, with the ledger of both jobs",
    "one outcome per lease": "one attempt was settled twice: look at what its handler did outside. "
    f"Unless {EDITED.split(':')[0]}, report it",
    "every lease that ended was claimed": "an attempt ended that had not started under that lease: "
    f"{EDITED}",
    "a lease is held if and only if the job is processing": f"no worker can settle it, or no sweep "
    f"takes it back: {BYPASSED}",
    "the job's lease is that of its last claim": "the worker that claimed it cannot report: "
    "wait for the lease to run out, then the job goes to another worker",
    "a job has an end time if and only if it is settled": f"retention goes by that time, and would "
    f"delete the job too early or never: {BYPASSED}",
    "the job's times are those of the ledger": BYPASSED,
    "a failure with attempts left is tried again unless it gave up": "the retry that belongs to "
    "it was left out by manual SQL: run `tenure jobs retry`",
    "a failure says why": BYPASSED,
    "the last error is that of the last failure": f"read the errors in the ledger; {BYPASSED}",
    "only a completed job has a result": BYPASSED,
    "every value is one that an enqueue accepts": "the row was written while the constraints "
    "and triggers were off. A worker that cannot run it fails it alone: cancel it, and add the job "
    "again",
    "one job per idempotency key": "an enqueue that was repeated made a second job: cancel one of "
    "them, then create the unique index on idempotency_key again (`tenure doctor` says if it is "
    "missing)",
    "one holder per unique key, and each holder is a row that may hold": "a second job "
    f"with that key can be added, or no job can: {BYPASSED}. Cancel the jobs that are too many",
    "a job is found by its tags and by no others": "filters and actions by tag miss it, or include "
    f"it by mistake: {BYPASSED}",
    "a waiting job needs what its dependencies say": "it is released too early or never: "
    f"{BYPASSED}. `tenure jobs unblock` releases it",
    "a job is skipped if and only if it can no longer run": "nothing skips it, or it was skipped "
    f"without a cause: {BYPASSED}",
    "a job that others wait for counts them": f"its end does not release them: {BYPASSED}",
    "no jobs wait for each other": "none of them will ever run: cancel one of them",
    "a step is of an attempt of its job": "perhaps no handler returned its result, and no "
    f"attempt repeats the step: {BYPASSED}",
    "a suspended job waits for what has not come": f"nothing ends its wait: {BYPASSED}. `tenure "
    "jobs unblock` releases it",
    "a finished workflow has no unsettled job": "it is shown as finished while a job of it runs, "
    f"and retention deletes it too early: {BYPASSED}",
    "a fire has the job that its schedule added": "the job, or the record of the schedule, was "
    f"changed while the triggers were off: {EDITED.split(': ')[1]}",
    TICKS: "it was due, and no outcome is on record: look at `tenure schedules fires`, and "
    "let `tenure schedules backfill` add its job if it is missing",
    "a token if and only if the job is pending": "no claim finds it, or claims look at it in "
    f"vain: {BYPASSED}",
    "every job is where the sweep, retention and operators look": "its lease never ends, "
    f"retention never deletes it, or no list shows it: {BYPASSED}",
    SOUND: "the file is damaged, by a fault of the disk, or because it was copied, replaced or "
    "written by other means while it was in use: stop everything, keep a copy, restore a backup",
    HELD: f"more ran or started than was allowed: a clock was set back, or {BYPASSED}",
    FOLLOWED: f"limits count wrong, or a job never starts: {BYPASSED}",
    "the counts are those of the jobs": "the numbers of `tenure stats` are wrong by that much, "
    "and the jobs are right: jobs were deleted or the ledger was edited by hand. "
    "`Tenure(url).stats.recount()` counts again",
    "no ledger without its job": "a job was deleted by hand, or before it was settled: see in "
    "the ledger what it was, and enqueue it again if it must run",
}
"""Invariant -> what a violation means, and what to do."""


CHANGES = {rule.event: rule.attempts for rule in lifecycle.TRANSITIONS if rule.attempts}
CHARGED_SQL = (
    "CASE event " + " ".join(f"WHEN '{e}' THEN {n}" for e, n in CHANGES.items()) + " ELSE 0 END"
)
REFUNDED_SQL = f"event IN ({quoted(*(event for event, change in CHANGES.items() if change < 0))})"
SNOOZED_SQL = (
    f"event IN ({quoted(*(rule.event for rule in lifecycle.TRANSITIONS if rule.snoozes))})"
)
LEGAL_SQL = " OR ".join(
    f"(source = '{rule.source}' AND target = '{rule.target}' AND event = '{rule.event}')"
    for rule in lifecycle.TRANSITIONS
)
FIRST_SQL = (
    f"(source IS NULL AND target IN ({quoted(*lifecycle.ENTRANCES)})"
    f" AND event = '{lifecycle.FIRST_EVENT}')"
)


# The ledger of each job, in order, beside its row at the end.
PATH = AuditQuery(
    "the ledger of each job",
    f"""
SELECT job_id,
    CASE WHEN NOT (source IS NOT NULL AND ({LEGAL_SQL})) AND NOT {FIRST_SQL}
        THEN coalesce(source, 'nothing') || ' -> ' || target || ' as ' || event
    END AS "every transition in the ledger is legal",
    CASE WHEN coalesce(source, '') <> coalesce(previous, '')
        THEN 'entry ' || number || ' starts at ' || coalesce(source, 'nothing') || ' after '
            || coalesce(previous, 'nothing')
    END AS "each entry starts where the one before it ended",
    CASE WHEN token
            <> coalesce(previous_token, 0) + CASE WHEN event = 'claimed' THEN 1 ELSE 0 END
        THEN 'token ' || coalesce(previous_token, 0) || ' -> ' || token || ' when ' || event
    END AS "a claim raises the token by one and nothing else changes it",
    CASE WHEN attempt <> attempts + CASE WHEN {REFUNDED_SQL} THEN 1 ELSE 0 END
        THEN 'entry ' || number || ' names attempt ' || attempt || ' after ' || attempts
            || ' claims'
    END AS "each entry names its attempt",
    CASE WHEN (source = 'processing' AND (lease_id = previous_lease) IS NOT TRUE)
            OR (event = 'claimed' AND lease_id IS NULL)
            OR (coalesce(source, '') <> 'processing' AND event <> 'claimed'
                AND lease_id IS NOT NULL)
        THEN 'entry ' || number || ', ' || event || CASE WHEN lease_id IS NULL
            THEN ', names no lease' ELSE ', names a lease that was not claimed before it' END
    END AS "every lease that ended was claimed",
    CASE WHEN target = 'failed' AND detail IS NULL
        THEN 'entry ' || number || ' has no error'
    END AS "a failure says why",
    CASE WHEN following IS NULL AND id IS NULL
        THEN number || ' entries, the last one ' || event
    END AS "no ledger without its job",
    CASE WHEN target <> status OR token <> job_token
        THEN 'status ' || status || ' with token ' || job_token || ', ledger ' || target
            || ' with token ' || token
    END AS "the ledger ends in the job's status",
    CASE WHEN attempts <> job_attempts
        THEN 'attempts ' || job_attempts || ', ledger ' || attempts
    END AS "attempts are the claims that were not returned",
    CASE WHEN id IS NOT NULL AND snoozes <> coalesce(job_snoozes, 0)
        THEN 'snoozes ' || coalesce(job_snoozes, 0) || ', ledger ' || snoozes
    END AS "snoozes are those in the ledger",
    CASE WHEN most > max_retries AND most > 1
        THEN 'attempt ' || most || ' of ' || max_retries || ' in the ledger'
    END AS "no job ran more often than its limit",
    CASE WHEN target = 'processing' AND status = 'processing'
            AND (lease_id = job_lease) IS NOT TRUE AND job_lease IS NOT NULL
        THEN 'another lease than claimed at token ' || token
    END AS "the job's lease is that of its last claim",
    CASE WHEN first_at <> created_at
            OR (target = status AND status IN ({SETTLED_SQL}) AND at <> finished_at)
            OR (target = status AND status = 'processing' AND at <> started_at)
            OR (source = 'processing' AND status IN ({SETTLED_SQL}) AND previous_at <> started_at)
        THEN 'created_at, started_at or finished_at of the row is not in the ledger'
    END AS "the job's times are those of the ledger",
    CASE WHEN target = 'failed' AND status = 'failed' AND detail <> last_error
        THEN 'last_error is not the detail of entry ' || number
    END AS "the last error is that of the last failure"
FROM (
    SELECT entry.*, job.id, job.status, job.token AS job_token, job.attempts AS job_attempts,
        job.snoozes AS job_snoozes, job.lease_id AS job_lease, job.max_retries,
        job.created_at, job.started_at, job.finished_at, job.last_error
    FROM (
        SELECT job_id, at, source, target, event, attempt, token, lease_id, detail,
            row_number() OVER path AS number,
            lag(target) OVER path AS previous,
            lag(token) OVER path AS previous_token,
            lag(lease_id) OVER path AS previous_lease,
            lag(at) OVER path AS previous_at,
            first_value(at) OVER path AS first_at,
            sum({CHARGED_SQL}) OVER path AS attempts,
            sum(CASE WHEN {SNOOZED_SQL} THEN 1 ELSE 0 END) OVER path AS snoozes,
            max(attempt) OVER path AS most,
            lead(token) OVER path AS following
        FROM {{transition}} WINDOW path AS (PARTITION BY job_id ORDER BY seq)
    ) AS entry LEFT JOIN {{job}} AS job ON job.id = entry.job_id AND entry.following IS NULL
) AS step""",
)
JOBS = AuditQuery(
    "each job",
    f"""
SELECT id AS job_id,
    CASE WHEN NOT EXISTS (SELECT 1 FROM {{transition}} AS entry WHERE entry.job_id = job.id)
        THEN 'status ' || status || ', ledger empty'
    END AS "the ledger ends in the job's status",
    CASE WHEN NOT {lifecycle.limit_sql()} OR NOT {lifecycle.room_sql()}
        THEN 'attempts ' || attempts || ' of ' || max_retries
    END AS "no job ran more often than its limit",
    CASE WHEN token - attempts - coalesce(snoozes, 0) > {lifecycle.MAX_RETURNS}
            OR snoozes > {lifecycle.MAX_SNOOZES}
        THEN 'token ' || token || ', attempts ' || attempts || ', snoozes ' || coalesce(snoozes, 0)
    END AS "no job was returned without end",
    CASE WHEN (status = 'waiting' AND coalesce(need, 0) <= 0)
            OR (status IN ('pending', 'processing') AND need > 0)
        THEN status || ' for ' || coalesce(need, 0)
    END AS "a waiting job waits for something",
    CASE WHEN status = 'failed' AND NOT {lifecycle.rest_sql()}
        THEN 'failed after attempt ' || attempts || ' of ' || max_retries
    END AS "a failure with attempts left is tried again unless it gave up",
    CASE WHEN (status = 'processing') <> (lease_id IS NOT NULL)
            OR (status = 'processing') <> (lease_expires_at IS NOT NULL)
            OR (status = 'processing' AND (worker IS NULL OR started_at IS NULL))
        THEN status || ' with lease ' || CASE WHEN lease_id IS NULL THEN 'absent' ELSE 'present' END
    END AS "a lease is held if and only if the job is processing",
    CASE WHEN (status IN ({SETTLED_SQL})) <> (finished_at IS NOT NULL) THEN status
    END AS "a job has an end time if and only if it is settled",
    CASE WHEN status = 'failed' AND last_error IS NULL THEN 'failed without last_error'
    END AS "a failure says why",
    CASE WHEN status <> 'completed' AND result IS NOT NULL THEN status || ' with a result'
    END AS "only a completed job has a result",
    'refused by ' || {{broken_value}} AS "every value is one that an enqueue accepts"
FROM {{job}} AS job""",
)
LEASES = AuditQuery(
    "leases",
    f"""
SELECT job_id,
    CASE WHEN claims > 1 THEN claims || ' claims with one lease' END AS "a lease is given out once",
    CASE WHEN outcomes > 1 THEN outcomes || ' outcomes for one lease'
    END AS "one outcome per lease"
FROM (
    SELECT min(CAST(job_id AS text)) AS job_id,
        sum(CASE WHEN event = 'claimed' THEN 1 ELSE 0 END) AS claims,
        sum(CASE WHEN event IN ({quoted(*lifecycle.LEASE_ENDS)}) THEN 1 ELSE 0 END) AS outcomes
    FROM {{transition}} WHERE lease_id IS NOT NULL
    GROUP BY lease_id HAVING count(*) > 1) AS lease""",
)
KEYS = AuditQuery(
    "idempotency keys",
    """
SELECT min(CAST(id AS text)) AS job_id,
    count(*) || ' jobs with one key' AS "one job per idempotency key"
FROM {job} WHERE idempotency_key IS NOT NULL GROUP BY idempotency_key HAVING count(*) > 1""",
)
TAGS = AuditQuery(
    "tags",
    """
SELECT CAST(job_id AS text) AS job_id,
    CASE WHEN sum(found) < 0 THEN 'not found by ' ELSE 'found by ' END || tag
        AS "a job is found by its tags and by no others"
FROM (
    SELECT DISTINCT job.id AS job_id, one.value AS tag, -1 AS found FROM {job} AS job, {tags}
    WHERE job.tags IS NOT NULL
    UNION ALL SELECT job_id, tag, 1 FROM {tag}
) AS either GROUP BY job_id, tag HAVING sum(found) <> 0""",
)
HOLDERS = AuditQuery(
    "unique keys",
    f"""
SELECT CAST(held.job_id AS text) AS job_id, coalesce(job.status, 'no job') || ' holds ' || held.key
    AS "one holder per unique key, and each holder is a row that may hold"
FROM {{unique_key}} AS held LEFT JOIN {{job}} AS job ON job.id = held.job_id
WHERE (job.unique_key = held.key AND {lifecycle.holds_sql("job.")}) IS NOT TRUE
UNION ALL SELECT CAST(id AS text), status || ' does not hold ' || unique_key FROM {{job}} AS job
WHERE unique_key IS NOT NULL AND {lifecycle.holds_sql()}
    AND NOT EXISTS (SELECT 1 FROM {{unique_key}} WHERE key = job.unique_key AND job_id = job.id)""",
)
COUNTS = AuditQuery(
    "counts",
    """
SELECT '' AS job_id, status || ' of ' || type || ' in ' || queue || ': ' || jobs || ', counted '
    || counted AS "the counts are those of the jobs"
FROM ({miscounts}) AS wrong""",
)
FIRES = AuditQuery(
    "fires of schedules",
    """
SELECT fire.job_id, 'of ' || fire.schedule || ', added by ' || coalesce(entry.actor, 'no actor')
    AS "a fire has the job that its schedule added"
FROM {fire} AS fire JOIN {transition} AS entry
    ON entry.job_id = fire.job_id AND entry.source IS NULL
WHERE coalesce(entry.actor, '') <> 'schedule ' || fire.schedule""",
)
QUERIES = (PATH, JOBS, LEASES, KEYS, HOLDERS, TAGS, COUNTS, FIRES)

PLACES = AuditQuery(
    "where jobs are looked for",
    f"""
SELECT coalesce(job.id, token.id, place.id) AS job_id,
    CASE WHEN (job.status = 'pending') IS DISTINCT FROM (token.id IS NOT NULL)
            OR token.id IS NOT NULL
                AND (token.queue, token.priority, token.run_at, token.type, token.start_by)
                IS DISTINCT FROM (job.queue, job.priority, job.run_at, job.type, job.start_by)
        THEN coalesce(job.status, 'no job') || CASE WHEN token.id IS NULL THEN ' without a token'
            ELSE ' with the token of priority ' || token.priority || ' at ' || token.run_at END
    END AS "a token if and only if the job is pending",
    CASE WHEN (job.status = 'processing' OR job.status IN ({SETTLED_SQL}) AND job.workflow IS NULL
            OR job.status = 'waiting' AND job.start_by IS NOT NULL) AND arrived.id IS NULL
        THEN job.status || ' without an arrival'
        WHEN (place.id IS NOT NULL) <> coalesce(job.status IN ('failed', 'cancelled'), false)
            OR place.ended_as <> job.status
        THEN coalesce(job.status, 'no job') || ', listed as ' || coalesce(place.ended_as, 'nothing')
    END AS "every job is where the sweep, retention and operators look"
FROM {{job}} AS job FULL JOIN {{ready}} AS token ON token.id = job.id
    FULL JOIN {{ended}} AS place (ended_as, id) ON place.id = job.id
    LEFT JOIN (
        SELECT status, unnest(ids) AS id FROM {{arrival}}
        UNION SELECT status, unnest(ids) FROM {{kept}}
    ) AS arrived ON arrived.id = job.id AND arrived.status = job.status""",
)
"""On PostgreSQL, where the store keeps tables of what is looked up by status."""

# --- jobs that wait, and steps --------------------------------------------------------------------
# A job counts what it waits for as it comes. Here it is counted again, from all dependencies. A job
# that waits without a dependency or a signal was added so by hand, and is released by hand.

COUNTED = "a waiting job needs what its dependencies say"
SKIPPED = "a job is skipped if and only if it can no longer run"

EDGES = f"""
    SELECT edge.child, CASE WHEN parent.id IS NULL THEN 'lost'
        WHEN late.parent IS NOT NULL OR NOT {lifecycle.rest_sql("parent.")} THEN 'open'
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
WHERE ({lifecycle.rest_sql("job.")} AND job.status = late.status) IS NOT TRUE""",
)
FOLLOWERS = AuditQuery(
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
WHERE job.workflow IS NOT NULL AND (workflow.id IS NULL OR NOT {lifecycle.rest_sql("job.")}
    AND (workflow.finished_at IS NOT NULL OR job.id <= workflow.settled_to))""",
)
EITHER = (DROPPED, OVERDUE, FOLLOWERS, CYCLES, STEPS, SUSPENDED, WORKFLOWS)
ON_SQLITE = (_waiting(EDGES), *EITHER)
ON_POSTGRES = (_waiting(GATED), GATES, *EITHER)

# --- limits ---------------------------------------------------------------------------------------
# The ledger has every start and every end in the order in which the limits counted them: a start
# takes its number under the lock of its queue or partition, an end before its commit.
# `limit_change` has numbers of the same sequence. So what ran at once, and what was allowed, can be
# counted again.

BACK_MILLIS = 2_000
"""A start that is so much earlier than one before it: the clock was set back."""

SLOTS = AuditQuery(
    "slots of queues with limits",
    f"""
SELECT CAST(job.id AS text) AS job_id, 'processing without a slot' AS "{FOLLOWED}"
FROM {{queue_limit}} AS l JOIN {{job}} AS job ON job.queue = l.queue AND job.status = 'processing'
WHERE (l.max_running IS NOT NULL OR l.rate_starts IS NOT NULL OR l.partitioned)
    AND NOT EXISTS (SELECT 1 FROM {{slot}} AS s WHERE s.queue = job.queue
        AND s.partition = coalesce(job.partition, '') AND s.job_id = job.id)
UNION ALL SELECT CAST(s.job_id AS text), 'a slot in ' || s.queue || ', '
    || coalesce(job.status, 'no job')
FROM {{slot}} AS s LEFT JOIN {{job}} AS job ON job.id = s.job_id AND job.queue = s.queue
    AND coalesce(job.partition, '') = s.partition
WHERE coalesce(job.status, '') <> 'processing'
    OR NOT EXISTS (SELECT 1 FROM {{queue_limit}} AS l WHERE l.queue = s.queue)""",
)
LINES = AuditQuery(
    "lines of ordered queues",
    f"""
SELECT CAST(job.id AS text) AS job_id, job.status || ' and in no line' AS "{FOLLOWED}"
FROM {{queue_limit}} AS l JOIN {{job}} AS job ON job.queue = l.queue
WHERE l.ordered IS NOT NULL AND job.status NOT IN ({SETTLED_SQL})
    AND NOT EXISTS (SELECT 1 FROM {{line}} AS place WHERE place.queue = job.queue
        AND place.partition = coalesce(job.partition, '') AND place.id = job.id)
UNION ALL SELECT CAST(place.id AS text), 'in a line of ' || place.queue || ', '
    || coalesce(job.status, 'no job')
FROM {{line}} AS place LEFT JOIN {{queue_limit}} AS l ON l.queue = place.queue
    LEFT JOIN {{job}} AS job ON job.id = place.id AND job.queue = place.queue
    AND coalesce(job.partition, '') = place.partition
WHERE l.ordered IS NULL OR job.id IS NULL
    OR job.status IN ({SETTLED_SQL}) AND NOT (job.status = 'failed' AND l.ordered = 'halt')""",
)
TURNS = AuditQuery(
    "turns of partitions",
    f"""
SELECT coalesce(min(CAST(job_id AS text)), '') AS job_id, 'turns of ' || partition || ' in '
    || queue || ': ' || sum(turns) || ' for ' || sum(jobs) || ' pending jobs' AS "{FOLLOWED}"
FROM (
    SELECT queue, partition, 1 AS turns, 0 AS jobs, NULL AS job_id FROM {{turns}}
    UNION ALL SELECT job.queue, coalesce(job.partition, ''), 0, 1, CAST(job.id AS text)
    FROM {{queue_limit}} AS l JOIN {{job}} AS job ON job.queue = l.queue
    WHERE l.partitioned AND job.status = 'pending'
) AS one GROUP BY queue, partition HAVING sum(turns) <> sum(jobs)""",
)
LIMIT_QUERIES = (SLOTS, LINES, TURNS)


def used(dialect: Dialect) -> str:
    """Select a row if any queue ever had limits."""
    tables = (dialect.table("queue_limit"), dialect.table("limit_change"))
    return " UNION ALL ".join(f"SELECT 1 FROM {table}" for table in tables) + " LIMIT 1"


def starts_and_ends(dialect: Dialect) -> str:
    """Select the starts and ends of queues that ever had limits, and the limits, in their order."""
    d = dialect
    changes = d.table("limit_change")
    tie = "rowid" if d.engine == "sqlite" else "0"
    at = d.millis.format(time="t.at")
    return f"""
SELECT queue, partition, setting, delta, job_id, at FROM (
    SELECT place, 1 AS later, {tie} AS tie, queue, partition, setting, 0 AS delta, '' AS job_id,
        0 AS at FROM {changes}
    UNION ALL
    SELECT t.seq, 0, 0, job.queue, coalesce(job.partition, ''), NULL,
        CASE WHEN t.target = 'processing' THEN 1 ELSE -1 END, CAST(t.job_id AS text), {at}
    FROM {d.table("transition")} AS t JOIN {d.table("job")} AS job ON job.id = t.job_id
    WHERE (t.target = 'processing') <> (coalesce(t.source, '') = 'processing')
        AND job.queue IN (SELECT queue FROM {changes})
) AS one ORDER BY place, later, tie"""


Setting = Mapping[str, Any]


class Replay:
    """Counts again what ran at once and what started in the time of a rate."""

    def __init__(self) -> None:
        self._settings: dict[tuple[str, str | None], Setting] = {}
        self._running = Counter[tuple[str, str | None]]()
        self._starts: dict[tuple[str, str | None], list[int]] = {}
        self._most: dict[tuple[str, str], tuple[int, str]] = {}

    def seen(self) -> list[str]:
        """Say of each limit the largest number that was ever seen, of partitions in the fullest."""
        return [text for _, (_, text) in sorted(self._most.items())]

    def findings(self, rows: Iterable[tuple[Any, ...]], limit: int) -> list[Finding]:
        """Return starts that the limits of their time did not allow, up to `limit` of them."""
        found: list[Finding] = []
        for queue, partition, setting, delta, job_id, at in rows:
            if not delta:
                self._change(queue, partition, setting)
                continue
            for place in ((queue, None), (queue, partition)):
                self._running[place] += delta
                if not self._running[place]:
                    del self._running[place]
            if delta > 0:
                found += [(HELD, job_id, what) for what in self._broken(queue, partition, at)]
                if len(found) >= limit:
                    return found[:limit]
        return found

    def _change(self, queue: str, partition: str | None, setting: str | None) -> None:
        self._settings[queue, partition] = json.loads(setting) if setting else {}
        if partition is None:  # a change of a rate begins it again
            for place in [place for place in self._starts if place[0] == queue]:
                del self._starts[place]

    def _broken(self, queue: str, partition: str, at: int) -> Iterable[str]:
        whole = self._settings.get((queue, None), {})
        yield from self._over(
            (queue, None), f"queue {queue}", at, whole, "", whole.get("max_running")
        )
        if whole.get("partitioned"):
            own = self._settings.get((queue, partition), {}).get("max_running")
            most = whole.get("per_max_running") if own is None else own
            if whole.get("ordered"):
                most = 1 if most is None else min(most, 1)
            name = f"partition {partition!r} of queue {queue}"
            yield from self._over((queue, partition), name, at, whole, "per_", most)

    def _over(
        self,
        place: tuple[str, str | None],
        name: str,
        at: int,
        setting: Setting,
        prefix: str,
        most: int | None,
    ) -> Iterable[str]:
        if most is not None:
            running = self._running[place]
            self._note(place, f"{prefix}running", running, f"{name}: {running} of {most} at once")
            if running > most:
                yield f"{running} of {name} at once, {most} allowed"
        if (starts := setting.get(f"{prefix}rate_starts")) is not None:
            seconds = setting[f"{prefix}rate_seconds"]
            seen = busiest(self._starts.setdefault(place, []), at, int(seconds * 1000), starts)
            text = f"{name}: {seen} of {starts} starts in {seconds:g} s"
            self._note(place, f"{prefix}rate", seen, text)
            if seen > starts:
                yield f"{seen} starts of {name} in {seconds:g} s, {starts} allowed"

    def _note(self, place: tuple[str, str | None], kind: str, seen: int, text: str) -> None:
        if seen > self._most.get((place[0], kind), (0, ""))[0]:
            self._most[place[0], kind] = seen, text


def busiest(times: list[int], at: int, length: int, most: int) -> int:
    """Add a start to the last ones, in order; return how many the busiest window with it has.

    A window is shorter than `length` milliseconds. No more than are needed to see over `most` stay.
    """
    if times and at < times[-1] - BACK_MILLIS:
        times.clear()
    insort(times, at)
    last = bisect_left(times, at + length)
    first = bisect_left(times, at - length + 1)
    seen = max(
        end + 1 - bisect_left(times, times[end] - length + 1)
        for end in range(max(bisect_left(times, at), first), last)
    )
    if len(times) > 2 * most + 2:
        del times[: len(times) - most - 1]
    return seen
