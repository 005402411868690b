"""Workflows: jobs that were added together, and that may wait for each other. Pure.

To draw a large workflow, its alike jobs are put into stacks. A stack has jobs of one type with the
same parents and the same children. If there are many such stacks, jobs are alike if their parents
and children are alike, so that fifty equal chains are drawn as one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import combinations
from typing import Any, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tenure.dependency import Meets
from tenure.lifecycle import Status
from tenure.rules.jobs import CheckedJob, LinkedJob, NewJob, fingerprint
from tenure.rules.ledger import StatusName
from tenure.values.durations import Time

ENDINGS = ("cancelled", "completed", "failed", "skipped")
"""How jobs of a workflow end. `skipped`: it was cancelled because it could no longer run."""


class WorkflowStatus(StrEnum):
    """What a workflow is doing, or how it ended."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


def status_of(endings: str | None) -> WorkflowStatus:
    """Return the status of a workflow whose jobs ended so; None while some have not.

    `endings` are those of `ENDINGS` that there were, in order, with spaces between. A job that was
    skipped does not count: either another job says what went wrong, or it was there for a failure
    that did not happen.
    """
    if endings is None:
        return WorkflowStatus.RUNNING
    ended = endings.split()
    for status in (WorkflowStatus.FAILED, WorkflowStatus.CANCELLED):
        if status in ended:
            return status
    return WorkflowStatus.COMPLETED


def endings_of(status: WorkflowStatus) -> list[str]:
    """Return every value of `endings` for which `status_of` is this status."""
    sizes = range(len(ENDINGS) + 1)
    some = (" ".join(words) for size in sizes for words in combinations(ENDINGS, size))
    return [endings for endings in some if status_of(endings) is status]


class Workflow(Struct, frozen=True, kw_only=True):
    """A workflow, and how many of its jobs have which status; None if that was not counted."""

    id: str
    name: str
    key: str | None
    status: WorkflowStatus
    jobs: Mapping[str, int] | None
    created_at: Time
    created_by: str
    finished_at: Time | None


class WorkflowPage(Struct, frozen=True):
    """Some workflows, newest first. `next` is the `before` of the next page, None on the last."""

    workflows: Sequence[Workflow]
    next: str | None


class GraphJob(Struct, frozen=True):
    """A job of a workflow, as far as its graph shows it."""

    id: str
    type: str
    queue: str
    status: StatusName
    needs: int | None  # how many of the jobs that it depends on; None: all


class GraphDependency(Struct, frozen=True):
    """That the job `child` waits for the job `parent`."""

    parent: str
    child: str
    meets: Meets
    name: str | None


class GraphPage(Struct, frozen=True):
    """Some jobs of a workflow, oldest first, and what they depend on.

    `next` is the `after` of the next page, None on the last one.
    """

    jobs: Sequence[GraphJob]
    dependencies: Sequence[GraphDependency]
    next: str | None


class Relative(Struct, frozen=True):
    """A job that another one waits for, or that waits for it, and which ending counts."""

    id: str
    type: str
    queue: str
    status: StatusName
    meets: Meets
    name: str | None


class RelativePage(Struct, frozen=True):
    """Some parents or followers of a job, oldest first.

    `next` is the `after` of the next page, None on the last one.
    """

    jobs: Sequence[Relative]
    next: str | None


def fingerprint_of(
    name: str, new_jobs: Sequence[NewJob], checked_jobs: Sequence[CheckedJob]
) -> str:
    """What makes two requests for workflows with one key the same: the jobs, and how they depend.

    Dependencies on jobs of the same request count by their place in it.
    """
    places = {checked_job.id: str(place) for place, checked_job in enumerate(checked_jobs)}
    said = [name]
    for new_job, job in zip(new_jobs, checked_jobs, strict=True):
        if type(job) is LinkedJob:
            edges = [(places.get(e.job_id, e.job_id), e.meets, e.name) for e in job.edges]
            job = replace(job, edges=edges)  # noqa: PLW2901
        said.append(fingerprint(job, new_job.options))
    return hashlib.sha256(msgspec.json.encode(said)).hexdigest()


# --- stacks ---------------------------------------------------------------------------------------

MANY = 40
"""If there were more stacks of jobs with the same parents, jobs with alike parents share one."""
MAX_STACKS = 300
MAX_TIES = 2_000

Ends = list[list[int]]
"""For each job the others that dependencies lead to: four times the place, plus what is met."""

Member: TypeAlias = tuple[str, str, str, int | None]
"""What is drawn of a job: id, type, status, and how many parents it needs; None: all."""

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
    parents, children, meets = _ends(jobs, links)
    order, layers = _layers(parents, children)
    kinds = _numbered(zip(layers, types, needs, strict=True))
    same = _numbered(zip(kinds, _sets(parents), _sets(children), strict=True), MANY)
    if max(same) >= MANY:
        same = _alike(_alike(kinds, order, parents), order[::-1], children)
    first: dict[int, int] = {}
    for job, stack in enumerate(same):
        first.setdefault(stack, job)
    if len(first) > MAX_STACKS:
        return None
    ranked = sorted(first, key=lambda stack: (layers[first[stack]], first[stack]))
    counts = Counter(zip(same, statuses, strict=True))
    stacks = [
        Stack(types[job], _by_status(counts, stack), jobs[job], layers[job], needs[job])
        for stack, job in ((stack, first[stack]) for stack in ranked)
    ]
    spot = {stack: number for number, stack in enumerate(ranked)}
    ties = _ties([spot[stack] for stack in same], layers, children, meets)
    return Shape(stacks, ties) if len(ties) <= MAX_TIES else None


def _ends(jobs: Sequence[str], links: Iterable[Link]) -> tuple[Ends, Ends, Sequence[str]]:
    """Return the parents and the children of each job, and what there is to be met."""
    place = {job: number for number, job in enumerate(jobs)}
    parents: Ends = [[] for _ in jobs]
    children: Ends = [[] for _ in jobs]
    kinds: dict[str, int] = {}
    for parent_id, child_id, meets in links:
        try:
            parent, child = place[parent_id], place[child_id]
        except KeyError:
            continue
        kind = kinds.setdefault(meets, len(kinds))
        parents[child].append(parent << 2 | kind)
        children[parent].append(child << 2 | kind)
    return parents, children, tuple(kinds)


def _by_status(counts: Mapping[tuple[int, str], int], stack: int) -> Mapping[str, int]:
    return {str(status): counts[stack, status] for status in Status if (stack, status) in counts}


def _ties(
    spots: Sequence[int], layers: Sequence[int], children: Ends, meets: Sequence[str]
) -> list[Tie]:
    size = len(spots)  # a tie is counted as one number, which takes half as long as three
    ties = Counter(
        [
            (spots[job] * size + spots[end >> 2]) << 2 | end & 3
            for job, some in enumerate(children)
            for end in some
            if layers[end >> 2] > layers[job]
        ]
    )
    found = [Tie(*divmod(tie >> 2, size), meets[tie & 3], number) for tie, number in ties.items()]
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
        some = before[job]
        if len(some) == 1:
            ends: Any = parted[some[0] >> 2] << 2 | some[0] & 3
        else:
            ends = _one_or_set({parted[end >> 2] << 2 | end & 3 for end in some})
        parted[job] = found.setdefault((kinds[job], ends), len(found))
    return [kind if kind >= 0 else len(found) for kind in parted]


def _sets(ends: Ends) -> Iterable[Any]:
    """Return for each job what is equal if its ends are the same."""
    return (some[0] if len(some) == 1 else frozenset(some) for some in ends)


def _one_or_set(ends: set[int]) -> Any:
    """Return ends as `_sets` does: most jobs have one, which takes half as long as a set."""
    return ends.pop() if len(ends) == 1 else frozenset(ends)


def _numbered(keys: Iterable[Any], most: int | None = None) -> list[int]:
    """Give equal keys the same number, from 0; the keys behind the first number `most` get none."""
    found: dict[Any, int] = {}
    numbers = []
    for key in keys:
        numbers.append(number := found.setdefault(key, len(found)))
        if number == most:
            break
    return numbers
