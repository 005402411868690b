"""The duties that keep a database in order: `Tenure.maintenance()`. Internal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from datetime import timedelta

from tenure.app.bulk import run_batch
from tenure.app.core import MAX_LISTED, Core
from tenure.errors import InvalidInput
from tenure.jobs import durations
from tenure.jobs.enqueue import Duration
from tenure.lifecycle import SETTLED
from tenure.store.tables.bulk import StoredBulks
from tenure.store.tables.tokens import StoredTokens
from tenure.store.tables.webhooks import StoredWebhooks
from tenure.store.transitions import Steps
from tenure.webhooks import deliveries


class Maintenance:
    """What servers, and workers beside the database, do to it once a second or when asked."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def sweep(self) -> list[Steps]:
        """End leases that have expired; return the steps of each job."""
        return self._core.store.sweep().result()

    def measure(self, *, yielding: bool = False) -> int:
        """Add up to 2,000 transitions to the statistics; return how many there were.

        Call again while the answer is not 0. With `yielding`, do nothing if another process has
        measured since the last call, so that one of many callers does the work.
        """
        return self._core.store.update_stats(yielding=yielding)

    def prune(self, keep: Mapping[str, Duration]) -> int:
        """Delete a batch of jobs settled longer ago than `keep` says by status; return how many.

        Call again while the answer is not 0. Jobs stay until all their transitions are in the
        statistics and delivered to webhooks.
        """
        ages = retention(keep)
        now = self._core.clock()
        before = {status: now - timedelta(seconds=age) for status, age in ages.items()}
        return self._core.store.prune(before).result()

    def step_bulk_actions(self) -> int:
        """Do one batch of every bulk action that has not ended; return how many there were."""
        unfinished = StoredBulks(self._core.store).latest(MAX_LISTED, unfinished=True)
        for bulk in unfinished:
            run_batch(self._core, bulk)
        return len(unfinished)

    def forward_to_webhooks(self, *, without_errors: bool = False) -> int:
        """Add delivery jobs for the next transitions; return how many webhooks have more."""
        return deliveries.forward(StoredWebhooks(self._core.store), without_errors=without_errors)

    def webhook_target(self, name: str, id: str) -> tuple[str, str] | None:
        """The URL and the secret of a webhook; None if it is gone."""
        return StoredWebhooks(self._core.store).target(name, id)

    def note_token_use(self, names: Iterable[str]) -> Future[None]:
        """Record that tokens are in use."""
        return StoredTokens(self._core.store).note_use(names)


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
