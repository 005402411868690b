"""Adding jobs: what is kept, what is repeated harmlessly, what is refused without a trace."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from tenure.errors import KeyConflict, QueueFull
from tenure.events import Cancelled
from tenure.lifecycle import Job
from tenure.retry import RetryPolicy
from tenure.rules.jobs import Enqueued
from tenure.rules.search import Query
from tenure.store import open_store
from tests.contract.granted_role import also_as_granted_role
from tests.support.store import StoreHarness, new_job, report_completed


def test_a_new_job_is_pending_and_due_at_once(harness: StoreHarness) -> None:
    job = harness.add("mail")
    assert job == Job(
        id=job.id,
        type="mail",
        max_retries=3,
        created_at=harness.clock.now,
        run_at=harness.clock.now,
    )
    assert harness.get(job.id) == job
    (entry,) = harness.history(job.id)
    assert (entry.source, entry.target, entry.event) == (None, "pending", "enqueued")
    assert (entry.at, entry.attempt, entry.token) == (harness.clock.now, 0, 0)
    assert entry.lease_id is None


@also_as_granted_role
def test_every_field_comes_back_as_it_was_given(harness: StoreHarness) -> None:
    fields: dict[str, Any] = {
        "queue": "night",
        "payload": '{"text":"Grüße, 世界 🎈 \\u0001 \'\\"","deep":[[[1.5,null,true]]]}',
        "priority": -100,
        "max_retries": 1_000,
        "timeout": 0.125,
        "backoff": RetryPolicy(base=0.25, factor=3.5, cap=7_200),
        "idempotency_key": "order/17~!",
        "actor": "web",
    }
    job = harness.add("mail.send", **fields)
    stored = harness.get(job.id)
    assert stored == job
    assert stored.payload_json == fields.pop("payload")
    assert {name: getattr(stored, name) for name in fields} == fields
    assert harness.history(job.id)[0].actor == "web"


def test_a_megabyte_of_payload_is_kept(harness: StoreHarness) -> None:
    payload = '{"text":"' + "ß" * 500_000 + '"}'
    assert harness.get(harness.add(payload=payload).id).payload_json == payload


def test_a_job_can_wait(harness: StoreHarness) -> None:
    assert harness.add(delay=90.5).run_at == harness.clock.now + timedelta(seconds=90.5)
    at = harness.clock.now + timedelta(days=400, milliseconds=1)
    assert harness.add(run_at=at).run_at == at
    past = harness.clock.now - timedelta(days=400)
    assert harness.add(run_at=past).run_at == past


def test_what_is_answered_is_what_is_kept_to_the_last_digit(harness: StoreHarness) -> None:
    for delay in (1.234_567_89, 0.000_4, 1e6 / 7):
        job = harness.add(delay=delay)
        assert harness.get(job.id) == job
    harness.add(priority=-1)
    (lease,) = harness.claim(lease_seconds=1.234_567_89)
    assert harness.get(lease.id).lease_expires_at == lease.lease_expires_at


def test_several_jobs_come_back_in_the_order_of_the_request(harness: StoreHarness) -> None:
    wanted = [new_job(f"type-{number}") for number in range(50)]
    added = harness.add_all(*reversed(wanted))
    assert [a.job.type for a in added] == [a.type for a in reversed(wanted)]
    assert all(a.created for a in added)
    assert len(harness.store.read.find(Query(limit=100))) == 50


def test_no_jobs_at_all_is_no_request_to_refuse(harness: StoreHarness) -> None:
    assert harness.add_all() == []


# --- the same request again -------------------------------------------------------------------


def test_the_same_id_again_answers_the_same_job(harness: StoreHarness) -> None:
    checked_job = new_job(delay=5)
    (first,) = harness.add_all(checked_job)
    harness.clock.advance(1)
    (again,) = harness.add_all(checked_job)
    assert again == first
    assert harness.events(checked_job.id) == ["enqueued"]


def test_the_same_id_again_answers_the_job_as_it_is_by_then(harness: StoreHarness) -> None:
    checked_job = new_job()
    harness.add_all(checked_job)
    (lease,) = harness.claim()
    harness.report(report_completed(lease, '"done"'))
    (again,) = harness.add_all(checked_job)
    assert again.job.status == "completed"
    assert harness.events(checked_job.id) == ["enqueued", "claimed", "completed"]


def test_the_same_id_twice_in_one_request_is_one_job(harness: StoreHarness) -> None:
    checked_job = new_job()
    first, second = harness.add_all(checked_job, checked_job)
    assert first.job == second.job
    assert harness.events(checked_job.id) == ["enqueued"]


@also_as_granted_role
def test_a_key_again_answers_the_first_job(harness: StoreHarness) -> None:
    first = harness.add(idempotency_key="k", fingerprint="f")
    harness.clock.advance(3600)
    (again,) = harness.add_all(new_job(idempotency_key="k", fingerprint="f"))
    assert again == Enqueued(first, created=False)
    assert len(harness.store.read.find(Query())) == 1


def test_a_key_holds_while_its_job_runs_and_after_it_ended(harness: StoreHarness) -> None:
    lease = harness.take(idempotency_key="k", fingerprint="f")
    for status in ("processing", "completed"):
        (again,) = harness.add_all(new_job(idempotency_key="k", fingerprint="f"))
        assert (again.job.id, again.job.status, again.created) == (lease.id, status, False)
        harness.report(report_completed(lease))


def test_a_key_with_another_request_is_a_conflict(harness: StoreHarness) -> None:
    first = harness.add(idempotency_key="k", fingerprint="f")
    with pytest.raises(KeyConflict) as conflict:
        harness.add(idempotency_key="k", fingerprint="g")
    assert (conflict.value.key, conflict.value.job_id) == ("k", first.id)
    assert harness.store.read.find(Query()) == [first]


def test_a_key_in_the_same_request_twice_is_one_job_or_a_conflict(harness: StoreHarness) -> None:
    first, second = harness.add_all(
        new_job(idempotency_key="k", fingerprint="f"), new_job(idempotency_key="k", fingerprint="f")
    )
    assert (first.created, second.created) == (True, False)
    assert first.job == second.job
    with pytest.raises(KeyConflict):
        harness.add_all(
            new_job(idempotency_key="m", fingerprint="f"),
            new_job(idempotency_key="m", fingerprint="g"),
        )
    assert [job.idempotency_key for job in harness.store.read.find(Query())] == ["k"]


def test_a_key_of_callers_in_one_commit_is_one_job_or_a_conflict(harness: StoreHarness) -> None:
    first, same, other = harness.add_in_one_commit(
        *(new_job(idempotency_key="k", fingerprint=f) for f in ("f", "f", "g"))
    )
    assert (first.result()[0].created, same.result()[0].created) == (True, False)
    assert first.result()[0].job == same.result()[0].job
    with pytest.raises(KeyConflict) as conflict:
        other.result()
    assert conflict.value.job_id == first.result()[0].job.id
    assert [job.id for job in harness.store.read.find(Query())] == [first.result()[0].job.id]


def test_jobs_without_a_key_are_never_the_same(harness: StoreHarness) -> None:
    harness.add(fingerprint="f")
    harness.add(fingerprint="f")
    assert len(harness.store.read.find(Query())) == 2


@pytest.mark.scenario(33)
def test_one_key_from_fifty_threads_is_one_job(harness: StoreHarness) -> None:
    def ask(_: int) -> Enqueued:
        return harness.add_all(new_job(idempotency_key="k", fingerprint="f"))[0]

    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(ask, range(50)))
    assert len({answer.job.id for answer in answers}) == 1
    assert sum(answer.created for answer in answers) == 1


def test_a_refused_request_does_not_use_its_key_up(harness: StoreHarness) -> None:
    harness.set_queue("small", max_pending=0)
    with pytest.raises(QueueFull):
        harness.add(queue="small", idempotency_key="k", fingerprint="f")
    (added,) = harness.add_all(new_job(idempotency_key="k", fingerprint="g"))
    assert added.created


@pytest.mark.scenario(33)
def test_a_key_can_be_freed_while_somebody_asks_for_it(
    harness: StoreHarness, database_url: str
) -> None:
    pruner = open_store(database_url)
    try:
        for _ in range(30):
            (added,) = harness.add_all(new_job(idempotency_key="k", fingerprint="f"))
            assert added.created
            harness.store.apply(added.job.id, Cancelled()).result()
            harness.clock.advance(1)
            pruning = pruner.prune({"cancelled": harness.clock.now})
            asking = [
                harness.store.add([new_job(idempotency_key="k", fingerprint="f")]) for _ in "123"
            ]
            assert pruning.result() == 1
            for future in asking:  # before the pruning or after it, but answered
                (again,) = future.result()
                if again.job.id != added.job.id:
                    harness.store.apply(again.job.id, Cancelled()).exception()
            harness.clock.advance(1)
            pruner.prune({"cancelled": harness.clock.now}).result()
    finally:
        pruner.close()


# --- all or nothing ---------------------------------------------------------------------------


def test_one_conflict_undoes_the_whole_request(harness: StoreHarness) -> None:
    first = harness.add(idempotency_key="k", fingerprint="f")
    before = harness.sql.contents()
    with pytest.raises(KeyConflict):
        harness.add_all(new_job(), new_job(idempotency_key="k", fingerprint="g"), new_job())
    assert harness.sql.contents() == before
    assert harness.store.read.find(Query()) == [first]


def test_a_request_that_the_database_refuses_harms_no_other(harness: StoreHarness) -> None:
    good: list[Future[list[Enqueued]]] = []
    bad: list[Future[list[Enqueued]]] = []
    for _ in range(20):
        good.append(harness.store.add([new_job()]))
        bad.append(harness.store.add([new_job(max_retries=-1)]))  # against a CHECK
        bad.append(harness.store.add([new_job(), new_job(max_retries=-1)]))
    wait([*good, *bad])
    assert all(future.exception() is not None for future in bad)
    assert all(future.result()[0].created for future in good)
    assert len(harness.store.read.find(Query(limit=500))) == 20


# --- a queue with a limit ---------------------------------------------------------------------


@also_as_granted_role
def test_a_queue_takes_exactly_as_many_as_its_limit(harness: StoreHarness) -> None:
    harness.set_queue("small", max_pending=3)
    for _ in range(3):
        harness.add(queue="small")
    before = harness.sql.contents()
    with pytest.raises(QueueFull) as refusal:
        harness.add(queue="small")
    assert (refusal.value.queue, refusal.value.max_pending) == ("small", 3)
    assert harness.sql.contents() == before
    harness.add(queue="other")


def test_a_queue_with_settings_but_no_limit_takes_all_beside_one_with_a_limit(
    harness: StoreHarness,
) -> None:
    harness.set_queue("small", max_pending=1)
    harness.set_queue("big", paused=True)
    harness.add_all(*[new_job(queue=queue) for queue in ("big", "big", "small", "big")])
    with pytest.raises(QueueFull):
        harness.add_all(new_job(queue="big"), new_job(queue="small"))


@pytest.mark.requirement("C18")
def test_jobs_of_other_queues_take_no_room(harness: StoreHarness) -> None:
    harness.add_all(*[new_job(queue=queue) for queue in ("big", "other", "zoo")])
    harness.set_queue("small", max_pending=1)
    harness.add(queue="small")
    with pytest.raises(QueueFull):
        harness.add(queue="small")


def test_only_pending_jobs_count(harness: StoreHarness) -> None:
    harness.set_queue("default", max_pending=1)
    harness.take()
    harness.add()
    with pytest.raises(QueueFull):
        harness.add()


def test_a_request_fits_whole_or_not_at_all(harness: StoreHarness) -> None:
    harness.set_queue("small", max_pending=3)
    harness.add_all(*[new_job(queue="small") for _ in range(2)])
    before = harness.sql.contents()
    with pytest.raises(QueueFull):
        harness.add_all(new_job(), *[new_job(queue="small") for _ in range(2)])
    assert harness.sql.contents() == before
    harness.add_all(new_job(), new_job(queue="small"))


def test_a_limit_of_nothing_refuses_all_and_minus_one_lifts_it(harness: StoreHarness) -> None:
    harness.set_queue("small", max_pending=0)
    with pytest.raises(QueueFull):
        harness.add(queue="small")
    harness.set_queue("small", max_pending=-1)
    harness.add_all(*[new_job(queue="small") for _ in range(100)])


def test_asking_again_needs_no_room(harness: StoreHarness) -> None:
    harness.set_queue("small", max_pending=2)
    keyed = new_job(queue="small", idempotency_key="k", fingerprint="f")
    plain = new_job(queue="small")
    harness.add_all(keyed, plain)
    assert harness.add_all(plain)[0].job.id == plain.id
    assert harness.add_all(replace(keyed, id=new_job().id)) == [
        Enqueued(harness.get(keyed.id), created=False)
    ]
    assert [a.job.id for a in harness.add_all(plain, keyed)] == [plain.id, keyed.id]
    with pytest.raises(KeyConflict):
        harness.add(queue="small", idempotency_key="k", fingerprint="other")


@pytest.mark.requirement("C18")
def test_callers_at_once_fill_a_queue_to_its_limit_and_no_further(harness: StoreHarness) -> None:
    harness.set_queue("small", max_pending=20)
    for started in range(3):  # the first round fills it, the others find it full
        futures = [harness.store.add([new_job(queue="small")]) for _ in range(50)]
        wait(futures)
        refused = [future.exception() for future in futures if future.exception() is not None]
        assert all(isinstance(error, QueueFull) for error in refused)
        assert len(refused) == (30 if started == 0 else 50)
    (state,) = harness.store.read.queues()
    assert (state.pending, state.max_pending) == (20, 20)
