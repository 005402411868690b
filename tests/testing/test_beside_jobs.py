"""What happens beside the jobs of a test: hooks, schedules, waits, leases, coroutines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from tenure import Failure, JobContext, JobFailed, SignalTimeout, Tenure, testing
from tenure.rules.reports import ClaimRequest
from tenure.rules.search import Filter
from tenure.store.postgres import session
from tenure.store.tables import bulk, workers
from tenure.worker import maintenance
from tenure.worker.maintenance import MaintenanceThread
from tests.testing.conftest import Enter, transaction


def test_hooks_run_as_around_a_worker(enter: Enter, nowhere: Tenure) -> None:
    """The lifespan once for all jobs, `around` for each, `on_failure` before the test goes on."""
    seen: list[str] = []

    @nowhere.lifespan
    @asynccontextmanager
    async def pool() -> AsyncIterator[None]:
        seen.append("pool opens")
        yield
        seen.append("pool closes")

    @nowhere.around
    @contextmanager
    def inside(context: JobContext) -> Iterator[None]:
        seen.append(f"around {context.type}")
        yield

    @nowhere.on_failure
    def plain(failure: Failure) -> None:
        seen.append(f"failed {failure.final} {failure.exception!r}")

    @nowhere.on_failure
    async def coroutine(failure: Failure) -> None:
        seen.append(f"failed {failure.type}")

    @nowhere.job(max_retries=1)
    def bad() -> None:
        raise ValueError("no")

    @nowhere.job
    async def good() -> None:
        seen.append("good")

    jobs = enter(nowhere)
    bad.enqueue()
    good.enqueue()
    jobs.drain(raise_errors=False)
    assert seen == [
        *("pool opens", "around bad", "failed True ValueError('no')", "failed bad"),
        *("around good", "good", "pool closes"),
    ]


def test_schedules_fire_when_the_clock_travels(enter: Enter, nowhere: Tenure) -> None:
    """Procrastinate #1546: tests of periodic tasks need a clock that moves."""

    @nowhere.schedule(every="1h")
    @nowhere.job
    def report() -> None: ...

    jobs = enter(nowhere)
    assert jobs.drain().runs == []
    assert len(jobs.drain(until="3h").runs) == 3
    jobs.travel("1h")
    jobs.assert_enqueued(report, count=1)


def test_schedules_fire_in_a_database_that_was_new(enter: Enter, nowhere: Tenure) -> None:
    @nowhere.schedule(every="1h")
    @nowhere.job
    def report() -> None: ...

    jobs = enter(nowhere)
    jobs.travel("1h")
    jobs.assert_enqueued(report, count=1)


def test_overlap_looks_at_the_job_of_the_schedule_not_at_the_workflow_that_it_starts(
    enter: Enter, nowhere: Tenure
) -> None:
    """As the page says, with the way to count the workflow too."""

    @nowhere.job
    def part() -> None: ...

    def begin(context: JobContext) -> str:
        with nowhere.workflow(context.type, key=context.id) as flow:
            flow.add(part.options(delay="90m").new_job())
        return flow.id

    @nowhere.schedule(every="1h", overlap="skip")
    @nowhere.job
    def returns(context: JobContext) -> None:
        begin(context)

    @nowhere.schedule(every="1h", overlap="skip")
    @nowhere.job
    def sleeps(context: JobContext) -> None:
        flow_id = begin(context)
        while nowhere.workflows.get(flow_id).finished_at is None:
            context.sleep("10m")

    jobs = enter(nowhere)
    jobs.drain(until="3h")
    for name, outcomes, flows in [
        ("returns", ["fired", "fired", "fired"], 3),
        ("sleeps", ["fired", "overlapped", "fired"], 2),
    ]:
        assert [fire.outcome for fire in nowhere.schedules.fires(name)] == outcomes
        assert len(nowhere.workflows.list(name=name).workflows) == flows


def test_a_wait_for_a_signal_ends_in_time(enter: Enter, nowhere: Tenure) -> None:
    @nowhere.job
    def asks(context: JobContext) -> str:
        try:
            context.wait_for_signal("answer", timeout="1d")
        except SignalTimeout:
            return "no answer"
        return "answered"

    jobs = enter(nowhere)
    job = asks.enqueue()
    assert jobs.drain().left == 1
    assert nowhere.get(job.id).status == "waiting"
    jobs.drain(until="2d")
    assert nowhere.get(job.id).result == "no answer"


def test_a_signal_after_the_end_of_a_wait_does_not_count(enter: Enter, nowhere: Tenure) -> None:
    """Nothing ran between the end and the signal, as when all workers are away."""

    @nowhere.job
    def asks(context: JobContext) -> str:
        try:
            return str(context.wait_for_signal("answer", timeout="1d"))
        except SignalTimeout:
            return "no answer"

    jobs = enter(nowhere)
    job, other = asks.enqueue(), asks.enqueue()
    jobs.drain()
    jobs.travel("23h")
    nowhere.signal(other.id, "answer", "yes")
    jobs.travel("61m")
    nowhere.signal(job.id, "answer", "yes")
    jobs.drain()
    assert nowhere.get(job.id).result == "no answer"
    assert nowhere.get(other.id).result == "yes"


def test_a_lease_that_a_dead_worker_left_runs_out(enter: Enter, nowhere: Tenure) -> None:
    @nowhere.job
    def work() -> int:
        return 1

    jobs = enter(nowhere)
    job = work.enqueue()
    nowhere.core.claim(ClaimRequest(worker="dead", limit=1, lease_seconds=30.0))
    assert jobs.drain().runs == []
    jobs.travel("1m")
    assert nowhere.get(job.id).event == "retried"
    assert jobs.drain(retries=True).completed == 1
    work.enqueue()
    nowhere.core.claim(ClaimRequest(worker="dead", limit=1, lease_seconds=30.0))
    assert jobs.drain(until="1h").completed == 1


def test_what_ends_beside_the_jobs_is_followed_too(enter: Enter, nowhere: Tenure) -> None:
    """A worker does the one duty a second after the other; a drain does both."""

    @nowhere.job
    def work() -> None: ...

    jobs = enter(nowhere)
    nowhere.queues.pause("closed")
    late = work.options(queue="closed", start_by="1h").enqueue()
    after_late = work.options(depends_on=[late]).enqueue()
    many = work.options(queue="closed", tags=["many"]).enqueue()
    after_many = work.options(depends_on=[many]).enqueue()
    assert jobs.drain(until="2h").left == 2
    assert nowhere.get(after_late.id).event == "skipped"
    nowhere.bulk.start("cancel", Filter(tag="many"))
    assert jobs.drain().left == 0
    assert nowhere.get(after_many.id).event == "skipped"


def test_what_was_cancelled_in_bulk_does_not_run(enter: Enter, nowhere: Tenure) -> None:
    """A worker carries it out beside the jobs; a drain ran the jobs first."""
    ran: list[int] = []

    @nowhere.job
    def work(number: int) -> None:
        ran.append(number)

    jobs = enter(nowhere)
    with nowhere.workflow() as flow:
        first = flow.add(work.new_job(1))
        flow.add(work.new_job(2), depends_on=[first])
    work.options(tags=["many"]).enqueue(3)
    work.enqueue(4)
    nowhere.workflows.cancel(flow.id)
    nowhere.bulk.start("cancel", Filter(tag="many"))
    assert jobs.drain().completed == 1
    assert ran == [4]
    assert flow.status() == {"cancelled": 2}


def test_a_handler_cancels_in_bulk_what_is_due_later(
    enter: Enter, nowhere: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it before time passes, also where a worker would need several seconds."""
    monkeypatch.setattr(bulk, "BATCH", 1)
    monkeypatch.setattr(maintenance, "BULK_SHARE", 0.0)

    @nowhere.job
    def stop() -> None:
        nowhere.bulk.start("cancel", Filter(tag="many"))

    @nowhere.job
    def work() -> None: ...

    jobs = enter(nowhere)
    for _ in range(4):
        work.options(tags=["many"], delay="1h").enqueue()
    stop.enqueue()
    assert [run.job.type for run in jobs.drain(until="2h").runs] == ["stop"]


def test_a_test_in_a_loop_may_drain_without_await(nowhere: Tenure) -> None:
    @nowhere.job
    async def coroutine() -> bool:
        await asyncio.sleep(0)
        return True

    @nowhere.job
    def plain() -> bool:
        return True

    async def test() -> None:
        with testing.on(nowhere) as jobs, testing.inline(nowhere):
            job = await coroutine.enqueue_async()
            assert nowhere.get(job.id).result is True
            plain.enqueue()
            jobs.drain()

    asyncio.run(test())


@pytest.mark.anyio
async def test_with_await_plain_handlers_have_a_thread(nowhere: Tenure) -> None:
    """So they may begin a loop, or call what Django refuses beside one."""
    threads = []

    @nowhere.job
    def plain() -> None:
        threads.append(threading.current_thread())
        asyncio.run(asyncio.sleep(0))

    with testing.on(nowhere) as jobs:
        await jobs.run_async(await plain.enqueue_async())
        await plain.enqueue_async()
        assert (await jobs.drain_async()).completed == 1
    assert threading.current_thread() not in threads


def test_a_key_that_is_pressed_ends_the_test(enter: Enter, nowhere: Tenure) -> None:
    @nowhere.job
    def long() -> None:
        raise KeyboardInterrupt

    jobs = enter(nowhere)
    job = long.enqueue()
    with pytest.raises(KeyboardInterrupt):
        jobs.drain(raise_errors=False)
    assert nowhere.get(job.id).event == "retried"


def test_what_failed_can_be_seen_in_the_statistics(enter: Enter, nowhere: Tenure) -> None:
    """Not in a transaction of PostgreSQL: statistics follow commits."""

    @nowhere.job
    def work() -> None: ...

    jobs = enter(nowhere)
    work.enqueue()
    jobs.drain()
    jobs.travel(timedelta(seconds=5))
    counted = {(one.status, one.jobs) for one in nowhere.stats.counts()}
    assert counted == {("completed", 1)} or nowhere.database.startswith("postgresql://lent")


@pytest.mark.postgres
def test_a_handler_that_leaves_its_transaction_open_is_found(
    nowhere: Tenure, postgres_url: str
) -> None:
    """A worker would ask again and again."""
    with testing.on(nowhere, postgres_url) as jobs, psycopg.connect(postgres_url) as connection:

        @nowhere.job
        def forgets(context: JobContext) -> None:
            context.complete(connection)

        forgets.enqueue()
        other = forgets.enqueue()
        with pytest.raises(RuntimeError, match="handler has left one open"):
            jobs.drain()
        connection.rollback()
        assert nowhere.get(other.id).status == "pending"


@pytest.mark.postgres
def test_a_drain_says_that_another_transaction_has_a_job_locked(
    nowhere: Tenure, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It blamed the handler, and kept the job that it had claimed with the report."""
    monkeypatch.setattr(session, "BEGIN", session.BEGIN.replace("'10s'", "'20ms'"))
    with testing.on(nowhere, postgres_url) as jobs, psycopg.connect(postgres_url) as connection:

        @nowhere.job
        def locked() -> None:
            connection.execute("SELECT FROM tenure.job WHERE attempts > 0 FOR UPDATE")

        @nowhere.job
        def other() -> None: ...

        locked.enqueue()
        last = other.enqueue()
        with pytest.raises(RuntimeError, match="another transaction has the job locked"):
            jobs.drain()
        assert nowhere.get(last.id).status == "pending"
        connection.rollback()


def test_what_was_claimed_is_given_back_if_a_completion_fails(
    enter: Enter, nowhere: Tenure
) -> None:
    """A report and the next claim go together, as a worker's do."""

    @nowhere.job(max_retries=1)
    def adds(context: JobContext, number: int) -> None:
        context.enqueue(greet.options(idempotency_key="one", delay="1h").new_job(number))

    @nowhere.job
    def greet(number: int) -> None: ...

    jobs = enter(nowhere)
    _, _, other = (adds.enqueue(number) for number in range(3))
    with pytest.raises(JobFailed, match="refused"):
        jobs.drain()
    events = [entry.event for entry in nowhere.history(other.id)]
    assert (events, nowhere.get(other.id).status) == (
        ["enqueued", "claimed", "released"],
        "pending",
    )


@pytest.mark.postgres
def test_a_drain_in_a_transaction_sends_four_statements_for_a_job(
    nowhere: Tenure, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One reports and claims, in a savepoint, and one reads what became of the job.

    What a server does beside the jobs depends on how much time has passed.
    """
    monkeypatch.setattr(MaintenanceThread, "do_once", lambda _: None)
    monkeypatch.setattr(workers, "SEEN_SECONDS", 3_600)

    @nowhere.job
    def greet() -> None: ...

    with transaction(postgres_url) as connection, testing.within(nowhere, connection) as jobs:

        def sent(number: int) -> int:
            nowhere.enqueue_many([greet.new_job() for _ in range(number)])
            with (tmp_path / str(number)).open("w+") as trace:
                connection.pgconn.trace(trace.fileno())
                assert jobs.drain().completed == number
                connection.pgconn.untrace()
                trace.seek(0)
                return sum("\tParse\t" in line or "\tQuery\t" in line for line in trace)

        sent(1)  # what is asked once
        assert sent(30) - sent(10) == 20 * 4
