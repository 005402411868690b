"""Draining: how fast workers run what has been enqueued, with nothing or much around it.

The workers are started behind a gate (`gate.py`) and are at rest when it opens. The time runs from
the start of the first handler to the later of the last handler and the moment at which the database
itself shows nothing waiting and nothing running. A drain counts only if every job ran and
none is left. For Tenure, none may have run twice, and `tenure verify` must find no fault; where a
peer runs jobs twice though nothing had crashed, the report says so.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from bench import gate
from bench.catalogue import Subject
from bench.cost import Cost
from bench.environments import ROOT
from bench.processes import Failed, Setting, ask_program, worker
from bench.stage import Figures, Stage, check_integrity, fill, wait_for
from bench.workload import FAIL_FIRST_VARIABLE, Tally

SETTLED_SECONDS = 20.0
HANDLER_VARIABLE = "BENCH_HANDLER"
RAW_BATCH = 500


def drain(stage: Stage, subject: Subject, *, workers: int = 1) -> Figures:
    """Drain with worker processes, `async def` handlers where the queue has them."""
    setting = stage.fresh(subject)
    return fill_and_run(stage, setting, stage.size.jobs_drained(subject), workers=workers)


def drain_threads(stage: Stage, subject: Subject) -> Figures:
    """Drain with a plain `def` handler, which runs in threads."""
    setting = stage.fresh(subject, **{HANDLER_VARIABLE: "def"})
    return fill_and_run(stage, setting, stage.size.jobs_drained(subject))


def retry(stage: Stage, subject: Subject) -> Figures:
    """Every job fails once, is retried without delay, and succeeds; a job counts once."""
    setting = stage.fresh(subject, **{FAIL_FIRST_VARIABLE: "1"})
    return fill_and_run(stage, setting, stage.size.jobs_retried(subject), starts=2)


def fill_and_run(stage: Stage, setting: Setting, jobs: int, **how: Any) -> Figures:
    """Enqueue jobs, then drain them."""
    fill(setting, jobs)
    return drain_filled(stage, setting, jobs, **how)


def drain_filled(stage: Stage, setting: Setting, jobs: int, **how: Any) -> Figures:
    """Run workers on the jobs that are there, as `run_workers` says."""
    stage.calm(setting)
    return run_workers(stage, setting, setting, jobs, **how)


def drain_with_backlog(stage: Stage, subject: Subject) -> Figures:
    """The first jobs of a long queue: the others stay pending behind them."""
    jobs = stage.size.jobs_drained_beside(subject)

    def make(setting: Setting) -> None:
        fill(setting, jobs + stage.size.behind)

    setting = stage.kept(subject, "backlog", make)
    return run_workers(stage, setting, setting, jobs, behind=stage.size.behind)


def drain_with_history(stage: Stage, subject: Subject) -> Figures:
    """A drain beside settled jobs that are kept, made by the store's own statements."""
    jobs = stage.size.jobs_drained_beside(subject)

    def make(setting: Setting) -> None:
        fill(setting, stage.size.behind, first=jobs)
        _run_raw(setting)

    setting = stage.kept(subject, "history", make)
    return fill_and_run(stage, setting, jobs)


def drain_pinned(stage: Stage, subject: Subject) -> Figures:
    """A drain while somebody holds a snapshot from before it began, so that nothing is cleaned."""
    jobs = stage.size.jobs_drained_beside(subject)
    setting = stage.fresh(subject)
    fill(setting, jobs)
    stage.calm(setting)
    with stage.engine(subject).pinned(setting.place):
        return run_workers(stage, setting, setting, jobs)


def raw(stage: Stage, subject: Subject) -> Figures:
    """The same jobs by the store's own statements in a loop, without a worker: see `raw.py`."""
    jobs = stage.size.jobs_drained(subject)
    setting = stage.fresh(subject)
    fill(setting, jobs)
    stage.calm(setting)
    figures = _run_raw(setting)
    if figures["jobs"] != jobs or stage.left(setting):
        raise Failed(f"the raw loop settled {figures['jobs']:.0f} jobs, not {jobs}")
    return figures


def _run_raw(setting: Setting) -> Figures:
    python = setting.command("work")[0]
    command = [python, str(ROOT / "bench" / "raw.py"), setting.place, str(RAW_BATCH)]
    return ask_program(command, setting.environment(), setting.subject.name)


def run_workers(
    stage: Stage,
    store: Setting,
    setting: Setting,
    jobs: int,
    *,
    workers: int = 1,
    starts: int = 1,
    behind: int = 0,
    job_seconds: float = 0.0,
    warm: float = 0.0,
) -> Figures:
    """Run workers of `setting` on the jobs in `store` until all have run; how fast, at what cost.

    Nothing may be amiss in `store` after. With jobs pending `behind` them, the first `jobs` are
    waited for and the others not looked at. A handler takes `job_seconds`. The cost is counted
    from when the part `warm` of them has run.
    """
    tally = stage.tally(jobs)
    with contextlib.ExitStack() as running:
        open_gate = running.enter_context(gate.closed(stage, store))
        programs = [running.enter_context(worker(setting)) for _ in range(workers)]
        gate.wait_until_at_rest(programs)
        if tally.missing(jobs) < jobs:
            raise Failed("jobs ran before the gate was opened")
        cost = Cost(stage, store, programs)
        open_gate()
        counted = jobs
        if warm:
            wait_for(tally, jobs, programs, missing=round(jobs * (1 - warm)))
            cost, counted = Cost(stage, store, programs), tally.missing(jobs)
        wait_for(tally, jobs, programs, starts=starts, missing=jobs // 2)
        connections = cost.connections()
        wait_for(tally, jobs, programs, starts=starts)
        ended = max(tally.ended[:jobs])
        if not behind:
            ended = max(ended, _wait_until_settled(stage, store, jobs))
        figures = {**cost.per_job(max(counted, 1)), **connections}
    doubled = tally.doubled(jobs, starts)
    if doubled and store.subject.ours:
        raise Failed(f"{doubled} of {jobs} jobs ran too often")
    if not behind and stage.left(store):
        raise Failed("jobs that had settled were there again when the workers had ended")
    check_integrity(store)
    began = min(tally.began[:jobs] if starts > 1 else tally.ended[:jobs])
    seconds = (ended - began) / 1e9 + job_seconds
    if doubled:
        figures["doubled"] = doubled  # said beside the number of a peer
    return {"rate": jobs / seconds, "jobs": jobs, **_tenths(tally, jobs), **figures}


def _wait_until_settled(stage: Stage, store: Setting, jobs: int) -> int:
    """When the database first showed nothing left, by the tally's clock; 0 if at first sight."""
    deadline = time.monotonic() + SETTLED_SECONDS
    seen = 0
    while (left := stage.left(store)) > 0:
        if time.monotonic() > deadline:
            raise Failed(f"{left} of {jobs} jobs have run and are not settled")
        time.sleep(0.005)
        seen = time.monotonic_ns()
    return seen


def _tenths(tally: Tally, jobs: int) -> Figures:
    """The rate over the first and over the last tenth of the jobs that ran."""
    ended = sorted(tally.ended[:jobs])
    part = jobs // 10
    if part < 2 or ended[part] == ended[0] or ended[-1] == ended[-1 - part]:
        return {}
    return {
        "first_tenth": part * 1e9 / (ended[part] - ended[0]),
        "last_tenth": part * 1e9 / (ended[-1] - ended[-1 - part]),
    }
