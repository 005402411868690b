"""Jobs that depend on others: what may be asked for, and what follows when a job ends. Pure.

A waiting job has two numbers. `need` is how many endings must still come, `spare` is how many may
still disappoint it. It is released at `need <= 0`, and can never run at `spare < 0`. On PostgreSQL,
where a job has more than a few parents, each counts in a gate, a narrow row, and the gates count
in the job.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from tenure.dependency import Dependency, Meets, Parent
from tenure.errors import InvalidInput
from tenure.values import ids
from tenure.values.names import check_choice, check_name

DependsOn: TypeAlias = Parent | Dependency | str
"""A job, what `submit` returned, a node of a workflow, a dependency, or the id of a job."""

Links: TypeAlias = tuple[tuple[Dependency, ...], int | None]
"""The dependencies of a job, and how many of them it needs; None for all."""

LIST_OR_NAMED = "a list of jobs, or an object of them by name"
MAX_PARENTS = 10_000
MAX_COUNTED = 256
"""Parents of a job that waits for some of them, and parents that are counted in one gate."""
FEW = 4
"""Parents that are counted without gates."""
MAX_LINKS = 100_000
"""Dependencies of the jobs of one call."""


def links_of(options: Mapping[str, Any]) -> Links | None:
    """Return the dependencies of a job and how many it needs, as the options of an enqueue say.

    None for no dependencies. Raises InvalidInput.
    """
    edges = dependencies_of(options.get("depends_on", ()))
    needs = options.get("needs", "all")
    if not edges and needs == "all":
        return None
    return edges, needs_of(needs, len(edges))


def dependencies_of(given: Any) -> tuple[Dependency, ...]:
    """Return the dependencies that a caller means by `depends_on`; raises InvalidInput."""
    path = "$.depends_on"
    if isinstance(given, Mapping):
        found = [_dependency(parent, f"{path}.{name}", name) for name, parent in given.items()]
    elif isinstance(given, list | tuple):
        found = [_dependency(parent, f"{path}[{n}]") for n, parent in enumerate(given)]
    else:
        raise InvalidInput(f"give {LIST_OR_NAMED}", path=path)
    if len(found) > MAX_PARENTS:
        raise InvalidInput(f"{len(found)} jobs; give at most {MAX_PARENTS}", path=path)
    if len({one.job_id for one in found}) < len(found):
        raise InvalidInput("one job is given twice", path=path)
    named = [one.name for one in found if one.name]
    if len(set(named)) < len(named):
        raise InvalidInput("one name is given twice", path=path)
    return tuple(found)


def _dependency(given: Any, path: str, name: Any = None) -> Dependency:
    if isinstance(given, Mapping) and {"job_id"} <= given.keys() <= {"job_id", "meets", "name"}:
        given = Dependency(**given)
    if not isinstance(given, Dependency):
        given = Dependency(given if isinstance(given, str) else getattr(given, "id", ""))
    check_choice(given.meets, Meets, f"{path}.meets")
    name = given.name if name is None else name
    name = name and check_name(name, "dependency", path)
    return Dependency(ids.check_id(given.job_id, path), given.meets, name)


def needs_of(given: Any, parents: int) -> int | None:
    """Return how many of so many parents a job needs, None for all; raises InvalidInput."""
    path = "$.needs"
    if given == "all":
        return None
    needs = 1 if given == "any" else given
    if isinstance(needs, bool) or not isinstance(needs, int) or not 1 <= needs <= parents:
        said = f"give all, any, or a whole number from 1 to the number of jobs, here {parents}"
        raise InvalidInput(said, path=path)
    if 1 < needs < parents and parents > MAX_COUNTED:
        raise InvalidInput(f"with more than {MAX_COUNTED} jobs, use all or any", path=path)
    return None if needs == parents else needs


class ParentEdge(NamedTuple):
    """A stored dependency, from the side of the job that depends."""

    parent: str
    queue: str  # of the parent, as what follows
    status: str
    rests: bool
    meets: Meets
    name: str | None


Ties = tuple[list[ParentEdge], int | None]
"""What a job depends on, and how many of these it needs; None for all."""


def depends_again(ties: Sequence[ParentEdge], needs: int | None) -> dict[str, Any]:
    """Return the options by which a job depends on what another one does.

    No parent that has settled keeps it from running: its ending counts, whichever it was.
    """
    depends_on = []
    for tie in ties:
        missed = tie.rests and not is_met(tie.meets, tie.status)
        depends_on.append(Dependency(tie.parent, "settled" if missed else tie.meets, tie.name))
    return {"depends_on": depends_on, "needs": min(needs or len(ties), len(ties))}


# --- counting -------------------------------------------------------------------------------------


class Tally(NamedTuple):
    """What is known of some parents: how many, how many met it, how many cannot any more."""

    parents: int = 0
    met: int = 0
    missed: int = 0

    def plus(self, met: bool | None) -> Tally:
        """Return it with another parent: whether that has met it, None if it has not ended."""
        return Tally(self.parents + 1, self.met + (met is True), self.missed + (met is False))

    def numbers(self, needs: int | None) -> tuple[int, int]:
        """Return (need, spare)."""
        needed = self.parents if needs is None else needs
        return needed - self.met, self.parents - needed - self.missed


class Numbers(NamedTuple):
    """The numbers of a job, and (need, spare) of each of its gates."""

    need: int
    spare: int
    gates: Mapping[int, tuple[int, int]] = {}


def gate_of(place: int, parents: int, needs: int | None) -> int | None:
    """Return the gate of a dependency, by its place among those of a job; None for no gate.

    To count in a gate costs a fifth of what it costs in a job, and to open one five times as much.
    So there is one, unless so many parents would wait for each other: neighbours run side by side,
    so they have different gates. These open one after the other, since an opening is counted
    in the job: there are 16 series, and the first gate of each has eight parents more than that of
    the series before.
    """
    if parents > MAX_COUNTED:
        series, number = place % 16, place // 16
        return series + 16 * max((number - 8 * series) // 128, 0)
    return 0 if parents > FEW and needs is None else None


def is_met(meets: str, status: str) -> bool:
    """Whether a parent that rests with a status is what a dependency waits for."""
    return meets == "settled" or (meets == "completed") == (status == "completed")


def met_sql(edge: str, parent: str) -> str:
    """`is_met` as a condition over a dependency and its parent, given the names of their rows."""
    completes = f"({edge}.meets = 'completed') = ({parent}.status = 'completed')"
    return f"({edge}.meets = 'settled' OR {completes})"


def counted(tallies: Mapping[int | None, Tally], needs: int | None) -> Numbers:
    """Return the count of a job, given what is known of the parents of each gate."""
    if None in tallies or not tallies:
        return Numbers(*tallies.get(None, Tally()).numbers(needs))
    gates = {gate: tally.numbers(needs) for gate, tally in tallies.items() if gate is not None}
    met = sum(need <= 0 for need, _ in gates.values())
    missed = sum(spare < 0 for _, spare in gates.values())
    return Numbers(*Tally(len(gates), met, missed).numbers(needs), gates)


# --- what follows ---------------------------------------------------------------------------------


class Edge(NamedTuple):
    """A stored dependency."""

    parent: str
    child: str
    meets: str
    gate: int | None = None
    name: str | None = None
    is_late: bool = False  # the ending of the parent counts later for the child


def in_order(jobs: Collection[str], links: Iterable[tuple[str, str]]) -> list[str]:
    """Return jobs such that parents are before children; `links` are (parent, child).

    Raises InvalidInput for a cycle, with its members.
    """
    ordered, left = _ordered(jobs, links)
    if left:
        raise InvalidInput(f"a cycle: {_cycle(left)}", path="$.depends_on")
    return ordered


def _ordered(
    jobs: Collection[str], links: Iterable[tuple[str, str]]
) -> tuple[list[str], dict[str, list[str]]]:
    """Return jobs in order, and those in a cycle or behind one with their parents."""
    children: dict[str, list[str]] = defaultdict(list)
    parents: dict[str, list[str]] = {job: [] for job in jobs}
    for parent, child in links:
        children[parent].append(child)
        parents[child].append(parent)
    left = {job: len(others) for job, others in parents.items()}
    ordered = [job for job in jobs if not left[job]]
    for job in ordered:  # grows
        del left[job]
        for child in children[job]:
            left[child] -= 1
            if not left[child]:
                ordered.append(child)
    return ordered, {job: parents[job] for job in left}


def _cycle(left: Mapping[str, Sequence[str]]) -> str:
    """Name the members of a cycle, given that each job that is left has a parent that is, too."""
    way = [next(iter(left))]
    while way.count(way[-1]) < 2:
        way.append(next(parent for parent in left[way[-1]] if parent in left))
        if len(way) > MAX_PARENTS:
            break
    members = way[way.index(way[-1]) + 1 :][::-1]
    return " -> ".join((members[-1], *members))


def skipped_by(
    doomed: Iterable[str], spare: Mapping[str, int], links: Sequence[Edge]
) -> dict[str, int]:
    """Return the jobs that are skipped once the first are, children before parents, with `spare`.

    `spare` is that of each waiting job, `links` are those between them. A job whose gates have to
    be asked is left to them.
    """
    left = dict(spare)
    reached = [job for job in doomed if left.get(job, 0) < 0]
    children: dict[str, list[Edge]] = defaultdict(list)
    for link in links:
        children[link.parent].append(link)
    for job in reached:  # grows
        for link in children[job]:
            if link.child in left and not is_met(link.meets, "cancelled"):
                left[link.child] -= 1
                if left[link.child] == -1:
                    reached.append(link.child)
    among = {*reached}
    pairs = [(e.parent, e.child) for e in links if e.parent in among and e.child in among]
    ordered, in_cycles = _ordered(reached, pairs)
    return {job: left[job] for job in reversed([*ordered, *in_cycles])}


def restored_by(
    jobs: Mapping[str, int | None],
    outside: Mapping[str, Mapping[int | None, Tally]],
    links: Sequence[Edge],
) -> dict[str, Numbers]:
    """Return the skipped jobs that can wait again, parents before children, with their counts.

    `jobs` has the `needs` of each, `outside` what is known of their other parents, by gate. `links`
    are those between them.
    """
    back: dict[str, Numbers] = {}
    inside: dict[str, list[Edge]] = defaultdict(list)
    for link in links:
        inside[link.child].append(link)
    for job in _ordered(jobs, [(link.parent, link.child) for link in links])[0]:
        tallies = dict(outside.get(job, {}))
        for link in inside[job]:
            counts_later = link.parent in back or link.is_late
            met = None if counts_later else is_met(link.meets, "cancelled")
            tallies[link.gate] = tallies.get(link.gate, Tally()).plus(met)
        count = counted(tallies, jobs[job])
        if count.spare >= 0:
            back[job] = count
    return back
