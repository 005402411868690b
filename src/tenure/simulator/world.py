"""Virtual time and a bad network: events in their order, and what becomes of a message.

A world is one thread that takes the next event from a heap and jumps to its time. All chance comes
from one seeded generator, drawn in the order of events, so the same seed plays the same world.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from concurrent.futures import Future
from random import Random
from typing import Any

from tenure.errors import StoreUnavailable
from tenure.simulator.auditor import Auditor
from tenure.simulator.calls import UNKNOWN, AnsweredCall, SimulatedCall, work_of
from tenure.simulator.database import (
    CRASHES,
    FAILURES,
    START,
    SimulatedCrash,
    SimulatedDatabase,
    SimulatedSqlite,
)
from tenure.simulator.plan import WorldPlan
from tenure.store.commit import Committer

PATIENCE_SECONDS = 10.0  # after this a caller assumes that no answer will come
MAX_DOWN_SECONDS = 60.0
IDLE_LEFT_OUT = 0.95
"""Share of the calls that find nothing to do, and change no job, that are not played."""

Reply = Callable[[Any], None]


class World:
    """Time, chance, the network, the servers, and the auditor who watches them."""

    def __init__(self, plan: WorldPlan, chance: Random) -> None:
        self.plan = plan
        self.chance = chance
        self.database = SimulatedDatabase()
        self.now = 0.0  # seconds since the world began
        self.clock_off = 0.0  # seconds by which the store's clock is ahead of that
        self.calm = False  # whether the faults have stopped, so that all jobs must end
        self.wake: list[Callable[[], None]] = []  # called when there may be work
        self.auditor = Auditor(self.database, lambda: self.now)
        self.servers = [SimulatedServer(self, number) for number in range(plan.servers)]
        self._part_of_it = plan.faults | plan.habits
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._ids = 0

    # --- time

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Call `act` in `seconds`."""
        self._number += 1
        heapq.heappush(self._events, (self.now + seconds, self._number, act))

    def every(self, seconds: float, act: Callable[[], None]) -> None:
        """Call `act` about every so many seconds, for ever."""

        def tick() -> None:
            act()
            self.later(seconds * (0.5 + self.chance.random()), tick)

        self.later(seconds * self.chance.random(), tick)

    def run(self, until: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until `until`, or until `stop()` is true."""
        while self._events and self._events[0][0] <= until and not stop():
            self.now, _, act = heapq.heappop(self._events)
            act()

    def store_time(self) -> int:
        return START + round((self.now + self.clock_off) * 1000)

    def skips(self, idle: bool) -> bool:
        """Return True if a call is not played because it would find nothing to do."""
        if skips := idle and self.chance.random() < IDLE_LEFT_OUT:
            self.auditor.count("idle polls and sweeps left out")
        return skips

    # --- chance

    def has(self, fault: str) -> bool:
        """Return True if `fault` (or a habit) is part of this world, and has not stopped."""
        return not self.calm and fault in self._part_of_it

    def strikes(self, fault: str, odds: float | None = None) -> bool:
        """Return True if `fault` happens now: by `odds`, by default those of the plan."""
        return self.has(fault) and self.chance.random() < (self.plan.rate if odds is None else odds)

    def counted(self, fault: str, odds: float | None = None, *, name: str | None = None) -> bool:
        """As `strikes`; and count it under `name`, by default that of the fault."""
        if struck := self.strikes(fault, odds):
            self.auditor.count(name or fault)
        return struck

    def new_id(self) -> str:
        """Make a job id as `jobs.ids` would at this time, but by this world's chance."""
        self._ids += 1
        at = START + int(self.now * 1000)
        tail = f"{self.chance.getrandbits(62) | 1 << 63:016x}"
        head = f"{at:012x}7{self._ids & 0xFFF:03x}"
        return f"{head[:8]}-{head[8:12]}-{head[12:]}-{tail[:4]}-{tail[4:]}"

    # --- the network

    def call(self, server: SimulatedServer, caller: str, call: SimulatedCall, then: Reply) -> None:
        """Send `call` to a server; `then` gets one answer, UNKNOWN if none comes in time."""
        answered = False

        def answer(what: Any) -> None:
            nonlocal answered
            if not answered:
                answered = True
                then(what)

        def reply(what: Any) -> None:
            if not self.counted("answers lost"):
                self.later(self._latency(), lambda: answer(what))

        self.later(PATIENCE_SECONDS, lambda: answer(UNKNOWN))
        if self.counted("requests lost"):
            return
        self.later(self._latency(), lambda: server.receive(caller, call, reply))
        if self.counted("requests doubled"):
            again = self.chance.random() * 2 * self.plan.lease
            self.later(again, lambda: server.receive(caller, call, lambda _: None))

    def _latency(self) -> float:
        if self.counted("slow network", name="messages delayed"):
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
        self.name = f"server {number + 1}"
        self._start()

    def _start(self) -> None:
        """Start a new process, which remembers nothing."""
        self._up = True
        self._waiting: list[tuple[str, SimulatedCall, Reply]] = []
        self._db = SimulatedSqlite(self._world.database)
        self._committer = Committer([self._db], self._world.notify, clock=lambda: self._world.now)

    def receive(self, caller: str, call: SimulatedCall, reply: Reply) -> None:
        if not self._up:
            reply(UNKNOWN)
            return
        self._waiting.append((caller, call, reply))
        if len(self._waiting) == 1:
            wait = self._world.chance.random() * self._world.plan.commit
            self._world.later(wait, self._commit)

    def _commit(self) -> None:
        if not self._up or not self._waiting:
            return
        batch, self._waiting = self._waiting, []
        works = [work_of(call) for _, call, _ in batch]
        fault = self._fault()
        self._world.database.now = self._world.store_time()
        self._db.arm(fault, self._world.chance.randrange(1, 3_000) if fault else 0)
        try:
            self._committer.commit(self._db, works)
        except SimulatedCrash:
            self._db.rollback()
        answered = [
            AnsweredCall(caller, call, _answer_of(work.future))
            for (caller, call, _), work in zip(batch, works, strict=True)
        ]
        crashed = fault in CRASHES
        self._world.auditor.check(answered, committed=self._db.committed, crashed=crashed)
        if crashed:
            self._crash(fault)
            return
        for (_, _, reply), one in zip(batch, answered, strict=True):
            reply(one.answer)

    def _fault(self) -> str:
        if self._world.counted("failing commits", 0.02, name="failed commits"):
            return self._world.chance.choice(FAILURES)
        if self._world.counted("server crashes", 0.005):
            return self._world.chance.choice(CRASHES)
        return ""

    def _crash(self, how: str) -> None:
        """End, with all calls that waited here, and start again after a while."""
        self._world.auditor.note(f"{self.name}: {how}")
        self._up = False
        self._world.later(self._world.chance.random() * MAX_DOWN_SECONDS, self._start)


def _answer_of(future: Future[Any]) -> Any:
    """Return the answer of a call; UNKNOWN if the store gave none."""
    if not future.done():
        return UNKNOWN
    error = future.exception()
    if error is None:
        return future.result()
    return UNKNOWN if isinstance(error, StoreUnavailable) else error


class SimulatedClient:
    """A process that sends calls to one server, and to another once an answer does not come."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self._server = world.chance.choice(world.servers)

    def send(self, call: SimulatedCall, then: Reply = lambda _: None) -> None:
        def answer(what: Any) -> None:
            if what is UNKNOWN:
                self._server = self.world.chance.choice(self.world.servers)
            then(what)

        self.world.call(self._server, self.name, call, answer)
