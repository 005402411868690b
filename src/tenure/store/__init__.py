"""The store: what keeps the jobs and decides what may happen to them.

`open_store(url)` gives a `Store` over SQLite or PostgreSQL. Writes answer with a future, which sync
callers wait on and async callers await; reads answer at once. One verb, one transaction.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from typing import Any, TypeVar

from tenure import failpoints
from tenure.errors import InvalidInput, StoreUnavailable
from tenure.jobs.bulk_actions import Bulk
from tenure.jobs.checked_job import CheckedJob, Enqueued
from tenure.jobs.progress import Progress, no_progress
from tenure.jobs.redaction import without_password
from tenure.jobs.webhook import Webhook
from tenure.jobs.work import ClaimRequest, Exchange, Report
from tenure.lifecycle import Event, Job, Status
from tenure.store import enqueue, migrate, transitions
from tenure.store.bulk import batch, next_ids
from tenure.store.commit import CallWork, Committer, EnqueueWork, ExchangeWork
from tenure.store.notify import Notifier
from tenure.store.protocol import Database, Reader
from tenure.store.tables.stats import Place
from tenure.tokens.scopes import AccessToken

__all__ = ["Store", "migrate_store", "open_store", "schema_of"]

T = TypeVar("T")

POSTGRES_WRITERS = 2
"""Connections of one process that write: one is executing while the other waits for the disk."""


class Store:
    """One database, as the application sees it. Safe to use from any thread; not after a fork."""

    def __init__(
        self,
        url: str,
        databases: Sequence[Database],
        reader: Reader,
        heart: Database | None = None,
    ) -> None:
        """`databases` write side by side; `heart` is a connection of its own for heartbeats."""
        self.url = url
        self.exchanges = len(databases) + 1
        """How many turns keep every writing connection busy: one is made ready meanwhile."""
        self._notifier = Notifier(reader.watch)
        self._committer = Committer(databases, self._notifier.notify)
        self._reader = reader
        self._measured: Place | None = None  # how far the ledger was measured, seen from here
        self._heart = heart
        self._heart_lock = threading.Lock()
        self._pid = os.getpid()

    # --- writes

    def add(self, checked_jobs: Sequence[CheckedJob]) -> Future[list[Enqueued]]:
        """Add jobs, all or none; answered once they are on disk.

        The future raises KeyConflict, QueueFull or StoreUnavailable.
        """
        return self._submit(EnqueueWork(checked_jobs)).future

    def exchange(self, reports: Sequence[Report], claim: ClaimRequest | None) -> Future[Exchange]:
        """A worker's turn in one transaction: record what finished, lease what fits."""
        return self._submit(ExchangeWork(reports, claim)).future

    def apply(self, job_id: str, event: Event) -> Future[Job]:
        """One event on one job. The future raises JobNotFound or IllegalTransition."""
        return self._act("operator", lambda db: transitions.apply(db, job_id, event))

    def start_bulk(self, **fields: Any) -> Future[None]:
        """Keep a new action on all jobs of a filter."""
        return self._act("bulk", lambda db: db.bulks.add(**fields))

    def step_bulk(self, bulk: Bulk, sources: Sequence[Status]) -> bool:
        """One bite of such an action, as it was read, unless it has gone on since.

        `sources` are the statuses that allow it. Whether this bite was the last one.
        """
        ids, cursor = next_ids(self.read, bulk, sources)
        return self._act("bulk", lambda db: batch(db, bulk, ids, cursor)).result()

    def stop_bulk(self, bulk_id: str, actor: str) -> Future[None]:
        """End such an action early."""
        return self._act("bulk", lambda db: db.bulks.stop(bulk_id, actor))

    def sweep(self, limit: int = 500) -> Future[list[transitions.Steps]]:
        """End up to `limit` leases that have run out; the steps of each job concerned."""
        return self._act("sweep", lambda db: transitions.sweep(db, limit))

    def prune(self, settled_before: Mapping[str, datetime], limit: int = 500) -> Future[int]:
        """Delete jobs (status -> settled before) and their ledger; how many were deleted."""
        return self._act("prune", lambda db: db.prune(settled_before, limit))

    def measure(self, *, yielding: bool = False) -> int:
        """Add the next bite of the ledger to the measures; how many moves it had.

        0 where there is nothing new, or somebody else has measured it meanwhile; if `yielding`,
        also where somebody else has measured anything since this was called last.
        """
        known = self._measured if yielding else None
        self._measured, batch = self.read.measured.next_batch(known)
        failpoints.hit("measure.between_read_and_write")
        if batch is None:
            return 0
        added = self._act("measure", lambda db: db.measures.add(batch, db.now()), quiet=True)
        if not added.result():
            return 0
        self._measured = batch.end
        return batch.transitions

    def recount(self) -> Future[int]:
        """Make the counts those of the jobs; how many counts were wrong."""
        return self._act("measure", lambda db: db.measures.recount(), quiet=True)

    def set_queue(
        self,
        name: str,
        *,
        paused: bool | None = None,
        max_pending: int | None = None,
        actor: str = "operator",
    ) -> Future[None]:
        """Pause or resume a queue, or limit its pending jobs (-1 lifts the limit)."""
        return self._act(
            "queue",
            lambda db: db.set_queue(name, paused=paused, max_pending=max_pending, actor=actor),
        )

    def add_token(self, **fields: Any) -> Future[bool]:
        """Keep a new token of the HTTP API; False if its name is taken."""
        return self._act("operator", lambda db: db.tokens.add(**fields))

    def revoke_token(self, name: str, actor: str) -> Future[None]:
        """End a token."""
        return self._act("operator", lambda db: db.tokens.revoke(name, actor))

    def note_token_use(self, names: Iterable[str]) -> Future[None]:
        """Write down that tokens are in use."""
        return self._act("operator", lambda db: db.tokens.note_use(names))

    def add_webhook(self, **fields: Any) -> Future[bool]:
        """Keep a new webhook; False if its name is taken."""
        return self._act("operator", lambda db: db.webhooks.add(**fields))

    def remove_webhook(self, name: str) -> Future[None]:
        """Remove a webhook."""
        return self._act("operator", lambda db: db.webhooks.remove(name))

    def forward(
        self, hook: Webhook, deliveries: Sequence[CheckedJob], position: str
    ) -> Future[bool]:
        """Add the deliveries of the moves up to `position`; False if somebody else has."""
        return self._act(
            "webhook",
            lambda db: enqueue.forward(db, hook, deliveries, position),
            quiet=not deliveries,
        )

    def renew(self, leases: Sequence[tuple[str, str]], lease_seconds: float) -> set[str]:
        """Extend (job id, lease id) leases by heartbeat; the lease ids that are still held."""
        self._refuse_copies()
        if self._heart is None:
            return self._act("heartbeat", lambda db: db.renew(leases, lease_seconds)).result()
        with self._heart_lock:
            try:
                self._heart.begin()
                held = self._heart.renew(leases, lease_seconds)
                failpoints.hit("heartbeat.before_commit")
                self._heart.commit()
                failpoints.hit("heartbeat.after_commit")
                return held
            except Exception as error:
                self._heart.rollback()
                raise StoreUnavailable(f"the heartbeat failed: {error}") from error

    def _submit(self, work: W) -> W:
        self._refuse_copies()
        self._committer.submit(work)
        return work

    def _refuse_copies(self) -> None:
        if os.getpid() != self._pid:
            raise StoreUnavailable(
                "this store was opened before a fork: close it before, and open it in the child"
            )

    def _act(self, name: str, act: Callable[[Database], T], *, quiet: bool = False) -> Future[T]:
        return self._submit(CallWork(name, act, quiet=quiet)).future

    # --- reads

    def tokens(self) -> list[AccessToken]:
        """Every token of the HTTP API there ever was, newest first."""
        return self.read.tokens()

    @property
    def read(self) -> Reader:
        """The reading side."""
        self._refuse_copies()
        return self._reader

    def on_work(self, notify: Callable[[], None]) -> Callable[[], None]:
        """Have `ring` called, from any thread, when there may be work; returns the way to stop."""
        self._refuse_copies()
        return self._notifier.subscribe(notify)

    def close(self) -> None:
        """Commit what is waiting, then let go of the database. In a forked copy: nothing."""
        if os.getpid() != self._pid:
            return  # the connections are the parent's, to end in its order
        self._committer.close()
        self._notifier.close()
        if self._heart is not None:
            self._heart.close()
        self._reader.close()


W = TypeVar("W", EnqueueWork, ExchangeWork, CallWork)


POSTGRES = ("postgresql:", "postgres:")


def _is_known(url: str) -> bool:
    return url.startswith(("sqlite:", *POSTGRES))


def migrate_store(url: str, progress: Progress = no_progress) -> int:
    """Create or upgrade the schema at `url`; the version it has now."""
    if url.startswith("sqlite:"):
        from tenure.store.sqlite import connection as sqlite_connection
        from tenure.store.sqlite import schema as sqlite_schema

        return sqlite_schema.upgrade(sqlite_connection.usable_path_of(url), progress)
    if url.startswith(POSTGRES):
        from tenure.store.postgres import schema as postgres_schema

        return postgres_schema.upgrade(url, progress)
    raise InvalidInput(
        f"{without_password(url)!r} is no database URL: use sqlite:///jobs.db or "
        "postgresql://host/db"
    )


def schema_of(url: str) -> tuple[int, int]:
    """The version of the schema at `url`, 0 where there is none, and the one that is needed."""
    if url.startswith("sqlite:"):
        from tenure.store.sqlite import schema as sqlite_schema
        from tenure.store.sqlite.connection import usable_path_of

        return sqlite_schema.found(usable_path_of(url)), migrate.newest("sqlite")
    from tenure.store.postgres import schema as postgres_schema

    return postgres_schema.found(url), migrate.newest("postgres")


def open_store(url: str, *, make: bool = True) -> Store:
    """Open the database at `url`, upgrading its schema if need be.

    Where there is none it is made, or unless `make` StoreUnavailable raised.
    """
    if not make and _is_known(url) and not schema_of(url)[0]:
        raise StoreUnavailable(
            f"the database {without_password(url)} is not there, or holds nothing of Tenure: is "
            "the address right? Adding a job makes it, and so does `tenure migrate`"
        )
    migrate_store(url)
    if url.startswith("sqlite:"):
        from tenure.store.sqlite import connection as sqlite_connection
        from tenure.store.sqlite import reader as sqlite_reader
        from tenure.store.sqlite import writer as sqlite

        path = sqlite_connection.path_of(url)
        return Store(url, [sqlite.Sqlite(path)], sqlite_reader.SqliteReader(path))
    from tenure.store.postgres import lanes as postgres_lanes
    from tenure.store.postgres import reader as postgres_reader
    from tenure.store.postgres import writer as postgres

    lanes = postgres_lanes.Lanes()
    reader = postgres_reader.PostgresReader(url)
    return Store(
        url,
        [postgres.Postgres(url, lanes, reader.reconnect) for _ in range(POSTGRES_WRITERS)],
        reader,
        heart=postgres.Postgres(url),
    )
