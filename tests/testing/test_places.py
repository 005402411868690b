"""Where jobs of a test are: what `on`, `within` and `inline` promise, and what they refuse."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from tenure import InvalidInput, JobContext, JobNotFound, NewJob, StoreUnavailable, Tenure, testing
from tenure.errors import SchemaMismatch
from tenure.store import migrate_store
from tests.support.workers import running_worker, wait_until_settled
from tests.testing.conftest import Enter, transaction


@pytest.fixture
def shop(nowhere: Tenure) -> Tenure:
    @nowhere.job
    def greet(name: str) -> str:
        return f"hello {name}"

    @nowhere.job
    def greet_later(name: str) -> None:
        nowhere.enqueue("greet", {"name": name})

    return nowhere


@pytest.mark.parametrize("number", [1, 2])
def test_two_tests_see_nothing_of_each_other(enter: Enter, shop: Tenure, number: int) -> None:
    jobs = enter(shop)
    assert jobs.enqueued() == []
    shop.enqueue("greet", {"name": str(number)})
    assert len(jobs.enqueued()) == 1


@pytest.mark.parametrize("engine", ["sqlite", pytest.param("pg", marks=pytest.mark.postgres)])
def test_a_transaction_leaves_nothing_behind(
    engine: str, shop: Tenure, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("sqlite_url" if engine == "sqlite" else "postgres_url")
    with transaction(url) as connection, testing.within(shop, connection) as jobs:
        shop.enqueue("greet_later", {"name": "a"})
        shop.within(connection).enqueue("greet", {"name": "b"})
        assert jobs.drain().completed == 3
        jobs.travel("3d")
        with pytest.raises(KeyError), testing.inline(shop):
            raise KeyError
    with Tenure(url) as later:
        assert later.find() == []
        assert later.verify() == []
        assert abs((later.core.clock() - later.enqueue("x").created_at).total_seconds()) < 60


def test_the_application_has_its_database_again(shop: Tenure, sqlite_url: str) -> None:
    shop.database = sqlite_url
    with shop:
        mine = shop.enqueue("greet", {"name": "mine"})
        with suppress(RuntimeError), testing.on(shop):
            assert shop.find() == []
            raise RuntimeError
        with testing.on(shop), testing.on(shop):
            shop.enqueue("greet", {"name": "inner"})
        assert shop.database == sqlite_url
        assert [job.id for job in shop.find()] == [mine.id]


def test_a_program_that_closes_its_application_keeps_the_jobs(enter: Enter, shop: Tenure) -> None:
    """The lifespan of a web application does, when its test client ends."""
    jobs = enter(shop)
    with shop:
        job = shop.enqueue("greet", {"name": "a"})
    assert jobs.run(job).result == "hello a"
    assert shop.get(job.id).status == "completed"


def test_a_view_is_tested_without_a_process(enter: Enter, shop: Tenure) -> None:
    """The test client runs views on another thread."""

    async def sign_up(request: Request) -> JSONResponse:
        job = await shop.enqueue_async("greet_later", await request.json())
        return JSONResponse({"job": job.id})

    jobs = enter(shop)
    with TestClient(Starlette(routes=[Route("/", sign_up, methods=["POST"])])) as client:
        answer = client.post("/", json={"name": "a"}).json()
    assert jobs.assert_enqueued("greet_later", {"name": "a"}).id == answer["job"]
    assert jobs.drain().completed == 2


@pytest.mark.parametrize(
    "engine", ["sqlite_url", pytest.param("postgres_url", marks=pytest.mark.postgres)]
)
def test_a_transaction_elsewhere_is_told_how_to_test(
    shop: Tenure, engine: str, request: pytest.FixtureRequest
) -> None:
    """The fixture `jobs` makes a file, and the code under test adds jobs in its transaction."""
    url = request.getfixturevalue(engine)
    made = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    refused = pytest.raises(InvalidInput, match=r"give its URL to `testing\.on`")
    with testing.on(shop), made.begin() as mine, refused:
        shop.within(mine).enqueue("greet", {"name": "a"})
    with testing.on(shop, url) as jobs:
        with made.begin() as mine:
            shop.within(mine).enqueue("greet", {"name": "a"})
        assert jobs.drain().completed == 1
    made.dispose()


@pytest.mark.parametrize("engine", ["sqlite", pytest.param("pg", marks=pytest.mark.postgres)])
@pytest.mark.parametrize("kind", ["connection", "session"])
def test_on_a_connection_of_sqlalchemy(
    engine: str, kind: str, shop: Tenure, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("sqlite_url" if engine == "sqlite" else "postgres_url")
    migrate_store(url)
    made = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with made.connect() as connection, Session(connection) as session:
        chosen: Any = connection if kind == "connection" else session
        with testing.within(shop, chosen) as jobs:
            session.execute(sqlalchemy.text("CREATE TABLE guest (name TEXT)"))

            @shop.job
            def invite(name: str) -> None:
                statement = sqlalchemy.text("INSERT INTO guest VALUES (:name)")
                session.execute(statement, {"name": name})

            invite.within(session).enqueue("a")
            assert jobs.drain().completed == 1
            assert session.execute(sqlalchemy.text("SELECT name FROM guest")).all() == [("a",)]
        session.rollback()
    made.dispose()
    with Tenure(url) as later:
        assert later.find() == []


def refusal(app: Tenure, connection: Any) -> str:
    """What `within` says against a connection."""
    with pytest.raises((InvalidInput, SchemaMismatch)) as refused, testing.within(app, connection):
        pass
    return str(refused.value)


def test_connections_that_cannot_be_used_are_refused(
    shop: Tenure, sqlite_url: str, tmp_path: Path
) -> None:
    migrate_store(sqlite_url)
    path = sqlite_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as autocommits:
        assert "in no transaction" in refusal(shop, autocommits)
    with closing(sqlite3.connect(tmp_path / "empty.db")) as empty:
        assert "tenure migrate" in refusal(shop, empty)
    assert "a value of type str cannot be used" in refusal(shop, "postgresql://")


@pytest.mark.postgres
def test_the_same_on_postgresql(shop: Tenure, postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as empty:
        assert "tenure migrate" in refusal(shop, empty)
    migrate_store(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as autocommits:
        assert "in no transaction" in refusal(shop, autocommits)
        with autocommits.transaction(), testing.within(shop, autocommits):
            shop.enqueue("greet", {"name": "a"})


@pytest.mark.parametrize("engine", ["sqlite", pytest.param("pg", marks=pytest.mark.postgres)])
def test_a_transaction_that_was_ended_is_noticed(
    engine: str, shop: Tenure, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("sqlite_url" if engine == "sqlite" else "postgres_url")
    with transaction(url) as connection, testing.within(shop, connection):
        connection.rollback()
        with pytest.raises(StoreUnavailable, match="neither commit it nor roll it back"):
            shop.enqueue("greet", {"name": "a"})


def test_nobody_waits_for_a_job_that_no_worker_sees(shop: Tenure, sqlite_url: str) -> None:
    with transaction(sqlite_url) as connection, testing.within(shop, connection) as jobs:
        job = shop.enqueue("greet", {"name": "a"})
        with pytest.raises(InvalidInput, match=r"call jobs\.drain"):
            shop.wait(job)
        jobs.drain()
        assert shop.wait(job).result == "hello a"
        with pytest.raises(JobNotFound):
            shop.wait("01990000-0000-7000-8000-000000000000")


def test_a_worker_may_run_in_a_test_too(shop: Tenure) -> None:
    with testing.on(shop) as jobs, running_worker(shop):
        job = shop.enqueue("greet", {"name": "a"})
        assert wait_until_settled(shop, job).result == "hello a"
        (worker,) = shop.workers.list()
        with pytest.raises(InvalidInput, match=f"worker {worker.label} asked for(.)*of tests"):
            jobs.clear()
        jobs.clear(force=True)
        assert shop.find() == []


@pytest.mark.postgres
def test_the_clock_of_a_database_is_set_right_again(shop: Tenure, postgres_url: str) -> None:
    with Tenure(postgres_url) as other:
        with testing.on(shop, postgres_url) as jobs:
            before = other.core.clock()
            jobs.travel("10d")
            assert (other.core.clock() - before).days == 10
        assert (other.core.clock() - before).days == 0
        with psycopg.connect(postgres_url) as connection:
            (clock,) = connection.execute("SELECT prosrc FROM pg_proc WHERE proname = 'clock'")
    assert clock == ("SELECT pg_catalog.clock_timestamp() + interval '0 ms'",)


# --- inline


def test_inline_runs_what_is_added_and_what_that_adds(enter: Enter, shop: Tenure) -> None:
    jobs = enter(shop)
    before = shop.enqueue("greet", {"name": "before"})
    with testing.inline(shop):
        job = shop.enqueue("greet_later", {"name": "a"})
        assert shop.get(job.id).status == "completed"
        assert [job.result for job in shop.find(type="greet", status="completed")] == ["hello a"]
        with shop.workflow() as flow:
            first = flow.add(NewJob("greet", {"name": "b"}, {}))
            flow.add(NewJob("greet", {"name": "c"}, {}), depends_on=[first])
        assert flow.status() == {"completed": 2}
    assert [job.id for job in jobs.enqueued()] == [before.id]


def test_inline_leaves_what_a_worker_would_not_start(enter: Enter, shop: Tenure) -> None:
    jobs = enter(shop)
    shop.queues.pause("paused")
    shop.queues.limit("slow", rate="1/1h")
    shop.job(name="bye")(lambda: None)
    shop.types.pause("bye")
    with testing.inline(shop):
        shop.enqueue("bye")
        shop.enqueue("greet", {"name": "a"}, delay="1h")
        shop.enqueue("greet", {"name": "b"}, queue="paused")
        unknown = shop.enqueue("unknown")
        for number in range(2):
            shop.enqueue("greet", {"name": str(number)}, queue="slow")
    assert [job.payload.get("name") for job in jobs.enqueued()] == [None, "a", "b", None, "1"]
    assert len(shop.history(unknown.id)) == 1
    with pytest.raises(InvalidInput, match="no handler for 'unknown'"):
        jobs.run(unknown)


def test_inline_raises_at_its_end_and_not_in_the_call(enter: Enter, shop: Tenure) -> None:
    """Sidekiq's inline mode raised in the caller, which production never does."""
    enter(shop)

    @shop.job
    def broken() -> None:
        raise ValueError("broken")

    said: list[str] = []
    try:
        with testing.inline(shop):
            job = broken.enqueue()
            said.append(shop.get(job.id).event)
    except ValueError as error:
        said += error.__notes__
    assert said == ["retried", f"job {job.id} (broken), attempt 1 of 10"]


@pytest.mark.parametrize("engine", ["sqlite", pytest.param("pg", marks=pytest.mark.postgres)])
def test_inline_in_a_transaction_runs_jobs_of_within(
    engine: str, shop: Tenure, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("sqlite_url" if engine == "sqlite" else "postgres_url")
    with transaction(url) as connection, testing.within(shop, connection) as jobs:
        with testing.inline(shop):
            shop.within(connection).enqueue("greet_later", {"name": "a"})
            assert jobs.enqueued() == []
        shop.within(connection).enqueue("greet", {"name": "a"})
        assert len(jobs.enqueued()) == 1


def test_a_handler_runs_on_the_thread_that_drains(enter: Enter, shop: Tenure) -> None:
    jobs = enter(shop)
    threads = []

    @shop.job
    def notes(context: JobContext) -> None:
        context.progress(1)
        threads.append(threading.current_thread())
        threads.extend(one for one in threading.enumerate() if one.name == "tenure-notes")

    notes.enqueue()
    jobs.drain()
    with testing.inline(shop):
        notes.enqueue()
    assert threads == [threading.current_thread()] * 2
