"""What users write, as type checkers see it. Checked by mypy and pyright, never run.

Every `type: ignore` is where a mistake must be found: both complain if there is none.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from tenure import (
    Handle,
    Job,
    JobContext,
    JobType,
    NewWorkflow,
    PermanentFailure,
    RetryPolicy,
    Status,
    Tenure,
    TenureError,
    testing,
)
from tenure.app.within import Within
from tenure.client import AsyncClient, Client
from tenure.rules.jobs import NewJobOf
from tenure.rules.search import Bulk

app = Tenure("sqlite:///jobs.db")


@dataclass
class Order:
    number: int


@app.job
def plain(to: str, subject: str = "") -> int:
    return len(to + subject)


@app.job(
    name="send_mail",
    queue="mail",
    priority=-5,
    max_retries=5,
    timeout="30s",
    backoff={"base": "10s", "factor": 3},
)
async def coroutine(order: Order, when: datetime | None = None) -> str:
    return f"{order.number} {when}"


@app.job
def with_context(context: JobContext, to: str, *, copies: int = 1) -> None:
    assert_type(context.attempt, int)
    assert_type(context.stopping, bool)
    assert_type(context.deadline, datetime | None)
    if context.token > 9:
        raise PermanentFailure(to * copies)


@app.job(timeout=timedelta(minutes=5), backoff=RetryPolicy(base=5))
async def async_with_context(context: JobContext, order: Order) -> int:
    return order.number


@app.job(process=True, backoff="2s")
def in_a_process(numbers: list[int]) -> int:
    return sum(numbers)


@app.job
def open_ended(first: int, **others: float) -> None: ...


def results_are_jobs() -> None:
    assert_type(plain.enqueue("a@example.com"), Job)
    assert_type(plain.enqueue(to="a@example.com", subject="Hello"), Job)
    assert_type(coroutine.enqueue(Order(1), when=datetime.now(UTC)), Job)
    assert_type(with_context.enqueue("a@example.com", copies=2), Job)
    assert_type(async_with_context.enqueue(order=Order(1)), Job)
    assert_type(in_a_process.enqueue([1, 2]), Job)
    assert_type(open_ended.enqueue(1, second=2.0), Job)
    assert_type(plain.new_job("a@example.com"), NewJobOf[int])
    assert_type(app.enqueue_many([plain.new_job("a"), in_a_process.new_job([1])]), list[Job])


def handles_have_the_type_of_the_result() -> None:
    assert_type(plain.submit("a@example.com"), Handle[int])
    assert_type(plain.submit("a@example.com").result(timeout="5s"), int)
    assert_type(coroutine.submit(Order(1)), Handle[str])
    assert_type(coroutine.options(delay="5m").submit(Order(1)).result(), str)
    assert_type(with_context.submit("a@example.com"), Handle[None])
    assert_type(async_with_context.submit(Order(1)).result(), int)
    assert_type(app.wait(plain.submit("a").id, timeout=5), Job)
    assert_type([handle.id for handle in app.as_completed([plain.submit("a")])], list[str])


def clients_have_the_types_of_their_verbs() -> None:
    with Client("http://127.0.0.1:8080") as client:
        assert_type(client.enqueue("resize", {"path": "cat.png"}, delay="5m"), Job)
        assert_type(client.wait("id", timeout="5s"), Job)
        assert_type(client.find(type="resize"), list[Job])
        client.wait("id", timeout=[5])  # type: ignore[arg-type]
        assert_type(client.signal(client.get("id"), "go").number, int)
        client.signal(5, "go")  # type: ignore[arg-type]


async def asynchronous_clients_too() -> None:
    async with AsyncClient("http://127.0.0.1:8080") as client:
        assert_type(await client.enqueue("resize", {"path": "cat.png"}), Job)
        assert_type(await client.wait("id", timeout="5s"), Job)


def functions_are_still_functions() -> None:
    assert_type(plain("a@example.com"), int)
    assert_type(in_a_process([1, 2]), int)
    with_context("a@example.com")
    with_context(testing.context(attempt=2), "a@example.com", copies=2)
    with_context(testing.context(), 1)  # type: ignore[call-overload]
    assert_type(plain.name, str)
    assert_type(plain.__name__, str)


async def async_callers() -> None:
    assert_type(await plain.enqueue_async("a@example.com"), Job)
    assert_type(await async_with_context.enqueue_async(Order(1)), Job)
    assert_type(await app.enqueue_async("resize", {"path": "cat.png"}, delay="5m"), Job)
    assert_type(await app.enqueue_many_async([plain.new_job("a")]), list[Job])
    assert_type(await coroutine(Order(1)), str)
    assert_type(await async_with_context(testing.context(), Order(1)), int)
    assert_type(await (await coroutine.submit_async(Order(1))), str)
    assert_type(await plain.submit("a").result_async("5s"), int)
    assert_type(await app.wait_async("id", timeout="5s"), Job)
    async for handle in app.as_completed([plain.submit("a")]):
        assert_type(handle, Handle[int])


def options() -> None:
    later = plain.options(delay="5m", priority=10, idempotency_key="order-17")
    assert_type(later.enqueue("a@example.com"), Job)
    plain.options(run_at=datetime.now(UTC), queue="bulk", max_retries=1, timeout=None).enqueue("a")
    app.enqueue("resize", {"path": "cat.png"}, backoff=RetryPolicy(), timeout=timedelta(hours=1))
    app.run_worker(queues=["mail"], concurrency=16, lease="30s", grace=10, max_idle="10s")


def reading() -> None:
    job = app.get("0190a0b0-0000-7000-8000-000000000001")
    assert_type(job, Job)
    assert_type(job.status, Status)
    assert_type(job.attempts, int)
    assert_type(job.finished_at, datetime | None)
    assert_type(app.find(status="failed", limit=10), list[Job])
    assert_type(app.cancel(job.id), Job)
    assert_type(app.retry(job.id, more_retries=2), Job)
    assert_type(app.history(job.id)[0].event, str)
    if job.status is Status.FAILED:
        assert_type(job.last_error, str | None)
    with Tenure("postgresql://localhost/jobs", actor="shop") as opened:
        assert_type(opened, Tenure)
    try:
        plain.enqueue("a")
    except TenureError as error:
        assert_type(error.code, str)


def takes_any_job_type(job_type: JobType[[str], None]) -> Job:
    return job_type.enqueue("a")


async def transactions_keep_the_types(connection: sqlite3.Connection) -> None:
    assert_type(plain.within(connection).enqueue("a@example.com"), Job)
    assert_type(plain.within(connection, wake="commit").submit("a"), Handle[int])
    assert_type(coroutine.within(connection).submit(Order(1)), Handle[str])
    assert_type(await coroutine.within(connection).enqueue_async(Order(1)), Job)
    assert_type(app.within(connection), Within)
    assert_type(app.within(connection).enqueue("resize", {"path": "cat.png"}), Job)
    assert_type(await app.within(connection).enqueue_many_async([plain.new_job("a")]), list[Job])
    assert_type(app.within(connection).chain([plain.new_job("a")], key="a"), NewWorkflow)
    assert_type(
        await app.within(connection).batch_async([], on_end=plain.new_job("a")), NewWorkflow
    )
    plain.within(connection).enqueue(5)  # type: ignore[arg-type]
    plain.within()  # type: ignore[call-arg]
    plain.within(connection, wake="never")  # type: ignore[arg-type]


def jobs_of_a_workflow_have_results() -> None:
    with app.workflow("sums") as flow:
        first = flow.add(plain.new_job("a"))
        second = flow.add(coroutine.new_job(Order(1)), depends_on=[first])
    assert_type(first.result(timeout="5s"), int)
    assert_type(second.result(), str)
    flow.add(plain.new_job("a"), dependson=[first])  # type: ignore[call-overload]
    with app.workflows.extend(app.get("id").workflow) as more:
        more.add(plain.new_job("a"))


@app.job
def with_steps(context: JobContext) -> None:
    assert_type(context.step("measure", plain, "a"), int)
    assert_type(context.step_within("write", written, 5), str)
    context.enqueue(plain.new_job("a"))
    context.step("measure", plain, 5)  # type: ignore[arg-type]
    assert_type(context.wait_for_signal("answer", type=int), int)
    context.sleep("1d", name="trial")
    assert_type(context.signal_token("answer", True, label="Yes"), str)


async def with_signals(context: JobContext) -> None:
    assert_type(await context.wait_for_signal_async("answer", "7d", type=int), int)
    assert_type(await context.wait_for_signal_async("answer"), Any)
    await context.sleep_async("1d", name="trial")
    context.enqueue(plain)  # type: ignore[arg-type]


def written(connection: Any, number: int) -> str:
    return f"{connection} {number}"


def results_are_read_only() -> None:
    """So a coroutine's handle is one of what it returns, also for pyright (CoroutineType)."""
    any_result: Handle[object] = plain.submit("a")
    any_new: NewJobOf[object] = coroutine.new_job(Order(1))
    assert_type(any_result.id, str)
    assert_type(any_new.type, str)


async def mistakes() -> None:
    plain.enqueue()  # type: ignore[call-arg]
    plain.enqueue(5)  # type: ignore[arg-type]
    plain.enqueue("a", "b", "c")  # type: ignore[call-arg]
    plain.enqueue("a", subjct="b")  # type: ignore[call-arg]
    plain.submit(5)  # type: ignore[arg-type]
    plain.new_job(to=1)  # type: ignore[arg-type]
    plain.options(delay="5m").enqueue(to=1)  # type: ignore[arg-type]
    plain.options(delays="5m")  # type: ignore[call-arg]
    plain.options(delay=[5])  # type: ignore[arg-type]
    plain(1)  # type: ignore[call-overload]
    coroutine.enqueue(1)  # type: ignore[arg-type]
    with_context.enqueue(1)  # type: ignore[arg-type]
    with_context.enqueue("a", context=None)  # type: ignore[call-arg]
    async_with_context.enqueue(order=1)  # type: ignore[arg-type]
    in_a_process.enqueue(["1"])  # type: ignore[list-item]
    open_ended.enqueue(1, second="2")  # type: ignore[arg-type]
    await plain.enqueue_async(1)  # type: ignore[arg-type]
    app.enqueue("resize", {"path": 1}, retries=3)  # type: ignore[call-arg]
    app.enqueue("resize", ["path"])  # type: ignore[arg-type]
    app.enqueue_many([plain])  # type: ignore[list-item]
    app.job(retries=3)  # type: ignore[call-overload]
    app.job(timeout=[3])  # type: ignore[call-overload]
    app.run_worker(queues=5)  # type: ignore[arg-type]
    takes_any_job_type(in_a_process)  # type: ignore[arg-type]


async def results_of_parents_have_the_type_that_is_asked_for(context: JobContext) -> None:
    assert_type([rows async for rows in context.results_async(int)], list[int])
    assert_type(await context.result_async("total", int), int)


async def twins_have_the_types_of_their_verbs() -> None:
    assert_type(await app.get_async("id"), Job)
    assert_type(await app.find_async(limit=5, status=Status.FAILED), list[Job])
    assert_type(await app.retry_async("id", more_retries=2), Job)
    assert_type(app.cancel("id", actor="me"), Job)
    assert_type(app.cancel(tag="import-7"), Bulk)
    assert_type(await app.cancel_async("id", reason="no need"), Job)
    assert_type(await app.cancel_async(tag="import-7"), Bulk)
    assert_type(await app.amend_async("id", priority=1, timeout=None), Job)
    assert_type(app.run_again("id", {"n": 1}, delay="5m"), Job)
    app.amend("id", queue="other")  # type: ignore[call-arg]
    await app.get_async(5)  # type: ignore[arg-type]
    await app.cancel_async("id", actr="me")  # type: ignore[call-overload]


def in_a_test() -> None:
    with testing.on(app) as jobs, testing.inline(app):
        assert_type(jobs, testing.Jobs)
        assert_type(jobs.assert_enqueued(plain, to="a", count=1), Job)
        assert_type(jobs.enqueued("plain", {"to": "a"}, status="completed"), list[Job])
        assert_type(jobs.run(plain.enqueue("a")), Job)
        assert_type(jobs.drain(until="1h", retries=True, types=[plain]), testing.Drained)
        jobs.drain(untill="1h")  # type: ignore[call-arg]
    with testing.within(app, sqlite3.connect("jobs.db")) as same:
        assert_type(same.travel(timedelta(hours=1)), datetime)
    assert_type(testing.context(attempt=2), JobContext)
