"""One simulated world: its plan, virtual time, a bad network, and the servers.

A world is one thread that takes the next event from a heap and jumps to its time. All chance comes
from one seeded generator, drawn in the order of events, so the same seed plays the same world. Each
world has only a subset of all faults (swarm testing): with all of them at once, each keeps the
others from getting far. Limits are tiny, so that edge cases are common. Some worlds are busy and
others quiet; faults and operators keep step with the jobs.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, deque
from collections.abc import Callable
from datetime import datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

from tenure.simulator import database
from tenure.simulator.expected import SHOWN, Auditor
from tenure.store.commit import Committer
from tenure.store.sqlite.connection import to_millis

FAULTS = (
    *("requests lost", "answers lost", "requests doubled", "messages delayed", "server crashes"),
    *("failed commits", "worker crashes", "worker freezes", "heartbeats missed", "late reports"),
    *("old reports repeated or contradicted", "reports under forged leases", "clock steps"),
    *("hints lost", "sweepers away"),
)
"""What can go wrong in a world."""

HABITS = (
    *("keys", "delays", "priorities", "batches", "bursts", "cancels", "operator retries"),
    *("pauses", "queue limits", "pruning", "handing back", "slow handlers"),
)
"""What people may do with the queue in a world, apart from adding and running jobs."""

AT_ONCE: dict[str, Any] = {"base": 0, "factor": 1, "cap": 0}
SOON: dict[str, Any] = {"base": 2, "factor": 3, "cap": 60}
LATER: dict[str, Any] = {"base": 60, "factor": 2, "cap": 600}

PATIENCE_SECONDS = 10.0  # after this a caller assumes that no answer will come
MAX_DOWN_SECONDS = 60.0
IDLE_LEFT_OUT = 0.95
"""Share of the calls that find nothing to do, and change no job, that are not played."""


class WorldPlan:
    """One world, as its seed draws it. Times are in seconds."""

    def __init__(self, chance: Random) -> None:
        pick = chance.choice
        self.gap = pick((240.0, 900.0, 1_800.0, 3_600.0))  # between two enqueues of one producer
        self.has = {name for name in FAULTS if chance.random() < 0.5}
        self.has |= {name for name in HABITS if chance.random() < 0.5}
        self.rate = pick((0.01, 0.05, 0.2))  # chance of a network fault, per message
        # Between crashes, freezes, clock steps and absences:
        self.between_faults = self.gap * pick((1.0, 3.0, 10.0))
        self.servers = pick((1, 1, 2, 3))
        self.workers = pick((1, 2, 3))
        self.slots = pick((1, 2, 4, 6))  # jobs that a worker runs at once
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


class World:
    """Time, chance, the servers, and the auditor who watches them."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.plan = WorldPlan(chance)
        self.figures: Counter[str] = Counter()  # how often each thing happened
        self.trace = hashlib.sha256()
        self.lines: deque[str] = deque(maxlen=SHOWN)  # the last of the trace
        self.database = database.SimulatedDatabase()
        self.auditor = Auditor(self.database, self.figures, self.note)
        self.now = 0.0  # seconds since the world began
        self.clock_off = 0.0  # seconds by which the store's clock is ahead of that
        self.calm = False  # whether the faults have stopped, so that all jobs must end
        self.wake: list[Callable[[], None]] = []  # called when there may be work
        self.servers = [SimulatedServer(self, n + 1) for n in range(self.plan.servers)]
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._ids = 0

    # --- time

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (self.now + seconds, self._number, act))

    def every(self, seconds: float, act: Callable[[], None]) -> None:
        """Call `act` about every so many seconds, for ever."""

        def tick() -> None:
            act()
            self.later(seconds * (0.5 + self.chance.random()), tick)

        self.later(seconds * self.chance.random(), tick)

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._events and self._events[0][0] <= until:
            self.now, _, act = heapq.heappop(self._events)
            act()
        self.now = until

    @property
    def elapsed(self) -> timedelta:
        return timedelta(milliseconds=round(self.now * 1000))

    @property
    def store_time(self) -> datetime:
        return database.START + timedelta(milliseconds=round((self.now + self.clock_off) * 1000))

    def note(self, what: str) -> None:
        """Add a line to the trace, which is the same whenever the same seed is played."""
        line = f"{self.elapsed} {what}"
        self.trace.update(line.encode())
        self.lines.append(line)

    def skips(self, idle: bool) -> bool:
        """Return True if a call is not played because it would find nothing to do."""
        if skips := idle and self.chance.random() < IDLE_LEFT_OUT:
            self.figures["idle polls and sweeps left out"] += 1
        return skips

    # --- chance

    def strikes(self, fault: str, odds: float | None = None) -> bool:
        """Return True if `fault` (or a habit) is part of this world and happens now.

        `odds` are by default those of the plan. In a calm world nothing strikes.
        """
        if self.calm or fault not in self.plan.has:
            return False
        struck = self.chance.random() < (self.plan.rate if odds is None else odds)
        if struck and fault in FAULTS:
            self.figures[fault] += 1
        return struck

    def new_id(self) -> str:
        """Make a job id as `jobs.ids` would at this time, but by this world's chance."""
        self._ids += 1
        stamp = to_millis(database.START + self.elapsed)
        tail = 1 << 63 | self.chance.getrandbits(62)
        return str(UUID(int=stamp << 80 | 7 << 76 | (self._ids & 0xFFF) << 64 | tail))

    def latency(self) -> float:
        if self.strikes("messages delayed"):
            return self.chance.random() * 2 * self.plan.lease
        return 0.001 + self.chance.random() * 0.02

    def notify(self) -> None:
        """Wake the workers: there may be work. Some of these hints are lost."""
        for wake in self.wake:
            if not self.strikes("hints lost", 0.7):
                self.later(self.chance.random() * 0.01, wake)


class SimulatedServer:
    """A process with a store. Calls that arrive close together share a commit."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._name = f"server {number}"
        self._start()

    def _start(self) -> None:
        """Start a new process, which remembers nothing."""
        self._up = True
        self._waiting: list[database.StoreCall] = []
        self._db = database.SimulatedSqlite(self._world.database)
        self._committer = Committer([self._db], self._world.notify, clock=lambda: self._world.now)

    def receive(self, call: database.StoreCall) -> None:
        if not self._up:
            call.reply(database.UNKNOWN)
            return
        self._waiting.append(call)
        if len(self._waiting) == 1:
            wait = self._world.chance.random() * self._world.plan.commit
            self._world.later(wait, self._commit)

    def _commit(self) -> None:
        if not self._up or not self._waiting:
            return
        batch, self._waiting = self._waiting, []
        works = [call.work for call in batch]
        fault = self._choose_fault()
        self._world.database.now = self._world.store_time
        steps = self._world.chance.randrange(1, 3_000)
        self._db.run(lambda: self._committer.commit(self._db, works), fault, steps)
        crashed = fault in database.CRASHES
        self._world.auditor.check(batch, committed=self._db.committed, crashed=crashed)
        if crashed:
            self._world.note(f"{self._name}: {fault}")
            self._up = False
            self._world.later(self._world.chance.random() * MAX_DOWN_SECONDS, self._start)
            return
        for call in batch:
            call.reply(call.answer)

    def _choose_fault(self) -> str:
        if self._world.strikes("failed commits", 0.02):
            return self._world.chance.choice(database.FAILURES)
        if self._world.strikes("server crashes", 0.005):
            return self._world.chance.choice(database.CRASHES)
        return ""


class SimulatedClient:
    """A process that sends calls to one server, and to another once an answer does not come."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self._server = world.chance.choice(world.servers)

    def send(
        self, verb: str, *arguments: Any, then: Callable[[Any], None] = lambda _: None
    ) -> None:
        """Send a call; `then` gets one answer, UNKNOWN if none comes in time."""
        world, server, caller = self.world, self._server, self.name
        answered = False

        def answer(what: Any) -> None:
            nonlocal answered
            if answered:
                return
            answered = True
            if what is database.UNKNOWN:
                self._server = world.chance.choice(world.servers)
            then(what)

        def reply(what: Any) -> None:
            if not world.strikes("answers lost"):
                world.later(world.latency(), lambda: answer(what))

        world.later(PATIENCE_SECONDS, lambda: answer(database.UNKNOWN))
        if world.strikes("requests lost"):
            return
        call = database.StoreCall(caller, verb, arguments, reply)
        world.later(world.latency(), lambda: server.receive(call))
        if world.strikes("requests doubled"):
            double = database.StoreCall(caller, verb, arguments, lambda _: None)
            later = world.chance.random() * 2 * world.plan.lease
            world.later(later, lambda: server.receive(double))
