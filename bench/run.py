"""Measure Tenure and its peers on the same work, side by side.

    python bench/run.py quick      in under 3 minutes: Tenure and the two strongest of each engine
    python bench/run.py full       in an hour: everything, and docs/benchmarks.md from it
    python bench/run.py again      what the full run lacks, or with --only some workloads again
    python bench/run.py report     docs/benchmarks.md from the last full run

    --only drain-1,retry   some workloads      --peers pgqueuer,huey   some peers, beside Tenure
    --engine sqlite        some engines        --repeats 5             how often each is measured
    --jobs 2000            smaller drains, to try whether everything works

Repeats are interleaved: each queue once, then each again, so that whatever else the machine does
falls on all of them. What was found is kept after each workload: after a run that was cut short, or
a measurement that went wrong, `again` measures workloads again, puts them in place of what the full
run has of them, and writes docs/benchmarks.md. A workload has only queues that were measured
together: with --peers, the others leave it. A peer is installed into an environment of its own at
its first use.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # in place of this folder, whose modules are named `bench.…`

from bench import machine, plan, report  # noqa: E402
from bench.catalogue import Subject  # noqa: E402
from bench.environments import Unavailable, python_for  # noqa: E402
from bench.plan import Refused, Workload  # noqa: E402
from bench.processes import Failed  # noqa: E402
from bench.results import Measured, Result, Run, load, number  # noqa: E402
from bench.stage import Size, Stage  # noqa: E402

RESULTS = ROOT / "bench" / "results"
DOCS = ROOT / "docs"
AGAIN = "again"


def main() -> int:
    options = read_options()
    if sys.platform != "linux":
        print("the bench reads CPU time and memory from /proc: it needs Linux", file=sys.stderr)
        return 2
    if options.mode == "report":
        report.write(load(RESULTS / "full.json"), DOCS)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every server is stopped
    try:
        if options.mode == AGAIN:
            return measure_again(options)
        return measure_all(options)
    except Refused as error:
        print(error, file=sys.stderr)
        return 2


def measure_all(options: argparse.Namespace) -> int:
    """A run of its own, of everything in its mode or of the part that was asked for."""
    workloads = plan.workloads(options.mode, options.only)
    subjects = plan.subjects(options.mode, options.peers, options.engine)
    size = size_of(plan.SIZES[options.mode], options)
    partial = bool(options.only or options.peers or options.engine or options.jobs)
    name = "partial" if partial else options.mode
    run = Run(options.mode, machine.describe(), asdict(size))
    quick = options.mode == "quick" and not (options.only or options.peers)
    measure(run, size, workloads, subjects, RESULTS / f"{name}.json", quick=quick)
    report.write(run, DOCS if name == "full" else RESULTS, name)
    return exit_code(run)


def measure_again(options: argparse.Namespace) -> int:
    """Some workloads of the full run once more, at the size of a full run.

    Raises Refused if that is not what was asked for.
    """
    if options.engine or options.jobs:
        raise Refused("`again` takes --only, --peers and --repeats: the rest is that of a full run")
    kept = RESULTS / "full.json"
    run = load(kept) if kept.exists() else Run("full", {})
    run.machine |= machine.describe()
    run.size = asdict(plan.FULL)
    workloads = plan.workloads("full", options.only)
    if not options.only:
        workloads = [workload for workload in workloads if workload.name not in run.measured]
    size = size_of(plan.FULL, options)
    measure(run, size, workloads, plan.subjects("full", options.peers, []), kept)
    report.write(run, DOCS)
    return exit_code(run)


def size_of(size: Size, options: argparse.Namespace) -> Size:
    """The size of a mode, with what was asked for."""
    if options.repeats:
        size = replace(size, repeats=options.repeats)
    if options.jobs:
        size = replace(size, drained=options.jobs, retried=min(options.jobs, size.retried))
    return size


def exit_code(run: Run) -> int:
    return 1 if any(result.failures and not result.repeats for result in run.results) else 0


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def measure(
    run: Run,
    size: Size,
    workloads: list[Workload],
    subjects: list[Subject],
    kept: Path,
    *,
    quick: bool = False,
) -> None:
    """Measure workload by workload, keeping the run in a file after each; then show it."""
    how = Measured(now(), size.repeats, size.drained, f" On {run.machine['cpu']}.")
    with Stage(size) as stage:
        for workload in workloads:
            run.put(workload.name, measure_one(run, stage, workload, subjects, quick), how)
            run.machine.setdefault("engines", {}).update(machine.describe_engines(stage.started()))
            run.save(kept)
    print(report.tables(run))


def measure_one(
    run: Run, stage: Stage, workload: Workload, subjects: list[Subject], quick: bool
) -> list[Result]:
    """Put one workload to every queue that it fits, again and again, in turns."""
    results = {
        subject.name: Result(workload.name, subject.name)
        for subject in subjects
        if workload.takes(subject, quick=quick)
    }
    size = stage.size
    for repeat in range(min(size.repeats, workload.most_repeats)):
        # Nobody always goes first.
        exchange = repeat % max(len(subjects), 1)
        for subject in [*subjects[exchange:], *subjects[:exchange]]:
            result = results.get(subject.name)
            wanted = result and not result.failures and repeat < size.repeats_of(subject)
            if result is not None and wanted:
                _measure_once(run, stage, workload, subject, result)
    return list(results.values())


def _measure_once(
    run: Run, stage: Stage, workload: Workload, subject: Subject, result: Result
) -> None:
    started = time.monotonic()
    try:
        pythons = run.machine.setdefault("pythons", {})
        if subject.name not in pythons:
            python_for(subject)
            pythons[subject.name] = machine.python_of(subject)
        figures = workload.measure(stage, subject)
    except Exception as error:  # one queue's trouble must not cost an hour's measurements
        expected = isinstance(error, Unavailable | Failed)
        result.failures.append(str(error) if expected else f"{type(error).__name__}: {error}")
        said = f"not measured: {result.failures[0]}"
    else:
        result.repeats.append({name: round(value, 4) for name, value in figures.items()})
        said = ", ".join(f"{name} {number(value)}" for name, value in figures.items())
    took = time.monotonic() - started
    print(f"{workload.name:10} {subject.name:15} {took:5.1f} s  {said}", flush=True)


def read_options() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return [name.strip() for name in text.split(",") if name.strip()]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=[*plan.SIZES, AGAIN, "report"])
    parser.add_argument("--only", type=names, default=[], help="workloads, comma separated")
    parser.add_argument("--peers", type=names, default=[], help="queues, comma separated")
    parser.add_argument("--engine", type=names, default=[], help="engines, comma separated")
    parser.add_argument("--repeats", type=int, help="measurements of each")
    parser.add_argument("--jobs", type=int, help="jobs in a drain")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
