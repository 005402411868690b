"""The simulator: days of a queue's life in seconds, with every kind of fault, from a seed.

The store, the lifecycle and group commit are the real ones, on SQLite in memory. Producers,
workers and operators are simulated, and every commit is compared with what must be true. `tenure
simulate` runs it; the same seed always plays the same world. Time jumps from event to event, and
skips most polls and sweeps that would find nothing to do.
"""

from __future__ import annotations

import gc
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from random import Random

from tenure.simulator.database import START
from tenure.simulator.expected import BrokenRule
from tenure.simulator.operators import SimulatedOperator, SimulatedSweeper
from tenure.simulator.plan import WorldPlan
from tenure.simulator.producers import SimulatedProducer
from tenure.simulator.workers import SimulatedWorker
from tenure.simulator.world import World

HOURS_OF_A_WORLD = 24.0
INSPECTION_HOURS = 6.0
MAX_END_SECONDS = 12 * 3_600.0
"""Time within which every job must be settled once the faults have stopped: more than the longest
delay, the furthest that the clock was stepped, and all attempts with their pauses."""
ALLOCATIONS = 50_000
"""Python looks for cyclic garbage after so many. With its usual 700 that is a tenth of the time."""
SHOWN = 12  # lines of the trace and transitions of the job that a finding shows


@dataclass(frozen=True, slots=True)
class SimulatorFinding:
    """A rule that was broken, and what is needed to see it again."""

    what: str
    seed: int
    hours: float
    at: str  # in queue time
    job: str
    transitions: Sequence[str]  # of the job
    lines: Sequence[str]  # what happened just before


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What was played. `trace` is the same whenever the same seeds are played."""

    seed: int
    hours: float
    worlds: int
    figures: Mapping[str, int]
    trace: str
    violation: SimulatorFinding | None


def simulate(
    seed: int, hours: float, progress: Callable[[float], None] = lambda hours: None
) -> SimulationResult:
    """Play the worlds of `seed`, `seed + 1`, … for so many hours of queue time, a day each.

    Stops at the first broken rule. Calls `progress` after each world with the hours played so far.
    """
    figures: Counter[str] = Counter()
    traces: list[str] = []
    played = 0.0
    violation = None
    with _rare_collections():
        while played < hours and violation is None:
            part = min(HOURS_OF_A_WORLD, hours - played)
            chance = Random(seed + len(traces))
            world = World(WorldPlan(chance), chance)
            violation = _play(world, seed + len(traces), part)
            figures += world.auditor.figures
            traces.append(world.auditor.trace.hexdigest())
            world.database.close()
            played += world.now / 3600 if violation else part
            progress(played)
    trace = traces[0] if len(traces) == 1 else hashlib.sha256("".join(traces).encode()).hexdigest()
    return SimulationResult(seed, played, len(traces), figures, trace, violation)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Collect cyclic garbage less often: there is much short-lived data here, and few cycles."""
    usual = gc.get_threshold()
    gc.set_threshold(ALLOCATIONS, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def _play(world: World, seed: int, hours: float) -> SimulatorFinding | None:
    """Play one world, first with its faults, then without them until every job is settled."""
    plan, auditor = world.plan, world.auditor
    try:
        producers = [SimulatedProducer(world, f"producer {n + 1}") for n in range(plan.producers)]
        for number in range(plan.workers):
            SimulatedWorker(world, number)
        for number in range(plan.sweepers):
            SimulatedSweeper(world, number)
        operator = SimulatedOperator(world, producers)
        inspected = 0.0
        while inspected < hours:
            inspected = min(inspected + INSPECTION_HOURS, hours)
            world.run(inspected * 3600)
            auditor.check_everything()
        world.calm = True
        operator.open_queues()
        end = world.now + MAX_END_SECONDS
        world.run(world.now + 600)  # calls that are on their way arrive
        world.run(end, stop=lambda: not auditor.jobs.open)
        for job in auditor.jobs.open.values():
            late = f"{MAX_END_SECONDS / 3600:.0f} hours after the last fault"
            raise BrokenRule(f"still {job.status} {late}", job)
        auditor.check_everything()
    except BrokenRule as broken:
        return _finding(world, seed, hours, broken)
    except Exception as error:
        error.add_note(f"in queue time {_duration(world.now)} of seed {seed}, hours {hours:g}")
        raise
    return None


def _finding(world: World, seed: int, hours: float, broken: BrokenRule) -> SimulatorFinding:
    job = broken.job
    rows = world.database.history(job.id)[-SHOWN:] if job is not None else []
    return SimulatorFinding(
        what=broken.what,
        seed=seed,
        hours=hours,
        at=_duration(world.now),
        job=f"job {job.number}, {job.id}" if job is not None else "",
        transitions=[
            f"{_duration((row.at - START) / 1000)} {row.event}, attempt {row.attempt},"
            f" token {row.token} {row.detail or ''}".rstrip()
            for row in rows
        ],
        lines=[f"{_duration(at)} {line}" for at, line in list(world.auditor.lines)[-SHOWN:]],
    )


def _duration(seconds: float) -> str:
    return str(timedelta(milliseconds=round(seconds * 1000)))
