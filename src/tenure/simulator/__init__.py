"""The simulator: days of a queue's life in seconds, with every kind of fault, from a seed.

The store, the lifecycle and group commit are the real ones, on SQLite in memory. Producers,
workers and operators are simulated, and every commit is compared with what must be true. `tenure
simulate` runs it; the same seed always plays the same world. Time jumps from event to event, and
skips most polls and sweeps that would find nothing to do.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from tenure.simulator import players
from tenure.simulator.database import START
from tenure.simulator.expected import SHOWN, BrokenRule
from tenure.simulator.world import World

HOURS_OF_A_WORLD = 24.0
INSPECTION_SECONDS = 6 * 3_600.0
MAX_END_SECONDS = 12 * 3_600.0
"""Time within which every job must be settled once the faults have stopped: more than the longest
delay, the furthest that the clock was stepped, and all attempts with their pauses."""


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
    trace = hashlib.sha256()
    worlds = 0
    played = 0.0
    violation = None
    while played < hours and violation is None:
        part = min(HOURS_OF_A_WORLD, hours - played)
        world = World(Random(seed + worlds))
        violation = _play(world, seed + worlds, part)
        worlds += 1
        figures += world.figures
        trace.update(world.trace.digest())
        world.database.connection.close()
        played += world.now / 3600 if violation else part
        progress(played)
    return SimulationResult(seed, played, worlds, figures, trace.hexdigest(), violation)


def _play(world: World, seed: int, hours: float) -> SimulatorFinding | None:
    """Play one world, first with its faults, then without them until every job is settled."""
    plan, auditor = world.plan, world.auditor
    try:
        producers = [
            players.SimulatedProducer(world, f"producer {n + 1}") for n in range(plan.producers)
        ]
        for number in range(plan.workers):
            players.SimulatedWorker(world, f"worker {number + 1}")
        for number in range(plan.sweepers):
            players.SimulatedSweeper(world, f"sweeper {number + 1}")
        operator = players.SimulatedOperator(world, producers)
        while world.now < hours * 3600:
            world.run(min(INSPECTION_SECONDS, hours * 3600 - world.now))
            auditor.check_everything()
        world.calm = True
        for queue in plan.queues:
            operator.open_queue(queue)
        end = world.now + MAX_END_SECONDS
        world.run(600)  # calls that are on their way arrive
        while auditor.expected.open and world.now < end:
            world.run(60)
        for job in auditor.expected.open.values():
            late = f"{MAX_END_SECONDS / 3600:.0f} hours after the last fault"
            raise BrokenRule(f"still {job.status} {late}", job)
        auditor.check_everything()
    except BrokenRule as broken:
        return _finding(world, seed, hours, broken)
    except Exception as error:
        error.add_note(f"in queue time {world.elapsed} of seed {seed}, hours {hours:g}")
        raise
    return None


def _finding(world: World, seed: int, hours: float, broken: BrokenRule) -> SimulatorFinding:
    job = broken.job
    history = world.database.history(job.id)[-SHOWN:] if job is not None else []
    return SimulatorFinding(
        what=broken.what,
        seed=seed,
        hours=hours,
        at=str(world.elapsed),
        job=f"job {job.id}" if job is not None else "",
        transitions=[
            f"{row.at - START} {row.event}, attempt {row.attempt},"
            f" token {row.token} {row.detail or ''}".rstrip()
            for row in history
        ],
        lines=list(world.lines),
    )
