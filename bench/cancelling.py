"""How soon a cancel stops its handler: ten workers, each with as many handlers as it may have."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace

from bench.catalogue import Subject
from bench.over_http import server
from bench.processes import Failed, ask, worker
from bench.stage import Figures, Stage
from bench.waiting import percentiles
from bench.workload import CONCURRENCY_VARIABLE

WORKERS = 10
STOP_SECONDS = 30.0


def cancel(stage: Stage, subject: Subject, *, remotely: bool = False) -> Figures:
    """From the start of the cancel call in one process to the handler in another; one by one.

    `remotely`: the workers reach the database through a server.
    """
    jobs = stage.size.samples // WORKERS * WORKERS or WORKERS
    setting = stage.fresh(subject, **{CONCURRENCY_VARIABLE: str(jobs // WORKERS)})
    tally = stage.tally(jobs)
    with contextlib.ExitStack() as running:
        theirs = setting
        if remotely:
            place = f"http://{running.enter_context(server(stage, setting))}"
            remote = replace(subject, adapter="tenure_remote")
            theirs = replace(setting, subject=remote, place=place)
        programs = [running.enter_context(worker(theirs)) for _ in range(WORKERS)]
        ask(setting, "cancel", jobs=jobs, pause=stage.size.pause)
        deadline = time.monotonic() + STOP_SECONDS
        while still := sum(not ended for ended in tally.ended[:jobs]):
            if time.monotonic() > deadline:
                raise Failed(f"{still} of {jobs} handlers were not stopped")
            time.sleep(0.01)
        for program in programs:
            program.kill()
    return percentiles((tally.ended[n] - tally.began[n]) / 1e6 for n in range(jobs))
