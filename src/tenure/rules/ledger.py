"""Transitions as the ledger stores and streams them, and the webhooks that are notified of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from tenure.lifecycle import EVENTS, Status
from tenure.rules.tokens import Patterns
from tenure.values.redaction import MARK

EventName = Annotated[str, Meta(extra_json_schema={"enum": list(EVENTS)})]
StatusName = Annotated[str, Meta(extra_json_schema={"enum": [str(status) for status in Status]})]
"""The value of a `Status`. Descriptions of JSON list the names; a client takes others, too."""

MAX_LAST = 1_000_000
"""The newest transitions of a job, at most, that are asked for by number."""


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of a job's status. `position` is its place in the event stream.

    `detail` is the error of a failure, `reason` what an operator or the application gave.
    """

    position: str
    job_id: str
    at: datetime
    source: str | None
    target: str
    event: str
    attempt: int
    token: int
    actor: str | None
    detail: str | None
    reason: str | None = None
    lease_id: str | None = field(default=None, repr=False)


class EventFilter(Struct, frozen=True, kw_only=True):
    """Which transitions are wanted; None means any."""

    types: tuple[str, ...] | None = None
    queues: tuple[str, ...] | None = None
    events: tuple[str, ...] | None = None
    job_id: str | None = None
    within: Patterns | None = None  # the only queues of who asks


class LedgerEvent(Struct, frozen=True):
    """A transition with what the ledger does not repeat: type, queue and tags of its job."""

    transition: Transition
    type: str
    queue: str
    tags: tuple[str, ...] = ()

    def without_errors(self) -> LedgerEvent:
        """Return the event without its error, which may hold redacted values."""
        if self.transition.detail is None:
            return self
        return replace(self, transition=dataclasses.replace(self.transition, detail=MARK))


class LedgerPage(Struct, frozen=True):
    """A part of the ledger: the events that match, and the position up to which it was read."""

    events: Sequence[LedgerEvent]
    position: str
    more: bool  # whether there may be more after `position`


class Webhook(Struct, frozen=True, kw_only=True):
    """A URL that is notified of transitions; None for `types` or `queues` means any.

    The secret that signs the requests is never part of this.
    """

    name: str
    id: str  # a removed name can be used again
    url: str
    events: tuple[str, ...]
    types: tuple[str, ...] | None
    queues: tuple[str, ...] | None
    created_at: datetime
    created_by: str
    position: str  # its deliveries are enqueued up to here in the ledger
