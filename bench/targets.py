"""What Tenure is to reach, beside its peers in the same run. None is met by weakening a guard."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.catalogue import SUBJECTS, Subject
from bench.plan import FLEETS
from bench.results import Run, number, times

OURS = {subject.engine: subject.name for subject in SUBJECTS if subject.ours}
WITHIN = 0.85
MOST_MS = {"postgres": (2.5, 6), "sqlite": (2, 4)}
DRAINS = (
    ("drain-1", "drain, 1 worker"),
    ("drain-2", "drain, 2 workers"),
    ("drain-8", "drain, 8 workers"),
    ("retry", "fail once, retry"),
)
WAITS = (
    ("pickup", "pickup"),
    ("pickup-10", "pickup beside 10 idle workers"),
    ("commit", "commit to handler"),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target on one engine; `met` is None where the run did not measure what it takes."""

    target: str
    engine: str
    found: str
    met: bool | None


def verdicts(run: Run) -> list[Verdict]:
    """Every target, judged by a run."""
    return [verdict for engine in OURS for judge in JUDGES for verdict in judge(run, engine)]


def survives(subject: Subject) -> bool:
    """Whether a job comes back by itself after its worker has died."""
    return not subject.crash.startswith(("job is lost", "stays locked"))


def _unknown(target: str, engine: str) -> Verdict:
    return Verdict(target, engine, "not measured", None)


def _at_least(
    target: str, engine: str, ours: float | None, other: float | None, factor: float
) -> Verdict:
    if ours is None or not other:
        return _unknown(target, engine)
    return Verdict(target, engine, times(ours / other), ours >= factor * other)


def _at_most(target: str, engine: str, found: float | None, limit: float, unit: str) -> Verdict:
    if found is None:
        return _unknown(target, engine)
    return Verdict(target, engine, f"{number(found)} {unit}", found <= limit)


def _less(
    target: str, engine: str, ours: float | None, other: float | None, factor: float = 1
) -> Verdict:
    """Ours, times the factor, is not above the other's."""
    if ours is None or other is None:
        return _unknown(target, engine)
    found = f"{number(ours)} against {number(other)}"
    return Verdict(target, engine, found, ours * factor <= other)


def _best_peer(
    run: Run,
    workload: str,
    engine: str,
    figure: str = "rate",
    fits: Callable[[Subject], bool] = lambda subject: True,
) -> float | None:
    found = [
        value
        for subject in SUBJECTS
        if subject.engine == engine and not (subject.ours or subject.aside) and fits(subject)
        if (value := run.median(workload, subject.name, figure)) is not None
    ]
    if not found:
        return None
    return max(found) if figure == "rate" else min(found)


def _rivals(engine: str) -> Callable[[Subject], bool]:
    """Whom Tenure has to be ahead of: on SQLite, those that keep a job whose worker dies."""
    return survives if engine == "sqlite" else lambda subject: True


def _who(engine: str) -> str:
    return "the best peer" if engine == "postgres" else "the best peer that keeps jobs"


def _sending(run: Run, engine: str) -> Iterable[Verdict]:
    share = 1.0 if engine == "postgres" else 0.7
    who = "the best peer" if share == 1 else "0.7 of the best durable peer"
    for workload, what in (("enqueue-1", "enqueue, 1 caller"), ("bulk", "bulk")):
        ours = run.median(workload, OURS[engine])
        best = _best_peer(run, workload, engine)
        yield _at_least(f"{what}: {who}", engine, ours, best, share)


def _drains(run: Run, engine: str) -> Iterable[Verdict]:
    name = OURS[engine]
    for workload, what in DRAINS:
        best = _best_peer(run, workload, engine, fits=_rivals(engine))
        target = f"{what}: {_who(engine)}"
        yield _at_least(target, engine, run.median(workload, name), best, 1)
    target = "drain: 8 workers, 0.9 of 1 worker"
    if run.are_of_one_run("drain-1", "drain-8"):
        one, eight = (run.median(workload, name) for workload in ("drain-1", "drain-8"))
        yield _at_least(target, engine, eight, one, 0.9)
    else:
        yield _unknown(target, engine)


def _fleets(run: Run, engine: str) -> Iterable[Verdict]:
    for workload, workers, slots, seconds in FLEETS:
        what = f"fleet of {workers} x {slots}, {seconds * 1000:.0f} ms"
        ours = run.median(workload, OURS[engine])
        best = _best_peer(run, workload, engine, fits=_rivals(engine))
        yield _at_least(f"{what}: {_who(engine)}", engine, ours, best, 1)
        if engine == "postgres":
            figure = "server_us_per_job"
            cost = run.median(workload, OURS[engine], figure)
            best = _best_peer(run, workload, engine, figure)
            target = f"{what}: a third of every peer's server CPU, µs a job"
            yield _less(target, engine, cost, best, 3)
            if slots == 1:
                target = f"{what}: at most 350 µs of server CPU a job"
                yield _at_most(target, engine, cost, 350, "µs")


def _waiting(run: Run, engine: str) -> Iterable[Verdict]:
    name = OURS[engine]
    for figure, most in zip(("p50_ms", "p99_ms"), MOST_MS[engine], strict=True):
        shown = figure.removesuffix("_ms")
        found = run.median("pickup", name, figure)
        yield _at_most(f"pickup {shown}: at most {most} ms", engine, found, most, "ms")
        for workload, what in WAITS:
            best = _best_peer(run, workload, engine, figure, _rivals(engine))
            target = f"{what} {shown}, ms: {_who(engine)}"
            yield _less(target, engine, run.median(workload, name, figure), best)
    result = run.median("result", name, "p50_ms")
    yield _at_most("enqueue to result p50: at most 10 ms", engine, result, 10, "ms")
    for workload, what in (("cancel", ""), ("cancel-remote", ", over HTTP")):
        stopped = run.median(workload, name, "p99_ms")
        target = f"cancel to handler p99{what}: at most 200 ms"
        yield _at_most(target, engine, stopped, 200, "ms")
    cpu = run.median("idle", name, "cpu_percent")
    yield _at_most("idle worker: at most 0.3 % CPU", engine, cpu, 0.3, "%")
    took = run.median("import", name, "import_ms")
    yield _at_most("import: at most 70 ms", engine, took, 70, "ms")


def _growing(run: Run, engine: str) -> Iterable[Verdict]:
    name = OURS[engine]
    for workload, what in (
        ("backlog", "many pending behind"),
        ("history", "many settled kept"),
        ("pinned", "old snapshot pinned"),
    ):
        target = f"drain, {what}: within 15 % of empty"
        if run.are_of_one_run("drain-1", workload):
            empty = run.median("drain-1", name)
            yield _at_least(target, engine, run.median(workload, name), empty, WITHIN)
        else:
            yield _unknown(target, engine)
        first = run.median(workload, name, "first_tenth")
        last = run.median(workload, name, "last_tenth")
        target = f"drain, {what}: flat, the last tenth within 15 % of the first"
        yield _at_least(target, engine, last, first, WITHIN)


def _over_http(run: Run, engine: str) -> Iterable[Verdict]:
    for workload, what in (("http-64", "POST /jobs, 64 clients"), ("remote", "remote worker")):
        rate = run.median(workload, OURS[engine])
        if rate is None:
            yield _unknown(f"{what}: 5,000/s", engine)
        else:
            yield Verdict(f"{what}: 5,000/s", engine, f"{number(rate)}/s", rate >= 5_000)


JUDGES = (_sending, _drains, _fleets, _waiting, _growing, _over_http)
