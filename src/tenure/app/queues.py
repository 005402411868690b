"""Queues, the workers that serve them, and types: `app.queues`, `app.workers`, `app.types`."""

from __future__ import annotations

from functools import partial
from typing import Any

from tenure.app.core import Noun
from tenure.jobs.enqueue import whole
from tenure.jobs.names import check_name, check_open, check_reason
from tenure.jobs.queue_rights import includes, require
from tenure.jobs.stats import QueueState, TypeState, WorkerState
from tenure.store.tables import queues, types


class Queues(Noun):
    """The queues of one database. A queue exists as soon as a job or a setting names it."""

    def list(self) -> list[QueueState]:
        """Return every queue that has pending or processing jobs, or settings, by name."""
        found = self._core.limited_store.read.queues()
        return [queue for queue in found if includes(self._core.queues, queue.name)]

    def pause(self, queue: str, *, actor: str | None = None, reason: str | None = None) -> None:
        """Stop giving jobs of a queue to workers. Jobs that are processing go on.

        Enqueues are still accepted. Takes effect at the next claim of every worker.

        - `queue`: the name of the queue; it need not have jobs. One that is paused does not change.
        - `actor`: who pauses it. Default: the application's actor.
        - `reason`: why, which `explain` and lists of queues show; at most 500 characters. Default:
          None.

        Raises InvalidInput if the name of the queue is not valid.
        """
        self._set(queue, paused=True, actor=actor, reason=check_reason(reason))

    def resume(self, queue: str, *, actor: str | None = None) -> None:
        """Give jobs of a paused queue to workers again.

        - `queue`: the name of the queue; one that is not paused does not change.
        - `actor`: who resumes it. Default: the application's actor.

        Raises InvalidInput if the name of the queue is not valid.
        """
        self._set(queue, paused=False, actor=actor)

    def limit(self, queue: str, max_pending: int | None, *, actor: str | None = None) -> None:
        """Bound the number of pending jobs of a queue; an enqueue above it raises QueueFull.

        - `queue`: the name of the queue.
        - `max_pending`: 0 or more jobs; 0 refuses every enqueue. None removes the bound.
        - `actor`: who sets it. Default: the application's actor.

        Raises InvalidInput if the name or the number is not valid.
        """
        wanted = -1 if max_pending is None else whole(max_pending, 0, 2**53, "$.max_pending")
        self._set(queue, max_pending=wanted, actor=actor)

    def _set(self, queue: str, *, actor: str | None, **change: Any) -> None:
        name, by = check_name(queue, "queue", "$.queue"), self._core.signed(actor)
        require(self._core.queues, [name])
        set_queue = partial(queues.set_queue, name=name, actor=by, **change)
        self._core.limited_store.write("queue", set_queue).result()


class Workers(Noun):
    """The workers of one database, on all machines."""

    def list(self) -> list[WorkerState]:
        """Return the workers that asked for jobs lately."""
        return self._core.limited_store.read.workers(self._core.queues)


class Types(Noun):
    """The types whose handlers a worker or a server of this database has or had."""

    def list(self) -> list[TypeState]:
        """Return the types, by name: at most 2,000, those seen last."""
        found = types.every(self._core.limited_store.read).values()
        return [type for type in found if includes(self._core.queues, type.queue)]

    def pause(self, type: str, *, actor: str | None = None, reason: str | None = None) -> None:
        """Stop giving jobs of a type to workers, as `app.queues.pause` does for a queue.

        - `type`: the name of the type; no worker need know it. One that is paused does not change.
        - `actor`, `reason`: as there. Raises InvalidInput.
        """
        self._set(type, paused=True, actor=actor, reason=check_reason(reason))

    def resume(self, type: str, *, actor: str | None = None) -> None:
        """Give jobs of a paused type to workers again. Those behind many others take some seconds.

        - `type`: the name of the type; one that is not paused does not change.
        - `actor`: who resumes it. Default: the application's actor.

        Raises InvalidInput.
        """
        self._set(type, paused=False, actor=actor)

    def _set(self, type: str, *, actor: str | None, **change: Any) -> None:
        name, by = check_open(type, "job type", "$.type"), self._core.signed(actor)
        set_paused = partial(types.set_paused, name=name, actor=by, **change)
        self._core.store.write("queue", set_paused).result()
