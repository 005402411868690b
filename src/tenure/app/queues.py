"""Queues, the workers that serve them, and types: `app.queues`, `app.workers`, `app.types`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar, get_args

from msgspec import UnsetType
from msgspec.structs import replace

from tenure.app.core import Noun
from tenure.errors import InvalidInput
from tenure.rules.queues import KEEP, Ordered, PerPartition, check_running, check_weight
from tenure.rules.stats import (
    PartitionState,
    QueueOrder,
    QueueQuery,
    QueueState,
    TypeState,
    WorkerState,
)
from tenure.rules.tokens import Patterns, includes, require
from tenure.store.database import Statements
from tenure.store.tables import queues, types
from tenure.values.names import (
    MAX_NAME_LENGTH,
    check_name,
    check_open,
    check_partition,
    check_reason,
)
from tenure.values.numbers import whole

T = TypeVar("T")

MAX_QUEUES = 10_000
"""Queues in one list with a limit."""


class Queues(Noun):
    """The queues of one database. A queue exists as soon as a job or a setting names it."""

    def list(
        self,
        *,
        search: str | None = None,
        after: str | None = None,
        order: QueueOrder = "name",
        limit: int | None = None,
    ) -> list[QueueState]:
        """Return the queues that have pending or processing jobs, or settings.

        - `search`: only those whose name contains this text, without regard to case. Default: all.
        - `after`: only those whose name comes after this one. Default: all.
        - `order`: `name`; `jobs`, queues with the most jobs first; or `attention`, paused and full
          queues that have jobs first, then queues whose jobs have been due longest.
          Default: `name`.
        - `limit`: return at most so many, 1 to 10,000. Default: every one.

        Raises InvalidInput.
        """
        most = limit if limit is None else whole(limit, 1, MAX_QUEUES, "$.limit")
        if order not in get_args(QueueOrder):
            raise InvalidInput("choose name, jobs or attention", path="$.order")
        wanted = QueueQuery(
            search=part_of_name(search, "$.search"),
            after=part_of_name(after, "$.after"),
            within=self._core.queues,
            order=order,
            limit=most,
        )
        return self._core.limited_store.read.queues(wanted)

    def pause(self, queue: str, *, actor: str | None = None, reason: str | None = None) -> None:
        """Stop giving jobs of a queue to workers. Jobs that are processing continue.

        Enqueues are still accepted. Takes effect at the next claim of every worker.

        - `queue`: the name of the queue; it need not have jobs. One that is paused does not change.
        - `actor`: who pauses it. Default: the application's actor.
        - `reason`: why, which `explain` and lists of queues show; at most 500 characters. Default:
          None.

        Raises InvalidInput if the name of the queue is not valid.
        """
        pause = partial(queues.set_queue, paused=True, reason=check_reason(reason))
        self._write(queue, pause, actor)

    def resume(self, queue: str, *, actor: str | None = None) -> None:
        """Give jobs of a queue to workers again that was paused or met a rate limit outside.

        - `queue`: the name of the queue; one that is not paused does not change.
        - `actor`: who resumes it. Default: the application's actor.

        Raises InvalidInput if the name of the queue is not valid.
        """

        def resume(db: Statements, name: str, actor: str) -> None:
            queues.end_wait(db, name)
            queues.set_queue(db, name, paused=False, actor=actor)

        self._write(queue, resume, actor)

    def limit(
        self,
        queue: str,
        *,
        max_pending: int | UnsetType | None = KEEP,
        max_running: int | UnsetType | None = KEEP,
        rate: str | UnsetType | None = KEEP,
        burst: int | UnsetType | None = KEEP,
        per_partition: PerPartition | UnsetType | None = KEEP,
        ordered: Ordered | UnsetType | None = KEEP,
        actor: str | None = None,
    ) -> None:
        """Change limits of a queue, for all workers on all machines. What you omit stays.

        None removes a limit. Jobs that are processing continue, however many there are.

        - `queue`: the name of the queue.
        - `max_pending`: how many jobs may be pending, 0 or more. Then an enqueue raises QueueFull.
          Jobs of schedules, retries and jobs that handlers add are not refused.
        - `max_running`: how many may be processing at once, 0 to 2,147,483,647.
        - `rate`: how many may start in any period of a length, such as `"900/1m"`: 1 to 1,000,000
          in 1 ms to 31 days. Each attempt counts.
        - `burst`: how many of these may start at once, 1 to all. A queue that never runs empty
          starts `burst - 1` less than the rate: 811 of 900 a minute with a burst of 90, 900 with 1.
          Default with a new rate: a tenth of them, 1 at least.
        - `per_partition`: limits that hold for each partition as well. Partitions then take turns;
          `PerPartition()` only does that. The jobs without a partition form one more partition.
        - `ordered`: run the jobs of a partition one at a time, in the order of their enqueue,
          whatever their priorities. A job waits for all jobs before it and their retries. If one
          fails for good, the next one starts (`"pass"`), or the partition halts (`"halt"`) until
          the failed job is retried or passed over. With this, partitions take turns until
          `per_partition=None`.
        - `actor`: who sets it. Default: the application's actor.

        Raises InvalidInput if the name or a limit is not valid, and LimitConflict if partitions
        would take no turns any more while one of them is paused: resume it before.
        """
        pending: int | None = None
        if max_pending is not KEEP:
            pending = -1 if max_pending is None else whole(max_pending, 0, 2**53, "$.max_pending")
        given: dict[str, Any] = {"max_running": max_running, "rate": rate, "burst": burst}
        given |= {"per_partition": per_partition, "ordered": ordered}

        def change(db: Statements, name: str, actor: str) -> None:
            queues.change(db, name, given)  # before the queue: it may wait for all who change jobs
            queues.set_queue(db, name, max_pending=pending, actor=actor)

        self._write(queue, change, actor, limits=True)

    def limit_partition(
        self,
        queue: str,
        partition: str,
        *,
        max_running: int | UnsetType | None = KEEP,
        weight: int | UnsetType | None = KEEP,
        actor: str | None = None,
    ) -> None:
        """Change what differs for a partition of a queue. What you omit stays.

        - `queue`, `partition`: their names; `""` for the jobs without a partition.
        - `max_running`: how many of its jobs may be processing at once, 0 to 2,147,483,647. None:
          as many as of any other partition.
        - `weight`: how many jobs its turn has, 1 to 1,000. None: 1.
        - `actor`: who sets it. Default: the application's actor.

        Raises InvalidInput if a name or a number is not valid, and LimitConflict if the partitions
        of the queue take no turns; see `limit`.
        """
        given = {
            name: check(value, f"$.{name}")
            for name, value, check in (
                ("max_running", max_running, check_running),
                ("weight", weight, check_weight),
            )
            if value is not KEEP
        }
        self._change_partition(queue, partition, actor, given=given)

    def pause_partition(
        self, queue: str, partition: str, *, actor: str | None = None, reason: str | None = None
    ) -> None:
        """Stop giving jobs of a partition to workers, as `pause` does for a queue.

        - `queue`, `partition`: their names; `""` for the jobs without a partition. A partition need
          not have jobs, so look at its name in `partitions` first.
        - `actor`, `reason`: as in `pause`.

        Raises InvalidInput, and LimitConflict if the partitions of the queue take no turns; see
        `limit`.
        """
        reason = check_reason(reason)
        self._change_partition(queue, partition, actor, paused=True, reason=reason)

    def resume_partition(self, queue: str, partition: str, *, actor: str | None = None) -> None:
        """Give jobs of a partition to workers again that was paused or met a rate limit outside.

        - `queue`, `partition`: their names; `""` for the jobs without a partition.
        - `actor`: who resumes it. Default: the application's actor.

        Raises InvalidInput.
        """
        self._change_partition(queue, partition, actor, paused=False)

    def partitions(self, queue: str, limit: int = 20) -> Sequence[PartitionState]:
        """Return the partitions of a queue that have jobs or settings, those with most jobs first.

        - `queue`: the name of a queue with limits.
        - `limit`: how many, 1 to 1,000. Default: 20.

        Raises InvalidInput.
        """
        name, most = check_name(queue, "queue", "$.queue"), whole(limit, 1, 1_000, "$.limit")
        require(self._core.queues, [name])
        return queues.partitions(self._core.limited_store.read, name, most)

    def pass_over(self, queue: str, partition: str, *, actor: str | None = None) -> str | None:
        """Let a partition continue that a failed job has halted; see `ordered` of `limit`.

        The job stays failed. If it is retried later, it is the first of its partition again.

        - `queue`, `partition`: their names; `""` for the jobs without a partition.
        - `actor`: who passes over it. Default: the application's actor.

        Returns the id of that job, or None if the partition does not wait for a failed one.
        Raises InvalidInput.
        """
        return self._write(queue, partial(queues.pass_over, partition=_place(partition)), actor)

    def _change_partition(
        self, queue: str, partition: str, actor: str | None, **change: Any
    ) -> None:
        act = partial(queues.change_partition, partition=_place(partition), **change)
        self._write(queue, act, actor)

    def _write(
        self, queue: str, act: Callable[..., T], actor: str | None, *, limits: bool = False
    ) -> T:
        name, by = check_name(queue, "queue", "$.queue"), self._core.signed(actor)
        require(self._core.queues, [name])
        write = partial(act, name=name, actor=by)
        return self._core.limited_store.write("queue", write, limits=limits).result()


def _place(partition: str) -> str:
    return "" if partition == "" else check_partition(partition)


class Workers(Noun):
    """The workers of one database, on all machines."""

    def list(self) -> list[WorkerState]:
        """Return the workers that asked for jobs lately."""
        return self._core.limited_store.read.workers(self._core.queues)


class Types(Noun):
    """The types whose handlers a worker or a server of this database has or had."""

    def list(self) -> list[TypeState]:
        """Return the types, by name: at most 2,000, those seen last."""
        own = self._core.queues
        found = types.every(self._core.limited_store.read).values()
        if own is None:
            return list(found)
        return [_for_own(type, own) for type in found if includes(own, type.queue)]

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


def _for_own(type: TypeState, own: Patterns) -> TypeState:
    """Name no pattern of queues that another token may use and this one may not."""
    of = type.queues
    if of is None:
        return type
    shared = {one for one in of if includes(own, one)} | {one for one in own if includes(of, one)}
    return replace(type, queues=tuple(sorted(shared)))


def part_of_name(given: Any, path: str) -> str | None:
    """Return what may be in the name of a queue, None for nothing; raises InvalidInput."""
    fits = isinstance(given, str) and given.isascii() and given.isprintable()
    if given is None or (fits and len(given) <= MAX_NAME_LENGTH):
        return given  # type: ignore[no-any-return]
    raise InvalidInput(f"give at most {MAX_NAME_LENGTH} printable ASCII characters", path=path)
