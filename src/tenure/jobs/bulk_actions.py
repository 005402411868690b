"""Actions on all jobs of a filter."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from tenure.errors import InvalidInput
from tenure.jobs.queries import Filter
from tenure.lifecycle import TRANSITIONS, Status


class Action(StrEnum):
    """An action on all jobs of a filter."""

    RETRY = "retry"
    CANCEL = "cancel"


EVENT_OF = {Action.RETRY: "retried", Action.CANCEL: "cancelled"}


def sources(action: Action) -> tuple[Status, ...]:
    """The statuses that allow an action."""
    return tuple(
        transition.source for transition in TRANSITIONS if transition.event == EVENT_OF[action]
    )


def action_of(name: str) -> Action:
    """The action of this name; raises InvalidInput."""
    if name not in tuple(Action):
        raise InvalidInput(f"no such action; one of {', '.join(Action)}", path="$.action")
    return Action(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bulk:
    """An action on all jobs that matched a filter when it started, and how far it is."""

    id: str
    action: Action
    filter: Filter
    more_retries: int
    actor: str
    created_at: datetime
    finished_at: datetime | None
    stopped_by: str | None  # who stopped it early
    total: int  # jobs that matched when it started
    exact: bool  # otherwise `total` is a minimum
    changed: int
    refused: int  # changed otherwise first, or deleted
    batches: int = field(default=0, repr=False)  # transactions so far
    cursor: str | None = field(default=None, repr=False)  # the last id it examined

    @property
    def examined(self) -> int:
        """Jobs that it changed or was refused."""
        return self.changed + self.refused

    @property
    def signature(self) -> str:
        """The actor of its transitions in the ledger."""
        return f"{self.actor} (bulk {self.id})"
