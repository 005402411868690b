"""Virtual time and a bad network: events in their order, and what becomes of a message.

A world is one thread that takes the next event from a heap and jumps to its time. All chance comes
from one seeded generator, drawn in the order of events, so the same seed plays the same world.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from random import Random
from typing import Any

from tenure.errors import StoreUnavailable, TenureError
from tenure.simulator.asks import UNKNOWN, Answer, Ask, Asked, Fault
from tenure.simulator.auditor import Auditor
from tenure.simulator.plan import Plan
from tenure.simulator.stage import CRASHES, FAILURES, START, Crash, Stage, StagedSqlite
from tenure.store.commit import Committer

PATIENCE = 10.0
"""Seconds after which a caller takes it that no answer will come."""
MAX_CRASH = 60.0
IDLE_LEFT_OUT = 0.95
"""Share of the asks that find nothing to do, and cannot change a job, that are not played."""


class World:
    """Time, chance, the network, the servers, and who watches them."""

    def __init__(self, plan: Plan, chance: Random) -> None:
        self.plan = plan
        self.chance = chance
        self.stage = Stage()
        self.now = 0.0
        """Seconds since the world began."""
        self.clock_off = 0.0
        """What the store's clock is ahead of that."""
        self.calm = False
        """Whether the faults have stopped, and all jobs must come to their end."""
        self._part_of_it = plan.faults | plan.habits
        self.auditor = Auditor(self.stage, lambda: self.now)
        self.wake: list[Callable[[], None]] = []
        """What is called when there may be work."""
        self.servers = [Server(self, number) for number in range(plan.servers)]
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._ids = 0

    # --- time

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Have `act` called in `seconds`."""
        self._number += 1
        heapq.heappush(self._events, (self.now + seconds, self._number, act))

    def run(self, until: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until `until`, or until `stop` says so."""
        while self._events and self._events[0][0] <= until and not stop():
            self.now, _, act = heapq.heappop(self._events)
            act()

    def show_time(self) -> None:
        """Set the store's clock to what it shows now."""
        self.stage.now = self.store_time()

    def store_time(self) -> int:
        """Milliseconds on the store's clock."""
        return START + round((self.now + self.clock_off) * 1000)

    def jumps_over(self, idle: bool) -> bool:
        """Whether time goes on without an ask, because it would find nothing to do."""
        left_out = idle and self.chance.random() < IDLE_LEFT_OUT
        if left_out:
            self.auditor.count("idle polls and sweeps left out")
        return left_out

    # --- chance

    def has(self, fault: str) -> bool:
        """Whether `fault` (or habit) is part of this world, and not stopped."""
        return not self.calm and fault in self._part_of_it

    def strikes(self, fault: str, odds: float | None = None) -> bool:
        """Whether `fault` happens now: by `odds`, else by the plan's rate."""
        return self.has(fault) and self.chance.random() < (self.plan.rate if odds is None else odds)

    def new_id(self) -> str:
        """A job id as `ids` would make it at this time, by this world's chance."""
        self._ids += 1
        at = START + int(self.now * 1000)
        tail = f"{self.chance.getrandbits(62) | 1 << 63:016x}"
        head = f"{at:012x}7{self._ids & 0xFFF:03x}"
        return f"{head[:8]}-{head[8:12]}-{head[12:]}-{tail[:4]}-{tail[4:]}"

    # --- the network

    def call(self, server: Server, who: str, ask: Ask, then: Callable[[Answer], None]) -> None:
        """Send `ask` to a server; `then` gets one answer, UNKNOWN if none comes in time."""
        answered = False

        def answer(what: Answer) -> None:
            nonlocal answered
            if not answered:
                answered = True
                then(what)

        def reply(what: Answer) -> None:
            if self.strikes("answers lost"):
                self.auditor.count("answers lost")
            else:
                self.later(self._latency(), lambda: answer(what))

        self.later(PATIENCE, lambda: answer(UNKNOWN))
        if self.strikes("requests lost"):
            self.auditor.count("requests lost")
            return
        self.later(self._latency(), lambda: server.receive(who, ask, reply))
        if self.strikes("requests doubled"):
            self.auditor.count("requests doubled")
            again = self.chance.random() * 2 * self.plan.lease
            self.later(again, lambda: server.receive(who, ask, _drop))

    def _latency(self) -> float:
        if self.strikes("slow network"):
            self.auditor.count("messages delayed")
            return self.chance.random() * 2 * self.plan.lease
        return 0.001 + self.chance.random() * 0.02

    def notify(self) -> None:
        """Tell whoever waits for work that there may be some."""
        for wake in self.wake:
            if not self.strikes("hints lost", 0.7):
                self.later(self.chance.random() * 0.01, wake)


def _drop(_: Answer) -> None:
    """Nobody waits for this answer."""


class Server:
    """A process with a store: what arrives is committed together, then answered."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self.name = f"server {number + 1}"
        self._start()

    def _start(self) -> None:
        """Begin without any memory of what was before."""
        self.up = True
        self._waiting: list[tuple[str, Ask, Callable[[Answer], None]]] = []
        self._db = StagedSqlite(self._world.stage)
        self._committer = Committer([self._db], self._world.notify, clock=lambda: self._world.now)

    def receive(self, who: str, ask: Ask, reply: Callable[[Answer], None]) -> None:
        """A request has arrived."""
        if not self.up:
            reply(UNKNOWN)
            return
        self._waiting.append((who, ask, reply))
        if len(self._waiting) == 1:
            waits = self._world.chance.random() * self._world.plan.commit
            self._world.later(waits, self._commit)

    def _commit(self) -> None:
        if not self.up or not self._waiting:
            return
        batch, self._waiting = self._waiting, []
        works = [ask.work() for _, ask, _ in batch]
        fault = self._fault()
        self._world.show_time()
        self._db.arm(fault, self._world.chance.randrange(1, 3_000) if fault else 0)
        try:
            self._committer.commit(self._db, works)
        except Crash:
            self._db.rollback()
        futures: list[Future[Any]] = [work.future for work in works]
        asked = [
            Asked(who, ask, answer_of(future))
            for (who, ask, _), future in zip(batch, futures, strict=True)
        ]
        self._world.auditor.see(asked, committed=self._db.committed, crashed=fault in CRASHES)
        if fault in CRASHES:
            self.crash(fault)
            return
        for (_, _, reply), saw in zip(batch, asked, strict=True):
            reply(saw.answer)

    def _fault(self) -> str:
        kinds: Sequence[str] = ()
        if self._world.strikes("failing commits", 0.02):
            kinds = FAILURES
            self._world.auditor.count("failed commits")
        elif self._world.strikes("server crashes", 0.005):
            kinds = CRASHES
        return self._world.chance.choice(kinds) if kinds else ""

    def crash(self, how: str) -> None:
        """Die, with everything that waited here, and come back after a while."""
        self._world.auditor.count("server crashes")
        self._world.auditor.note(f"{self.name}: {how}")
        self.up = False
        self._world.later(self._world.chance.random() * MAX_CRASH, self._start)


def answer_of(future: Future[Any]) -> Answer:
    """What a caller is told; UNKNOWN as long as nobody told it anything."""
    if not future.done():
        return UNKNOWN
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, StoreUnavailable):
        return UNKNOWN
    if isinstance(error, TenureError):
        return error
    return Fault(error)
