"""Tenure: a job queue that keeps every job it accepts.

The store, not the worker, decides what may happen to a job.

The names below are imported at their first use, so that `tenure --help` does not load a web server.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenure.app.app import Tenure
    from tenure.app.types import JobType
    from tenure.app.waiting import Handle
    from tenure.app.workflows import NewWorkflow, Node
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
    from tenure.handlers.context import JobContext
    from tenure.handlers.registry import Failure
    from tenure.lifecycle import Job, Status
    from tenure.retry import RetryPolicy
    from tenure.rules.jobs import NewJob
    from tenure.rules.queues import PerPartition
    from tenure.rules.reports import RateLimited, RetryAfter, Snooze
    from tenure.rules.signals import Signal
    from tenure.rules.unique_keys import Unique

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
    "NewJob": "rules.jobs",
    "NewWorkflow": "app.workflows",
    "Node": "app.workflows",
    "Job": "lifecycle",
    "JobContext": "handlers.context",
    "Failure": "handlers.registry",
    "PerPartition": "rules.queues",
    "JobType": "app.types",
    "RateLimited": "rules.reports",
    "RetryAfter": "rules.reports",
    "RetryPolicy": "retry",
    "Signal": "rules.signals",
    "Snooze": "rules.reports",
    "Status": "lifecycle",
    "Tenure": "app.app",
    "Unique": "rules.unique_keys",
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
