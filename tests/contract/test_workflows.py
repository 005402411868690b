"""Workflows: jobs that are added together, wait for each other, and go together."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from tenure import Tenure
from tenure.app.app import limited_to
from tenure.errors import InvalidInput, JobNotFound, KeyConflict, WorkflowNotFound
from tenure.rules.jobs import NewJob
from tenure.store.tables import workflows as flows
from tenure.values.ids import new_id
from tests.support.store import StoreHarness, report_completed, report_failed, report_suspended


def job(type: str = "work", **options: Any) -> NewJob:
    return NewJob(type, {}, {"max_retries": 1, **options})


def run(harness: StoreHarness, *failing: str) -> list[str]:
    """Run all that can run, one after the other; return the types, in order."""
    done: list[str] = []
    while leases := harness.claim():
        for lease in leases:
            fails = lease.type in failing
            harness.report(report_failed(lease) if fails else report_completed(lease, '"done"'))
            done.append(lease.type)
        harness.store.write("sweep", lambda db: None).result()
    return done


def decide(app: Tenure) -> None:
    """Skip and restore what has to be, as the sweep does."""
    while app.core.follow():
        pass


def finish(app: Tenure) -> None:
    app.core.finish_workflows()


def test_a_workflow_is_added_whole_and_runs_in_order(harness: StoreHarness, app: Tenure) -> None:
    with app.workflow("import", key="monday") as flow:
        pages = [flow.add(job(f"page{n}")) for n in range(3)]
        total = flow.add(job("total"), depends_on=pages, name="total")
        flow.add(job("clean_up"), depends_on=[total.settled, *(page.settled for page in pages)])
        assert app.count().jobs == 0
    assert flow.created
    assert flow.status() == {"waiting": 2, "pending": 3}
    assert {app.get(node.id).workflow for node in flow.nodes} == {flow.id}
    assert [app.get(node.id).status for node in flow.nodes] == ["pending"] * 3 + ["waiting"] * 2
    found = app.workflows.get(flow.id)
    assert (found.name, found.key, found.created_by) == ("import", "monday", "application")
    assert (found.status, found.finished_at) == ("running", None)
    finish(app)
    assert app.workflows.get(flow.id).status == "running"
    assert run(harness) == ["page0", "page1", "page2", "total", "clean_up"]
    assert total.result() == "done"
    finish(app)
    found = app.workflows.get(flow.id)
    assert (found.status, found.finished_at, found.jobs) == (
        "completed",
        harness.clock.now,
        {"completed": 5},
    )
    ties = app.workflows.graph(flow.id).dependencies
    assert [tie.name for tie in ties if tie.parent == total.id] == ["total"]


def test_nothing_is_added_if_the_block_or_one_job_fails(harness: StoreHarness, app: Tenure) -> None:
    with pytest.raises(ZeroDivisionError), app.workflow() as flow:
        flow.add(job(str(1 // len([flow.add(job())][1:]))))
    with pytest.raises(InvalidInput) as refused, app.workflow() as flow:
        _ = [flow.add(job(queue=queue)) for queue in ("fine", "not fine")]
    assert refused.value.path == "$[1].queue"
    with pytest.raises(JobNotFound), app.workflow() as flow:
        flow.add(job(), depends_on=[new_id()])
    with pytest.raises(InvalidInput, match="block"):
        flow.add(job())
    with pytest.raises(InvalidInput, match="key to the workflow"), app.workflow() as flow:
        flow.add(job(idempotency_key="k"))
    assert harness.sql.run("SELECT count(*) FROM {workflow}") == [(0,)]
    assert app.count().jobs == 0
    with app.workflow() as flow:
        pass
    finish(app)
    assert app.workflows.get(flow.id).status == "completed"


def test_the_same_key_is_the_same_workflow(harness: StoreHarness, app: Tenure) -> None:
    """A repeated call finds the jobs of the first, whose ids are others."""
    first = app.chain([job("a"), job("b")], key="k")
    app.workflows.list()
    again = app.chain([job("a"), job("b")], key="k")
    assert (again.id, again.created) == (first.id, False)
    assert [node.id for node in again.nodes] == [node.id for node in first.nodes]
    assert app.count().jobs == 2
    for other in (
        lambda: app.chain([job("b"), job("a")], key="k"),
        lambda: app.chain([job("a"), job("b"), job("c")], key="k"),
        lambda: app.chain([job("a"), job("b", priority=3)], key="k"),
        lambda: app.chain([job("a"), job("b")], name="other", key="k"),
        lambda: app.group([job("a"), job("b")], name="chain", key="k"),
    ):
        with pytest.raises(KeyConflict, match=f"workflow {first.id}"):
            other()


def test_two_who_add_the_same_at_once_add_it_once(harness: StoreHarness, app: Tenure) -> None:
    ready, ids = threading.Barrier(4), list[str]()

    def add() -> None:
        with Tenure(harness.url) as other:
            ready.wait()
            ids.append(other.group([job("a"), job("b")], key="k").id)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 1
    assert app.count().jobs == 2


def test_a_batch_ends_in_three_ways(harness: StoreHarness, app: Tenure) -> None:
    """GoodJob #1239, Sidekiq #3432: each callback runs once, and only if it is its turn."""

    def batch() -> list[str]:
        flow = app.batch(
            [job("a"), job("b"), job("c")],
            on_success=job("well"),
            on_failure=job("badly"),
            on_end=job("over"),
        )
        finish(app)
        return [flow.id]

    (fine,) = batch()
    assert run(harness) == ["a", "b", "c", "well", "over"]
    decide(app)
    finish(app)
    assert app.workflows.get(fine).status == "completed"
    assert app.workflows.get(fine).jobs == {"completed": 5, "cancelled": 1}
    (bad,) = batch()
    assert run(harness, "b", "c") == ["a", "b", "c", "badly", "over"]
    decide(app)
    finish(app)
    assert app.workflows.get(bad).status == "failed"
    assert [one.id for one in app.workflows.list(status="failed").workflows] == [bad]


def test_jobs_are_added_to_a_workflow_that_has_finished(
    harness: StoreHarness, app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = app.chain([job("a"), job("b")])
    run(harness)
    finish(app)
    with app.workflows.extend(first.id, actor="ada") as flow:
        flow.add(job("c"), depends_on=[first.nodes[-1]])
        flow.add(job("d"), depends_on=[first.nodes[-1].failed])
    assert flow.id == first.id
    found = app.workflows.get(first.id)
    assert (found.status, found.finished_at) == ("running", None)
    assert run(harness) == ["c"]
    decide(app)
    finish(app)
    assert app.workflows.get(first.id).status == "completed"
    for unknown in ("x.y", "", new_id()):
        with pytest.raises(WorkflowNotFound), app.workflows.extend(unknown) as flow:
            flow.add(job())
    monkeypatch.setattr(flows, "MAX_JOBS", 5)
    with pytest.raises(InvalidInput, match="more than 5"), app.workflows.extend(first.id) as flow:
        _ = [flow.add(job()) for _ in range(2)]
    with app.workflows.extend(first.id) as flow:
        flow.add(job())
    assert app.count(workflow=first.id).jobs == 5
    empty = app.group([])
    with app.workflows.extend(empty.id) as flow:
        flow.add(job())
    assert app.count(workflow=empty.id).jobs == 1


def test_a_job_without_a_workflow_has_none_to_extend(harness: StoreHarness, app: Tenure) -> None:
    """`extend(job.workflow)` began a new workflow, which nothing waited for."""
    alone = harness.add("split")
    refused = pytest.raises(InvalidInput, match="workflow_id: the job is in no workflow")
    with refused, app.workflows.extend(app.get(alone.id).workflow) as flow:
        flow.add(job())
    assert app.workflows.list().workflows == []


def test_the_sweep_looks_at_each_job_about_once(
    harness: StoreHarness, app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "STRIDE", 3)
    flow = app.group([job() for _ in range(10)])

    def settled_to() -> Any:
        finish(app)
        return harness.sql.value("SELECT settled_to FROM {workflow}")

    for leased, place in ((3, None), (1, 3), (2, 3), (2, 7)):
        harness.report(*map(report_completed, harness.claim(limit=leased)))
        expected = None if place is None else flow.nodes[place].id
        assert str(settled_to()) == str(expected)
    harness.report(*map(report_completed, harness.claim(limit=9)))
    assert str(settled_to()) == flow.nodes[-1].id
    assert app.workflows.get(flow.id).finished_at == harness.clock.now


def test_every_unfinished_workflow_has_its_turn(
    harness: StoreHarness, app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the oldest, where more are running than one look takes."""
    monkeypatch.setattr(flows, "MAX_LOOKED", 2)
    flows_made = [app.chain([job()]) for _ in range(5)]
    harness.report(report_completed(*harness.claim()))
    before = ""
    for _ in range(3):
        before = app.core.finish_workflows(before)
    assert [app.workflows.get(one.id).status for one in flows_made] == ["completed"] + [
        "running"
    ] * 4


def test_waiting_for_a_workflow(harness: StoreHarness, app: Tenure) -> None:
    flow = app.group([job() for _ in range(3)], then=job("then"))
    with pytest.raises(TimeoutError, match=f"workflow {flow.id}"):
        flow.wait(0.05)
    runner = threading.Timer(0.05, run, (harness,))
    runner.start()
    assert flow.wait("20s").jobs == {"completed": 4}
    runner.join()

    async def both() -> None:
        assert (await flow.wait_async("20s")).jobs == {"completed": 4}
        async with app.workflow("second") as second:
            second.add(job())
        with pytest.raises(TimeoutError):
            await second.wait_async(0.05)
        assert await second.status_async() == {"pending": 1}
        third = await app.chain_async([job("x"), job("y")])
        assert (await app.workflows.get_async(third.id)).name == "chain"

    asyncio.run(both())


def test_a_wait_returned_a_workflow_that_ran(harness: StoreHarness, app: Tenure) -> None:
    """All its jobs were settled, and its status said "running" until the next sweep."""
    flow, other = app.chain([job("a"), job("b")]), app.group([job("c")])
    run(harness, "a")
    decide(app)
    assert flow.wait("20s").status == "failed"
    assert asyncio.run(other.wait_async("20s")).status == "completed"


def test_a_cancel_leaves_what_cleans_up(harness: StoreHarness, app: Tenure) -> None:
    def add() -> Any:
        with app.workflow() as flow:
            first = flow.add(job("first"))
            second = flow.add(job("second"), depends_on=[first])
            flow.add(job("clean_up"), depends_on=[first.settled, second.failed], needs="any")
        return flow

    def cancel(flow: Any, **how: Any) -> list[str]:
        bulk = app.workflows.cancel(flow.id, reason="wrong file", **how)
        while bulk.finished_at is None:
            bulk = app.bulk.step(bulk.id)
        return [app.get(node.id).status for node in flow.nodes]

    assert cancel(add()) == ["cancelled", "cancelled", "pending"]
    assert run(harness) == ["clean_up"]
    everything = add()
    assert cancel(everything, everything=True) == ["cancelled"] * 3
    assert [app.get(node.id).event for node in everything.nodes] == ["cancelled"] * 3


def test_a_cancel_left_what_had_waited_for_a_signal(harness: StoreHarness, app: Tenure) -> None:
    """A job without dependencies cleans up nothing, whether it waits or its signal has come."""
    with app.workflow() as flow:
        asks, has_asked = (flow.add(job(type)) for type in ("asks", "has_asked"))
        clean_up = flow.add(job("clean_up"), depends_on=[asks.failed, has_asked.failed])
    leases = harness.claim(2)
    harness.report(*(report_suspended(lease) for lease in leases))
    app.signal(has_asked.id, "approved")
    bulk = app.workflows.cancel(flow.id)
    while bulk.finished_at is None:
        bulk = app.bulk.step(bulk.id)
    assert [app.get(node.id).status for node in flow.nodes] == ["cancelled"] * 2 + ["pending"]
    [lease] = harness.claim(1)
    harness.report(report_suspended(lease))
    app.workflows.cancel(flow.id)
    assert app.bulk.step(app.bulk.list()[0].id).changed == 0
    assert app.get(clean_up.id).status == "waiting"


def test_a_retry_resumes_what_is_behind(harness: StoreHarness, app: Tenure) -> None:
    flow = app.chain([job("a"), job("b"), job("c")])
    run(harness, "b")
    decide(app)
    finish(app)
    assert app.workflows.get(flow.id).status == "failed"
    bulk = app.workflows.retry(flow.id)
    while bulk.finished_at is None:
        bulk = app.bulk.step(bulk.id)
    decide(app)
    assert app.workflows.get(flow.id).status == "running"
    assert run(harness) == ["b", "c"]


def test_a_workflow_is_deleted_whole(harness: StoreHarness, app: Tenure) -> None:
    """Once all its statuses are old enough: of failures, longer than of successes."""
    mixed, fine = app.group([job("a"), job("b")], key="k"), app.group([job("c")] * 3)
    alone = app.enqueue("alone")
    run(harness, "b")
    finish(app)
    now = harness.clock.now + timedelta(seconds=1)
    harness.clock.advance(60)
    assert harness.prune({"failed": now}) == 0
    assert [harness.prune({"completed": now}, limit=2) for _ in range(3)] == [2, 2, 0]
    assert {app.count(workflow=fine.id).jobs, app.count(workflow=mixed.id).jobs} == {0, 2}
    with pytest.raises(WorkflowNotFound):
        app.workflows.get(fine.id)
    with pytest.raises(JobNotFound):
        app.get(alone.id)
    assert harness.prune({"completed": now, "failed": now - timedelta(hours=1)}) == 0
    assert harness.prune({"completed": now, "failed": now}) == 2
    for table in ("workflow", "job", "transition", "dependency"):
        assert harness.sql.run(f"SELECT count(*) FROM {{{table}}}") == [(0,)]
    assert app.group([job("a"), job("b")], key="k").created


def test_what_others_wait_for_is_kept(harness: StoreHarness, app: Tenure) -> None:
    flow = app.chain([job("a")])
    run(harness)
    with app.workflow() as other:
        other.add(job("late", delay="1h"))
        other.add(job("b"), depends_on=[flow.nodes[0], other.nodes[0]])
    finish(app)
    harness.clock.advance(60)
    assert harness.prune({"completed": harness.clock.now}) == 0
    younger = app.group([job("c")] * 3)
    run(harness)
    finish(app)
    harness.clock.advance(60)
    assert harness.prune({"completed": harness.clock.now}) == 3  # they are not behind it
    with pytest.raises(WorkflowNotFound):
        app.workflows.get(younger.id)
    assert app.verify() == []
    app.cancel(other.nodes[0].id)
    decide(app)
    assert harness.prune({"completed": harness.clock.now}) == 1
    with pytest.raises(WorkflowNotFound):
        app.workflows.get(flow.id)


def test_verify_knows_that_retention_left_jobs_to_their_workflow(
    harness: StoreHarness, app: Tenure
) -> None:
    app.group([job("a"), job("b")])
    run(harness, "b")
    finish(app)
    harness.clock.advance(60)
    assert harness.prune({"completed": harness.clock.now}) == 0
    assert app.verify() == []


def test_a_workflow_is_extended_once(app: Tenure) -> None:
    first, other = (app.chain([job("a", queue="mine")]) for _ in range(2))

    def extend(of: Tenure = app, id: str = first.id) -> list[str]:
        with of.workflows.extend(id, key="k") as flow:
            before = flow.add(job("b", queue="mine"))
            flow.add(job("c", queue="mine"), depends_on=[before])
        assert flow.id == id
        return [node.id for node in flow.nodes]

    with ThreadPoolExecutor(4) as threads:
        made = [*threads.map(lambda _: extend(), range(4))]
    assert made == [made[0]] * 4
    assert app.get(made[0][1]).workflow == first.id
    assert app.workflows.get(first.id).jobs == {"pending": 2, "waiting": 1}
    with pytest.raises(KeyConflict) as refused, app.workflows.extend(first.id, key="k") as flow:
        flow.add(job("b", queue="mine"))
    assert refused.value.workflow_id == first.id
    assert len({*made[0], *extend(id=other.id), *extend(limited_to(app, ("mine",)))}) == 6
    assert app.count().jobs == 8


def test_a_limited_caller_sees_its_queues_only(harness: StoreHarness, app: Tenure) -> None:
    mine = limited_to(app, ("mine",))
    other = app.chain([job(queue="other")], key="k")
    both = app.group([job(queue="other"), job(queue="mine")])
    own = mine.chain([job(queue="mine")], key="k")
    assert own.created
    assert {one.id for one in mine.workflows.list().workflows} == {both.id, own.id}
    assert both.id in mine.workflows.get(both.id).id
    assert mine.workflows.get(both.id).jobs == {"pending": 1}
    with pytest.raises(WorkflowNotFound):
        mine.workflows.get(other.id)
    with pytest.raises(WorkflowNotFound), mine.workflows.extend(other.id) as flow:
        flow.add(job(queue="mine"))
    with pytest.raises(JobNotFound), mine.workflow() as flow:
        flow.add(job(queue="mine"), depends_on=[other.nodes[0]])
