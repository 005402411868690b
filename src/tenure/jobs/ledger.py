"""Transitions as the ledger stores and streams them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from tenure.jobs.redaction import MARK


@dataclass(frozen=True, slots=True)
class Transition:
    """One entry of the ledger. `position` orders the event stream and resumes it."""

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
    lease_id: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which moves somebody wants to hear of; None for any."""

    types: tuple[str, ...] | None = None
    queues: tuple[str, ...] | None = None
    events: tuple[str, ...] | None = None
    job_id: str | None = None


@dataclass(frozen=True, slots=True)
class LedgerEvent:
    """A move with the type and queue of its job, which the ledger itself does not repeat."""

    transition: Transition
    type: str
    queue: str

    def without_errors(self) -> LedgerEvent:
        """The same without an error, which may hold what is redacted; a job's history shows it."""
        if self.transition.detail is None:
            return self
        return replace(self, transition=replace(self.transition, detail=MARK))


@dataclass(frozen=True, slots=True)
class LedgerPage:
    """A stretch of the ledger: what was wanted of it, and the position up to which it was read."""

    told: Sequence[LedgerEvent]
    position: str
    more: bool  # the stretch was as long as it may be, so there may be more behind it
