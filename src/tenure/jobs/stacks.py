"""Puts alike jobs of a workflow into stacks, so that a large workflow can be drawn. Pure.

A stack has jobs of one type with the same parents and the same children. If there are many such
stacks, jobs are alike if their parents and children are alike, so that fifty equal chains are drawn
as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tenure.lifecycle import Status

MANY = 40
"""If there were more stacks of jobs with the same parents, jobs with alike parents share one."""
MAX_STACKS = 300
MAX_TIES = 2_000

Ends = list[list[int]]
"""For each job the others that dependencies lead to: four times the place, plus what is met."""


class Member(NamedTuple):
    """A job of a workflow, as far as it is drawn."""

    id: str
    type: str
    status: str
    needs: int | None = None  # how many of its parents; None: all


class Link(NamedTuple):
    """A dependency between two jobs."""

    parent: str
    child: str
    meets: str


@dataclass(frozen=True, slots=True)
class Stack:
    """Alike jobs: their type, their number by status, one of them, and their layer, from 0."""

    type: str
    statuses: Mapping[str, int]  # in the order of the lifecycle, without zeros
    example: str
    layer: int
    needs: int | None

    @property
    def jobs(self) -> int:
        """How many jobs it has."""
        return sum(self.statuses.values())


class Tie(NamedTuple):
    """Dependencies between the jobs of two stacks, which are named by their places."""

    parent: int
    child: int
    meets: str
    dependencies: int


@dataclass(frozen=True, slots=True)
class Shape:
    """The stacks of a workflow in the order of their layers, and the ties between them."""

    stacks: Sequence[Stack]
    ties: Sequence[Tie]


def shape_of(members: Sequence[Member], links: Iterable[Link]) -> Shape | None:
    """Return the stacks and ties of a workflow; None if they are too many to draw.

    Links to jobs that are not among `members` are left out, and so are those of a cycle, which
    only raw SQL can make.
    """
    place = {member.id: number for number, member in enumerate(members)}
    parents: Ends = [[] for _ in members]
    children: Ends = [[] for _ in members]
    kinds_of_link: dict[str, int] = {}
    for parent_id, child_id, meets in links:
        parent, child = place.get(parent_id), place.get(child_id)
        if parent is not None and child is not None:
            kind = kinds_of_link.setdefault(meets, len(kinds_of_link))
            parents[child].append(parent << 2 | kind)
            children[parent].append(child << 2 | kind)
    order, layers = _layers(parents, children)
    kinds = _numbered((layers[n], one.type, one.needs) for n, one in enumerate(members))
    same = _numbered(zip(kinds, map(frozenset, parents), map(frozenset, children), strict=True))
    if max(same, default=0) >= MANY:
        same = _alike(_alike(kinds, order, parents), order[::-1], children)
    if max(same, default=0) >= MAX_STACKS:
        return None
    shape = _gathered(members, same, layers, children, tuple(kinds_of_link))
    return shape if len(shape.ties) <= MAX_TIES else None


def _layers(parents: Ends, children: Ends) -> tuple[list[int], list[int]]:
    """Return the jobs so that parents come first, and the longest path to each."""
    left = [len(some) for some in parents]
    order = [number for number, missing in enumerate(left) if not missing]
    layers = [0] * len(parents)
    for job in order:  # which grows
        below = layers[job] + 1
        for end in children[job]:
            child = end >> 2
            if layers[child] < below:
                layers[child] = below
            left[child] -= 1
            if not left[child]:
                order.append(child)
    return order, layers


def _alike(kinds: Sequence[int], order: Sequence[int], before: Ends) -> list[int]:
    """Part kinds of jobs by the kinds of those `before`, in an order in which these come first."""
    found: dict[Any, int] = {}
    parted = [-1] * len(kinds)
    for job in order:
        key = (kinds[job], frozenset([parted[end >> 2] << 2 | end & 3 for end in before[job]]))
        parted[job] = found.setdefault(key, len(found))
    return [kind if kind >= 0 else len(found) for kind in parted]


def _numbered(keys: Iterable[Any]) -> list[int]:
    found: dict[Any, int] = {}
    return [found.setdefault(key, len(found)) for key in keys]


def _gathered(
    members: Sequence[Member],
    same: Sequence[int],
    layers: Sequence[int],
    children: Ends,
    meets: Sequence[str],
) -> Shape:
    first: dict[int, int] = {}
    counts: dict[int, Counter[str]] = {}
    for job, stack in enumerate(same):
        first.setdefault(stack, job)
        counts.setdefault(stack, Counter())[members[job].status] += 1
    ranked = sorted(first, key=lambda stack: (layers[first[stack]], first[stack]))
    place = {stack: number for number, stack in enumerate(ranked)}
    stacks = []
    for stack in ranked:
        one, by_status = members[first[stack]], counts[stack]
        statuses = {str(status): by_status[status] for status in Status if by_status[status]}
        stacks.append(Stack(one.type, statuses, one.id, layers[first[stack]], one.needs))
    ties = Counter(
        (place[same[job]], place[same[end >> 2]], meets[end & 3])
        for job, some in enumerate(children)
        for end in some
        if layers[end >> 2] > layers[job]
    )
    return Shape(stacks, [Tie(*ends, number) for ends, number in sorted(ties.items())])
