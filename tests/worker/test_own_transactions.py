"""Handlers that complete their job in an own transaction, and what their worker does then."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tenure import InvalidInput, JobContext, LeaseLost, Tenure
from tenure.client import Client
from tenure.worker.log import NOT_COMMITTED
from tests.support.effects import effects, make_effects, own_connection
from tests.support.http import ServerProcess
from tests.support.lenders import DRIVERS, POSTGRES, SQLITE, Kind, lent, lent_to_coroutine
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.support.worker_scripts import WorkerScript, freeze
from tests.support.workers import (
    running_sweeper,
    running_worker,
    transitions,
    wait_until_completed,
    wait_until_failed,
)
from tests.worker import children

pytest_plugins = ["tests.support.lent_app"]

PLAIN = ("sqlite3", "psycopg")
ONCE = ["enqueued", "claimed", "completed"]
TWICE = ["enqueued", "claimed", "failed", "retried", "claimed", "completed"]
ENDS = {
    "commits": ONCE,
    "commits and raises": ONCE,
    "commits and goes on": ONCE,
    "raises": TWICE,
    "rolls back": TWICE,
}
"""What the handler does in its first attempt -> the events. Each has exactly one effect."""
IN_CHILDREN = [
    pytest.param(*p.values, id=p.id, marks=[*p.marks, *[pytest.mark.full] * (p.id not in PLAIN)])
    for p in DRIVERS
]
"""One kind of each engine, the other libraries in `make chaos`: each child imports them all."""
BEATS = 0.5
"""Longer than two heartbeats of a lease of LEASE seconds."""
LEASE = 0.6


@pytest.fixture
def app(app_on_each_engine: Tenure) -> Iterator[Tenure]:
    make_effects(app_on_each_engine.database)
    yield app_on_each_engine
    assert app_on_each_engine.verify() == []


def insert(job_id: str) -> str:
    return f"INSERT INTO effect VALUES ('{job_id}')"


def register(app: Tenure, kind: Kind) -> Any:
    """A handler with a connection of this kind, on the loop of the worker if it is asynchronous."""

    def on_a_thread(context: JobContext, how: str) -> None:
        how = how if context.attempt == 1 else "commits"
        with lent(kind, app.database) as lender:
            lender.begin()
            lender.execute(insert(context.id))
            lender.fenced(context, "complete", how)
            if how == "raises":
                raise ValueError(how)
            lender.rollback() if how == "rolls back" else lender.commit()
            if how == "commits and raises":
                raise ValueError(how)
            if how == "commits and goes on":
                time.sleep(BEATS)
                lender.begin()
                lender.execute(insert(f"{context.id} {context.stopped}"))
                lender.commit()

    async def on_the_loop(context: JobContext, how: str) -> None:
        how = how if context.attempt == 1 else "commits"
        async with lent_to_coroutine(kind, app.database) as lender:
            await lender.begin()
            await lender.execute(insert(context.id))
            await lender.fenced(context, "complete", how)
            if how == "raises":
                raise ValueError(how)
            await (lender.rollback() if how == "rolls back" else lender.commit())
            if how == "commits and raises":
                raise ValueError(how)
            if how == "commits and goes on":
                await asyncio.sleep(BEATS)
                await lender.begin()
                await lender.execute(insert(f"{context.id} {context.stopped}"))
                await lender.commit()

    return app.job(name="ship", backoff=0)(on_the_loop if kind.is_async else on_a_thread)


def test_an_effect_is_there_once_however_the_handler_ends(
    app_for_kind: Tenure, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """River changed twice what a failure after the completion means (river PR 1350).

    Before, a rolled-back completion was recorded as completed, and a coroutine was cancelled after
    its own commit.
    """
    app = app_for_kind
    make_effects(app.database)
    ship = register(app, kind)
    with running_worker(app, lease_seconds=LEASE):
        jobs = {how: ship.enqueue(how) for how in ENDS}
        for job in jobs.values():
            wait_until_completed(app, job)
        found = effects(app.database)
        wait_until(
            lambda: f"{jobs['commits and goes on'].id} None" in effects(app.database),
            "a handler to go on after its commit",
        )
    assert {how: transitions(app, job) for how, job in jobs.items()} == ENDS
    assert {how: found[job.id] for how, job in jobs.items()} == dict.fromkeys(ENDS, 1)
    (failed,) = (e for e in app.history(jobs["rolls back"].id) if e.event == "failed")
    assert failed.detail == NOT_COMMITTED
    warnings = [r.getMessage() for r in caplog.records if "had been completed" in r.getMessage()]
    assert [jobs["commits and raises"].id in text for text in warnings] == [True]
    assert "ValueError: commits and raises" in warnings[0]
    assert "too late" not in caplog.text


@pytest.mark.parametrize("kind", IN_CHILDREN, indirect=True)
def test_a_child_completes_its_job_too(
    app_for_kind: Tenure, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_for_kind
    make_effects(app.database)
    app.job(process=True, backoff=0)(children.completes.handler.function)
    with running_worker(app):
        jobs = {
            how: app.enqueue("completes", {"url": app.database, "kind": kind.name, "how": how})
            for how in ("commits", "rolls back", "dies")
        }
        done = partial(app.count, status="completed")
        # Each new child imports every driver.
        wait_until(lambda: done().jobs == len(jobs), "the children to end", 4 * WAIT_SECONDS)
        ends = {how: wait_until_completed(app, job) for how, job in jobs.items()}
    assert {end.result for end in ends.values()} == {"in a child"}
    assert set(effects(app.database).values()) == {1}
    assert [transitions(app, job) for job in jobs.values()] == [ONCE, TWICE, ONCE]
    assert "what its handler returned is ignored" in caplog.text


def test_a_transaction_of_the_context_completes_the_job(app: Tenure) -> None:
    @app.job(backoff=0)
    def ship(context: JobContext) -> None:
        with context.transaction() as own:
            own.connection.execute(insert(context.id))
            own.result = context.attempt
            if context.attempt == 1:
                raise ValueError("no")

    with running_worker(app):
        job = wait_until_completed(app, ship.enqueue())
    assert job.result == 2
    assert effects(app.database)[job.id] == 1


def test_a_job_that_is_cancelled_meanwhile_has_no_effect(app: Tenure) -> None:
    lost: list[LeaseLost] = []

    @app.job
    def ship(context: JobContext) -> None:
        app.cancel(context.id)
        with own_connection(app.database) as connection:
            connection.execute(insert(context.id))
            try:
                context.complete(connection)
            except LeaseLost as error:
                lost.append(error)
                raise

    with running_worker(app):
        job = ship.enqueue()
        wait_until(lambda: lost, "the completion to be refused")
    assert app.get(job.id).status == "cancelled"
    assert not effects(app.database)


def test_over_http_it_fails_for_good_and_says_what_to_do(app: Tenure) -> None:
    """Each attempt failed alike, until there were none left."""

    @app.job(backoff=0)
    def ship(context: JobContext) -> None:
        with context.transaction():
            pass

    server = ServerProcess(app.database)
    with server, Client(server.url) as client, running_worker(app, client):
        job = ship.enqueue()
        assert "over HTTP" in wait_until_failed(app, job)
    assert app.get(job.id).attempts == 1


@pytest.mark.postgres
def test_a_handler_that_hangs_before_its_commit_delays_nobody(postgres_url: str) -> None:
    """The report of its timeout would wait for its lock, and with it all others of the worker."""
    with Tenure(postgres_url) as app:
        make_effects(app.database)
        locked, go_on = threading.Event(), threading.Event()

        @app.job(timeout=0.2)
        def hangs(context: JobContext) -> None:
            with own_connection(app.database) as connection:
                connection.execute(insert(context.id))
                context.complete(connection)
                locked.set()
                go_on.wait(WAIT_SECONDS)
                connection.commit()

        @app.job(max_retries=1)
        def fails() -> None:
            raise ValueError("no")

        with running_worker(app) as worker:
            job = hangs.enqueue()
            assert locked.wait(WAIT_SECONDS)
            wait_until(lambda: worker._exchanges._busy, "the report to be put off")
            began = time.monotonic()
            wait_until_failed(app, fails.enqueue())
            assert time.monotonic() - began < 5.0  # a lock is waited for 10 seconds
            go_on.set()
            wait_until_completed(app, job)
        assert effects(app.database)[job.id] == 1
        assert transitions(app, job) == ONCE


FROZEN = """
from tests.support.lenders import POSTGRES, SQLITE, lent

KINDS = {kind.name: kind for kind in (*POSTGRES, *SQLITE)}


def register():  # so that no child process is made for the attempt after a lost lease
    @app.job(backoff=0)
    def ship(context: JobContext, kind: str, how: str):
        mark(f"started {kind} {how} {context.attempt}")
        if context.attempt == 1:
            wait_for("go on")
        with lent(KINDS[kind], app.database) as lender:
            lender.begin()
            lender.execute(f"INSERT INTO effect VALUES ('{context.id}')")
            try:
                lender.fenced(context, how)
                lender.commit()
            except BaseException as error:
                log(f"{kind} {how}: {type(error).__name__}")
                lender.rollback()
                raise
        log(f"{kind} {how}: committed")


register()
"""


@pytest.mark.each_engine
def test_a_worker_that_was_frozen_commits_nothing(app: Tenure, tmp_path: Path) -> None:
    """It wakes after its jobs were taken over and have been done, on each kind of connection."""
    kinds = SQLITE if app.database.startswith("sqlite") else POSTGRES
    ways = [(kind.name, how) for kind in kinds for how in ("complete", "hold")]
    jobs = [app.enqueue("ship", {"kind": kind, "how": how}) for kind, how in ways]
    root = str(Path(__file__).parents[2])
    script = WorkerScript(tmp_path / "s", app.database, FROZEN, concurrency=len(ways), lease=2.0)
    with script, running_sweeper(app):
        frozen = script.start(PYTHONPATH=root)
        for kind, how in ways:
            script.wait_for_mark(f"started {kind} {how} 1")
        freeze(frozen, app)
        script.start(PYTHONPATH=root)
        for job in jobs:
            wait_until_completed(app, job)
        script.mark("go on")
        frozen.send_signal(signal.SIGCONT)
        said = script.wait_for_lines(2 * len(ways))
    ends = ("committed", "LeaseLost")
    assert Counter(said) == Counter(f"{kind} {how}: {end}" for kind, how in ways for end in ends)
    assert effects(app.database) == {job.id: 1 for job in jobs}


def test_twice_is_refused_in_a_worker(app: Tenure) -> None:
    said: list[str] = []

    @app.job
    def ship(context: JobContext) -> None:
        with own_connection(app.database) as connection:
            context.complete(connection)
            try:
                context.complete(connection)
            except InvalidInput as error:
                said.append(str(error))
            connection.commit()

    with running_worker(app):
        wait_until_completed(app, ship.enqueue())
    assert "already" in said[0]
