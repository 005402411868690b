"""A worker with nothing to do: what it costs, and how soon it starts a job that arrives."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import time
from collections.abc import Iterator

from bench.catalogue import Subject
from bench.environments import cache_folder, python_for
from bench.processes import Failed, Program, Setting, ask, worker
from bench.stage import Figures, Stage, wait_for
from bench.workload import Tally, payload

REST_SECONDS = 1.0
IMPORTS = 7


def latency(stage: Stage, subject: Subject) -> Figures:
    """From the start of the enqueue call in one process to the handler in another."""
    samples = stage.size.samples
    with _idle_worker(stage, subject, samples) as (setting, program, tally):
        ask(setting, "slowly", samples=samples, pause=stage.size.pause)
        wait_for(tally, samples, [program])
    waits = sorted((tally.ended[n] - tally.began[n]) / 1e6 for n in range(samples))
    if tally.doubled(samples):
        raise Failed("a job ran twice")
    return {
        "p50_ms": statistics.median(waits),
        "p99_ms": waits[-(-99 * samples // 100) - 1],
        "max_ms": waits[-1],
        "jobs": samples,
    }


def result(stage: Stage, subject: Subject) -> Figures:
    """From the start of the enqueue call until the result from another process is there."""
    from tenure import Tenure

    samples, waits = stage.size.samples, []
    with _idle_worker(stage, subject, samples) as (setting, _, _), Tenure(setting.place) as app:
        for n in range(samples):
            time.sleep(stage.size.pause)
            began = time.monotonic()
            job = app.wait(app.enqueue("send", payload(n)), timeout=30)
            waits.append((time.monotonic() - began) * 1e3)
            if job.status != "completed":
                raise Failed(f"job {n} is {job.status}")
    waits.sort()
    return {
        "p50_ms": statistics.median(waits),
        "p99_ms": waits[-(-99 * samples // 100) - 1],
        "max_ms": waits[-1],
        "jobs": samples,
    }


def idle(stage: Stage, subject: Subject) -> Figures:
    """CPU and memory of a worker that waits, all its processes together."""
    with _idle_worker(stage, subject, 0) as (_, program, _):
        before, started = program.cpu_seconds(), time.monotonic()
        time.sleep(stage.size.idle_seconds)
        after, memory = program.cpu_seconds(), program.memory_mb()
        program.check()
        share = (after - before) / (time.monotonic() - started)
    return {"memory_mb": memory, "cpu_percent": share * 100}


@contextlib.contextmanager
def _idle_worker(
    stage: Stage, subject: Subject, samples: int
) -> Iterator[tuple[Setting, Program, Tally]]:
    """A worker that has run one job, number `samples`, and come to rest."""
    setting = stage.fresh(subject)
    tally = stage.tally(samples + 1)
    with worker(setting) as program:
        ask(setting, "singly", callers=1, seconds=0, most=1, first=samples)
        deadline = time.monotonic() + 30
        while not tally.starts[samples]:
            program.check()
            if time.monotonic() > deadline:
                raise Failed("the worker did not run its first job")
            time.sleep(0.01)
        time.sleep(REST_SECONDS)
        yield setting, program, tally
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
