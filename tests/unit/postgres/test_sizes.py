"""Many large payloads: a statement takes so many, and all of them are one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tenure import KeyConflict, NewJob, Tenure, Unique
from tenure.store.postgres import statements, writer
from tenure.store.postgres.writer import Postgres
from tenure.store.rows import UNIQUE


@pytest.mark.parametrize("unique", [None, Unique(by=("number",))])
def test_a_batch_of_large_payloads_is_sent_in_parts(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, unique: Unique | None
) -> None:
    """200 jobs of 0.9 MB took 23 s to send at once, mostly in libpq."""
    sent: list[str] = []
    rows = Postgres.rows

    def noted(self: Postgres, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        sent.append(statement)
        return rows(self, statement, values)

    monkeypatch.setattr(Postgres, "rows", noted)
    monkeypatch.setattr(writer, "MAX_SENT", 1_000)

    def batch(first: int) -> list[NewJob]:
        numbers = range(first, first + 10)
        options: Any = {"unique": unique} if unique else {}
        return [NewJob("mail", {"number": n, "text": "x" * 400}, options) for n in numbers]

    with Tenure(postgres_url) as app:
        jobs = app.enqueue_many(batch(0))
        add = statements.insert_with(UNIQUE) if unique else statements.ENQUEUE
        assert sent.count(add) == 5
        assert [app.get(job.id).payload["number"] for job in jobs] == list(range(10))
        app.enqueue("mail", {"number": 100}, idempotency_key="taken")
        taken = NewJob("mail", {"number": 101}, {"idempotency_key": "taken"})
        with pytest.raises(KeyConflict):
            app.enqueue_many([*batch(20), taken])
        assert len(app.find(limit=50)) == 11
        assert app.verify() == []
