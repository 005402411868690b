"""Claims under random limits start as many jobs as the rules allow, no fewer and no more."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import pytest

from tenure import PerPartition, Tenure
from tenure.rules.queues import Rate
from tenure.rules.reports import Lease
from tests.support.store import StoreHarness, new_job, report_completed, report_released

PARTITIONS = ("", "a", "b", "c")
STEPS = 120


@dataclass
class Expected:
    """What may start, computed with nothing but the rules."""

    rate: Rate | None = None
    per_rate: Rate | None = None
    max_running: int | None = None
    per_max_running: int | None = None
    now: int = 0
    tat: dict[str | None, int] = field(default_factory=lambda: defaultdict(int))
    pending: Counter[str] = field(default_factory=Counter)
    running: Counter[str] = field(default_factory=Counter)

    def change(self, chance: random.Random) -> dict[str, Any]:
        """Choose limits. Nobody then waits longer than by the new rates."""
        self.max_running = chance.choice((None, 0, 2, 5))
        self.per_max_running = chance.choice((None, 1, 2))
        rates = (None, None, Rate(6, 2.0, 3), Rate(10, 1.0, 1), Rate(5, 3.0, 5))
        self.rate, self.per_rate = chance.choice(rates), chance.choice(rates)
        for place in [*self.tat]:
            rate = self.rate if place is None else self.per_rate
            most = self.now + (rate.burst * rate.every if rate else 0)
            self.tat[place] = min(self.tat[place], most)
        per = self.per_rate
        divided = PerPartition(self.per_max_running, per and str(per), per and per.burst)
        given = {"max_running": self.max_running, "per_partition": divided}
        return {**given, "rate": self.rate and str(self.rate), **self._burst()}

    def _burst(self) -> dict[str, int]:
        return {"burst": self.rate.burst} if self.rate else {}

    def room(self, partition: str | None) -> int:
        """How many of a partition (None: of the queue) may start now."""
        whole = partition is None
        rate = self.rate if whole else self.per_rate
        most = self.max_running if whole else self.per_max_running
        taken = self.running.total() if partition is None else self.running[partition]
        rooms = [10**6 if most is None else most - taken]
        if rate:
            used = max(self.tat[partition] - self.now, 0)
            rooms.append(rate.burst - ceil(used / rate.every))
        return max(0, min(rooms))

    def starts(self) -> int:
        """How many jobs may start now."""
        each = (min(self.pending[name], self.room(name)) for name in PARTITIONS)
        return min(sum(each), self.room(None))

    def start(self, partition: str) -> None:
        assert self.room(partition) > 0
        assert self.room(None) > 0
        self.pending[partition] -= 1
        self.running[partition] += 1
        for place, rate in ((None, self.rate), (partition, self.per_rate)):
            if rate:
                self.tat[place] = max(self.tat[place], self.now) + rate.every


@pytest.mark.parametrize("seed", range(3))
def test_claims_start_what_the_rules_allow(harness: StoreHarness, seed: int) -> None:
    chance = random.Random(seed)
    with Tenure(harness.url) as app:
        expected, held = Expected(), list[Lease]()
        expected.now = round(harness.clock.now.timestamp() * 1_000_000)
        for step in range(STEPS):
            if step % 12 == 0:
                app.queues.limit("q", **expected.change(chance))
                names = [chance.choice(PARTITIONS) for _ in range(12)]
                jobs = [new_job(queue="q", partition=name or None) for name in names]
                harness.add_all(*jobs)
                expected.pending += Counter(names)
            limit = chance.randrange(1, 9)
            leases, must = harness.claim(limit), min(limit, expected.starts())
            assert len(leases) == must, f"step {step}"
            for lease in leases:
                expected.start(harness.get(lease.id).partition or "")
            held += leases
            chance.shuffle(held)
            for lease in held[: chance.randrange(0, 4)]:
                held.remove(lease)
                partition = harness.get(lease.id).partition or ""
                expected.running[partition] -= 1
                returned = chance.random() < 0.3
                harness.report((report_released if returned else report_completed)(lease))
                expected.pending[partition] += returned
            seconds = chance.choice((0, 0.001, 0.05, 0.4, 2))
            harness.clock.advance(seconds)
            expected.now += round(seconds * 1_000_000)
