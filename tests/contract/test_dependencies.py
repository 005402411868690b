"""Jobs that depend on others, as applications add them."""

from __future__ import annotations

from typing import Any

import pytest

from tenure import Dependency, JobNotFound, KeyConflict, NewJob, QueueFull, Tenure, Unique
from tenure.app.app import limited_to
from tenure.lifecycle import Job
from tenure.rules.jobs import TypeOptions, check_job
from tenure.values.ids import new_id, new_ids
from tests.support.store import StoreHarness, new_job, report_completed, report_failed


def ended(harness: StoreHarness, how: str) -> Job:
    """A job that has ended so."""
    job = harness.add("mail", max_retries=1)
    if how == "cancelled":
        with Tenure(harness.url) as app:
            return app.cancel(job.id)
    (lease,) = harness.claim(types=("mail",))
    harness.report(report_completed(lease) if how == "completed" else report_failed(lease))
    return harness.get(job.id)


def state(job: Job) -> tuple[str, int | None, int | None]:
    return str(job.status), job.need, job.spare


def rows(harness: StoreHarness, table: str, columns: str) -> list[Any]:
    found = harness.sql.run(f"SELECT {columns} FROM {{{table}}}")
    return sorted(tuple(map(str, row)) for row in found)


def test_a_job_waits_for_those_that_have_not_ended(harness: StoreHarness, app: Tenure) -> None:
    parents = [app.enqueue("mail") for _ in range(3)]
    child = app.enqueue(
        "sum",
        {"n": 1},
        depends_on={"a": parents[0], "b": parents[1].settled, "c": parents[2].id},
        delay="1h",
        tags=["t"],
    )
    assert state(child) == ("waiting", 3, 0)
    assert app.get(child.id) == child
    assert (child.run_at - child.created_at).total_seconds() == 3600
    assert [entry.event for entry in app.history(child.id)] == ["enqueued"]
    assert not harness.claim(limit=9, types=("sum",))
    assert rows(harness, "dependency", "parent, child, meets, name") == sorted(
        (parent.id, child.id, meets, name)
        for parent, meets, name in zip(
            parents, ("completed", "settled", "completed"), "abc", strict=True
        )
    )
    some = app.enqueue("sum", depends_on=parents, needs=2)
    any_one = app.enqueue("sum", depends_on=parents[:2], needs="any")
    assert (state(some), state(any_one)) == (("waiting", 2, 1), ("waiting", 1, 1))
    followed = dict(harness.sql.run("SELECT id, followed FROM {job} WHERE followed > 0"))
    assert sorted(followed.values()) == [2, 3, 3]


@pytest.mark.parametrize("how", ["completed", "failed", "cancelled"])
def test_what_has_ended_counts_at_once(harness: StoreHarness, app: Tenure, how: str) -> None:
    old = ended(harness, how)
    met, missed = (old.id, old.failed) if how == "completed" else (old.failed, old.id)
    assert state(app.enqueue("sum", depends_on=[met])) == ("pending", 0, 0)
    assert state(app.enqueue("sum", depends_on=[old.settled])) == ("pending", 0, 0)
    open_one = app.enqueue("mail")
    assert state(app.enqueue("sum", depends_on=[met, open_one])) == ("waiting", 1, 0)
    assert state(app.enqueue("sum", depends_on=[missed, open_one], needs="any")) == (
        "waiting",
        1,
        0,
    )
    doomed = app.enqueue("sum", depends_on=[missed, open_one])
    assert state(doomed) == ("waiting", 2, -1)
    assert rows(harness, "revisit", "job_id") == [(doomed.id,)]
    assert not harness.store.read.history(new_id())


def test_a_failure_that_is_tried_again_has_not_ended(harness: StoreHarness, app: Tenure) -> None:
    parent = harness.add("mail", max_retries=2)
    (lease,) = harness.claim(types=("mail",))
    harness.report(report_failed(lease))
    assert state(app.enqueue("sum", depends_on=[parent])) == ("waiting", 1, 0)


def test_nobody_waits_for_a_job_that_is_not_there(harness: StoreHarness, app: Tenure) -> None:
    """Deleted by retention, or in a queue that the token may not see."""
    hidden, seen = app.enqueue("mail", queue="private"), app.enqueue("mail", queue="public")
    missing = new_id()
    for depends_on in ([missing], [seen, missing]):
        with pytest.raises(JobNotFound, match=missing):
            app.enqueue("sum", depends_on=depends_on)
    guest = limited_to(app, ("public",))
    with pytest.raises(JobNotFound, match=hidden.id):
        guest.enqueue("sum", queue="public", depends_on=[seen, hidden])
    assert app.count().jobs == 2
    assert state(guest.enqueue("sum", queue="public", depends_on=[seen])) == ("waiting", 1, 0)


def test_a_repeated_enqueue_ties_nothing_again(harness: StoreHarness, app: Tenure) -> None:
    parent, other = app.enqueue("mail"), app.enqueue("mail")
    first = app.enqueue("sum", depends_on=[parent], idempotency_key="k")
    assert app.enqueue("sum", depends_on=[parent], idempotency_key="k") == first
    with pytest.raises(KeyConflict):
        app.enqueue("sum", depends_on=[other], idempotency_key="k")
    both = [NewJob("sum", {}, {"depends_on": [parent], "idempotency_key": "l"})] * 2
    one, same = app.enqueue_many([*both, NewJob("plain", {}, {})])[:2]
    assert one == same
    assert len(rows(harness, "dependency", "child")) == 2
    assert harness.sql.value("SELECT max(followed) FROM {job}") == 2


def call_of(*jobs: tuple[dict[str, Any], list[int]], known: tuple[str, ...] = ()) -> list[Any]:
    """Jobs of one call, each with the numbers of those before it that it depends on."""
    ids, made = new_ids(len(jobs)), list[Any]()
    for id, (options, parents) in zip(ids, jobs, strict=True):
        depends = {"depends_on": [*known, *(ids[n] for n in parents)]} if parents or known else {}
        new = NewJob("step", {}, {**options, **depends})  # type: ignore[typeddict-item]
        made.append(check_job(new, id, defaults=TypeOptions(), actor="a"))
    return made


def test_jobs_of_one_call_can_depend_on_each_other(harness: StoreHarness) -> None:
    """Also on one that stands for another: a known key, or the holder of a unique key."""
    known = harness.add("step", queue="q", idempotency_key="k", max_retries=10)
    harness.claim()
    unique = {"unique": Unique(by="u")}
    holder = harness.add_all(*call_of((unique, [])))[0].job
    jobs = call_of(
        ({"queue": "q", "idempotency_key": "k"}, []), (unique, []), ({}, [0, 1]), ({}, [2])
    )
    jobs[0] = new_job("step", id=jobs[0].id, queue="q", idempotency_key="k")
    added = harness.add_all(*jobs)
    assert [one.job.id for one in added] == [known.id, holder.id, jobs[2].id, jobs[3].id]
    assert [one.created for one in added] == [False, False, True, True]
    assert [state(one.job) for one in added[2:]] == [("waiting", 2, 0), ("waiting", 1, 0)]
    assert rows(harness, "dependency", "parent, child") == sorted(
        [(known.id, jobs[2].id), (holder.id, jobs[2].id), (jobs[2].id, jobs[3].id)]
    )
    assert harness.sql.value("SELECT count(*) FROM {job} WHERE followed = 1") == 3


def test_only_jobs_that_do_not_wait_need_room(harness: StoreHarness, app: Tenure) -> None:
    parent = app.enqueue("mail")
    harness.set_queue("small", max_pending=1)
    done = ended(harness, "cancelled").settled
    app.enqueue("sum", queue="small", depends_on=[done])
    waiting = app.enqueue("sum", queue="small", depends_on=[parent])
    assert waiting.status == "waiting"
    with pytest.raises(QueueFull):
        app.enqueue("sum", queue="small", depends_on=[done])
    with pytest.raises(QueueFull):
        app.enqueue_many([NewJob("sum", {}, {"queue": "small", "depends_on": [done]})] * 2)


def test_many_parents_are_counted_in_gates(harness: StoreHarness, app: Tenure) -> None:
    first_one = ended(harness, "cancelled")
    parents = [first_one, *app.enqueue_many([NewJob("mail", {}, {})] * 299)]
    every = app.enqueue("sum", depends_on=[one.settled for one in parents])
    first = app.enqueue("sum", depends_on=parents[1:], needs="any")
    lost = app.enqueue("sum", depends_on=parents)
    if harness.sql.engine == "sqlite":
        assert [state(job)[1:] for job in (every, first, lost)] == [(299, 0), (1, 298), (300, -1)]
        return
    assert [state(job)[1:] for job in (every, first, lost)] == [(16, 0), (1, 15), (16, -1)]
    gates = rows(harness, "gate", "need, spare")
    assert sorted(set(gates)) == sorted(
        {("19", "0"), ("18", "0"), ("1", "18"), ("1", "17"), ("19", "-1")}
    )
    assert len(gates) == 48


def test_all_of_a_few_parents_are_counted_in_one_gate(harness: StoreHarness, app: Tenure) -> None:
    parents = app.enqueue_many([NewJob("mail", {}, {})] * 5)
    for needs in ("any", 2):
        app.enqueue("sum", depends_on=parents, needs=needs)
    app.enqueue("sum", depends_on=parents[1:])
    job = app.enqueue("sum", depends_on=parents)
    if harness.sql.engine == "sqlite":
        assert state(job)[1:] == (5, 0)
        return
    assert state(job)[1:] == (1, 0)
    assert rows(harness, "gate", "need, spare") == [("5", "0")]


def test_a_dependency_carries_its_meaning(app: Tenure) -> None:
    job = app.enqueue("mail")
    assert job.settled == Dependency(job.id, "settled")
    assert job.failed == Dependency(job.id, "failed")
