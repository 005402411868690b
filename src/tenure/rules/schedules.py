"""Schedules: when they are due, which job each of their ticks adds, and their check. Pure.

A tick is a time at which a schedule is due. A fire is its outcome. `decide_fires` is the whole
decision: which ticks add a job, and by which rule the others add none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Literal, TypedDict

import msgspec
from msgspec.structs import asdict, replace

from tenure.dependency import Dependency
from tenure.errors import InvalidInput
from tenure.rules.dependencies import MAX_LINKS
from tenure.rules.jobs import CheckedJob, Duration, NewJob, TypeOptions, check_job, linked
from tenure.rules.times import When, check_when, count, latest, newest, next_after, zone_of
from tenure.values import payload as payloads
from tenure.values.durations import Time, positive, seconds
from tenure.values.ids import EPOCH, new_id, new_ids
from tenure.values.names import OPTIONS_BY_NAME, check_choice, check_kind, check_reason, misspelt
from tenure.values.numbers import whole

Missed = Literal["one", "all", "skip"]
"""What becomes of ticks that are late by more than `grace`."""
Overlap = Literal["allow_all", "skip", "buffer_one", "buffer_all", "cancel_other"]
"""What becomes of a tick while the last job of the schedule is not settled."""

MAX_FIRES = 10_000
"""Ticks that one decision, or one backfill, makes into jobs."""
MAX_TIME_KEY_LENGTH = 128
WHEN = When.__struct_fields__


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
    plain = replace(job, options=options)
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


# --- fires ----------------------------------------------------------------------------------------

Defaults = Callable[[str], TypeOptions]
"""The options of a type."""

Key = tuple[str, str]
"""An idempotency key and its fingerprint."""

MAX_BUFFERED = 100
"""Jobs of one schedule that wait for one another, beside those of a backfill."""
LOOKAHEAD = timedelta(seconds=1.5)
"""How much earlier a tick is decided if nothing depends on the job before: it starts in time."""
INSTANT = timedelta(microseconds=1)
RULE_OF: Mapping[Missed, How] = {"skip": How.SKIP, "one": How.ONE, "all": How.CATCH_UP}


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """What is decided of the tick `at`, or of every tick from `at` to `until`."""

    at: datetime
    until: datetime | None = None
    outcome: FireOutcome = FireOutcome.FIRED
    how: How = How.DUE
    waits: bool = False  # its job, until the job before it is settled
    count: int = 1  # how many ticks, up to `MAX_COUNTED` of a cron expression


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What is decided of the ticks up to `cursor_at`, oldest first, and which tick is the next."""

    ticks: tuple[Tick, ...]
    cursor_at: datetime
    next_at: datetime | None


def decide_fires(
    schedule: Schedule,
    now: datetime,
    *,
    is_open: bool = False,
    waiting: int = 0,
    fired: Collection[datetime] = (),
) -> Decision:
    """Decide every tick that is due and not decided yet.

    `is_open` says whether the last job of the schedule is not settled, `waiting` how many of its
    jobs wait for one another. `fired` are ticks after the cursor that have a job.
    """
    when, cursor = schedule.when, schedule.cursor_at
    until = now + LOOKAHEAD if schedule.overlap == "allow_all" else now
    if until <= cursor:  # the clock was set back
        return Decision(ticks=(), cursor_at=cursor, next_at=schedule.next_at)
    late = now - timedelta(seconds=schedule.grace) - INSTANT
    due = newest(when, max(cursor, late), until, MAX_FIRES)
    made_up = _made_up(schedule, now, late, due) if cursor < late else []
    first = [*made_up, *due][:1]
    missed = ticks_between(when, cursor, first[0] - INSTANT if first else late, FireOutcome.MISSED)
    ticks = [Tick(at=at, how=How.CAUGHT_UP) for at in made_up if at not in fired]
    ticks += [Tick(at=at) for at in due if at not in fired]
    decided = [replace(tick, how=RULE_OF[schedule.missed]) for tick in missed]
    decided += with_room(ticks, schedule.overlap, is_open=is_open, waiting=waiting)
    return Decision(ticks=tuple(decided), cursor_at=until, next_at=next_after(when, until))


def _made_up(
    schedule: Schedule, now: datetime, late: datetime, due: list[datetime]
) -> list[datetime]:
    when, cursor, window = schedule.when, schedule.cursor_at, schedule.catch_up_window
    if schedule.missed == "skip" or len(due) == MAX_FIRES or (schedule.missed == "one" and due):
        return []
    if schedule.missed == "one":
        return newest(when, cursor, late, 1)
    start = cursor if window is None else max(cursor, now - timedelta(seconds=window) - INSTANT)
    return newest(when, start, late, schedule.catch_up)


def ticks_between(
    when: When, after: datetime, until: datetime, outcome: FireOutcome
) -> tuple[Tick, ...]:
    """Return every tick in (after, until] as one that adds no job: one range, or none."""
    first = next_after(when, after)
    if first is None or first > until:
        return ()
    last, number = latest(when, first, until), count(when, after, until)
    return (Tick(at=first, until=last, outcome=outcome, count=number),)


def with_room(
    ticks: list[Tick], overlap: Overlap, *, is_open: bool, waiting: int, most: int = MAX_BUFFERED
) -> list[Tick]:
    """Return ticks that all would add a job as `overlap` lets them, oldest first.

    `most` is how many jobs may wait for one another under `buffer_all`.
    """
    room = {
        "allow_all": len(ticks),
        "skip": 1 - is_open,
        "buffer_one": 2 - is_open - waiting,
        "buffer_all": 1 - is_open + most - waiting,
        "cancel_other": 1,
    }[overlap]
    start = max(len(ticks) - room, 0) if overlap == "cancel_other" else 0
    buffers = overlap in ("buffer_one", "buffer_all")
    decided: list[Tick] = []
    for number, tick in enumerate(ticks):
        before = decided[-1] if decided else tick
        if start <= number < start + room:
            decided.append(replace(tick, waits=buffers and (is_open or number > 0)))
        elif (before.outcome, before.how) == (FireOutcome.OVERLAPPED, tick.how):
            decided[-1] = replace(before, until=tick.at, count=before.count + 1)
        else:
            decided.append(replace(tick, outcome=FireOutcome.OVERLAPPED))
    return decided


def job_for(
    schedule: Schedule, tick: Tick, now: datetime, id: str, defaults: TypeOptions
) -> CheckedJob:
    """Return the job of a tick; raises InvalidInput if the job is no longer valid."""
    template, at = schedule.template, tick.at
    spread = blake2b(f"{schedule.name}/{at.isoformat()}".encode(), digest_size=4).digest()
    share = int.from_bytes(spread, "big") / 2**32
    run_at = at + timedelta(milliseconds=int(schedule.jitter * share * 1000))
    options: dict[str, Any] = {**template.options, "unique": None}  # `overlap` says what is unique
    if run_at > now and tick.how is not How.TRIGGER:
        options["run_at"] = run_at
    if "start_by" in options:
        options["start_by"] = max(run_at, now) + timedelta(seconds=options["start_by"])
    payload = template.payload
    if schedule.time_key is not None:
        time = at.astimezone(zone_of(schedule.when.zone)).isoformat()
        payload = {**payload, schedule.time_key: time}
    new_job = NewJob(template.type, payload, options)  # type: ignore[arg-type]
    return check_job(new_job, id, defaults=defaults, actor=actor_of(schedule.name))


def actor_of(name: str) -> str:
    """Return who adds the jobs of a schedule, in the ledger."""
    return f"schedule {name}"


def fire_of(
    name: str, tick: Tick, now: datetime, actor: str | None, job_id: str | None = None
) -> Fire:
    """Return the record of a tick of the schedule `name`."""
    same: Any = {field: getattr(tick, field) for field in ("at", "until", "outcome", "how")}
    return Fire(schedule=name, job_id=job_id, decided_at=now, actor=actor, **same)


class Advance(msgspec.Struct, frozen=True):
    """A schedule after a decision, its fires, and the jobs to add: each with those it waits for."""

    schedule: Schedule
    fires: Sequence[Fire]
    jobs: Sequence[tuple[CheckedJob, Sequence[str]]]
    cancels: str | None  # the id of a job to cancel before


def advance(
    schedule: Schedule,
    decision: Decision,
    now: datetime,
    defaults: Defaults,
    actor: str | None,
    before: Sequence[str] = (),
    key: Key | None = None,
) -> Advance:
    """Return what follows from a decision; raises InvalidInput if the job is no longer valid.

    `before` are the jobs of the schedule that are not settled, for a job that waits. `key` is that
    of the job of a single tick.
    """
    fires: list[Fire] = []
    jobs: list[tuple[CheckedJob, Sequence[str]]] = []
    counts, last = dict.fromkeys(FireOutcome, 0), schedule.last_job_id
    for tick, fresh in zip(decision.ticks, new_ids(len(decision.ticks)), strict=True):
        counts[tick.outcome] += tick.count
        job_id = fresh if tick.outcome is FireOutcome.FIRED else None
        if job_id is not None:
            job = job_for(schedule, tick, now, job_id, defaults(schedule.template.type))
            if key is not None:
                job = replace(job, idempotency_key=key[0], fingerprint=key[1])
            jobs.append((job, before if tick.waits else ()))
            last, before = job_id, [*before, job_id][-MAX_BUFFERED - 1 :]
        fires.append(fire_of(schedule.name, tick, now, actor, job_id))
    after = replace(
        schedule,
        declared_seen_at=now if schedule.declared else None,
        cursor_at=decision.cursor_at,
        next_at=decision.next_at,
        last_job_id=last,
        fired=schedule.fired + counts[FireOutcome.FIRED],
        overlapped=schedule.overlapped + counts[FireOutcome.OVERLAPPED],
        missed_fires=schedule.missed_fires + counts[FireOutcome.MISSED],
    )
    replaces = jobs and schedule.overlap == "cancel_other"
    return Advance(after, fires, jobs, schedule.last_job_id if replaces else None)


def linked_jobs(done: Sequence[Advance]) -> Iterator[list[CheckedJob]]:
    """Yield the jobs that wait, together as long as they have not too many dependencies."""
    together, size = list[CheckedJob](), 0
    for one in done:
        waiting = [(job, parents) for job, parents in one.jobs if parents]
        edges = sum(len(parents) for _, parents in waiting)
        if together and size + edges > MAX_LINKS:
            yield together
            together, size = [], 0
        together += [
            linked(job, edges=tuple(Dependency(id, "settled") for id in parents))
            for job, parents in waiting
        ]
        size += edges
    if together:
        yield together
