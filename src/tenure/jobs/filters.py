"""Filters of jobs, checked in one place for Python, HTTP, the command line and the dashboard."""

from __future__ import annotations

from datetime import datetime
from typing import TypedDict

from tenure.errors import InvalidInput
from tenure.jobs import payload
from tenure.jobs.bulk_actions import Action
from tenure.jobs.names import check_name
from tenure.jobs.queries import MAX_SEARCHED_FOR, Filter
from tenure.lifecycle import TRANSITIONS, Status


class Fields(TypedDict, total=False):
    """The fields of a `Filter`, as keyword arguments."""

    status: str | None
    type: str | None
    queue: str | None
    created_after: datetime | None
    created_before: datetime | None
    error: str | None
    text: str | None
    hidden: tuple[str, ...]


EVENT_OF = {Action.RETRY: "retried", Action.CANCEL: "cancelled"}


def checked(filter: Filter, at: str = "$.", *, between: str = "_") -> Filter:
    """Return `filter` if it is valid.

    Raises InvalidInput with the path of the field: `at` and the name, whose words are joined with
    `between`, as the caller wrote them.
    """
    if filter.status is not None and filter.status not in tuple(Status):
        raise InvalidInput(f"no such status; one of {', '.join(Status)}", path=f"{at}status")
    for name, what, value in (("type", "job type", filter.type), ("queue", "queue", filter.queue)):
        if value is not None:
            check_name(value, what, at + name)
    for name in ("created_after", "created_before"):
        time: datetime | None = getattr(filter, name)
        if time is not None and time.utcoffset() is None:
            where = at + name.replace("_", between)
            raise InvalidInput("a time without its zone; write it with Z or +02:00", path=where)
    for name in ("error", "text"):
        text: str | None = getattr(filter, name)
        if text is not None and not 1 <= len(text) <= MAX_SEARCHED_FOR:
            raise InvalidInput(f"search for 1 to {MAX_SEARCHED_FOR} characters", path=at + name)
        payload.check(text, path=at + name)
    return filter


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
