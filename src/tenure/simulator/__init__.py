"""Tenure rehearsed: many worlds of queue time in seconds, with every kind of bad luck, by a seed.

The store, the lifecycle and group commit are the real ones, on SQLite in memory; producers, workers
and operators are played. Every commit is compared with what must be true. `tenure simulate` runs
it; the same seed always plays the same world. Time jumps from event to event, and over most polls
and sweeps that would find nothing to do: more than 2,000 hours for a minute of processor time.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from random import Random

from tenure.simulator.lives import Broken
from tenure.simulator.plan import draw
from tenure.simulator.players import Operator, Producer, Sweeper, Worker
from tenure.simulator.stage import START
from tenure.simulator.world import World

HOURS_OF_A_WORLD = 24.0
INSPECTION_HOURS = 6.0
MAX_END = 12 * 3_600.0
"""Seconds within which every job must be settled once the faults have stopped: the longest delay,
the furthest the clock was stepped, and all attempts with their pauses are well within it."""
ALLOCATED = 50_000
"""Objects after which Python looks for cyclic garbage. A tenth of the time, with its usual 700."""
SHOWN = 12
"""Lines of the trace and moves of the job that a failure shows."""


@dataclass(frozen=True, slots=True)
class Violation:
    """What must never happen, happened."""

    what: str
    seed: int
    hours: float  # to play the same world again
    at: str  # in queue time
    job: str
    transitions: Sequence[str]  # of the job
    lines: Sequence[str]  # what happened just before


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What was played. `trace` is the same whenever the same seeds are played."""

    seed: int
    hours: float
    worlds: int
    figures: Mapping[str, int]
    trace: str
    violation: Violation | None


def rehearse(
    seed: int, hours: float, progress: Callable[[float], None] = lambda hours: None
) -> Rehearsal:
    """Play the worlds of `seed`, `seed + 1`, … for so many hours of queue time, a day each.

    Ends at the first violation. `tell` is called after each world with the hours played so far.
    """
    figures: Counter[str] = Counter()
    traces = []
    played = 0.0
    worlds = 0
    violation = None
    with _rare_collections():
        while played < hours and violation is None:
            some = min(HOURS_OF_A_WORLD, hours - played)
            world = _world(seed + worlds)
            violation = _play(world, seed + worlds, some)
            figures += world.auditor.figures
            traces.append(world.auditor.trace.hexdigest())
            world.stage.close()
            played += world.now / 3600 if violation else some
            worlds += 1
            progress(played)
    trace = traces[0] if len(traces) == 1 else _digest(traces)
    return Rehearsal(seed, played, worlds, figures, trace, violation)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Look for cyclic garbage less often: there is much short-lived data here, and few cycles."""
    usual = gc.get_threshold()
    gc.set_threshold(ALLOCATED, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def _digest(traces: Sequence[str]) -> str:
    import hashlib

    return hashlib.sha256("".join(traces).encode()).hexdigest()


def _world(seed: int) -> World:
    chance = Random(seed)
    return World(draw(chance), chance)


def _play(world: World, seed: int, hours: float) -> Violation | None:
    """One world, first with its faults, then without until every job is settled."""
    plan = world.plan
    try:
        producers = [Producer(world, f"producer {n + 1}") for n in range(plan.producers)]
        for number in range(plan.workers):
            Worker(world, number)
        for number in range(plan.sweepers):
            Sweeper(world, number)
        operator = Operator(world, producers)
        inspected = 0.0
        while inspected < hours:
            inspected = min(inspected + INSPECTION_HOURS, hours)
            world.run(inspected * 3600)
            world.auditor.look_at_everything()
        world.calm = True
        operator.settle_down()
        end = world.now + MAX_END
        world.run(world.now + 600)  # what is under way arrives
        world.run(end, stop=lambda: not world.auditor.lives.open)
        for life in world.auditor.lives.open.values():
            raise Broken(
                f"still {life.status} {MAX_END / 3600:.0f} hours after the last fault", life
            )
        world.auditor.look_at_everything()
    except Broken as broken:
        return _violation(world, seed, hours, broken)
    except Exception as error:
        error.add_note(f"in queue time {_shown(world.now)} of seed {seed}, hours {hours:g}")
        raise
    return None


def _violation(world: World, seed: int, hours: float, broken: Broken) -> Violation:
    life = broken.life
    transitions: list[str] = []
    if life is not None:
        for at, event, attempt, token, detail in world.stage.history(life.id)[-SHOWN:]:
            when = _shown((at - START) / 1000)
            transitions.append(
                f"{when} {event}, attempt {attempt}, token {token} {detail}".rstrip()
            )
    return Violation(
        what=broken.what,
        seed=seed,
        hours=hours,
        at=_shown(world.now),
        job=f"job {life.number}, {life.id}" if life is not None else "",
        transitions=transitions,
        lines=[f"{_shown(at)} {line}" for at, line in list(world.auditor.lines)[-SHOWN:]],
    )


def _shown(seconds: float) -> str:
    """A time since the world began."""
    return str(timedelta(milliseconds=round(seconds * 1000)))
