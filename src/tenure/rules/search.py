"""What can be asked about jobs, the answers, and actions on all jobs of a filter."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, TypedDict

from msgspec import Struct
from msgspec.structs import replace

from tenure.errors import InvalidInput
from tenure.lifecycle import TRANSITIONS, Job, Status
from tenure.rules.jobs import Duration
from tenure.rules.tokens import Patterns
from tenure.values import ids, names, payload
from tenure.values.durations import plain, positive
from tenure.values.numbers import whole
from tenure.values.redaction import MARK

MAX_LISTED = 500
"""Jobs on a page."""
MAX_AHEAD = 10_000
"""Most jobs that are counted ahead of a job."""
MAX_SEARCHED_FOR = 200
"""Longest text to search for, in characters."""


Order = Literal["newest", "oldest"]
"""Which jobs are listed first."""


class State(StrEnum):
    """What people call the jobs that are yet to run: a status, and why they do not run."""

    SCHEDULED = "scheduled"
    READY = "ready"
    RETRYING = "retrying"
    SNOOZED = "snoozed"
    BLOCKED = "blocked"

    @property
    def status(self) -> Status:
        """The status of all of these jobs."""
        return Status.WAITING if self is State.BLOCKED else Status.PENDING


class Filter(Struct, frozen=True, kw_only=True):
    """Selects the jobs that match every field that is set."""

    status: str | None = None
    state: str | None = None  # of a `State`, which implies the status
    running_longer_than: Any = None  # a duration since the last claim of a job that is processing
    type: str | None = None
    queue: str | None = None
    tag: str | None = None
    partition: str | None = None
    workflow: str | None = None  # its id
    created_after: datetime | None = None  # inclusive, by the store's clock
    created_before: datetime | None = None  # exclusive
    finished_after: datetime | None = None  # settled at this time or later
    finished_before: datetime | None = None  # exclusive
    error: str | None = None  # substring of `last_error`, without regard to ASCII case
    text: str | None = None  # substring of the payload's JSON, likewise
    hidden: tuple[str, ...] = ()  # keys whose values are not searched
    within: Patterns | None = None  # the only queues of who asks
    leaves_followers: bool = False  # not jobs of which a failure meets all dependencies


TIMES = ("created_after", "created_before", "finished_after", "finished_before")
"""The fields that are times."""


class Fields(TypedDict, total=False):
    """The fields of a `Filter`, as keyword arguments."""

    status: str | None
    state: str | None
    running_longer_than: Duration | None
    type: str | None
    queue: str | None
    tag: str | None
    partition: str | None
    workflow: str | None
    created_after: datetime | None
    created_before: datetime | None
    finished_after: datetime | None
    finished_before: datetime | None
    error: str | None
    text: str | None
    hidden: tuple[str, ...]


def check_filter(filter: Filter, at: str = "$.", *, between: str = "_") -> Filter:
    """Return `filter` if it is valid, with the status and the seconds that it means.

    Raises InvalidInput with the path of the field: `at` and the name, whose words are joined with
    `between`, as the caller wrote them.
    """
    names.check_kind(filter, Filter, "a Filter of tenure.rules.search", "")
    filter = replace(filter, hidden=names.list_of_names(filter.hidden, f"{at}hidden"))
    if filter.status is not None and filter.status not in tuple(Status):
        raise InvalidInput(f"no such status; one of {', '.join(Status)}", path=f"{at}status")
    if filter.state is not None and filter.state not in tuple(State):
        raise InvalidInput(f"no such state; one of {', '.join(State)}", path=f"{at}state")
    implied = filter.state and State(filter.state).status
    if filter.running_longer_than is not None:
        where = at + "running_longer_than".replace("_", between)
        filter = replace(filter, running_longer_than=positive(filter.running_longer_than, where))
        implied = implied or Status.PROCESSING
    if implied and filter.status is None:
        filter = replace(filter, status=str(implied))
    for name, what, value in (("type", "job type", filter.type), ("queue", "queue", filter.queue)):
        if value is not None:
            names.check_name(value, what, at + name)
    if filter.tag is not None:
        names.check_tag(filter.tag, f"{at}tag")
    if filter.partition is not None:
        names.check_partition(filter.partition, f"{at}partition")
    if filter.workflow is not None:
        ids.check_id(filter.workflow, f"{at}workflow")
    for name in TIMES:
        time: datetime | None = getattr(filter, name)
        if time is None:
            continue
        where = at + name.replace("_", between)
        names.check_kind(time, datetime, "a time (datetime) with its zone", where)
        if time.utcoffset() is None:
            raise InvalidInput("a time without its zone; write it with Z or +02:00", path=where)
        filter = replace(filter, **{name: plain(time)})
    for name in ("error", "text"):
        text: str | None = getattr(filter, name)
        if text is None:
            continue
        names.check_kind(text, str, "a text to search for", at + name)
        if not 1 <= len(text) <= MAX_SEARCHED_FOR:
            raise InvalidInput(f"search for 1 to {MAX_SEARCHED_FOR} characters", path=at + name)
        payload.check(text, path=at + name)
    return filter


class Query(Filter, frozen=True, kw_only=True):
    """A query of a store: the jobs of a filter in the order of their ids, newest first.

    The ids `before` and `after` are exclusive; `through` is the last id to look at.
    """

    limit: int = 50
    before: str | None = None
    after: str | None = None
    through: str | None = None
    oldest_first: bool = False
    most: int | None = None  # rows up to `through`, if set
    gather: bool = False  # the status has few jobs: read all of them, and sort
    among: tuple[str, ...] = ()  # any of these statuses
    created_by: datetime | None = None  # inclusive
    settled_by: datetime | None = None  # inclusive
    not_due: bool = False
    leaves_snoozed: bool = False  # what is not due by its handler's choice

    @property
    def is_narrow(self) -> bool:
        """Whether an index has only the jobs of its tag or workflow, in the order of their ids."""
        return self.tag is not None or self.workflow is not None


def query_of(filter: Filter, **more: Any) -> Query:
    return Query(**{name: getattr(filter, name) for name in Filter.__struct_fields__}, **more)


class Page(Struct, frozen=True):
    """Some jobs of a filter. `next` is the cursor of the next page, None on the last one.

    `searched_all` is false if the search stopped at the limit of rows for one call, so that there
    may be more jobs than it found.
    """

    jobs: Sequence[Job]
    next: str | None
    searched_all: bool


class Counted(Struct, frozen=True):
    """The number of jobs that match a filter; the least number if not `exact`."""

    jobs: int
    exact: bool


class Action(StrEnum):
    """An action on all jobs of a filter."""

    RETRY = "retry"
    CANCEL = "cancel"
    RUN_NOW = "run_now"  # what is not due


EVENT_OF = {Action.RETRY: "retried", Action.CANCEL: "cancelled", Action.RUN_NOW: "amended"}


def checked_query(
    filter: Filter,
    limit: int = 50,
    *,
    before: str | None = None,
    after: str | None = None,
    order: Order = "newest",
) -> Query:
    """What to ask the store for; raises InvalidInput."""
    for name, id in (("before", before), ("after", after)):
        if id is not None:
            ids.check_id(id, f"$.{name}")
    names.check_choice(order, Order, "$.order")
    place: dict[str, Any] = {"before": before, "after": after, "oldest_first": order == "oldest"}
    count = whole(limit, 1, MAX_LISTED, "$.limit")
    return query_of(check_filter(filter), limit=count, **place)


def leaves_snoozed(action: Action, filter: Filter) -> bool:
    """Whether an action leaves snoozed jobs of a filter that does not ask for them.

    Their handlers chose the time. Of the other states, none has such jobs.
    """
    return action is Action.RUN_NOW and filter.state is None


def sources(action: Action) -> tuple[Status, ...]:
    """The statuses that allow an action."""
    return tuple(each.source for each in TRANSITIONS if each.event == EVENT_OF[action])


def action_of(name: str) -> Action:
    """The action of this name; raises InvalidInput."""
    if name not in tuple(Action):
        raise InvalidInput(f"no such action; one of {', '.join(Action)}", path="$.action")
    return Action(name)


class Bulk(Struct, frozen=True, kw_only=True):
    """An action on all jobs that matched a filter when it started, and how far it is."""

    id: str
    action: Action
    filter: Filter
    more_retries: int
    actor: str
    reason: str | None
    created_at: datetime
    finished_at: datetime | None
    stopped_by: str | None  # who stopped it early
    total: int  # jobs that matched when it started
    exact: bool  # otherwise `total` is a minimum
    changed: int
    refused: int  # changed otherwise first, deleted, locked, or refused by the database
    batches: int = 0  # transactions so far
    cursor: str | None = None  # the last id it examined

    @property
    def examined(self) -> int:
        """Jobs that it changed or was refused."""
        return self.changed + self.refused

    @property
    def without_searches(self) -> Bulk:
        """The same for who may not know what was searched for: it may be a secret that leaked."""
        searched = {name: MARK for name in ("error", "text") if getattr(self.filter, name)}
        return replace(self, filter=replace(self.filter, **searched))

    @property
    def signature(self) -> str:
        """The actor of its transitions in the ledger."""
        return f"{self.actor} (bulk {self.id})"
