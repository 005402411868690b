"""Which transactions use the tables of jobs, and which has a job locked: for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenure.jobs.lock_holders import LockHolder
from tenure.store.postgres.connection import to_time

BESIDE = ("slot", "line", "unique_key", "queue_limit")
"""Tables whose rows a report or a claim locks with those of jobs."""
# Who locks or changes a row has one of these locks of its table until the end. A prepared
# transaction belongs to no session, but to whom its number is locked for.
USERS = """
WITH used AS (
    SELECT DISTINCT pid, virtualtransaction FROM pg_locks
    WHERE relation IN ({tables}) AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND mode IN ('RowShareLock', 'RowExclusiveLock')
), party AS (
    SELECT virtualtransaction, pid, usename::text AS owner,
        coalesce(nullif(application_name, ''), backend_type, 'unknown') AS name,
        CASE WHEN wait_event_type = 'Lock' THEN 'waiting for a lock' ELSE state END AS state,
        xact_start AS since
    FROM used JOIN pg_stat_activity USING (pid)
    WHERE pid <> pg_backend_pid()
    UNION ALL
    SELECT virtualtransaction, NULL, two_phase.owner::text, gid, NULL, prepared
    FROM used JOIN pg_locks AS own USING (virtualtransaction)
        JOIN pg_prepared_xacts AS two_phase ON transaction = own.transactionid
    WHERE used.pid IS NULL AND own.pid IS NULL AND own.granted
)
"""
TABLE = "to_regclass('{{s}}.{}')".format
FOR_LONG = f"""
{USERS.replace("{tables}", ", ".join(map(TABLE, ("job", *BESIDE))))}
SELECT virtualtransaction, pid, owner, name, state, since AT TIME ZONE 'UTC', true
FROM party WHERE since IS NULL OR clock_timestamp() - since > %s * interval '1 second'
ORDER BY since, pid
"""
# A row has the number of the transaction that locks it, or that of a list if there are several. As
# the number does not say which, those lists are looked up that exist for this table. A savepoint
# has its own number, and who released it no longer has that locked: what shows is that it is in
# progress. The row has 32 bits of a number, which is no larger than the newest one.
OF_JOB = f"""
{USERS.replace("{tables}", TABLE("job"))}, taken AS (
    SELECT xmax FROM {{s}}.job WHERE id = %s::uuid AND xmax <> '0'
), locking (xid) AS (
    SELECT xmax FROM taken
    UNION ALL
    SELECT xid FROM taken JOIN pg_class ON oid = to_regclass('{{s}}.job')
        CROSS JOIN pg_get_multixact_members(
            CASE WHEN mxid_age(xmax) BETWEEN 1 AND mxid_age(relminmxid) THEN xmax END)
    WHERE mode <> 'keysh'
), newest (number) AS (
    SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint
), found AS (
    SELECT *, EXISTS (
        SELECT FROM pg_locks AS own JOIN locking ON transactionid = xid
        WHERE own.virtualtransaction = party.virtualtransaction AND mode = 'ExclusiveLock'
    ) AS is_sure
    FROM party WHERE since IS NULL OR clock_timestamp() - since > %s * interval '1 second'
)
SELECT virtualtransaction, pid, owner, name, state, since AT TIME ZONE 'UTC', is_sure
FROM found
WHERE is_sure OR NOT EXISTS (SELECT FROM found WHERE is_sure) AND EXISTS (
    SELECT FROM locking CROSS JOIN newest
    WHERE pg_xact_status(greatest(number - (number - xid::text::bigint & 4294967295), 1)
        ::text::xid8) = 'in progress')
ORDER BY since, pid
"""
# A row of another table that refers to the job, not committed yet, has it locked, too, in the mode
# of KEY SHARE: that keeps no worker from it. Only a list says so of a number, and else the try.
FREE = "SELECT FROM {s}.job WHERE id = %s::uuid FOR NO KEY UPDATE SKIP LOCKED"

SHORT_SECONDS = 1.0
"""A transaction that is younger may be one of Tenure's, which take the job or change it."""


def lock_holder(row: Sequence[Any]) -> LockHolder:
    """Return what a row of these statements says."""
    _, pid, user, name, state, since, is_sure = row
    return LockHolder(
        pid=pid,
        user=user or "unknown",
        name=name,
        state=state,
        since=since and to_time(since),
        is_sure=is_sure,
    )
