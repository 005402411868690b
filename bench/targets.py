"""What Tenure is to reach, beside its peers in the same run. None is met by weakening a guard."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.catalogue import SUBJECTS, Subject
from bench.results import Run, number, times

OURS = {subject.engine: subject.name for subject in SUBJECTS if subject.ours}
WITHIN = 0.85


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target on one engine; `met` is None where the run did not measure what it takes."""

    target: str
    engine: str
    found: str
    met: bool | None


def verdicts(run: Run) -> list[Verdict]:
    """Every target, judged by a run."""
    return [
        verdict
        for engine in ("postgres", "sqlite")
        for judge in JUDGES
        for verdict in judge(run, engine)
    ]


def _at_least(
    target: str, engine: str, ours: float | None, other: float | None, factor: float
) -> Verdict:
    if ours is None or other is None:
        return Verdict(target, engine, "not measured", None)
    return Verdict(target, engine, times(ours / other), ours >= factor * other)


def _below(target: str, engine: str, found: float | None, limit: float, unit: str) -> Verdict:
    if found is None:
        return Verdict(target, engine, "not measured", None)
    return Verdict(target, engine, f"{number(found)} {unit}", found < limit)


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


def _is_durable(subject: Subject) -> bool:
    return "lost" not in subject.durable


def _drains(run: Run, engine: str) -> Iterable[Verdict]:
    name = OURS[engine]
    one, two = run.median("drain-1", name), run.median("drain-2", name)
    if engine == "postgres":
        fastest = run.median("drain-1", "pgqueuer")
        yield _at_least("drain, 1 worker: 1.5 times PgQueuer", engine, one, fastest, 1.5)
        rest = _best_peer(run, "drain-1", engine, fits=lambda s: s.name != "pgqueuer")
        yield _at_least("drain, 1 worker: 4 times every other peer", engine, one, rest, 4)
        fastest = run.median("drain-2", "pgqueuer")
        yield _at_least("drain, 2 workers: 1.3 times PgQueuer", engine, two, fastest, 1.3)
    else:
        raw = run.median("raw", name)
        yield _at_least("drain, 1 worker: the raw limit", engine, one, raw, 1)
        huey = run.median("drain-1", "huey")
        yield _at_least("drain, 1 worker: 8 times Huey", engine, one, huey, 8)
        yield _at_least("drain, 2 workers: not slower than 1", engine, two, one, 1)
    threads = run.median("threads", name)
    yield _at_least("drain, `def` handlers: 60 % of `async def`", engine, threads, one, 0.6)
    best = _best_peer(run, "retry", engine)
    factor = 5 if engine == "postgres" else 1
    target = (
        "fail once, retry: 5 times the best peer"
        if factor > 1
        else "fail once, retry: the best peer"
    )
    yield _at_least(target, engine, run.median("retry", name), best, factor)


def _sending(run: Run, engine: str) -> Iterable[Verdict]:
    name = OURS[engine]
    one, many = run.median("enqueue-1", name), run.median("enqueue-16", name)
    best = _best_peer(run, "enqueue-1", engine, fits=_is_durable)
    yield _at_least("enqueue, 1 caller: the best durable peer", engine, one, best, 1)
    factor = 4 if engine == "postgres" else 2.5
    yield _at_least(f"enqueue, 16 callers: {factor:g} times 1 caller", engine, many, one, factor)
    best = _best_peer(run, "bulk", engine)
    yield _at_least("bulk: the best peer", engine, run.median("bulk", name), best, 1)


def _waiting(run: Run, engine: str) -> Iterable[Verdict]:
    name = OURS[engine]
    p50, p99 = (run.median("latency", name, figure) for figure in ("p50_ms", "p99_ms"))
    most_p50, most_p99 = (3, 10) if engine == "postgres" else (2, 5)
    yield _below(f"pickup p50: under {most_p50} ms", engine, p50, most_p50, "ms")
    yield _below(f"pickup p99: under {most_p99} ms", engine, p99, most_p99, "ms")
    best = _best_peer(run, "latency", engine, "p50_ms")
    if p50 is None or best is None:
        yield Verdict("pickup p50: below every SQL peer", engine, "not measured", None)
    else:
        found = f"{number(p50)} against {number(best)} ms"
        yield Verdict("pickup p50: below every SQL peer", engine, found, p50 < best)
    result = run.median("result", name, "p50_ms")
    yield _below("enqueue to result p50: under 10 ms", engine, result, 10, "ms")
    for workload, what in (("cancel", ""), ("cancel-remote", ", over HTTP")):
        stopped = run.median(workload, name, "p99_ms")
        yield _below(f"cancel to handler p99{what}: under 200 ms", engine, stopped, 200, "ms")
    cpu = run.median("idle", name, "cpu_percent")
    yield _below("idle worker: under 1 % CPU", engine, cpu, 1, "%")
    memory = run.median("idle", name, "memory_mb")
    yield _below("idle worker: under 60 MB", engine, memory, 60, "MB")
    took = run.median("import", name, "import_ms")
    yield _below("import: under 100 ms", engine, took, 100, "ms")


def _growing(run: Run, engine: str) -> Iterable[Verdict]:
    name = OURS[engine]
    empty = run.median("drain-1", name)
    for workload, what in (
        ("backlog", "many pending behind"),
        ("history", "many settled kept"),
        ("pinned", "old snapshot pinned"),
    ):
        target = f"drain, {what}: within 15 % of empty"
        yield _at_least(target, engine, run.median(workload, name), empty, WITHIN)
        first = run.median(workload, name, "first_tenth")
        last = run.median(workload, name, "last_tenth")
        target = f"drain, {what}: flat, the last tenth within 15 % of the first"
        yield _at_least(target, engine, last, first, WITHIN)


def _over_http(run: Run, engine: str) -> Iterable[Verdict]:
    name = OURS[engine]
    for workload, what in (("http-64", "POST /jobs, 64 clients"), ("remote", "remote worker")):
        rate = run.median(workload, name)
        if rate is None:
            yield Verdict(f"{what}: 5,000/s", engine, "not measured", None)
        else:
            yield Verdict(f"{what}: 5,000/s", engine, f"{number(rate)}/s", rate >= 5_000)


JUDGES = (_drains, _sending, _waiting, _growing, _over_http)
