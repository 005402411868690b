"""Fleets: several workers with few slots each, whose jobs take time, as most jobs do.

Not how fast they could go is the question, but how much of the ideal rate is left when the queue
has done its part, and what each job costs the server meanwhile.
"""

from __future__ import annotations

from bench.catalogue import Subject
from bench.drains import fill_and_run
from bench.stage import Figures, Stage
from bench.workload import CONCURRENCY_VARIABLE, JOB_SECONDS_VARIABLE

WARM = 0.25  # before that, each new connection to a database makes plans


def fleet(
    stage: Stage, subject: Subject, *, workers: int, slots: int, job_seconds: float
) -> Figures:
    """Workers with so many slots each run jobs of one length; the ideal has no slot ever empty."""
    ideal = workers * slots / job_seconds
    rounds = max(round(stage.size.fleet_seconds / job_seconds), 2)
    jobs = min(rounds * workers * slots, stage.size.jobs_drained(subject))
    setting = stage.fresh(
        subject, **{CONCURRENCY_VARIABLE: str(slots), JOB_SECONDS_VARIABLE: str(job_seconds)}
    )
    figures = fill_and_run(
        stage, setting, jobs, workers=workers, job_seconds=job_seconds, warm=WARM
    )
    return {**figures, "of_ideal": figures["rate"] / ideal}
