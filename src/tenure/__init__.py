"""Tenure: a job queue that keeps every job it accepts.

The store, not the worker, decides what may happen to a job.
"""

from tenure.app import Tenure
from tenure.errors import (
    IllegalMove,
    InvalidInput,
    JobNotFound,
    KeyConflict,
    PermanentFailure,
    QueueFull,
    StoreUnavailable,
    TenureError,
)
from tenure.handlers import JobContext
from tenure.jobtype import Draft, JobType
from tenure.lifecycle import Job, Status
from tenure.retry import RetryPolicy

__version__ = "0.1.0"

__all__ = [
    "Draft",
    "IllegalMove",
    "InvalidInput",
    "Job",
    "JobContext",
    "JobNotFound",
    "JobType",
    "KeyConflict",
    "PermanentFailure",
    "QueueFull",
    "RetryPolicy",
    "Status",
    "StoreUnavailable",
    "Tenure",
    "TenureError",
]
