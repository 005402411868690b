"""What handlers read of the jobs that their job depends on, wherever they run."""

from __future__ import annotations

from typing import Any

import pytest

from tenure import JobContext, JobType, LeaseLost, NewJob, Tenure
from tenure.app.app import limited_to
from tenure.client import Client
from tenure.errors import Forbidden, JobCancelled, JobFailed, JobUnsettled
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tenure.rules.steps import ReadParents
from tenure.store.tables import dependencies
from tests.support.http import ServerProcess
from tests.support.workers import running_sweeper, running_worker, wait_until_completed
from tests.worker import children


@pytest.fixture
def app(app_on_each_engine: Tenure) -> Tenure:
    app = app_on_each_engine
    app.core.take_over(children.app.core)

    @app.job
    def chunk(n: int) -> int:
        if n < 0:
            raise ValueError("a chunk that fails")
        return n

    @app.job(name="add_up_async")
    async def add_up(context: JobContext) -> list[int]:
        total = sum([n async for n in context.results_async(int)])
        first = await context.result_async("first", int)
        return [total, first, len(await context.parents_async())]

    @app.job(name="add_up_in_thread")
    def in_thread(context: JobContext) -> list[int]:
        return [sum(context.results(int)), context.results["first"], len(context.parents)]

    return app


def new(app: Tenure, type: str, **payload: Any) -> Any:
    handler = app.core.handlers.find(type)
    assert handler is not None
    return JobType[Any, Any](app, handler).options(max_retries=1).new_job(**payload)


def test_results_reach_the_job_behind(app: Tenure, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thread, on the loop and in a child process; in as many pages as it takes."""
    monkeypatch.setattr(dependencies, "PAGE", 3)
    with app.workflow() as flow:
        first = flow.add(new(app, "chunk", n=100), name="first")
        chunks = [first, *(flow.add(new(app, "chunk", n=n)) for n in range(7))]
        sums = [
            flow.add(new(app, type), depends_on=chunks)
            for type in ("add_up_in_thread", "add_up_async", "add_up")
        ]
    with running_worker(app):
        for node in sums:
            assert node.result("30s") == [121, 100, 8]


def test_results_reach_remote_workers(app: Tenure, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each kind of handler; a token for other queues gets none."""
    with app.workflow() as flow:
        first = flow.add(new(app, "chunk", n=100), name="first")
        chunks = [first, *(flow.add(new(app, "chunk", n=n)) for n in range(7))]
        sums = [
            flow.add(new(app, type), depends_on=chunks)
            for type in ("add_up_in_thread", "add_up_async", "add_up")
        ]
    with (
        ServerProcess(app.database) as server,
        Client(server.url) as client,
        running_worker(app, client),
    ):
        for node in sums:
            assert node.result("30s") == [121, 100, 8]


def test_a_worker_for_some_queues_gets_results_of_no_others(app: Tenure) -> None:
    with app.workflow() as flow:
        other = flow.add(NewJob("work", {}, {"queue": "other"}))
        flow.add(NewJob("work", {}, {"queue": "mine"}), depends_on=[other])
    for queue in ("other", "mine"):
        asked = ClaimRequest(worker="w", limit=1, lease_seconds=60, queues=(queue,))
        (lease,) = app.core.claim(asked).leases
        if queue == "other":
            app.core.report([Report(lease.id, lease.lease_id, Outcome.COMPLETED)])
    assert len(app.core.ask(lease.id, lease.lease_id, ReadParents()).result().jobs) == 1
    limited = limited_to(app, ("mine",)).core.ask(lease.id, lease.lease_id, ReadParents())
    with pytest.raises(Forbidden):
        limited.result()
    with pytest.raises(LeaseLost):
        app.core.ask(lease.id, other.id, ReadParents()).result()


def test_a_page_of_large_results_is_short(app: Tenure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependencies, "PAGE_LENGTH", 4)
    with app.workflow() as flow:
        first = flow.add(new(app, "chunk", n=100), name="first")
        chunks = [first, *(flow.add(new(app, "chunk", n=n)) for n in range(7))]
        total = flow.add(new(app, "add_up_in_thread"), depends_on=chunks)
    with running_worker(app):
        assert total.result("30s") == [121, 100, 8]


def test_what_did_not_complete_has_no_result(app: Tenure) -> None:
    """It is left out of `results`, an error by name, and `parents` says what became of it."""
    seen: dict[str, Any] = {}

    @app.job
    def look(context: JobContext) -> None:
        seen["results"] = list(context.results(int))
        seen["parents"] = {one.name: (one.status, one.meets) for one in context.parents}
        for name in ("fine", "bad", "gone", "late", "nobody"):
            try:
                seen[name] = context.results[name]
            except Exception as error:
                seen[name] = type(error)

    with app.workflow() as flow:
        fine = flow.add(new(app, "chunk", n=1), name="fine")
        bad = flow.add(new(app, "chunk", n=-1), name="bad")
        gone = flow.add(look.options(delay="1h").new_job(), name="gone")
        late = flow.add(look.options(delay="1h").new_job(), name="late")
        settled = [fine, bad.settled, gone.settled]
        node = flow.add(look.new_job(), depends_on=[*settled, late], needs=3)
    app.cancel(gone.id)
    with running_worker(app):
        wait_until_completed(app, node.id)
    assert seen == {
        "results": [1],
        "parents": {
            "fine": ("completed", "completed"),
            "bad": ("failed", "settled"),
            "gone": ("cancelled", "settled"),
            "late": ("pending", "completed"),
        },
        "fine": 1,
        "bad": JobFailed,
        "gone": JobCancelled,
        "late": JobUnsettled,
        "nobody": KeyError,
    }


def test_a_job_that_runs_again_has_the_same_parents(app: Tenure) -> None:
    """It completed with the sum of nothing."""

    @app.job(max_retries=1)
    def look(context: JobContext) -> tuple[int, list[str]]:
        return sum(context.results(int)), sorted(one.status for one in context.parents)

    chunks = [new(app, "chunk", n=n) for n in (1, 2)]
    late = NewJob("chunk", {"n": 0}, {"delay": "1h"})
    chain = app.chain([chunks[1], look.new_job()])
    group = app.group(chunks, then=look.new_job())
    more = [*chunks, new(app, "chunk", n=-1)]
    ends = {at: look.new_job() for at in ("on_success", "on_failure", "on_end")}
    batch = app.batch(more, **ends)
    with app.workflow() as flow:
        first = flow.add(chunks[1], name="first")
        named = flow.add(new(app, "add_up_in_thread"), depends_on=[first])
        some = flow.add(look.new_job(), depends_on=[first, flow.add(late)], needs="any")
        waits = flow.add(look.new_job(), depends_on=flow.nodes[2:3])
    mixed = ["completed", "completed", "failed"]
    expected = {
        chain.nodes[1]: [2, ["completed"]],
        group.nodes[2]: [3, mixed[:2]],
        batch.nodes[3]: [3, mixed],  # it was skipped
        batch.nodes[4]: [3, mixed],
        batch.nodes[5]: [3, mixed],
        named: [2, 2, 1],
        some: [2, ["completed", "pending"]],
    }
    with running_worker(app), running_sweeper(app):
        for made in (chain, group, batch):
            made.wait("30s")
        some.result("30s")
        named.result("30s")
        for node, result in expected.items():
            again = app.run_again(node.id)
            assert wait_until_completed(app, again).result == result
            assert again.again_of == node.id
        assert wait_until_completed(app, app.run_again(some.id, depends_on=[])).result == [0, []]
        assert app.run_again(waits.id).status == "waiting"
    assert app.verify() == []


def test_a_token_for_some_queues_runs_nothing_again_without_its_parents(app: Tenure) -> None:
    parent = app.enqueue("work", queue="other")
    job = app.enqueue("work", queue="mine", depends_on=[parent.settled])
    mine = limited_to(app, ("mine",))
    with pytest.raises(Forbidden, match="depends_on") as error:
        mine.run_again(job.id)
    assert parent.id not in str(error.value)
    assert mine.run_again(job.id, depends_on=[]).status == "pending"
    assert app.run_again(job.id).status == "waiting"


def test_without_an_attempt_there_are_no_parents() -> None:
    context = JobContext("", "type", "queue", 1, 1, token=1, deadline=None)
    assert context.parents == []
    assert list(context.results(int)) == []
