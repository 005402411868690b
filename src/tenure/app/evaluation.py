"""What workers and servers do for schedules: declare them, decide their ticks. Internal."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial

from tenure.app.core import Core
from tenure.errors import InvalidInput
from tenure.jobs.schedule_times import next_after
from tenure.store import fires
from tenure.store.tables import schedules
from tenure.store.work import nothing

log = logging.getLogger(__name__)

PAGE = 500


def declare(core: Core) -> None:
    """Store the schedules that an application declares, where they differ."""
    if core.handlers.schedules:
        core.defaults.refresh()
        act = partial(
            fires.declare,
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
        fires.evaluate,
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
    return number == fires.BATCH


def set_right(core: Core, *, zones: bool) -> None:
    """Repair schedules if the clock was put back; with `zones`, also if a time zone has changed."""
    after: str | None = ""
    while after is not None:
        act = partial(fires.set_right, after=after)
        after = core.store.write("schedule", act, brings=nothing).result()
    value, after = core.store.read.dialect.value, "" if zones else None
    where = f"WHERE name > {value} AND zone <> 'UTC' AND paused_at IS NULL"
    while after is not None:  # read where it is written: each worker has one connection less
        page = partial(schedules.read, rest=f"{where} ORDER BY name LIMIT {PAGE}", values=(after,))
        found = core.store.write("schedule", page, brings=nothing).result()
        for one in found:
            with suppress(InvalidInput):  # a zone that is not known here
                if next_after(one.when, one.cursor_at) != one.next_at:
                    again = partial(fires.recompute, name=one.name)
                    core.store.write("schedule", again, brings=nothing).result()
        after = found[-1].name if found else None
