"""The example that `tenure demo` runs: jobs through success, retry and permanent failure.

The store, the worker and the sweeper are real; the handlers are fake and fail by rule, not by
chance. All jobs are on disk before the worker starts, and its first claim takes them all, so every
run ends the same way, job by job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from tenure.app.app import Tenure
from tenure.errors import InvalidInput, TenureError
from tenure.jobs.enqueue import NewJob
from tenure.jobs.findings import Progress, Violation, no_progress
from tenure.jobs.handlers import Handlers
from tenure.jobs.work import ClaimRequest
from tenure.lifecycle import SETTLED, Job
from tenure.worker.fake_handlers import add_fake_handlers
from tenure.worker.maintenance import MaintenanceThread
from tenure.worker.process import run_loop
from tenure.worker.worker import Worker

QUICK = {"base": 0.1, "factor": 2.0, "cap": 1.0}
VANISHED = ClaimRequest(
    worker="worker-that-vanished", limit=1, lease_seconds=1.0, types=("import",)
)
MAX_SECONDS = 60.0

JOBS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    *(("email", {"to": f"customer-{n}@example.com"}, {"queue": "mail"}) for n in range(1, 11)),
    *(("report", {"month": n}, {"priority": 5}) for n in range(1, 7)),
    *(
        ("payment", {"order": n}, {"queue": "money", "priority": -5, "max_retries": 3})
        for n in range(1, 5)
    ),
    *(("import", {"file": f"part-{n}.csv"}, {"max_retries": 5}) for n in range(1, 5)),
    *(
        ("fake.flaky", {"fail_times": fails}, {"max_retries": limit})
        for fails, limit in ((1, 3), (2, 3), (3, 3), (3, 5), (1, 1), (1, 0))
    ),
    ("fake.flaky", {"fail_times": "often"}, {}),  # does not fit the handler: a retry cannot help
    ("fake.fail", {}, {"max_retries": 2}),
    *(("fake.sleep", {"seconds": 0.3}, {}) for _ in range(2)),
    ("newsletter", {"issue": 7}, {"delay": "1h"}),  # cancelled before it is due
)


class DemoResult(NamedTuple):
    """Every job of the demo at its end, each with its statuses, and what `verify` found."""

    jobs: Sequence[tuple[Job, Sequence[str]]]
    violations: Sequence[Violation]


def run(database: str, progress: Progress = no_progress) -> DemoResult:
    """Run the demo on an empty database, and leave its jobs there.

    Calls `progress` with the number of jobs that are settled, and the number of all. Raises
    InvalidInput if the database has jobs in it, TenureError if the jobs do not end in a minute.
    """
    with Tenure(database, actor="demo") as app:
        if app.stats.counts():
            raise InvalidInput("the demo needs an empty database, this one has jobs in it")
        jobs = app.enqueue_many(
            [NewJob(type, payload, {"backoff": QUICK, **more}) for type, payload, more in JOBS]  # type: ignore[typeddict-item]
        )
        app.cancel(jobs[-1].id)
        app.core.claim(VANISHED)  # and never report it: its lease runs out
        sweeper = MaintenanceThread(app, interval=0.1)
        sweeper.start()
        try:
            run_loop(_work(app, progress))
        finally:
            sweeper.stop()
        ended = [(app.get(job.id), [t.target for t in app.history(job.id)]) for job in jobs]
        return DemoResult(ended, app.verify())


async def _work(app: Tenure, progress: Progress) -> None:
    """Run one worker, with room for all jobs at once, until every job is settled."""
    handlers = Handlers()
    add_fake_handlers(handlers, fail_types=["payment"], fail_every=6)
    worker = Worker(app.core, handlers, concurrency=len(JOBS), grace_seconds=5.0)
    working = asyncio.create_task(worker.run())
    settled = 0
    try:
        async with asyncio.timeout(MAX_SECONDS):
            while settled < len(JOBS) and not working.done():
                await asyncio.sleep(0.05)
                settled = sum(count.jobs for count in app.stats.counts() if count.status in SETTLED)
                progress(settled, len(JOBS), "settled")
    except TimeoutError:
        raise TenureError(f"the demo's jobs did not end within {MAX_SECONDS:.0f} seconds") from None
    finally:
        worker.request_stop()
        await working
