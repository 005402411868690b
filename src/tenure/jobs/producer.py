"""What adds the jobs of a type, as a job type sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from tenure.jobs.enqueue import NewJob, Wake
from tenure.jobs.handle import Waiting
from tenure.lifecycle import Job


class Enqueues(Protocol):
    """What adds the jobs of a type: an application, or a transaction of the caller's."""

    def enqueue_many(self, new_jobs: Sequence[NewJob]) -> list[Job]:
        """Add jobs in one transaction."""

    async def enqueue_many_async(self, new_jobs: Sequence[NewJob]) -> list[Job]:
        """Add jobs without blocking the loop."""


class Producer(Enqueues, Waiting, Protocol):
    """What a job type needs of its application."""

    def within(self, connection: Any, *, wake: Wake = "later") -> Enqueues:
        """Return what adds jobs in the transaction of a connection."""
