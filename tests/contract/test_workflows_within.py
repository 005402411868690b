"""Workflows in the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import psycopg
import pytest

import tenure.sqlite
from tenure import KeyConflict, NewJob, QueueFull, Tenure
from tenure.errors import WorkflowNotFound
from tests.support.lenders import DRIVERS, Lender
from tests.support.waiting import wait_until

pytest_plugins = ["tests.support.lent_app"]
WAITS = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
WAITS += " AND datname = current_database()"


@pytest.fixture
def app(app_for_kind: Tenure) -> Tenure:
    return app_for_kind


def add(lender: Lender, app: Tenure, *names: str, key: str | None = None, **options: Any) -> Any:
    """Add a workflow in which each job waits for the one before."""
    flow = app.within(lender.connection).workflow("import", key=key)

    def fill() -> None:
        for name in names:
            flow.add(NewJob(name, {}, dict(options)), depends_on=flow.nodes[-1:])  # type: ignore[arg-type]

    async def with_async() -> None:
        async with flow:
            fill()

    if lender.kind.is_async:
        lender._done(with_async())
    else:
        with flow:
            fill()
    return flow


@pytest.mark.parametrize("kind", DRIVERS, indirect=True)
def test_a_workflow_exists_with_the_commit(app: Tenure, lender: Lender) -> None:
    lender.begin()
    gone = add(lender, app, "fetch", "parse")
    lender.rollback()
    with pytest.raises(WorkflowNotFound):
        app.workflows.get(gone.id)
    assert app.count().jobs == 0
    lender.begin()
    kept = add(lender, app, "fetch", "parse")
    lender.commit()
    assert kept.created
    assert app.workflows.get(kept.id).jobs == {"pending": 1, "waiting": 1}
    (edge,) = app.workflows.graph(kept.id).dependencies
    assert (edge.parent, edge.child) == (kept.nodes[0].id, kept.nodes[1].id)


SHAPES: Mapping[str, tuple[Any, dict[str, Any], set[tuple[str, str, str]]]] = {
    "chain": (["a", "b", "c"], {}, {("a", "b", "completed"), ("b", "c", "completed")}),
    "group": (["a", "b"], {"then": "c"}, {("a", "c", "completed"), ("b", "c", "completed")}),
    "batch": (
        ["a"],
        {"on_success": "good", "on_failure": "bad", "on_end": "end"},
        {("a", "good", "completed"), ("a", "bad", "failed"), ("a", "end", "settled")},
    ),
}


@pytest.mark.parametrize("kind", DRIVERS, indirect=True)
def test_chains_groups_and_batches_exist_with_the_commit(app: Tenure, lender: Lender) -> None:
    for verb, (first, others, edges) in SHAPES.items():
        new_jobs = [NewJob(name, {}, {}) for name in first]
        ends = {at: NewJob(name, {}, {}) for at, name in others.items()}

        lender.begin()
        gone = lender.call(app, verb, new_jobs, **ends)
        lender.rollback()
        with pytest.raises(WorkflowNotFound):
            app.workflows.get(gone.id)
        assert app.count(workflow=gone.id).jobs == 0

        lender.begin()
        kept = lender.call(app, verb, iter(new_jobs), **ends, key=verb)
        again = lender.call(app, verb, new_jobs, **ends, key=verb)
        lender.commit()
        assert (kept.created, again.created, again.id) == (True, False, kept.id)
        assert (found := app.workflows.get(kept.id)).name == verb
        assert sum((found.jobs or {}).values()) == len(first) + len(others)
        stored = app.workflows.graph(kept.id)
        types = {job.id: job.type for job in stored.jobs}
        assert [types[node.id] for node in kept.nodes] == [*first, *others.values()]
        links = {(types[e.parent], types[e.child], e.meets) for e in stored.dependencies}
        assert links == edges


@pytest.mark.parametrize("kind", DRIVERS, indirect=True)
def test_a_key_finds_the_workflow_that_is_there(app: Tenure, lender: Lender) -> None:
    first = add_outside(app, "fetch", "parse", key="march")
    lender.begin()
    again = add(lender, app, "fetch", "parse", key="march")
    with pytest.raises(KeyConflict):
        add(lender, app, "fetch", key="march")
    lender.commit()
    assert (again.id, again.created) == (first.id, False)
    assert [node.id for node in again.nodes] == [node.id for node in first.nodes]
    assert app.count().jobs == 2


def add_outside(app: Tenure, *names: str, key: str) -> Any:
    with app.workflow("import", key=key) as flow:
        for name in names:
            flow.add(NewJob(name, {}, {}), depends_on=flow.nodes[-1:])
    return flow


@pytest.mark.parametrize("kind", DRIVERS, indirect=True)
def test_of_a_refused_workflow_nothing_is_left(app: Tenure, lender: Lender) -> None:
    app.queues.limit("small", max_pending=1)
    app.enqueue("fetch", queue="small")
    lender.begin()
    with pytest.raises(QueueFull):
        add(lender, app, "fetch", "parse", queue="small")
    kept = add(lender, app, "fetch")
    lender.commit()
    assert [one.id for one in app.workflows.list().workflows] == [kept.id]


def test_a_block_that_raises_adds_nothing(sqlite_url: str) -> None:
    path = sqlite_url.removeprefix("sqlite:///")
    with Tenure(sqlite_url) as app, closing(tenure.sqlite.connect(path)) as connection:
        app.open()
        connection.execute("BEGIN IMMEDIATE")
        with suppress(LookupError), app.within(connection).workflow() as flow:
            flow.add(NewJob("fetch", {}, {}))
            raise LookupError
        connection.execute("COMMIT")
        assert app.count().jobs == 0


@pytest.mark.postgres
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_the_same_key_waits_for_the_other_transaction(postgres_url: str, end: str) -> None:
    with (
        Tenure(postgres_url) as app,
        psycopg.connect(postgres_url) as one,
        psycopg.connect(postgres_url) as two,
        psycopg.connect(postgres_url, autocommit=True) as looking,
        ThreadPoolExecutor(1) as pool,
    ):
        app.open()
        with app.within(one).workflow("import", key="march") as first:
            first.add(NewJob("fetch", {}, {}))

        def add_second() -> Any:
            with app.within(two).workflow("import", key="march") as second:
                second.add(NewJob("fetch", {}, {}))
            two.commit()
            return second

        added = pool.submit(add_second)
        wait_until(lambda: looking.execute(WAITS).fetchone() == (1,), "it waits for the key")
        getattr(one, end)()
        second = added.result(10)
        assert second.created is (end == "rollback")
        assert (second.id == first.id) is (end == "commit")
        assert app.count().jobs == 1
        assert app.verify() == []
