"""Jobs to add, and the check of what an enqueue asks for. Pure.

A `NewJob` is a job as a caller writes it: its options may be text (`"5m"`), wrong, or absent. A
`CheckedJob` is valid and complete."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Generic, Literal, TypedDict, TypeVar

import msgspec
from msgspec.structs import asdict, replace

from tenure.dependency import Dependency
from tenure.errors import InvalidInput
from tenure.lifecycle import DEFAULT_MAX_RETRIES, Job
from tenure.retry import DEFAULT_POLICY, RetryPolicy
from tenure.rules.dependencies import DependsOn, Links, links_of
from tenure.rules.unique_keys import Unique, Uniqueness, unique_of, uniqueness
from tenure.values import durations, ids, names, payload
from tenure.values.names import check_key, check_label, check_open, check_partition, check_tags
from tenure.values.numbers import whole

R = TypeVar("R", covariant=True)

MAX_PRIORITY = 100
MAX_RETRIES = 1_000
MAX_JOBS_AT_ONCE = 10_000

Duration = float | int | str | timedelta
"""Seconds, a timedelta, or text such as `30s`, `1h30m` or `PT5M`."""

Backoff = RetryPolicy | Duration | Sequence[Duration] | dict[str, Any]
"""A policy, its `base` alone, its `delays`, or its fields by name."""

PartitionBy = Callable[[Mapping[str, Any]], str | None]
"""Returns the partition of the job with a payload, None for none; raises InvalidInput."""

Wake = Literal["later", "commit"]
"""When workers are notified of a job that is added in the caller's transaction."""


class Options(TypedDict, total=False):
    """What an enqueue may say about its job beside the payload. `Tenure.enqueue` has the limits."""

    queue: str  # default: `default`
    priority: int  # -100 to 100; smaller runs first; default: 0
    max_retries: int  # attempts in all, 0 to 1,000; default: 10
    timeout: Duration | None  # of one attempt; default: none
    backoff: Backoff  # wait after a failure; default: `RetryPolicy()`
    delay: Duration  # run it no earlier than this from now
    run_at: datetime  # run it no earlier than this; not together with `delay`
    start_by: Duration | datetime  # cancel it if it has not started by then; default: never
    tags: Sequence[str]  # at most 20 words to find it by
    partition: str  # what divides its queue, such as a tenant; 1 to 128 characters
    unique: Unique | Mapping[str, Any] | None  # with which other jobs it is the same
    depends_on: Sequence[DependsOn] | Mapping[str, DependsOn]  # what has to end before, by name
    needs: Literal["all", "any"] | int  # how many of those; default: all
    idempotency_key: str  # 1 to 255 visible ASCII characters
    actor: str  # who adds it; default: the application's actor


class Changes(TypedDict, total=False):
    """What can change of a job that waits for a worker. `Tenure.enqueue` has the limits."""

    payload: Mapping[str, Any]  # only before its first attempt
    priority: int
    max_retries: int
    timeout: Duration | None
    backoff: Backoff
    delay: Duration  # run it no earlier than this from now; 0: at once
    run_at: datetime


class NewJob(msgspec.Struct, frozen=True):
    """A job for `Tenure.enqueue_many`, not yet checked.

    - `type`: the job type.
    - `payload`: the handler's arguments by name, of JSON types; at most 1 MiB as JSON.
    - `options`: what `Tenure.enqueue` takes by keyword; `{}` for none.
    - `again_of`: the id of the job that it runs again. Default: None.
    """

    type: str
    payload: Any
    options: Options
    again_of: str | None = None


class NewJobOf(NewJob, Generic[R], frozen=True):
    """A `NewJob` whose handler returns an `R`, as `JobType.new_job` makes it."""


class TypeOptions(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The options that a type sets for its jobs, where an enqueue does not give them."""

    queue: str = "default"
    priority: int = 0
    max_retries: int = DEFAULT_MAX_RETRIES
    timeout: float | None = None
    backoff: RetryPolicy = DEFAULT_POLICY

    def is_for(self, queue: str | None) -> bool:
        """Whether they count for a job that names this queue, or none."""
        return True


PLAIN_OPTIONS = TypeOptions()


class HandlerOptions(TypeOptions, frozen=True, kw_only=True):
    """What a handler says about its jobs: options, and what only its process can work out."""

    partition_by: PartitionBy | None = None
    unique: Unique | None = None


class CheckedJob(TypeOptions, frozen=True, kw_only=True, gc=False):
    """A job to add. The store sets its times: `run_at` if given, otherwise now plus `delay`."""

    id: str
    type: str
    payload: str = "{}"
    idempotency_key: str | None = None
    fingerprint: str | None = None  # of what the caller gave, stored with the key
    delay: float = 0.0
    run_at: datetime | None = None
    start_by: datetime | None = None
    start_within: float | None = None  # seconds, instead of `start_by`
    tags: str | None = None  # a JSON array of those in order, each once
    again_of: str | None = None  # the id of the job that it runs again
    partition: str | None = None
    actor: str | None = None
    traceparent: str | None = None  # the span that adds it, if any
    unique: Uniqueness | None = None
    unique_key: str | None = None  # that of `unique`, if the job holds it
    unique_until: str | None = None  # how long it does
    simple: bool = True  # one statement can add it


class LinkedJob(CheckedJob, frozen=True, kw_only=True, gc=False):
    """A job to add that waits for others, or belongs to a workflow."""

    simple: bool = False
    edges: tuple[Dependency, ...] = ()
    needs: int | None = None  # how many of them; None for all
    workflow: str | None = None
    within: tuple[str, ...] | None = None  # patterns of queues of jobs that may be named


class Enqueued(msgspec.Struct, frozen=True):
    """The new job, or (`created` false) the one with its idempotency key or its unique key."""

    job: Job
    created: bool


def listed(new_jobs: Iterable[NewJob]) -> list[NewJob]:
    """Return jobs, of too many one too many; raises InvalidInput for what is no `NewJob`."""
    names.check_kind(new_jobs, Iterable, "a list of jobs", "$.new_jobs")
    found = list(islice(new_jobs, MAX_JOBS_AT_ONCE + 1))
    for number, one in enumerate(found):
        check_new(one, number)
    return found


def check_new(new_job: object, number: int) -> None:
    """Raise InvalidInput for what is no `NewJob`."""
    if not isinstance(new_job, NewJob):  # first, as a batch has many
        names.check_kind(new_job, NewJob, "what new_job(...) returned", f"$[{number}]")
    elif type(new_job.options) is not dict or type(new_job.type) is not str:
        names.check_kind(new_job.options, Mapping, names.OPTIONS_BY_NAME, f"$[{number}].options")
        check_open(new_job.type, "job type", f"$[{number}].type")


def check_jobs(
    new_jobs: Sequence[NewJob],
    *,
    defaults: Callable[[str], TypeOptions],
    actor: str,
    several: bool,
    own_keys: bool = False,
    known_ids: Sequence[str] = (),
    workflow: str | None = None,
) -> list[CheckedJob]:
    """Check jobs; options they leave out are as `defaults(type)` says. Raises InvalidInput.

    With `several`, the path of the error begins with the number of the job. With `own_keys`, a
    request that uses the idempotency key of another actor is never the same request. `known_ids`
    are the ids, if the caller has chosen them, and `workflow` is where the jobs belong.
    """
    made: list[CheckedJob] = []
    try:
        job_ids = known_ids or ids.new_ids(len(new_jobs))
        for new_job, id in zip(new_jobs, job_ids, strict=True):
            made.append(check_job(new_job, id, defaults=defaults(new_job.type), actor=actor))
    except InvalidInput as error:
        if not several:
            raise
        raise error.inside(f"$[{len(made)}]") from error.__cause__
    if workflow is not None:
        made = [linked(checked_job, workflow=workflow) for checked_job in made]
    return [with_own_key(checked_job) for checked_job in made] if own_keys else made


def linked(job: CheckedJob, **links: Any) -> LinkedJob:
    """Return a job with other fields of a `LinkedJob`."""
    return LinkedJob(**asdict(job) | {"simple": False} | links)


def check_job(new_job: NewJob, id: str, *, defaults: TypeOptions, actor: str) -> CheckedJob:
    """Check a job; options it leaves out are as in `defaults`. Raises InvalidInput."""
    options = new_job.options
    delay: Any = None
    run_at: Any = None
    start_by: datetime | None = None
    start_within: float | None = None
    key = by = rule = links = tags = partition = None
    if type(defaults) is HandlerOptions:  # most types have no such rules
        by, rule = defaults.partition_by, defaults.unique
    elif type(defaults) is not TypeOptions and not defaults.is_for(options.get("queue")):
        defaults = PLAIN_OPTIONS
    if options:  # most jobs have none
        if unknown := options.keys() - OPTIONS:
            raise InvalidInput(names.no_option(unknown, OPTIONS), path="$")
        if options.get("actor") is not None:
            actor = check_label(options["actor"], "actor", "$.actor")
        delay = options.get("delay")
        run_at = _time_of(options.get("run_at"), delay)
        if options.get("start_by") is not None:
            start_by, start_within = _last_start(options["start_by"])
        if options.get("tags"):
            tags = msgspec.json.encode(check_tags(options["tags"])).decode()
        if options.get("partition") is not None:
            partition, by = check_partition(options["partition"]), None
        if "unique" in options:
            rule = None if options["unique"] is None else unique_of(options["unique"])
        key = options.get("idempotency_key")
        if key is not None:
            key = check_key(key, "$.idempotency_key")
        if "depends_on" in options or "needs" in options:
            links = links_of(options)
        defaults = defaults_of(options, defaults)
    checked_job = CheckedJob(
        id=id,
        type=check_open(new_job.type, "job type", "$.type"),
        queue=defaults.queue,
        payload=payload.canonical(new_job.payload),
        priority=defaults.priority,
        max_retries=defaults.max_retries,
        timeout=defaults.timeout,
        backoff=defaults.backoff,
        idempotency_key=key,
        delay=0.0 if delay is None else durations.seconds(delay, path="$.delay"),
        run_at=run_at,
        tags=tags,
        again_of=new_job.again_of and ids.check_id(new_job.again_of, "$.again_of"),
        actor=actor,
    )
    if start_by or start_within:  # not above: Python makes a dictionary of 16 named arguments
        checked_job = replace(checked_job, start_by=start_by, start_within=start_within)
        _check_it_can_start(checked_job)
    if by or partition is not None or rule or links:
        if by is not None:
            partition = by(payload.load(checked_job.payload))
        checked_job = _with_more(checked_job, partition, rule, links)
    if key is None:
        return checked_job
    return replace(checked_job, fingerprint=fingerprint(checked_job, options))


def _with_more(
    job: CheckedJob, partition: str | None, rule: Unique | None, links: Links | None
) -> CheckedJob:
    if partition is not None:
        job = replace(job, partition=partition)
    if rule is not None:
        job = with_unique_key(job, rule)
    if links is None:
        return job
    return linked(job, edges=links[0], needs=links[1])


def with_unique_key(job: CheckedJob, rule: Unique) -> CheckedJob:
    """Return a job as `rule` makes it unique; raises InvalidInput."""
    wait: Any = rule.max_wait
    if wait is not None and job.run_at is not None:
        raise InvalidInput("max_wait needs a delay, not run_at", path="$.unique.max_wait")
    if rule.changes and job.delay and wait is None:
        raise InvalidInput(
            "each request delays the job again: give the longest time that it may wait",
            path="$.unique.max_wait",
        )
    one = uniqueness(rule, job.type, job.queue, job.payload)
    return replace(
        job,
        simple=False,
        unique=one,
        unique_key=one.key if rule.until else None,
        unique_until=rule.until,
        delay=job.delay if wait is None else min(job.delay, wait),
    )


def check_changes(changes: Changes) -> tuple[dict[str, Any], float | None]:
    """Return columns with their new values, and the delay; raises InvalidInput."""
    if unknown := changes.keys() - Changes.__annotations__.keys():
        raise InvalidInput(f"this cannot change: {', '.join(sorted(unknown))}", path="$")
    options = defaults_of(changes, TypeOptions())
    checked = {name: getattr(options, name) for name in changes.keys() & _TYPE_OPTIONS}
    if "payload" in changes:
        checked["payload"] = payload.canonical(changes["payload"])
    delay = changes.get("delay")
    if run_at := _time_of(changes.get("run_at"), delay):  # to the millisecond, as every store
        checked["run_at"] = run_at.replace(microsecond=run_at.microsecond // 1000 * 1000)
    return checked, None if delay is None else round(durations.seconds(delay, path="$.delay"), 3)


def _time_of(run_at: Any, delay: Any) -> datetime | None:
    if run_at is None:
        return None
    if delay is not None:
        raise InvalidInput("give delay or run_at, not both", path="$.run_at")
    return durations.check_time(run_at, "$.run_at")


def _last_start(given: Any) -> tuple[datetime | None, float | None]:
    """Return a time, or the seconds from now. JSON and commands write a time as text."""
    if isinstance(given, str) and "-" in given:
        with suppress(msgspec.ValidationError):
            given = msgspec.convert(given, datetime)
    if isinstance(given, datetime):
        return durations.check_time(given, "$.start_by"), None
    return None, durations.positive(given, "$.start_by")


def _check_it_can_start(job: CheckedJob) -> None:
    never = job.start_within is not None and job.start_within <= job.delay
    if never or (job.run_at and job.start_by and job.start_by <= job.run_at):
        raise InvalidInput("the job would expire before it is due", path="$.start_by")


def defaults_of(options: Mapping[str, Any], otherwise: TypeOptions) -> TypeOptions:
    """The options that a type may set for its jobs, checked; `otherwise` fills the gaps."""
    if _TYPE_OPTIONS.isdisjoint(options):
        return otherwise
    given = {**asdict(otherwise), **options}
    return TypeOptions(
        queue=check_open(given["queue"], "queue", "$.queue"),
        priority=whole(given["priority"], -MAX_PRIORITY, MAX_PRIORITY, "$.priority"),
        max_retries=whole(given["max_retries"], 0, MAX_RETRIES, "$.max_retries"),
        timeout=None
        if given["timeout"] is None
        else durations.positive(given["timeout"], "$.timeout"),
        backoff=durations.policy_of(given["backoff"], "$.backoff"),
    )


OPTIONS = frozenset(Options.__annotations__)
_TYPE_OPTIONS = frozenset(TypeOptions.__struct_fields__)
_FINGERPRINTED = _TYPE_OPTIONS | {"delay", "run_at", "start_by", "tags", "partition", "unique"}


def fingerprint(checked_job: CheckedJob, options: Options) -> str:
    """What makes two requests with one idempotency key the same request.

    Only the options that the caller gave count. The defaults of a type may change between an
    enqueue and its repetition, and may be unknown to the other of two callers.
    """
    given = options.keys() & _FINGERPRINTED
    asked = {name: getattr(checked_job, name) for name in ("type", "payload", *sorted(given))}
    if checked_job.start_within is not None:
        asked["start_by"] = checked_job.start_within
    if checked_job.again_of is not None:
        asked["again_of"] = checked_job.again_of
    if type(checked_job) is LinkedJob:
        asked |= {"depends_on": checked_job.edges, "needs": checked_job.needs}
    text = msgspec.json.encode(asked, enc_hook=str.__str__)  # of a payload that is a JsonText
    return hashlib.sha256(text).hexdigest()


def with_own_key(checked_job: CheckedJob) -> CheckedJob:
    """Return a job whose idempotency key is that of another request for every other actor."""
    if checked_job.fingerprint is None:
        return checked_job
    asked = msgspec.json.encode((checked_job.fingerprint, checked_job.actor))
    return replace(checked_job, fingerprint=hashlib.sha256(asked).hexdigest())
