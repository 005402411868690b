"""The verbs of `Tenure` that run jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tenure.rules.jobs import Duration
from tenure.values import durations
from tenure.values.durations import positive
from tenure.values.names import check_queues
from tenure.values.numbers import whole

if TYPE_CHECKING:
    from tenure.app.app import Tenure
    from tenure.settings import Settings
    from tenure.worker.process import Running


def run_worker(
    app: Tenure,
    queues: Sequence[str] | None = None,
    *,
    concurrency: int = 16,
    lease: Duration = 30,
    grace: Duration = 30,
    keep: Mapping[str, Duration] | None = None,
    webhooks_private: bool = False,
    max_idle: Duration | None = None,
) -> None:
    """Run this application's handlers until SIGTERM or SIGINT; return when all have ended.

    Call it on the main thread: Python handles signals there only, so elsewhere it raises
    RuntimeError, and in a coroutine, too (`running` is for other threads and loops). A second
    signal ends the process at once, and other workers take over its jobs when their leases expire.

    - `queues`: take jobs of these queues only, at least one. Default: None, of every queue.
    - `concurrency`: how many handlers run at once, 1 to 1,000. Default: 16.
    - `lease`: a duration, a second to a day. If this worker dies, others take over its jobs after
      that time; it renews its leases while it lives. Default: 30 seconds.
    - `grace`: a duration. Handlers that run at the first signal have that long to finish; jobs
      that have not started go back to the queue. Default: 30 seconds.
    - `keep`: delete jobs that were settled longer ago than this, by status, as in
      `{"completed": "7d", "failed": "90d"}`. Default: None, delete nothing.
    - `webhooks_private`: deliver to webhooks at addresses that are not public, too. Default:
      False.
    - `max_idle`: a duration above 0. Return also once there was no job to run for so long; jobs
      that are due later stay in the queue. Default: None, wait for jobs until a signal.

    Also ends the leases of dead workers, adds up statistics, continues bulk actions and
    delivers to webhooks, as a server does. It starts, and waits, also while the database does
    not answer. Raises InvalidInput, and SchemaMismatch as `open` does.
    """
    from tenure.worker.process import run_worker

    settings = _settings(queues, concurrency, lease, grace, keep, webhooks_private)
    seconds = None if max_idle is None else positive(max_idle, "$.max_idle")
    run_worker(app, settings, max_idle_seconds=seconds)


def running(
    app: Tenure,
    queues: Sequence[str] | None = None,
    *,
    concurrency: int = 16,
    lease: Duration = 30,
    grace: Duration = 30,
    keep: Mapping[str, Duration] | None = None,
    webhooks_private: bool = False,
) -> Running:
    """Run a worker inside a program: `async with app.running():` or `with app.running():`.

    The worker runs while the block does, on any thread, and installs no signal handlers. At the end
    of the block, handlers get the grace period to finish. With `async with`, coroutines run on the
    event loop of the program and share its connections. With `with`, they run on a loop in a
    thread.

    Takes what `run_worker` takes except `max_idle`, and does the same beside the jobs. Returns the
    block. At its begin it raises StoreUnavailable or SchemaMismatch, at its end what has ended the
    worker early.
    """
    from tenure.worker.process import Running

    return Running(app, _settings(queues, concurrency, lease, grace, keep, webhooks_private))


def _settings(
    queues: Sequence[str] | None,
    concurrency: int,
    lease: Duration,
    grace: Duration,
    keep: Mapping[str, Duration] | None,
    webhooks_private: bool,
) -> Settings:
    from tenure.settings import MAX_CONCURRENCY, Settings

    ages = durations.retention(keep or {})
    return Settings(
        queues=check_queues(queues, "queues"),
        concurrency=whole(concurrency, 1, MAX_CONCURRENCY, "$.concurrency"),
        lease_seconds=durations.lease(lease, "$.lease"),
        grace_seconds=durations.seconds(grace, path="$.grace"),
        keep_completed=ages.get("completed"),
        keep_cancelled=ages.get("cancelled"),
        keep_failed=ages.get("failed"),
        webhooks_private=webhooks_private,
    )
