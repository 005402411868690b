"""What one simulated world is made of: its size, its limits, and what goes wrong in it.

Everything is drawn from the seed. Each world has only a subset of all faults (swarm testing): with
all of them at once, each keeps the others from getting far. Limits are tiny, so that edge cases
are common. Some worlds are busy and others quiet; faults and operators keep step with the jobs.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

FAULTS = (
    *("requests lost", "answers lost", "requests doubled", "slow network", "server crashes"),
    *("failing commits", "worker crashes", "worker freezes", "heartbeats missed", "late reports"),
    *("contradicting reports", "forged leases", "clock steps", "hints lost", "sweepers away"),
)
"""What can go wrong in a world."""

HABITS = (
    *("keys", "delays", "priorities", "batches", "bursts", "cancels", "operator retries"),
    *("pauses", "queue limits", "pruning", "handing back", "slow handlers"),
)
"""What people may do with the queue in a world, apart from adding and running jobs."""

AT_ONCE: Mapping[str, Any] = {"base": 0, "factor": 1, "cap": 0}
SOON: Mapping[str, Any] = {"base": 2, "factor": 3, "cap": 60}
LATER: Mapping[str, Any] = {"base": 60, "factor": 2, "cap": 600}
MAX_DELAY_SECONDS = 3_600.0  # longest delay of a new job


class WorldPlan:
    """One world, as its seed draws it. Times are in seconds."""

    def __init__(self, chance: Random) -> None:
        pick = chance.choice
        self.gap = pick((240.0, 900.0, 1_800.0, 3_600.0))  # between two enqueues of one producer
        self.faults = _subset(chance, FAULTS)
        self.habits = _subset(chance, HABITS)
        self.rate = pick((0.01, 0.05, 0.2))  # chance of a network fault, per message
        # Between crashes, freezes, clock steps and absences:
        self.between_faults = self.gap * pick((1.0, 3.0, 10.0))
        self.servers = pick((1, 1, 2, 3))
        self.workers = pick((1, 2, 3))
        self.slots = pick((1, 2, 4))  # jobs that a worker runs at once
        self.ahead = pick((0, 1, 2))  # jobs that it claims beyond them
        self.batch = pick((1, 2, 5))  # most jobs of one claim
        self.producers = pick((1, 2))
        self.sweepers = pick((1, 2))
        self.sweep_limit = pick((1, 3, 500))
        self.queues = pick((("default",), ("default", "mail"), ("a", "b", "c")))
        self.lease = pick((3.0, 10.0, 30.0, 30.0, 120.0))
        self.commit = pick((0.0, 0.005, 0.2, 2.0))  # longest time that a call waits for a commit
        self.poll = pick((60.0, 180.0))
        self.backoffs = pick(((AT_ONCE,), (AT_ONCE, SOON), (SOON, LATER)))
        self.limits = pick(((0, 1, 2, 3), (1,), (2, 3), (3,)))  # max_retries


def _subset(chance: Random, names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name for name in names if chance.random() < 0.5)
