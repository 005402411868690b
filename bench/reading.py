"""What it costs to read the numbers of a large store: `python bench/reading.py URL [JOBS]`.

Fills an empty database with jobs in plain SQL (its triggers write the ledger), has everything
measured, and times what dashboards and monitoring call, the median of several calls each.
"""

from __future__ import annotations

import sqlite3
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from tenure import Tenure

TYPES = 20
QUEUES = 10
CALLS = 15
BITE = 100_000

# Of a hundred jobs 35 are completed, 4 failed, 1 is cancelled, 60 are pending.
SQLITE = (
    "WITH RECURSIVE n (n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM n WHERE n < {last})"
    " INSERT INTO tenure_job (id, type, queue, priority, run_at, created_at) SELECT"
    " format('%08x-0000-7000-8000-%012x', n, n), 'type' || (n % {types}),"
    " 'queue' || (n / 7 % {queues}), n % 3, at - 60000 + n % 50000, at - 60000"
    " FROM n, tenure_now",
    "UPDATE tenure_job SET status = 'processing', attempts = 1, token = 1, event = 'claimed',"
    " worker = 'w', lease_id = lower(hex(randomblob(16))), lease_expires_at = at + 60000,"
    " started_at = at FROM tenure_now WHERE status = 'pending' AND token = 0"
    " AND tenure_job.rowid BETWEEN {first} AND {last} AND tenure_job.rowid % 100 < 40",
    "UPDATE tenure_job SET lease_id = NULL, lease_expires_at = NULL, finished_at = at,"
    " status = outcome, event = outcome, last_error = CASE WHEN outcome = 'failed'"
    " THEN 'ValueError: no such row ' || row END FROM (SELECT at, j.rowid AS row,"
    " CASE WHEN j.rowid % 100 < 35 THEN 'completed' WHEN j.rowid % 100 < 39 THEN 'failed'"
    " ELSE 'cancelled' END AS outcome FROM tenure_job AS j, tenure_now"
    " WHERE j.status = 'processing' AND j.rowid BETWEEN {first} AND {last}) AS ended"
    " WHERE tenure_job.rowid = row",
)
POSTGRES = (
    "INSERT INTO tenure.job (id, type, queue, priority, run_at, created_at) SELECT"
    " format('%s-0000-7000-8000-%s', lpad(to_hex(n), 8, '0'), lpad(to_hex(n), 12, '0'))::uuid,"
    " 'type' || (n % {types}), 'queue' || (n / 7 % {queues}), n % 3,"
    " now() - interval '1 minute' + n % 50000 * interval '1 millisecond',"
    " now() - interval '1 minute' FROM generate_series({first}, {last}) AS n",
    "UPDATE tenure.job SET status = 'processing', attempts = 1, token = 1, event = 'claimed',"
    " worker = 'w', lease_id = gen_random_uuid(), lease_expires_at = now() + interval '1 minute',"
    " started_at = now() FROM generate_series({first}, {last}) AS n WHERE n % 100 < 40 AND id ="
    " format('%s-0000-7000-8000-%s', lpad(to_hex(n), 8, '0'), lpad(to_hex(n), 12, '0'))::uuid",
    "UPDATE tenure.job SET lease_id = NULL, lease_expires_at = NULL, finished_at = now(),"
    " status = outcome, event = outcome, last_error = CASE WHEN outcome = 'failed'"
    " THEN 'ValueError: no such row ' || n END FROM (SELECT n, CASE WHEN n % 100 < 35"
    " THEN 'completed' WHEN n % 100 < 39 THEN 'failed' ELSE 'cancelled' END AS outcome"
    " FROM generate_series({first}, {last}) AS n WHERE n % 100 < 40) AS ended WHERE id ="
    " format('%s-0000-7000-8000-%s', lpad(to_hex(n), 8, '0'), lpad(to_hex(n), 12, '0'))::uuid",
)


def fill(url: str, jobs: int) -> None:
    """Put jobs into an empty database."""
    connection, statements = _connect(url)
    for first in range(1, jobs + 1, BITE):
        last = min(first + BITE - 1, jobs)
        for statement in statements:
            text = statement.format(first=first, last=last, types=TYPES, queues=QUEUES)
            connection.execute(text)
    if statements is POSTGRES:
        connection.execute("VACUUM (ANALYZE) tenure.job")
    connection.close()


def _connect(url: str) -> tuple[Any, tuple[str, ...]]:
    if url.startswith("sqlite:"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        connection.execute("PRAGMA synchronous = OFF")
        return connection, SQLITE
    import psycopg

    return psycopg.connect(url, autocommit=True), POSTGRES


def milliseconds(call: Callable[[], Any]) -> float:
    """The median time of several calls."""
    times = []
    for _ in range(CALLS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def main() -> None:
    """Fill, measure, tell."""
    url, jobs = sys.argv[1], int((*sys.argv[2:], "1000000")[0])
    with Tenure(url) as app:
        began = time.perf_counter()
        fill(url, jobs)
        print(f"{jobs} jobs stored in {time.perf_counter() - began:.1f} s")
        began = time.perf_counter()
        transitions = 0
        while batch := app.core.measure():
            transitions += batch
        took = time.perf_counter() - began
        print(
            f"{transitions} transitions measured in {took:.1f} s, "
            f"{took / max(transitions, 1) * 1e6:.1f} us each"
        )
        for name in ("stats", "activity", "totals", "failures", "measured_until", "queues"):
            print(f"{name:16} {milliseconds(getattr(app, name)):8.1f} ms")
        print(f"{'workers':16} {milliseconds(app.workers.list):8.1f} ms")
        print(f"{'measure, idle':16} {milliseconds(app.core.measure):8.1f} ms")


if __name__ == "__main__":
    main()
