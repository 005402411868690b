"""What waits for what, as dictionaries: which the counts of both databases must agree with.

Written a second time, from what each ending means to a follower and not from how it is counted: a
waiting job has what its dependencies say at this moment, computed anew from all of them. Times are
left out. What the store may choose for itself, which parents are overdue, is told to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

from tenure.dependency import Meets

GATED_ABOVE = 256
"""Parents of a child whose edges are counted in gates, on PostgreSQL."""


class Counts(NamedTuple):
    """What must still come, and how much of it may fail to."""

    need: int
    spare: int


@dataclass
class Node:
    """A job, as far as it matters here."""

    id: str
    edges: dict[str, Meets] = field(default_factory=dict)  # parent -> the ending that it waits for
    needs: int | None = None  # None: all
    max_retries: int = 1
    status: str = "pending"
    event: str = "enqueued"
    attempts: int = 0
    token: int = 0
    need: int | None = None
    spare: int | None = None
    followers: list[str] = field(default_factory=list)

    @property
    def rests(self) -> bool:
        """Whether it has ended, and will not run again by itself."""
        if self.status == "failed":
            return self.event == "gave_up" or self.attempts >= self.max_retries
        return self.status in ("completed", "cancelled")

    @property
    def is_skipped(self) -> bool:
        return self.status == "cancelled" and self.event == "skipped"


def is_met(meets: str, parent: Node) -> bool:
    """Whether a parent at rest is what a dependency waits for."""
    if meets == "settled":
        return True
    return (parent.status == "completed") == (meets == "completed")


def counted(parts: int, needs: int | None, met: int, missed: int) -> Counts:
    wanted = parts if needs is None else needs
    return Counts(wanted - met, parts - wanted - missed)


def gate_of(number: int) -> int:
    """The gate in which the edge with this number (from 0) is counted."""
    return number % 16 + 16 * (number // 2048)


class Graph:
    """All jobs, and one method per thing that can happen to them."""

    def __init__(self, gated_above: int | None = None) -> None:
        self.nodes: dict[str, Node] = {}
        self.overdue: Mapping[str, str] = {}  # parent -> the last child that knows of its ending
        self.gated_above = gated_above  # None: nothing is counted in gates

    # --- what the dependencies of a job say

    def counts(self, node: Node) -> Counts:
        gates = self.gates(node)
        if not gates:
            return self._counted(node, node.edges.items(), node.needs)
        met = sum(gate.need <= 0 for gate in gates.values())
        missed = sum(gate.spare < 0 for gate in gates.values())
        return counted(len(gates), node.needs, met, missed)

    def gates(self, node: Node) -> dict[int, Counts]:
        """Each gate of a job with many parents; none of another."""
        many = self.gated_above is not None and len(node.edges) > self.gated_above
        if not many or node.needs not in (None, 1):
            return {}
        behind: dict[int, list[tuple[str, str]]] = {}
        for number, edge in enumerate(node.edges.items()):
            behind.setdefault(gate_of(number), []).append(edge)
        return {gate: self._counted(node, edges, node.needs) for gate, edges in behind.items()}

    def _counted(self, node: Node, edges: Iterable[tuple[str, str]], needs: int | None) -> Counts:
        own = [(self.nodes[parent], meets) for parent, meets in edges if meets != "past"]
        known = [(parent, meets) for parent, meets in own if self._knows(node, parent)]
        met = sum(is_met(meets, parent) for parent, meets in known)
        return counted(len(own), needs, met, len(known) - met)

    def _knows(self, node: Node, parent: Node) -> bool:
        """Whether the ending of a parent has been counted for a job."""
        return parent.rests and node.id <= self.overdue.get(parent.id, node.id)

    @property
    def doomed(self) -> list[Node]:
        """The jobs that wait for what cannot come any more."""
        waiting = (node for node in self.nodes.values() if node.status == "waiting")
        return [node for node in waiting if (node.spare or 0) < 0]

    # --- what happens

    def add(self, nodes: Sequence[Node]) -> None:
        """Add jobs, parents before children."""
        for node in nodes:
            self.nodes[node.id] = node
            for parent in node.edges:
                self.nodes[parent].followers.append(node.id)
            if node.edges:
                node.need, node.spare = self.counts(node)
                node.status = "pending" if node.need <= 0 else "waiting"

    def claim(self, id: str) -> None:
        node = self.nodes[id]
        assert node.status == "pending"
        node.status, node.event = "processing", "claimed"
        node.attempts += 1
        node.token += 1

    def end(self, id: str, event: str) -> None:
        """`completed`, `failed` (tried again while attempts are left), `gave_up`, `cancelled`."""
        node = self.nodes[id]
        node.status = {"completed": "completed", "cancelled": "cancelled"}.get(event, "failed")
        node.event = event
        if not node.rests:
            node.status, node.event = "pending", "retried"
            return
        self.tell(node)

    def tell(self, *changed: Node) -> None:
        """What follows for those that wait for jobs that came to rest, or left it."""
        for id in sorted({id for node in changed for id in node.followers}):
            self.count(self.nodes[id])

    def count(self, node: Node) -> None:
        if node.status != "waiting":
            return
        node.need, node.spare = self.counts(node)
        if node.need <= 0:
            node.status, node.event = "pending", "unblocked"

    def count_overdue(self, overdue: Mapping[str, str]) -> None:
        """Others are overdue now."""
        changed = [self.nodes[id] for id in {*self.overdue, *overdue}]
        self.overdue = overdue
        self.tell(*changed)

    def skip(self) -> list[str]:
        """Cancel what waits in vain, and what waits in vain because of that."""
        skipped = []
        while doomed := self.doomed:
            for node in doomed:
                node.status, node.event = "cancelled", "skipped"
                skipped.append(node.id)
            self.tell(*doomed)
        return skipped

    def retry(self, id: str, more_retries: int = 0) -> list[str]:
        """An operator tries a failed job again; returns the jobs behind it that wait again."""
        node = self.nodes[id]
        assert node.status == "failed"
        if more_retries:
            node.max_retries = max(node.max_retries, node.attempts) + more_retries
        node.status, node.event = "pending", "retried"
        return list(self._restore(node))

    def _restore(self, first: Node) -> Iterator[str]:
        """Parents come before their children: ids are made in that order."""
        changed = [first.id]
        while changed:
            node = self.nodes[heappop(changed)]
            if node.is_skipped:
                need, spare = self.counts(node)
                if need <= 0 or spare < 0:
                    continue
                node.status, node.event, node.need, node.spare = "waiting", "restored", need, spare
                yield node.id
            elif node is not first:
                continue  # it was restored for another parent
            self.tell(node)
            for id in node.followers:
                if self.nodes[id].is_skipped:
                    heappush(changed, id)

    def unblock(self, id: str) -> None:
        """An operator lets a waiting job run."""
        node = self.nodes[id]
        assert node.status == "waiting"
        node.status, node.event, node.need = "pending", "unblocked", 0
