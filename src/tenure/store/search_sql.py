"""The statements of searches, as far as both engines share them; for bounds see `search.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from tenure.jobs.queries import Query
from tenure.lifecycle import Status
from tenure.store.constraints import quoted
from tenure.store.dialect import Dialect
from tenure.store.search import along_ids, folded

ENDED = (Status.FAILED, Status.CANCELLED)
"""What the index `job_ended` holds, in the order of its condition."""

Statement = tuple[str, list[Any]]
"""A statement and its values."""


class Searches(ABC):
    """The searches of an engine."""

    dialect: Dialect

    @abstractmethod
    def listing(self, what: str, query: Query) -> Statement:
        """Select `what` of the jobs of a query, in its order."""

    @abstractmethod
    def _gathered(self, status: Status) -> str:
        """Return the table of jobs, to be read by the index of a status that few of them have."""

    def counting(self, query: Query) -> Statement:
        """Count the jobs of a query."""
        statement, values = self.listing("1", query)
        return f"SELECT count(*) FROM ({statement}) AS found", values

    def edge(self, query: Query, rows: int) -> Statement:
        """Select the id of the last of so many rows that a search passes, if there are as many."""
        ended = query.status if query.status in ENDED else None
        statement, values = self.listing(self.dialect.id("id"), along_ids(query, ended))
        return f"{statement} OFFSET {int(rows) - 1}", values

    def waiting(self, query: Query, most: int) -> Statement:
        """Count the jobs in the status of a query, and in its queue if they are pending."""
        status = Status(query.status or "")
        where, values = f"status = {quoted(status)}", list[Any]()
        if status is Status.PENDING and query.queue is not None:
            where, values = f"{where} AND queue = {self.dialect.value}", [query.queue]
        some = f"SELECT 1 FROM {self._gathered(status)} WHERE {where} LIMIT {int(most)}"
        return f"SELECT count(*) FROM ({some}) AS waiting", values

    def _others(self, query: Query) -> Iterator[tuple[str, Any]]:
        """Yield the conditions that no index helps with, and their values."""
        d = self.dialect
        compared = (
            ("type =", query.type),
            ("queue =", query.queue),
            ("created_at >=", d.to_bound(query.created_after)),
            ("created_at <", d.to_bound(query.created_before)),
            ("created_at <=", d.to_bound(query.created_by)),
            ("finished_at <=", d.to_bound(query.settled_by)),
        )
        yield from ((f"{part} {d.value}", value) for part, value in compared if value is not None)
        for column, text in (("last_error", query.error), ("payload", query.text)):
            if text is not None:
                yield d.folded.format(column=column), folded(text)
