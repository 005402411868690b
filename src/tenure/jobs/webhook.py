"""A registered webhook."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Who is told of moves, and of which; None for any. Its secret is never part of this."""

    name: str
    id: str  # a name can come back
    url: str
    events: tuple[str, ...]
    types: tuple[str, ...] | None
    queues: tuple[str, ...] | None
    created_at: datetime
    created_by: str
    position: str  # up to where in the ledger its deliveries have been added
