"""The verbs of `Tenure` that add, change and read jobs, and what these verbs share.

A call that adds jobs checks them, and has a span if the application traces: see `Adding`, which
workflows and `Within` use, too. `*_shown` is what the HTTP API, the dashboard and the command line
show, limited to the queues of who asks, or with the values of redacted keys cut out.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack, overload

from msgspec.structs import replace

from tenure.app.core import Core
from tenure.app.queues import part_of_name
from tenure.app.signals import waited_for
from tenure.app.twins import answer_of, check_loop
from tenure.errors import Forbidden, InvalidInput, JobNotFound, StoreUnavailable
from tenure.events import Amended, Cancelled, Event, Retried, Snoozed, Unblocked
from tenure.lifecycle import FIRST_EVENT, Job, Status
from tenure.rules.dependencies import ParentEdge, Ties, depends_again
from tenure.rules.explain import (
    ELSEWHERE,
    MAY_BE_LOCKED,
    RATE_MINUTES,
    Explanation,
    Facts,
    LockHolder,
    rate,
)
from tenure.rules.explain import (
    explain as explanation,
)
from tenure.rules.jobs import (
    MAX_JOBS_AT_ONCE,
    MAX_RETRIES,
    Changes,
    CheckedJob,
    Enqueued,
    LinkedJob,
    NewJob,
    Options,
    TypeOptions,
    Wake,
    check_changes,
    check_jobs,
    listed,
    with_own_key,
    with_unique_key,
)
from tenure.rules.ledger import MAX_LAST, Transition
from tenure.rules.reports import FollowUp
from tenure.rules.schedules import Fire
from tenure.rules.search import Bulk, Counted, Fields, Filter, Order, checked_query
from tenure.rules.stats import FailureGroup, QueueQuery, QueueState
from tenure.rules.steps import JobProgress, JobSteps
from tenure.rules.tokens import Patterns, includes, own_key, require
from tenure.rules.workflows import Shape, shape_of
from tenure.store import search
from tenure.store.tables import (
    dependencies,
    queues,
    schedules,
    types,
    unique_keys,
    workflows,
)
from tenure.store.tables import (
    steps as stored_steps,
)
from tenure.telemetry import logs
from tenure.values.ids import is_id
from tenure.values.names import MAX_REASON_LENGTH, check_name, check_reason
from tenure.values.numbers import whole
from tenure.values.payload import JsonText
from tenure.values.redaction import MARK, NOTHING_HIDDEN, Redaction

if TYPE_CHECKING:
    from datetime import datetime

    from tenure.app.app import Tenure
    from tenure.app.within import Within

log = logging.getLogger(__name__)


def add(
    core: Core,
    new_jobs: Sequence[NewJob],
    *,
    batch: bool = False,
    own_keys: bool = False,
    traceparent: str | None = None,
    waits: bool = False,
    looked_up: bool = False,
) -> Future[list[Enqueued]]:
    """Check jobs and hand them to the store; the future also says which are new.

    In a batch, errors name the job they mean even if it is the only one. `own_keys` is that of
    `check_jobs`. `traceparent` is the span of the caller. Attempts are linked to that span. If the
    application traces, the call gets a child span, and attempts are linked to the child. `waits` is
    that of `Store.add`. With `looked_up`, the options of the types were awaited: an event loop must
    not wait for them here. Raises InvalidInput or Forbidden.
    """
    find = core.defaults.known if looked_up else core.defaults.of
    adding = Adding(core, new_jobs, find, batch=batch, own_keys=own_keys, traceparent=traceparent)
    try:
        added = core.limited_store.add(adding.checked_jobs, waits=waits)
    except BaseException as error:
        adding.end(error=error)
        raise
    if adding.is_traced:
        added.add_done_callback(adding.end_with)
    if log.isEnabledFor(logging.DEBUG):
        added.add_done_callback(_log_added)
    return added


def _log_added(added: Future[list[Enqueued]]) -> None:
    if not added.cancelled() and added.exception() is None:
        for one in added.result():
            if one.created:
                logs.log_transition(log, FIRST_EVENT, logs.fields_of(one.job), logging.DEBUG)


class Adding:
    """Jobs that one call adds, checked; with a span of the call if the application traces."""

    def __init__(
        self,
        core: Core,
        new_jobs: Sequence[NewJob],
        defaults: Callable[[str], TypeOptions],
        *,
        batch: bool = False,
        own_keys: bool = False,
        traceparent: str | None = None,
        known_ids: Sequence[str] = (),
        workflow: str | None = None,
    ) -> None:
        """The arguments are those of `add` and `check_jobs`. Raises InvalidInput or Forbidden."""
        if len(new_jobs) > MAX_JOBS_AT_ONCE:
            raise InvalidInput(f"add at most {MAX_JOBS_AT_ONCE:,} jobs at once")
        checked_jobs: Sequence[CheckedJob] = check_jobs(
            new_jobs,
            defaults=defaults,
            actor=core.actor,
            several=batch or len(new_jobs) > 1,
            own_keys=own_keys,
            known_ids=known_ids,
            workflow=workflow,
        )
        if core.queues is not None:
            checked_jobs = [_limited_to(core.queues, job) for job in checked_jobs]
        self._tracing = core.tracing
        self._span: Any = None
        if self._tracing is not None and checked_jobs:
            types = [checked_job.type for checked_job in checked_jobs]
            self._span, traceparent = self._tracing.adding(
                types, checked_jobs[0].queue, traceparent
            )
        if traceparent is not None:
            checked_jobs = [replace(job, traceparent=traceparent) for job in checked_jobs]
        self.checked_jobs = checked_jobs

    @property
    def is_traced(self) -> bool:
        """Whether there is a span to end."""
        return self._span is not None

    def end(self, added: Sequence[Enqueued] = (), error: BaseException | None = None) -> None:
        """End the span; `error` says why nothing was added."""
        if self._tracing is not None and self._span is not None:
            self._tracing.added(self._span, [one.job.id for one in added], error)

    def end_with(self, added: Future[list[Enqueued]]) -> None:
        """End the span as the store has answered."""
        error = None if added.cancelled() else added.exception()
        self.end([] if error or added.cancelled() else added.result(), error)


def allowed(core: Core, follow_ups: Sequence[FollowUp], *, own_keys: bool) -> list[FollowUp]:
    """Return the jobs of a report as its sender may add them; raises Forbidden."""
    made = []
    for one in follow_ups:
        job = with_own_key(one.checked) if own_keys else one.checked
        if core.queues is not None:
            job = _limited_to(core.queues, job)
        made.append(replace(one, checked=job))
    return made


def _limited_to(queues: Patterns, job: CheckedJob) -> CheckedJob:
    require(queues, [job.queue])
    if job.unique and job.unique.rule.across_queues:  # it may not know of jobs of other queues
        job = with_unique_key(job, dataclasses.replace(job.unique.rule, across_queues=False))
    if type(job) is LinkedJob:
        job = replace(job, within=queues)
    key = job.idempotency_key
    return job if key is None else replace(job, idempotency_key=own_key(job.queue, key))


# --- add ------------------------------------------------------------------------------------------

AGAIN = ("tags", "partition")
"""What a job that runs another one again takes from it, beside the options of a type."""


def by_name(type: Any, payload: Mapping[str, Any] | None, options: Options) -> NewJob:
    """Return the job that an enqueue by name adds; raises InvalidInput for a job that is made."""
    if not isinstance(type, str):
        if not isinstance(type, NewJob):
            check_name(type, "job type", "$.type")
        said = "give the name of a job type; what new_job(...) returned goes to enqueue_many([...])"
        raise InvalidInput(said, path="$.type")
    return NewJob(type, {} if payload is None else payload, options)


def enqueue(
    app: Tenure, type: str, payload: Mapping[str, Any] | None = None, **options: Unpack[Options]
) -> Job:
    """Add a job by type name. When this returns, the job is on disk.

    - `type`: the job type; a handler need not exist yet.
    - `payload`: the handler's arguments by name: values of JSON types, at most 1 MiB as JSON
      and 100 levels deep. Default: `{}`.

    Options, all by keyword:

    - `queue`: the queue, 1 to 128 of `A-Z a-z 0-9 _ : - .`. Default: `default`.
    - `priority`: -100 to 100; smaller runs first. Default: 0.
    - `max_retries`: its attempts in all, 0 to 1,000; 0 and 1 both mean one. Default: 10.
    - `timeout`: limit of one attempt, a duration above 0, or None for no limit. Default: None.
    - `backoff`: the wait after a failure: a `RetryPolicy`, its `base` alone as a duration, a list
      of up to 20 durations, the last of which repeats, or an object of the fields of
      `RetryPolicy`. Default: `RetryPolicy()`.
    - `delay`: run it no earlier than this duration from now. Default: at once.
    - `run_at`: run it no earlier than this time; an aware datetime in the years 1000 to 8999.
      Not together with `delay`.
    - `start_by`: cancel the job (event `expired`) if it has not started by then: a duration above
      0 from now, or an aware datetime. It holds for retries, too. Default: None, never.
    - `tags`: words to find the job by, such as `["customer:17"]`: at most 20, each 1 to 128
      visible ASCII characters. Default: none.
    - `partition`: what divides the queue, such as a tenant: 1 to 128 characters, no control
      characters. Default: what `partition_by` of `@app.job(...)` says if this program has the
      handler, otherwise none.
    - `unique`: a `Unique`, or an object of its fields: with which other jobs this one is the same,
      and what to do if one of them is there, by default return it. None for not unique. Default:
      that of `@app.job(...)`, otherwise None.
    - `depends_on`: jobs that have to end before this one runs, at most 10,000: a list of jobs, of
      what `submit` returned, of ids, or of a `Dependency` such as `job.settled`; or an object of
      them by the name by which the handler finds them. Until then it is `waiting`, and runs at
      once if they have ended so already. If they cannot end so any more, it is `skipped`: it ends
      as cancelled, and waits again if an operator retries what had failed. Default: none.
    - `needs`: how many of these it needs: `all`, `any`, or a number. A number that is less than
      all and more than one goes with up to 256. Default: `all`.
    - `idempotency_key`: 1 to 255 visible ASCII characters. A second enqueue with the same key,
      type, payload and options returns the first job, with others it raises KeyConflict. Only
      options given in the call count, not the defaults of `@app.job(...)`.
    - `actor`: who adds it, for the ledger; 1 to 255 printable characters. Default: the
      application's actor.

    A duration is a number of seconds, a timedelta, or text such as `30s`, `1h30m` or `PT5M`, up
    to 10 years. Defaults come from `@app.job(...)`. If this application does not have the
    handler, they come from the database, where a worker or a server that has it stored them;
    they may be five seconds old. If the database does not know the type, Tenure's own apply.

    Returns the job. Raises InvalidInput (PayloadTooLarge), KeyConflict, DuplicateJob, QueueFull,
    JobNotFound for a job that it cannot depend on, or StoreUnavailable. After StoreUnavailable the
    job may exist: enqueue again, with an `idempotency_key` if it must not exist twice.
    """
    return app.enqueue_many([by_name(type, payload, options)])[0]


def run_again(
    app: Tenure, job_id: str, payload: Mapping[str, Any] | None = None, **options: Unpack[Options]
) -> Job:
    """Add a job that does again what another one does or did, whatever became of it.

    - `job_id`: the other job, which does not change.
    - `payload`: the handler's arguments by name. Default: those of the other job.
    - `options`: those of `enqueue`. Default: queue, priority, `max_retries`, timeout, backoff,
      tags, partition, `depends_on` and `needs` of the other job. So it finds the same results. No
      job that has settled keeps it from running. `depends_on=[]`: it depends on no other job.

    Returns the new job, whose `again_of` is `job_id`. Raises JobNotFound, and what `enqueue` does.
    """
    new_job = again(app.core, app.core.get(job_id), payload, options)
    return add(app.core, [new_job]).result()[0].job


def again(
    core: Core,
    old: Job,
    payload: Mapping[str, Any] | None,
    options: Options,
    ties: Callable[[str], Ties] | None = None,
) -> NewJob:
    """Return what does again what a job does or did; raises Forbidden.

    `ties` reads what a job depends on, where it is not committed yet.
    """
    kept: Any = {name: getattr(old, name) for name in (*AGAIN, *TypeOptions.__struct_fields__)}
    kept["max_retries"] = min(old.max_retries, MAX_RETRIES)  # retries may have raised it
    if "depends_on" not in options:
        read = ties or partial(dependencies.ties, core.limited_store.read)
        kept |= _parents_again(core, *read(old.id))
    given = JsonText(old.payload_json) if payload is None else payload
    return NewJob(old.type, given, {**kept, **options}, old.id)


def _parents_again(core: Core, found: list[ParentEdge], needs: int | None) -> dict[str, Any]:
    if not all(includes(core.queues, parent.queue) for parent in found):
        raise Forbidden(
            "the job depends on a job of another queue: give depends_on, with [] for no job"
        )
    return depends_again(found, needs) if found else {}


async def enqueue_async(
    app: Tenure | Within,
    type: str,
    payload: Mapping[str, Any] | None = None,
    **options: Unpack[Options],
) -> Job:
    """Add a job like `enqueue`, without blocking the event loop."""
    return (await app.enqueue_many_async([by_name(type, payload, options)]))[0]


def enqueue_many(app: Tenure, new_jobs: Iterable[NewJob]) -> list[Job]:
    """Add many jobs in one transaction, all or none.

    - `new_jobs`: at most 10,000, in any iterable. Make them with `JobType.new_job(...)` or as
      `NewJob(type, payload, options)`.

    Returns the jobs in the same order. Raises what `enqueue` raises; the path of an
    InvalidInput begins with the number of the job, as in `$[3].queue`.
    """
    return [added.job for added in add(app.core, listed(new_jobs), waits=True).result()]


async def enqueue_many_async(app: Tenure, new_jobs: Iterable[NewJob]) -> list[Job]:
    """Add many jobs like `enqueue_many`, without blocking the event loop."""
    check_loop()
    jobs = listed(new_jobs)
    await app.core.opened()
    await app.core.defaults.look_up(new_job.type for new_job in jobs)
    return [added.job for added in await answer_of(add(app.core, jobs, looked_up=True))]


def within(app: Tenure, connection: Any, *, wake: Wake = "later") -> Within:
    """Return what adds jobs in the transaction that is open on your connection.

    - `connection`: a connection to the database of the jobs: `Connection` or `AsyncConnection` of
      psycopg, `connection` of psycopg2, `Connection` of asyncpg, sqlite3 or aiosqlite;
      `Connection`, `Session`, `scoped_session` and their asynchronous forms of SQLAlchemy;
      `connections[alias]` of Django, on which a call is a transaction if none is open. Others must
      not be in autocommit.
    - `wake`: `later` (default) notifies no worker. Workers find the job at once on SQLite, and on
      PostgreSQL when they look next, at most two seconds after your commit, or when you call
      `wake()`. `commit` notifies them at your commit. PostgreSQL lets the commits that notify wait
      for one another, so that is for few transactions.

    Returns a `Within`: `enqueue`, `enqueue_many`, `get`, `cancel`, `retry`, `signal`, `chain`,
    `group` and `batch`, each with an `_async` form for asynchronous connections, and `workflow`.
    Opens no connection. Raises InvalidInput.
    """
    from tenure.app.within import Within

    return Within(app, connection, wake=wake)


def wake(app: Tenure) -> None:
    """Notify waiting workers, here and elsewhere, of what you have committed.

    Returns at once and never raises. Does nothing while the database is not open here: see `open`.
    """
    app.core.wake()


# --- change ---------------------------------------------------------------------------------------

FROM_SCRATCH = "from scratch"
"""How the reason of a retry begins that deletes what the attempts have kept."""


@overload
def cancel(
    app: Tenure, job_id: str, *, actor: str | None = None, reason: str | None = None
) -> Job: ...
@overload
def cancel(
    app: Tenure, *, tag: str, actor: str | None = None, reason: str | None = None
) -> Bulk: ...
def cancel(
    app: Tenure,
    job_id: str | None = None,
    *,
    tag: str | None = None,
    actor: str | None = None,
    reason: str | None = None,
) -> Job | Bulk:
    """Cancel a job that is not settled, or all with a tag.

    A handler that is running is stopped, normally within 200 ms (`JobContext.stopped`), and its
    result is not recorded.

    - `job_id`: the job. Not together with `tag`.
    - `tag`: cancel all jobs that have this tag and are not settled.
    - `actor`: who cancels it, for the ledger; 1 to 255 printable characters. Default: the
      application's actor.
    - `reason`: why, for the ledger; at most 500 characters. Default: None.

    Returns the job; with a tag, a `Bulk` that has ended: how many it `changed`. Raises JobNotFound,
    IllegalTransition if the job is settled, or InvalidInput.
    """
    if (job_id is None) == (tag is None):
        raise InvalidInput("give the id of a job, or a tag", path="$.tag")
    if job_id is None:
        bulk = app.bulk.start("cancel", Filter(tag=tag), actor=actor, reason=reason)
        while bulk.finished_at is None:
            bulk = app.bulk.step(bulk.id)
        return bulk
    by, why = app.core.signed(actor), check_reason(reason)
    return _apply(app, job_id, Cancelled(actor=by, reason=why))


def amend(
    app: Tenure,
    job_id: str,
    *,
    actor: str | None = None,
    reason: str | None = None,
    **changes: Unpack[Changes],
) -> Job:
    """Change a pending job; return it.

    - `payload`: the handler's arguments by name; only before the first attempt.
    - `priority`, `max_retries`, `timeout`, `backoff`, `run_at`, `delay`: as of `enqueue`. What is
      not given stays. A `delay` counts from now, and `delay=0` runs a job at once that is not due.
    - `actor`, `reason`: who changes it, and why; as of `cancel`.

    If nothing is different afterwards, the ledger has no entry. Raises JobNotFound,
    IllegalTransition if the job is not pending, if it was tried and the payload is to change, or if
    `max_retries` would leave it no attempt, and InvalidInput (PayloadTooLarge).
    """
    checked, delay = check_changes(changes)
    by, why = app.core.signed(actor), check_reason(reason)
    return _apply(app, job_id, Amended(changes=checked, delay=delay, actor=by, reason=why))


def retry(
    app: Tenure,
    job_id: str,
    *,
    more_retries: int = 1,
    from_scratch: bool = False,
    actor: str | None = None,
    reason: str | None = None,
) -> Job:
    """Run a failed job again; return it, pending.

    - `more_retries`: how many attempts to add to its `max_retries`, 1 to 1,000. Default: 1.
    - `from_scratch`: whether to delete its steps, its checkpoint and the signals that were sent to
      it. Default: False, it continues with them. The reason in the ledger says so.
    - `actor`, `reason`: who retries it, and why; as of `cancel`.

    Raises JobNotFound, IllegalTransition if the job is not failed, if its `start_by` has passed or
    if another one has its unique key, or InvalidInput.
    """
    more = whole(more_retries, 1, MAX_RETRIES, "$.more_retries")
    by, why = app.core.signed(actor), check_reason(reason)
    if from_scratch:
        why = f"{FROM_SCRATCH}: {why}"[:MAX_REASON_LENGTH] if why else FROM_SCRATCH
    event = Retried(more_retries=more, actor=by, reason=why)
    return _apply(app, job_id, event, from_scratch=from_scratch)


def unblock(app: Tenure, job_id: str, *, actor: str | None = None) -> Job:
    """Let a waiting job run now, whatever it waits for; return it, pending.

    - `job_id`: the job. Its handler finds what has come by then: a wait for a signal begins again.
    - `actor`: who releases it, for the ledger; as of `cancel`.

    Raises JobNotFound, IllegalTransition if the job is not waiting, or InvalidInput.
    """
    return _apply(app, job_id, Unblocked(actor=app.core.signed(actor)))


def _apply(app: Tenure, job_id: str, event: Event, *, from_scratch: bool = False) -> Job:
    if not is_id(job_id):
        raise JobNotFound(job_id)
    if app.core.queues is not None:
        app.core.get(job_id)  # a job of another queue is not found
    job = app.core.limited_store.apply(job_id, event, from_scratch=from_scratch).result()
    logs.log_steps(log, [job])
    return job


# --- show -----------------------------------------------------------------------------------------


def queue_shown(core: Core, name: str) -> QueueState:
    """A queue, which need not have jobs or settings. Raises InvalidInput."""
    check_name(name, "queue", "$.queue")
    found = core.limited_store.read.queues(QueueQuery(name=name, within=core.queues))
    return found[0] if found else QueueState(name, None, None, 0, 0, None)


def queues_shown(core: Core, search: str, most: int) -> tuple[list[QueueState], int]:
    """The queues that need attention first, and how many there are in all.

    Raises InvalidInput.
    """
    part = part_of_name(search, "$.search")
    wanted = QueueQuery(search=part, within=core.queues, order="attention", limit=most)
    return queues.listed(core.limited_store.read, wanted)


def run_again_as(core: Core, job_id: str) -> list[Job]:
    """The newest jobs that run a job again."""
    found = []
    for other in core.limited_store.read.again(job_id):
        with suppress(JobNotFound):
            found.append(core.get(other))
    return found


def fires_of(core: Core, names: Sequence[str], most: int) -> Mapping[str, Sequence[Fire]]:
    """The newest fires of schedules, by name."""
    found: dict[str, list[Fire]] = {name: [] for name in names}
    for fire in schedules.page(core.store.read, names, most):
        found[fire.schedule].append(fire)
    return found


def statuses_of(core: Core, fires: Sequence[Fire]) -> Mapping[str, str]:
    """The status of the job of each fire, by its id, where retention has not deleted it."""
    return core.limited_store.read.statuses([f.job_id for f in fires if f.job_id is not None])


def shape_shown(core: Core, workflow_id: str) -> Shape | None:
    """What is drawn of a workflow in the queues of who asks; None if that is too much."""
    found = workflows.members(core.limited_store.read, workflow_id, core.queues)
    return found and shape_of(*found)


def types_shown(core: Core, workflow_id: str) -> Mapping[str, Mapping[str, int]]:
    """The jobs of a workflow in the queues of who asks, by type and status."""
    return workflows.by_type(core.limited_store.read, workflow_id, core.queues)


def transitions_shown(
    transitions: Sequence[Transition], job: Job, redaction: Redaction
) -> Sequence[Transition]:
    """The transitions of a job, with its redacted values cut out of their errors."""
    if not redaction:
        return transitions
    shown = redaction.hider(job.payload_json, job.result_json)
    return [
        one if one.detail is None else dataclasses.replace(one, detail=shown(one.detail))
        for one in transitions
    ]


def progress_shown(
    core: Core, jobs: Sequence[Job], redaction: Redaction = NOTHING_HIDDEN
) -> Mapping[str, JobProgress]:
    """Return how far jobs have come, by id, of those whose handlers have said so."""
    ran = {job.id: job for job in jobs if job.token}
    found = stored_steps.progress_of(core.limited_store.read, list(ran)) if ran else {}
    if not redaction:
        return found
    return {
        id: replace(one, message=redaction.text(one.message, ran[id])) for id, one in found.items()
    }


def steps_shown(core: Core, job: Job, redaction: Redaction = NOTHING_HIDDEN) -> JobSteps:
    """Return what the attempts of a job have kept."""
    if not job.token:
        return JobSteps()
    kept = stored_steps.of(core.limited_store.read, job.id)
    if not redaction:
        return kept
    shown = [replace(one, result_json=_hidden(one.result_json, redaction)) for one in kept.steps]
    return replace(kept, steps=tuple(shown), state_json=_hidden(kept.state_json, redaction))


def _hidden(text: str | None, redaction: Redaction) -> str | None:
    return None if text is None else redaction.document(text)


def failures_shown(
    core: Core, groups: Sequence[FailureGroup], redaction: Redaction
) -> list[FailureGroup]:
    """Groups of failures, each with the redacted error of its last job if anything is redacted.

    A group's own error has what varies taken out, so that redacted values can no longer be found
    in it.
    """
    if not redaction:
        return list(groups)
    return [replace(group, error=_last_error(core, group, redaction)) for group in groups]


def _last_error(core: Core, group: FailureGroup, redaction: Redaction) -> str:
    try:
        job = redaction.job(core.get(group.last_job_id))
    except JobNotFound:
        return MARK
    return (job.last_error or MARK).partition("\n")[0]


# --- read -----------------------------------------------------------------------------------------

ASLEEP = (Snoozed.name, Amended.name)
"""The last events of a job that may be asleep: one that was changed sleeps on."""


def get(app: Tenure, job_id: str) -> Job:
    """Return the job with this id, in its current state. Raises JobNotFound."""
    return app.core.get(job_id)


def progress(app: Tenure, job_id: str) -> JobProgress | None:
    """Return how far a job has come, as its handler said last (`JobContext.progress`).

    Returns None if it has said nothing in the attempt that runs, or in any that ran before. Raises
    JobNotFound.
    """
    return progress_shown(app.core, [app.core.get(job_id)]).get(job_id)


def steps(app: Tenure, job_id: str) -> JobSteps:
    """Return the steps that a job has on record, and its last checkpoint (`JobContext.step`).

    Raises JobNotFound.
    """
    return steps_shown(app.core, app.core.get(job_id))


def find(
    app: Tenure,
    *,
    limit: int = 50,
    before: str | None = None,
    after: str | None = None,
    order: Order = "newest",
    **filter: Unpack[Fields],
) -> list[Job]:
    """Return jobs that match every filter given, newest first.

    - `limit`: at most this many jobs, 1 to 500. Default: 50.
    - `before`: only jobs older than the one with this id, for the next page. Default: None.
    - `after`: only jobs newer than that, for the next page where the oldest come first.
    - `order`: which come first, `newest` or `oldest`. Default: `newest`.

    Filters, all by keyword:

    - `status`: `waiting`, `pending`, `processing`, `completed`, `failed` or `cancelled`.
    - `state`: `scheduled` (pending, with a time to come, and never failed), `ready` (pending and
      due), `retrying` (pending after a failure), `snoozed` (pending, with a time to come that its
      handler chose: by `context.sleep`, `Snooze` or `RateLimited`) or `blocked` (waiting).
    - `running_longer_than`: a duration above 0 since the job was claimed; it is processing.
    - `type`, `queue`, `tag`, `partition`: the whole name. `workflow`: its id.
    - `created_after`, `created_before`: aware datetimes, by the store's clock. A job created at
      exactly `created_after` matches, one created at exactly `created_before` does not.
    - `finished_after`, `finished_before`: likewise, when the job completed, failed for good or was
      cancelled.
    - `error`: text in the last error, 1 to 200 characters; ASCII case does not matter.
    - `text`: text in the JSON of the payload, likewise.
    - `hidden`: keys whose values `error` and `text` must not find. Default: none.

    Looks at as many rows as it takes to find `limit` jobs. Raises InvalidInput.
    """
    wanted = app.core.limited(Filter(**filter))
    query = checked_query(wanted, limit, before=before, after=after, order=order)
    return search.all_of(app.core.limited_store.read, query)


def count(app: Tenure, *, at_most: int = 10_000, **filter: Unpack[Fields]) -> Counted:
    """Count the jobs that match every filter given, within bounds.

    - `at_most`: stop counting there, 1 to 1,000,000. Default: 10,000.

    Filters are those of `find`. Returns a `Counted`: `jobs`, and `exact`, which is False if
    there may be more, because `at_most` or the bound of rows looked at was reached. Raises
    InvalidInput.
    """
    return app.core.count(Filter(**filter), at_most=at_most)


def history(
    app: Tenure, job_id: str, *, last: int | None = None, before: str | None = None
) -> list[Transition]:
    """Return the transitions of a job, oldest first.

    - `last`: only so many of the newest, 1 to 1,000,000. Default: None, all.
    - `before`: a `position`: only of the transitions before that one. Default: None, of all.

    A job that was snoozed each minute for a month has 86,000. Raises JobNotFound and InvalidInput.
    """
    app.core.get(job_id)
    if last is not None:
        whole(last, 1, MAX_LAST, "$.last")
    return app.core.limited_store.read.history(job_id, last=last, before=before)


def explain(app: Tenure, job_id: str) -> Explanation:
    """Say why a job is not running, or what happened to it.

    Returns an `Explanation`, with a sentence for people. Raises JobNotFound.
    """
    job = app.core.get(job_id)
    facts = _facts(app.core, job)
    explained = explanation(job, facts)
    if explained.reason not in MAY_BE_LOCKED:
        return explained
    holders: Sequence[LockHolder] = ()
    with suppress(StoreUnavailable):  # a role may lack rights to look at locks
        holders = app.core.limited_store.read.lock_holders(job.id)
    if not holders:
        return explained
    return explanation(job, replace(facts, locked=holders if app.core.queues is None else ()))


def _asleep_until(core: Core, job: Job) -> datetime | None:
    """Return when the sleep ends that a job began last; None if it cannot be asleep."""
    if job.status is not Status.PENDING or job.event not in ASLEEP:
        return None
    step = stored_steps.last_sleep(core.limited_store.read, job.id)
    try:
        return None if step is None else step.until
    except (TypeError, ValueError, OverflowError):  # a worker over HTTP may record anything
        return None


def _facts(core: Core, job: Job) -> Facts:
    read = core.limited_store.read
    now = read.clock()
    due = job.status is Status.PENDING and job.run_at <= now
    blocked = job.status is Status.WAITING
    linked = blocked or job.event == "skipped"
    keyless = [job.id] if job.status is Status.FAILED or job.event == "skipped" else []
    _, holder = unique_keys.keys_of(read, keyless).get(job.id, ("", None))
    if holder is not None and core.queues is not None:
        other = read.get(holder)
        holder = holder if other and includes(core.queues, other.queue) else ELSEWHERE
    by_schedule = f"WHERE job_id = {read.dialect.id_value}"
    return Facts(
        now=now,
        queue=next(iter(read.queues(QueueQuery(name=job.queue))), None),
        type=types.every(read, types.PLAIN).get(job.type),
        workers=read.workers(core.queues),
        ahead=read.ahead(job) if due else 0,
        counted_until=read.stats.until() if due else None,
        rate=rate(read.stats.activity(RATE_MINUTES), job.queue, now) if due else 0.0,
        fire=next(iter(schedules.fires(read, by_schedule, (job.id,))), None),
        parents=[
            (id if includes(core.queues, queue) else ELSEWHERE, status, meets)
            for id, queue, status, meets in (dependencies.parents(read, job.id) if linked else ())
        ],
        wait=waited_for(core, job),
        asleep_until=None if due else _asleep_until(core, job),
        holder=holder,
        limits=queues.facts(read, job) if due else None,
    )
