"""Simulated sweepers and operators: they end leases, prune, cancel, retry, pause, set clocks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from tenure.lifecycle import Cancelled, Retried
from tenure.simulator.calls import UNKNOWN, OperatorCall, PruneCall, QueueCall, SweepCall
from tenure.simulator.expected import SETTLED
from tenure.simulator.producers import SimulatedProducer
from tenure.simulator.world import SimulatedClient, World

KEPT = timedelta(hours=4)
"""Retention of settled jobs: longer than the store's clock is ever stepped back."""
PRUNE_SECONDS = 1_800.0
MAX_AWAY_SECONDS = 900.0
MAX_STEP_SECONDS = 3_600.0  # how far the store's clock is ever off


class SimulatedSweeper(SimulatedClient):
    """A process that ends leases that ran out, and deletes old jobs."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, f"sweeper {number + 1}")
        self._away_until = 0.0
        world.every(max(world.plan.lease, 30.0), self._sweep)
        world.every(PRUNE_SECONDS, self._prune)
        world.every(world.plan.between_faults, self._go_away)

    def _sweep(self) -> None:
        if self._away_until > self.world.now and not self.world.calm:
            return
        if self.world.skips(idle=not self.world.auditor.jobs.any_held()):
            return
        limit = self.world.plan.sweep_limit

        def answer(what: Any) -> None:
            if isinstance(what, list) and len(what) >= limit:
                self._sweep()

        self.send(SweepCall(limit), answer)

    def _prune(self) -> None:
        if self.world.has("pruning"):
            before = datetime.fromtimestamp(self.world.store_time() / 1000, UTC) - KEPT
            self.send(PruneCall(dict.fromkeys(SETTLED, before), 500))

    def _go_away(self) -> None:
        if self.world.counted("sweepers away", 0.5):
            self._away_until = self.world.now + self.world.chance.random() * MAX_AWAY_SECONDS


class SimulatedOperator(SimulatedClient):
    """Cancels and retries jobs, pauses and limits queues, and steps the store's clock."""

    def __init__(self, world: World, producers: Sequence[SimulatedProducer]) -> None:
        super().__init__(world, "operator")
        self._producers = producers
        world.every(2 * world.plan.gap, self._operate)
        world.every(world.plan.between_faults, self._step_clock)

    def _operate(self) -> None:
        chance, world = self.world.chance, self.world
        known = chance.choice(self._producers).known
        if known:
            job_id = chance.choice(known)
            if world.strikes("cancels", 0.5):
                self.send(OperatorCall(job_id, Cancelled(actor="operator")))
            if world.has("operator retries"):
                for other in list(known)[-20:]:
                    if chance.random() < 0.1:
                        self.send(OperatorCall(other, Retried(more_retries=1, actor="operator")))
        queue = chance.choice(world.plan.queues)
        if world.has("pauses"):
            self.send(QueueCall(queue, paused=chance.random() < 0.3))
        if world.has("queue limits"):
            self.send(QueueCall(queue, max_pending=chance.choice((-1, 0, 1, 3, 10))))

    def _step_clock(self) -> None:
        world = self.world
        if world.counted("clock steps", 0.5):
            step = world.chance.choice((1.0, world.plan.lease, MAX_STEP_SECONDS))
            off = world.clock_off + world.chance.choice((-step, step))
            world.clock_off = min(max(off, -MAX_STEP_SECONDS), MAX_STEP_SECONDS)
            world.auditor.note(f"the clock is {world.clock_off:+.0f} s off now")

    def open_queues(self) -> None:
        """Resume every queue and lift its limit; ask again until that is done."""
        for queue in self.world.plan.queues:
            self._open(queue)

    def _open(self, queue: str) -> None:
        def answer(what: Any) -> None:
            if what is UNKNOWN:
                self._open(queue)

        self.send(QueueCall(queue, paused=False, max_pending=-1), answer)
