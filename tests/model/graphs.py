"""Random graphs of jobs, played on a real store and on the reference, compared row by row."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from tenure import Dependency
from tenure.dependency import Meets
from tenure.events import Cancelled, Retried, Unblocked
from tenure.jobs.enqueue import LinkedJob
from tenure.jobs.ids import new_ids
from tenure.jobs.work import Answer, ClaimRequest, Outcome, Report
from tenure.retry import RetryPolicy
from tenure.store import Store
from tests.model.graph_reference import Graph, Node
from tests.support.raw_sql import RawSql

AT_ONCE = RetryPolicy(base=0, factor=1, cap=0)
MEETS: tuple[Meets, ...] = ("completed", "completed", "completed", "settled", "failed")
ROWS = """SELECT id, status, event, attempts, token, need, spare, needs, coalesce(followed, 0)
FROM {job} WHERE id >= ? ORDER BY id"""
EDGES = "SELECT parent, child, meets FROM {dependency} WHERE child >= ?"
REPORTS = {
    "completed": Report("", "", Outcome.COMPLETED),
    "failed": Report("", "", Outcome.FAILED, error="boom"),
    "gave_up": Report("", "", Outcome.FAILED, error="boom", retryable=False),
}


class Play:
    """One history."""

    def __init__(self, store: Store, raw: RawSql, seed: int, pace: int, **graph: Any) -> None:
        self.chance = random.Random(seed)
        self.pace = pace  # how much happens in one step
        self.store, self.raw = store, raw
        self.graph = Graph(**graph)
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
            nodes.append(node)
        self.store.add([linked(node) for node in nodes]).result()
        self.graph.add(nodes)

    def _gated(self, edges: Mapping[str, str]) -> bool:
        return self.graph.gated_above is not None and len(edges) > self.graph.gated_above

    # --- one step

    def step(self) -> str:
        """Something happens; returns what."""
        steps = (self.work, self.work, self.work, self.cancel, self.retry, self.unblock, self.sweep)
        weights = (6, 4, 3, 1, 3, 1, 3)
        (step,) = self.chance.choices(steps, weights)
        step()
        self.compare()
        return step.__name__

    def work(self) -> None:
        """Claim, then report some of what is held, in one request."""
        request = ClaimRequest(
            worker="w", limit=self.pace * self.chance.randint(0, 5), lease_seconds=600
        )
        for lease in self.store.exchange((), request).result().leases:
            if lease.id >= self.first:
                self.graph.claim(lease.id)
                self.leases[lease.id] = lease.lease_id
        held = sorted(self.leases)
        ending = self.chance.sample(
            held, min(len(held), self.pace * self.chance.choice((1, 1, 2, 4)))
        )
        outcomes = {id: self.chance.choices(list(REPORTS), (6, 2, 2))[0] for id in ending}
        self.report(outcomes)

    def report(self, outcomes: Mapping[str, str]) -> None:
        said = [filled(REPORTS[event], id, self.leases.pop(id)) for id, event in outcomes.items()]
        verdicts = self.store.exchange(said, None).result().verdicts
        assert {verdict.answer for verdict in verdicts} <= {Answer.RECORDED}
        self.look_at_overdue()
        waiting = self.waiting()
        for id, event in outcomes.items():
            self.graph.end(id, event)
        if len(outcomes) > 1:
            self.note_released(waiting)

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
            self.store.apply(node.id, Retried(more_retries=1)).result()
            self.look_at_overdue()
            self.graph.retry(node.id, 1)

    def unblock(self) -> None:
        if (node := self._some("waiting")) and self.chance.random() < 0.3:
            self.store.apply(node.id, Unblocked(need=0)).result()
            self.graph.unblock(node.id)

    def sweep(self) -> None:
        while self.store.follow().result():
            pass
        waiting = self.waiting()
        self.graph.count_overdue({})
        self.graph.skip()
        self.note_released(waiting)

    def note_released(self, waiting: set[str]) -> None:
        released = waiting - self.waiting()
        self.uncertain |= {id for id in released if self.graph.nodes[id].event == "unblocked"}

    def waiting(self) -> set[str]:
        return {id for id, node in self.graph.nodes.items() if node.status == "waiting"}

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
            need, spare = (node.need, node.spare) if node.edges else found[id][4:6]
            if node.is_skipped:  # with others, which count in any order
                need, spare = found[id][4:6]
                assert spare < 0
            elif id in self.uncertain and node.status != "waiting":
                need, spare = found[id][4:6]
                assert need <= 0
            known = (node.status, node.event, node.attempts, node.token, need, spare, node.needs)
            assert found[id] == (*known, len(node.followers)), (
                f"{found[id]}, expected {known}: {node}"
            )
        if self.graph.gated_above is not None:
            self._compare_gates()

    def _compare_gates(self) -> None:
        rows = self.raw.run(
            "SELECT child, gate, need, spare FROM {gate} WHERE child >= ?", self.first
        )
        found = {(str(child), gate): (need, spare) for child, gate, need, spare in rows}
        for id, node in self.graph.nodes.items():
            for gate, count in self.graph.gates(node).items():
                if node.status == "waiting":
                    assert found[id, gate] == count

    def finish(self) -> None:
        """Let all of it come to rest; nothing may be left waiting. Then try what failed again."""
        for _ in range(4):
            for _ in range(1000):
                if all(node.rests for node in self.graph.nodes.values()):
                    break
                self.work()
                self.sweep()
            self.compare()
            assert all(node.rests for node in self.graph.nodes.values())
            for _ in range(4 * self.pace):
                self.retry()
                self.compare()


def linked(node: Node) -> LinkedJob:
    edges = tuple(Dependency(parent, meets) for parent, meets in node.edges.items())
    fields: dict[str, Any] = {"max_retries": node.max_retries, "backoff": AT_ONCE}
    return LinkedJob(id=node.id, type="node", edges=edges, needs=node.needs, **fields)


def filled(report: Report, id: str, lease_id: str) -> Report:
    return Report(id, lease_id, report.outcome, error=report.error, retryable=report.retryable)


def play(store: Store, raw: RawSql, seed: int, jobs: int, **graph: Any) -> Play:
    """Play a history in which a graph grows to so many jobs, and ends."""
    game = Play(store, raw, seed, max(1, jobs // 60), **graph)
    while len(game.graph.nodes) < jobs:
        game.add(game.pace * game.chance.choice((1, 3, 10)))
        for _ in range(game.chance.randint(1, 6)):
            game.step()
    game.finish()
    return game
