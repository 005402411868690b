"""What is read of workflows; and cancel and retry of all jobs of one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tenure import Tenure
from tenure.app.app import limited_to
from tenure.app.jobs import shape_shown, types_shown
from tenure.errors import InvalidInput, JobNotFound, WorkflowNotFound
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tenure.rules.workflows import ENDINGS, WorkflowStatus, endings_of, status_of
from tenure.store.tables import workflows
from tests.support.http import UNKNOWN_ID
from tests.support.raw_sql import RawSql
from tests.support.workflows import add_workflow, finish, statuses


@pytest.fixture
def app(database_url: str) -> Iterator[Tenure]:
    with Tenure(database_url) as app:
        yield app


def test_a_workflow_is_read(app: Tenure) -> None:
    id, jobs = add_workflow(app, key="import-1")
    found = app.workflows.get(id)
    assert (found.id, found.name, found.key, found.status) == (id, "import", "import-1", "running")
    assert found.jobs == {"waiting": 3, "pending": 5}
    assert (found.created_by, found.finished_at) == ("test", None)
    assert found.created_at <= app.get(jobs["total"]).created_at
    ties = {(d.parent, d.child, d.meets) for d in app.workflows.graph(id).dependencies}
    assert ties == {
        *((jobs[f"page_{n}"], jobs["total"], "completed") for n in range(5)),
        (jobs["total"], jobs["alert"], "failed"),
        (jobs["total"], jobs["clean"], "settled"),
    }
    shape = shape_shown(app.core, id)
    assert shape is not None
    assert [(stack.type, stack.jobs) for stack in shape.stacks] == [
        ("fetch", 5),
        ("sum", 1),
        ("alert", 1),
        ("clean_up", 1),
    ]
    assert types_shown(app.core, id)["fetch"] == {"pending": 5}


def test_graphs_are_read_by_pages(app: Tenure, monkeypatch: pytest.MonkeyPatch) -> None:
    id, jobs = add_workflow(app)
    for most, pages in ((3, 3), (500, 1)):
        after, found, ties = None, [], 0
        for _ in range(pages):
            page = app.workflows.graph(id, limit=most, after=after)
            found += [job.id for job in page.jobs]
            assert {tie.child for tie in page.dependencies} <= {job.id for job in page.jobs}
            ties += len(page.dependencies)
            after = page.next
        assert (after, found, ties) == (None, list(jobs.values()), 7)
    monkeypatch.setattr(workflows, "MAX_LINKS", 5)  # a page ends before the job that has too many
    page = app.workflows.graph(id)
    assert (len(page.jobs), len(page.dependencies)) == (6, 5)
    assert len(app.workflows.graph(id, after=page.next).jobs) == 2
    assert shape_shown(app.core, id) is None
    monkeypatch.undo()
    monkeypatch.setattr(workflows, "MAX_MEMBERS", 7)
    assert shape_shown(app.core, id) is None


def test_parents_and_followers(app: Tenure) -> None:
    _, jobs = add_workflow(app)
    first = app.workflows.parents(jobs["total"], limit=3)
    rest = app.workflows.parents(jobs["total"], after=first.next)
    assert [one.id for one in (*first.jobs, *rest.jobs)] == [jobs[f"page_{n}"] for n in range(5)]
    assert rest.next is None
    followers = app.workflows.followers(jobs["total"]).jobs
    assert [(one.type, one.meets) for one in followers] == [
        ("alert", "failed"),
        ("clean_up", "settled"),
    ]
    assert app.workflows.followers(jobs["alert"]).jobs == []


def test_lists(app: Tenure) -> None:
    ids = [add_workflow(app, name=name)[0] for name in ("a", "b", "a", "a")]
    raw = RawSql(app.database)
    for workflow, endings in zip(ids, ("completed skipped", "cancelled failed", ""), strict=False):
        raw.run(
            "UPDATE {workflow} SET finished_at = {now}, statuses = ? WHERE id = ?",
            endings,
            workflow,
        )
    raw.close()
    listed = app.workflows.list
    page = listed(limit=3)
    assert [(one.id, one.jobs) for one in page.workflows] == [(id, None) for id in ids[:0:-1]]
    assert [one.id for one in listed(before=page.next).workflows] == ids[:1]
    assert [one.id for one in listed(name="a").workflows] == [ids[3], ids[2], ids[0]]
    by_status = {
        status: [w.id for w in listed(status=status).workflows] for status in WorkflowStatus
    }
    assert by_status == {
        "running": [ids[3]],
        "completed": [ids[2], ids[0]],
        "failed": [ids[1]],
        "cancelled": [],
    }
    for wrong in ({"status": "waiting"}, {"name": "no name!"}, {"limit": 501}, {"before": "x"}):
        with pytest.raises(InvalidInput):
            listed(**wrong)


def test_the_status_of_a_workflow() -> None:
    """A skipped job says nothing: an alert that nobody needed is skipped."""
    assert status_of(None) == "running"
    assert [status_of(one) for one in ENDINGS] == ["cancelled", "completed", "failed", "completed"]
    assert status_of("cancelled completed failed") == "failed"
    found = [len(endings_of(status)) for status in WorkflowStatus]
    assert (found[0], sum(found)) == (0, 2 ** len(ENDINGS))


def test_what_is_not_there(app: Tenure) -> None:
    for id in (UNKNOWN_ID, "x"):
        for read in (app.workflows.get, app.workflows.graph, app.workflows.cancel):
            with pytest.raises(WorkflowNotFound):
                read(id)
        with pytest.raises(JobNotFound):
            app.workflows.parents(id)


def test_a_cancelled_workflow_still_cleans_up(app: Tenure) -> None:
    """Jobs of which a failure meets all dependencies are left to run, unless all are cancelled."""
    id, jobs = add_workflow(app)
    bulk = app.workflows.cancel(id, actor="me", reason="wrong file")
    assert (bulk.total, bulk.actor, bulk.reason) == (6, "me", "wrong file")
    finish(app, bulk.id)
    assert statuses(app, jobs, list(jobs)) == ["cancelled"] * 6 + ["pending"] * 2
    assert {app.history(jobs[name])[-1].event for name in list(jobs)[:6]} == {"cancelled"}
    finish(app, app.workflows.cancel(id, everything=True).id)
    assert app.workflows.get(id).jobs == {"cancelled": 8}


def test_a_cancel_does_not_release_what_it_is_to_cancel(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With parents first, the clean-up was pending between two batches, and could be claimed."""
    monkeypatch.setattr("tenure.store.tables.bulk.BATCH", 1)
    id, jobs = add_workflow(app)
    bulk = app.workflows.cancel(id, everything=True)
    while bulk.finished_at is None:
        bulk = app.bulk.step(bulk.id)
        assert "pending" not in statuses(app, jobs, ["total", "alert", "clean"])
    assert (bulk.changed, bulk.refused) == (8, 0)


def test_what_failed_is_retried(app: Tenure) -> None:
    id, _ = add_workflow(app)
    claim = ClaimRequest(worker="w", limit=5, lease_seconds=60)
    reports = [
        Report(lease.id, lease.lease_id, Outcome.FAILED if n == 2 else Outcome.COMPLETED)
        for n, lease in enumerate(app.core.claim(claim).leases)
    ]
    app.core.report(reports)
    finish(app, app.workflows.retry(id, more_retries=3, reason="up").id)
    (again,) = app.find(workflow=id, type="fetch", status="pending")
    assert (again.max_retries, app.history(again.id)[-1].reason) == (4, "up")


def test_a_limited_token_sees_its_own_jobs(app: Tenure) -> None:
    one = {"a": {"type": "own"}, "b": {"type": "foreign", "queue": "billing", "after": ["a"]}}
    id, jobs = add_workflow(app, one)
    other, _ = add_workflow(app, {"c": {"type": "foreign", "queue": "billing"}})
    limited = limited_to(app, ("default",)).workflows
    assert limited.get(id).jobs == {"pending": 1}
    assert [one.id for one in limited.list().workflows] == [id]
    page = limited.graph(id)
    assert ([job.id for job in page.jobs], page.dependencies) == ([jobs["a"]], [])
    assert limited.followers(jobs["a"]).jobs == []
    shape = shape_shown(limited_to(app, ("default",)).core, id)
    assert shape is not None
    assert [stack.type for stack in shape.stacks] == ["own"]
    assert types_shown(limited_to(app, ("default",)).core, id) == {"own": {"pending": 1}}
    for read in (limited.get, limited.graph, limited.cancel, limited.retry):
        with pytest.raises(WorkflowNotFound):
            read(other)
    with pytest.raises(JobNotFound):
        limited.parents(jobs["b"])
    finish(app, limited.cancel(id, everything=True).id)
    assert app.get(jobs["a"]).status == "cancelled"
    assert app.find(queue="billing", status="cancelled") == []
