"""The raw limit: the store's own statements in a loop on one connection, and nothing around them.

    python bench/raw.py URL [BATCH]

Settles every job that is due: report the last batch and claim the next in one transaction, as a
worker's turn does, but without handlers, threads, futures or decoded payloads. Prints the rate.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tenure.rules.reports import ClaimRequest, Outcome, Report
from tenure.store.database import Database

BATCH = 500
LEASE_SECONDS = 60.0
NAME = "worker-0123456789abcdef"
"""As long as the name of a worker, which stands in each job and in each of its moves."""


def open_database(url: str) -> Database:
    """The writing connection to an existing database."""
    if url.startswith("sqlite:"):
        from tenure.store.sqlite import connection as sqlite_connection
        from tenure.store.sqlite import writer as sqlite

        return sqlite.Sqlite(sqlite_connection.path_of(url))
    from tenure.store.postgres.writer import Postgres

    return Postgres(url)


def settle_all(database: Database, batch: int = BATCH) -> tuple[int, float]:
    """Claim and complete until nothing is due; how many jobs, in how many seconds."""
    request = ClaimRequest(worker=NAME, limit=batch, lease_seconds=LEASE_SECONDS, types=("send",))
    reports: list[Report] = []
    settled = 0
    started = time.monotonic()
    while True:
        database.begin()
        if reports:
            settled += len(database.complete(reports))
        leases = database.claim(request)
        database.commit()
        database.tidy()
        if not leases:
            return settled, time.monotonic() - started
        reports = [
            Report(lease.id, lease.lease_id, Outcome.COMPLETED, actor=NAME) for lease in leases
        ]


def main(arguments: list[str]) -> None:
    url, batch = arguments[0], int(arguments[1]) if len(arguments) > 1 else BATCH
    database = open_database(url)
    jobs, seconds = settle_all(database, batch)
    database.close()
    print(json.dumps({"jobs": jobs, "seconds": seconds, "rate": jobs / seconds}))


if __name__ == "__main__":
    main(sys.argv[1:])
