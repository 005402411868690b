"""What waits for what, as dictionaries: which the counts of both databases must agree with.

Written a second time, from what each ending means to a follower and not from how it is counted: a
waiting job has what its dependencies say at this moment, computed anew from all of them. Times are
whole milliseconds. What the store may choose for itself is told to it: which jobs a claim or a
sweep takes, and which parents are overdue.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple, TypeAlias

from tenure.dependency import Meets

Bounds: TypeAlias = tuple[int, int]
"""Above how many parents a job counts them in one gate, and in many, on PostgreSQL."""


class Awaited(NamedTuple):
    """The signal that a suspended job waits for: by its number, until a time."""

    number: int
    expires_at: int | None


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
    run_at: int = 0
    start_by: int | None = None
    snoozes: int = 0
    lease_ends: int | None = None
    awaited: Awaited | None = None
    signals: int = 0  # how many were sent to it
    steps: list[tuple[str, int]] = field(default_factory=list)  # (name, token)
    history: list[str] = field(default_factory=list)

    def become(self, status: str, event: str) -> None:
        """Take one transition. A lease ends with the attempt, and a wait with the waiting."""
        self.status, self.event = status, event
        self.lease_ends = self.awaited = None
        self.history.append(event)

    @property
    def waits_for_jobs(self) -> bool:
        """Whether it waits for other jobs: one that was claimed waits for a signal."""
        return self.status == "waiting" and not self.token

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


def gate_of(number: int, *, alone: bool) -> int:
    """The gate in which the edge with this number (from 0) is counted; `alone`: the only gate."""
    series, place = number % 16, number // 16
    first = 128 + 8 * series  # places in the first gate of a series; each later one has 128
    return 0 if alone else series + (0 if place < first else 16 * (1 + (place - first) // 128))


class Graph:
    """All jobs, and one method per thing that can happen to them."""

    def __init__(self, gated_above: Bounds | None = None) -> None:
        self.nodes: dict[str, Node] = {}
        self.overdue: Mapping[str, str] = {}  # parent -> the last child that knows of its ending
        self.gated_above = gated_above  # None: nothing is counted in gates
        self.now = 0

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
        if self.gated_above is None:
            return {}
        one, many = (len(node.edges) > bound for bound in self.gated_above)
        if not (many or (one and node.needs is None)):
            return {}
        behind: dict[int, list[tuple[str, str]]] = {}
        for number, edge in enumerate(node.edges.items()):
            behind.setdefault(gate_of(number, alone=not many), []).append(edge)
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
        return [n for n in self.nodes.values() if n.waits_for_jobs and (n.spare or 0) < 0]

    # --- what happens

    def add(self, nodes: Sequence[Node]) -> None:
        """Add jobs, parents before children."""
        for node in nodes:
            self.nodes[node.id] = node
            for parent in node.edges:
                self.nodes[parent].followers.append(node.id)
            if node.edges:
                node.need, node.spare = self.counts(node)
            node.become("waiting" if (node.need or 0) > 0 else "pending", "enqueued")

    def claim(self, id: str, lease_ends: int) -> None:
        node = self.nodes[id]
        assert node.status == "pending"
        assert node.run_at <= self.now
        assert node.start_by is None or node.start_by > self.now
        node.become("processing", "claimed")
        node.lease_ends = lease_ends
        node.attempts += 1
        node.token += 1

    def end(self, id: str, event: str, delay: int = 0) -> None:
        """An attempt or a job ends: `completed`, `gave_up`, `cancelled`, `expired`.

        Or `failed` or `lease_expired`, tried again after `delay` while attempts are left.
        """
        node = self.nodes[id]
        ended_as = {"completed": "completed", "cancelled": "cancelled", "expired": "cancelled"}
        node.become(ended_as.get(event, "failed"), event)
        if not node.rests:
            node.become("pending", "retried")
            node.run_at = self.now + delay
            return
        self.tell(node)

    def expire(self, ids: Iterable[str]) -> None:
        """These had to start before now: they end at one moment, so none is counted for another."""
        late = [self.nodes[id] for id in ids]
        for node in late:
            assert node.status in ("waiting", "pending")
            assert node.start_by is not None
            assert node.start_by <= self.now
            node.become("cancelled", "expired")
        self.tell(*late)

    def hand_back(self, id: str, event: str, delay: int = 0, until: int | None = None) -> None:
        """`released`, `interrupted`, `snoozed`, or `suspended` until the next signal or a time."""
        node = self.nodes[id]
        node.become("waiting" if event == "suspended" else "pending", event)
        node.attempts -= 1
        node.snoozes += event in ("snoozed", "suspended")
        if event == "snoozed":
            node.run_at = self.now + delay
        if event == "suspended":
            node.need, node.spare = 1, 0
            node.awaited = Awaited(len(node.steps) + 1, until)
            if node.signals >= node.awaited.number:
                self.unblock(id)

    def signal(self, id: str) -> None:
        node = self.nodes[id]
        node.signals += 1
        if node.awaited and node.awaited.number == node.signals:
            self.unblock(id)

    def tell(self, *changed: Node) -> None:
        """What follows for those that wait for jobs that came to rest, or left it."""
        for id in sorted({id for node in changed for id in node.followers}):
            self.count(self.nodes[id])

    def count(self, node: Node) -> None:
        if node.waits_for_jobs:
            node.need, node.spare = self.counts(node)
            if node.need <= 0:
                self.unblock(node.id, node.need)

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
                node.become("cancelled", "skipped")
                skipped.append(node.id)
            self.tell(*doomed)
        return skipped

    def retry(self, id: str, more_retries: int = 0) -> list[str]:
        """An operator tries a failed job again; returns the jobs behind it that wait again."""
        node = self.nodes[id]
        assert node.status == "failed"
        if more_retries:
            node.max_retries = max(node.max_retries, node.attempts) + more_retries
        node.become("pending", "retried")
        node.run_at = self.now
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
                node.become("waiting", "restored")
                node.need, node.spare = need, spare
                yield node.id
            elif node is not first:
                continue  # it was restored for another parent
            self.tell(node)
            for id in node.followers:
                if self.nodes[id].is_skipped:
                    heappush(changed, id)

    def unblock(self, id: str, need: int = 0) -> None:
        """What it waited for has come, or an operator lets it run."""
        node = self.nodes[id]
        assert node.status == "waiting"
        node.become("pending", "unblocked")
        node.need, node.run_at = need, max(node.run_at, self.now)
