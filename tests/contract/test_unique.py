"""Unique jobs, as applications add them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from tenure import (
    DuplicateJob,
    IllegalTransition,
    InvalidInput,
    KeyConflict,
    NewJob,
    QueueFull,
    Tenure,
    Unique,
)
from tenure.app.app import limited_to
from tenure.lifecycle import Job
from tenure.rules.jobs import with_unique_key
from tenure.store.borrowed import dependencies
from tenure.values.ids import new_id
from tests.support.store import StoreHarness, new_job, report_completed, report_failed

ONE = Unique(("doc",))


def add(app: Tenure, rule: Unique = ONE, doc: Any = 1, **more: Any) -> Job:
    payload = {"doc": doc, **more.pop("payload", {})}
    return app.enqueue("index", payload, unique=rule, **more)


def jobs_of(app: Tenure) -> int:
    return app.count().jobs


def test_an_unsettled_job_is_the_answer(harness: StoreHarness, app: Tenure) -> None:
    first = add(app, payload={"n": 1})
    assert add(app, payload={"n": 2}, priority=5) == first
    assert add(app, doc=2).id != first.id
    assert app.enqueue("other", {"doc": 1}, unique=ONE).id != first.id
    assert app.enqueue("index", {"doc": 1}).id != first.id  # not unique itself
    (lease,) = harness.claim(types=("index",))
    assert add(app).status == "processing"
    harness.report(report_completed(lease))
    second = add(app)
    assert second.id != first.id
    assert [entry.event for entry in app.history(first.id)] == ["enqueued", "claimed", "completed"]
    with pytest.raises(DuplicateJob) as refusal:
        add(app, Unique(("doc",), on_conflict="error"))
    assert refusal.value.job_id == second.id


@pytest.mark.parametrize("end", ["cancel", "fail", "expire", "lease"])
def test_whatever_ends_a_job_it_lets_go(harness: StoreHarness, app: Tenure, end: str) -> None:
    """F25: celery-once#147, celery-singleton#29 and #40, sidekiq-unique-jobs#304, bullmq#4311."""
    first = add(app, max_retries=1, start_by="1m")
    if end == "cancel":
        app.cancel(first.id)
    elif end == "expire":
        harness.clock.advance(61)
        assert len(harness.store.expire().result()) == 1
    else:
        (lease,) = harness.claim()
        if end == "fail":
            harness.report(report_failed(lease))
        else:
            harness.clock.advance(3600)
            assert len(harness.store.sweep().result()) == 1
    assert add(app).id != first.id


def test_a_job_counts_until_it_starts(harness: StoreHarness, app: Tenure) -> None:
    rule = Unique(("doc",), until="started")
    first = add(app, rule)
    assert add(app, rule) == first
    (lease,) = harness.claim()
    second = add(app, rule)
    assert second.id != first.id
    harness.report(report_failed(lease, retryable=False))
    with pytest.raises(IllegalTransition):
        app.retry(second.id)
    assert app.retry(first.id).status == "pending"  # it never takes the key back
    assert add(app, rule) == second


def test_the_newest_request_replaces_what_waits(harness: StoreHarness, app: Tenure) -> None:
    """F21: oban#635, windmill#9780."""
    rule = Unique(("doc",), on_conflict="replace")
    first = add(app, rule, payload={"n": 1}, delay=None)
    same = add(app, rule, payload={"n": 2}, priority=7, max_retries=4, timeout=9, actor="ann")
    assert (same.id, same.payload["n"], same.priority) == (first.id, 2, 7)
    assert same == app.get(first.id)
    entry = app.history(first.id)[-1]
    assert (entry.event, entry.actor) == ("amended", "ann")
    assert add(app, rule, payload={"n": 2}, priority=7, max_retries=4, timeout=9) == same
    assert len(app.history(first.id)) == 2  # nothing was different
    (lease,) = harness.claim()
    kept = add(app, rule, payload={"n": 3})
    assert (kept.id, kept.payload["n"]) == (first.id, 2)
    harness.report(report_failed(lease))
    assert add(app, rule, payload={"n": 4}).payload["n"] == 2  # it was claimed before
    assert app.history(first.id)[-1].event == "retried"


def test_a_request_with_parents_replaces_what_waits(harness: StoreHarness, app: Tenure) -> None:
    rule = Unique(("doc",), on_conflict="replace")
    first, parent = add(app, rule, payload={"n": 1}), app.enqueue("parent")
    same = add(app, rule, payload={"n": 2}, depends_on=[parent])
    assert (same.id, same.payload["n"], same.status) == (first.id, 2, "pending")
    with app.workflow("flow") as flow:
        node = flow.add(NewJob("index", {"doc": 1, "n": 3}, {"unique": rule}))
        after = flow.add(NewJob("after", {}, {}), depends_on=[node])
    assert (node.id, app.get(first.id).payload["n"]) == (first.id, 3)
    for lease in harness.claim(types=("index",)):
        harness.report(report_completed(lease))
    assert app.get(after.id).status == "pending"


def test_debounce_runs_in_time_under_a_steady_stream(harness: StoreHarness, app: Tenure) -> None:
    """F22: inngest#3554."""
    rule = Unique(("doc",), until="started", on_conflict="replace", max_wait="1m")
    first = add(app, rule, payload={"n": 0}, delay=10)
    for n in range(1, 14):
        harness.clock.advance(5)
        if harness.claim():
            break
        assert add(app, rule, payload={"n": n}, delay=10).id == first.id
    assert harness.clock.now - first.created_at == timedelta(seconds=60)
    assert app.get(first.id).payload["n"] == 11


def test_one_job_in_so_much_time(harness: StoreHarness, app: Tenure) -> None:
    """F23: pg-boss truncates to slots, so two a second apart pass."""
    rule = Unique(("doc",), within="10m")
    first = add(app, rule)
    harness.report(report_completed(harness.claim()[0]))
    for seconds in (0, 599):
        harness.clock.set(first.created_at + timedelta(seconds=seconds))
        assert add(app, rule).id == first.id
    harness.clock.set(first.created_at + timedelta(seconds=600))
    second = add(app, rule)
    assert second.id != first.id
    harness.clock.advance(599)
    assert add(app, rule).id == second.id
    app.cancel(second.id)
    harness.prune({"cancelled": harness.clock.now + timedelta(hours=1)})
    with pytest.raises(DuplicateJob) as refusal:  # the job is gone, its time is not over
        add(app, rule)
    assert refusal.value.job_id == second.id
    harness.clock.advance(-86_400)  # the clock was ahead
    assert add(app, rule).id not in {first.id, second.id}


def test_a_thousand_in_one_batch_with_repeats(app: Tenure) -> None:
    """F23, beyond what is locked key by key."""
    rule = Unique(("doc",), within="1h")
    batch = [NewJob("index", {"doc": n % 400}, {"unique": rule}) for n in range(1_000)]
    jobs = app.enqueue_many(batch)
    assert len({job.id for job in jobs}) == 400
    assert [job.id for job in jobs[400:]] == [job.id for job in jobs[:600]]
    assert {job.id for job in app.enqueue_many(batch)} == {job.id for job in jobs}
    assert jobs_of(app) == 400


def test_a_key_of_callers_in_one_commit_is_one_job(harness: StoreHarness, app: Tenure) -> None:
    wanted = [(1, ONE), (1, ONE), (1, Unique(("doc",), on_conflict="error")), (2, ONE)]
    first, same, refused, other = harness.add_in_one_commit(
        *(
            with_unique_key(new_job("index", payload=f'{{"doc":{doc}}}'), rule)
            for doc, rule in wanted
        )
    )
    assert (first.result()[0].created, same.result()[0].created) == (True, False)
    assert first.result()[0].job == same.result()[0].job
    with pytest.raises(DuplicateJob) as refusal:
        refused.result()
    assert refusal.value.job_id == first.result()[0].job.id
    assert other.result()[0].created
    assert jobs_of(app) == 2


def test_a_rule_for_a_time_can_also_wait_for_the_end(harness: StoreHarness, app: Tenure) -> None:
    rule = Unique(("doc",), until="settled", within="10m")
    first = add(app, rule)
    harness.clock.advance(601)
    assert add(app, rule).id == first.id
    harness.report(report_completed(harness.claim()[0]))
    assert add(app, rule).id != first.id


def test_idempotency_keys_beside_unique_keys(harness: StoreHarness, app: Tenure) -> None:
    """F24: inngest#1361."""
    first = add(app, idempotency_key="a")
    assert add(app, idempotency_key="a") == first
    with pytest.raises(KeyConflict):
        add(app, doc=2, idempotency_key="a")
    assert add(app, idempotency_key="b") == first
    harness.report(report_completed(harness.claim()[0]))
    second = add(app, idempotency_key="c")
    assert add(app, idempotency_key="a").id == first.id  # the same request as long ago
    assert second.id != first.id
    error = Unique(("doc",), on_conflict="error")
    jobs = [NewJob("index", {"doc": 3}, {"unique": error, "idempotency_key": "d"})] * 2
    one, two = app.enqueue_many(jobs)
    assert one.id == two.id


def test_a_batch_is_all_or_none_about_errors_only(harness: StoreHarness, app: Tenure) -> None:
    app.queues.limit("small", max_pending=2)
    first = add(app, Unique(("doc",), on_conflict="replace"), queue="small", payload={"n": 1})
    replace: Any = {"unique": Unique(("doc",), on_conflict="replace"), "queue": "small"}
    error: Any = {"unique": Unique(("doc",), on_conflict="error")}
    with pytest.raises(DuplicateJob):
        app.enqueue_many(
            [NewJob("index", {"doc": 1, "n": 2}, replace), NewJob("index", {"doc": 1}, error)]
        )
    three = [NewJob("index", {"doc": n, "n": 3}, replace) for n in (1, 2, 3)]
    with pytest.raises(QueueFull):
        app.enqueue_many(three)
    assert (app.get(first.id), jobs_of(app)) == (first, 1)
    assert [job.id for job in app.enqueue_many([three[0], three[1], three[0]])][::2] == [
        first.id
    ] * 2
    assert app.get(first.id).payload["n"] == 3
    assert add(app, Unique(("doc",)), queue="small").id == first.id  # that needs no room
    with pytest.raises(QueueFull):
        app.enqueue_many([three[2]])


def test_every_caller_gets_a_job_while_it_ends(harness: StoreHarness, app: Tenure) -> None:
    """F20: graphile-worker#580 answered no job, oban#1505 an error."""
    ended = threading.Event()

    def end_jobs() -> None:
        while not ended.is_set():
            for lease in harness.claim():
                harness.report(report_completed(lease))

    ending = threading.Thread(target=end_jobs)
    ending.start()
    rules = [Unique(("doc",), until, on_conflict="replace") for until in ("settled", "started")]
    try:
        with ThreadPoolExecutor(16) as pool:
            jobs = list(pool.map(lambda n: add(app, rules[n % 2], payload={"n": n}), range(200)))
    finally:
        ended.set()
        ending.join()
    assert len(jobs) == 200
    assert all(app.get(job.id) for job in jobs)


def test_handlers_have_a_rule_of_their_own(app: Tenure) -> None:
    @app.job(unique=ONE)
    def index(doc: int, again: bool = False) -> None: ...

    first = index.enqueue(1)
    assert index.enqueue(1, again=True) == first
    assert app.enqueue("index", {"doc": 1}) == first
    assert index.options(unique=None).enqueue(1).id != first.id
    assert index.options(unique=Unique("nightly")).enqueue(1).id != first.id
    with Tenure(app.database) as other:
        assert other.enqueue("index", {"doc": 1}).id != first.id  # it does not have the handler
    with pytest.raises(InvalidInput):
        app.job(name="other", unique="doc")(lambda doc: None)  # type: ignore[call-overload]


def test_the_jobs_of_a_schedule_are_not_unique(app: Tenure) -> None:
    """Its `overlap` says what happens while one of them is not settled, and each tick is a job."""
    app.job(name="index", unique=ONE)(lambda doc=0: None)  # and they need not have its values
    job = NewJob("index", {}, {})
    app.schedules.create("nightly", job, every=60)
    assert len({app.schedules.trigger("nightly").job_id for _ in range(2)}) == 2
    with pytest.raises(InvalidInput, match=r"\$\.job: the schedule decides this: unique"):
        app.schedules.create("other", NewJob("index", {}, {"unique": Unique(())}), every=60)


def test_only_explain_names_a_holder_to_those_who_may_see_it(
    harness: StoreHarness, app: Tenure
) -> None:
    """The refusal of a retry named a job of a queue that a caller's token did not include."""
    first = add(app)
    harness.report(report_failed(harness.claim()[0], retryable=False))
    assert "unique key" not in app.explain(first.id).text
    second = add(app, queue="other")
    told = app.explain(first.id)
    assert f"job {second.id} holds its unique key" in told.text
    assert told.legal_events == ()
    refusal = "another job holds its unique key; explain says which"
    for caller in (app, limited_to(app, ("default",))):
        with pytest.raises(IllegalTransition, match=refusal) as refused:
            caller.retry(first.id)
        assert second.id not in str(refused.value)


def test_rules_whose_time_is_over_are_forgotten(harness: StoreHarness, app: Tenure) -> None:
    for n in range(3):
        add(app, Unique(("doc",), within="1m"), doc=n)
        harness.clock.advance(30)
    assert harness.store.forget_throttles().result() == 2
    assert harness.sql.value("SELECT count(*) FROM {throttle}") == 1
    assert "throttles" not in harness.store.look()
    harness.clock.advance(60)
    assert "throttles" in harness.store.look()


def test_verify_finds_a_holder_that_is_none(unaudited_harness: StoreHarness) -> None:
    harness = unaudited_harness
    with Tenure(harness.url) as app:
        one, two = add(app), add(app, doc=2)
        cancelled = "status = 'cancelled', finished_at = created_at, event = 'cancelled'"
        harness.sql.without_triggers(f"UPDATE {{job}} SET {cancelled} WHERE id = ?", one.id)
        harness.sql.without_triggers(
            "UPDATE {job} SET unique_key = ? WHERE id = ?", "f" * 32, two.id
        )
        three = new_id()
        columns = "id, type, run_at, created_at, unique_key, unique_until"
        harness.sql.without_triggers(
            f"INSERT INTO {{job}} ({columns}) VALUES (?, 'x', {{now}}, {{now}}, ?, 'started')",
            three,
            "e" * 32,
        )
        found = {
            (violation.job_id, violation.found.split(" ", 1)[0])
            for violation in app.verify()
            if violation.invariant.startswith("one holder per unique key")
        }
    assert found == {(one.id, "cancelled"), (two.id, "pending"), (three, "pending")}


def test_many_keys_are_not_locked_and_a_conflict_is_looked_at_again(
    harness: StoreHarness, app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only the insert finds, the second look does."""
    if harness.sql.engine == "sqlite":
        pytest.skip("there is one writer")
    first = add(app)
    real, looks = dependencies.look, []

    def late(engine: str, jobs: Any) -> Any:
        looks.append(jobs)
        seen = yield from real(engine, jobs)
        return seen if len(looks) > 1 else type(seen)(seen.now)

    monkeypatch.setattr(dependencies, "look", late)
    assert add(app) == first
    assert len(looks) == 2
