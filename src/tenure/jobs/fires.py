"""What becomes of the ticks of a schedule. Pure.

`decide_fires` is the whole decision: which ticks add a job, and by which rule the others add none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec.structs import replace

from tenure.dependency import Dependency
from tenure.jobs.enqueue import CheckedJob, NewJob, TypeOptions, check_job, linked
from tenure.jobs.graph import MAX_LINKS
from tenure.jobs.ids import new_ids
from tenure.jobs.schedule_times import When, count, latest, newest, next_after, zone_of
from tenure.jobs.schedules import MAX_FIRES, Fire, FireOutcome, How, Missed, Overlap, Schedule

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
    for tick, new_id in zip(decision.ticks, new_ids(len(decision.ticks)), strict=True):
        counts[tick.outcome] += tick.count
        job_id = new_id if tick.outcome is FireOutcome.FIRED else None
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
