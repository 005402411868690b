"""What attempts keep: steps, the last state, how far they have come; and how it is asked for.

The attempts after them read the steps and the state. A handler does not know where these are
stored: beside its worker, behind a server or behind the pipe of a child process. Each call is a
struct, and one method carries them all.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeAlias, TypeVar

import msgspec

from tenure.errors import InvalidInput
from tenure.values.durations import Time

T = TypeVar("T")

# --- progress -------------------------------------------------------------------------------------

MAX_MESSAGE = 500
"""Characters of a message that are kept."""
MAX_PROGRESS = 2.0**53 - 1
"""Up to here doubles are exact: an integer of JSON beyond it would be changed before it is seen."""


class JobProgress(msgspec.Struct, frozen=True):
    """How far a job has come, as its handler said last: `done` of `total`, if that is known.

    It is that of the attempt that runs, or that ran last, as in "failed at 63 of 100".
    """

    done: float
    total: float | None = None
    message: str = ""
    at: Time | None = None  # when the store recorded it

    def __post_init__(self) -> None:
        if not (abs(self.done) <= MAX_PROGRESS and abs(self.total or 0) <= MAX_PROGRESS):
            raise ValueError(f"give numbers up to {MAX_PROGRESS:.0f}")

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total:g}"
        return f"{self.done:g}{of} {self.message}".rstrip()

    @property
    def share(self) -> float | None:
        """From 0 to 1; None without a total."""
        return min(max(self.done / self.total, 0.0), 1.0) if self.total else None


# --- steps ----------------------------------------------------------------------------------------

MAX_STEPS = 1_000
"""Steps of one job."""
MAX_STEPS_BYTES = 8 * 1024 * 1024
"""Results of the steps of one job together, as JSON."""
JOB_LOCKED = "job_locked"
"""The code of the error while another transaction has the job locked."""


class Step(msgspec.Struct, frozen=True, gc=False):
    """A step that an attempt has recorded.

    - `name`: unique in its job. A name with `sleep:`, `wait:` or `timeout:` is Tenure's.
    - `number`: the place of the step among those of the job, 1 for the first.
    - `token`: that of the attempt.
    - `at`: when it was recorded.
    - `result_json`: what it returned, as JSON text; None for None.
    """

    name: str
    number: int
    token: int
    at: datetime
    result_json: str | None

    @property
    def result(self) -> Any:
        """What the step returned, as JSON values."""
        return _decoded(self.result_json)

    @property
    def until(self) -> datetime:
        """When the sleep or wait ends whose seconds this step keeps, by the clock of the store."""
        return self.at + timedelta(seconds=float(self.result))


class JobSteps(msgspec.Struct, frozen=True, gc=False):
    """What the attempts of a job have kept, as `Tenure.steps` returns it.

    - `steps`: in order of their numbers.
    - `state_json`: what `JobContext.checkpoint` was given last, as JSON text; None if nothing was.
    - `state_at`: when that was stored.
    """

    steps: Sequence[Step] = ()
    state_json: str | None = None
    state_at: datetime | None = None

    @property
    def state(self) -> Any:
        """The last checkpoint, as JSON values."""
        return _decoded(self.state_json)


class Load(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Read what earlier attempts have kept; the answer is `Loaded`."""


class Record(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Keep the result of a step; the answer is `Recorded`. Again with the same name: the first."""

    name: str
    number: int
    result: str | None


class KeepState(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Keep a state, unless a later attempt has, or this one with a larger number."""

    number: int
    state: str


class FindSignal(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Look for a signal to the job; the answer is `FoundSignal`, None if it is not there."""

    name: str
    number: int


class KeepToken(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Keep a one-use token of a signal. Only its digest goes this way."""

    digest: str
    name: str
    payload: str | None
    label: str | None = None


class Loaded(msgspec.Struct, frozen=True, gc=False, tag=True):
    """What earlier attempts have kept; `now` is the time of the store."""

    now: datetime
    steps: Sequence[Step] = ()
    state: str | None = None


class Recorded(msgspec.Struct, frozen=True, gc=False, tag=True):
    """The step on record."""

    step: Step


class FoundSignal(msgspec.Struct, frozen=True, gc=False, tag=True):
    """A signal that is there: what it says as JSON text, and when it was sent."""

    payload: str
    at: datetime


class ReadParents(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Read jobs that the job depends on, after an id or of a name; the answer is `Parents`."""

    after: str = ""
    name: str | None = None
    within: tuple[str, ...] | None = None  # the only queues of who asks


class ParentJob(msgspec.Struct, frozen=True, gc=False):
    """A job that another one depends on, as a handler of that one sees it.

    - `id`, `type`, `queue`, `status`: of the job. `event`, `actor`: of its last transition.
    - `meets`: the ending that the other one waits for: `completed`, `settled` or `failed`.
    - `name`: what the other one calls it; None for no name.
    - `result_json`: what it returned, as JSON text; `result` is the value. `error`: the first 1,000
      characters of its last error.
    """

    id: str
    meets: str
    name: str | None
    type: str
    queue: str
    status: str
    event: str
    actor: str | None
    result_json: str | None
    error: str | None

    @property
    def result(self) -> Any:
        """What it returned, as JSON values."""
        return _decoded(self.result_json)


class Parents(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Some of the jobs that a job depends on, and whether there are more."""

    jobs: Sequence[ParentJob] = ()
    more: bool = False


StepCall: TypeAlias = Load | Record | KeepState | FindSignal | KeepToken | ReadParents
StepAnswer: TypeAlias = Loaded | Recorded | FoundSignal | Parents | None


class Notes(msgspec.Struct, frozen=True, gc=False):
    """What an attempt reports without waiting for an answer: its progress and its state."""

    progress: JobProgress | None = None
    state: KeepState | None = None


class StepSource(Protocol):
    """Where the notes and steps of one attempt go."""

    def note(self, notes: Notes) -> None:
        """Take notes, to be written soon, and at the end of the attempt at the latest."""

    def ask(self, call: StepCall) -> Future[Any]:
        """Return what a call is answered: `StepAnswer`.

        The future raises LeaseLost, StoreUnavailable, or InvalidInput with the code JOB_LOCKED.
        """


def _decoded(text: str | None) -> Any:
    return None if text is None else msgspec.json.decode(text)


def job_locked(job_id: str) -> InvalidInput:
    """Return the error of a call that meets a lock."""
    return InvalidInput(
        f"another transaction has job {job_id} locked, perhaps one that its handler began: end it "
        "first, or use `step_within`",
        code=JOB_LOCKED,
    )


Waiting: TypeAlias = Generator[Future[Any] | float, None, T]
"""Yields a future to wait for, or seconds to let pass: so threads and coroutines share it."""


def waited(steps: Waiting[T]) -> T:
    """Do what waits on this thread, and return its result."""
    with closing(steps):
        while True:
            try:
                pause = next(steps)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(pause, float):
                time.sleep(pause)
            else:
                wait([pause])


async def awaited(steps: Waiting[T]) -> T:
    """Do what waits without blocking the event loop, and return its result."""
    import asyncio

    with closing(steps):
        while True:
            try:
                pause = next(steps)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(pause, float):
                await asyncio.sleep(pause)
            else:
                await asyncio.gather(asyncio.wrap_future(pause), return_exceptions=True)
