"""The verbs of `Tenure` that add jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from tenure.app import adding
from tenure.app.twins import answer_of, check_loop
from tenure.errors import Forbidden, InvalidInput
from tenure.jobs.enqueue import MAX_RETRIES, NewJob, Options, TypeOptions, Wake, listed
from tenure.jobs.graph import ParentEdge, Ties, depends_again
from tenure.jobs.names import check_name
from tenure.jobs.payload import JsonText
from tenure.jobs.queue_rights import includes
from tenure.lifecycle import Job
from tenure.store.tables import dependencies

if TYPE_CHECKING:
    from tenure.app.app import Tenure
    from tenure.app.core import Core
    from tenure.app.within import Within


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
    return adding.add(app.core, [new_job]).result()[0].job


AGAIN = ("tags", "partition")
"""What a job that runs another one again takes from it, beside the options of a type."""


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
    return [added.job for added in adding.add(app.core, listed(new_jobs), waits=True).result()]


async def enqueue_many_async(app: Tenure, new_jobs: Iterable[NewJob]) -> list[Job]:
    """Add many jobs like `enqueue_many`, without blocking the event loop."""
    check_loop()
    jobs = listed(new_jobs)
    await app.core.opened()
    await app.core.defaults.look_up(new_job.type for new_job in jobs)
    return [added.job for added in await answer_of(adding.add(app.core, jobs, looked_up=True))]


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
