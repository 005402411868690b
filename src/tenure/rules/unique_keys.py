"""Unique jobs: which jobs count as the same, and what happens to a second one. Pure.

Jobs are the same if their unique keys are. One of them at a time holds the key, a row of the table
`unique_key`, and what another one comes to is decided here, for a whole batch (`plan`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from tenure.errors import DuplicateJob, InvalidInput
from tenure.events import Amended
from tenure.lifecycle import Job, Status, follow
from tenure.texts import TEXT_FIELDS
from tenure.values.durations import seconds
from tenure.values.names import check_choice, check_key

if TYPE_CHECKING:
    from tenure.rules.jobs import CheckedJob

Until = Literal["settled", "started"]
"""How long a job holds its unique key: until no attempt will follow, or until its first attempt."""
OnConflict = Literal["return", "error", "replace", "reschedule"]
"""What an enqueue does if another job holds the key."""

MAX_VALUES = 20
MAX_PATH_LENGTH = 255
MAX_LOCKED_KEYS = 100
"""Unique keys of one enqueue that PostgreSQL locks, at most."""
REPLACED = ("payload", "priority", "max_retries", "timeout", "backoff")


@dataclass(frozen=True, slots=True)
class Unique:
    """Which jobs are the same, and what an enqueue does if one of them is there.

    - `by`: names of payload values, as a tuple such as `("doc_id",)`, with dots for values inside
      others (`"order.id"`): jobs of a type are the same if these values are. `()` allows one job of
      the type. A text of 1 to 255 visible ASCII characters is the key, whatever the type.
      Default: None, the whole payload.
    - `until`: how long the earlier job counts: `"settled"`, until it has completed, was cancelled
      or failed for good; or `"started"`, until its first attempt starts. Default: `"settled"`; with
      `within`, that time alone.
    - `within`: a duration above 0: one job in so much time, counted from the enqueue that made it.
      Default: None.
    - `on_conflict`: what the enqueue does if such a job is there: `"return"` that job; `"error"`,
      raise DuplicateJob; `"replace"` its payload, priority, `max_retries`, timeout, backoff and
      time by those of the new one; `"reschedule"`, its time alone. A job that was claimed before,
      or waits for others, is only returned. Default: `"return"`.
    - `max_wait`: with `"replace"` or `"reschedule"`, run the job this duration after it was made
      at the latest, however often it is put off. Needed with a `delay`. Default: None.
    - `across_queues`: whether jobs of other queues can be the same. Default: True.

    Raises InvalidInput for a value out of range.
    """

    by: str | Sequence[str] | None = None
    until: Until | None = None
    within: float | str | timedelta | None = None
    on_conflict: OnConflict = "return"
    max_wait: float | str | timedelta | None = None
    across_queues: bool = True

    def __post_init__(self) -> None:
        for name, value in _checked(self).items():
            object.__setattr__(self, name, value)

    @property
    def changes(self) -> bool:
        """Whether it changes the job that is there."""
        return self.on_conflict in ("replace", "reschedule")


def _checked(rule: Unique) -> dict[str, Any]:
    """Return values in the form in which they are kept; raises InvalidInput."""
    at = "$.unique"
    by: Any = rule.by
    if isinstance(by, str):
        by = check_key(by, f"{at}.by", "a unique key")
    elif by is not None:
        names = by if isinstance(by, list | tuple) else [None]
        if len(names) > MAX_VALUES or not all(map(_is_path, names)):
            raise InvalidInput(
                f"name at most {MAX_VALUES} values of the payload, or a text", path=f"{at}.by"
            )
        by = tuple(sorted(set(names)))
    for name, values in (("until", Until), ("on_conflict", OnConflict)):
        if name != "until" or rule.until is not None:
            check_choice(getattr(rule, name), values, f"{at}.{name}")
    if type(rule.across_queues) is not bool:
        raise InvalidInput("give true or false", path=f"{at}.across_queues")
    if rule.max_wait is not None and not rule.changes:
        raise InvalidInput("it needs on_conflict replace or reschedule", path=f"{at}.max_wait")
    within, max_wait = (_span(rule, name, at) for name in ("within", "max_wait"))
    until = rule.until or (None if within else "settled")
    return {"by": by, "until": until, "within": within, "max_wait": max_wait}


def _is_path(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= MAX_PATH_LENGTH


def _span(rule: Unique, name: str, at: str) -> float | None:
    if (given := getattr(rule, name)) is None:
        return None
    if not (span := seconds(given, f"{at}.{name}")):
        raise InvalidInput("give a time above 0", path=f"{at}.{name}")
    return span


def unique_of(given: Any) -> Unique:
    """Return the rule that a caller means: a `Unique`, or its fields by name."""
    if isinstance(given, Unique):
        return given
    if not isinstance(given, Mapping):
        raise InvalidInput("give a Unique, or an object of its fields", path="$.unique")
    if unknown := given.keys() - Unique.__dataclass_fields__.keys():
        raise InvalidInput(f"no such field: {', '.join(map(str, unknown))}", path="$.unique")
    return Unique(**given)


def checked_for(type: str, given: Any, names: Collection[str] | None) -> Unique:
    """Return the rule of a type whose payloads have these values, None for any.

    Raises InvalidInput for other names, and for a text that is one of them: it would be a single
    key of all jobs.
    """
    rule, at = unique_of(given), "$.unique.by"
    if names is None or rule.by is None:
        return rule
    if isinstance(rule.by, str) and rule.by in names:
        what = f"a text is one key for all jobs; for the value of {rule.by}, give ({rule.by!r},)"
        raise InvalidInput(what, path=at)
    wanted = () if isinstance(rule.by, str) else rule.by
    if unknown := [name for name in wanted if name.partition(".")[0] not in names]:
        raise InvalidInput(f"{type} has no parameter {', '.join(unknown)}", path=at)
    return rule


class Uniqueness(msgspec.Struct, frozen=True, gc=False):
    """The unique key of a job, 32 hexadecimal digits, and the rule that it is of."""

    key: str
    rule: Unique


def uniqueness(rule: Unique, type: str, queue: str, payload: str) -> Uniqueness:
    """Return the unique key of a job with a payload, as JSON; raises InvalidInput.

    The key is a hash of JSON, so no two lists of values have the same: `"ab", "c"` differs from
    `"a", "bc"`, 1 from "1", and null from a value that is absent, which is refused.
    """
    scope = [1, None if isinstance(rule.by, str) else type, None if rule.across_queues else queue]
    chosen: Any = rule.by
    if not isinstance(chosen, str):
        values = msgspec.json.decode(payload.encode())  # a text may be a `JsonText`
        names = rule.by
        chosen = values if names is None else [[name, _value(values, name)] for name in names]
    text = msgspec.json.encode([*scope, chosen], order="sorted")
    return Uniqueness(hashlib.blake2b(text, digest_size=16).hexdigest(), rule)


def _value(values: Any, name: str) -> Any:
    for part in name.split("."):
        if not isinstance(values, dict) or part not in values:
            raise InvalidInput(f"the payload has no value {name!r}", path="$.unique.by")
        values = values[part]
    return values


# --- conflicts ------------------------------------------------------------------------------------


class Throttled(Struct, frozen=True):
    """The job that was accepted last by a rule with `within`; None if it was deleted since."""

    job_id: str
    expires_at: datetime
    job: Job | None


class Seen(Struct, frozen=True):
    """What is stored about the unique keys of a batch, at `now`."""

    now: datetime
    held: Mapping[str, Job] = field(default_factory=dict)  # key -> its holder
    throttled: Mapping[str, Throttled] = field(default_factory=dict)  # key -> the last one
    known: frozenset[str] = frozenset()  # idempotency keys that are not new


class Plan(Struct):
    """What becomes of a batch: jobs to add, holders to change, and the answer to each request.

    An answer is the number of a job of `fresh`, the job that is there, or a refusal.
    """

    fresh: list[CheckedJob] = field(default_factory=list)
    changed: dict[str, tuple[Job, Job]] = field(default_factory=dict)  # id -> before and after
    answers: list[int | str | DuplicateJob] = field(default_factory=list)
    holders: dict[str, Job] = field(default_factory=dict)  # id -> the job afterwards

    def add(self, job: CheckedJob) -> int:
        """Answer a request with a job to add; return its number."""
        self.answers.append(len(self.fresh))
        self.fresh.append(job)
        return len(self.fresh) - 1


def plan(jobs: Sequence[CheckedJob], seen: Seen) -> Plan:
    """Return the outcome for each job, in order. A job sees the outcomes of the jobs before it."""
    made, asked = Plan(), set(seen.known)
    numbers: dict[str, int] = {}  # unique key -> the number of its job in `fresh`
    for job in jobs:
        one = job.unique
        if one is None or job.idempotency_key in asked:  # the insert knows the answer
            made.add(job)
            continue
        if job.idempotency_key is not None:
            asked.add(job.idempotency_key)
        number = numbers.get(one.key)
        there = made.fresh[number] if number is not None else _there(one, seen, made)
        if there is None:
            numbers[one.key] = made.add(job)
        elif isinstance(there, str):
            made.answers.append(DuplicateJob(there))
        elif one.rule.on_conflict == "error":
            made.answers.append(DuplicateJob(there.id))
        elif isinstance(there, Job):
            _change(made, job, one.rule, there, seen.now)
            made.answers.append(there.id)
        elif number is not None:
            made.fresh[number] = _merged(there, job, one.rule)
            made.answers.append(number)
    return made


def _there(one: Uniqueness, seen: Seen, made: Plan) -> Job | str | None:
    """The job that is in the way of another one, or its id if it was deleted; None if none is."""
    rule: Any = one.rule
    holder = seen.held.get(one.key) if rule.until else None
    last = seen.throttled.get(one.key) if holder is None and rule.within else None
    # A clock that was ahead may have left a later time.
    if last and seen.now < last.expires_at <= seen.now + timedelta(seconds=rule.within):
        if last.job is None:
            return last.job_id
        holder = last.job
    return None if holder is None else made.holders.get(holder.id, holder)


def _merged(first: CheckedJob, job: CheckedJob, rule: Unique) -> CheckedJob:
    """Return the first of two jobs to add with one key, changed as the second one asks for."""
    if not rule.changes or first.type != job.type:  # with a text as the key
        return first
    first = replace(first, delay=job.delay, run_at=job.run_at)
    more = {name: getattr(job, name) for name in REPLACED}
    return replace(first, **more) if rule.on_conflict == "replace" else first


def _change(made: Plan, job: CheckedJob, rule: Any, holder: Job, now: datetime) -> None:
    """Note what a job changes of the holder of its key; nothing, if that was claimed before."""
    made.holders[holder.id] = holder
    same = holder.type == job.type  # with a text as the key it may not be
    if not rule.changes or not same or holder.status is not Status.PENDING or holder.token:
        return
    due = job.run_at or now + timedelta(seconds=job.delay)
    if job.run_at is None and not job.delay:
        due = min(due, holder.run_at)
    if rule.max_wait is not None:
        due = min(due, holder.created_at + timedelta(seconds=rule.max_wait))
    changes: dict[str, Any] = {"run_at": due.replace(microsecond=due.microsecond // 1000 * 1000)}
    if rule.on_conflict == "replace":
        changes |= {name: getattr(job, name) for name in REPLACED}
    if all(getattr(holder, TEXT_FIELDS.get(name, name)) == new for name, new in changes.items()):
        return
    (after,) = follow(holder, Amended(changes=changes, actor=job.actor or "application"), now)
    before = made.changed.get(holder.id, (holder, after))[0]
    made.changed[holder.id] = (before, after)
    made.holders[holder.id] = after
