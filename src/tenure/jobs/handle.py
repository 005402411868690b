"""A handle of a job that was added: waits for its result and decodes it."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from tenure.errors import InvalidInput, JobCancelled, JobFailed, ResultTruncated
from tenure.jobs import json_types
from tenure.jobs.enqueue import Duration
from tenure.jobs.progress import JobProgress
from tenure.jobs.text import UNSTORABLE
from tenure.lifecycle import Job, Status

R = TypeVar("R")


class Waiting(Protocol):
    """What a handle needs of its application."""

    def get(self, job_id: str) -> Job:
        """Return the job."""

    async def get_async(self, job_id: str) -> Job:
        """Return the job."""

    def progress(self, job_id: str) -> JobProgress | None:
        """Return how far the job has come."""

    async def progress_async(self, job_id: str) -> JobProgress | None:
        """Return how far the job has come."""

    def wait(self, job: str, timeout: Duration | None = None) -> Job:
        """Return the job once it is settled."""

    async def wait_async(self, job: str, timeout: Duration | None = None) -> Job:
        """Return the job once it is settled."""


class Handle(Generic[R]):
    """A job that was added by `submit`, whose result is an `R`. `await handle` is its result."""

    def __init__(self, app: Waiting, job_id: str, returns: Any) -> None:
        self._app = app
        self._returns = returns
        self._ended: Future[Job] | None = None
        self._id = job_id

    @property
    def id(self) -> str:
        """The id of the job."""
        return self._id

    def job(self) -> Job:
        """Return the job as it is now; raises JobNotFound."""
        return self._app.get(self.id)

    async def job_async(self) -> Job:
        """Do what `job` does, without blocking the event loop."""
        return await self._app.get_async(self.id)

    def progress(self) -> JobProgress | None:
        """Return how far the job has come, as its handler said last; None if it said nothing."""
        return self._app.progress(self.id)

    async def progress_async(self) -> JobProgress | None:
        """Do what `progress` does, without blocking the event loop."""
        return await self._app.progress_async(self.id)

    def result(self, timeout: Duration | None = None) -> R:
        """Return what the handler returned, as its return annotation says, once it has.

        - `timeout`: a duration to wait at most. Default: None, as long as it takes.

        Raises JobFailed if the job failed for good, JobCancelled; TimeoutError if the job is not
        settled in time, and goes on; JobNotFound or ResultGone if retention deleted it;
        ResultTruncated if the result was not stored whole, InvalidInput if it does not fit the
        annotation; StoreUnavailable.
        """
        ended, self._ended = self._ended, None
        job = self._app.wait(self.id, timeout) if ended is None else ended.result()
        return _result_of(job, self._returns)  # type: ignore[no-any-return]

    async def result_async(self, timeout: Duration | None = None) -> R:
        """Do what `result` does, without blocking the event loop."""
        ended, self._ended = self._ended, None
        if ended is None:
            job = await self._app.wait_async(self.id, timeout)
        else:
            job = ended.result()
        return _result_of(job, self._returns)  # type: ignore[no-any-return]

    def __await__(self) -> Generator[Any, Any, R]:
        return self.result_async().__await__()

    def __repr__(self) -> str:
        return f"<handle of job {self.id}>"


def with_answer(handle: Handle[R], answer: Future[Job]) -> Handle[R]:
    """Return the handle, whose next `result` need not wait: `answer` has the job."""
    handle._ended = answer
    return handle


def _result_of(job: Job, returns: Any) -> Any:
    """Return the result of a settled job, decoded as `returns`; raises why there is none."""
    if job.status is Status.FAILED:
        raise JobFailed(job.id, job.last_error)
    if job.status is Status.CANCELLED:
        raise JobCancelled(job.id, job.event, job.actor)
    if job.result_json is None:
        return None
    if job.result_json.startswith(f'{{"{UNSTORABLE}":'):
        raise ResultTruncated(job.id, job.result["reason"])
    try:
        return msgspec.json.decode(job.result_json, type=returns, dec_hook=json_types.decoded)
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        said = f"it does not fit the annotation of the handler, {returns}: {error}"
        raise InvalidInput(said, path="$.result") from error
