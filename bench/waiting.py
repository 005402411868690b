"""Workers with nothing to do: what one costs, and how soon they start a job that arrives."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import time
from collections.abc import Iterable, Iterator

from bench import gate
from bench.catalogue import Subject
from bench.cost import Cost
from bench.environments import cache_folder, python_for
from bench.processes import Failed, Program, Setting, ask, worker
from bench.stage import Figures, Stage, wait_for
from bench.workload import Tally, payload

REST_SECONDS = 1.0
IMPORTS = 7


def pickup(stage: Stage, subject: Subject, *, workers: int = 1, command: str = "slowly") -> Figures:
    """From the start of the enqueue call in one process to the handler in another.

    By the command `committing` the job is enqueued in a transaction of the caller, and the time
    runs from the start of its commit. Also how long the call took, and what a job cost the server
    while all workers waited for it.
    """
    samples = stage.size.samples
    with _idle_workers(stage, subject, samples, workers) as (setting, programs, tally):
        cost = Cost(stage, setting, programs)
        called = ask(setting, command, samples=samples, pause=stage.size.pause)
        wait_for(tally, samples, programs)
        figures = cost.per_job(samples)
    if tally.doubled(samples):
        raise Failed("a job ran twice")
    waits = percentiles((tally.ended[n] - tally.began[n]) / 1e6 for n in range(samples))
    return {**waits, "call_p50_ms": called["call_p50_ms"], **figures}


def percentiles(waits: Iterable[float]) -> Figures:
    """Median, 99th percentile and worst of waits in milliseconds, and how many there were."""
    ordered = sorted(waits)
    return {
        "p50_ms": statistics.median(ordered),
        "p99_ms": ordered[-(-99 * len(ordered) // 100) - 1],
        "max_ms": ordered[-1],
        "jobs": len(ordered),
    }


def result(stage: Stage, subject: Subject) -> Figures:
    """From the start of the enqueue call until the result from another process is there."""
    from tenure import Tenure

    samples, waits = stage.size.samples, []
    with _idle_workers(stage, subject, samples) as (setting, _, _), Tenure(setting.place) as app:
        for n in range(samples):
            time.sleep(stage.size.pause)
            began = time.monotonic()
            job = app.wait(app.enqueue("send", payload(n)), timeout=30)
            waits.append((time.monotonic() - began) * 1e3)
            if job.status != "completed":
                raise Failed(f"job {n} is {job.status}")
    return percentiles(waits)


def idle(stage: Stage, subject: Subject) -> Figures:
    """CPU and memory of a worker that waits, all its processes together."""
    with _idle_workers(stage, subject, 0) as (_, [program], _):
        before, started = program.cpu_seconds(), time.monotonic()
        time.sleep(stage.size.idle_seconds)
        after, memory = program.cpu_seconds(), program.memory_mb()
        program.check()
        share = (after - before) / (time.monotonic() - started)
    return {"memory_mb": memory, "cpu_percent": share * 100}


@contextlib.contextmanager
def _idle_workers(
    stage: Stage, subject: Subject, samples: int, workers: int = 1
) -> Iterator[tuple[Setting, list[Program], Tally]]:
    """Workers of which one has run a job, number `samples`, and that have come to rest."""
    setting = stage.fresh(subject)
    tally = stage.tally(samples + 1)
    with contextlib.ExitStack() as running:
        programs = [running.enter_context(worker(setting)) for _ in range(workers)]
        ask(setting, "singly", callers=1, seconds=0, most=1, first=samples)
        deadline = time.monotonic() + 30
        while not tally.starts[samples]:
            for program in programs:
                program.check()
            if time.monotonic() > deadline:
                raise Failed("no worker ran the first job")
            time.sleep(0.01)
        gate.wait_until_at_rest(programs)
        time.sleep(REST_SECONDS)
        yield setting, programs, tally
        for program in programs:
            program.kill()


def import_time(stage: Stage, subject: Subject) -> Figures:
    """A fresh process importing what users of the queue import, compiled as installers leave it."""
    code = (
        "import time; began = time.perf_counter(); "
        f"{subject.imports}; print(time.perf_counter() - began)"
    )
    command = [str(python_for(subject)), "-c", code]
    keeps_bytecode = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    times = []
    for _ in range(1 + IMPORTS):
        done = subprocess.run(
            command, capture_output=True, cwd=cache_folder(), check=True, env=keeps_bytecode
        )
        times.append(float(done.stdout.split()[-1]) * 1000)
    return {"import_ms": statistics.median(times[1:])}  # the first one may have had to compile
