"""The verbs of `Tenure` that wait for jobs to be settled."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

from tenure.app.core import Core
from tenure.jobs import durations, ids
from tenure.jobs.enqueue import Duration
from tenure.jobs.handle import Handle, with_answer
from tenure.lifecycle import Job

if TYPE_CHECKING:
    from tenure.app.app import Tenure

R = TypeVar("R")


def wait(app: Tenure, job: Job | str, timeout: Duration | None = None) -> Job:
    """Return a job once it is settled: completed, failed for good, or cancelled.

    - `job`: the job, or its id.
    - `timeout`: a duration to wait at most. Default: None, as long as it takes.

    In a handler, this holds one of the worker's slots, and the job may wait for that very slot.

    Raises JobNotFound; TimeoutError if the job is not settled in time, and goes on; ResultGone if
    it was deleted meanwhile; StoreUnavailable. Once it waits, it waits through an outage of the
    database.
    """
    job_id, seconds = _asked(job, timeout)
    future = begin(app.core, job_id)
    try:
        return future.result(seconds)
    except concurrent.futures.TimeoutError:
        raise _late(job_id, seconds) from None
    finally:
        future.cancel()


async def wait_async(app: Tenure, job: Job | str, timeout: Duration | None = None) -> Job:
    """Do what `wait` does, without blocking the event loop or holding a thread."""
    job_id, seconds = _asked(job, timeout)
    future = await asyncio.to_thread(begin, app.core, job_id)
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), seconds)
    except TimeoutError:
        raise _late(job_id, seconds) from None
    finally:
        future.cancel()


def begin(core: Core, job_id: str) -> Future[Job]:
    """Return a future of the job once it is settled, as `Waits.add` does.

    Also raises JobNotFound, for what is no id or a job of a queue that is not among those allowed.
    """
    if core.queues is not None or not ids.is_id(job_id):
        core.get(job_id)
    return core.limited_store.wait(job_id)


def _asked(job: Job | str, timeout: Duration | None) -> tuple[str, float | None]:
    seconds = None if timeout is None else durations.seconds(timeout, path="$.timeout")
    return (job if isinstance(job, str) else job.id), seconds


def _late(job_id: str, seconds: float | None) -> TimeoutError:
    return TimeoutError(f"job {job_id} is not settled after {seconds:g} s; it goes on")


def as_completed(
    app: Tenure, handles: Iterable[Handle[R]], timeout: Duration | None = None
) -> AsCompleted[R]:
    """Return the handles, each when its job is settled, for `for` and for `async for`.

    - `handles`: what `submit` returned.
    - `timeout`: a duration for all of them. Default: None, as long as it takes.

    Iterating raises TimeoutError when the time is over, and StoreUnavailable. `result()` of a
    handle that comes out answers at once, or raises why there is no result.
    """
    seconds = None if timeout is None else durations.seconds(timeout, path="$.timeout")
    return AsCompleted(app, list(handles), seconds)


class AsCompleted(Generic[R]):
    """The handles of jobs, in the order in which the jobs are settled."""

    def __init__(self, app: Tenure, handles: list[Handle[R]], seconds: float | None) -> None:
        self._app = app
        self._handles = handles
        self._seconds = seconds

    def _started(self) -> dict[Future[Job], Handle[R]]:
        return {begin(self._app.core, handle.id): handle for handle in self._handles}

    def __iter__(self) -> Iterator[Handle[R]]:
        futures = self._started()
        try:
            for future in concurrent.futures.as_completed(futures, self._seconds):
                yield with_answer(futures[future], future)
        finally:
            _cancel(futures)

    async def __aiter__(self) -> AsyncIterator[Handle[R]]:
        loop = asyncio.get_running_loop()
        ended: asyncio.Queue[Future[Job]] = asyncio.Queue()

        def note(future: Future[Job]) -> None:
            if not future.cancelled():  # nobody iterates any more
                loop.call_soon_threadsafe(ended.put_nowait, future)

        futures = await asyncio.to_thread(self._started)
        until = None if self._seconds is None else time.monotonic() + self._seconds
        try:
            for future in futures:
                future.add_done_callback(note)
            for _ in futures:
                left = None if until is None else until - time.monotonic()
                future = await asyncio.wait_for(ended.get(), left)
                yield with_answer(futures[future], future)
        finally:
            _cancel(futures)


def _cancel(futures: Iterable[Future[Job]]) -> None:
    for future in futures:
        future.cancel()
