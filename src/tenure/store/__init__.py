"""The store: what keeps the jobs and decides what may happen to them.

`open_store(url)` gives a `Store` over SQLite or PostgreSQL. Writes answer with a future, which sync
callers wait on and async callers await; reads answer at once. One verb, one transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from msgspec.structs import replace

from tenure.errors import StoreUnavailable, TenureError
from tenure.events import Event, Retried
from tenure.lifecycle import Job
from tenure.rules.jobs import CheckedJob, Enqueued
from tenure.rules.reports import ClaimRequest, Duty, Exchange, HeldLeases, Report
from tenure.rules.steps import StepAnswer, StepCall
from tenure.settings import is_sqlite
from tenure.store import migrate, transitions
from tenure.store.commit import Committer
from tenure.store.database import Database
from tenure.store.doctor import problem
from tenure.store.duties import look
from tenure.store.notify import COMMIT, Notifier
from tenure.store.reader import Reader
from tenure.store.tables import retention, steps, unique_keys
from tenure.store.tables.stats import Place, add_next, reach
from tenure.store.waits import Doubt, Waits
from tenure.store.work import CallWork, EnqueueWork, ExchangeWork, nothing
from tenure.values.findings import Check, Progress, no_progress
from tenure.values.redaction import without_password

T = TypeVar("T")

POSTGRES_WRITERS = 2
"""Connections of one process that write: one is executing while the other waits for the disk."""

FULL_SECONDS = 10.0
"""How long a store counts as unable to commit after a write that found the disk full."""


class Store:
    """One database, as the application sees it. Safe to use from any thread, but not after a fork.

    Side tables have their verbs in `tables/`, over `read` and `write`.
    """

    def __init__(
        self,
        databases: Sequence[Database],
        reader: Reader,
        heart: Database | None = None,
        direct: Database | None = None,
    ) -> None:
        """`databases` write side by side; `heart` is a separate connection for heartbeats.

        `direct` is one on which callers add a job themselves.
        """
        self.exchanges = len(databases) + 1
        """How many exchanges keep every writing connection busy: one more is prepared meanwhile."""
        self._notifier = Notifier(reader.watch, reader.attend)
        watch = partial(self._notifier.subscribe, topic=COMMIT) if reader.sees_commits else None
        self._waits = Waits(reader, watch)
        self._committer = Committer(
            databases, self._notifier.notify, direct=direct, on_commit=self._waits.wake
        )
        self._databases = databases
        self._reader = reader
        self._stats_place: Place | None = None  # up to where this process knows the statistics
        self._heart = Committer([heart], lambda: None) if heart else self._committer

    # --- writes

    def add(
        self, checked_jobs: Sequence[CheckedJob], *, waits: bool = False
    ) -> Future[list[Enqueued]]:
        """Add jobs, all or none. The future has a result once they are on disk.

        If the caller `waits` for that, one job may be added before this returns.
        The future raises KeyConflict, QueueFull or StoreUnavailable.
        """
        submit = self._committer.do if waits else self._committer.submit
        return submit(EnqueueWork(checked_jobs)).future

    def wake(self) -> None:
        """Notify waiting workers, here and elsewhere. Does not wait, and never raises."""
        with suppress(StoreUnavailable):
            self._committer.wake()

    def exchange(self, reports: Sequence[Report], claim: ClaimRequest | None) -> Future[Exchange]:
        """Record what a worker finished and lease what it can take, in one transaction.

        When the next job falls due is answered only if new jobs are sure to be notified of.
        """
        if claim is not None and claim.next_due and not self._reader.hears:
            claim = replace(claim, next_due=False)
        return self._committer.submit(ExchangeWork(reports, claim)).future

    def apply(self, job_id: str, event: Event, *, from_scratch: bool = False) -> Future[Job]:
        """Apply an event to a job; a retry `from_scratch` deletes what its attempts have kept.

        The future raises JobNotFound or IllegalTransition.
        """

        def act(db: Database) -> Job:
            if not isinstance(event, Retried):
                return transitions.apply(db, job_id, event)
            job = transitions.retry(db, job_id, event)
            if from_scratch:
                steps.forget(db, job_id)
            return job

        restores = isinstance(event, Retried)  # and so locks others
        return self.write("operator", act, jobs=[job_id], alone=restores)

    def look(self) -> frozenset[Duty]:
        """Return the regular duties that there is work for."""
        if self._reader.spares_writer:
            return look(self.read)
        return self.read_as_writer("look", look).result()

    def sweep(self, limit: int = 500) -> Future[list[transitions.Steps]]:
        """End up to `limit` leases that have run out. The result is the steps of each job."""
        return self.write("sweep", lambda db: transitions.sweep(db, limit), brings=bool)

    def expire(self, limit: int = 500) -> Future[list[transitions.Steps]]:
        """Cancel up to `limit` jobs that had to start before now, and return their steps."""
        return self.write("sweep", lambda db: transitions.expire(db, limit), brings=nothing)

    def time_out(self, limit: int = 500) -> Future[list[transitions.Steps]]:
        """Let up to `limit` jobs run whose wait for a signal has expired; return their steps."""
        return self.write("sweep", lambda db: transitions.time_out(db, limit), brings=bool)

    def follow(self) -> Future[bool]:
        """Count, skip and restore some waiting jobs. The result is whether any was left."""
        return self.write("dependencies", transitions.advance, brings=bool)

    def forget_throttles(self) -> Future[int]:
        """Delete some of the `within` of unique jobs that are over. The result is how many."""
        return self.write("sweep", unique_keys.forget, brings=nothing, jobs=())

    def set_times_right(self, limit: int = 500) -> Future[list[transitions.Steps]]:
        """If the clock was ahead and was put back, let up to `limit` jobs run that wait for it.

        The result is the steps of each job.
        """
        return self.write("sweep", lambda db: transitions.set_right(db, limit), brings=bool)

    def prune(
        self,
        settled_before: Mapping[str, datetime],
        limit: int = 500,
        note: retention.Note = lambda _: None,
    ) -> Future[int]:
        """Delete jobs (status -> settled before) and their ledger, as `retention.prune` does."""
        prune = partial(retention.prune, settled_before=settled_before, limit=limit, note=note)
        return self.write("prune", prune, brings=nothing)

    def update_stats(self, *, yielding: bool = False) -> int:
        """Add the next batch of the ledger to the statistics; return how many transitions it had.

        Returns 0 if nothing is new, or if another process has added the same batch. If `yielding`,
        also if another process has added any since the last call.
        """
        known = self._stats_place if yielding else None
        read = self.read.stats.next_batch(known) if self._reader.spares_writer else None
        add = partial(add_next, known=known, read=read)
        self._stats_place, added = self.write("measure", add, brings=nothing).result()
        return added

    def stats_reach(self) -> tuple[Place, timedelta]:
        """Return the end of the ledger, and how far the statistics are behind if they are."""
        return self.write("measure", reach, brings=nothing, jobs=()).result()

    def renew(self, leases: Sequence[tuple[str, str]], lease_seconds: float) -> set[str]:
        """Extend (job id, lease id) leases; return the lease ids that are still held."""
        return self._on_heart(lambda db: db.renew(leases, lease_seconds))

    def heartbeat(self, leases: HeldLeases, lease_seconds: float) -> Mapping[str, str]:
        """Extend (job id, lease id) leases; return by lease id which event ended the others.

        The event is "" for a lease that the ledger does not know.
        """
        held = self.renew(leases, lease_seconds)
        others = [lease for lease in leases if lease[1] not in held]
        if not others:
            return {}
        ended = self._on_heart(lambda db: db.settled_as(others))
        return {lease[1]: ended.get(lease, "") for lease in others}

    def record_progress(self, entries: Sequence[steps.Entry]) -> int:
        """Store the progress of attempts whose lease is held; return how many these were."""
        return self._on_heart(lambda db: steps.record(db, entries))

    def ask(self, job_id: str, lease_id: str, call: StepCall) -> Future[StepAnswer]:
        """Return what the attempt with a lease asks for, as `steps.answer`."""
        act = partial(steps.answer, job_id=job_id, lease_id=lease_id, call=call)
        return self.write("step", act, brings=nothing, jobs=())

    def _on_heart(self, act: Callable[[Database], T]) -> T:
        """Call `act`, which waits for no job that others hold, on the connection of heartbeats."""
        work = CallWork("heartbeat", act, brings=nothing, job_ids=())
        answer: T = self._heart.submit(work).future.result()
        return answer

    def write(
        self,
        name: str,
        act: Callable[[Database], T],
        *,
        brings: Callable[[T], bool] = lambda _: True,
        jobs: Sequence[str] | None = None,
        alone: bool = False,
        limits: bool = False,
    ) -> Future[T]:
        """Call `act` in a transaction, perhaps with other work. Its result is the future's.

        `name` is that of the failpoints before and after the commit. `brings` says of the result
        whether a job may be ready now; if not, no worker is notified. A TenureError undoes what
        `act` did, alone. `jobs`, `alone` and `limits` are as in `CallWork`.
        """
        work = CallWork(name, act, brings=brings, job_ids=jobs, alone=alone, limits=limits)
        return self._committer.submit(work).future

    def read_as_writer(
        self, name: str, act: Callable[[Database], T], *, waits: bool = False
    ) -> Future[T]:
        """Call `act`, which reads with one statement, on a connection that writes; see `write`."""
        work = CallWork(name, act, brings=nothing, job_ids=(), reads=True)
        submit = self._committer.do if waits else self._committer.submit
        return submit(work).future

    # --- reads

    def check(self) -> None:
        """Raise StoreUnavailable if the store does not answer or, as far as is known, commit."""
        self.read.check()
        ago = time.monotonic() - max(db.full_at for db in self._databases)
        if ago < FULL_SECONDS:
            error = StoreUnavailable(f"the disk was full, or failed, at a write {ago:.0f} s ago")
            error._known = str(error)
            raise error

    @property
    def read(self) -> Reader:
        self._committer.refuse_copies()
        return self._reader

    def on_work(self, notify: Callable[[], None]) -> Callable[[], None]:
        """Call `notify`, from any thread, when there may be work; return what ends that."""
        self._committer.refuse_copies()
        return self._notifier.subscribe(notify)

    def on_end(self, worker: str, notify: Callable[[], None]) -> Callable[[], None]:
        """Call `notify`, from any thread, when leases of `worker` may have ended; likewise."""
        self._committer.refuse_copies()
        return self._notifier.subscribe(notify, worker)

    def wait(self, job_id: str, doubt: Doubt | None = None) -> Future[Job]:
        """Return a future of the settled job, as `Waits.add` does."""
        self._committer.refuse_copies()
        return self._waits.add(job_id, doubt)

    def close(self) -> None:
        """Commit what is waiting, then disconnect. Do nothing in the child of a fork."""
        if self._committer.is_copy:
            return  # the parent closes its connections
        self._waits.close()
        self._committer.close()
        self._notifier.close()
        if self._heart is not self._committer:
            self._heart.close()
        self._reader.close()


def migrate_store(url: str, progress: Progress = no_progress) -> int:
    """Create or upgrade the schema at `url`; return the version it has now."""
    if is_sqlite(url):
        from tenure.store.sqlite import schema as sqlite_schema
        from tenure.store.sqlite.connection import usable_path_of

        return sqlite_schema.upgrade(usable_path_of(url), progress)
    from tenure.store.postgres import schema as postgres_schema

    return postgres_schema.upgrade(url, progress)


def migration_sql(url: str, engine: str | None = None) -> str:
    """Return the SQL of an upgrade; with an `engine`, that of a new database of it, unconnected."""
    version = 0
    if engine is None:
        version, needed = schema_of(url)
        if version >= needed:
            migrate.check(version, needed, without_password(url))
            return f"-- schema {version}: nothing to do\n"
    elif is_sqlite(url) != (engine == "sqlite"):
        url = "sqlite:///tenure.db" if engine == "sqlite" else "postgresql://"
    if is_sqlite(url):
        from tenure.store.sqlite import schema as sqlite_schema

        return sqlite_schema.script(version)
    from tenure.store.postgres import schema as postgres_schema

    return postgres_schema.script(url, version)


def schema_of(url: str) -> tuple[int, int]:
    """Return the version of the schema at `url` (0: none) and the one that is needed."""
    if is_sqlite(url):
        from tenure.store.sqlite import schema as sqlite_schema
        from tenure.store.sqlite.connection import usable_path_of

        return sqlite_schema.found(usable_path_of(url)), migrate.newest("sqlite")
    from tenure.store.postgres import schema as postgres_schema

    return postgres_schema.found(url), migrate.newest("postgres")


def check_store(url: str) -> list[Check]:
    """Return what `tenure doctor` finds: do the settings hold that Tenure's promises need?

    A database that does not answer is a problem, too.
    """
    checks: list[Check] = []
    try:
        if is_sqlite(url):
            from tenure.store.sqlite.doctor import check_sqlite

            checks.extend(check_sqlite(url))
        else:
            from tenure.store.postgres.doctor import check_postgres

            checks.extend(check_postgres(url))
    except (TenureError, OSError) as error:
        checks.append(problem("database", "cannot be used", str(error)))
    return checks


def open_store(url: str, *, make: bool = True, upgrade: bool = False) -> Store:
    """Open the database at `url`, whose schema has to be this version's or one newer.

    If there is none it is made, or StoreUnavailable is raised if `make` is False. An older one is
    upgraded if `upgrade`; otherwise SchemaMismatch is raised, as for one that is too new.
    """
    if is_sqlite(url):
        from tenure.store.sqlite import (
            connection as sqlite_connection,
        )
        from tenure.store.sqlite import (
            reader as sqlite_reader,
        )
        from tenure.store.sqlite import (
            schema as sqlite_schema,
        )
        from tenure.store.sqlite import (
            writer as sqlite,
        )

        path = sqlite_connection.usable_path_of(url)
        reading = sqlite_reader.SqliteReader(path)
        with ExitStack() as unless_opened:
            unless_opened.callback(reading.close)
            found = sqlite_schema.found(path, reading.connected())
            _check_schema(url, found, migrate.newest("sqlite"), make=make, upgrade=upgrade)
            unless_opened.pop_all()
        writer = sqlite.Sqlite(path)
        return Store([writer], reading, direct=writer.beside())
    _check_schema(url, *schema_of(url), make=make, upgrade=upgrade)
    from tenure.store.postgres import (
        lanes as postgres_lanes,
    )
    from tenure.store.postgres import (
        reader as postgres_reader,
    )
    from tenure.store.postgres import (
        writer as postgres,
    )

    lanes = postgres_lanes.PostgresLanes()
    reader = postgres_reader.PostgresReader(url)
    writers = [postgres.Postgres(url, lanes, reader.reconnect) for _ in range(POSTGRES_WRITERS)]
    return Store(writers, reader, heart=postgres.Postgres(url), direct=writers[-1])


def _check_schema(url: str, version: int, needed: int, *, make: bool, upgrade: bool) -> None:
    """Make, upgrade or refuse the schema at `url`, as `open_store` says."""
    if not version and not make:
        raise StoreUnavailable(
            f"there is no database of Tenure at {without_password(url)}: check the address. "
            "`tenure migrate` makes it"
        )
    if not version or (upgrade and version < needed):
        migrate_store(url)
    else:
        migrate.check(version, needed, without_password(url))
