"""What a handler knows about its attempt."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal, Protocol

from tenure.errors import InvalidInput
from tenure.jobs.durable import DurableContext
from tenure.jobs.enqueue import NewJob
from tenure.jobs.follow_ups import FollowUps
from tenure.jobs.parents import ParentsContext
from tenure.jobs.postpone import Parked
from tenure.jobs.progress import JobProgress
from tenure.jobs.signal_waits import SignalContext
from tenure.jobs.steps import Notes, Record, StepSource

Stopped = Literal["cancelled", "timeout", "shutdown", "lost"]
"""Why the outcome of a handler no longer counts."""


@dataclass(slots=True)
class JobTransaction:
    """A transaction on the database of the jobs, as `JobContext.transaction` begins it.

    - `connection`: of psycopg or sqlite3, for your statements. It is committed for you.
    - `result`: set it to the result of the job. Default: None.
    """

    connection: Any
    result: Any = None


class Fence(Protocol):
    """What ties transactions of a handler to the lease of its attempt."""

    def complete(self, connection: Any, result: object) -> None: ...
    async def complete_async(self, connection: Any, result: object) -> None: ...
    def hold(self, connection: Any) -> None: ...
    async def hold_async(self, connection: Any) -> None: ...
    def transaction(self) -> AbstractContextManager[JobTransaction]: ...
    def opened(self) -> AbstractContextManager[Any]: ...
    def record(self, connection: Any, step: Record) -> None: ...
    async def record_async(self, connection: Any, step: Record) -> None: ...
    def park(self, parked: Parked) -> None: ...
    def follow_ups(self) -> FollowUps: ...
    def check_free(self) -> None: ...


@dataclass(slots=True)
class JobContext(DurableContext, SignalContext, ParentsContext):
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

    __signature__: ClassVar[inspect.Signature]

    id: str
    type: str
    queue: str
    attempt: int  # 1 for the first
    max_retries: int  # attempts in all
    token: int  # rises with every claim
    deadline: datetime | None  # by the worker's clock
    stopping: bool = False  # the worker is
    stopped: Stopped | None = None  # why the outcome of the handler no longer counts
    _source: StepSource | None = field(default=None, repr=False)
    _fence: Fence | None = field(default=None, repr=False)
    _book: Any = field(default=None, repr=False, compare=False)
    _jobs: FollowUps | None = field(default=None, repr=False)

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Say how far this attempt has come; others see it within about a second.

        - `done`: how much is done, in any unit: up to 2**53 - 1, as `total`.
        - `total`: how much there is in all. Default: None, not known.
        - `message`: what is being done, for people; 500 characters are kept. Default: none.

        It only notes this, so call it as often as you like. What was said last is also kept with
        the end of the attempt, and deleted with the job. Raises InvalidInput if a number is
        larger, or none.
        """
        try:
            said = JobProgress(float(done), None if total is None else float(total), str(message))
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidInput(f"not a valid progress: {error}") from error
        if self._source is not None:
            self._source.note(Notes(progress=said))

    def enqueue(self, new_job: NewJob) -> str:
        """Add a job if and only if this run completes the job, in the same transaction.

        - `new_job`: what `new_job(...)` of a job type returns, or a `NewJob`. It may depend on this
          job and on jobs that this run has added.

        A run that fails, sleeps, is cancelled or loses its lease adds nothing, so no idempotency
        key is needed. At most 1,000 jobs in a run, of about 1 MiB as JSON in all. The limit of a
        queue holds none of them back, their `delay` counts from the end of the run, and the history
        names the worker as who added them.

        It only notes the job: nothing waits, and there is no `_async` form. With `complete` or
        `transaction`, the jobs are added in that transaction. Without an attempt, where the handler
        is called as a function, they are not added: see `enqueued`.

        Returns the id that the job will have. Where a job with its idempotency key or unique key is
        there, that one counts and none has this id. Raises InvalidInput at once. What only the
        database can find, KeyConflict, DuplicateJob or JobNotFound, fails the attempt with that
        reason when it ends.
        """
        if self._jobs is None:
            self._jobs = FollowUps() if self._fence is None else self._fence.follow_ups()
        return self._jobs.add(new_job)

    @property
    def enqueued(self) -> Sequence[NewJob]:
        """The jobs that this run adds if it completes, in order; for tests of a handler."""
        return [] if self._jobs is None else self._jobs.given()

    def complete(self, connection: Any, result: object = None) -> None:
        """Complete this job in the transaction that is open on your connection.

        Your rows and the completion are committed together, or neither is. Whatever crashes, the
        effect is there exactly once. The outcome is then decided by your commit: if the transaction
        was rolled back, the attempt has failed. The handler returns None, or the same result.

        - `connection`: one to the database of the jobs, of a kind that `Tenure.within` takes.
        - `result`: the result of the job, as a handler returns it. Default: None.

        Call it last, so that the job is locked for a short time; under REPEATABLE READ and
        SERIALIZABLE first, since a heartbeat may change the job before. Without an attempt, where
        the handler is called as a function, it does nothing. Raises LeaseLost if this attempt has
        been ended elsewhere: let that roll your transaction back. Raises KeyConflict, DuplicateJob
        or JobNotFound, with nothing written, for a job of `enqueue`. Raises InvalidInput if the job
        is completed by this attempt already, or if the connection is none that `within` takes or
        inside a savepoint of SQLAlchemy; PermanentFailure in a worker that gets its jobs over HTTP.
        """
        if self._fence is not None:
            self._fence.complete(connection, result)

    async def complete_async(self, connection: Any, result: object = None) -> None:
        """Complete this job like `complete`, on an asynchronous connection."""
        if self._fence is not None:
            await self._fence.complete_async(connection, result)

    def hold(self, connection: Any) -> None:
        """Make sure in your transaction that this attempt still has its lease, until it ends.

        No other worker can take the job over before you commit or roll back, so a worker that was
        frozen for too long commits nothing. Call it in each transaction. For `connection`, for the
        errors and for when to call it, see `complete`.
        """
        if self._fence is not None:
            self._fence.hold(connection)

    async def hold_async(self, connection: Any) -> None:
        """Make sure of the lease like `hold`, on an asynchronous connection."""
        if self._fence is not None:
            await self._fence.hold_async(connection)

    def transaction(self) -> AbstractContextManager[JobTransaction]:
        """Begin a transaction on a new connection to the database of the jobs; for `with`.

        A clean end of the block completes the job and commits, an exception rolls back. It blocks,
        so use it in a plain `def`. Returns a context manager that gives a `JobTransaction`. Raises
        InvalidInput without an attempt, and what `complete` raises.
        """
        if self._fence is None:
            raise InvalidInput("a transaction needs an attempt of a worker; none runs here")
        return self._fence.transaction()


_made = inspect.signature(JobContext)
_shown = [each for each in _made.parameters.values() if not each.name.startswith("_")]
JobContext.__signature__ = _made.replace(parameters=_shown)  # what a prompt shows


def meant_context(signature: inspect.Signature, error: Exception) -> str:
    """Return what to write where an argument is missing, if it was to be the context."""
    first = next(iter(signature.parameters.values()), None)
    if first is None or first.name not in {"context", "ctx", "job_context"}:
        return ""
    is_missing = re.search(f"missing .*['`]{first.name}['`]", str(error))
    if not is_missing or first.annotation is not first.empty:
        return ""
    return f"; for the context of the attempt write {first.name}: JobContext"
