"""A process that decides the ticks of schedules and works off their jobs until it is killed.

    python -m tests.chaos.scheduling URL

It does what a worker does, as fast as it can.
"""

from __future__ import annotations

import sys
import time

from tenure import StoreUnavailable, Tenure
from tenure.app.schedules import decide_due, set_right
from tenure.rules.reports import ClaimRequest, Outcome, Report

LEASE_SECONDS = 60


def step(app: Tenure, worker: str) -> int:
    """Decide what is due, end old leases, complete a few jobs; return how many."""
    set_right(app.core, zones=True)
    while decide_due(app.core, set()):
        pass
    app.core.sweep()
    claim = ClaimRequest(worker=worker, limit=20, lease_seconds=LEASE_SECONDS)
    leases = app.core.claim(claim).leases
    app.core.report([Report(lease.id, lease.lease_id, Outcome.COMPLETED) for lease in leases])
    return len(leases)


def main() -> None:
    app = Tenure(sys.argv[1])
    while True:
        try:
            step(app, "evaluator")
        except StoreUnavailable as error:  # somebody who holds the lock is frozen
            print(error, flush=True)
        time.sleep(0.01)


if __name__ == "__main__":
    main()
