"""The verbs of `Tenure` that run jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tenure.jobs import durations
from tenure.jobs.enqueue import Duration, positive
from tenure.jobs.names import check_queues

if TYPE_CHECKING:
    from tenure.app.app import Tenure


def run_worker(
    app: Tenure,
    queues: Sequence[str] | None = None,
    *,
    concurrency: int = 16,
    lease: Duration = 30,
    grace: Duration = 30,
    keep: Mapping[str, Duration] | None = None,
    webhooks_private: bool = False,
) -> None:
    """Run this application's handlers until SIGTERM or SIGINT; return when all have ended.

    Call it on the main thread: Python handles signals there only. A second signal ends the
    process at once, and other workers take over its jobs when their leases expire.

    - `queues`: take jobs of these queues only. Default: None, of every queue.
    - `concurrency`: how many handlers run at once. Default: 16.
    - `lease`: a duration. If this worker dies, others take over its jobs after that time; it
      renews its leases while it lives. Default: 30 seconds.
    - `grace`: a duration. Handlers that run at the first signal have that long to finish; jobs
      that have not started go back to the queue. Default: 30 seconds.
    - `keep`: delete jobs that were settled longer ago than this, by status, as in
      `{"completed": "7d", "failed": "90d"}`. Default: None, delete nothing.
    - `webhooks_private`: deliver to webhooks at addresses that are not public, too. Default:
      False.

    Also ends the leases of dead workers, adds up statistics, continues bulk actions and
    delivers to webhooks, as a server does. It starts, and waits, also while the database does
    not answer. Raises InvalidInput, and SchemaMismatch as `open` does.
    """
    from tenure.settings import Settings
    from tenure.worker.process import run_worker

    ages = durations.retention(keep or {})
    settings = Settings(
        queues=check_queues(queues, "queues"),
        concurrency=concurrency,
        lease_seconds=positive(lease, "$.lease"),
        grace_seconds=durations.seconds(grace, path="$.grace"),
        keep_completed=ages.get("completed"),
        keep_cancelled=ages.get("cancelled"),
        keep_failed=ages.get("failed"),
        webhooks_private=webhooks_private,
    )
    run_worker(app, settings)
