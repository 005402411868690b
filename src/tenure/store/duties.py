"""Which of the regular duties there is work for: one look, however many there are.

Every process beside the database looks once a second, so a look must cost little. What it finds is
a hint: each duty tests again what it changes. Transitions that are not in the statistics, and on
PostgreSQL the arrivals of claimed jobs, count once the first one is a second old. So one of many
processes does that each second.
"""

from __future__ import annotations

from tenure.rules.reports import Duty
from tenure.rules.schedules import LOOKAHEAD
from tenure.store.database import Dialect, Reads
from tenure.values.names import RESERVED

AFTER = RESERVED[:-1] + chr(ord(RESERVED[-1]) + 1)
"""After the names of all queues that are Tenure's."""
AHEAD = str(LOOKAHEAD.total_seconds())


def searches(d: Dialect) -> dict[Duty, str]:
    """Where to look for work, for each duty: a search in an index, of which one row is enough."""
    return {
        Duty.LEASES: f"{d.expiring} <= {d.now}",
        Duty.STARTS: d.late,
        Duty.WAITS: f"{d.table('wait')} WHERE expires_at <= {d.now}",
        Duty.WORKFLOWS: f"{d.table('workflow')} WHERE finished_at IS NULL",
        Duty.SCHEDULES: f"{d.table('schedule')} WHERE next_at <= {d.later(AHEAD)}",
        Duty.DEPENDENCIES: f"(SELECT 1 FROM {d.table('revisit')} UNION ALL SELECT 1"
        f" FROM {d.table('overdue')}) AS undecided",
        Duty.BULKS: f"{d.table('bulk')} WHERE finished_at IS NULL",
        Duty.TRANSITIONS: f"(SELECT t.at FROM {d.table('transition')} AS t WHERE {d.since}"
        f" AND {d.settled} ORDER BY {', '.join(d.order)} LIMIT 1) AS first"
        f" WHERE at <= {d.later('-1')}",
        Duty.WEBHOOKS: d.table("webhook"),
        Duty.THROTTLES: f"{d.table('throttle')} WHERE expires_at <= {d.now}",
        Duty.RETENTION: d.ruled,
        Duty.DELIVERIES: f"{d.pending} WHERE queue >= '{RESERVED}' AND queue < '{AFTER}'",
    }


def answers(d: Dialect) -> list[str]:
    """Return an expression for each search: whether there is a row."""
    return [f"EXISTS (SELECT 1 FROM {at})" for at in searches(d).values()]


def statement(d: Dialect) -> str:
    """Return the look: a row with a truth value for each search."""
    return d.look or f"SELECT {', '.join(answers(d))}"


def look(db: Reads) -> frozenset[Duty]:
    (row,) = db.rows(statement(db.dialect))
    return frozenset(duty for duty, there in zip(searches(db.dialect), row, strict=True) if there)
