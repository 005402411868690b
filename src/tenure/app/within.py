"""Transactions of the caller: `app.within(connection)` adds, reads and cancels jobs in one.

A handler ties one to the lease of its attempt: `JobContext.complete` and `hold`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Unpack

from tenure.app import jobs as app_jobs
from tenure.app import workflows as app_workflows
from tenure.app.jobs import Adding
from tenure.app.signals import new_signal
from tenure.app.workflows import NewWorkflow
from tenure.errors import IllegalTransition, InvalidInput, JobNotFound, LeaseLost, PermanentFailure
from tenure.events import Cancelled, Completed, Event, Retried
from tenure.handlers.context import JobTransaction
from tenure.handlers.results import success
from tenure.lifecycle import Job, Status
from tenure.rules import reports
from tenure.rules.dependencies import Ties
from tenure.rules.jobs import MAX_RETRIES, Enqueued, NewJob, Options, TypeOptions, Wake, listed
from tenure.rules.signals import NewSignal, Signal
from tenure.rules.steps import Record, job_locked
from tenure.rules.tokens import includes
from tenure.store.borrowed import dependencies, jobs, workflows
from tenure.store.borrowed.connections import WORKFLOW, Borrowed, borrow, opened
from tenure.store.borrowed.drivers import Steps
from tenure.store.tables import steps
from tenure.values import ids
from tenure.values.names import check_reason
from tenure.values.numbers import whole

if TYPE_CHECKING:
    from tenure.app.app import Tenure
    from tenure.app.core import Core


class Within:
    """Adds, reads and cancels jobs in the transaction that is open on your connection.

    What it does is committed, or rolled back, together with your own writes. It needs no other
    connection and opens none. Drivers raise their own errors, as for your own statements.
    """

    def __init__(self, app: Tenure, connection: Any, *, wake: Wake = "later") -> None:
        if wake not in ("later", "commit"):
            raise InvalidInput("give 'later' or 'commit'", path="$.wake")
        self._app = app
        self._core = app.core
        self._borrowed = borrow(connection, app.core.database, together=True)
        self._notifies = wake == "commit"

    def enqueue(
        self, type: str, payload: Mapping[str, Any] | None = None, **options: Unpack[Options]
    ) -> Job:
        """Add a job, which exists when you commit; its id is known at once.

        Arguments are those of `Tenure.enqueue`. Times are those of this statement, not of the
        commit. Returns the job. Raises InvalidInput, KeyConflict, DuplicateJob and QueueFull, after
        which the transaction can continue, SchemaMismatch, and the errors of your driver. If your
        own trigger drops the job, it raises one of these, or WriteRefused on SQLite.
        """
        return self.enqueue_many([app_jobs.by_name(type, payload, options)])[0]

    enqueue_async = app_jobs.enqueue_async

    def enqueue_many(self, new_jobs: Iterable[NewJob]) -> list[Job]:
        """Add jobs, all or none: at most 10,000. Returns them in the same order.

        Raises what `enqueue` raises. Where another transaction commits one of the idempotency keys
        at the same moment, PostgreSQL raises a serialization failure (SQLSTATE 40001) instead of
        KeyConflict: repeat your transaction. Unique jobs wait for it, up to 100 in a call; with
        more, that is a unique violation (23505).
        """
        return self._borrowed.call(partial(self._add, listed(new_jobs)), verb="enqueue")

    async def enqueue_many_async(self, new_jobs: Iterable[NewJob]) -> list[Job]:
        """Add jobs like `enqueue_many`, on an asynchronous connection."""
        add = partial(self._add, listed(new_jobs))
        return await self._borrowed.call_async(add, verb="enqueue")

    def _add(self, new_jobs: Sequence[NewJob], engine: str) -> Steps[list[Job]]:
        defaults = yield from _defaults(self._core, new_jobs, engine)
        adding = Adding(self._core, new_jobs, defaults)
        added: list[Enqueued] = []
        try:
            added = yield from jobs.add(engine, adding.checked_jobs, notify=self._notifies)
        except BaseException as error:
            adding.end(error=error)
            raise
        adding.end(added)
        return [one.job for one in added]

    def workflow(
        self, name: str = "workflow", *, key: str | None = None, actor: str | None = None
    ) -> NewWorkflow:
        """Begin a workflow, whose jobs exist when you commit; `async with` on such connections.

        Arguments, what it returns and raises are those of `Tenure.workflow`. If the end of the
        block raises InvalidInput, KeyConflict, DuplicateJob or QueueFull, nothing of the workflow
        was added and the transaction can continue. Wait for it after your commit.
        """
        return _Workflow(self._app, name, key, actor, self._borrowed, self._notifies)

    chain = app_workflows.chain
    group = app_workflows.group
    batch = app_workflows.batch

    async def chain_async(
        self, new_jobs: Iterable[NewJob], *, name: str = "chain", key: str | None = None
    ) -> NewWorkflow:
        """Add jobs like `chain`, on an asynchronous connection."""
        async with self.workflow(name, key=key) as made:
            app_workflows.add_chain(made, new_jobs)
        return made

    async def group_async(
        self,
        new_jobs: Iterable[NewJob],
        *,
        then: NewJob | None = None,
        name: str = "group",
        key: str | None = None,
    ) -> NewWorkflow:
        """Add jobs like `group`, on an asynchronous connection."""
        return await self.batch_async(new_jobs, on_success=then, name=name, key=key)

    async def batch_async(
        self,
        new_jobs: Iterable[NewJob],
        *,
        on_success: NewJob | None = None,
        on_failure: NewJob | None = None,
        on_end: NewJob | None = None,
        name: str = "batch",
        key: str | None = None,
    ) -> NewWorkflow:
        """Add jobs like `batch`, on an asynchronous connection."""
        async with self.workflow(name, key=key) as made:
            app_workflows.add_batch(made, new_jobs, on_success, on_failure, on_end)
        return made

    def get(self, job_id: str) -> Job:
        """Return the job with this id, as your transaction sees it. Raises JobNotFound."""
        return self._borrowed.call(partial(self._get, job_id), verb="get")

    async def get_async(self, job_id: str) -> Job:
        """Return a job like `get`, on an asynchronous connection."""
        return await self._borrowed.call_async(partial(self._get, job_id), verb="get")

    def _ties(self, job_id: str) -> Ties:
        return self._borrowed.call(partial(dependencies.ties, job_id=job_id), verb="get")

    def _get(self, job_id: str, engine: str) -> Steps[Job]:
        if not ids.is_id(job_id):
            raise JobNotFound(job_id)
        job = yield from jobs.get(engine, job_id)
        if not includes(self._core.queues, job.queue):
            raise JobNotFound(job_id)
        return job

    def cancel(self, job_id: str, *, actor: str | None = None, reason: str | None = None) -> Job:
        """Cancel a job when you commit; return the cancelled job.

        Until then the job is locked: its worker's report waits, and so does an operator.
        `actor` and `reason` are those of `Tenure.cancel`. Raises JobNotFound, InvalidInput, or
        IllegalTransition if the job is settled.
        """
        apply = partial(self._apply, job_id, self._cancelled(actor, reason))
        return self._borrowed.call(apply, verb="cancel")

    async def cancel_async(
        self, job_id: str, *, actor: str | None = None, reason: str | None = None
    ) -> Job:
        """Cancel a job like `cancel`, on an asynchronous connection."""
        apply = partial(self._apply, job_id, self._cancelled(actor, reason))
        return await self._borrowed.call_async(apply, verb="cancel")

    def retry(
        self,
        job_id: str,
        *,
        more_retries: int = 1,
        actor: str | None = None,
        reason: str | None = None,
    ) -> Job:
        """Run a failed job again when you commit; return it, pending.

        Arguments and errors are those of `Tenure.retry`, without `from_scratch`. Jobs that were
        skipped because of the failure wait again within seconds after your commit.
        """
        apply = partial(self._apply, job_id, self._retried(more_retries, actor, reason))
        return self._borrowed.call(apply, verb="retry")

    async def retry_async(
        self,
        job_id: str,
        *,
        more_retries: int = 1,
        actor: str | None = None,
        reason: str | None = None,
    ) -> Job:
        """Run a failed job again like `retry`, on an asynchronous connection."""
        apply = partial(self._apply, job_id, self._retried(more_retries, actor, reason))
        return await self._borrowed.call_async(apply, verb="retry")

    def signal(
        self,
        job: Job | str,
        name: str,
        payload: object = None,
        key: str | None = None,
        *,
        actor: str | None = None,
    ) -> Signal:
        """Send a signal to a job when you commit, as `Tenure.signal` does.

        Until then the job stays locked. Arguments and errors are those of `Tenure.signal`.
        """
        new = new_signal(self._core, name, payload, key, actor)
        send = partial(self._signal, ids.id_of(job), new)
        return self._borrowed.call(send, verb="signal")

    async def signal_async(
        self,
        job: Job | str,
        name: str,
        payload: object = None,
        key: str | None = None,
        *,
        actor: str | None = None,
    ) -> Signal:
        """Send a signal like `signal`, on an asynchronous connection."""
        new = new_signal(self._core, name, payload, key, actor)
        send = partial(self._signal, ids.id_of(job), new)
        return await self._borrowed.call_async(send, verb="signal")

    def _signal(self, job_id: str, new: NewSignal, engine: str) -> Steps[Signal]:
        yield from self._get(job_id, engine)
        return (yield from workflows.send(engine, job_id, new))

    def _cancelled(self, actor: str | None, reason: str | None) -> Cancelled:
        return Cancelled(actor=self._core.signed(actor), reason=check_reason(reason))

    def _retried(self, more_retries: int, actor: str | None, reason: str | None) -> Retried:
        more = whole(more_retries, 1, MAX_RETRIES, "$.more_retries")
        by, why = self._core.signed(actor), check_reason(reason)
        return Retried(more_retries=more, actor=by, reason=why)

    def _apply(self, job_id: str, event: Event, engine: str) -> Steps[Job]:
        yield from self._get(job_id, engine)
        return (yield from jobs.apply(engine, job_id, event))


def _defaults(
    core: Core, new_jobs: Sequence[NewJob], engine: str
) -> Steps[Callable[[str], TypeOptions]]:
    """Return what gives the options of the types of jobs; they are read here if that is due."""
    if core.defaults.are_due(new_job.type for new_job in new_jobs):
        core.defaults.learn((yield from jobs.options_of_types(engine)))
    return core.defaults.known


class _Workflow(NewWorkflow):
    """A workflow that is stored in the caller's transaction."""

    def __init__(
        self,
        app: Tenure,
        name: str,
        key: str | None,
        actor: str | None,
        borrowed: Borrowed,
        notifies: bool,
    ) -> None:
        super().__init__(app, name, key, actor)
        self._borrowed = borrowed
        self._notifies = notifies

    def _store(self) -> None:
        self._borrowed.call(self._add, verb=WORKFLOW)

    async def _store_async(self) -> None:
        await self._borrowed.call_async(self._add, verb=WORKFLOW)

    def _add(self, engine: str) -> Steps[None]:
        defaults = yield from _defaults(self._app.core, self._jobs, engine)
        adding, new = self._checked(defaults)
        checked_jobs = adding.checked_jobs
        try:
            stored = yield from workflows.add(engine, new, checked_jobs, notify=self._notifies)
        except BaseException as error:
            adding.end(error=error)
            raise
        self._end(adding, stored)


# --- of a handler ---------------------------------------------------------------------------------

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
        lease: reports.Lease,
        worker: str,
        database: str | None,
        traceparent: str | None = None,
        defaults: reports.Defaults = lambda _: None,
    ) -> None:
        """`database` is the URL where the jobs are; None in a worker that does not know it.

        `traceparent` is the span of the attempt. `defaults` are what types say whose handlers are
        known.
        """
        self.jobs: reports.FollowUps | None = None
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

    def follow_ups(self) -> reports.FollowUps:
        if self.jobs is None:
            self.jobs = reports.FollowUps(self._defaults)
        return self.jobs

    def signed(self) -> Sequence[reports.FollowUp] | None:
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

    def park(self, parked: reports.Parked) -> None:
        """Let the handler end as parked. If it returns instead, that is a failure."""
        self.parked = reports.swallowed(parked)
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

    def _add(self, engine: str, follow_ups: reports.FollowUps) -> Steps[None]:
        """Add jobs before the completion, so that nothing is written if one is refused."""
        yield from self._hold(engine)
        added = follow_ups.signed(self._worker, self._traceparent)
        options = (yield from jobs.options_of_types(engine)) if reports.unknown_types(added) else {}
        yield from jobs.add(
            engine, reports.with_options(added, options), notify=False, limited=False
        )

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
