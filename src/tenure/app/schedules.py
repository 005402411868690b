"""Schedules: `app.schedules` and the decorator `app.schedule`, and how their ticks are decided.

Workers and servers store the schedules that an application declares, decide the ticks that are due,
and repair schedules after a change of the clock or of a time zone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Unpack

from msgspec.structs import replace

from tenure.app.core import Core, Noun
from tenure.app.types import JobType
from tenure.errors import IllegalEdition, InvalidInput
from tenure.rules.jobs import PLAIN_OPTIONS, NewJob, defaults_of
from tenure.rules.schedules import (
    INSTANT,
    MAX_FIRES,
    Defaults,
    Fire,
    Overlap,
    Rules,
    Schedule,
    ScheduleOptions,
    changed_rules,
    check_rules,
    fire_of,
    new_schedule,
)
from tenure.rules.times import (
    MAX_PREVIEWED,
    Preview,
    check_when,
    next_after,
    preview,
    times,
    zone_of,
)
from tenure.store.database import Database
from tenure.store.tables import schedules
from tenure.store.work import nothing
from tenure.values.durations import check_time
from tenure.values.ids import EPOCH
from tenure.values.names import check_choice, check_key, check_kind, check_name, check_reason
from tenure.values.numbers import whole

if TYPE_CHECKING:
    from tenure.app.app import Tenure

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

MAX_LISTED = 500
BACKFILLED = 500
"""Ticks that one transaction of a backfill makes into jobs."""


def schedule(
    app: Tenure,
    *,
    name: str | None = None,
    payload: Mapping[str, Any] | None = None,
    **options: Unpack[ScheduleOptions],
) -> Callable[[JobType[P, R]], JobType[P, R]]:
    """Add jobs of a type regularly: `@app.schedule(cron="10 3 * * *")` above `@app.job`.

    Or call the result with a job type: `app.schedule(every="90s", name="poll")(poll)`. The schedule
    is stored when a worker, or a server with this application, starts. Only such processes evaluate
    it, so that it ends with the last program that declares it.

    - `name`: of the schedule, 1 to 128 of `A-Z a-z 0-9 _ : - .`. Default: that of the job type.
    - `payload`: the handler's arguments by name. Default: None, none.
    - `cron`: five fields, or `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`; at most 200
      characters.
    - `every`: a duration of at least a second: at its multiples since 1970 UTC, plus `offset`, a
      duration that is less (default: 0).
    - `at`: an aware datetime: once. Of `cron`, `every` and `at` give one.
    - `zone`: the IANA name of the zone whose clocks `cron` means. Default: `UTC`.
    - `starts_at`, `ends_at`: aware datetimes, the first and the last that may be due. Default:
      None.
    - `jitter`: a duration up to which each job is put off, the same for a tick everywhere. Default:
      0.
    - `time_key`: the argument that gets the time of the tick, as RFC 3339 with the offset of the
      zone. Default: None.
    - `missed`: what happens to ticks that no process fired within `grace` (default: 60 s):
      `one` (default) adds a job for the latest, if no newer one is due; `all` for the newest
      `catch_up` (1 to 10,000, default: 100) of the last `catch_up_window` (a duration, default:
      None, of all time); `skip` for none.
    - `overlap`: what happens to a tick while the last job is not settled: `allow_all` (default)
      adds its job; `skip` adds none; `buffer_one` and `buffer_all` add one, or up to 100, that wait
      for one another; `cancel_other` cancels the last one.
    - `note`: text for people, at most 500 characters. Default: None.

    Returns a decorator, which returns the job type. That raises InvalidInput, and TypeError if the
    arguments do not fit the function.
    """

    def declare(job_type: JobType[P, R]) -> JobType[P, R]:
        if not isinstance(job_type, JobType):
            raise InvalidInput("write @app.schedule above @app.job, for it takes a job type")
        check_kind(payload or {}, Mapping, "the handler's arguments by name", "$.payload")
        given, key = dict(payload or {}), options.get("time_key")
        sample: Any = job_type
        try:
            job: NewJob = sample.new_job(**given, **({key: EPOCH.isoformat()} if key else {}))
        except TypeError as error:
            raise TypeError(f"payload= of a schedule for {error}") from error
        job = NewJob(job.type, {n: v for n, v in job.payload.items() if n != key}, job.options)
        rules = check_rules(job, options)
        own = check_name(name or job_type.name, "schedule", "$.name")
        app.core.handlers.add_schedule(own, rules)
        return job_type

    return declare


class Schedules(Noun):
    """The schedules of one database. Workers beside it, and servers, evaluate them."""

    def create(
        self,
        name: str,
        job: NewJob,
        *,
        actor: str | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> Schedule:
        """Add a schedule, whose first tick is after now.

        - `name`: 1 to 128 of `A-Z a-z 0-9 _ : - .`.
        - `job`: the job that each tick adds: `send.new_job(...)` or `NewJob(type, payload, {})`. Of
          its options `delay`, `run_at`, `idempotency_key` and `actor` are refused, and `start_by`
          is a duration.
        - `actor`: who makes it. Default: the application's actor.
        - `options`: those of `app.schedule`.

        Returns the schedule. Raises InvalidInput, also if there is one of this name, or if its last
        tick is past.
        """
        check_name(name, "schedule", "$.name")
        rules, by = self._fitting(check_rules(job, options)), self._core.signed(actor)

        def act(db: Database) -> Schedule:
            made = new_schedule(name, rules, by, db.now())
            if made.next_at is None:
                path = "$.ends_at" if rules.when.at is None else "$.at"
                raise InvalidInput("it is over already: no tick would be due", path=path)
            if not schedules.add(db, made):
                raise InvalidInput(f"there is a schedule called {name} already", path="$.name")
            return schedules.get(db, name)

        return self._write(act)

    def update(
        self,
        name: str,
        *,
        job: NewJob | None = None,
        edition: int | None = None,
        actor: str | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> Schedule:
        """Change a schedule. What is due before now is decided by the old rules.

        Where their job is no longer valid, as after a change of its type, these ticks are missed.

        - `name`: the schedule.
        - `job`: another job for each tick. Default: None, the same.
        - `edition`: change it only if it still has this edition. Default: None, whatever it has.
        - `actor`: who changes it. Default: the application's actor.
        - `options`: what changes; None sets the default. One of `cron`, `every` and `at` replaces
          the other two.

        Returns the schedule, whose edition is one higher. Raises ScheduleNotFound, InvalidInput,
        and IllegalEdition if the edition is another one, or the schedule is declared in code.
        """
        by, defaults = self._core.signed(actor), self._defaults()

        def act(db: Database) -> Schedule:
            old = _of_edition(schedules.hold(db, name), edition)
            if old.declared:
                raise IllegalEdition(name, old.edition, "it is declared in code, change it there")
            rules = self._fitting(changed_rules(old, job, options))
            return schedules.change(db, old, rules, by, defaults)

        return self._write(act)

    def get(self, name: str) -> Schedule:
        """Return a schedule. Raises ScheduleNotFound."""
        return schedules.get(self._core.store.read, name)

    def pause(self, name: str, *, actor: str | None = None, reason: str | None = None) -> Schedule:
        """Pause a schedule: its ticks add no jobs until it is resumed.

        - `name`: the schedule; one that is paused does not change.
        - `actor`: who pauses it. Default: the application's actor.
        - `reason`: why, at most 500 characters. Default: None.

        Returns the schedule. Raises ScheduleNotFound or InvalidInput.
        """
        return self._set(name, actor, paused=True, reason=check_reason(reason))

    def resume(self, name: str, *, catch_up: bool = False, actor: str | None = None) -> Schedule:
        """Resume a schedule: its ticks add jobs again.

        - `name`: the schedule; one that is not paused does not change.
        - `catch_up`: treat the ticks since the pause as the schedule's `missed` says. Default:
          False: they are on record as `paused`, and add no job.
        - `actor`: who resumes it. Default: the application's actor.

        Returns the schedule. Raises ScheduleNotFound.
        """
        return self._set(name, actor, paused=False, catch_up=catch_up)

    def trigger(
        self,
        name: str,
        *,
        overlap: Overlap | None = None,
        key: str | None = None,
        actor: str | None = None,
    ) -> Fire:
        """Add the job of a schedule now, also of one that is paused.

        - `name`: the schedule.
        - `overlap`: instead of what the schedule says. Default: None, as it says.
        - `key`: the idempotency key of the job. Once it has a job, a call with it and the same
          `overlap` adds none and returns the fire of that job. Default: None.
        - `actor`: who triggers it. Default: the application's actor.

        Returns the fire; its outcome is `overlapped`, without a job, if `overlap` says so. Raises
        ScheduleNotFound, InvalidInput or KeyConflict.
        """
        by, defaults = self._core.signed(actor), self._defaults()
        if overlap is not None:
            check_choice(overlap, Overlap, "$.overlap")
        asked = f"trigger {name} {overlap or ''}"
        own = None if key is None else (check_key(key, "$.key"), sha256(asked.encode()).hexdigest())

        def act(db: Database) -> Fire:
            schedule = schedules.hold(db, name)
            if overlap is not None:
                schedule = replace(schedule, overlap=overlap)
            return schedules.trigger(db, schedule, by, defaults, own)

        return self._write(act)

    def backfill(
        self,
        name: str,
        start: datetime,
        end: datetime,
        *,
        overlap: Overlap = "buffer_all",
        queue: str | None = None,
        priority: int | None = None,
        dry_run: bool = False,
        actor: str | None = None,
    ) -> list[Fire]:
        """Add the jobs of the ticks from `start`, before `end`, that have none, oldest first.

        Repeating it adds nothing twice. Also ticks that are on record without a job get one.

        - `name`: the schedule.
        - `start`, `end`: aware datetimes, `end` not before `start`; ticks to come are left out. At
          most 10,000 ticks.
        - `overlap`: as of a schedule; there may be more than 100 jobs that wait. Default:
          `buffer_all`.
        - `queue`, `priority`: of the jobs. Default: None, as the schedule says.
        - `dry_run`: add nothing, return what would be. Default: False.
        - `actor`: who asks for it. Default: the application's actor.

        Returns the fires. Raises ScheduleNotFound or InvalidInput.
        """
        by = self._core.signed(actor)
        check_choice(overlap, Overlap, "$.overlap")
        given = {"queue": queue, "priority": priority}
        options = {option: value for option, value in given.items() if value is not None}
        defaults_of(options, PLAIN_OPTIONS)
        now = self._core.clock()
        start, end = check_time(start, "$.start"), check_time(end, "$.end")
        if end < start:
            raise InvalidInput("it is before the start: swap the two", path="$.end")
        due = times(self.get(name).when, start - INSTANT, min(end - INSTANT, now))
        wanted = list(islice(due, MAX_FIRES + 1))
        if len(wanted) > MAX_FIRES:
            raise InvalidInput(f"more than {MAX_FIRES} ticks: make it shorter", path="$.end")

        if dry_run:
            schedule = replace(self.get(name), overlap=overlap)
            planned = schedules.plan(self._core.store.read, schedule, wanted)
            return [fire_of(name, tick, now, by) for tick in planned]
        defaults = self._defaults()

        def act(db: Database, some: list[datetime]) -> list[Fire]:
            schedule = schedules.hold(db, name)
            template = replace(schedule.template, options=schedule.template.options | options)
            schedule = replace(schedule, overlap=overlap, template=template)
            return schedules.backfill(db, schedule, some, by, defaults)

        made: list[Fire] = []
        # With others, few of the ticks have jobs: which, is decided of all of them at once.
        size = BACKFILLED if overlap in ("allow_all", "buffer_all") else MAX_FIRES
        for first in range(0, len(wanted), size):
            made += self._write(partial(act, some=wanted[first : first + size]))
        return made

    def delete(self, name: str, *, edition: int | None = None) -> Schedule:
        """Delete a schedule and the record of its fires; return it. Its jobs stay.

        - `name`: the schedule. One that is declared in code comes back when a process that declares
          it starts.
        - `edition`: delete it only if it still has this edition. Default: None, whatever it has.

        Raises ScheduleNotFound, and IllegalEdition if the edition is another one.
        """

        def act(db: Database) -> Schedule:
            schedule = _of_edition(schedules.hold(db, name), edition)
            schedules.delete(db, name)
            return schedule

        return self._write(act)

    def next(self, name: str, count: int = 5) -> list[datetime]:
        """Return the next ticks of a schedule, in its zone, also of one that is paused.

        - `name`: the schedule.
        - `count`: 1 to 100. Default: 5.

        Raises ScheduleNotFound or InvalidInput.
        """
        number = whole(count, 1, MAX_PREVIEWED, "$.count")
        found = self.get(name)
        cursor = max(found.cursor_at, self._core.clock()) if found.paused_at else found.cursor_at
        zone = zone_of(found.when.zone)
        return [at.astimezone(zone) for at in islice(times(found.when, cursor), number)]

    def preview(self, count: int = 5, **options: Unpack[ScheduleOptions]) -> Preview:
        """Say when a schedule of these options would be due; nothing is stored.

        - `count`: how many ticks, 1 to 100. Default: 5.
        - `options`: `cron`, `every`, `offset`, `at`, `zone`, `starts_at` and `ends_at`, as
          `app.schedule` has them.

        Returns a `Preview`: `times`, `in_words` and `unusual_days`. Raises InvalidInput.
        """
        given: Any = options
        return preview(check_when(**given), self._core.clock(), count)

    def _defaults(self) -> Defaults:
        self._core.defaults.refresh()
        return self._core.defaults.known

    def _set(self, name: str, actor: str | None, **change: Any) -> Schedule:
        by, defaults = self._core.signed(actor), self._defaults()

        def act(db: Database) -> Schedule:
            return schedules.set_paused(db, schedules.hold(db, name), by, defaults, **change)

        return self._write(act)

    def _fitting(self, rules: Rules) -> Rules:
        """Return the rules, unless a handler that is known here would refuse each of their jobs."""
        handler, key = self._core.handlers.find(rules.template.type), rules.time_key
        names_all = handler is not None and handler.decoder is not None and handler.others is None
        if key is not None and handler and names_all and key not in handler.fields:
            said = "the handler has no argument of this name; give the one that is to get the time"
            raise InvalidInput(said, path="$.time_key")
        return rules

    def _write(self, act: Callable[[Database], T]) -> T:
        return self._core.store.write("schedule", act).result()

    def fires(self, name: str, *, limit: int = 50, before: datetime | None = None) -> list[Fire]:
        """Return the past ticks of a schedule and their outcomes, newest first.

        - `name`: the schedule.
        - `limit`: 1 to 500. Default: 50. The rows of one tick are not parted, so there may be more.
        - `before`: only fires of ticks before this time, for the next page. Default: None.

        Raises ScheduleNotFound or InvalidInput.
        """
        most, read = whole(limit, 1, MAX_LISTED, "$.limit"), self._core.store.read
        self.get(name)
        until = schedules.LATEST if before is None else check_time(before, "$.before")
        return schedules.page(read, [name], most, until)

    def list(self, *, limit: int = 500, after: str = "") -> list[Schedule]:
        """Return schedules by name.

        - `limit`: 1 to 500. Default: 500.
        - `after`: only those whose name follows, for the next page. Default: all.

        Raises InvalidInput.
        """
        read, most = self._core.store.read, whole(limit, 1, MAX_LISTED, "$.limit")
        if after:
            check_name(after, "schedule", "$.after")
        rest = f"WHERE name > {read.dialect.value} ORDER BY name LIMIT {most}"
        return schedules.read(read, rest, (after or "",))


def _of_edition(schedule: Schedule, edition: int | None) -> Schedule:
    if edition not in (None, schedule.edition):
        raise IllegalEdition(schedule.name, schedule.edition, "it was changed since you read it")
    return schedule


# --- evaluation -----------------------------------------------------------------------------------

log = logging.getLogger(__name__)

PAGE = 500


def declare(core: Core) -> None:
    """Store the schedules that an application declares, where they differ."""
    if core.handlers.schedules:
        core.defaults.refresh()
        act = partial(
            schedules.declare,
            declared=core.handlers.schedules,
            actor=core.actor,
            defaults=core.defaults.known,
        )
        core.store.write("schedule", act, brings=nothing).result()


def decide_due(core: Core, left: set[str]) -> bool:
    """Decide due ticks; return whether there may be more.

    Schedules that this process cannot decide, or whose jobs the database refuses, are logged, added
    to `left`, and passed over while they are in it.
    """
    core.defaults.refresh()
    act = partial(
        schedules.evaluate,
        declared=tuple(core.handlers.schedules),
        defaults=core.defaults.known,
        left=tuple(left),
    )
    written = core.store.write("schedule", act, brings=lambda answer: bool(answer[0]))
    number, undecided = written.result()
    for name, error in undecided.items():
        log.warning(
            "schedule %s is left for a minute, or to a process that can decide it: %s", name, error
        )
    left.update(undecided)
    return number == schedules.BATCH


def set_right(core: Core, *, zones: bool) -> None:
    """Repair schedules if the clock was put back; with `zones`, also if a time zone has changed."""
    after: str | None = ""
    while after is not None:
        act = partial(schedules.set_right, after=after)
        after = core.store.write("schedule", act, brings=nothing).result()
    value, after = core.store.read.dialect.value, "" if zones else None
    where = f"WHERE name > {value} AND zone <> 'UTC' AND paused_at IS NULL"
    while after is not None:  # read where it is written: each worker has one connection less
        page = partial(schedules.read, rest=f"{where} ORDER BY name LIMIT {PAGE}", values=(after,))
        found = core.store.write("schedule", page, brings=nothing).result()
        for one in found:
            with suppress(InvalidInput):  # a zone that is not known here
                if next_after(one.when, one.cursor_at) != one.next_at:
                    again = partial(schedules.recompute, name=one.name)
                    core.store.write("schedule", again, brings=nothing).result()
        after = found[-1].name if found else None
