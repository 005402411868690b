"""The report of a run: tables for the terminal, and a page in Markdown with a chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench import sections, targets
from bench.chart import ENGINES, chart
from bench.plan import Workload
from bench.prose import (
    ALONE,
    COSTS,
    DRAINING,
    ENQUEUEING,
    FLEETS,
    GROWTH,
    HEAD,
    KEEPING,
    METHOD,
    PICKUP,
    RUNS,
    TARGETS,
)
from bench.results import Result, Run, between, number, table, times
from bench.scaling import scaling


def tables(run: Run) -> str:
    """Every workload as a table for the terminal, then the targets."""
    blocks = [_block(run, workload) for workload in run.workloads()]
    judged = [v for v in targets.verdicts(run) if v.met is not None]
    if judged:
        rows = [
            (v.target, ENGINES[v.engine], v.found, "met" if v.met else "MISSED") for v in judged
        ]
        blocks.append("Targets\n" + table(rows))
    return "\n\n" + "\n\n".join(blocks) + "\n"


def _block(run: Run, workload: Workload) -> str:
    rows: list[Sequence[str]] = [("", "on", workload.unit, "quartiles", "Tenure is", "")]
    for subject in run.subjects():
        result = run.result(workload.name, subject.name)
        if not (result.repeats or result.failures):
            continue
        ratio = None if subject.ours else run.ratio(workload, subject)
        rows.append(
            (
                subject.title,
                ENGINES[subject.engine],
                number(result.median(workload.figure)),
                between(result.quartiles(workload.figure)),
                times(ratio),
                _said(workload, result),
            )
        )
    return f"{workload.title}\n{table(rows)}"


def _said(workload: Workload, result: Result) -> str:
    if result.failures:
        return result.failures[0]
    said = []
    for figure, text in (
        ("of_ideal", "{} of the ideal"),
        ("p99_ms", "p99 {} ms"),
        ("cpu_percent", "{} % CPU"),
        ("server_us_per_job", "server {} µs a job"),
        ("connections", "{} connections"),
        ("doubled", "{} ran twice"),
    ):
        if (value := result.median(figure)) is not None:
            said.append(text.format(number(value)))
    return ", ".join(said)


def write(run: Run, folder: Path, name: str = "full") -> None:
    """Write the page and its chart; the full run's is the one in the documentation."""
    stem = "benchmarks" if name == "full" else name
    (folder / f"{stem}.svg").write_text(chart(run))
    (folder / f"{stem}.md").write_text(page(run, f"{stem}.svg"))


def page(run: Run, picture: str) -> str:
    """The report as Markdown."""
    parts = [
        HEAD.format(mode=run.mode, date=run.machine["date"], cpus=run.machine["cpus"]),
        f"![Jobs per second of Tenure and other queues]({picture})",
        _section(FLEETS, sections.fleets(run)),
        _section(PICKUP, sections.waits(run)),
        _section(ENQUEUEING, sections.rates(run, sections.SENDING)),
        _section(DRAINING, sections.rates(run, sections.DRAINS, keeps=True)),
        _section(KEEPING, sections.promises(run)),
        _section(COSTS, sections.costs(run)),
        _section(GROWTH.format(behind=f"{run.size['behind']:,}"), sections.growth(run)),
        _section(ALONE, sections.alone(run)),
        scaling(run),
        _section(TARGETS, _targets(run)),
        METHOD.format(**{name: f"{value:,}" for name, value in run.size.items()}),
        _section(RUNS, _runs(run)),
        _machine(run),
        _failures(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(heading: str, found: str) -> str:
    """A heading and its table; nothing where the run measured nothing of it."""
    return f"{heading}\n\n{found}" if found else ""


def _targets(run: Run) -> str:
    rows = [
        (
            verdict.target,
            ENGINES[verdict.engine],
            verdict.found,
            "met" if verdict.met else "**missed**",
        )
        for verdict in targets.verdicts(run)
        if verdict.met is not None
    ]
    return sections.markdown(("target", "on", "found", ""), rows)


def _runs(run: Run) -> str:
    """Which workloads were measured when, and how often."""
    return "\n".join(
        f"- {start}, repeats: {repeats}, jobs in a drain: {drained:,}: {', '.join(names)}.{remark}"
        for (start, repeats, drained, remark), names in run.runs().items()
    )


def _machine(run: Run) -> str:
    machine = run.machine
    engines = [f"{e['version']} ({e['settings']})" for e in machine.get("engines", {}).values()]
    versions = [f"{name} {version}" for name, version in machine["versions"].items()]
    peers = [
        f"{', '.join(subject.requirements)} on Python {machine['pythons'][subject.name]}"
        for subject in run.subjects()
        if not (subject.ours or subject.aside) and subject.name in machine.get("pythons", {})
    ]
    return "\n".join(
        [
            f"- Machine: {machine['cpus']} cores of {machine['cpu']}, {machine['memory_gb']} GB, "
            f"{machine['system']}, {machine['date']}",
            *(f"- {engine}" for engine in engines),
            f"- Tenure on Python {machine['python']}: {', '.join(versions)}",
            *(f"- {peer}" for peer in peers),
        ]
    )


def _failures(run: Run) -> str:
    lines = [
        f"- {result.workload}, {result.subject}: {result.failures[0].split(': see ')[0]}"
        for result in run.results
        if result.failures
    ]
    return "## Not measured\n\n" + "\n".join(lines) if lines else ""
