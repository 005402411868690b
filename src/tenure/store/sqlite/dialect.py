"""The dialect of SQLite."""

from __future__ import annotations

from datetime import datetime, timedelta

from tenure.jobs.ids import EPOCH
from tenure.store.dialect import Dialect
from tenure.store.sqlite.connection import NOW, to_time


def to_bound(time: datetime | None) -> int | None:
    """Return a bound for times, which are stored in whole milliseconds: rounded up to the next."""
    return None if time is None else -((EPOCH - time) // timedelta(milliseconds=1))


DIALECT = Dialect(
    prefix="tenure_",
    value="?",
    id_value="?",
    id_column="{column}",
    time_column="{column}",
    now=NOW,
    duration="CAST({seconds} * 1000 AS INTEGER)",
    skip_locked="",
    folded="instr(lower({column}), ?) > 0",
    is_id=lambda text: True,
    to_time=to_time,
    to_bound=to_bound,
    place="seq",
    order=("seq",),
    settled="true",
    after="t.seq > ?",
    up_to="t.seq <= ?",
    is_at="seq = ?",
    set_place="seq = ?",
    since="t.seq > (SELECT seq FROM tenure_measured)",
    lost="false",
    # The order is given: the planner must not walk the jobs.
    with_job="CROSS JOIN tenure_job AS j ON j.id = t.job_id",
    minute="t.at / 60000",
    millis="{time}",
    span="({end} - {start}) / 1000.0",
    first_line="substr(t.detail, 1, instr(t.detail || char(10), char(10)) - 1)",
    last_job="substr(max(printf('%020d', t.at) || t.job_id), 21)",
    json_rows="json_each(?) AS new",
    hold="",
    packs=True,
)
