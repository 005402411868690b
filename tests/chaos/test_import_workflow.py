"""An import as a workflow, while its workers are killed: split, many parts, a sum, an alert."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tenure import NewJob, Tenure
from tenure.lifecycle import Job
from tests.support import fault_counts
from tests.support.waiting import wait_until
from tests.support.worker_scripts import WorkerScript
from tests.support.workers import running_sweeper

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(600)]

HANDLERS = """
@app.job(max_retries=1000, backoff=0)
def split(path: str): ...


@app.job(max_retries=1000, backoff=0)
def load(path: str, part: int) -> int:
    time.sleep(0.05)
    log(f"{path} {part}")
    if path == "bad" and part == 7:
        raise PermanentFailure("this part is damaged")
    return part


@app.job(max_retries=1000, backoff=0)
def summarise(context: JobContext, path: str) -> int:
    return sum(context.results(int))


@app.job(max_retries=1000, backoff=0)
def alert(context: JobContext, path: str) -> list[str]:
    return [parent.status for parent in context.parents]
"""


def start(app: Tenure, path: str, parts: int) -> list[str]:
    with app.workflow("import", key=path) as flow:
        first = flow.add(NewJob("split", {"path": path}, {}))
        loads = [
            flow.add(NewJob("load", {"path": path, "part": part}, {}), depends_on=[first])
            for part in range(parts)
        ]
        total = flow.add(NewJob("summarise", {"path": path}, {}), depends_on=loads)
        flow.add(NewJob("alert", {"path": path}, {}), depends_on=[total.failed])
    return [node.id for node in flow.nodes]


@pytest.mark.parametrize(
    ("parts", "kills"), [(30, 2), pytest.param(1_000, 100, marks=pytest.mark.full)]
)
def test_an_import_survives_its_workers(
    database_url: str, tmp_path: Path, parts: int, kills: int
) -> None:
    chance = random.Random(parts)
    script = WorkerScript(tmp_path / "worker", database_url, HANDLERS, concurrency=4, lease=1.0)
    with Tenure(database_url) as app, script, running_sweeper(app):
        ids = {path: start(app, path, parts) for path in ("fine", "bad")}
        workers = [script.start() for _ in range(2)]
        for _ in range(kills):
            more = len(script.lines()) + chance.randrange(max(parts // kills, 1))
            more = min(more, 2 * parts - 1)  # as many lines there are at least
            wait_until(lambda at=more: len(script.lines()) > at, "some parts")
            doomed = chance.randrange(2)
            workers[doomed].kill()
            workers[doomed].wait()
            fault_counts.count("processes killed")
            workers[doomed] = script.start()
        for name, status in (("fine", "completed"), ("bad", "failed")):
            flow = app.get(ids[name][0]).workflow
            assert flow is not None
            app.workflows.wait(flow, "60s")
            found = lambda flow=flow: app.workflows.get(flow)  # noqa: E731
            wait_until(lambda found=found: found().finished_at, "the sweep to note the end")
            assert found().status == status
        fine = [app.get(id) for id in ids["fine"]]
        bad = [app.get(id) for id in ids["bad"]]
        assert app.verify() == []
    assert [job.status for job in fine[:-1]] == ["completed"] * (parts + 2)
    assert (fine[-2].result, fine[-1].event) == (sum(range(parts)), "skipped")
    assert [job.status for job in bad[1:-2]].count("completed") == parts - 1
    assert (bad[8].status, bad[-2].event) == ("failed", "skipped")
    assert bad[-1].result == ["cancelled"]
    assert_in_order(fine[:1], fine[1:-2])
    assert_in_order(fine[1:-2], fine[-2:-1])
    assert_in_order(bad[8:9], bad[-1:])


def assert_in_order(before: list[Job], behind: list[Job]) -> None:
    """Fail if a job started before one that it waited for had ended."""
    ends = [job.finished_at for job in before if job.finished_at and job.status != "cancelled"]
    assert all(job.started_at and job.started_at >= max(ends) for job in behind)
