"""The example that `tenure demo` runs, and fake handlers, which succeed and fail by rule.

Programs with --fake-handlers run these for any job type. Nothing about them is random. Rules for
every type: `fail_types` names types of which every attempt fails. `fail_every=N` fails the first
attempt of every Nth job that this process starts.

Some types behave in a special way, beside these rules:

    fake.flaky   {"fail_times": k}   fails the first k attempts
    fake.sleep   {"seconds": s}      sleeps
    fake.fail                        fails every attempt
    fake.crash   {"crash_times": k}  kills its worker process with SIGKILL in the first k attempts
                                     (default 1): the lease runs out, and another worker takes over

Every other type succeeds at once, whatever its payload.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Collection, Sequence
from itertools import count
from typing import Any, NamedTuple

from tenure.app.app import Tenure
from tenure.errors import InvalidInput, TenureError
from tenure.handlers.context import JobContext
from tenure.handlers.registry import Handler, Handlers, describe
from tenure.lifecycle import SETTLED, Job
from tenure.rules.jobs import NewJob
from tenure.rules.reports import ClaimRequest
from tenure.values.findings import Progress, Violation, no_progress
from tenure.values.names import check_name
from tenure.worker.maintenance import MaintenanceThread
from tenure.worker.process import run_loop
from tenure.worker.worker import Worker

Check = Callable[[JobContext], None]


class FakeFailure(Exception):
    """A fake handler fails on purpose."""


def add_fake_handlers(
    handlers: Handlers, *, fail_types: Collection[str] = (), fail_every: int | None = None
) -> None:
    """Add fake handlers for every type that has no handler.

    Raises InvalidInput for a type that is no name, or `fail_every` below 1.
    """
    failing = frozenset(check_name(type, "job type", "fail_types") for type in fail_types)
    if fail_every is not None and fail_every < 1:
        raise InvalidInput("give a whole number from 1, or leave it out", path="fail_every")
    fakes = _fakes(_rules(failing, fail_every))
    handlers.add_for_any(lambda type: fakes.get(type, fakes[""]))


def _rules(failing: frozenset[str], fail_every: int | None) -> Check:
    first_attempts = count(1)

    def check(context: JobContext) -> None:
        number = next(first_attempts) if context.attempt == 1 else 0
        if context.type in failing:
            raise FakeFailure(f"--fail-type {context.type}: every attempt fails")
        if fail_every is not None and number and number % fail_every == 0:
            raise FakeFailure(f"--fail-every {fail_every}: the first attempt of job {number} fails")

    return check


def _fakes(check: Check) -> dict[str, Handler]:
    """Return the fake handlers by type; the empty name is for every other type."""

    async def succeed(context: JobContext, /, **_: object) -> None:
        check(context)

    async def flaky(context: JobContext, /, fail_times: int) -> None:
        check(context)
        if context.attempt <= fail_times:
            raise FakeFailure(f"fail_times {fail_times}: attempt {context.attempt} fails")

    async def sleep(context: JobContext, /, seconds: float) -> None:
        check(context)
        await asyncio.sleep(seconds)

    async def fail(context: JobContext, /, **_: object) -> None:
        check(context)
        raise FakeFailure("every attempt fails")

    async def crash(context: JobContext, /, crash_times: int = 1) -> None:
        check(context)
        if context.attempt <= crash_times:
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    functions: dict[str, Callable[..., Any]] = {
        "": succeed,
        "fake.flaky": flaky,
        "fake.sleep": sleep,
        "fake.fail": fail,
        "fake.crash": crash,
    }
    return {name: describe(function, name) for name, function in functions.items()}


# --- demo -----------------------------------------------------------------------------------------
# The store, the worker and the sweeper are real. All jobs are on disk before the worker starts, and
# its first claim takes them all, so every run ends the same way, job by job.

QUICK = {"base": 0.1, "factor": 2.0, "cap": 1.0}
VANISHED = ClaimRequest(
    worker="worker-that-vanished", limit=1, lease_seconds=1.0, types=("import",)
)
MAX_SECONDS = 60.0

JOBS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    *(("email", {"to": f"customer-{n}@example.com"}, {"queue": "mail"}) for n in range(1, 11)),
    *(("report", {"month": n}, {"priority": 5}) for n in range(1, 7)),
    *(
        ("payment", {"order": n}, {"queue": "money", "priority": -5, "max_retries": 3})
        for n in range(1, 5)
    ),
    *(("import", {"file": f"part-{n}.csv"}, {"max_retries": 5}) for n in range(1, 5)),
    *(
        ("fake.flaky", {"fail_times": fails}, {"max_retries": limit})
        for fails, limit in ((1, 3), (2, 3), (3, 3), (3, 5), (1, 1), (1, 0))
    ),
    ("fake.flaky", {"fail_times": "often"}, {}),  # does not fit the handler: a retry cannot help
    ("fake.fail", {}, {"max_retries": 2}),
    *(("fake.sleep", {"seconds": 0.3}, {}) for _ in range(2)),
    ("newsletter", {"issue": 7}, {"delay": "1h"}),  # cancelled before it is due
)


class DemoResult(NamedTuple):
    """Every job of the demo at its end, each with its statuses, and what `verify` found."""

    jobs: Sequence[tuple[Job, Sequence[str]]]
    violations: Sequence[Violation]


def run(database: str, progress: Progress = no_progress) -> DemoResult:
    """Run the demo on an empty database, and leave its jobs there.

    Calls `progress` with the number of jobs that are settled, and the number of all. Raises
    InvalidInput if the database has jobs in it, TenureError if the jobs do not end in a minute.
    """
    with Tenure(database, actor="demo") as app:
        if app.stats.counts():
            raise InvalidInput("the demo needs an empty database, this one has jobs in it")
        jobs = app.enqueue_many(
            [NewJob(type, payload, {"backoff": QUICK, **more}) for type, payload, more in JOBS]  # type: ignore[typeddict-item]
        )
        app.cancel(jobs[-1].id)
        app.core.claim(VANISHED)  # and never report it: its lease runs out
        sweeper = MaintenanceThread(app, interval=0.1)
        sweeper.start()
        try:
            run_loop(_work(app, progress))
        finally:
            sweeper.stop()
        ended = [(app.get(job.id), [t.target for t in app.history(job.id)]) for job in jobs]
        return DemoResult(ended, app.verify())


async def _work(app: Tenure, progress: Progress) -> None:
    """Run one worker, with room for all jobs at once, until every job is settled."""
    handlers = Handlers()
    add_fake_handlers(handlers, fail_types=["payment"], fail_every=6)
    worker = Worker(app.core, handlers, concurrency=len(JOBS), grace_seconds=5.0)
    working = asyncio.create_task(worker.run())
    settled = 0
    try:
        async with asyncio.timeout(MAX_SECONDS):
            while settled < len(JOBS) and not working.done():
                await asyncio.sleep(0.05)
                settled = sum(count.jobs for count in app.stats.counts() if count.status in SETTLED)
                progress(settled, len(JOBS), "settled")
    except TimeoutError:
        raise TenureError(f"the demo's jobs did not end within {MAX_SECONDS:.0f} seconds") from None
    finally:
        worker.request_stop()
        await working
