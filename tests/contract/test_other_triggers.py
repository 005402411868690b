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
from tenure.errors import WriteRefused
from tests.support.clock import Clock
from tests.support.http import api_client, assert_problem
from tests.support.raw_sql import RawSql
from tests.support.store import LEASE_SECONDS, claim_request


def within(app: Tenure, new_jobs: list[NewJob]) -> None:
    """Add jobs in a transaction on a connection of the driver, which an error undoes."""
    if app.database.startswith("sqlite:"):
        path = app.database.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path)) as file, file:
            app.within(file).enqueue_many(new_jobs)
    else:
        with psycopg.connect(app.database) as connection:
            app.within(connection).enqueue_many(new_jobs)


def add_trigger(app: Tenure, moment: str, condition: str, *, drops: bool = False) -> None:
    """Add a trigger to the jobs that refuses the rows of a condition, or drops them unsaid."""
    with closing(RawSql(app.database)) as sql:
        if sql.engine == "postgres":
            refusal = "RAISE EXCEPTION 'no tenant 12' USING DETAIL = new.payload"
            body = f"BEGIN {'RETURN NULL' if drops else refusal}; END"
            sql.run(f"CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS $${body}$$")
            act = f"FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION act()"
        else:
            refusal = "IGNORE" if drops else "ABORT, 'no tenant 12'"
            act = f"WHEN ({condition}) BEGIN SELECT raise({refusal}); END"
        sql.run(f"CREATE TRIGGER another {moment} ON {{job}} {act}")


@pytest.mark.own_database
def test_what_another_trigger_drops_is_not_acknowledged(app_on_each_engine: Tenure) -> None:
    """PostgreSQL's answer was an id, and the job was nowhere."""
    app = app_on_each_engine
    add_trigger(app, "BEFORE INSERT", "new.priority = 7", drops=True)
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
            (WriteRefused, RaiseException),
            match="a trigger that is not from Tenure drop",
        ):
            add()
    assert app.count().jobs == 1


@pytest.mark.own_database
def test_what_another_trigger_refuses_is_said_in_one_error(app_on_each_engine: Tenure) -> None:
    """It was an error of the driver, a traceback of the command line, and 500 over HTTP."""
    app = app_on_each_engine
    add_trigger(app, "BEFORE INSERT", "new.priority = 7")
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


@pytest.mark.own_database
def test_a_lease_that_cannot_be_ended_holds_up_no_other(
    app_on_each_engine: Tenure, clock: Clock
) -> None:
    """One refused row failed each sweep: the leases of other dead workers never ended."""
    app = app_on_each_engine
    add_trigger(app, "BEFORE UPDATE", "new.priority = 7 AND new.status <> 'processing'")
    held = app.enqueue("mail", priority=7)
    others = app.enqueue_many([NewJob("mail", {}, {}) for _ in range(2)])
    app.core.claim(claim_request(3))
    clock.advance(LEASE_SECONDS)
    ended = app.core.store.sweep().result()
    assert {steps[0].id for steps in ended} == {one.id for one in others}
    assert app.get(held.id).status == "processing"
    with pytest.raises(WriteRefused, match="no tenant 12"):
        app.core.store.sweep().result()
