"""Waiting for jobs to be settled: verbs of `Tenure`, and the handle of one job."""

from __future__ import annotations

import concurrent.futures
import logging
import time
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from tenure.app.core import Core
from tenure.dependency import Parent
from tenure.errors import JobCancelled, JobFailed, JobNotFound, ResultTruncated, TenureError
from tenure.handlers.results import read_result
from tenure.lifecycle import Job, Status, at_rest
from tenure.rules.jobs import Duration
from tenure.rules.steps import JobProgress
from tenure.telemetry.logs import LOG_FIELDS
from tenure.values import durations, ids
from tenure.values.names import check_kind
from tenure.values.text import UNSTORABLE

if TYPE_CHECKING:
    from tenure.app.app import Tenure

log = logging.getLogger(__name__)
R = TypeVar("R", covariant=True)

UNSERVED_SECONDS = 5.0
"""How long a wait lasts before it is asked, once, whether any worker takes the job."""
PAUSE_SECONDS = 60.0
"""Between two such questions of one process, however many calls wait."""
BLOCKED_SECONDS = 1.0
"""How long a wait may block the event loop of a worker in this program, which runs nothing then."""
BLOCKED = (
    "this wait blocks the event loop on which a worker of these jobs runs, so that no job can run: "
    "await wait_async(...) or the handle, and write async for"
)
ONE_BY_ONE = "testing-"
"""The ids of workers that run one job after the other, in tests, begin so."""
STUCK = (
    "job {} ({}) cannot run while this handler waits for it: a test runs one job after the other. "
    "Let a job that depends on it do the rest (depends_on, a workflow), or run it before, with "
    "jobs.run(job)"
)
HANDLES = "handles, as submit(...) returned them"
_loops: list[tuple[object, str]] = []
"""The event loops on which workers of this program run, with the databases of their jobs."""


@contextmanager
def worker_on_this_loop(app: Tenure) -> Iterator[None]:
    """Let a wait that blocks this loop say so: the worker of `app` on it would run nothing."""
    import asyncio

    here = (asyncio.get_running_loop(), app.database)
    _loops.append(here)
    try:
        yield
    finally:
        _loops.remove(here)


def _allowed(app: Tenure, seconds: float | None) -> float | None:
    """Return how long a call may wait on this thread, if it is to wait so many seconds."""
    if not _loops or (seconds is not None and seconds <= BLOCKED_SECONDS):
        return seconds
    import asyncio

    try:
        here = (asyncio.get_running_loop(), app.database)
    except RuntimeError:  # no loop runs on this thread
        return seconds
    return BLOCKED_SECONDS if here in _loops else seconds


def wait(app: Tenure, job: Job | str, timeout: Duration | None = None) -> Job:
    """Return a job once it is settled: completed, failed for good, or cancelled.

    - `job`: the job, or its id.
    - `timeout`: a duration to wait at most; 0 looks once. Default: None, as long as it takes.

    In a handler, this holds one of the worker's slots, and the job may wait for that very slot.

    Raises RuntimeError where it blocks the event loop of a worker for a second, and in a handler
    that a test runs, if no worker runs the job within a second. Raises JobNotFound; TimeoutError if
    the job is not settled in time (the job continues); ResultGone if it was deleted meanwhile;
    StoreUnavailable if the first look fails. An outage of the database after that does not end the
    wait.
    """
    job_id, seconds = _asked(job, timeout)
    if seconds == 0:
        return _settled(app.get(job_id))
    future = begin(app, job_id)
    allowed = _allowed(app, seconds)
    try:
        return future.result(allowed)
    except concurrent.futures.TimeoutError:
        if allowed != seconds:
            raise RuntimeError(BLOCKED) from None
        raise _late(job_id, seconds) from None
    finally:
        future.cancel()


async def wait_async(app: Tenure, job: Job | str, timeout: Duration | None = None) -> Job:
    """Do what `wait` does, without blocking the event loop or holding a thread."""
    job_id, seconds = _asked(job, timeout)
    if seconds == 0:
        return _settled(await app.get_async(job_id))
    await app.core.opened()
    future = begin(app, job_id)
    try:
        import asyncio

        return await asyncio.wait_for(asyncio.wrap_future(future), seconds)
    except TimeoutError:
        raise _late(job_id, seconds) from None
    finally:
        future.cancel()


def begin(app: Tenure, job_id: str) -> Future[Job]:
    """Return a future of the job once it is settled, as `Waits.add` does, at once."""
    if not ids.is_id(job_id):
        raise JobNotFound(job_id)
    core, fields = app.core, LOG_FIELDS.get()
    if fields is None or not _is_one_by_one(fields()["worker"]):
        return core.store.wait(job_id, _Unserved(app, job_id))
    return core.store.wait(job_id, partial(_stuck, core, job_id, fields()["job"]))


class _Unserved:
    """Lets the log say that no worker takes a job that a call waits for; never ends the wait."""

    __slots__ = ("_app", "_due", "_job_id")
    _next: ClassVar[float] = 0.0

    def __init__(self, app: Tenure, job_id: str) -> None:
        self._app, self._job_id, self._due = app, job_id, 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        self._due = self._due or now + UNSERVED_SECONDS
        if now < max(self._due, _Unserved._next):
            return
        self._due, _Unserved._next = inf, now + PAUSE_SECONDS
        with suppress(TenureError):
            found = self._app.explain(self._job_id)
            if found.reason.startswith("no_worker"):
                log.warning("a call waits for job %s: %s", self._job_id, found.text)


def _is_one_by_one(worker: str | None) -> bool:
    return worker is not None and worker.startswith(ONE_BY_ONE)


def _stuck(core: Core, job_id: str, waiter: str) -> RuntimeError | None:
    """Return why the job `waiter` of a test waits in vain, None if others may run its job."""
    try:
        core.get(waiter)  # not found: the test does not run the jobs of this database
        job = core.get(job_id)
    except TenureError:  # the next look says what that means
        return None
    is_elsewhere = job.status is Status.PROCESSING and not _is_one_by_one(job.worker)
    return None if is_elsewhere or at_rest(job) else RuntimeError(STUCK.format(job.id, job.type))


def _asked(job: Job | str, timeout: Duration | None) -> tuple[str, float | None]:
    seconds = None if timeout is None else durations.seconds(timeout, path="$.timeout")
    return ids.id_of(job), seconds


def _settled(job: Job) -> Job:
    if not at_rest(job):
        raise _late(job.id, 0)
    return job


def _late(job_id: str, seconds: float | None) -> TimeoutError:
    return TimeoutError(f"job {job_id} is not settled after {seconds:g} s; it continues")


class Handle(Parent, Generic[R]):
    """A job that was added by `submit`, whose result is an `R`. `await handle` is its result."""

    def __init__(self, app: Tenure, job_id: str, returns: Any) -> None:
        self._app = app
        self._id = job_id
        self._returns = returns
        self._ended: Future[Job] | None = None

    @property
    def id(self) -> str:
        """The id of the job."""
        return self._id

    def progress(self) -> JobProgress | None:
        """Return how far the job has come, as its handler said last; None if it said nothing."""
        return self._app.progress(self.id)

    async def progress_async(self) -> JobProgress | None:
        """Do what `progress` does, without blocking the event loop."""
        return await self._app.progress_async(self.id)

    def result(self, timeout: Duration | None = None) -> R:
        """Return what the handler returned, as its return annotation says, once it has.

        - `timeout`: a duration to wait at most; 0 looks once. Default: None, as long as it takes.

        Raises JobFailed if the job failed for good, JobCancelled; TimeoutError if the job is not
        settled in time (it continues); RuntimeError as `Tenure.wait`; JobNotFound or ResultGone if
        retention deleted it; ResultTruncated if the result was not stored whole, InvalidInput if it
        does not fit the annotation; StoreUnavailable.
        """
        return self._result_of(self._answer() or self._app.wait(self.id, timeout))

    async def result_async(self, timeout: Duration | None = None) -> R:
        """Do what `result` does, without blocking the event loop."""
        return self._result_of(self._answer() or await self._app.wait_async(self.id, timeout))

    def __await__(self) -> Generator[Any, Any, R]:
        return self.result_async().__await__()

    def __repr__(self) -> str:
        return f"<handle of job {self.id}>"

    def _answer(self) -> Job | None:
        """The job that `as_completed` has waited for; once, as it may be retried after that."""
        ended, self._ended = self._ended, None
        return None if ended is None else ended.result()

    def _result_of(self, job: Job) -> R:
        if job.status is Status.FAILED:
            raise JobFailed(job.id, job.last_error)
        if job.status is Status.CANCELLED:
            raise JobCancelled(job.id, job.event, job.actor)
        text = job.result_json or "null"
        if text.startswith(f'{{"{UNSTORABLE}":'):
            raise ResultTruncated(job.id, job.result["reason"])
        value: R = read_result(text, self._returns, "the result of the handler")
        return value


def as_completed(
    app: Tenure, handles: Iterable[Handle[R]], timeout: Duration | None = None
) -> AsCompleted[R]:
    """Return the handles, each when its job is settled, for `for` and for `async for`.

    - `handles`: what `submit` returned.
    - `timeout`: a duration for all of them. Default: None, as long as it takes.

    Iterating raises TimeoutError when the time is over, StoreUnavailable, and RuntimeError as
    `wait` does. `result()` of a handle that comes out answers at once, or raises why there is no
    result.
    """
    seconds = None if timeout is None else durations.seconds(timeout, path="$.timeout")
    check_kind(handles, Iterable, HANDLES, "$.handles")
    given = list(handles)
    for handle in given:
        check_kind(handle, Handle, HANDLES, "$.handles")
    return AsCompleted(app, given, seconds)


class AsCompleted(Generic[R]):
    """The handles of jobs, in the order in which the jobs are settled."""

    def __init__(self, app: Tenure, handles: list[Handle[R]], seconds: float | None) -> None:
        self._app = app
        self._handles = handles
        self._seconds = seconds

    def _started(self) -> dict[Future[Job], Handle[R]]:
        return {begin(self._app, handle.id): handle for handle in self._handles}

    def __iter__(self) -> Iterator[Handle[R]]:
        futures = self._started()
        allowed = _allowed(self._app, self._seconds)
        try:
            for future in concurrent.futures.as_completed(futures, allowed):
                yield _answered(futures[future], future)
        except concurrent.futures.TimeoutError:
            if allowed != self._seconds:
                raise RuntimeError(BLOCKED) from None
            raise
        finally:
            _cancel(futures)

    async def __aiter__(self) -> AsyncIterator[Handle[R]]:
        import asyncio

        await self._app.core.opened()
        futures = self._started()
        ends = [_end(handle, future) for future, handle in futures.items()]
        try:
            for end in asyncio.as_completed(ends, timeout=self._seconds):
                yield _answered(*await end)
        finally:
            _cancel(futures)


async def _end(handle: Handle[R], future: Future[Job]) -> tuple[Handle[R], Future[Job]]:
    import asyncio

    answer = asyncio.wrap_future(future)
    await asyncio.wait([answer])
    if not answer.cancelled():
        answer.exception()  # asyncio would log it as not retrieved: the handle raises it
    return handle, future


def _answered(handle: Handle[R], future: Future[Job]) -> Handle[R]:
    """Return the handle, whose next `result` need not wait: `future` has the job."""
    handle._ended = future
    return handle


def _cancel(futures: Iterable[Future[Job]]) -> None:
    for future in futures:
        future.cancel()
