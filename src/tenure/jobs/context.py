"""What a handler knows about its attempt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from tenure.errors import InvalidInput
from tenure.jobs.progress import JobProgress

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
    _on_progress: Callable[[JobProgress], object] | None = field(default=None, repr=False)

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Say how far this attempt has come; others see it within about a second.

        - `done`: how much is done, in any unit.
        - `total`: how much there is in all. Default: None, not known.
        - `message`: what is being done, for people; 500 characters are kept. Default: none.

        It only notes this, so call it as often as you like. What was said last is also kept with
        the end of the attempt, and deleted with the job. Raises InvalidInput if a number is not
        finite.
        """
        try:
            said = JobProgress(float(done), None if total is None else float(total), str(message))
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"progress takes finite numbers: {error}") from error
        if self._on_progress is not None:
            self._on_progress(said)
