"""A job that passed all checks, before and after the store added it."""

from __future__ import annotations

from datetime import datetime

import msgspec

from tenure.lifecycle import DEFAULT_MAX_RETRIES, Job
from tenure.retry import DEFAULT_POLICY, RetryPolicy


class CheckedJob(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A job to add. The store sets its times: `run_at` if given, otherwise now plus `delay`."""

    id: str
    type: str
    queue: str = "default"
    payload: str = "{}"
    priority: int = 0
    max_retries: int = DEFAULT_MAX_RETRIES
    timeout: float | None = None
    backoff: RetryPolicy = DEFAULT_POLICY
    idempotency_key: str | None = None
    fingerprint: str | None = None  # of the whole request, stored with the key
    delay: float = 0.0
    run_at: datetime | None = None
    actor: str | None = None
    traceparent: str | None = None  # the span that adds it, if any


class Enqueued(msgspec.Struct, frozen=True):
    """The new job, or (`created` false) the earlier job with the same idempotency key."""

    job: Job
    created: bool
