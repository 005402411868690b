"""Why a job is not running: each reason, with the names and numbers that an operator needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from tenure import Tenure, Unique
from tenure.app.app import limited_to
from tenure.events import Amended, Cancelled
from tenure.handlers.results import result_text
from tenure.lifecycle import ATTEMPT_ENDS, Job
from tenure.rules.explain import (
    RATE_MINUTES,
    SWEEP_IS_LATE,
    WORKER_IS_LIVE,
    Explanation,
    Facts,
    explain,
    rate,
)
from tenure.rules.reports import ClaimRequest
from tenure.rules.search import MAX_AHEAD
from tenure.rules.stats import BUCKETS, Activity, WorkerState
from tenure.rules.steps import Record
from tenure.webhooks.deliveries import WEBHOOK, queue_of
from tests.support.store import (
    LEASE_SECONDS,
    StoreHarness,
    new_job,
    report_completed,
    report_failed,
    report_snoozed,
    report_suspended,
)

Why = Callable[[str], Explanation]


@pytest.fixture
def why(harness: StoreHarness) -> Iterator[Why]:
    """The explanation of a job, as the application gives it."""
    with Tenure(harness.url) as app:
        yield app.explain


def check(told: Explanation, reason: str, *words: str) -> None:
    """The reason is this one, and its text says all of these."""
    assert told.reason == reason
    assert [word for word in words if word not in told.text] == [], told.text


def test_completed(harness: StoreHarness, why: Why) -> None:
    lease = harness.take()
    harness.report(report_completed(lease))
    told = why(lease.id)
    check(told, "completed", f"{harness.clock.now:%Y-%m-%d %H:%M:%S} UTC", "attempt 1")
    assert told.legal_events == ()


def test_a_result_that_was_not_stored_whole_is_said(harness: StoreHarness, why: Why) -> None:
    """The job was said to have completed, and its result is only a note."""
    lease = harness.take()
    harness.report(report_completed(lease, result_text("x" * 70_000)))
    told = why(lease.id)
    kept = "Its result was not stored whole: PayloadTooLarge: $.result: at least 70000 bytes"
    check(told, "completed", kept, "the limit is 65536 bytes", "keep large data elsewhere")
    assert told.text.endswith(".")


def test_a_result_that_looks_like_such_a_note_is_no_mistake(
    harness: StoreHarness, why: Why
) -> None:
    for result in (
        '{"tenure:unstorable":1}',
        '{"tenure:unstorable":1,"reason":[]}',
        '"tenure:unstorable"',
    ):
        lease = harness.take()
        harness.report(report_completed(lease, result))
        told = why(lease.id)
        check(told, "completed")
        assert told.text.endswith(", attempt 1.")


@pytest.mark.parametrize("broken", ['{"tenure:unstorable":', '{"tenure:unstorable":1} x'])
def test_a_result_that_is_no_json_is_explained(
    unaudited_harness: StoreHarness, broken: str
) -> None:
    """SQL without the checks of the tables had written it, and the call raised a DecodeError."""
    lease = unaudited_harness.take()
    unaudited_harness.report(report_completed(lease))
    sql = unaudited_harness.sql
    sql.drop_checks()
    sql.without_triggers("UPDATE {job} SET result = ? WHERE id = ?", broken, lease.id)
    with Tenure(unaudited_harness.url) as app:
        check(app.explain(lease.id), "completed", ", attempt 1.")


def test_cancelled(harness: StoreHarness, why: Why) -> None:
    job = harness.add()
    harness.store.apply(job.id, Cancelled(actor="alice")).result()
    check(why(job.id), "cancelled", "alice cancelled it", f"{harness.clock.now:%H:%M:%S} UTC")


def test_what_had_started_was_said_not_to_have_started(harness: StoreHarness, why: Why) -> None:
    """A job that waits, sleeps or is tried again has a start before it, and needs another."""
    until = harness.clock.now + timedelta(seconds=60)
    fresh = harness.add(start_by=until)
    lease = harness.take(start_by=until, priority=-1)
    harness.report(report_suspended(lease))
    harness.clock.advance(61)
    when = f"{until:%Y-%m-%d %H:%M:%S} UTC."
    for job in (fresh, lease):  # no worker that is started now would run it
        soon = why(job.id)
        assert soon.text.endswith(f" before {when} The next sweep cancels it.")
        assert soon.reason == "will_expire"
    harness.clock.advance(SWEEP_IS_LATE.total_seconds())
    check(why(fresh.id), "will_expire", f"{when} No process sweeps; start `tenure worker`")
    assert len(harness.store.expire().result()) == 2
    check(why(fresh.id), "expired", f"It was cancelled: it had to start before {when}")
    check(why(lease.id), "expired", f"It was cancelled: it had to start again before {when}")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_who_has_the_key_of_a_job_that_was_skipped(harness: StoreHarness, elsewhere: bool) -> None:
    """It was named for failed jobs only, to those who may not see its queue too."""
    with Tenure(harness.url) as app:
        parent = app.enqueue("parent", max_retries=1)
        unique = {"unique": Unique(by=("n",)), "payload": {"n": 1}}
        skipped = app.enqueue("child", depends_on=[parent], **unique)
        wanted = ClaimRequest(worker="w", limit=1, lease_seconds=30, label="w")
        (lease,) = app.core.claim(wanted).leases
        app.core.report([report_failed(lease)])
        while harness.store.follow().result():
            pass
        holder = app.enqueue("child", queue="other", **unique)
        assert app.get(skipped.id).event == "skipped"
        told = (limited_to(app, ("default",)) if elsewhere else app).explain(skipped.id)
    who = "a job of another queue" if elsewhere else f"job {holder.id}"
    check(told, "skipped", f"It cannot wait again: {who} holds its unique key.")
    assert (holder.id in told.text) is not elsewhere
    assert told.jobs == ((parent.id,) if elsewhere else (parent.id, holder.id))


def test_failed(harness: StoreHarness, why: Why) -> None:
    lease = harness.take(max_retries=1)
    harness.report(report_failed(lease, "no such address\nTraceback"))
    told = why(lease.id)
    check(told, "failed", "1 of 1 attempts: no such address")
    assert "Traceback" not in told.text
    assert told.legal_events == ("retried",)


def test_running(harness: StoreHarness, why: Why) -> None:
    lease = harness.take()
    harness.clock.advance(LEASE_SECONDS - 0.001)
    until = harness.clock.now + timedelta(milliseconds=1)
    check(why(lease.id), "running", "w1", "attempt 1", f"until {until:%Y-%m-%d %H:%M:%S} UTC")
    check(why(lease.id), "running", "It has no timeout.")
    check(why(harness.take(timeout=90.0).id), "running", "Its timeout is 1m 30s.")


def test_the_worker_of_a_job_is_named_so_that_its_process_is_found(
    harness: StoreHarness, why: Why
) -> None:
    """Its id alone is in no list of processes, and the list of workers shows the other name."""
    job = harness.add()
    harness.claim(worker="worker-1", label="web-3:4711")
    harness.claim(worker="worker-2", label="web-3:4712")
    check(why(job.id), "running", "Worker worker-1 (web-3:4711) runs attempt 1")
    harness.clock.advance(LEASE_SECONDS)
    check(why(job.id), "lease_ran_out", "Worker worker-1 (web-3:4711) holds it")


def test_lease_ran_out(harness: StoreHarness, why: Why) -> None:
    lease = harness.take()
    harness.clock.advance(LEASE_SECONDS)
    ran_out = f"{harness.clock.now:%Y-%m-%d %H:%M:%S} UTC"
    check(why(lease.id), "lease_ran_out", "w1", ran_out, "the next sweep ends the attempt")
    harness.clock.advance(SWEEP_IS_LATE.total_seconds())
    check(why(lease.id), "lease_ran_out", ran_out, "No process sweeps; start `tenure worker`")


def test_a_worker_was_killed_and_no_other_process_sweeps(harness: StoreHarness, why: Why) -> None:
    """Its lease that has ended does not make it live."""
    harness.take()
    job = harness.add()
    harness.clock.advance(max(WORKER_IS_LIVE.total_seconds(), LEASE_SECONDS))
    check(why(job.id), "no_worker", "start one")


def test_a_paused_queue_comes_before_all_else(harness: StoreHarness, why: Why) -> None:
    job = harness.add(queue="night", delay=60)
    harness.claim(queues=("day",))
    harness.set_queue("night", paused=True)
    check(why(job.id), "queue_paused", "Queue night is paused", "resume")


def test_not_due(harness: StoreHarness, why: Why) -> None:
    job = harness.add(delay=90)
    due = harness.clock.now + timedelta(seconds=90)
    told = why(job.id)
    check(told, "not_due", f"before {due:%Y-%m-%d %H:%M:%S} UTC", "in 1m 30s")
    assert "attempt" not in told.text
    assert "snoozed" not in told.text


def test_not_due_because_its_handler_has_snoozed_it(harness: StoreHarness, why: Why) -> None:
    """After `RateLimited` too, it was only called not due: by whose wish was to be guessed."""
    lease = harness.take()
    harness.report(report_snoozed(lease, delay=90.0))
    check(why(lease.id), "not_due", "in 1m 30s. Its handler has snoozed it.")


def test_not_due_after_an_attempt_failed(harness: StoreHarness, why: Why) -> None:
    lease = harness.take(max_retries=2)
    harness.report(report_failed(lease, "no such address"))
    again = f"{harness.get(lease.id).run_at:%Y-%m-%d %H:%M:%S} UTC"
    told = (f"It is tried again at {again}, in", "as attempt 2 of 2. Attempt 1 failed: no such")
    check(why(lease.id), "not_due", *told)


def test_sleeping(harness: StoreHarness, why: Why) -> None:
    """A job that sleeps was called not due, and running it now was offered, which wakes no job."""
    lease = harness.take(max_retries=2)

    def begin(name: str, result: str | None) -> None:
        call = Record(name, 1, result)
        harness.store.ask(lease.id, lease.lease_id, call).result()
        harness.clock.advance(1)

    begin("sleep:old", "600000")  # a deploy has removed it
    begin("Sleep:other", "1")
    begin("sleep:1", "90")
    until = f"until {harness.clock.now + timedelta(seconds=89):%Y-%m-%d %H:%M:%S} UTC, in 1m 29s"
    harness.report(report_snoozed(lease, delay=89.0))
    check(why(lease.id), "sleeping", "It sleeps", until, "To run it now does not wake it")
    harness.store.apply(lease.id, Amended(changes={"priority": 1})).result()
    check(why(lease.id), "sleeping", until)
    harness.set_queue(harness.get(lease.id).queue, paused=True)
    assert why(lease.id).reason == "queue_paused"
    harness.set_queue(harness.get(lease.id).queue, paused=False)
    harness.clock.advance(89)
    (lease,) = harness.claim()
    harness.report(report_snoozed(lease, delay=60.0))  # by `raise Snooze`: its sleep is over
    assert why(lease.id).reason == "not_due"
    harness.clock.advance(60)
    (lease,) = harness.claim()
    begin("sleep:2", "4")
    harness.report(report_failed(lease, delay=2.0))
    assert why(lease.id).reason == "not_due"  # its process died in a short sleep
    harness.clock.advance(2)
    for number, wrong in enumerate((None, '"abc"', "1e300", "[]")):
        (lease,) = harness.claim()
        begin(f"sleep:wrong:{number}", wrong)  # by a worker of another kind
        harness.report(report_snoozed(lease, delay=9.0))
        assert why(lease.id).reason == "not_due"
        harness.clock.advance(9)


def test_no_worker_at_all(harness: StoreHarness, why: Why) -> None:
    job = harness.add("mail", queue="night")
    check(why(job.id), "no_worker", "No worker is alive", "type mail", "queue night")
    harness.claim(worker="w1", limit=0, queues=(queue_of("shop"),), types=(WEBHOOK,))
    check(why(job.id), "no_worker")  # one that only delivers to webhooks is none


def test_no_worker_for_the_queue(harness: StoreHarness, why: Why) -> None:
    job = harness.add("mail", queue="night")
    harness.claim(worker="w1", queues=("day",))
    harness.claim(worker="w2", queues=("dusk",), types=("mail",))
    check(why(job.id), "no_worker_for_queue", "from queue night", "2 alive")


def test_a_worker_for_any_queue_takes_no_deliveries(harness: StoreHarness, why: Why) -> None:
    job = harness.add(WEBHOOK, queue=queue_of("shop"))
    harness.claim(worker="w1")
    check(why(job.id), "no_worker", "No process delivers to webhooks; start `tenure serve`")
    harness.claim(worker="own", limit=0, queues=(queue_of("other"),), types=(WEBHOOK,))
    check(why(job.id), "queue_waits", f"{queue_of('shop')} starts no job now", "did not answer")
    harness.claim(worker="w2", limit=0, queues=(queue_of("shop"),))
    check(why(job.id), "next")


def test_no_worker_for_the_type(harness: StoreHarness, why: Why) -> None:
    job = harness.add("mail", queue="night")
    harness.claim(worker="w1", queues=("night",), types=("report",))
    harness.claim(worker="w2", queues=("day",), types=("mail",))
    told = why(job.id)
    check(told, "no_worker_for_type", "of type mail", "1 alive for queue night")


def test_next(harness: StoreHarness, why: Why) -> None:
    harness.claim()  # the worker found nothing
    first = harness.add(queue="night")
    harness.add(queue="night")
    harness.add(queue="night", priority=-1, delay=60)
    check(why(first.id), "next", "next in queue night", "first free worker")


def test_it_waits_though_all_workers_have_long_been_busy(harness: StoreHarness, why: Why) -> None:
    """One that holds a lease is alive, whenever it asked last."""
    harness.add()
    harness.claim(lease_seconds=600.0)
    harness.clock.advance(599)
    first, second = harness.add(), harness.add()
    assert why(first.id).reason == "next"
    check(why(second.id), "behind_others", "1 job of its queue goes first")


def test_waiting_with_an_estimate(harness: StoreHarness, why: Why) -> None:
    harness.clock.set(harness.clock.now.replace(second=40, microsecond=0))
    for _ in range(3):
        harness.report(
            report_completed(harness.take()), report_failed(harness.take(), retryable=False)
        )
    harness.measure()
    harness.clock.advance(20)  # a window of 4 minutes and no second
    *_, last = [harness.add() for _ in range(13)]
    text = "12 jobs of its queue go first; at 1.5 a minute its turn comes in about 8m."
    assert why(last.id).text == text
    assert why(last.id).reason == "behind_others"
    harness.clock.advance(RATE_MINUTES * 60)
    harness.claim(types=("none", "mail"), queues=("other", "default"), limit=1)
    check(why(last.id), "behind_others", "11 jobs", "What ended lately is not counted yet")
    harness.measure()
    check(
        why(last.id),
        "behind_others",
        "11 jobs",
        "none is known to have ended in the last 5 minutes",
    )


def test_more_go_first_than_are_counted(harness: StoreHarness, why: Why) -> None:
    harness.claim()
    for _ in range(3):
        harness.add_all(*[new_job() for _ in range(4000)])
    check(why(harness.add().id), "behind_others", "More than 10,000 jobs of its queue go first")


# --- boundaries -------------------------------------------------------------------------------


@pytest.fixture
def job(harness: StoreHarness) -> Job:
    """A pending job that is due."""
    return harness.add()


def facts(job: Job, *, after: timedelta = timedelta(), **fields: Any) -> Facts:
    """What is known `after` a job was added and a worker asked last; the rest as given."""
    worker = WorkerState("w", "", None, None, job.run_at, 0, job.run_at)
    return Facts(
        **{
            "now": job.run_at + after,
            "queue": None,
            "type": None,
            "workers": [worker],
            "ahead": 0,
            "counted_until": job.run_at + after,
            "rate": 0.0,
            **fields,
        }
    )


def test_it_is_due_from_its_time_on_and_a_worker_lives_for_a_minute(job: Job) -> None:
    tick = timedelta(milliseconds=1)
    expected = {-tick: "not_due", 0 * tick: "next"}
    expected |= {WORKER_IS_LIVE - tick: "next", WORKER_IS_LIVE: "no_worker"}
    assert {after: explain(job, facts(job, after=after)).reason for after in expected} == expected


def test_b10_what_is_not_counted_or_has_no_room_is_said(job: Job) -> None:
    busy = WorkerState("w", "", None, None, job.run_at, 16, job.run_at, slots=16)
    said = explain(job, facts(job, workers=[busy])).text
    assert said == "It is next in queue default: all 16 slots of 1 worker are busy."
    behind = facts(job, ahead=3, counted_until=job.run_at - timedelta(seconds=30))
    said = explain(job, behind).text
    assert said == "3 jobs of its queue go first. What ended lately is not counted yet."


TURNS = [
    (1, 1.0, "1 job of its queue goes first; at 1.0 per second its turn comes in about 1s."),
    (10_000, 0.0, "10,000 jobs of its queue go first, and none is known"),
    (10_000, 100.0, "10,000 jobs of its queue go first; at 100.0 per second its turn comes in"
     " about 1m 40s."),
    (10_001, 100.0, "More than 10,000 jobs of its queue go first; at 100.0 per second its turn"
     " comes in more than 1m 40s."),
    (2, 0.5, "2 jobs of its queue go first; at 30.0 a minute its turn comes in about 4s."),
]  # fmt: skip


def test_the_words_of_a_turn(job: Job, subtests: pytest.Subtests) -> None:
    assert MAX_AHEAD == 10_000
    for ahead, speed, text in TURNS:
        with subtests.test(ahead=ahead, speed=speed):
            assert explain(job, facts(job, ahead=ahead, rate=speed)).text.startswith(text)


def test_the_rate_is_of_attempts_of_the_queue_that_ended(job: Job) -> None:
    now = job.run_at.replace(second=0, microsecond=0)
    transitions = [
        Activity("mail", queue, event, 40, 0.0, (0,) * len(BUCKETS), now)
        for queue in ("default", "other")
        for event in (
            *sorted(ATTEMPT_ENDS),
            "enqueued",
            "claimed",
            "released",
            "retried",
            "cancelled",
        )
    ]
    assert rate(transitions, "default", now) == 120 / 240
    assert rate(transitions, "default", now + timedelta(seconds=59)) == 120 / 299
    assert rate(transitions, "none", now) == 0
