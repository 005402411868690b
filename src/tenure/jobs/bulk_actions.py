"""Actions on all jobs of a filter."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from tenure.jobs.queries import Filter


class Action(StrEnum):
    """What can be done to all jobs of a filter."""

    RETRY = "retry"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bulk:
    """An action on all jobs that fitted a filter when it was started."""

    id: str
    action: Action
    filter: Filter
    more_retries: int
    actor: str
    created_at: datetime
    finished_at: datetime | None
    stopped_by: str | None  # who ended it early
    total: int  # jobs that fitted when it was started
    exact: bool  # else it was at least so many
    changed: int
    refused: int  # somebody else was faster, or they are gone
    batches: int = field(default=0, repr=False)  # transactions so far
    cursor: str | None = field(default=None, repr=False)  # the last id it has been at

    @property
    def examined(self) -> int:
        """Jobs it has been at."""
        return self.changed + self.refused

    @property
    def signature(self) -> str:
        """The actor in the ledger of every job it changes."""
        return f"{self.actor} (bulk {self.id})"
