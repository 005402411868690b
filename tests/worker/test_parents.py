"""What handlers read of the jobs that their job depends on, wherever they run."""

from __future__ import annotations

from typing import Any

import pytest

from tenure import JobContext, JobType, LeaseLost, NewJob, Tenure
from tenure.app.app import limited_to
from tenure.client import Client
from tenure.errors import Forbidden, JobCancelled, JobFailed, JobUnsettled
from tenure.jobs.steps import ReadParents
from tenure.jobs.work import ClaimRequest, Outcome, Report
from tenure.store.tables import dependencies
from tests.support.http import ServerProcess
from tests.support.workers import running_worker, wait_until_completed
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


def test_without_an_attempt_there_are_no_parents() -> None:
    context = JobContext("", "type", "queue", 1, 1, token=1, deadline=None)
    assert context.parents == []
    assert list(context.results(int)) == []
