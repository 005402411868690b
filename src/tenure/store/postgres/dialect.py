"""The dialect of PostgreSQL. `{s}` is the schema, put in when a statement is executed."""

from __future__ import annotations

from tenure.store.dialect import Dialect
from tenure.store.postgres.connection import NOW, is_uuid, to_time

DIALECT = Dialect(
    prefix="{s}.",
    value="%s",
    id_value="%s::uuid",
    id_column="{column}::text",
    time_column="{column} AT TIME ZONE 'UTC'",
    now=NOW,
    duration="({seconds})::double precision * interval '1 second'",
    skip_locked="FOR UPDATE SKIP LOCKED",
    # Lower case of the C locale is that of A to Z alone, as in SQLite.
    folded='strpos(lower(job.{column} COLLATE "C"), %s) > 0',
    is_id=is_uuid,
    to_time=to_time,
    to_bound=lambda time: time,
    place="xid::text, seq",
    order=("xid", "seq"),
    settled="t.xid < pg_snapshot_xmin(pg_current_snapshot())",
    after="(t.xid, t.seq) > (%s::text::xid8, %s::bigint)",
    up_to="(t.xid, t.seq) <= (%s::text::xid8, %s::bigint)",
    is_at="xid = %s::text::xid8 AND seq = %s",
    set_place="xid = %s::text::xid8, seq = %s",
    since="(t.xid, t.seq) > (SELECT xid, seq FROM {s}.measured)",
    lost="(SELECT xid FROM {s}.measured) >= pg_snapshot_xmax(pg_current_snapshot())",
    # The limit, which changes nothing, keeps the planner from walking the jobs.
    with_job="CROSS JOIN LATERAL (SELECT type, queue, token, event, run_at, started_at"
    " FROM {s}.job WHERE id = t.job_id LIMIT 1) AS j",
    minute="floor(date_part('epoch', t.at) / 60)::bigint",
    millis="floor(date_part('epoch', {time}) * 1000)::bigint",
    span="date_part('epoch', {end} - {start})",
    first_line="split_part(t.detail, E'\\n', 1)",
    last_job="(array_agg(t.job_id::text ORDER BY t.at DESC, t.seq DESC))[1]",
    json_rows="json_array_elements(%s::json) AS new (value)",
    hold=" FOR UPDATE",
    packs=False,
)
