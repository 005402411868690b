"""The report of a run: tables for the terminal, and a page in Markdown with a chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench import targets
from bench.catalogue import Subject
from bench.chart import ENGINES, chart
from bench.plan import Workload
from bench.prose import (
    AGAIN,
    ALONE,
    DRAINING,
    ENQUEUEING,
    GROWTH,
    HEAD,
    KEEPING,
    METHOD,
    PICKUP,
    TARGETS,
)
from bench.results import Result, Run, number, percent, table, times
from bench.scaling import scaling

DRAINS = (("drain-1", "1 worker"), ("drain-2", "2 workers"), ("retry", "fail once, retry"))
SENDING = (("enqueue-1", "1 caller"), ("enqueue-16", "16 callers"), ("bulk", "1,000 a call"))
WAITING = (
    ("latency", "p50_ms", "pickup p50, ms"),
    ("latency", "p99_ms", "pickup p99, ms"),
    ("idle", "memory_mb", "idle, MB"),
    ("idle", "cpu_percent", "idle, % CPU"),
    ("drain-1", "memory_mb", "busy, MB"),
    ("drain-1", "cpu_us_per_job", "busy, µs CPU a job"),
    ("import", "import_ms", "import, ms"),
)
GROWING = (
    ("drain-1", "nothing else"),
    ("backlog", "pending behind"),
    ("history", "settled and kept"),
    ("pinned", "old snapshot pinned"),
)
NUMERIC = (*"-0123456789", "failed"[:1], "")
ONLY_TENURE = (
    *("raw", "threads", "http-1", "http-16", "http-64", "remote", "drain-4", "drain-8"),
    *("result", "cancel", "cancel-remote"),
)


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
    rows: list[Sequence[str]] = [("", "on", workload.unit, "spread", "Tenure is", "")]
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
                percent(result.spread(workload.figure)),
                times(ratio),
                _said(workload, result),
            )
        )
    return f"{workload.title}\n{table(rows)}"


def _said(workload: Workload, result: Result) -> str:
    if result.failures:
        return result.failures[0]
    said = ""
    if workload.figure == "p50_ms":
        said = f"p99 {number(result.median('p99_ms'))} ms"
    elif workload.name == "idle":
        said = f"{number(result.median('cpu_percent'))} % CPU"
    elif result.median("first_tenth"):
        first, last = (number(result.median(part)) for part in ("first_tenth", "last_tenth"))
        said = f"first tenth {first}, last {last}"
    if result.values("doubled"):
        said += f"; {max(result.values('doubled')):.0f} ran twice"
    return said


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
        _section(DRAINING, _rates(run, DRAINS, keeps=True)),
        _section(KEEPING, _promises(run)),
        _section(ENQUEUEING, _rates(run, SENDING, keeps=False)),
        _section(PICKUP, _waiting(run)),
        _section(GROWTH.format(behind=f"{run.size['behind']:,}"), _growth(run)),
        _section(ALONE, _others(run)),
        scaling(run),
        _section(TARGETS, _targets(run)),
        METHOD.format(**_size(run)) + _measured_again(run),
        _machine(run),
        _failures(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(heading: str, found: str) -> str:
    """A heading and its table; nothing where the run measured nothing of it."""
    return f"{heading}\n\n{found}" if found else ""


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, columns of numbers to the right; without rows, nothing."""
    if not rows:
        return ""
    rules = [
        "---:" if all(cell[:1] in NUMERIC for cell in column) else "---"
        for column in zip(*rows, strict=True)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rules, *rows))


def _name(subject: Subject) -> str:
    return f"**{subject.title}**" if subject.ours else subject.title


def _rates(run: Run, columns: Sequence[tuple[str, str]], *, keeps: bool) -> str:
    by_name = {workload.name: workload for workload in run.workloads()}
    head = ["", "on"]
    for _, title in columns:
        head += [title, "Tenure is"]
    rows = []
    if not any(name in by_name for name, _ in columns):
        return ""
    for subject in run.subjects():
        row = [_name(subject), ENGINES[subject.engine]]
        for name, _ in columns:
            result = run.result(name, subject.name)
            row.append(_rate(result))
            known = name in by_name and not subject.ours
            ratio = run.ratio(by_name[name], subject) if known else None
            row.append(times(ratio))
        if keeps:
            row.append(f"{subject.history}; retries: {subject.retries}; {subject.durable}")
        rows.append(row)
    return markdown([*head, "keeps; retries; durable"] if keeps else head, rows)


def _rate(result: Result) -> str:
    rate = result.median("rate")
    if rate is None:
        return "failed" if result.failures else "-"
    said = f"{number(rate)} {percent(result.spread('rate'))}".strip()
    doubled = result.values("doubled")
    return f"{said}, {max(doubled):.0f} ran twice" if doubled else said


def _promises(run: Run) -> str:
    rows = [
        (
            f"{_name(subject)} on {ENGINES[subject.engine]}",
            subject.history,
            subject.retries,
            subject.fencing,
            subject.crash,
            subject.durable,
        )
        for subject in run.subjects()
    ]
    head = ("", "after the end", "retries", "fencing", "worker dies", "durable")
    return markdown(head, rows)


def _waiting(run: Run) -> str:
    rows = []
    for subject in run.subjects():
        found = [run.median(name, subject.name, figure) for name, figure, _ in WAITING]
        if any(value is not None for value in found):
            rows.append([_name(subject), ENGINES[subject.engine], *map(number, found)])
    return markdown(["", "on", *(title for _, _, title in WAITING)], rows)


def _growth(run: Run) -> str:
    rows = []
    for subject in run.subjects():
        if not run.median("backlog", subject.name):
            continue
        empty = run.median("drain-1", subject.name)
        for name, title in GROWING:
            rate = run.median(name, subject.name)
            if not rate:
                continue
            share = f"{rate / empty * 100:.0f} %" if empty else "-"
            tenths = [run.median(name, subject.name, f"{end}_tenth") for end in ("first", "last")]
            where = f"{_name(subject)} on {ENGINES[subject.engine]}"
            rows.append([where, title, number(rate), share, *map(number, tenths)])
    head = ["", "beside", "jobs/s", "of empty", "first tenth", "last tenth"]
    return markdown(head, rows)


def _others(run: Run) -> str:
    ours = [subject for subject in run.subjects() if subject.ours]
    rows = []
    for workload in run.workloads():
        if workload.name not in ONLY_TENURE:
            continue
        row = [workload.title]
        for subject in ours:
            result = run.result(workload.name, subject.name)
            p50, p99 = result.median("p50_ms"), result.median("p99_ms")
            found = f"p50 {number(p50)} ms" if workload.less_is_better and p50 else _rate(result)
            row.append(f"{found}, p99 {number(p99)} ms" if p99 else found)
        rows.append(row)
    return markdown(["", *(f"on {ENGINES[s.engine]}" for s in ours)], rows)


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
    return markdown(("at least", "on", "found", ""), rows)


def _size(run: Run) -> dict[str, str]:
    return {name: f"{value:,}" for name, value in run.size.items()}


def _measured_again(run: Run) -> str:
    """Which workloads are of another run than the rest, if any: a line of the method."""
    by_start: dict[str, list[str]] = {}
    for name, started in run.measured_again().items():
        by_start.setdefault(started, []).append(name)
    again = [f"{', '.join(names)} ({started})" for started, names in by_start.items()]
    return "\n" + AGAIN.format(workloads="; ".join(again)) if again else ""


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
