"""Which jobs a worker takes, in which order, and how many at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest

from tenure import JobContext, NewJob, Status, Tenure
from tenure.rules.reports import ClaimRequest, Exchange, Report
from tenure.worker import exchanges
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.support.worker_scripts import WorkerScript, wait_for_exit
from tests.support.workers import (
    running_sweeper,
    running_worker,
    transitions,
    wait_until_completed,
    wait_until_settled,
)


def other(app: Tenure) -> Tenure:
    """Another application on the same database: other handlers, the same jobs."""
    return Tenure(app.database)


@pytest.mark.scenario(78)
def test_a_job_that_nobody_can_run_stays_pending_and_is_charged_nothing(
    app_on_each_engine: Tenure,
) -> None:
    app = app_on_each_engine

    @app.job
    async def known() -> None: ...

    unknown = app.enqueue("unknown", priority=-5)
    with running_sweeper(app), running_worker(app):
        for _ in range(20):
            wait_until_completed(app, known.enqueue())
        why = app.explain(unknown.id)
        assert why.reason == "no_worker_for_type"
        assert "No worker takes jobs of type unknown" in why.text
    now = app.get(unknown.id)
    assert (now.status, now.attempts, now.token) == (Status.PENDING, 0, 0)
    assert transitions(app, unknown) == ["enqueued"]

    with other(app) as later:

        @later.job(name="unknown")
        async def known_now() -> None: ...

        with running_worker(later):
            assert wait_until_completed(app, unknown).attempts == 1


@pytest.mark.scenario(78)
def test_a_sweep_without_the_handler_gives_a_job_its_retry(app_on_each_engine: Tenure) -> None:
    """What a deploy without its type finds running is ended as any other, and never discarded."""
    app = app_on_each_engine
    gone = app.enqueue("gone", max_retries=2, backoff=0)
    app.core.claim(ClaimRequest(worker="old", limit=1, lease_seconds=0.001))

    @app.job
    async def known() -> None: ...

    with running_sweeper(app), running_worker(app):
        wait_until(lambda: app.get(gone.id).status is Status.PENDING, "the lease to be ended")
        wait_until_completed(app, known.enqueue())
    now = app.get(gone.id)
    assert (now.status, now.attempts) == (Status.PENDING, 1)
    assert transitions(app, gone) == ["enqueued", "claimed", "lease_expired", "retried"]
    assert app.verify() == []


def test_workers_with_different_types_take_their_own(app_on_each_engine: Tenure) -> None:
    app = app_on_each_engine
    jobs = [app.enqueue(name) for _ in range(20) for name in ("a", "b", "both")]
    with other(app) as left, other(app) as right:
        for place, name in ((left, "a"), (right, "b")):

            async def run(context: JobContext) -> str:
                return context.type

            place.job(name=name)(run)
            place.job(name="both")(run)
        with running_worker(left) as first, running_worker(right) as second:
            ends = [wait_until_completed(app, job) for job in jobs]
    took = {end.type: {e.worker for e in ends if e.type == end.type} for end in ends}
    assert took["a"] == {first.id}
    assert took["b"] == {second.id}
    assert took["both"] <= {first.id, second.id}


def test_a_worker_of_some_queues_leaves_the_others_alone(app_on_each_engine: Tenure) -> None:
    app = app_on_each_engine

    @app.job
    async def work() -> None: ...

    mail = [work.options(queue="mail").enqueue() for _ in range(5)]
    bulk = [work.options(queue="bulk", priority=-9).enqueue() for _ in range(5)]
    with running_worker(app, queues=["mail", "empty"]):
        for job in mail:
            wait_until_completed(app, job)
    assert {app.get(job.id).status for job in bulk} == {Status.PENDING}
    with running_worker(app):
        for job in bulk:
            wait_until_completed(app, job)


def test_a_paused_queue_waits(app: Tenure) -> None:
    @app.job
    async def work() -> None: ...

    app.queues.pause("slow")
    waiting = work.options(queue="slow", priority=-1).enqueue()
    with running_worker(app):
        wait_until_completed(app, work.enqueue())
        assert app.get(waiting.id).attempts == 0
        app.queues.resume("slow")
        wait_until_completed(app, waiting)


def test_handlers_run_at_once_up_to_the_limit_and_never_beyond(app_on_each_engine: Tenure) -> None:
    app = app_on_each_engine
    lock = threading.Lock()
    running: list[int] = []
    most: list[int] = []
    together = threading.Barrier(6)

    def enter(number: int) -> None:
        with lock:
            running.append(number)
            most.append(len(running))

    def leave(number: int) -> None:
        with lock:
            running.remove(number)

    @app.job
    async def coroutine(number: int) -> None:
        enter(number)
        await asyncio.sleep(0.002)
        leave(number)

    @app.job
    def function(number: int) -> None:
        enter(number)
        time.sleep(0.002)
        leave(number)

    @app.job
    def meet(number: int) -> None:
        enter(number)
        together.wait(WAIT_SECONDS)
        leave(number)

    new_jobs = [
        new_job
        for number in range(0, 200, 2)
        for new_job in (coroutine.new_job(number), function.new_job(number + 1))
    ]
    with running_worker(app, concurrency=6):
        jobs = app.enqueue_many([meet.new_job(-n) for n in range(1, 7)])
        jobs += app.enqueue_many(new_jobs)
        for job in jobs:
            assert wait_until_completed(app, job).attempts == 1
    assert max(most) == 6


def test_urgent_jobs_first_then_in_order(app_on_each_engine: Tenure) -> None:
    app = app_on_each_engine
    order: list[tuple[int, int]] = []

    @app.job
    async def work(priority: int, number: int) -> None:
        order.append((priority, number))

    jobs = [
        work.options(priority=priority).enqueue(priority, number)
        for number in range(5)
        for priority in (3, -1, 0)
    ]
    with running_worker(app, concurrency=1):
        for job in jobs:
            wait_until_completed(app, job)
    assert order == sorted(order)


def test_a_backlog_is_worked_off_without_waiting_for_a_poll(
    app_on_each_engine: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while turns overlap: nothing rings here, and the next poll is a minute away."""

    class Silent:
        waits = False
        database = None
        exchanges = app_on_each_engine.core.exchanges
        exchange = staticmethod(app_on_each_engine.core.exchange)
        heartbeat = staticmethod(app_on_each_engine.core.heartbeat)

        def on_work(self, notify: Callable[[], None]) -> Callable[[], None]:
            return lambda: None

        def on_end(self, worker: str, notify: Callable[[], None]) -> Callable[[], None]:
            return lambda: None

    app = app_on_each_engine
    runs: list[int] = []

    @app.job
    async def work(number: int) -> None:
        runs.append(number)

    jobs = app.enqueue_many([work.new_job(number) for number in range(3000)])
    monkeypatch.setattr(exchanges, "POLL_SECONDS", 60)
    # Heartbeats ring, too: the first comes much later.
    with running_worker(app, Silent(), concurrency=100, lease_seconds=300):
        assert wait_until(lambda: len(runs) == 3000)
        assert wait_until_completed(app, jobs[-1]).attempts == 1
    assert sorted(runs) == list(range(3000))


def test_a_job_is_not_run_before_its_time(app: Tenure) -> None:
    ran: list[float] = []

    @app.job
    async def work() -> None:
        ran.append(time.monotonic())

    with running_worker(app):
        start = time.monotonic()
        job = work.options(delay=0.3).enqueue()
        wait_until_completed(app, work.enqueue())
        assert app.get(job.id).attempts == 0
        wait_until_completed(app, job)
    assert ran[1] - start >= 0.29


def test_jobs_claimed_ahead_do_not_wait_behind_a_slow_one(app_on_each_engine: Tenure) -> None:
    """They are handed back after a while, and another worker runs them."""
    app = app_on_each_engine
    slow_runs = threading.Event()
    go_on = threading.Event()

    ran: set[str] = set()

    @app.job
    async def quick(context: JobContext) -> None:
        ran.add(context.id)

    @app.job
    def slow() -> None:
        slow_runs.set()
        go_on.wait(WAIT_SECONDS)

    new_jobs = [quick.new_job()] * 400 + [slow.new_job()] + [quick.new_job()] * 400
    with running_worker(app, concurrency=1):
        jobs = app.enqueue_many(new_jobs)
        assert slow_runs.wait(WAIT_SECONDS)
        # Where turns overlap, a later one may be answered first, and its jobs have run by now.
        behind = [job for job in jobs if job.id not in ran and job != jobs[400]]
        assert behind
        assert {app.get(job.id).status for job in behind} <= {Status.PENDING, Status.PROCESSING}
        with other(app) as place:

            @place.job(name="quick")
            async def quick_elsewhere() -> None: ...

            with running_worker(place, concurrency=1) as second:
                for job in behind:
                    assert wait_until_completed(app, job).attempts == 1
        assert {app.get(job.id).worker for job in behind} == {second.id}
        assert app.get(jobs[400].id).status is Status.PROCESSING
        go_on.set()
        wait_until_completed(app, jobs[400])
    assert any("released" in transitions(app, job) for job in behind)
    assert app.verify() == []


HANDLERS = """
@app.job
async def work(number: int):
    log(number)


@app.job
def thread(number: int):
    log(number)
"""


def test_no_job_is_started_twice_by_several_workers(
    app_on_each_engine: Tenure, tmp_path: Path
) -> None:
    app = app_on_each_engine
    count = 1_500
    new_jobs = [NewJob("work" if n % 5 else "thread", {"number": n}, {}) for n in range(count)]
    with WorkerScript(tmp_path / "meet", app.database, HANDLERS) as script:
        workers = [script.start() for _ in range(3)]
        wait_until(lambda: len(app.workers.list()) == 3, "all workers to be there")
        jobs = [job for first in range(0, count, 100) for job in add(app, new_jobs, first)]
        ends = [wait_until_settled(app, job) for job in jobs]
        for worker in workers:
            worker.terminate()
        assert [wait_for_exit(worker) for worker in workers] == [0, 0, 0]

    assert {(end.status, end.attempts) for end in ends} == {(Status.COMPLETED, 1)}
    assert sorted(map(int, script.lines())) == list(range(count))
    assert app.verify() == []


def add(app: Tenure, new_jobs: list[NewJob], first: int) -> list[str]:
    return [job.id for job in app.enqueue_many(new_jobs[first : first + 100])]


def test_a_claim_that_ends_at_its_bytes_is_followed_by_another(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No hint, poll or report brings the second claim: none arrives, and no handler ends."""
    monkeypatch.setattr(app.core, "on_work", lambda notify: lambda: None)
    monkeypatch.setattr(exchanges, "POLL_SECONDS", 3_600.0)
    monkeypatch.setattr(exchanges, "QUIET_POLL_SECONDS", 3_600.0)
    started: list[int] = []
    may_end = threading.Event()

    @app.job
    async def large(number: int, text: str) -> None:
        started.append(number)
        await asyncio.to_thread(may_end.wait, WAIT_SECONDS)

    text = "x" * 1_000_000
    app.enqueue_many([NewJob("large", {"number": n, "text": text}, {}) for n in range(12)])
    with running_worker(app, concurrency=20):
        try:
            wait_until(lambda: len(started) == 12, "the jobs of a second claim")
        finally:
            may_end.set()


def test_a_worker_listens_for_work_only_while_it_wants_more(
    app_on_each_engine: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On SQLite all busy workers would look at each commit of each other one."""
    app = app_on_each_engine
    listening: list[bool] = []
    on_work = app.core.on_work
    may_end = threading.Event()

    def seen(notify: Callable[[], None]) -> Callable[[], None]:
        stop = on_work(notify)
        listening.append(True)

        def stopped() -> None:
            listening.remove(True)
            stop()

        return stopped

    @app.job
    def slow() -> None:
        may_end.wait(WAIT_SECONDS)

    monkeypatch.setattr(app.core, "on_work", seen)
    with running_worker(app, concurrency=1):
        wait_until(lambda: listening == [True], "an idle worker to listen")
        app.enqueue_many([slow.new_job() for _ in range(10)])  # more than it claims ahead
        wait_until(lambda: not listening, "a full worker to stop that")
        may_end.set()
        wait_until(lambda: listening == [True], "it to listen again")
        wait_until_completed(app, slow.enqueue())
    assert not listening


def test_a_claim_says_how_many_handlers_are_free(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pgqueuer#173: a slot of a limited queue that waits in a worker is a slot wasted."""
    asked: list[ClaimRequest] = []
    go = threading.Event()
    exchange = app.core.exchange

    def seen(reports: Sequence[Report], claim: ClaimRequest | None) -> Future[Exchange]:
        if claim is not None and claim.limit:
            asked.append(claim)
        return exchange(reports, claim)

    @app.job
    async def quick() -> None: ...

    @app.job
    def slow() -> None:
        go.wait(WAIT_SECONDS)

    monkeypatch.setattr(app.core, "exchange", seen)
    app.enqueue_many([quick.new_job()] * 300)
    with running_worker(app, concurrency=3):
        wait_until(lambda: app.count(status="completed").jobs == 300, "all quick jobs to run")
        assert (asked[0].limit, asked[0].free) == (3, 3)
        ahead = [one for one in asked if one.limit > 3]
        assert ahead, "nothing was claimed ahead"
        assert all(one.free is not None and one.free <= 3 for one in ahead)
        jobs = [slow.enqueue() for _ in range(2)]
        wait_until(lambda: app.count(status="processing").jobs == 2, "both to start")
        wait_until(lambda: asked[-1].free == 1, "a claim for the third handler")
        jobs.append(slow.enqueue())
        wait_until(lambda: app.count(status="processing").jobs == 3, "the third to start")
        go.set()
        for job in jobs:
            wait_until_completed(app, job)


class CountedExchanges:
    """The application as a source of work, which counts the exchanges that are under way."""

    waits = False
    exchanges = 3
    database = None

    def __init__(self, app: Tenure) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._under_way = self.most = 0
        self.heartbeat = app.core.heartbeat
        self.on_work, self.on_end = app.core.on_work, app.core.on_end

    def exchange(self, reports: Sequence[Report], claim: ClaimRequest | None) -> Future[Exchange]:
        self._count(1)
        future = self._app.core.exchange(reports, claim)
        future.add_done_callback(lambda _: self._count(-1))
        return future

    def _count(self, more: int) -> None:
        with self._lock:
            self._under_way += more
            self.most = max(self.most, self._under_way)


@pytest.mark.parametrize(("seconds", "at_once"), [(-1.0, {1}), (3_600.0, {2, 3})])
def test_exchanges_overlap_unless_they_take_long(
    app: Tenure, monkeypatch: pytest.MonkeyPatch, seconds: float, at_once: set[int]
) -> None:
    """They take long where many processes drain one database: there it is the bottleneck."""
    monkeypatch.setattr(exchanges, "MAX_OVERLAP_SECONDS", seconds)

    @app.job
    async def work() -> None: ...

    for _ in range(8):
        *_, last = app.enqueue_many([work.new_job() for _ in range(1_000)])
    source = CountedExchanges(app)
    with running_worker(app, source, concurrency=200):
        wait_until_completed(app, last)
    assert source.most in at_once
