"""What only some queues have, measured for Tenure alone: limits, workflows and schedules."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from bench.catalogue import Subject
from bench.drains import drain_filled
from bench.gate import QUEUE
from bench.processes import Failed, worker
from bench.stage import Figures, Stage, check_integrity, fill, wait_for
from bench.workload import payload

LIMITED_WORKERS = 2
MAX_RUNNING = 100
RATE = 1_000  # a second
RATE_SECONDS = 3
FAN = 100
LEAD_SECONDS = 2.0
TRIED = 20


def drain_limited(stage: Stage, subject: Subject) -> Figures:
    """A drain of a queue of which half of the slots of two workers may run."""
    return _drain_with(stage, subject, stage.size.jobs_retried(subject), max_running=MAX_RUNNING)


def drain_rated(stage: Stage, subject: Subject) -> Figures:
    """A drain of a queue that starts fewer jobs a second than its workers could."""
    jobs = min(RATE * RATE_SECONDS, stage.size.jobs_retried(subject))
    figures = _drain_with(stage, subject, jobs, rate=f"{RATE}/1s")
    return {**figures, "of_ideal": figures["rate"] / RATE}


def _drain_with(stage: Stage, subject: Subject, jobs: int, **limits: Any) -> Figures:
    from tenure import Tenure

    setting = stage.fresh(subject)
    fill(setting, jobs)
    with Tenure(setting.place) as app:
        app.queues.limit(QUEUE, **limits)
    return drain_filled(stage, setting, jobs, workers=LIMITED_WORKERS)


def drain_workflows(stage: Stage, subject: Subject) -> Figures:
    """Workflows in which one job comes before `FAN` jobs side by side, and one after them."""
    from tenure import Tenure
    from tenure.rules.jobs import NewJob

    size = FAN + 2
    flows = max(stage.size.jobs_retried(subject) // size, 1)
    setting = stage.fresh(subject)
    with Tenure(setting.place) as app:
        for first in range(0, flows * size, size):
            jobs = [NewJob("send", payload(n), {}) for n in range(first, first + size)]
            with app.workflow("fan") as flow:
                start = flow.add(jobs[0])
                fan = [flow.add(job, depends_on=[start]) for job in jobs[1:-1]]
                flow.add(jobs[-1], depends_on=fan)
    return drain_filled(stage, setting, flows * size)


def fire_schedules(stage: Stage, subject: Subject) -> Figures:
    """Schedules that are all due at one moment: from then on until their jobs have started."""
    from tenure import Tenure
    from tenure.rules.jobs import NewJob

    number = stage.size.samples * 10
    setting = stage.fresh(subject)
    tally = stage.tally(number)
    with Tenure(setting.place) as app, worker(setting) as program:

        def create(n: int, at: datetime) -> None:
            app.schedules.create(f"schedule-{n}", NewJob("send", payload(n), {}), at=at)

        began, now = time.monotonic(), datetime.now(UTC)
        for n in range(TRIED):  # jobs that nobody counts, for a day that does not come
            create(number + n, now + timedelta(days=1))
        lead = LEAD_SECONDS + 2 * number / TRIED * (time.monotonic() - began)
        at = datetime.now(UTC) + timedelta(seconds=lead)
        due = time.monotonic_ns() + round(lead * 1e9)
        for n in range(number):
            create(n, at)
        if time.monotonic_ns() > due:
            raise Failed(f"{number} schedules were not made within {lead:.0f} s")
        wait_for(tally, number, [program])
        program.kill()
    check_integrity(setting)
    waits = sorted((ended - due) / 1e6 for ended in tally.ended[:number])
    return {
        "rate": number / waits[-1] * 1e3,
        "p50_ms": waits[number // 2],
        "p99_ms": waits[math.ceil(number * 0.99) - 1],
        "jobs": number,
    }
