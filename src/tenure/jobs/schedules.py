"""Schedules: when they are due, which job each of their ticks adds, and their check. Pure.

A tick is a time at which a schedule is due. A fire is its outcome: see `fires.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, TypedDict

import msgspec
from msgspec.structs import asdict

from tenure.errors import InvalidInput
from tenure.jobs import payload as payloads
from tenure.jobs.durations import Time, positive, seconds
from tenure.jobs.enqueue import Duration, NewJob, TypeOptions, check_job, whole
from tenure.jobs.ids import EPOCH, new_id
from tenure.jobs.names import OPTIONS_BY_NAME, check_choice, check_kind, check_reason, misspelt
from tenure.jobs.schedule_times import When, check_when, next_after

Missed = Literal["one", "all", "skip"]
"""What becomes of ticks that are late by more than `grace`."""
Overlap = Literal["allow_all", "skip", "buffer_one", "buffer_all", "cancel_other"]
"""What becomes of a tick while the last job of the schedule is not settled."""

MAX_FIRES = 10_000
"""Ticks that one decision, or one backfill, makes into jobs."""
MAX_TIME_KEY_LENGTH = 128


class FireOutcome(StrEnum):
    """What became of a tick. Only `fired` has a job."""

    FIRED = "fired"
    OVERLAPPED = "overlapped"
    MISSED = "missed"
    PAUSED = "paused"


class How(StrEnum):
    """In which way a tick was decided, or, of one that was missed, by which rule."""

    DUE = "due"
    CAUGHT_UP = "caught_up"
    BACKFILL = "backfill"
    TRIGGER = "trigger"
    SKIP = "skip"  # the schedule makes up for none
    ONE = "one"  # a newer tick was due as well
    CATCH_UP = "catch_up"  # beyond the number, or the time, that is made up for


class ScheduleOptions(TypedDict, total=False):
    """What a schedule may say. `app.schedule` has the meaning, the unit and the limit of each."""

    cron: str | None
    every: Duration | None
    offset: Duration
    at: datetime | None
    zone: str
    starts_at: datetime | None
    ends_at: datetime | None
    jitter: Duration
    time_key: str | None
    missed: Missed
    grace: Duration
    catch_up: int
    catch_up_window: Duration | None
    overlap: Overlap
    note: str | None


class Template(msgspec.Struct, frozen=True):
    """The job that a schedule adds, as its caller gave it: what is left out is as the type says.

    Durations in `options` are seconds.
    """

    type: str
    payload: dict[str, Any] = {}
    options: dict[str, Any] = {}


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What a schedule does and when: all of its settings."""

    when: When
    template: Template
    time_key: str | None = None  # the field of the payload that gets the time of the tick
    jitter: float = 0.0  # seconds
    missed: Missed = "one"
    grace: float = 60.0  # seconds
    catch_up: int = 100
    catch_up_window: float | None = None  # seconds
    overlap: Overlap = "allow_all"
    note: str | None = None


def rules_of(rules: Rules) -> Rules:
    return Rules(**{name: getattr(rules, name) for name in Rules.__struct_fields__})


class Schedule(Rules, frozen=True, kw_only=True):
    """A schedule in its current state. Times are UTC."""

    name: str
    edition: int = 1  # rises with every change of its rules
    declared: bool = False  # in code: only processes that declare it evaluate it
    declared_seen_at: Time | None = None  # when such a process started or evaluated it last
    paused_at: Time | None = None
    paused_by: str | None = None
    pause_reason: str | None = None
    cursor_at: Time  # every tick up to here is decided
    next_at: Time | None  # the next tick; None: no more, or it is paused
    last_job_id: str | None = None
    fired: int = 0  # ticks and triggers that added a job
    overlapped: int = 0
    missed_fires: int = 0
    created_at: Time
    created_by: str
    changed_at: Time  # when its rules changed last
    changed_by: str

    @property
    def decided(self) -> int:
        """How many ticks were decided, except ticks during pauses."""
        return self.fired + self.overlapped + self.missed_fires


class Fire(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the tick `at`, or of every tick from `at` to `until`, at `decided_at`."""

    schedule: str
    at: Time
    until: Time | None = None  # only where no job was added
    outcome: FireOutcome
    how: How
    job_id: str | None = None  # set if and only if the outcome is `fired`
    decided_at: Time
    actor: str | None = None


def check_rules(job: NewJob, options: ScheduleOptions) -> Rules:
    """Return the rules of a schedule; raises InvalidInput."""
    known = ScheduleOptions.__annotations__
    if unknown := options.keys() - known.keys():
        said = f"no such option: {misspelt(unknown, known)}; the options are {', '.join(known)}"
        raise InvalidInput(said, path="$")
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    when = {name: given.pop(name) for name in WHEN if name in given}
    check_kind(job, NewJob, "what new_job(...) returned", "$.job")
    check_kind(job.options, Mapping, OPTIONS_BY_NAME, "$.job.options")
    time_key = given.get("time_key")
    if time_key is not None and not (
        isinstance(time_key, str) and 0 < len(time_key) <= MAX_TIME_KEY_LENGTH
    ):
        said = f"name a field of the payload, 1 to {MAX_TIME_KEY_LENGTH} characters"
        raise InvalidInput(said, path="$.time_key")
    for name, values in (("missed", Missed), ("overlap", Overlap)):
        if name in given:
            check_choice(given[name], values, f"$.{name}")
    for name in ("jitter", "grace"):
        if name in given:
            given[name] = seconds(given[name], f"$.{name}")
    if "catch_up" in given:
        whole(given["catch_up"], 1, MAX_FIRES, "$.catch_up")
    if "catch_up_window" in given:
        given["catch_up_window"] = positive(given["catch_up_window"], "$.catch_up_window")
    given["note"] = check_reason(given.get("note"), "$.note")
    return Rules(when=check_when(**when), template=_template_of(job, time_key), **given)


WHEN = When.__struct_fields__


def changed_rules(rules: Rules, job: NewJob | None, options: ScheduleOptions) -> Rules:
    """Return rules with other options, and perhaps another job; raises InvalidInput."""
    old: dict[str, Any] = {name: getattr(rules, name) for name in Rules.__struct_fields__}
    when, template = asdict(old.pop("when")), old.pop("template")
    if any(options.get(kind) is not None for kind in ("cron", "every", "at")):
        when |= dict.fromkeys(("cron", "every", "at", "offset"))
    if when["every"] is None:
        when["offset"] = None
    if job is None:
        job = NewJob(template.type, template.payload, template.options)
    merged: Any = {**old, **when, **options}
    return check_rules(job, merged)


def _template_of(job: NewJob, time_key: str | None) -> Template:
    """Return the job that each tick adds, checked as an enqueue checks it."""
    options: dict[str, Any] = {**job.options}
    if refused := options.keys() & {"delay", "run_at", "idempotency_key", "actor", "unique"}:
        raise InvalidInput(f"the schedule decides this: {', '.join(refused)}", path="$.job")
    plain = msgspec.structs.replace(job, options=options)
    checked = check_job(plain, new_id(), defaults=TypeOptions(), actor="schedule")
    payload = payloads.load(checked.payload)
    if time_key is not None:  # it counts, too
        payloads.canonical({**payload, time_key: EPOCH.isoformat()})
    if checked.start_by is not None:
        raise InvalidInput("give start_by as a duration", path="$.job.start_by")
    values = asdict(checked) | {"start_by": checked.start_within, "tags": options.get("tags")}
    kept = {name: msgspec.to_builtins(values[name]) for name in options if name != "tags"}
    if checked.tags is not None:
        kept["tags"] = msgspec.json.decode(checked.tags)
    return Template(checked.type, payload, kept)


def new_schedule(
    name: str, rules: Rules, actor: str, now: datetime, *, declared: bool = False
) -> Schedule:
    """Return a schedule whose ticks count from now on."""
    return Schedule(
        **{field: getattr(rules, field) for field in Rules.__struct_fields__},
        name=name,
        declared=declared,
        declared_seen_at=now if declared else None,
        cursor_at=now,
        next_at=next_after(rules.when, now),
        created_at=now,
        created_by=actor,
        changed_at=now,
        changed_by=actor,
    )
