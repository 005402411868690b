"""What `tenure verify` asks the stored data: one question per invariant, in SQL both engines read.

Every question selects (job id, what was found) for each violation, so an empty answer is good.
The legal paths come from the lifecycle table. Window functions order each job's ledger once.
"""

from __future__ import annotations

from tenure.lifecycle import FIRST_EVENT, LIMIT_SQL, MAX_RELEASES, MOVES, ROOM_SQL
from tenure.store.guards import SETTLED_SQL, quoted

SETTLING = quoted(*dict.fromkeys(m.event for m in MOVES if m.source == "processing"))


def questions(job: str, transition: str) -> dict[str, str]:
    """Invariant -> statement, for the given table names."""
    legal = " OR ".join(
        f"(source = '{m.source}' AND target = '{m.target}' AND event = '{m.event}')" for m in MOVES
    )
    steps = (
        f"SELECT job_id, seq, source, target, event, attempt, token, lease_id,"
        f" lag(target) OVER path AS previous, lag(token) OVER path AS previous_token,"
        f" row_number() OVER path AS number FROM {transition}"
        f" WINDOW path AS (PARTITION BY job_id ORDER BY seq)"
    )
    last = (
        f"SELECT job_id, target, token, row_number() OVER (PARTITION BY job_id ORDER BY seq DESC)"
        f" AS back FROM {transition}"
    )
    return {
        "every move in the ledger is legal": f"""
            SELECT job_id, coalesce(source, 'nothing') || ' -> ' || target || ' as ' || event
            FROM {transition} WHERE NOT (source IS NOT NULL AND ({legal}))
            AND NOT (source IS NULL AND target = 'pending' AND event = '{FIRST_EVENT}')""",
        "each entry starts where the one before it ended": f"""
            SELECT job_id, 'entry ' || number || ' starts at ' || coalesce(source, 'nothing')
                || ' after ' || coalesce(previous, 'nothing')
            FROM ({steps}) AS steps WHERE coalesce(source, '') <> coalesce(previous, '')""",
        "the ledger ends in the job's status": f"""
            SELECT job.id, 'status ' || job.status || ', ledger '
                || coalesce(last.target, 'empty')
            FROM {job} AS job LEFT JOIN ({last}) AS last ON last.job_id = job.id AND last.back = 1
            WHERE coalesce(last.target, '') <> job.status OR last.token <> job.token""",
        "a claim raises the token by one and nothing else moves it": f"""
            SELECT job_id, 'token ' || coalesce(previous_token, 0) || ' -> ' || token
                || ' when ' || event
            FROM ({steps}) AS steps WHERE token <> coalesce(previous_token, 0)
                + CASE WHEN event = 'claimed' THEN 1 ELSE 0 END""",
        "attempts are the claims that were not handed back": f"""
            SELECT job.id, 'attempts ' || job.attempts || ', ledger ' || counted.attempts
            FROM {job} AS job JOIN (
                SELECT job_id, sum(CASE event WHEN 'claimed' THEN 1 WHEN 'released' THEN -1
                    ELSE 0 END) AS attempts FROM {transition} GROUP BY job_id
            ) AS counted ON counted.job_id = job.id WHERE counted.attempts <> job.attempts""",
        "no job ran more often than its limit": f"""
            SELECT id, 'attempts ' || attempts || ' of ' || max_retries FROM {job}
            WHERE NOT {LIMIT_SQL} OR NOT {ROOM_SQL}""",
        "no job was handed back without end": f"""
            SELECT id, 'token ' || token || ', attempts ' || attempts FROM {job}
            WHERE token - attempts > {MAX_RELEASES}""",
        "one outcome per lease": f"""
            SELECT job_id, count(*) || ' outcomes for one lease' FROM {transition}
            WHERE event IN ({SETTLING}) AND lease_id IS NOT NULL
            GROUP BY job_id, lease_id HAVING count(*) > 1""",
        "every lease that ended was claimed": f"""
            SELECT ended.job_id, ended.event || ' without a claim' FROM {transition} AS ended
            WHERE ended.source = 'processing' AND NOT EXISTS (
                SELECT 1 FROM {transition} AS claim WHERE claim.job_id = ended.job_id
                AND claim.event = 'claimed' AND claim.lease_id = ended.lease_id)""",
        "a lease is held if and only if the job is processing": f"""
            SELECT id, status || ' with lease ' || CASE WHEN lease_id IS NULL THEN 'absent'
                ELSE 'present' END FROM {job}
            WHERE (status = 'processing') <> (lease_id IS NOT NULL)
                OR (status = 'processing') <> (lease_expires_at IS NOT NULL)""",
        "a job has an end time if and only if it is settled": f"""
            SELECT id, status FROM {job}
            WHERE (status IN ({SETTLED_SQL})) <> (finished_at IS NOT NULL)""",
        "no ledger without its job": f"""
            SELECT job_id, count(*) || ' entries' FROM {transition}
            WHERE NOT EXISTS (SELECT 1 FROM {job} AS job WHERE job.id = job_id) GROUP BY job_id""",
    }
