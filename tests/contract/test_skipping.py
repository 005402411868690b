"""Jobs that can never run are skipped, and wait again once an operator retries what had failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenure import Dependency, NewJob, Tenure, Unique
from tenure.lifecycle import Job
from tenure.rules.dependencies import MAX_COUNTED
from tenure.rules.jobs import CheckedJob, TypeOptions, check_job
from tenure.rules.search import Filter
from tenure.values.ids import new_ids
from tests.support.store import StoreHarness, report_completed, report_failed, report_suspended


def graph(harness: StoreHarness, *jobs: tuple[Sequence[Any], dict[str, Any]]) -> list[str]:
    """Jobs of one call: the numbers (or dependencies) that each depends on, and its options."""
    ids, made = new_ids(len(jobs)), list[CheckedJob]()
    for id, (parents, options) in zip(ids, jobs, strict=True):
        on = [
            ids[one] if isinstance(one, int) else Dependency(ids[one[0]], one[1]) for one in parents
        ]
        new = NewJob("step", {}, {"max_retries": 1, **options, "depends_on": on})  # type: ignore[typeddict-item]
        made.append(check_job(new, id, defaults=TypeOptions(), actor="a"))
    return [one.job.id for one in harness.add_all(*made)]


def fail(harness: StoreHarness, job_id: str) -> None:
    (lease,) = harness.claim()
    assert lease.id == job_id
    harness.report(report_failed(lease))


def complete(harness: StoreHarness, *job_ids: str) -> None:
    leases = harness.claim(limit=10)
    assert {lease.id for lease in leases} == set(job_ids)
    harness.report(*[report_completed(lease) for lease in leases])


def follow(harness: StoreHarness) -> int:
    """Do what the sweep does; return how many calls changed something."""
    calls = 0
    while harness.store.follow().result():
        calls += 1
    return calls


def states(harness: StoreHarness, ids: Sequence[str]) -> str:
    found: list[Job] = [harness.get(id) for id in ids]
    return " ".join(f"{job.event}" if job.event != "enqueued" else str(job.status) for job in found)


def test_a_failure_goes_as_far_as_somebody_needed_it(harness: StoreHarness, app: Tenure) -> None:
    """And the retry of it brings back what it took along: nothing else has changed."""
    ids = graph(
        harness,
        ([], {}),
        ([0], {}),
        ([1], {}),
        ([(1, "failed")], {}),
        ([(2, "settled"), 0], {}),
        ([(2, "settled")], {}),
        ([0, 2], {"needs": "any"}),
    )
    fail(harness, ids[0])
    assert follow(harness) >= 1
    assert states(harness, ids) == ("failed skipped skipped unblocked skipped unblocked skipped")
    assert follow(harness) == 0
    assert harness.events(ids[2]) == ["enqueued", "skipped"]
    assert harness.history(ids[2])[1].actor == "store"
    app.retry(ids[0])
    assert states(harness, ids) == (
        "retried restored restored unblocked restored unblocked restored"
    )
    assert [(harness.get(id).need, harness.get(id).spare) for id in ids[1:3] + ids[4:]] == [
        (1, 0),
        (1, 0),
        (2, 0),
        (0, 0),
        (1, 1),
    ]
    complete(harness, ids[0], ids[3], ids[5])
    complete(harness, ids[1], ids[6])
    complete(harness, ids[2])
    complete(harness, ids[4])
    assert follow(harness) == 0


def test_what_enters_without_a_way_is_skipped(harness: StoreHarness, app: Tenure) -> None:
    (first,) = graph(harness, ([], {}))
    fail(harness, first)
    child = app.enqueue("sum", depends_on=[first])
    late = app.enqueue("sum", depends_on=[child])
    assert app.explain(late.id).text == f"It waits for 1 of 1 job: {child.id} (waiting)."
    follow(harness)
    said = app.explain(child.id)
    assert said.reason == "skipped"
    assert said.text.endswith(f": what it depends on has ended otherwise: {first} (failed).")
    assert states(harness, [child.id, late.id]) == "skipped skipped"
    bulk = app.bulk.start("retry", Filter(type="step"))
    while bulk.finished_at is None:
        bulk = app.bulk.step(bulk.id)
    assert states(harness, [first, child.id, late.id]) == "retried restored restored"


def test_who_misses_another_one_too_stays_skipped(harness: StoreHarness, app: Tenure) -> None:
    ids = graph(harness, ([], {}), ([], {}), ([0, 1], {}), ([2], {}))
    app.cancel(ids[1])
    fail(harness, ids[0])
    follow(harness)
    app.retry(ids[0])
    follow(harness)
    assert states(harness, ids) == "retried cancelled skipped skipped"
    complete(harness, ids[0])


def test_who_waits_for_a_signal_is_not_skipped(harness: StoreHarness) -> None:
    """It has run: what had to come before that has come, whatever becomes of the other parents."""
    ids = graph(harness, ([], {}), ([], {}), ([1], {}), ([0, 2], {"needs": "any"}), ([3], {}))
    first, second = harness.claim(limit=2)
    harness.report(report_completed(first))
    (lease,) = harness.claim()
    assert lease.id == ids[3]
    harness.report(report_suspended(lease))
    harness.report(report_failed(second))
    follow(harness)
    assert states(harness, ids) == "completed failed skipped suspended waiting"
    assert harness.store.read.violations(10) == []


def test_parents_whose_endings_count_later_count_once(harness: StoreHarness, app: Tenure) -> None:
    """One fails, one stays skipped; both have more followers than one statement counts."""
    last = [(0, "settled"), (2, "settled"), 3]
    ids = graph(harness, ([], {}), ([], {}), ([0, 1], {}), ([1], {}), (last, {}))
    fail(harness, ids[0])
    fail(harness, ids[1])
    follow(harness)
    assert states(harness, ids) == "failed failed skipped skipped skipped"
    for parent, ended_as in ((ids[0], "failed"), (ids[2], "cancelled")):
        harness.sql.run("INSERT INTO {overdue} VALUES (?, ?, ?)", parent, ended_as, ids[3])
    app.retry(ids[1])
    assert states(harness, ids) == "failed retried skipped restored restored"
    assert harness.get(ids[4]).need == 3
    follow(harness)
    assert harness.get(ids[4]).need == 1
    assert harness.store.read.violations(10) == []


def test_a_key_that_another_one_holds_keeps_a_job_skipped(
    harness: StoreHarness, app: Tenure
) -> None:
    one = {"unique": Unique(by="k")}
    ids = graph(harness, ([], {}), ([0], one), ([1], {}))
    fail(harness, ids[0])
    follow(harness)
    holder = app.enqueue("step", unique=one["unique"])
    app.retry(ids[0])
    assert states(harness, [*ids, holder.id]) == "retried skipped skipped pending"


def test_full_gates_are_counted_again_when_all_is_restored(
    harness: StoreHarness, app: Tenure
) -> None:
    """A gate that keeps its old count would not notice the second failure."""
    parents = range(1, MAX_COUNTED + 2)
    root, *ids = graph(harness, ([], {}), *[([0], {}) for _ in parents], (parents, {}))
    fail(harness, root)
    follow(harness)
    assert app.count(status="waiting").jobs == 0
    app.retry(root)
    assert app.count(status="waiting").jobs == len(ids)
    complete(harness, root)
    fail(harness, ids[0])
    follow(harness)
    assert app.get(ids[-1]).event == "skipped"
    app.retry(ids[0])
    leases = harness.claim(limit=len(ids))
    harness.report(*[report_completed(lease) for lease in leases[1:]])
    assert app.count(status="waiting").jobs == 1
    harness.report(report_completed(leases[0]))
    complete(harness, ids[-1])
