"""The main job, end to end: jobs of several kinds through success, retry and permanent failure.

Everything is real, the store, the worker, the sweeper; only the handlers pretend (`simulation`).
Every run ends the same way, job by job: all jobs are on disk before the worker starts, it claims
them at once, and the simulation fails by rule and not by chance.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from tenure.app.app import Tenure
from tenure.errors import InvalidInput, TenureError
from tenure.jobs.enqueue import NewJob, Options
from tenure.jobs.findings import Violation
from tenure.jobs.handlers import Handlers
from tenure.jobs.progress import Progress, no_progress
from tenure.jobs.work import ClaimRequest
from tenure.lifecycle import SETTLED, Job
from tenure.worker.fake_handlers import add_fake_handlers
from tenure.worker.maintenance import Sweeper
from tenure.worker.process import run_loop
from tenure.worker.worker import Worker

RULES: dict[str, Any] = {"fail_types": ["payment"], "fail_every": 6}
QUICK = {"base": 0.1, "factor": 2.0, "cap": 1.0}
LEASE_SECONDS = 1.0
SWEEP_SECONDS = 0.1
MAX_SECONDS = 60.0
VANISHING = "import"
DROPPED = "newsletter"


@dataclass(frozen=True, slots=True)
class Story:
    """A job at its end, and every status it had on the way."""

    job: Job
    statuses: Sequence[str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo did: every job in the order of its adding, and what `verify` found."""

    stories: Sequence[Story]
    violations: Sequence[Violation]


def new_jobs() -> list[NewJob]:
    """The jobs of the demo."""
    made: list[NewJob] = []

    def add(type: str, payload: dict[str, Any], **options: Unpack[Options]) -> None:
        made.append(NewJob(type, payload, {"backoff": QUICK, **options}))

    for number in range(1, 11):
        add("email", {"to": f"customer-{number}@example.com"}, queue="mail")
    for number in range(1, 7):
        add("report", {"month": number}, priority=5)
    for number in range(1, 5):
        add("payment", {"order": number}, queue="money", priority=-5)
    for number in range(1, 5):
        add(VANISHING, {"file": f"part-{number}.csv"}, max_retries=5)
    for fails, limit in ((1, 3), (2, 3), (3, 3), (3, 5), (1, 1), (1, 0)):
        add("fake.flaky", {"fail_times": fails}, max_retries=limit)
    add("fake.flaky", {"fail_times": "often"})  # does not fit the handler: no retry can help
    add("fake.fail", {}, max_retries=2)
    for _ in range(2):
        add("fake.sleep", {"seconds": 0.3})
    add(DROPPED, {"issue": 7}, delay="1h")
    return made


def run(database: str, progress: Progress = no_progress) -> Outcome:
    """Run the demo on an empty database, which it leaves as it is at the end.

    `tell` is called with the number of jobs that are settled, and that of all. Raises InvalidInput
    if there are jobs in it, TenureError if the jobs do not end.
    """
    with Tenure(database, actor="demo") as app:
        if app.stats():
            raise InvalidInput("the demo needs an empty database, this one has jobs in it")
        jobs = app.enqueue_many(new_jobs())
        app.cancel(next(job.id for job in jobs if job.type == DROPPED))
        # A worker takes a job and is never heard of again: its lease runs out.
        app.claim(
            ClaimRequest(
                worker="worker-that-vanished",
                limit=1,
                lease_seconds=LEASE_SECONDS,
                types=(VANISHING,),
            )
        )
        sweeper = Sweeper(app, interval=SWEEP_SECONDS)
        sweeper.start()
        try:
            run_loop(_work(app, len(jobs), progress))
        finally:
            sweeper.stop()
        return Outcome([_story(app, job.id) for job in jobs], app.verify())


async def _work(app: Tenure, jobs: int, progress: Progress) -> None:
    """Run one worker until every job is settled. It has room for all jobs: one claim takes them."""
    handlers = Handlers()
    add_fake_handlers(handlers, **RULES)
    worker = Worker(app, handlers, concurrency=jobs, grace_seconds=5.0)
    working = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(MAX_SECONDS):
            # Another thread changes the jobs; the store tells nobody that all are settled.
            while not working.done() and (settled := _settled(app)) < jobs:
                progress(settled, jobs, "settled")
                await asyncio.sleep(0.05)
        progress(_settled(app), jobs, "settled")
    except TimeoutError:
        raise TenureError(
            f"the jobs of the demo did not end within {MAX_SECONDS:.0f} seconds"
        ) from None
    finally:
        worker.request_stop()
        await working


def _settled(app: Tenure) -> int:
    return sum(count.jobs for count in app.stats() if count.status in SETTLED)


def _story(app: Tenure, job_id: str) -> Story:
    return Story(app.get(job_id), [entry.target for entry in app.history(job_id)])
