"""Actions on all jobs that match a filter: `app.bulk`."""

from __future__ import annotations

import logging
from functools import partial

from tenure.app.core import MAX_COUNTED, Core, Noun
from tenure.errors import BulkNotFound, InvalidInput, StoreUnavailable, TenureError
from tenure.lifecycle import Job
from tenure.rules.jobs import MAX_RETRIES
from tenure.rules.search import MAX_LISTED, Bulk, Filter, action_of, check_filter
from tenure.rules.tokens import covers
from tenure.store import search
from tenure.store.tables import bulk as bulks
from tenure.values import ids
from tenure.values.names import check_reason
from tenure.values.numbers import whole
from tenure.values.text import quantity

log = logging.getLogger(__name__)

EVERY_JOB = (
    "this would be about every job; give a field a value, such as status, or created_before: now"
)


class BulkActions(Noun):
    """Bulk actions of one database: retry or cancel of all jobs that match a filter.

    An action is kept in the database. Servers, and workers beside the database, carry it out in
    batches of 500 jobs until it has been at all of them, whatever becomes of who started it.
    """

    def start(
        self,
        action: str,
        filter: Filter,
        *,
        more_retries: int = 1,
        actor: str | None = None,
        reason: str | None = None,
    ) -> Bulk:
        """Start to change all jobs that match now; return the action.

        - `action`: `retry`, `cancel`, or `run_now`: pending jobs that are not due run at once;
          snoozed ones only if the filter has the state `snoozed`.
        - `filter`: which jobs, as a `Filter` from `tenure.rules.search`, with one field at least: a
          value that is None by mistake must not mean every job. Jobs whose status does not allow
          the action are left out, and so are jobs that are added or fail from now on.
        - `more_retries`: with `retry`, how much to add to each job's `max_retries`, 1 to 1,000.
        - `actor`: who does this. Default: the application's actor.
        - `reason`: why, for the ledger; at most 500 characters. Default: None.

        Raises InvalidInput.
        """
        core = self._core
        filter, wanted = core.limited(filter), action_of(action)
        if filter == Filter(hidden=filter.hidden, within=filter.within):
            raise InvalidInput(EVERY_JOB, path="$.filter")
        total = core.count(filter, action=wanted, at_most=MAX_COUNTED)
        bulk_id = ids.new_id()
        begin = partial(
            bulks.start,
            id=bulk_id,
            action=wanted,
            filter=filter,
            more_retries=whole(more_retries, 1, MAX_RETRIES, "$.more_retries"),
            actor=core.signed(actor),
            reason=check_reason(reason),
            total=total,
        )
        core.limited_store.write("bulk", begin).result()
        started = self.get(bulk_id)
        _log("bulk_started", started, started.actor)
        return started

    def sample(self, filter: Filter, action: str, limit: int = 5) -> list[Job]:
        """Return a few of the jobs that an action would change, after a look at bounded rows."""
        wanted = self._core.limited(check_filter(filter))
        most = whole(limit, 1, MAX_LISTED, "$.limit")
        query = bulks.about(wanted, action_of(action), limit=most)
        return [*search.page(self._core.limited_store.read, query).jobs]

    def step(self, bulk_id: str) -> Bulk:
        """Do one batch of an action now, unless it has ended; return the action after that.

        Only needed where neither a server nor a worker beside the database runs. Raises
        BulkNotFound.
        """
        found = self.get(bulk_id)
        if found.finished_at is None:
            run_batch(self._core, found)
        return self.get(bulk_id)

    def get(self, bulk_id: str) -> Bulk:
        """Return a bulk action; raises BulkNotFound."""
        read = self._core.limited_store.read
        found = bulks.get(read, bulk_id) if ids.is_id(bulk_id) else None
        if found is None or not self._shows(found):
            raise BulkNotFound(bulk_id)
        return found

    def stop(self, bulk_id: str, *, actor: str | None = None) -> Bulk:
        """End a bulk action where it is; return it. What it has changed stays.

        - `bulk_id`: one that has ended does not change.
        - `actor`: who stops it. Default: the application's actor.

        Raises BulkNotFound.
        """
        running = self.get(bulk_id).finished_at is None
        by = self._core.signed(actor)
        self._core.limited_store.write("bulk", lambda db: bulks.stop(db, bulk_id, by)).result()
        stopped = self.get(bulk_id)
        if running:
            _log("bulk_stopped", stopped, by)
        return stopped

    def list(self, limit: int = 50) -> list[Bulk]:
        """Return bulk actions, newest first; the last 1,000 are kept.

        - `limit`: 1 to 500. Default: 50.

        Raises InvalidInput.
        """
        most = whole(limit, 1, MAX_LISTED, "$.limit")
        if self._core.queues is None:
            return bulks.latest(self._core.limited_store.read, most)
        every = bulks.latest(self._core.limited_store.read, bulks.MAX_KEPT)
        return [bulk for bulk in every if self._shows(bulk)][:most]

    def _shows(self, bulk: Bulk) -> bool:
        """Whether an action is about the queues of this core only."""
        about = bulk.filter.within if bulk.filter.queue is None else (bulk.filter.queue,)
        return covers(self._core.queues, about)


def run_batches(core: Core) -> int:
    """Do one batch of every action that has not ended; return how many there were.

    Of actions that are refused, such as one that is gone by now, it raises the error of the first.
    """
    unfinished = bulks.latest(core.store.read, MAX_LISTED, unfinished=True)
    refused = list[TenureError]()
    for bulk in unfinished:
        try:
            run_batch(core, bulk)
        except StoreUnavailable:
            raise
        except TenureError as error:  # it holds up no other one
            refused.append(error)
    for refusal in refused:
        raise refusal
    return len(unfinished)


def run_batch(core: Core, bulk: Bulk) -> None:
    """Do the next batch of an action that has not ended."""
    if bulks.step(core.store, bulk):
        _log("bulk_ended", BulkActions(core).get(bulk.id), bulk.actor)


def _log(event: str, bulk: Bulk, actor: str) -> None:
    """Log one line for the action; its jobs get none, as there may be a million."""
    jobs = quantity(bulk.total, "job") + ("" if bulk.exact else " or more")
    done = f"{bulk.changed} changed, {bulk.refused} refused"
    log.info(
        "%s: %s",
        event,
        f"{bulk.action} {jobs}, {done}, bulk action {bulk.id}",
        extra={"actor": actor},
    )
