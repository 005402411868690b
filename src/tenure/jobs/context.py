"""What a handler knows about its attempt."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Stopped = Literal["cancelled", "timeout", "shutdown", "lost"]
"""Why the outcome of a handler no longer counts."""


@dataclass(slots=True)
class JobContext:
    """What a handler knows about its attempt: annotate its first parameter with `JobContext`.

    - `id`: the id of the job.
    - `type`, `queue`: the job's type and queue.
    - `attempt`: the number of this attempt; 1 for the first.
    - `max_retries`: how many attempts the job gets in all. If this attempt fails and `attempt` is
      not less than `max_retries`, the job has failed for good.
    - `token`: rises with every claim of the job and never falls. Hand it to outside systems as a
      fencing token, so that they refuse a stale attempt.
    - `deadline`: when the timeout of this attempt ends it, by the clock of the worker; None if it
      has no timeout.
    - `stopping`: turns True when the worker was asked to stop. A handler that returns within the
      grace period of the worker is recorded as always. One that takes longer is interrupted, and
      the job runs again elsewhere, without a charge.
    - `stopped`: why the handler should return now, since nothing that it does is recorded any more.
      None as long as its outcome counts, then `cancelled` (the job was, normally within 200 ms),
      `timeout`, `shutdown` (the grace period is over), or `lost` (the lease ran out).

    In a child process, `stopping` and `stopped` never change: when the outcome no longer counts,
    the worker kills the child.

    The worker makes it; a handler only reads it.
    """

    id: str
    type: str
    queue: str
    attempt: int  # 1 for the first
    max_retries: int  # attempts in all
    token: int  # rises with every claim
    deadline: datetime | None  # by the worker's clock
    stopping: bool = False  # the worker is
    stopped: Stopped | None = None  # why the outcome of the handler no longer counts
