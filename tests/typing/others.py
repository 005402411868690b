"""What users write in tests and beside other programs, as type checkers see it: see `api.py`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, assert_type

import pytest
from fastapi import Depends
from flask import Flask
from sqlalchemy import Engine, Table

import tenure
from tenure import Handle, Job, testing
from tenure.contrib import django as tenure_django
from tenure.contrib.fastapi import Within, enqueuer, with_dependencies
from tenure.contrib.flask import Tenure
from tenure.contrib.sqlalchemy import include_name, tables

app = tenure.Tenure("sqlite:///jobs.db")


def session() -> Iterator[list[int]]:
    yield []


@app.job
@with_dependencies
async def charge(order: int, rows: list[int] = Depends(session)) -> str:
    return f"{order} {rows}"


@pytest.fixture
def jobs() -> Iterator[testing.Jobs]:
    with testing.on(app) as found:
        assert_type(found, testing.Jobs)
        yield found


def tests(jobs: testing.Jobs) -> None:
    assert_type(charge.submit(1), Handle[str])
    assert_type(jobs.assert_enqueued(charge, order=1), Job)
    assert_type(jobs.drain(), testing.Drained)
    assert_type(jobs.run(charge.enqueue(1)), Job)
    assert_type(jobs.travel("1h"), datetime)
    with testing.inline(app):
        charge.enqueue(1)
    charge.enqueue("1")  # type: ignore[arg-type]
    jobs.travel([5])  # type: ignore[arg-type]


def fastapi(jobs: Annotated[Within, Depends(enqueuer(app, session))]) -> None:
    assert_type(jobs.enqueue("charge", {"order": 1}), Job)


def flask() -> None:
    queue = Tenure()
    queue.init_app(Flask(__name__))
    assert_type(queue.get("id"), Job)
    queue.init_app("shop")  # type: ignore[arg-type]


def sqlalchemy(engine: Engine) -> None:
    assert_type(tables(engine), tuple[Table, Table])
    assert_type(include_name("tenure", "schema", {}), bool)


def django(value: Any) -> None:
    assert_type(tenure_django.app, tenure.Tenure)
    assert_type(tenure_django.app.enqueue("charge", value), Job)
