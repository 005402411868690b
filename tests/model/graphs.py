"""Random graphs of jobs, played on a real store and on the reference, compared row by row.

Jobs wait for others, and in their attempts for signals; they sleep, are handed back, lose their
leases, come too late, and are cancelled and tried again.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from tenure import Dependency
from tenure.dependency import Meets
from tenure.errors import IllegalTransition
from tenure.events import Cancelled, Retried, Unblocked
from tenure.retry import RetryPolicy
from tenure.rules import dependencies
from tenure.rules.jobs import LinkedJob
from tenure.rules.reports import Answer, ClaimRequest, Outcome, Report, Wait
from tenure.rules.signals import NewSignal
from tenure.rules.steps import Record
from tenure.store import Store, migrate
from tenure.store.tables import signals
from tenure.values.ids import new_ids
from tenure.values.payload import JsonText
from tests.model.graph_reference import Bounds, Graph, Node
from tests.support.clock import Clock
from tests.support.raw_sql import EPOCH, RawSql

AT_ONCE = RetryPolicy(base=0, factor=1, cap=0)
MEETS: tuple[Meets, ...] = ("completed", "completed", "completed", "settled", "failed")
GO = "go"
"""The signal that jobs wait for."""
LEASE = 60_000  # this and all times are milliseconds
PAUSES = (0, 1, 5_000)
STEPS_OF_TIME = (0, 1, 1_000, 5_000, LEASE - 1, LEASE, LEASE + 1)
ROWS = """SELECT id, status, event, attempts, token, need, spare, needs, coalesce(followed, 0),
    coalesce(snoozes, 0), run_at, lease_expires_at
FROM {job} WHERE id >= ? ORDER BY id"""
BESIDE = {
    "wait": "SELECT job_id, name, number, expires_at FROM {wait} WHERE job_id >= ?",
    "signal": "SELECT job_id, count(*) FROM {signal} WHERE job_id >= ? GROUP BY job_id",
    "step": "SELECT job_id, name, token FROM {step} WHERE job_id >= ? ORDER BY job_id, number",
}
LEDGER = "SELECT job_id, event FROM {transition} WHERE job_id >= ? ORDER BY seq"
AGAIN = re.compile("skipped( restored skipped)+")
OUTCOMES = {
    "completed": 8,
    "failed": 3,
    "gave_up": 2,
    "released": 1,
    "interrupted": 1,
    "snoozed": 1,
    "suspended": 3,
}
"""How an attempt ends, and how often."""


class Play:
    """One history."""

    def __init__(
        self, store: Store, raw: RawSql, clock: Clock, seed: object, pace: int, **graph: Any
    ) -> None:
        self.chance = random.Random(str(seed))
        self.pace = pace  # how much happens in one step
        self.store, self.raw, self.clock = store, raw, clock
        self.graph = Graph(**graph)
        self.graph.now = millis(clock.now)
        self.leases: dict[str, str] = {}  # job -> the lease of its attempt
        (self.first,) = new_ids(1)
        self.uncertain = set[str]()  # released by several endings at once: the last need differs

    # --- growing

    def add(self, count: int) -> None:
        """Add jobs in one request, behind those that are there and behind each other."""
        nodes = list[Node]()
        for id in new_ids(count):
            near = self.chance.choice((5, 5, 30)) * self.pace
            known = [*self.graph.nodes, *(node.id for node in nodes)][-near:]
            most = min(len(known), self.chance.choice((0, 1, 1, 2, 4, 20)))
            edges = {id: self.chance.choice(MEETS) for id in self.chance.sample(known, most)}
            needs = None
            if edges and self.chance.random() < 0.4:
                needs = self.chance.randint(1, len(edges))
            if needs == len(edges) or (self._gated(edges) and needs != 1):
                needs = None
            node = Node(id, edges, needs, max_retries=self.chance.randint(0, 3))
            node.run_at = self.graph.now + self.chance.choice((0, 0, *PAUSES))
            if self.chance.random() < 0.1:
                node.start_by = self.graph.now + self.chance.choice((1, 5_000, 5 * LEASE))
            nodes.append(node)
        self.store.add([linked(node) for node in nodes]).result()
        self.graph.add(nodes)

    def _gated(self, edges: Mapping[str, str]) -> bool:
        return self.graph.gated_above is not None and len(edges) > self.graph.gated_above[1]

    # --- one step

    def step(self) -> str:
        """Something happens; returns what."""
        weights = {
            self.work: 13,
            self.cancel: 1,
            self.retry: 3,
            self.unblock: 1,
            self.signal: 2,
            self.let_time_pass: 2,
            self.sweep: 3,
        }
        (step,) = self.chance.choices([*weights], [*weights.values()])
        step()
        self.compare()
        return step.__name__

    def work(self) -> None:
        """Claim, then report some of what is held, in one request."""
        request = ClaimRequest(
            worker="w", limit=self.pace * self.chance.randint(0, 5), lease_seconds=LEASE / 1000
        )
        for lease in self.store.exchange((), request).result().leases:
            self.graph.claim(lease.id, millis(lease.lease_expires_at))
            self.leases[lease.id] = lease.lease_id
        held = sorted(self.leases)
        ending = self.chance.sample(
            held, min(len(held), self.pace * self.chance.choice((1, 1, 2, 4)))
        )
        said = self.chance.choices([*OUTCOMES], [*OUTCOMES.values()], k=len(ending))
        self.report(dict(zip(ending, said, strict=True)))

    def report(self, outcomes: Mapping[str, str]) -> None:
        """End attempts. One for which a signal has come keeps a step that says so, before."""
        for id in outcomes:
            node = self.graph.nodes[id]
            if len(node.steps) < node.signals:
                step = Record(f"{GO}.{len(node.steps)}", len(node.steps), None)
                self.store.ask(id, self.leases[id], step).result()
                node.steps.append((step.name, node.token))
        delays = {id: self.chance.choice(PAUSES) for id in outcomes}
        reports = [self._said(id, event, delays[id]) for id, event in outcomes.items()]
        verdicts = self.store.exchange(reports, None).result().verdicts
        assert {verdict.answer for verdict in verdicts} <= {Answer.RECORDED}
        self.look_at_overdue()
        waiting = self.waiting()
        # As the store does: completions are recorded first.
        for id, event in sorted(outcomes.items(), key=lambda one: one[1] != "completed"):
            if event in ("completed", "failed", "gave_up"):
                self.graph.end(id, event, delays[id])
            else:
                until = self.graph.now + delays[id] if delays[id] else None
                self.graph.hand_back(id, event, delays[id], until)
                if event == "suspended":
                    self.uncertain.discard(id)
        if len(outcomes) > 1:
            self.note_released(waiting)

    def _said(self, id: str, event: str, delay: int) -> Report:
        wait = None
        if event == "suspended":
            until = self.clock.now + timedelta(milliseconds=delay) if delay else None
            wait = Wait(GO, len(self.graph.nodes[id].steps) + 1, until)
        return Report(
            id,
            self.leases.pop(id),
            Outcome.FAILED if event == "gave_up" else Outcome(event),
            error="boom",
            retryable=event != "gave_up",
            delay=delay / 1000,
            wait=wait,
        )

    def cancel(self) -> None:
        if node := self._some("waiting", "pending", "processing"):
            self.store.apply(node.id, Cancelled()).result()
            self.leases.pop(node.id, None)
            self.look_at_overdue()
            self.graph.end(node.id, "cancelled")

    def retry(self) -> None:
        """Mostly one whose failure had others skipped."""
        nodes = self.graph.nodes
        failed = [node for node in nodes.values() if node.status == "failed"]
        behind = [n for n in failed if any(nodes[id].is_skipped for id in n.followers)]
        if failed:
            node = self.chance.choice(behind or failed)
            change = self.store.apply(node.id, Retried(more_retries=1))
            if node.start_by is not None and node.start_by <= self.graph.now:
                assert isinstance(change.exception(), IllegalTransition)
                return
            change.result()
            self.look_at_overdue()
            self.graph.retry(node.id, 1)

    def unblock(self) -> None:
        if (node := self._some("waiting")) and self.chance.random() < 0.3:
            self.store.apply(node.id, Unblocked(need=0)).result()
            self.graph.unblock(node.id)

    def signal(self) -> None:
        """Send what some wait for, and some do not wait for yet."""
        for _ in range(self.pace):
            waiting = [node for node in self.graph.nodes.values() if node.awaited]
            node = self.chance.choice(waiting) if waiting else self._some("pending", "processing")
            if node:
                self.send(node)

    def send(self, node: Node) -> None:
        signal = NewSignal(GO, JsonText("1"), None, "ada")
        self.store.write("signal", partial(signals.send, job_id=node.id, signal=signal)).result()
        self.graph.signal(node.id)

    def let_time_pass(self, step: int | None = None) -> None:
        step = self.chance.choice(STEPS_OF_TIME) if step is None else step
        self.graph.now = millis(self.clock.advance(step / 1000))

    def sweep(self) -> None:
        """All that is to be done once a second."""
        now, waiting = self.graph.now, self.waiting()
        while ended := self.store.sweep().result():
            self.look_at_overdue()
            for steps in ended:
                self.leases.pop(steps[0].id)
                assert (self.graph.nodes[steps[0].id].lease_ends or now) <= now
                self.graph.end(steps[0].id, "lease_expired")
        while late := self.store.expire().result():
            self.look_at_overdue()
            self.graph.expire([steps[0].id for steps in late])
        while over := self.store.time_out().result():
            for steps in over:
                awaited = self.graph.nodes[steps[0].id].awaited
                assert awaited is not None
                assert (awaited.expires_at or now) <= now
                self.graph.unblock(steps[0].id)
        while self.store.follow().result():
            pass
        self.graph.count_overdue({})
        self.graph.skip()
        self.note_released(waiting)
        for node in self.graph.nodes.values():
            assert node.lease_ends is None or node.lease_ends > now
            assert node.rests or node.start_by is None or node.start_by > now or node.lease_ends

    def note_released(self, waiting: set[str]) -> None:
        released = waiting - self.waiting()
        self.uncertain |= {id for id in released if self.graph.nodes[id].event == "unblocked"}

    def waiting(self) -> set[str]:
        """The jobs that wait for others."""
        return {node.id for node in self.graph.nodes.values() if node.waits_for_jobs}

    def _some(self, *statuses: str) -> Node | None:
        nodes = [node for node in self.graph.nodes.values() if node.status in statuses]
        return self.chance.choice(nodes) if nodes else None

    # --- the same

    def look_at_overdue(self) -> None:
        """The store may choose which endings it counts later."""
        rows = self.raw.run("SELECT parent, after FROM {overdue} WHERE parent >= ?", self.first)
        self.graph.overdue = {str(parent): str(after) for parent, after in rows}

    def compare(self) -> None:
        found = {str(id): tuple(rest) for id, *rest in self.raw.run(ROWS, self.first)}
        assert found.keys() == self.graph.nodes.keys()
        for id, node in self.graph.nodes.items():
            need, spare = node.need, node.spare
            if node.is_skipped and found[id][1] == "skipped":  # with others, counted in any order
                need, spare = found[id][4:6]
                assert spare < 0
            elif id in self.uncertain and node.status != "waiting":
                need, spare = found[id][4:6]
                assert need <= 0
            known = (node.status, node.event, node.attempts, node.token, need, spare, node.needs)
            known = (*known, len(node.followers), node.snoozes, node.run_at, node.lease_ends)
            row = (*found[id][:9], millis(found[id][9]), millis(found[id][10]))
            assert row == known, f"{row}, expected {known}: {node}"
        self._compare_beside()
        if self.graph.gated_above is not None:
            self._compare_gates()

    def _compare_beside(self) -> None:
        found = {
            table: [(str(id), *rest) for id, *rest in self.raw.run(statement, self.first)]
            for table, statement in BESIDE.items()
        }
        nodes = self.graph.nodes
        waits = {(id, name, number, millis(at)) for id, name, number, at in found["wait"]}
        awaited = [(node.id, node.awaited) for node in nodes.values() if node.awaited]
        assert waits == {(id, GO, one.number, one.expires_at) for id, one in awaited}
        assert dict(found["signal"]) == {n.id: n.signals for n in nodes.values() if n.signals}
        steps = [(id, *step) for id in sorted(nodes) for step in nodes[id].steps]
        assert found["step"] == steps

    def _compare_gates(self) -> None:
        rows = self.raw.run(
            "SELECT child, gate, need, spare FROM {gate} WHERE child >= ?", self.first
        )
        found = {(str(child), gate): (need, spare) for child, gate, need, spare in rows}
        for id, node in self.graph.nodes.items():
            if node.waits_for_jobs:
                for gate, count in self.graph.gates(node).items():
                    assert found[id, gate] == count

    def compare_ledger(self) -> None:
        """Each transition of each job is there, once and in order.

        What is restored before the ending of an overdue parent is counted is skipped once more.
        """
        ledger = defaultdict[str, list[str]](list)
        for id, event in self.raw.run(LEDGER, self.first):
            ledger[str(id)].append(event)
        for id, node in self.graph.nodes.items():
            found, known = (
                AGAIN.sub("skipped", " ".join(one)) for one in (ledger[id], node.history)
            )
            assert found == known, f"{found}, expected {known}: {node}"

    def finish(self) -> None:
        """Let all of it come to rest; nothing may be left waiting. Try again what failed."""
        for turn in range(4):
            for _ in range(4 * self.pace if turn else 0):
                self.retry()
            self.compare()
            for _ in range(1000):
                if all(node.rests for node in self.graph.nodes.values()):
                    break
                self.work()
                self.let_time_pass(5_000)
                self.sweep()
                for node in self.graph.nodes.values():
                    if node.awaited and self.chance.random() < 0.5:
                        self.send(node)
            self.compare()
            assert all(node.rests for node in self.graph.nodes.values())
        self.compare_ledger()


def millis(time: Any) -> Any:
    """A time of either engine or of Python as milliseconds."""
    if time is None or isinstance(time, int):
        return time
    return (time - EPOCH) // timedelta(milliseconds=1)


def linked(node: Node) -> LinkedJob:
    edges = tuple(Dependency(parent, meets) for parent, meets in node.edges.items())
    start_by = None if node.start_by is None else EPOCH + timedelta(milliseconds=node.start_by)
    return LinkedJob(
        id=node.id,
        type="node",
        edges=edges,
        needs=node.needs,
        max_retries=node.max_retries,
        backoff=AT_ONCE,
        run_at=EPOCH + timedelta(milliseconds=node.run_at),
        start_by=start_by,
    )


def play(store: Store, raw: RawSql, clock: Clock, seed: object, jobs: int, **graph: Any) -> Play:
    """Play a history in which a graph grows to so many jobs, and ends."""
    game = Play(store, raw, clock, seed, max(1, jobs // 60), **graph)
    while len(game.graph.nodes) < jobs:
        game.add(game.pace * game.chance.choice((1, 3, 10)))
        for _ in range(game.chance.randint(1, 6)):
            game.step()
    game.finish()
    return game


@contextmanager
def low_bounds(low: bool) -> Iterator[Bounds]:
    """Lower bounds, if asked for, so that ten jobs meet gates and overdue parents.

    They are those of schemas that are made meanwhile. Yields those of gates.
    """
    with pytest.MonkeyPatch.context() as patch:
        if low:
            patch.setattr(migrate, "MAX_FOLLOWERS_OF_ONE", 3)
            patch.setattr(migrate, "MAX_FOLLOWERS_AT_ONCE", 7)
            patch.setattr(dependencies, "FEW", 2)
            patch.setattr(dependencies, "MAX_COUNTED", 6)
        yield dependencies.FEW, dependencies.MAX_COUNTED
