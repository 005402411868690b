"""`Jobs`: what a test asks of the jobs of an application, and lets happen to them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from tenure.errors import InvalidInput
from tenure.handlers.context import JobContext
from tenure.lifecycle import Job
from tenure.rules.jobs import Duration
from tenure.testing import runs
from tenure.testing.matching import Type, Wanted, listed
from tenure.testing.runs import Drained, DrainOptions, Runs
from tenure.values.durations import positive
from tenure.values.text import quantity

if TYPE_CHECKING:
    from tenure.app.app import Tenure


class Jobs:
    """The jobs of an application in a test. `on`, `within` and the fixture `jobs` give one.

    What it runs is claimed, run and reported as by a worker, in this process, one after the other.
    A plain handler runs on the thread that calls. Limits, retries, schedules, dependencies and
    waits are those of the store, and so is the ledger.
    """

    def __init__(self, app: Tenure) -> None:
        """Look at the database that `app` uses now."""
        self._app = app
        self._runs = Runs(app)

    # --- what is there

    def enqueued(
        self, type: Type = None, payload: Mapping[str, Any] | None = None, **filter: Any
    ) -> list[Job]:
        """Return the jobs that are to run, waiting or pending, oldest first.

        - `type`: a job type, or its name. Default: any.
        - `payload`: what the payload has to contain; values as in a call of the job type. What is
          compared is JSON. Default: anything.
        - `filter`: filters of `Tenure.find`; with `status` or `state`, not only jobs that are to
          run. After a job type, also arguments of its function: `enqueued(send_email, to="a@b.c")`.

        Raises InvalidInput, and TypeError for a keyword that is neither, or both.
        """
        wanted = Wanted(type, payload, filter)
        return [job for job in wanted.candidates(self._app) if not wanted.misses(job)]

    def assert_enqueued(
        self,
        type: Type = None,
        payload: Mapping[str, Any] | None = None,
        *,
        count: int | None = None,
        **filter: Any,
    ) -> Job:
        """Return the last of the jobs that `enqueued` finds, and fail if there is none.

        - `count`: how many there have to be. Default: None, at least one.

        The other arguments are those of `enqueued`. Raises AssertionError, which says what is there
        and in what it differs.
        """
        found = self.enqueued(type, payload, **filter)
        if not found or count not in (None, len(found)):
            wanted = Wanted(type, payload, filter)
            number = "no job" if not found else f"{quantity(len(found), 'job')}, not {count},"
            raise AssertionError(f"{number} of {wanted}\n{wanted.report(self._app)}")
        return found[-1]

    def assert_none_enqueued(
        self, type: Type = None, payload: Mapping[str, Any] | None = None, **filter: Any
    ) -> None:
        """Fail if `enqueued` finds a job. Raises AssertionError, which lists them."""
        if found := self.enqueued(type, payload, **filter):
            wanted = Wanted(type, payload, filter)
            raise AssertionError(f"{quantity(len(found), 'job')} of {wanted}\n{listed(found)}")

    # --- what happens

    def run(self, job: Job | str) -> Job:
        """Run one pending job now, whatever its time and what is before it; return it afterwards.

        - `job`: the job, or its id. One that is due later is amended to be due now.

        Raises what its handler raised, once that is recorded, and JobFailed for a failure without
        an exception. Raises JobNotFound, InvalidInput if its handler is not here, and
        IllegalTransition if the job is not pending or a limit of its queue refuses it.
        """
        return self._runs.drive(self._runs.one(job))

    async def run_async(self, job: Job | str) -> Job:
        """Do what `run` does, with coroutines on the running loop and plain handlers in threads."""
        return await self._runs.drive_async(self._runs.one(job))

    def drain(self, *, real_processes: bool = False, **options: Unpack[DrainOptions]) -> Drained:
        """Run the jobs that are due, and the jobs that they add, one after the other.

        It does what workers and servers do beside them: first bulk actions, such as the cancel of a
        workflow; fires schedules, ends waits and leases, expires jobs. It never waits: where time
        has to pass, the store's clock travels. Coroutines run on a loop for them alone.

        - `until`: also run what falls due until then: an aware time, or a duration from now. The
          clock is there afterwards. Default: None, only what is due.
        - `retries`: also run failed jobs again until they have settled. Default: False.
        - `raise_errors`: raise what a handler raised, once it is recorded; with `retries`, only of
          a job that failed for good. Default: True. False: see `Drained.runs`.
        - `queues`, `types`: only jobs of these. Default: None, all queues, and all types of which
          the handlers are here.
        - `most`: stop after so many runs. Default: 1,000.
        - `real_processes`: run handlers with `process=True` in child processes, as a worker does.
          Default: False, in this process. Not within a transaction, which a child cannot see.

        Returns a `Drained`. Raises the error of a handler with a note that names the job, JobFailed
        for a failure without an exception, RuntimeError after `most` runs or if a child process
        does not start, and InvalidInput.
        """
        return self._runs.drive(self._runs.due(**options), children=real_processes)

    async def drain_async(
        self, *, real_processes: bool = False, **options: Unpack[DrainOptions]
    ) -> Drained:
        """Do what `drain` does, with coroutines on the running loop and plain handlers in threads.

        Arguments and errors are those of `drain`.
        """
        return await self._runs.drive_async(self._runs.due(**options), children=real_processes)

    def travel(self, by: datetime | Duration) -> datetime:
        """Put the store's clock forward, and do what then falls due beside jobs; return its time.

        - `by`: a duration above 0, or a later time with its zone. The clock continues from there.

        It is the clock of this database alone, also for other processes. Raises InvalidInput.
        """
        if isinstance(by, datetime):
            if by.utcoffset() is None:
                raise InvalidInput("a time without its zone", path="$.by")
            by -= self._app.core.clock()
        self._runs.travel(timedelta(seconds=positive(by, "$.by")))
        self._runs.maintain()
        return self._app.core.clock()

    def clear(self, *, force: bool = False) -> None:
        """Cancel what is not settled, then delete all jobs and what belongs to them.

        Also deletes workflows, schedules, statistics, and limits and pauses of queues and types. It
        keeps types, webhooks and tokens. For databases that tests share.

        - `force`: also where a worker asked for jobs in the last ten minutes. Default: False.

        Raises InvalidInput if there was such a worker.
        """
        self._runs.store.write("prune", partial(runs.clear, force=force)).result()
        self._runs.reset()


def context(
    *,
    id: str = "",
    type: str = "test",
    queue: str = "default",
    attempt: int = 1,
    max_retries: int = 10,
    token: int = 1,
    deadline: datetime | None = None,
    stopping: bool = False,
) -> JobContext:
    """Return the context of an attempt that no worker runs, to call a handler as a function.

    The arguments are the attributes of `JobContext`. Progress and jobs to add are only noted, and
    steps are called each time.
    """
    return JobContext(id, type, queue, attempt, max_retries, token, deadline, stopping)
