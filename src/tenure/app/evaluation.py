"""What workers and servers do for schedules: declare them, decide their ticks. Internal."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from tenure.app.core import Core
from tenure.errors import InvalidInput
from tenure.jobs.schedule_times import next_after
from tenure.store import fires
from tenure.store.tables import schedules
from tenure.store.work import nothing

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


def decide_due(core: Core) -> bool:
    """Decide due ticks; return whether there may be more."""
    core.defaults.refresh()
    declared = tuple(core.handlers.schedules)
    act = partial(fires.evaluate, declared=declared, defaults=core.defaults.known)
    return core.store.write("schedule", act, brings=bool).result() == fires.BATCH


def set_right(core: Core, *, zones: bool) -> None:
    """Let schedules go on if the clock was put back; with `zones`, also if a zone has changed."""
    while core.store.write("schedule", fires.set_right, brings=nothing).result() == fires.BATCH:
        pass
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
