"""Tenure: a job queue that keeps every job it accepts.

The store, not the worker, decides what may happen to a job.

The names below are imported at their first use, so that `tenure --help` does not load a web server.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenure.app.app import Tenure
    from tenure.app.flow import NewWorkflow, Node
    from tenure.app.job_types import JobType
    from tenure.app.waiting import Handle
    from tenure.dependency import Dependency
    from tenure.errors import (
        DuplicateJob,
        IllegalTransition,
        InvalidInput,
        JobCancelled,
        JobFailed,
        JobNotFound,
        JobUnsettled,
        KeyConflict,
        LeaseLost,
        PermanentFailure,
        QueueFull,
        ResultGone,
        ResultTruncated,
        SignalTimeout,
        StoreUnavailable,
        TenureError,
    )
    from tenure.jobs.context import JobContext
    from tenure.jobs.enqueue import NewJob
    from tenure.jobs.hooks import Failure
    from tenure.jobs.limits import PerPartition
    from tenure.jobs.postpone import RateLimited, RetryAfter, Snooze
    from tenure.jobs.signals import Signal
    from tenure.jobs.uniqueness import Unique
    from tenure.lifecycle import Job, Status
    from tenure.retry import RetryPolicy

__version__ = "0.1.0"

__all__ = [
    "Dependency",
    "DuplicateJob",
    "Failure",
    "Handle",
    "IllegalTransition",
    "InvalidInput",
    "Job",
    "JobCancelled",
    "JobContext",
    "JobFailed",
    "JobNotFound",
    "JobType",
    "JobUnsettled",
    "KeyConflict",
    "LeaseLost",
    "NewJob",
    "NewWorkflow",
    "Node",
    "PerPartition",
    "PermanentFailure",
    "QueueFull",
    "RateLimited",
    "ResultGone",
    "ResultTruncated",
    "RetryAfter",
    "RetryPolicy",
    "Signal",
    "SignalTimeout",
    "Snooze",
    "Status",
    "StoreUnavailable",
    "Tenure",
    "TenureError",
    "Unique",
]

_HOMES = {
    "Dependency": "dependency",
    "Handle": "app.waiting",
    "NewJob": "jobs.enqueue",
    "NewWorkflow": "app.flow",
    "Node": "app.flow",
    "Job": "lifecycle",
    "JobContext": "jobs.context",
    "Failure": "jobs.hooks",
    "PerPartition": "jobs.limits",
    "JobType": "app.job_types",
    "RateLimited": "jobs.postpone",
    "RetryAfter": "jobs.postpone",
    "RetryPolicy": "retry",
    "Signal": "jobs.signals",
    "Snooze": "jobs.postpone",
    "Status": "lifecycle",
    "Tenure": "app.app",
    "Unique": "jobs.uniqueness",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
