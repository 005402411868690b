"""The statements of the SQLite store."""

from __future__ import annotations

from tenure.store.rows import CHANGED, COLUMNS
from tenure.store.sqlite.over_rows import OverRows

INSERTED = (
    *("id", "type", "queue", "priority", "max_retries", "run_at", "created_at", "timeout"),
    *("backoff", "actor", "idempotency_key", "fingerprint", "payload"),
)
INSERT = OverRows(
    "new",
    INSERTED,
    f"""
INSERT INTO tenure_job ({", ".join(INSERTED)}) SELECT * FROM {{rows}} WHERE id IS NOT NULL
ON CONFLICT DO NOTHING
""",
)

# The lease alone would do (a CHECK makes it imply the status); the id makes it a key search.
COMPLETE = OverRows(
    "report",
    ("id", "lease_id", "result", "actor"),
    """
UPDATE tenure_job SET status = 'completed', result = report.result, finished_at = ?,
    lease_id = NULL, lease_expires_at = NULL, event = 'completed',
    actor = coalesce(report.actor, worker)
FROM {rows} AS report WHERE tenure_job.id = report.id AND tenure_job.lease_id = report.lease_id
""",
)

# One row with everything: each row that SQLite hands over lets go of the interpreter and has to
# win it back from the event loop, which doubled the cost of a claim in a busy worker.
PICK = """
SELECT json_group_array(json_array(
    row, id, type, queue, payload, attempts + 1, max_retries, token + 1, timeout))
FROM (
    SELECT rowid AS row, * FROM tenure_job
    WHERE status = 'pending' AND queue = :queue AND priority = :priority AND run_at <= :now
        {types}
    ORDER BY run_at, id LIMIT :limit)
"""
# The plus keeps the planner from driving this by the index of what is ready.
CLAIM = OverRows(
    "lease",
    ("row", "lease_id"),
    """
UPDATE tenure_job SET status = 'processing', attempts = attempts + 1, token = token + 1,
    lease_id = lease.lease_id, lease_expires_at = ?, started_at = ?,
    worker = ?, event = 'claimed', actor = ?
FROM {rows} AS lease WHERE tenure_job.rowid = lease.row AND +tenure_job.status = 'pending'
""",
)

GUARD = ("id", "was_status", "was_token", "was_lease_id", "was_lease_expires_at")
SAVE = OverRows(
    "changed",
    (*GUARD, *CHANGED),
    f"""
UPDATE tenure_job SET {", ".join(f"{column} = changed.{column}" for column in CHANGED)}
FROM {{rows}} AS changed WHERE tenure_job.id = changed.id AND tenure_job.status = was_status
    AND tenure_job.token = was_token AND tenure_job.lease_id IS was_lease_id
    AND tenure_job.lease_expires_at IS was_lease_expires_at
""",
)

RENEW = """
UPDATE tenure_job SET lease_expires_at = max(lease_expires_at, ?)
FROM json_each(?) WHERE tenure_job.id = value ->> 0 AND tenure_job.lease_id = value ->> 1
RETURNING lease_id
"""

JOB_COLUMNS = ", ".join(COLUMNS)
SELECT_JOB = f"SELECT {JOB_COLUMNS} FROM tenure_job"
EXPIRED = f"""
{SELECT_JOB} WHERE status = 'processing' AND lease_expires_at <= ?
ORDER BY lease_expires_at LIMIT ?
"""

# One row, as in PICK.
LOCK = f"""
SELECT json_group_array(json_array({", ".join(COLUMNS)})) FROM tenure_job
WHERE id IN (SELECT value FROM json_each(?))
"""
MAX_LOADED = 100
"""Jobs in one value: SQLite's are at most 1 GB, a job with its result may have some MB."""
SETTLED_AS = """
SELECT event FROM tenure_transition
WHERE job_id = ? AND lease_id = ? AND event <> 'claimed' ORDER BY seq DESC LIMIT 1
"""

# What is in the statistics and delivered to webhooks ends at a place and at a time. The time bounds
# the search: what settled after it need not be looked at.
NEXT_ENTRY = "SELECT at FROM tenure_transition WHERE seq > ? ORDER BY seq LIMIT 1"
PRUNE = """
DELETE FROM tenure_job WHERE rowid IN (
    SELECT rowid FROM tenure_job
    WHERE status = {status} AND finished_at < ? AND finished_at <= ? AND NOT EXISTS (
        SELECT 1 FROM tenure_transition AS t WHERE t.job_id = tenure_job.id AND t.seq > ?)
    ORDER BY finished_at LIMIT ?)
RETURNING id, queue, type
"""
