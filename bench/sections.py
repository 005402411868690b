"""The tables of the page, each made from a run."""

from __future__ import annotations

from collections.abc import Sequence

from bench.catalogue import Subject
from bench.chart import ENGINES
from bench.plan import FLEETS
from bench.results import Result, Run, number, shown, times

DRAINS = (
    ("drain-1", "1 worker"),
    ("drain-2", "2 workers"),
    ("drain-8", "8 workers"),
    ("retry", "fail once, retry"),
)
SENDING = (("enqueue-1", "1 caller"), ("enqueue-16", "16 callers"), ("bulk", "1,000 a call"))
WAITS = (
    ("pickup", "pickup"),
    ("pickup-10", "pickup, 10 idle workers"),
    ("commit", "commit to handler"),
    ("cancel", "cancel to handler"),
)
COSTS = (
    ("idle", "memory_mb", "idle, MB"),
    ("idle", "cpu_percent", "idle, % CPU"),
    ("drain-1", "memory_mb", "busy, MB"),
    ("drain-1", "cpu_us_per_job", "busy, µs CPU a job"),
    ("drain-1", "server_us_per_job", "its server, µs CPU a job"),
    ("drain-1", "wal_bytes_per_job", "log, bytes a job"),
    ("drain-1", "image_bytes_per_job", "of them page images"),
    ("import", "import_ms", "import, ms"),
)
GROWING = (
    ("drain-1", "nothing else"),
    ("backlog", "pending behind"),
    ("history", "settled and kept"),
    ("pinned", "old snapshot pinned"),
)
ONLY_TENURE = (
    *("raw", "threads", "limit", "rate", "workflows", "schedules", "http-1", "http-16"),
    *("http-64", "remote", "result", "cancel-remote"),
)
NUMERIC = (*"-0123456789", "f", "")  # "failed" among them


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


def _where(subject: Subject) -> str:
    return f"{_name(subject)} on {ENGINES[subject.engine]}"


def rates(run: Run, columns: Sequence[tuple[str, str]], *, keeps: bool = False) -> str:
    """Jobs per second of each queue on some workloads, and what it keeps."""
    by_name = {workload.name: workload for workload in run.workloads()}
    if not any(name in by_name for name, _ in columns):
        return ""
    head = ["", "on"]
    for _, title in columns:
        head += [title, "Tenure is"]
    rows = []
    for subject in run.subjects():
        row = [_name(subject), ENGINES[subject.engine]]
        for name, _ in columns:
            known = name in by_name and not subject.ours
            ratio = run.ratio(by_name[name], subject) if known else None
            row += [_rate(run.result(name, subject.name)), times(ratio)]
        if keeps:
            row.append(f"{subject.history}; retries: {subject.retries}; {subject.durable}")
        rows.append(row)
    return markdown([*head, "keeps; retries; durable"] if keeps else head, rows)


def _rate(result: Result) -> str:
    if result.median("rate") is None:
        return "failed" if result.failures else "-"
    doubled = result.values("doubled")
    return shown(result, "rate") + (f", {max(doubled):.0f} ran twice" if doubled else "")


def fleets(run: Run) -> str:
    """What fleets reach of the ideal, and what a job costs the server meanwhile."""
    rows = []
    for name, workers, slots, seconds in FLEETS:
        for subject in run.subjects():
            result = run.result(name, subject.name)
            if not (result.repeats or result.failures):
                continue
            share = result.median("of_ideal")
            rows.append(
                [
                    f"{workers} x {slots}, {seconds * 1000:.0f} ms",
                    _where(subject),
                    _rate(result),
                    f"{share * 100:.0f} %" if share else "-",
                    shown(result, "server_us_per_job"),
                    *(
                        number(result.median(figure))
                        for figure in ("cpu_us_per_job", "writes_per_job", "connections")
                    ),
                ]
            )
    head = ("workers x slots, job", "", "jobs/s", "of ideal", "server, µs CPU a job")
    return markdown(
        (*head, "workers, µs CPU a job", "writing transactions a job", "connections"), rows
    )


def waits(run: Run) -> str:
    """How soon handlers start and stop, and how long the enqueue call takes beside idle workers."""
    head = ["", "on"]
    for _, title in WAITS:
        head += [f"{title} p50, ms", "p99"]
    rows = []
    for subject in run.subjects():
        results = [run.result(name, subject.name) for name, _ in WAITS]
        if not any(result.repeats for result in results):
            continue
        cells = [shown(result, figure) for result in results for figure in ("p50_ms", "p99_ms")]
        call = number(run.median("pickup-10", subject.name, "call_p50_ms"))
        rows.append([_name(subject), ENGINES[subject.engine], *cells, call])
    return markdown([*head, "enqueue call, 10 idle workers, ms"], rows)


def costs(run: Run) -> str:
    """What a worker costs, idle and busy, and its server."""
    rows = []
    for subject in run.subjects():
        found = [run.median(name, subject.name, figure) for name, figure, _ in COSTS]
        if any(value is not None for value in found):
            rows.append([_name(subject), ENGINES[subject.engine], *map(number, found)])
    return markdown(["", "on", *(title for _, _, title in COSTS)], rows)


def promises(run: Run) -> str:
    """What each queue keeps and promises."""
    rows = [
        (
            _where(subject),
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


def growth(run: Run) -> str:
    """The drain beside much else; as a part of the empty one where both are of one run."""
    rows = []
    for subject in run.subjects():
        if not run.median("backlog", subject.name):
            continue
        empty = run.median("drain-1", subject.name)
        for name, title in GROWING:
            result = run.result(name, subject.name)
            rate = result.median("rate")
            if not rate:
                continue
            comparable = empty and run.are_of_one_run("drain-1", name)
            share = f"{rate / empty * 100:.0f} %" if comparable and empty else "-"
            tenths = [result.median(f"{end}_tenth") for end in ("first", "last")]
            cells = [_where(subject), title, shown(result, "rate"), share, *map(number, tenths)]
            rows.append(cells)
    head = ["", "beside", "jobs/s", "of empty", "first tenth", "last tenth"]
    return markdown(head, rows)


def alone(run: Run) -> str:
    """The workloads that only Tenure is put to."""
    ours = [subject for subject in run.subjects() if subject.ours]
    rows = []
    for workload in run.workloads():
        if workload.name not in ONLY_TENURE:
            continue
        row = [workload.title]
        for subject in ours:
            result = run.result(workload.name, subject.name)
            p99 = result.median("p99_ms")
            found = _rate(result)
            if workload.less_is_better and result.repeats:
                found = f"p50 {shown(result, workload.figure)} ms"
            row.append(f"{found}, p99 {number(p99)} ms" if p99 else found)
        rows.append(row)
    return markdown(["", *(f"on {ENGINES[s.engine]}" for s in ours)], rows)
