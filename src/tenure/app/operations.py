"""What operators and the sweeper do: the half of the door that changes jobs already stored."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta

from tenure import lifecycle
from tenure.app.queries import MAX_COUNTED, MAX_LISTED, Queries
from tenure.errors import BulkNotFound, InvalidInput
from tenure.jobs import durations, filters, ids, payload
from tenure.jobs.bulk_actions import Action, Bulk
from tenure.jobs.enqueue import MAX_RETRIES, Duration, whole
from tenure.jobs.progress import Progress, no_progress
from tenure.jobs.queries import Filter
from tenure.lifecycle import SETTLED, Job
from tenure.store import migrate_store, search
from tenure.store.bulk import about
from tenure.store.doctor import schema_version
from tenure.store.transitions import Steps
from tenure.telemetry import logs
from tenure.tokens.registry import Tokens
from tenure.webhooks.registry import Webhooks

log = logging.getLogger(__name__)


class Operations(Queries):
    """Every change that people and the sweeper ask for, in the name of `actor`."""

    def __init__(self, database: str, actor: str) -> None:
        super().__init__(database)
        self.actor = payload.check_label(actor, "actor", "$.actor")

    # --- jobs and queues

    def cancel(self, job_id: str, *, actor: str | None = None) -> Job:
        """Cancel a pending or processing job. Raises JobNotFound or IllegalTransition."""
        event = lifecycle.Cancelled(actor=actor or self.actor)
        return self._logged(self._store.apply(job_id, event).result())

    def retry(self, job_id: str, *, more_retries: int = 1, actor: str | None = None) -> Job:
        """Run a job that failed for good again, with `more_retries` added to its limit."""
        more = whole(more_retries, 1, MAX_RETRIES, "$.more_retries")
        event = lifecycle.Retried(more_retries=more, actor=actor or self.actor)
        return self._logged(self._store.apply(job_id, event).result())

    def _logged(self, job: Job) -> Job:
        logs.log_steps(log, [job])
        return job

    def start_bulk(
        self,
        action: str,
        filter: Filter,
        *,
        more_retries: int = 1,
        actor: str | None = None,
    ) -> Bulk:
        """Begin to `retry` or `cancel` all jobs that fit now, as one action on record.

        `step_bulk` goes on with it, and so does every sweeper, until it has been at all of them.
        Jobs that are added or fail from now on are left alone. Raises InvalidInput.
        """
        total = self.count_matching(filter, action=action, at_most=MAX_COUNTED)
        bulk_id = ids.new_id()
        self._store.start_bulk(
            id=bulk_id,
            action=Action(action),
            filter=filter,
            more_retries=whole(more_retries, 1, MAX_RETRIES, "$.more_retries"),
            actor=payload.check_label(actor or self.actor, "actor", "$.actor"),
            total=total,
        ).result()
        begun = self.bulk(bulk_id)
        log.info("bulk_started: %s", _told(begun), extra={"actor": begun.actor})
        return begun

    def sample(self, filter: Filter, action: str, limit: int = 5) -> list[Job]:
        """A few of the jobs that an action would change, after a bounded look."""
        query = about(
            filters.checked(filter), filters.sources(filters.action_of(action)), limit=limit
        )
        return list(search.page(self._store.read, query).jobs)

    def step_bulk(self, bulk_id: str) -> Bulk:
        """One bite of a bulk action, if it has not ended; the action as it stands then."""
        found = self.bulk(bulk_id)
        if found.finished_at is None:
            self._batch(found)
        return self.bulk(bulk_id)

    def step_bulks(self) -> int:
        """One bite of every bulk action that has not ended; how many there were."""
        unfinished = self._store.read.bulks(MAX_LISTED, unfinished=True)
        for one in unfinished:
            self._batch(one)
        return len(unfinished)

    def _batch(self, bulk: Bulk) -> None:
        if self._store.step_bulk(bulk, filters.sources(bulk.action)):
            ended = self.bulk(bulk.id)
            log.info("bulk_ended: %s", _told(ended), extra={"actor": ended.actor})

    def bulk(self, bulk_id: str) -> Bulk:
        """A bulk action as it stands; raises BulkNotFound."""
        found = self._store.read.bulk(bulk_id) if ids.is_id(bulk_id) else None
        if found is None:
            raise BulkNotFound(bulk_id)
        return found

    def bulks(self, limit: int = 50) -> list[Bulk]:
        """Bulk actions, newest first; the last 1,000 are on record."""
        return self._store.read.bulks(whole(limit, 1, MAX_LISTED, "$.limit"))

    def stop_bulk(self, bulk_id: str, *, actor: str | None = None) -> Bulk:
        """End a bulk action where it is; what it has changed stays. Raises BulkNotFound."""
        running = self.bulk(bulk_id).finished_at is None
        by = actor or self.actor
        self._store.stop_bulk(bulk_id, by).result()
        stopped = self.bulk(bulk_id)
        if running:
            log.info("bulk_stopped: %s", _told(stopped), extra={"actor": by})
        return stopped

    def pause(self, queue: str, *, actor: str | None = None) -> None:
        """Stop handing out jobs of a queue; those that run go on."""
        self._set_queue(queue, paused=True, actor=actor)

    def resume(self, queue: str, *, actor: str | None = None) -> None:
        """Hand out jobs of a queue again."""
        self._set_queue(queue, paused=False, actor=actor)

    def limit(self, queue: str, max_pending: int | None, *, actor: str | None = None) -> None:
        """Refuse jobs (QueueFull) that would make more than `max_pending` wait; None lifts it."""
        wanted = -1 if max_pending is None else whole(max_pending, 0, 2**53, "$.max_pending")
        self._set_queue(queue, max_pending=wanted, actor=actor)

    def _set_queue(
        self,
        queue: str,
        *,
        actor: str | None,
        paused: bool | None = None,
        max_pending: int | None = None,
    ) -> None:
        name = payload.check_name(queue, "queue", "$.queue")
        self._store.set_queue(
            name, paused=paused, max_pending=max_pending, actor=actor or self.actor
        ).result()

    # --- the database

    def migrate(self, *, progress: Progress | None = None) -> tuple[int, int]:
        """Create or upgrade the database's schema now; its version before (0: none) and after.

        `tell` is called before each step: `tell(done, total, what)`, as a progress bar wants it.
        """
        return schema_version(self.database), migrate_store(self.database, progress or no_progress)

    def recount(self) -> int:
        """Make `stats` agree with the jobs where `verify` found otherwise; how many differed.

        Nobody needs this who leaves the tables to Tenure. It reads every job; on SQLite writers
        wait for that.
        """
        return self._store.recount().result()

    # --- what the sweeper calls

    def sweep(self) -> list[Steps]:
        """End leases that have run out; the steps of each job concerned."""
        return self._store.sweep().result()

    def measure(self, *, yielding: bool = False) -> int:
        """Add moves that are not in the measures yet, up to 2,000; how many there were.

        Call again while the answer is not 0. It is no haste: `stats` is exact at any time. If
        `yielding`, none are added where another process has added some since the last call: of many
        that call it every second, one works, until it no longer does.
        """
        return self._store.measure(yielding=yielding)

    def prune(self, keep: Mapping[str, Duration]) -> int:
        """Delete jobs settled longer ago than `keep` says by status; how many were deleted.

        Works in bites; call again while the answer is not 0. Jobs whose moves are not measured yet,
        or not told to webhooks, stay until they are.
        """
        ages = retention(keep)
        now = self._store.read.clock()
        before = {status: now - timedelta(seconds=age) for status, age in ages.items()}
        return self._store.prune(before).result()

    # --- who else may come in, and who is told

    @property
    def tokens(self) -> Tokens:
        """The tokens that callers of the HTTP API send."""
        return Tokens(lambda: self._store, self.actor)

    @property
    def webhooks(self) -> Webhooks:
        """Who is told of moves by signed requests."""
        return Webhooks(lambda: self._store, self.actor)


def retention(keep: Mapping[str, Duration]) -> dict[str, float]:
    """How many seconds settled jobs are kept, by status; raises InvalidInput."""
    if unknown := keep.keys() - SETTLED:
        raise InvalidInput(
            f"jobs do not rest in {', '.join(sorted(map(str, unknown)))}; say how long to keep "
            f"those that are {', '.join(sorted(SETTLED))}",
            path="$.keep",
        )
    return {
        str(status): durations.seconds(age, path=f"$.keep.{status}") for status, age in keep.items()
    }


def _told(bulk: Bulk) -> str:
    """What a log line says of a bulk action; its jobs have none, there may be a million."""
    jobs = f"{bulk.total} jobs" if bulk.exact else f"{bulk.total} jobs or more"
    done = f"{bulk.changed} changed, {bulk.refused} refused"
    return f"{bulk.action} {jobs}, {done}, bulk action {bulk.id}"
