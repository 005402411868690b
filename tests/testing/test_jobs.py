"""What `tenure.testing` shows of jobs and does with them, in a file, a database, a transaction."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta
from unittest import mock
from uuid import UUID, uuid4

import pytest

from tenure import (
    IllegalTransition,
    InvalidInput,
    JobContext,
    JobFailed,
    JobNotFound,
    PerPartition,
    RateLimited,
    Tenure,
    testing,
)
from tests.testing.conftest import Enter


class Shop:
    """A small application."""

    def __init__(self, app: Tenure) -> None:
        self.app = app
        self.sent: list[str] = []

        @app.job(queue="mail")
        def send_email(to: str, order: UUID | None = None, urgent: bool = False) -> str:
            self.sent.append(to)
            return f"sent to {to}"

        @app.job(max_retries=3)
        def charge(order: int) -> None:
            raise ValueError(f"order {order} has no card")

        @app.job
        async def welcome(context: JobContext, to: str) -> None:
            context.enqueue(send_email.new_job(to))

        self.send_email, self.charge, self.welcome = send_email, charge, welcome


@pytest.fixture
def shop(nowhere: Tenure) -> Shop:
    return Shop(nowhere)


def test_what_is_enqueued_is_found_by_a_part_of_its_payload(enter: Enter, shop: Shop) -> None:
    """Celery #4008, Sidekiq #6718: what is compared went through JSON."""
    jobs = enter(shop.app)
    order = uuid4()
    first = shop.send_email.enqueue("a@example.com", order)
    second = shop.send_email.options(delay="1h", tags=["vip"]).enqueue("b@example.com")
    assert [job.id for job in jobs.enqueued()] == [first.id, second.id]
    assert jobs.assert_enqueued(shop.send_email, order=order).id == first.id
    assert jobs.assert_enqueued("send_email", {"order": str(order)}).id == first.id
    assert jobs.assert_enqueued(shop.send_email, to=mock.ANY, count=2).id == second.id
    assert jobs.assert_enqueued(tag="vip").id == second.id
    assert jobs.assert_enqueued(queue="mail", state="scheduled").id == second.id
    jobs.assert_none_enqueued(shop.charge)
    jobs.assert_none_enqueued(shop.send_email, urgent=True)
    assert jobs.enqueued(status="completed") == []


def test_dictionaries_with_numbers_as_keys_are_compared_too(enter: Enter, shop: Shop) -> None:
    @shop.app.job
    def restock(shelves: dict[int, UUID]) -> None: ...

    jobs, shelves = enter(shop.app), {7: uuid4()}
    restock.enqueue(shelves)
    jobs.assert_enqueued(restock, shelves=shelves)
    jobs.assert_none_enqueued(restock, shelves={8: shelves[7]})


def test_a_keyword_that_means_nothing_is_refused(enter: Enter, shop: Shop) -> None:
    """Else `assert_none_enqueued` with a slip of the pen would always hold."""
    jobs = enter(shop.app)
    with pytest.raises(TypeError, match="'statsu' is no filter of find\\(\\), and no argument"):
        jobs.assert_none_enqueued(shop.send_email, statsu="failed")
    with pytest.raises(TypeError, match="'to' is no filter"):
        jobs.enqueued("send_email", to="a@example.com")


def test_a_failing_assertion_says_what_is_there(enter: Enter, shop: Shop) -> None:
    """Oban for Python #10: the message has to do the debugging."""
    jobs = enter(shop.app)
    with pytest.raises(AssertionError) as nothing:
        jobs.assert_enqueued(shop.charge)
    assert str(nothing.value) == "no job of charge is enqueued\nnothing is enqueued"
    shop.charge.enqueue(17)
    shop.send_email.enqueue("a@example.com", urgent=True)
    with pytest.raises(AssertionError) as missed:
        jobs.assert_enqueued(shop.send_email, to="b@example.com", urgent=True)
    text = str(missed.value)
    assert "no job of send_email with the payload {'to': 'b@example.com', 'urgent': True}" in text
    assert "to is 'a@example.com', not 'b@example.com'" in text.splitlines()[1]
    assert 'charge {"order":17} in default, pending' in text
    with pytest.raises(AssertionError, match="1 job, not 2, of charge is enqueued"):
        jobs.assert_enqueued(shop.charge, count=2)
    with pytest.raises(AssertionError, match=r"1 job of charge is enqueued(\n|.)*charge"):
        jobs.assert_none_enqueued(shop.charge)


def test_drain_runs_what_is_due_and_what_that_adds(enter: Enter, shop: Shop) -> None:
    jobs = enter(shop.app)
    welcome = shop.welcome.enqueue("a@example.com")
    later = shop.send_email.options(delay="1h").enqueue("later@example.com")
    drained = jobs.drain()
    assert (drained.completed, drained.failed, drained.retried, drained.left) == (2, 0, 0, 1)
    assert [(ran.job.type, ran.outcome) for ran in drained.runs] == [
        ("welcome", "completed"),
        ("send_email", "completed"),
    ]
    assert shop.sent == ["a@example.com"]
    assert shop.app.get(welcome.id).status == "completed"
    assert shop.app.get(later.id).status == "pending"
    assert jobs.drain(until="2h").completed == 1
    assert shop.app.get(later.id).result == "sent to later@example.com"
    assert [entry.event for entry in shop.app.history(later.id)] == [
        *("enqueued", "claimed", "completed")
    ]


def test_the_first_error_is_raised_and_is_on_record(enter: Enter, shop: Shop) -> None:
    """Oban #180, Dramatiq #57: errors of jobs were hidden, and the test passed."""
    jobs = enter(shop.app)
    job = shop.charge.enqueue(17)
    with pytest.raises(ValueError, match="order 17 has no card") as raised:
        jobs.drain()
    assert raised.value.__notes__ == [f"job {job.id} (charge), attempt 1 of 3"]
    assert shop.app.get(job.id).event == "retried"
    drained = jobs.drain(retries=True, raise_errors=False)
    assert (drained.failed, drained.retried) == (1, 1)
    assert isinstance(drained.runs[-1].error, ValueError)
    assert shop.app.get(job.id).attempts == 3


def test_with_retries_only_the_last_error_is_raised(enter: Enter, shop: Shop) -> None:
    """Celery #4661: an eager retry raised Retry instead of running again."""
    jobs = enter(shop.app)
    fails = iter([True, True, False])

    @shop.app.job
    def flaky() -> str:
        if next(fails):
            raise OSError("not yet")
        return "done"

    job = flaky.enqueue()
    before = shop.app.core.clock()
    assert jobs.drain(retries=True).retried == 2
    assert shop.app.get(job.id).result == "done"
    assert shop.app.core.clock() - before > timedelta(seconds=5), "the backoff has passed"
    shop.charge.enqueue(1)
    with pytest.raises(ValueError, match="no card") as raised:
        jobs.drain(retries=True)
    assert raised.value.__notes__[0].endswith("attempt 3 of 3")


def test_drain_takes_only_what_it_is_asked_for(enter: Enter, shop: Shop) -> None:
    """Oban #1205: draining one queue ran others."""
    jobs = enter(shop.app)
    mail = shop.send_email.enqueue("a@example.com")
    other = shop.send_email.options(queue="other").enqueue("b@example.com")
    unknown = shop.app.enqueue("unknown")
    assert jobs.drain(queues=["mail"]).left == 0
    assert jobs.drain(types=[shop.charge]).runs == []
    assert shop.app.get(mail.id).status == "completed"
    assert shop.app.get(other.id).status == "pending"
    assert jobs.drain().completed == 1
    assert shop.app.get(unknown.id).status == "pending"


def test_jobs_that_add_each_other_for_ever_end_the_test(enter: Enter, shop: Shop) -> None:
    jobs = enter(shop.app)

    @shop.app.job
    def again() -> None:
        again.enqueue()

    again.enqueue()
    with pytest.raises(RuntimeError, match=r"7 jobs have run(.*)'again': 7"):
        jobs.drain(most=7)
    assert jobs.enqueued(status="processing") == []
    jobs.drain(most=1, types=[shop.charge])


def test_run_takes_one_job_whatever_its_time(enter: Enter, shop: Shop) -> None:
    jobs = enter(shop.app)
    first = shop.send_email.enqueue("a@example.com")
    late = shop.send_email.options(delay="1d").enqueue("b@example.com")
    assert jobs.run(late).result == "sent to b@example.com"
    assert [entry.event for entry in shop.app.history(late.id)] == [
        *("enqueued", "amended", "claimed", "completed")
    ]
    assert shop.app.get(first.id).status == "pending"
    assert jobs.run(first.id).status == "completed"
    with pytest.raises(IllegalTransition, match="cannot be claimed"):
        jobs.run(first)
    with pytest.raises(JobNotFound):
        jobs.run(str(UUID(int=7)))
    with pytest.raises(ValueError, match="no card"):
        jobs.run(shop.charge.enqueue(1))


@pytest.mark.parametrize("paused", ["queue", "type"])
def test_run_takes_a_job_in_a_pause_and_drain_does_not(
    enter: Enter, shop: Shop, paused: str
) -> None:
    jobs = enter(shop.app)
    if paused == "queue":
        shop.app.queues.pause("mail")
    else:
        shop.app.types.pause("send_email")
    job = shop.send_email.enqueue("a@example.com")
    assert jobs.drain().left == 1
    assert jobs.run(job).status == "completed"


def test_a_limit_holds_for_run_too(enter: Enter, shop: Shop) -> None:
    jobs = enter(shop.app)
    shop.app.queues.limit("mail", rate="1/1h")
    first, second = (shop.send_email.enqueue(f"{n}@example.com") for n in range(2))
    jobs.run(first)
    with pytest.raises(IllegalTransition, match=r"may start|fewer jobs start"):
        jobs.run(second)
    assert jobs.drain().left == 1
    assert jobs.drain(until="2h").completed == 1


def test_time_does_not_creep_where_a_limit_opens_at_no_known_time(
    enter: Enter, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a job that waits for a signal, an hour took 3,600 looks, and two weeks never ended."""
    jobs = enter(shop.app)
    monkeypatch.setattr(jobs._runs, "travel", travel := mock.Mock(wraps=jobs._runs.travel))
    shop.app.queues.limit("mail", ordered="halt")

    @shop.app.job(queue="mail")
    def approve(context: JobContext) -> None:
        context.wait_for_signal("answer")

    approve.enqueue()
    shop.send_email.enqueue("a@example.com")
    assert jobs.drain(until="10s").left == 2
    assert travel.call_count == 1


def test_drain_finds_when_each_partition_may_start_again(enter: Enter, shop: Shop) -> None:
    jobs = enter(shop.app)
    shop.app.queues.limit("bank", per_partition=PerPartition(rate="1/1h"))

    @shop.app.job(queue="bank")
    def pay(context: JobContext) -> None:
        if context.token == 1:
            raise RateLimited("2h", pause="partition")

    for partition in ("a", "b", "b"):
        pay.options(partition=partition).enqueue()
    assert jobs.drain(until="12h").left == 0
    assert shop.app.verify() == []  # which counts the starts in each hour


def test_a_payload_that_does_not_fit_fails_for_good(enter: Enter, shop: Shop) -> None:
    jobs = enter(shop.app)
    job = shop.app.enqueue("charge", {"order": "seventeen"})
    with pytest.raises(Exception, match="does not fit charge"):
        jobs.drain()
    assert shop.app.get(job.id).status == "failed"


def test_a_timeout_is_a_failure_without_an_exception(enter: Enter, shop: Shop) -> None:
    jobs = enter(shop.app)

    @shop.app.job(timeout=0.01)
    def slow() -> None:
        time.sleep(0.5)  # on a busy machine, too, the timeout is noticed before

    with pytest.raises(JobFailed, match=r"timed out after 0\.01 s"):
        jobs.run(slow.enqueue())


def test_the_clock_travels(enter: Enter, shop: Shop) -> None:
    jobs = enter(shop.app)
    before = shop.app.core.clock()
    late = shop.send_email.options(start_by="1h", delay="30m").enqueue("a@example.com")
    after = jobs.travel("2h")
    assert timedelta(hours=2) <= after - before < timedelta(hours=2, minutes=1)
    assert shop.app.get(late.id).event == "expired"
    month_end = after.replace(day=28) + timedelta(days=40)
    assert timedelta() <= jobs.travel(month_end) - month_end < timedelta(minutes=1)
    for wrong in (0, after, datetime(2100, 1, 1)):  # noqa: DTZ001 - without its zone
        with pytest.raises(InvalidInput, match=r"\$\.by"):
            jobs.travel(wrong)
    with pytest.raises(InvalidInput, match=r"\$\.until"):
        jobs.drain(until=datetime(2100, 1, 1))  # noqa: DTZ001


def test_jobs_are_found_by_times_after_a_travel(enter: Enter, shop: Shop) -> None:
    """Their ids have the time of the machine."""
    jobs = enter(shop.app)
    jobs.travel("3d")
    at = shop.app.core.clock()
    job = shop.charge.enqueue(1)
    assert [one.id for one in shop.app.find(created_after=at)] == [job.id]
    assert [one.id for one in jobs.enqueued(created_after=at)] == [job.id]
    assert shop.app.find(created_before=at) == []


def test_clear_leaves_nothing(enter: Enter, shop: Shop) -> None:
    jobs = enter(shop.app)
    shop.app.queues.limit("mail", max_running=1)
    shop.app.queues.pause("other")
    shop.app.types.pause("charge")
    with shop.app.workflow("import") as flow:
        first = flow.add(shop.send_email.new_job("a@example.com"))
        flow.add(shop.send_email.new_job("b@example.com"), depends_on=[first])
    shop.charge.options(tags=["x"], idempotency_key="one").enqueue(1)
    jobs.drain(raise_errors=False)
    jobs.travel("1h")
    shop.app.core.measure()
    shop.charge.enqueue(2)
    jobs.clear()
    assert shop.app.find() == []
    assert shop.app.queues.list() == []
    assert shop.app.workflows.list().workflows == []
    assert shop.app.verify() == []
    assert shop.charge.options(idempotency_key="one").enqueue(1).attempts == 0
    assert [type.name for type in shop.app.types.list() if type.paused_at] == []
    shop.app.core.measure()
    assert len(jobs.enqueued()) == 1


def test_the_context_of_a_call(shop: Shop) -> None:
    context = testing.context(attempt=2, token=5)
    assert (context.attempt, context.token, context.queue) == (2, 5, "default")
    asyncio.run(shop.welcome(context, "a@example.com"))
    assert [new.type for new in context.enqueued] == ["send_email"]
