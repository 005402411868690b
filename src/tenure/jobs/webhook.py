"""A registered webhook."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
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
