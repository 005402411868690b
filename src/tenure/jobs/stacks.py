"""Puts alike jobs of a workflow into stacks, so that a large workflow can be drawn. Pure.

A stack has jobs of one type with the same parents and the same children. If there are many such
stacks, jobs are alike if their parents and children are alike, so that fifty equal chains are drawn
as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from msgspec import Struct

from tenure.lifecycle import Status

MANY = 40
"""If there were more stacks of jobs with the same parents, jobs with alike parents share one."""
MAX_STACKS = 300
MAX_TIES = 2_000

Ends = list[list[int]]
"""For each job the others that dependencies lead to: four times the place, plus what is met."""


Member: TypeAlias = tuple[str, str, str, int | None]
"""A job, as far as it is drawn: id, type, status, and how many parents it needs; None: all."""

Link: TypeAlias = tuple[str, str, str]
"""A dependency: the ids of parent and child, and what is met."""


class Stack(Struct, frozen=True):
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


class Shape(Struct, frozen=True):
    """The stacks of a workflow in the order of their layers, and the ties between them."""

    stacks: Sequence[Stack]
    ties: Sequence[Tie]


def shape_of(members: Sequence[Member], links: Iterable[Link]) -> Shape | None:
    """Return the stacks and ties of a workflow; None if they are too many to draw.

    Links to jobs that are not among `members` are left out, and so are those of a cycle, which
    only raw SQL can make.
    """
    if not members:
        return Shape([], [])
    jobs, types, statuses, needs = zip(*members, strict=True)
    place = {job: number for number, job in enumerate(jobs)}
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
    kinds = _numbered(zip(layers, types, needs, strict=True))
    same = _numbered(zip(kinds, map(frozenset, parents), map(frozenset, children), strict=True))
    if max(same, default=0) >= MANY:
        same = _alike(_alike(kinds, order, parents), order[::-1], children)
    if max(same, default=0) >= MAX_STACKS:
        return None
    first: dict[int, int] = {}
    counts: dict[int, Counter[str]] = {}
    for job, stack in enumerate(same):
        if stack not in first:
            first[stack], counts[stack] = job, Counter()
        counts[stack][statuses[job]] += 1
    ranked = sorted(first, key=lambda stack: (layers[first[stack]], first[stack]))
    stacks = [
        Stack(types[job], _by_status(counts[stack]), jobs[job], layers[job], needs[job])
        for stack, job in ((stack, first[stack]) for stack in ranked)
    ]
    spot = {stack: number for number, stack in enumerate(ranked)}
    ties = _ties([spot[stack] for stack in same], layers, children, tuple(kinds_of_link))
    return Shape(stacks, ties) if len(ties) <= MAX_TIES else None


def _by_status(counts: Mapping[str, int]) -> Mapping[str, int]:
    return {str(status): counts[status] for status in Status if status in counts}


def _ties(
    spots: Sequence[int], layers: Sequence[int], children: Ends, meets: Sequence[str]
) -> list[Tie]:
    ties = Counter(
        (spots[job], spots[end >> 2], end & 3)
        for job, some in enumerate(children)
        for end in some
        if layers[end >> 2] > layers[job]
    )
    found = [
        Tie(parent, child, meets[kind], number) for (parent, child, kind), number in ties.items()
    ]
    return sorted(found)


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
