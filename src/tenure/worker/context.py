"""Makes the context of an attempt, in the worker and in child processes alike."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from tenure.jobs.context import Fence, JobContext
from tenure.jobs.progress import JobProgress
from tenure.jobs.work import Lease


def context_of(
    lease: Lease, fence: Fence, on_progress: Callable[[JobProgress], object]
) -> JobContext:
    """Return what the handler may know of its attempt, which starts now."""
    deadline: datetime | None = None
    if lease.timeout is not None:  # by the clock of this machine, for the handler to compare with
        deadline = datetime.now(UTC) + timedelta(seconds=lease.timeout)  # noqa: TID251
    return JobContext(
        id=lease.id,
        type=lease.type,
        queue=lease.queue,
        attempt=lease.attempts,
        max_retries=lease.max_retries,
        token=lease.token,
        deadline=deadline,
        _on_progress=on_progress,
        _fence=fence,
    )
