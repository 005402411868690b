"""Many large payloads: a statement takes so many, and all of them are one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import pytest

from tenure import KeyConflict, NewJob, Tenure, Unique
from tenure.store import rows
from tenure.store.borrowed import jobs
from tenure.store.borrowed.drivers import Psycopg
from tenure.store.postgres import statements
from tenure.store.postgres.session import PostgresSession
from tenure.store.rows import UNIQUE

UNIQUE_BY_NUMBER: Any = {"unique": Unique(by=("number",))}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every statement with values. A statement takes two of the payloads of `batch`."""
    monkeypatch.setattr(rows, "MAX_SENT", 1_000)
    sent: list[str] = []

    def note(cls: type, method: str) -> None:
        execute: Callable[..., Any] = getattr(cls, method)

        def noted(self: Any, statement: str, values: Any = ()) -> Any:
            sent.append(statement)
            return execute(self, statement, values)

        monkeypatch.setattr(cls, method, noted)

    note(PostgresSession, "rows")
    note(Psycopg, "execute")
    return sent


def batch(first: int, options: Any = None) -> list[NewJob]:
    some = range(first, first + 10)
    return [NewJob("mail", {"number": n, "text": "x" * 400}, options or {}) for n in some]


def numbers(app: Tenure, added: Sequence[Any]) -> list[int]:
    return [app.get(one.id).payload["number"] for one in added]


@pytest.mark.parametrize("options", [{}, UNIQUE_BY_NUMBER])
def test_a_batch_of_large_payloads_is_sent_in_parts(
    app: Tenure, sent: list[str], options: Any
) -> None:
    """200 jobs of 0.9 MB took 23 s to send at once, mostly in libpq."""
    added = app.enqueue_many(batch(0, options))
    add = statements.insert_with(UNIQUE) if options else statements.ENQUEUE
    assert sent.count(add) == 5
    assert numbers(app, added) == list(range(10))
    app.enqueue("mail", {"number": 100}, idempotency_key="taken")
    taken = NewJob("mail", {"number": 101}, {"idempotency_key": "taken"})
    with pytest.raises(KeyConflict):
        app.enqueue_many([*batch(20, options), taken])
    assert len(app.find(limit=50)) == 11


def test_the_jobs_of_a_workflow_are_sent_in_parts(app: Tenure, sent: list[str]) -> None:
    """200 jobs of 0.9 MB took 12 to 23 s."""
    group, chain = app.group(batch(0)), app.chain(batch(10))
    assert len([one for one in sent if "INTO {s}.job " in one]) == 10
    assert numbers(app, group.nodes) == list(range(10))
    assert numbers(app, chain.nodes) == list(range(10, 20))


@pytest.mark.parametrize("options", [{}, UNIQUE_BY_NUMBER])
def test_jobs_in_the_callers_transaction_are_sent_in_parts(
    app: Tenure, sent: list[str], options: Any
) -> None:
    """200 jobs of 0.9 MB took 12 to 34 s. What refuses one is found before, by one more look."""
    with psycopg.connect(app.database) as connection:
        added = app.within(connection).enqueue_many(batch(0, options))
    prefix = '"tenure".'
    add = jobs.ADD.replace("{s}", prefix).replace("{p}", "%s")
    assert sent.count(add) == 1 + 5
    assert numbers(app, added) == list(range(10))


def test_text_beyond_ascii_counts_as_it_is_sent(app: Tenure, sent: list[str]) -> None:
    """JSON in ASCII has six characters for one, and twelve for an emoji."""
    new_jobs = [NewJob("mail", {"text": "\N{SNOWMAN}" * 100}, {})] * 4
    with psycopg.connect(app.database) as connection:
        app.within(connection).enqueue_many(new_jobs)
    assert len([one for one in sent if ".add(" in one]) == 1 + 4


def test_a_queue_that_is_filled_meanwhile_refuses_no_part(
    app: Tenure, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal would leave the parts before it in the caller's transaction."""
    app.queues.limit("small", max_pending=10)
    execute = Psycopg.execute

    def filled(self: Psycopg, statement: str, value: str | None) -> Any:
        if sum(".add(" in one for one in sent) == 1:  # they were looked at
            app.enqueue("mail", queue="small")
        return execute(self, statement, value)

    monkeypatch.setattr(Psycopg, "execute", filled)
    with psycopg.connect(app.database) as connection:
        app.within(connection).enqueue_many(batch(0, {"queue": "small"}))
    assert app.count(queue="small").jobs == 11
