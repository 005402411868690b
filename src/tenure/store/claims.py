"""What one claim asks of its engine: the lanes, and the jobs of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol

from tenure.jobs.limits import Turn
from tenure.jobs.work import Lease
from tenure.store.refusals import RefusedClaims

Lane = tuple[str, int]
"""A queue and a priority."""
Mark = tuple[Any, str]
"""A time, as the database has it, and an id: the place of a job in its lane."""
Limited = Literal["queue", "partitions"] | None
"""How a queue is limited: not at all, as a whole, or with partitions that take turns."""


class Head(NamedTuple):
    """The first job of a lane; its time as the database has it."""

    lane: Lane
    run_at: Any
    id: str
    limited: Limited = None


class Claim(Protocol):
    """One claim, as its engine executes it, in one transaction."""

    start: Mark
    """Before every job of a lane."""
    now: datetime
    """The store's clock; known after `search`."""
    refused: RefusedClaims
    """What the database did not let start, if this claim is wary of that."""

    def search(self, queues: Sequence[str] | None, after: Lane) -> tuple[list[Head], Lane | None]:
        """Read the heads of the lanes after one; return them, and where the search stopped.

        It stops once it has read `MAX_LANES`, with a whole queue if queues are named, and returns
        None if it came to the end. Left out: paused queues, and any that `serves` refuses.
        """

    def time(self, run_at: Any) -> datetime:
        """Return the time of a head."""

    def newest(self) -> Iterable[Lane]:
        """Return the lanes of some of the jobs that were added last."""

    def open(self, lanes: Sequence[Lane]) -> Mapping[Lane, Limited]:
        """Return those lanes that may have due jobs, without those of paused queues."""

    def take(self, lane: Lane, after: Mark, limit: int) -> list[Lease]:
        """Claim up to `limit` of the first `MAX_SEEN` due jobs of a lane after a mark."""

    def passed(self, lane: Lane, after: Mark) -> Mark | None:
        """Return the mark of the last of `MAX_SEEN` due jobs after one; None if there are fewer."""

    def room(self, queue: str, most: int) -> int | None:
        """Return how many jobs of a limited queue may start now, all partitions together.

        `most` at most, and 0 while the queue is closed. Where that has to be counted, the queue is
        locked until the end of the transaction; None if another transaction has locked it.
        """

    def take_in_turn(
        self, lane: Lane, turn: Turn, limit: int, wide: bool = False
    ) -> tuple[list[Lease], Turn, int]:
        """Claim up to `limit` due jobs of a lane with partitions.

        Returns them, the next turn, and what `effort` says of it.

        The partitions begin at the turn, and have what `limits.quotas` deals them. A look goes over
        a bounded number of them, and the turn that is returned is then behind the last one. So it
        is behind the last one that got jobs, if their payloads are as many bytes as a claim has.

        If `wide`, a look goes over as many of them as it may, however small the limit is.
        """

    def look_again(self, queue: str) -> float:
        """Return what `limits.look_again` says of a limited queue."""
