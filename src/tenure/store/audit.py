"""What `tenure verify` checks in the stored data, in SQL that both engines read.

The legal transitions come from the lifecycle table.

The data cannot show two things. Nothing is left of a deleted job, so deletion by retention and loss
look the same. Times can be out of order because a clock was set back.
"""

from __future__ import annotations

from collections.abc import Mapping

from tenure.lifecycle import (
    ENTRANCES,
    FIRST_EVENT,
    LEASE_ENDS,
    MAX_RETURNS,
    MAX_SNOOZES,
    TRANSITIONS,
    holds_sql,
    limit_sql,
    rest_sql,
    room_sql,
)
from tenure.store.audit_query import AuditQuery
from tenure.store.constraints import SETTLED_SQL, quoted

EDITED = "ledger entries were edited or deleted: do not trust the history of this job"
BYPASSED = (
    "the row was changed while the triggers were off: find out by whom, and correct it by hand "
    "according to `tenure jobs show`"
)

TICKS = "every tick that was due is on record"
"""Checked by computing the ticks again: `store.fires.unrecorded`."""
SOUND = "the tables and their indexes are sound"
"""Checked on SQLite files only, by SQLite itself."""
HELD = "each start kept to the limits of its time"
FOLLOWED = "slots, turns and lines are those of the jobs"
"""Checked in `store.limit_audit`, where queues have limits."""

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


CHANGES = {rule.event: rule.attempts for rule in TRANSITIONS if rule.attempts}
CHARGED_SQL = (
    "CASE event " + " ".join(f"WHEN '{e}' THEN {n}" for e, n in CHANGES.items()) + " ELSE 0 END"
)
REFUNDED_SQL = f"event IN ({quoted(*(event for event, change in CHANGES.items() if change < 0))})"
SNOOZED_SQL = f"event IN ({quoted(*(rule.event for rule in TRANSITIONS if rule.snoozes))})"
LEGAL_SQL = " OR ".join(
    f"(source = '{rule.source}' AND target = '{rule.target}' AND event = '{rule.event}')"
    for rule in TRANSITIONS
)
FIRST_SQL = f"(source IS NULL AND target IN ({quoted(*ENTRANCES)}) AND event = '{FIRST_EVENT}')"


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
    CASE WHEN NOT {limit_sql()} OR NOT {room_sql()}
        THEN 'attempts ' || attempts || ' of ' || max_retries
    END AS "no job ran more often than its limit",
    CASE WHEN token - attempts - coalesce(snoozes, 0) > {MAX_RETURNS}
            OR snoozes > {MAX_SNOOZES}
        THEN 'token ' || token || ', attempts ' || attempts || ', snoozes ' || coalesce(snoozes, 0)
    END AS "no job was returned without end",
    CASE WHEN (status = 'waiting' AND coalesce(need, 0) <= 0)
            OR (status IN ('pending', 'processing') AND need > 0)
        THEN status || ' for ' || coalesce(need, 0)
    END AS "a waiting job waits for something",
    CASE WHEN status = 'failed' AND NOT {rest_sql()}
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
        sum(CASE WHEN event IN ({quoted(*LEASE_ENDS)}) THEN 1 ELSE 0 END) AS outcomes
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
WHERE (job.unique_key = held.key AND {holds_sql("job.")}) IS NOT TRUE
UNION ALL SELECT CAST(id AS text), status || ' does not hold ' || unique_key FROM {{job}} AS job
WHERE unique_key IS NOT NULL AND {holds_sql()}
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
