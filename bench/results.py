"""Results of a run: what was found each time, and what is made of it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.catalogue import SUBJECTS, Subject
from bench.plan import WORKLOADS, Workload
from bench.stage import Figures


@dataclass(slots=True)
class Result:
    """One workload on one queue: the figures of every repeat, or why there are none."""

    workload: str
    subject: str
    repeats: list[Figures] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def median(self, figure: str) -> float | None:
        """The median of a figure over the repeats that succeeded."""
        values = self.values(figure)
        return statistics.median(values) if values else None

    def quartiles(self, figure: str) -> tuple[float, float] | None:
        """The first and the third quartile of a figure; None for less than three repeats."""
        values = self.values(figure)
        if len(values) < 3:
            return None
        first, _, third = statistics.quantiles(values, n=4, method="inclusive")
        return first, third

    def values(self, figure: str) -> list[float]:
        """A figure in every repeat that succeeded."""
        return [figures[figure] for figures in self.repeats if figure in figures]


@dataclass(frozen=True, slots=True)
class Measured:
    """How a workload was measured; `remark` is what a reader must know beside that."""

    started: str
    repeats: int
    drained: int
    remark: str = ""


@dataclass(slots=True)
class Run:
    """Everything that one run of the bench found."""

    mode: str
    machine: dict[str, Any]
    size: dict[str, Any] = field(default_factory=dict)
    # How each workload was measured: all queues in one run, but not all workloads.
    measured: dict[str, Measured] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)

    def put(self, workload: str, results: list[Result], measured: Measured) -> None:
        """Take a workload's results on all queues, in place of those it may have had."""
        self.results = [one for one in self.results if one.workload != workload] + results
        self.measured[workload] = measured

    def runs(self) -> dict[tuple[str, int, int, str], list[str]]:
        """The workloads of each run: by its start, repeats, jobs in a drain, and remark."""
        found: dict[tuple[str, int, int, str], list[str]] = {}
        for workload in self.workloads():
            if how := self.measured.get(workload.name):
                key = (how.started, how.repeats, how.drained, how.remark)
                found.setdefault(key, []).append(workload.name)
        return dict(sorted(found.items(), reverse=True))

    def are_of_one_run(self, *workloads: str) -> bool:
        """Whether these workloads were measured together, so that they can be compared."""
        return len({self.measured.get(workload) for workload in workloads}) == 1

    def result(self, workload: str, subject: str) -> Result:
        """The result of a workload on a queue, empty if it was not measured."""
        for result in self.results:
            if (result.workload, result.subject) == (workload, subject):
                return result
        return Result(workload, subject)

    def median(self, workload: str, subject: str, figure: str = "rate") -> float | None:
        """The median of a figure, None if it was not measured."""
        return self.result(workload, subject).median(figure)

    def ratio(self, workload: Workload, subject: Subject) -> float | None:
        """How many times better Tenure is in this run; above 1 it leads.

        On the same engine; Redis, which Tenure does not use, is set beside PostgreSQL.
        """
        theirs = self.median(workload.name, subject.name, workload.figure)
        ours = self.median(workload.name, rival_of(subject).name, workload.figure)
        if not ours or not theirs:
            return None
        return theirs / ours if workload.less_is_better else ours / theirs

    def workloads(self) -> list[Workload]:
        """The workloads that were measured, in the order of the plan."""
        names = {result.workload for result in self.results}
        return [workload for workload in WORKLOADS if workload.name in names]

    def subjects(self) -> list[Subject]:
        """The queues that were measured, in the order of the catalogue."""
        names = {result.subject for result in self.results}
        return [subject for subject in SUBJECTS if subject.name in names]

    def save(self, path: Path) -> None:
        """Write the run as JSON."""
        unfinished = path.with_suffix(".new")  # so that a run cut short leaves what was there
        unfinished.write_text(json.dumps(asdict(self), indent=1) + "\n")
        unfinished.replace(path)


def load(path: Path) -> Run:
    """Read a run that was saved."""
    stored = json.loads(path.read_text())
    results = [Result(**result) for result in stored.pop("results")]
    measured = {name: Measured(**how) for name, how in stored.pop("measured").items()}
    return Run(**stored, measured=measured, results=results)


def rival_of(subject: Subject) -> Subject:
    """The Tenure that a queue is compared with."""
    engine = "postgres" if subject.engine == "redis" else subject.engine
    return next(one for one in SUBJECTS if one.ours and one.engine == engine)


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: thousands set apart, no more digits than mean anything."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    whole = len(str(int(value))) if value >= 1 else 0
    return f"{value:.{max(digits - whole, 0)}f}"


def between(quartiles: tuple[float, float] | None) -> str:
    """Quartiles as people read them."""
    return "" if quartiles is None else f"({number(quartiles[0])} to {number(quartiles[1])})"


def shown(result: Result, figure: str) -> str:
    """The median of a figure with its quartiles."""
    return f"{number(result.median(figure))} {between(result.quartiles(figure))}".strip()


def times(value: float | None) -> str:
    """A ratio: 1.5x."""
    return "" if value is None else f"{number(value, 2)}x"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text in columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
