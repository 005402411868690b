"""Triggers that are not from Tenure: what they drop or refuse is never acknowledged."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg
import pytest
from psycopg.errors import RaiseException

from tenure import NewJob, Tenure, Unique
from tenure.errors import StoreUnavailable, WriteRefused
from tests.contract.other_triggers import add_trigger
from tests.support.http import api_client, assert_problem
from tests.support.raw_sql import RawSql
from tests.support.store import StoreHarness, claim_request, report_completed, report_failed


def within(app: Tenure, new_jobs: list[NewJob]) -> None:
    """Add jobs in a transaction on a connection of the driver, which an error undoes."""
    if app.database.startswith("sqlite:"):
        path = app.database.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path)) as file, file:
            app.within(file).enqueue_many(new_jobs)
    else:
        with psycopg.connect(app.database) as connection:
            app.within(connection).enqueue_many(new_jobs)


@pytest.mark.own_database
def test_what_another_trigger_drops_is_not_acknowledged(app_on_each_engine: Tenure) -> None:
    """PostgreSQL's answer was an id, and the job was nowhere."""
    app = app_on_each_engine
    add_trigger(app.database, "BEFORE INSERT", "new.priority = 7", drops=True)
    unique = Unique(by="key")
    parent = app.enqueue("mail")
    adding: tuple[Callable[[], Any], ...] = (
        lambda: app.enqueue("mail", priority=7),
        lambda: app.enqueue("mail", priority=7, depends_on=[parent]),
        lambda: within(app, [NewJob("mail", {}, {"priority": 7})]),
        lambda: within(app, [NewJob("mail", {}, {}), NewJob("mail", {}, {"priority": 7})]),
        lambda: within(app, [NewJob("mail", {}, {"priority": 7, "depends_on": [parent]})]),
        lambda: app.enqueue("mail", priority=7, unique=unique),
        lambda: app.enqueue_many([NewJob("mail", {}, {}), NewJob("mail", {}, {"priority": 7})]),
    )
    for add in adding:
        with pytest.raises(
            (WriteRefused, RaiseException), match="a trigger that is not from Tenure drop"
        ):
            add()
    assert app.count().jobs == 1


@pytest.mark.postgres
@pytest.mark.own_database
@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO nowhere VALUES (1)",
        "PERFORM nothing(1)",
        "PERFORM pg_ls_dir('.')",
        "PERFORM (SELECT missing FROM (SELECT 1) AS one)",
        "INSERT INTO nowhere.at_all VALUES (1)",
    ],
)
def test_what_is_not_in_place_for_another_trigger(postgres_url: str, statement: str) -> None:
    """It counted as an outage, so that workers and clients tried again for ever."""
    with Tenure(postgres_url) as app:
        (job,) = app.enqueue_many([NewJob("mail", {}, {})])
        with closing(RawSql(postgres_url)) as sql:
            body = f"BEGIN SET LOCAL ROLE pg_monitor; {statement}; RETURN NULL; END"
            sql.run(f"CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS $${body}$$")
            act = "FOR EACH ROW EXECUTE FUNCTION act()"
            sql.run(f"CREATE TRIGGER another AFTER INSERT OR UPDATE ON {{job}} {act}")
        adding: tuple[Callable[[], Any], ...] = (
            lambda: app.enqueue("mail"),
            lambda: app.enqueue_many([NewJob("mail", {}, {})] * 2),
            lambda: app.cancel(job.id),
        )
        for add in adding:
            with pytest.raises(WriteRefused):
                add()
        assert app.core.claim(claim_request()).leases == []  # with a line in the log


@pytest.mark.postgres
@pytest.mark.own_database
@pytest.mark.parametrize("schema", ["tenure", "order"])  # of which one is a keyword of SQL
def test_what_is_not_in_place_for_tenure_is_an_outage(postgres_url: str, schema: str) -> None:
    """Such as while a backup is restored."""
    with Tenure(f"{postgres_url}&schema={schema}") as app:
        app.open()
        with closing(psycopg.connect(postgres_url, autocommit=True)) as sql:
            sql.execute(f'ALTER TABLE "{schema}".tag RENAME TO elsewhere'.encode())
        with pytest.raises(StoreUnavailable):
            app.enqueue("mail", tags=["a"])


@pytest.mark.own_database
def test_a_change_that_another_trigger_drops_is_refused(harness: StoreHarness) -> None:
    """It was a RuntimeError, which counts as a fault of Tenure."""
    with Tenure(harness.url) as app:
        job, other = app.enqueue("mail"), app.enqueue("mail")
        (lease,) = harness.claim(1)
        add_trigger(harness.url, "BEFORE UPDATE", "new.status <> 'processing'", drops=True)
        changes: tuple[Callable[[], Any], ...] = (
            lambda: app.cancel(other.id),
            lambda: harness.report(report_completed(lease)),
            lambda: harness.report(report_failed(lease)),
        )
        for change in changes:
            with pytest.raises(WriteRefused, match=r"raise an error, which says why$"):
                change()
        assert [app.get(it.id).status for it in (job, other)] == ["processing", "pending"]


@pytest.mark.own_database
def test_what_another_trigger_refuses_is_said_in_one_error(app_on_each_engine: Tenure) -> None:
    """It was an error of the driver, a traceback of the command line, and 500 over HTTP."""
    app = app_on_each_engine
    add_trigger(app.database, "BEFORE INSERT", "new.priority = 7")
    adding: tuple[Callable[[], Any], ...] = (
        lambda: app.enqueue("mail", priority=7),
        lambda: app.enqueue_many([NewJob("mail", {}, {}), NewJob("mail", {}, {"priority": 7})]),
    )
    for add in adding:
        with pytest.raises(WriteRefused, match=r"nothing was written: no tenant 12$"):
            add()
    with api_client(app) as api:
        answer = api.post("/jobs", json={"type": "mail", "priority": 7})
        assert "tenant 12" not in assert_problem(answer, 409, "write_refused")["detail"]
    assert app.count().jobs == 0
