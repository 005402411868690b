"""How a handler gives its slot back: exceptions that say when its job runs again."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Literal, get_args

import msgspec

from tenure import retry
from tenure.errors import InvalidInput, TenureError
from tenure.jobs import durations
from tenure.retry import RetryPolicy

Pause = Literal["partition", "queue"]
"""What waits together with a job."""


class _Postponed(TenureError):
    """What both have in common: a delay."""

    def __init__(self, delay: float | timedelta | str, message: str = "") -> None:
        self.seconds = _until_date(delay) or durations.seconds(delay, "$.delay")
        super().__init__(message or f"again in {delay}")


def _until_date(delay: object) -> float:
    """Return the seconds until a date as HTTP writes it; 0 if it is none, or 1 if it is over."""
    if not isinstance(delay, str) or not delay.endswith(" GMT"):
        return 0.0
    from email.utils import parsedate_to_datetime  # it takes milliseconds to import

    try:
        date = parsedate_to_datetime(delay)
    except (ValueError, OverflowError):
        return 0.0
    now = time.time()  # noqa: TID251 - the date is one of another machine, not of the store
    return durations.seconds(max(date.timestamp() - now, 1.0), "$.delay")


class RetryAfter(_Postponed):
    """Raise this in a handler to fail the attempt and to set when it is tried again.

    - `delay`: until the next attempt, in place of what the policy of the job says: seconds, a
      timedelta or text such as `30s`; 0 to 10 years. A server's `Retry-After` belongs here, also
      one that is a date.
    - `message`: why, for `last_error`. Default: when it is tried again.

    The attempt counts: without attempts left the job has failed for good. Raises InvalidInput.
    """

    code = "retry_after"


def longer_wait(asked: str, policy: RetryPolicy, job_id: str, attempt: int) -> float | None:
    """Return the seconds of a `Retry-After`, up to the cap of `policy`; None for its usual wait.

    That is also for a shorter one: ten attempts a second apart would outlast no restart.
    """
    if not asked:
        return None
    try:
        seconds = min(RetryAfter(asked).seconds, policy.cap)
    except InvalidInput:
        return None
    return seconds if seconds > retry.delay(policy, job_id, attempt) else None


class Snooze(_Postponed):
    """Raise this in a handler to run the job again later, at no cost: nothing has failed.

    - `delay`: until the job runs again: seconds, a timedelta or text such as `10m`; 0 to 10 years.
    - `message`: why; it is not kept.

    No attempt is charged. A job can be snoozed 10,000 times; once more is a failure. Raises
    InvalidInput.
    """

    code = "snooze"


class RateLimited(Snooze):
    """Raise this in a handler that met a rate limit outside, such as HTTP 429: a `Snooze` for all.

    - `delay`: until the job runs again, as that of `Snooze`. A server's `Retry-After` belongs here,
      also one that is a date.
    - `pause`: what starts no job until then: `partition` (default), that of the job, or `queue`, or
      None for neither. In a queue that is not divided by partitions, `partition` is the queue too.
      A job without a partition stands for all of its queue that have none.
    - `message`: why; it is not kept.

    Running handlers continue. If another handler asked for a longer pause, that one counts. Raises
    InvalidInput.
    """

    code = "rate_limited"

    def __init__(
        self, delay: float | timedelta | str, pause: Pause | None = "partition", message: str = ""
    ) -> None:
        if pause not in (None, *get_args(Pause)):
            raise InvalidInput("give 'partition', 'queue' or None", path="$.pause")
        self.pause = pause
        super().__init__(delay, message)


class Wait(msgspec.Struct, frozen=True, gc=False):
    """What a suspended job waits for: the signal `number` of a `name`, until `expires_at`."""

    name: str
    number: int
    expires_at: datetime | None = None


class Parked(BaseException):
    """Raised through a handler to end its attempt, which is not a failure: the job runs again.

    After `delay` seconds, or when what it `wait`s for has come. It is no Exception, so that
    `except Exception` in a handler lets it pass.
    """

    def __init__(self, what: str, *, delay: float = 0.0, wait: Wait | None = None) -> None:
        super().__init__(what)
        self.delay = delay
        self.wait = wait


def swallowed(parked: Parked) -> str:
    """Return the error of a handler that has returned in spite of `parked`."""
    return (
        f"the handler was parked ({parked}), yet it returned: let BaseException pass. It is caught "
        "by `except:`, by `finally:` with a return, or by contextlib.suppress(BaseException)"
    )
