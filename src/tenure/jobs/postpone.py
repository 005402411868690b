"""Exceptions by which a handler says when its job runs again."""

from __future__ import annotations

from datetime import timedelta

from tenure.errors import TenureError
from tenure.jobs import durations


class _Postponed(TenureError):
    """What both have in common: a delay."""

    def __init__(self, delay: float | timedelta | str, message: str = "") -> None:
        self.seconds = durations.seconds(delay, "$.delay")
        super().__init__(message or f"again in {delay}")


class RetryAfter(_Postponed):
    """Raise this in a handler to fail the attempt and to set when it is tried again.

    - `delay`: until the next attempt, in place of what the policy of the job says: seconds, a
      timedelta or text such as `30s`; 0 to 10 years. A server's `Retry-After` belongs here.
    - `message`: why, for `last_error`. Default: when it is tried again.

    The attempt counts: without attempts left the job has failed for good. Raises InvalidInput.
    """

    code = "retry_after"


class Snooze(_Postponed):
    """Raise this in a handler to run the job again later, at no cost: nothing has failed.

    - `delay`: until the job runs again: seconds, a timedelta or text such as `10m`; 0 to 10 years.
    - `message`: why; it is not kept.

    No attempt is charged. A job can be snoozed 10,000 times; once more is a failure. Raises
    InvalidInput.
    """

    code = "snooze"
