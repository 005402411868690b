"""Ties transactions of a handler to the lease of its attempt: `JobContext.complete` and `hold`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import Any

from tenure.errors import IllegalTransition, InvalidInput, JobNotFound, LeaseLost, PermanentFailure
from tenure.events import Completed
from tenure.handlers.context import JobTransaction
from tenure.handlers.results import success
from tenure.lifecycle import Status
from tenure.rules.reports import (
    Defaults,
    FollowUp,
    FollowUps,
    Lease,
    Parked,
    swallowed,
    unknown_types,
    with_options,
)
from tenure.rules.steps import Record, job_locked
from tenure.store.borrowed import jobs
from tenure.store.borrowed.connections import Borrowed, borrow, opened
from tenure.store.borrowed.drivers import Steps
from tenure.store.tables import steps

REMOTE = (
    "this worker gets its jobs over HTTP, where your transactions cannot complete or hold them: "
    "return from the handler instead, or start a worker that has the URL of the database"
)
WITHIN = "step_within"
AGAIN = "this attempt has completed its job already: call it once"


class LeaseFence:
    """What one attempt may do to its job in transactions of its handler."""

    def __init__(
        self,
        lease: Lease,
        worker: str,
        database: str | None,
        traceparent: str | None = None,
        defaults: Defaults = lambda _: None,
    ) -> None:
        """`database` is the URL where the jobs are; None in a worker that does not know it.

        `traceparent` is the span of the attempt. `defaults` are what types say whose handlers are
        known.
        """
        self.jobs: FollowUps | None = None
        """The jobs that the handler adds."""
        self.is_used = False
        """Whether a transaction of the handler may have the job locked."""
        self.completes = False
        """Whether one may have completed the job, or may still do so."""
        self.result: str | None = None
        """The result that was given, as JSON."""
        self.flaw: str | None = None
        """Why the result that was given is stored as a note only."""
        self.parked: str | None = None
        """The error of the attempt if its handler returns although it was parked."""
        self._open: tuple[int, bool] | None = None
        """The thread that has a transaction on a new connection, and whether it locks the job."""
        self._lease = lease
        self._worker = worker
        self._database = database
        self._traceparent = traceparent
        self._defaults = defaults

    def follow_ups(self) -> FollowUps:
        if self.jobs is None:
            self.jobs = FollowUps(self._defaults)
        return self.jobs

    def signed(self) -> Sequence[FollowUp] | None:
        """Return the jobs that the handler adds, for the report of its attempt."""
        jobs = self.jobs
        return None if jobs is None else jobs.signed(self._worker, self._traceparent)

    def complete(self, connection: Any, result: object) -> None:
        borrowed = self._borrow(connection, outermost=True)
        borrowed.call(partial(self._complete, result), verb="complete")

    async def complete_async(self, connection: Any, result: object) -> None:
        borrowed = self._borrow(connection, outermost=True)
        await borrowed.call_async(partial(self._complete, result), verb="complete")

    def hold(self, connection: Any) -> None:
        self._borrow(connection).call(self._hold, verb="hold")

    async def hold_async(self, connection: Any) -> None:
        await self._borrow(connection).call_async(self._hold, verb="hold")

    @contextmanager
    def transaction(self) -> Iterator[JobTransaction]:
        with self.opened() as connection:
            transaction = JobTransaction(connection)
            yield transaction
            self.complete(connection, transaction.result)

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """Begin a transaction on a new connection, which a clean end of the block commits."""
        self.check_free()
        url = self._url()
        with opened(url) as connection:
            self._open = (get_ident(), url.startswith("sqlite:"))  # which locks every job
            try:
                yield connection
            finally:
                self._open = None

    def check_free(self) -> None:
        """Raise InvalidInput if this thread is in a transaction that has the job locked."""
        if self._open == (get_ident(), True):
            raise job_locked(self._lease.id)

    def _locks(self) -> None:
        self.is_used = True
        if self._open is not None and self._open[0] == get_ident():
            self._open = (get_ident(), True)

    def record(self, connection: Any, step: Record) -> None:
        self._borrow(connection, outermost=True).call(partial(self._record, step), verb=WITHIN)

    async def record_async(self, connection: Any, step: Record) -> None:
        borrowed = self._borrow(connection, outermost=True)
        await borrowed.call_async(partial(self._record, step), verb=WITHIN)

    def park(self, parked: Parked) -> None:
        """Let the handler end as parked. If it returns instead, that is a failure."""
        self.parked = swallowed(parked)
        self.completes = True  # so that its return is looked at

    def _record(self, step: Record, engine: str) -> Steps[None]:
        self._locks()
        yield from steps.record_within(engine, self._lease.id, self._lease.lease_id, step)

    def _url(self) -> str:
        if self._database is None:
            raise PermanentFailure(REMOTE)
        return self._database

    def _borrow(self, connection: Any, *, outermost: bool = False) -> Borrowed:
        return borrow(connection, self._url(), outermost=outermost)

    def _complete(self, result: object, engine: str) -> Steps[None]:
        if self.parked is not None:
            raise InvalidInput(self.parked)
        ending, lease, again = success(result), self._lease, self.completes
        self._locks()
        event = Completed(lease_id=lease.lease_id, result=ending.result, actor=self._worker)
        if self.jobs is not None:
            if again and (yield from self._is_completed(engine)):
                raise InvalidInput(AGAIN)
            yield from self._add(engine, self.jobs)
        self.completes = True  # before it is asked: the answer may get lost
        try:
            yield from jobs.apply(engine, lease.id, event)
        except (IllegalTransition, JobNotFound, LeaseLost) as error:
            if again and (yield from self._is_completed(engine)):
                raise InvalidInput(AGAIN) from None
            self.completes = False
            raise LeaseLost(lease.id, getattr(error, "ended_by", "")) from error
        self.result, self.flaw = ending.result, ending.flaw
        if self.jobs is not None:
            self.jobs.is_closed = True

    def _add(self, engine: str, follow_ups: FollowUps) -> Steps[None]:
        """Add jobs before the completion, so that nothing is written if one is refused."""
        yield from self._hold(engine)
        added = follow_ups.signed(self._worker, self._traceparent)
        options = (yield from jobs.options_of_types(engine)) if unknown_types(added) else {}
        yield from jobs.add(engine, with_options(added, options), notify=False, limited=False)

    def _is_completed(self, engine: str) -> Steps[bool]:
        try:
            job = yield from jobs.get(engine, self._lease.id)
        except JobNotFound:
            return False
        return job.status is Status.COMPLETED and job.token == self._lease.token

    def _hold(self, engine: str) -> Steps[None]:
        self._locks()
        try:
            yield from jobs.hold(engine, self._lease.id, self._lease.lease_id)
        except JobNotFound as error:
            raise LeaseLost(self._lease.id) from error
