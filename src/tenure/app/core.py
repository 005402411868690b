"""What `Tenure` and its nouns share, and what workers and servers call beside them. Internal.

A `Core` opens its store at the first use. The store stays open until `close`, or until the core is
collected. The child of a fork opens PostgreSQL again.
"""

from __future__ import annotations

import copy
import os
import threading
from _thread import start_new_thread
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from weakref import WeakKeyDictionary, WeakSet, finalize

from msgspec.structs import replace

from tenure import forks
from tenure.app.type_defaults import DeclaredByType, TypeDefaults, declare, known_types
from tenure.errors import Forbidden, InvalidInput, JobNotFound
from tenure.handlers.registry import Handlers
from tenure.lifecycle import Job
from tenure.rules.jobs import Duration
from tenure.rules.ledger import EventFilter, Transition
from tenure.rules.reports import ClaimRequest, Duty, Exchange, HeldLeases, Report
from tenure.rules.search import Counted, Filter, Order, Page, action_of, check_filter, checked_query
from tenure.rules.steps import ReadParents, StepAnswer, StepCall
from tenure.rules.tokens import ANY_REST, SESSION_SECONDS, Patterns, includes, require
from tenure.settings import is_sqlite
from tenure.store import Store, open_store, search
from tenure.store.tables import steps, tokens, webhooks, workflows
from tenure.store.tables.bulk import about
from tenure.store.tables.retention import Note
from tenure.store.transitions import Steps
from tenure.store.work import nothing
from tenure.telemetry.tracing import Tracing
from tenure.values import ids
from tenure.values.durations import retention
from tenure.values.names import check_label
from tenure.values.numbers import whole
from tenure.values.redaction import Redaction
from tenure.webhooks import deliveries

_cores: WeakSet[Core] = WeakSet()
_ends: WeakKeyDictionary[Core, finalize[[Store, int], Core]] = WeakKeyDictionary()
_of_parent: list[object] = []
"""Kept for ever: if one were collected in the child, it might speak on its parent's connections."""
MAX_COUNTED = 1_000_000


def _tied(core: Core, store: Store) -> Store:
    """Return a store that a core opens. It is closed when the core is collected.

    Otherwise its threads would keep it and its connections as long as the process runs.
    """
    _untie(core)
    _ends[core] = end = finalize(core, _close, store, forks.pid)
    end.atexit = False
    return store


def _untie(core: Core) -> None:
    """Forget the store of a core that is closed in order."""
    if (end := _ends.pop(core, None)) is not None:
        end.detach()


def _close(store: Store, pid: int) -> None:
    """Close on another thread, because the garbage collector may call this in the middle of any.

    `Thread.start` waits for its thread, which waits for a lock that this one may have.
    """
    closing = threading.Thread(target=_end, args=[store, pid], name="tenure-close", daemon=True)
    with suppress(RuntimeError):  # the interpreter ends, or a limit of the machine
        start_new_thread(closing.start, ())


def _end(store: Store, pid: int) -> None:
    if os.getpid() == pid:
        store.close()
    else:
        _of_parent.append(store)


def _begin() -> None:
    _of_parent.extend(core.forget_parent() for core in _cores)


forks.in_child(_begin)


# --- core -----------------------------------------------------------------------------------------


class Core:
    """One database with what the application says about itself: handlers, redaction, tracing.

    It is opened at the first use. It is the `WorkSource` of workers that reach the database itself.
    """

    waits = False
    """Claims answer at once; `on_work` says when there may be work."""

    def __init__(
        self,
        database: str | Callable[[], str],
        migrate: str,
        actor: str,
        redaction: Redaction,
        tracing: Tracing | None,
    ) -> None:
        self._database = database
        self.migrate = migrate
        self.actor = actor
        self.handlers = Handlers()
        self.redaction = redaction
        self.tracing = tracing
        self.queues: Patterns | None = None
        """The only queues that its verbs show and change; None: every queue."""
        self.defaults = TypeDefaults(
            self.handlers, lambda waits: known_types(self.store, waits=waits)
        )
        self._whole: Core | None = None  # what this one is a limited view of
        self._opened: Store | None = None
        self._stays_open = False
        self._opening = threading.Lock()
        _cores.add(self)  # each child of a fork lets it forget its parent

    @property
    def database(self) -> str:
        """The URL of the database; a function that was set says it each time."""
        return self._database if isinstance(self._database, str) else self._database()

    @database.setter
    def database(self, database: str | Callable[[], str]) -> None:
        if self._opened is not None and database != self._database:
            raise InvalidInput("another database is open: call close() first", path="database")
        self._database = database

    @property
    def store(self) -> Store:
        """The store, opened if it is not open yet.

        Raises Forbidden if this is limited to some queues. So a verb that does not limit itself
        refuses such callers.
        """
        if self._whole is not None:
            raise Forbidden("this needs a token for every queue, one that was made without --queue")
        return (os.getpid() == forks.pid and self._opened) or self.open()

    @property
    def limited_store(self) -> Store:
        """The store, for verbs that show and change only `queues`."""
        return (self._whole or self).store

    def limited_to(self, queues: Patterns) -> Core:
        """Return this core for callers who may use these queues only."""
        limited = copy.copy(self)
        limited.queues, limited._whole = queues, self
        return limited

    def limited(self, filter: Filter) -> Filter:
        """Return a valid filter for `queues` only; raises Forbidden if it names another queue."""
        filter = check_filter(filter)
        if filter.queue is not None:
            require(self.queues, [filter.queue])
            return filter
        return replace(filter, within=self.queues)

    def open(self, *, make: bool = True) -> Store:
        """Open the database; without `make`, refuse one that has no schema of Tenure."""
        forks.notice()
        if self._opened is None:
            with self._opening:  # two first users at once must not open two stores
                if self._opened is None:
                    make, upgrade = make and self.migrate != "never", self.migrate == "auto"
                    store = open_store(self.database, make=make, upgrade=upgrade)
                    self._opened = _tied(self, store)
        return self._opened

    def forget_parent(self) -> Store | None:
        """Open PostgreSQL again at the next use, after a fork; return what the parent opened."""
        opened = self._opened
        if not is_sqlite(self.database):
            self._opened = None
        self._opening = threading.Lock()  # a thread of the parent may hold the old one
        self.defaults.forget()
        return opened

    async def opened(self) -> None:
        """Open the database off the event loop, if it is not open yet."""
        if (self._whole or self)._opened is None:
            import asyncio

            await asyncio.to_thread((self._whole or self).open)

    def close(self) -> None:
        """Commit what is waiting and close the database."""
        forks.notice()
        if self._opened is not None and not self._stays_open:
            self._opened.close()
            self._opened = None
            _untie(self)
        self.defaults.forget()

    @contextmanager
    def using(self, database: str, store: Store) -> Iterator[None]:
        """Use another store in the block, at another URL, and close it then; for tests.

        `close`, which a program may call that is tested, leaves it open.
        """
        before = self._database, self._opened, self._stays_open
        self._database, self._opened, self._stays_open = database, store, True
        self.defaults.forget()
        try:
            yield
        finally:
            store.close()
            self._database, self._opened, self._stays_open = before
            self.defaults.forget()

    def take_over(self, other: Core) -> None:
        """Also handle, redact and trace what another application does."""
        self.redaction = self.redaction.also(other.redaction.keys)
        self.tracing = self.tracing or other.tracing
        self.handlers.take_over(other.handlers)

    def signed(self, actor: str | None) -> str:
        """Return who acts, as the ledger names it: the application itself by default."""
        return check_label(self.actor if actor is None else actor, "actor", "$.actor")

    def clock(self) -> datetime:
        """The store's time; raises StoreUnavailable if the store does not answer."""
        return self.limited_store.read.clock()

    def check_store(self) -> None:
        """Raise StoreUnavailable if the store does not answer, or if nothing can be committed."""
        self.limited_store.check()

    def wake(self) -> None:
        """Notify workers that there may be work, if the database is open."""
        forks.notice()
        if self._opened is not None:
            self._opened.wake()

    # --- find

    def ledger(self, after: str, limit: int) -> tuple[Sequence[Transition], str, bool]:
        """Transitions after a position, the position that they reach, and whether there are more.

        Without the types and queues of the jobs, which take longer to read.
        """
        read = self.limited_store.read
        if self.queues is not None:
            page = read.transitions(after, limit, EventFilter(within=self.queues))
            return [event.transition for event in page.events], page.position, page.more
        found = read.ledger(after, limit)
        return found, found[-1].position if found else after, len(found) == limit

    def get(self, job_id: str) -> Job:
        """The job; raises JobNotFound, also for a job of a queue that is not among `queues`."""
        job = self.limited_store.read.get(job_id) if ids.is_id(job_id) else None
        if job is None or not includes(self.queues, job.queue):
            raise JobNotFound(job_id)
        return job

    def page(self, filter: Filter, limit: int, cursor: str | None, order: Order = "newest") -> Page:
        """Return jobs of a filter after looking at a bounded number of rows.

        Where matching jobs are rare, a page has fewer than `limit`, or none, and still a `next`.
        """
        before, after = (cursor, None) if order == "newest" else (None, cursor)
        query = checked_query(self.limited(filter), limit, before=before, after=after, order=order)
        return search.page(self.limited_store.read, query)

    def newest_ids(self, filter: Filter, at_most: int) -> tuple[list[str], bool]:
        """Return the ids of up to so many matching jobs, and whether these are all, as `count`."""
        query = checked_query(self.limited(filter))
        return search.newest_ids(self.limited_store.read, query, at_most)

    def count(self, filter: Filter, *, action: str | None = None, at_most: int = 10_000) -> Counted:
        """Count matching jobs, up to `at_most`, looking at a bounded number of rows.

        With an `action` (`retry`, `cancel`), only jobs whose status allows it.
        """
        count = whole(at_most, 1, MAX_COUNTED, "$.at_most")
        own = self.limited(filter)
        query = checked_query(own)
        if action is not None:
            query = about(own, action_of(action))
        return search.count(self.limited_store.read, query, count)

    # --- what workers call: see `WorkSource`

    def declare(self, options: DeclaredByType) -> None:
        declare(self.limited_store, options, self.queues)

    @property
    def exchanges(self) -> int:
        return self.store.exchanges

    def exchange(self, reports: Sequence[Report], claim: ClaimRequest | None) -> Future[Exchange]:
        """Report and claim in one transaction; raises Forbidden for a claim of other queues.

        A report names its lease, which only the holder knows, so it needs no right to a queue.
        """
        if claim is not None and self.queues is not None:
            require(self.queues, claim.queues or ())
            claim = claim if claim.queues is not None else replace(claim, queues=())
        return self.limited_store.exchange(reports, claim)

    def claim_within(self, claim: ClaimRequest) -> ClaimRequest:
        """Name the queues of a claim that names none, of all that `queues` allows.

        The patterns stay among the names, so that lists show the worker where no queue is yet.
        """
        if self.queues is None or claim.queues is not None:
            return claim
        names = set(self.queues)
        if any(name.endswith(ANY_REST) for name in names):
            names.update(self.limited_store.read.lanes(self.queues))
        return replace(claim, queues=tuple(sorted(names)))

    def claim(self, request: ClaimRequest) -> Exchange:
        """Lease jobs for a worker."""
        return self.exchange((), request).result()

    def report(self, reports: Sequence[Report]) -> Exchange:
        """Record how attempts ended; a verdict for each."""
        return self.exchange(reports, None).result()

    def heartbeat(self, leases: HeldLeases, lease_seconds: float) -> Mapping[str, str]:
        return self.limited_store.heartbeat(leases, lease_seconds)

    def record_progress(self, entries: Sequence[steps.Entry]) -> int:
        return self.limited_store.record_progress(entries)

    def ask(self, job_id: str, lease_id: str, call: StepCall) -> Future[StepAnswer]:
        if self.queues is not None and isinstance(call, ReadParents):
            call = replace(call, within=self.queues)
        return self.limited_store.ask(job_id, lease_id, call)

    def on_work(self, notify: Callable[[], None]) -> Callable[[], None]:
        return self.limited_store.on_work(notify)

    def on_end(self, worker: str, notify: Callable[[], None]) -> Callable[[], None]:
        return self.limited_store.on_end(worker, notify)

    # --- what keeps the database in order, once a second or when asked

    def look(self) -> frozenset[Duty]:
        """Return the regular duties that there is work for."""
        return self.store.look()

    def sweep(self) -> list[Steps]:
        """End leases that have expired; return the steps of each job."""
        return self.store.sweep().result()

    def follow(self) -> bool:
        """Count, skip and restore waiting jobs for which that is left; return if any was.

        Call again while it is.
        """
        return self.store.follow().result()

    def finish_workflows(self, before: str = "") -> str:
        """Note which of the next 1,000 unfinished workflows have finished.

        Takes those before the id `before`, newest first. Returns the `before` of the next call.
        """
        found, following = workflows.unfinished(self.store.read, before or ids.AFTER_ALL)
        if found:
            finish = partial(workflows.finish, workflows=found)
            self.store.write("sweep", finish, brings=nothing).result()
        return following

    def measure(self, *, yielding: bool = False) -> int:
        """Add up to 2,000 transitions to the statistics; return how many there were.

        Call again while the answer is not 0. With `yielding`, do nothing if another process has
        measured since the last call, so that one of many callers does the work.
        """
        return self.store.update_stats(yielding=yielding)

    def prune(self, keep: Mapping[str, Duration], note: Note = lambda _: None) -> int:
        """Delete a batch of jobs settled longer ago than `keep` says by status; return how many.

        The rules of types and queues come before `keep`. Call again while the answer is not 0. Jobs
        stay until all their transitions are in the statistics, up to an hour more until webhooks
        have them, and as long as the database refuses to delete them: `note` gets its error.
        """
        now = self.clock()
        before = {status: now - timedelta(seconds=age) for status, age in retention(keep).items()}
        return self.store.prune(before, note=note).result()

    def forward_to_webhooks(self, *, without_errors: bool = False) -> int:
        """Add delivery jobs for the next transitions; return how many webhooks have more."""
        behind, errors = 0, list[BaseException | None]()
        for hook in webhooks.every(self.store.read):
            wanted = EventFilter(events=hook.events, types=hook.types, queues=hook.queues)
            page = self.store.read.transitions(hook.position, deliveries.BATCH, wanted)
            if page.position != hook.position:
                jobs = deliveries.deliveries_of(hook, page.events, without_errors=without_errors)
                add = partial(webhooks.forward, hook=hook, deliveries=jobs, position=page.position)
                written = self.store.write("webhook", add, brings=bool if jobs else nothing)
                errors.append(written.exception())  # which holds up no other one
            behind += page.more
        for error in filter(None, errors):
            raise error
        return behind

    def webhook_target(self, name: str, id: str) -> tuple[str, str] | None:
        """The URL and the secret of a webhook; None if it is gone."""
        return webhooks.target(self.store.read, name, id)

    def note_token_use(self, names: Iterable[str]) -> Future[None]:
        """Record that tokens are in use."""
        return self.store.write("operator", lambda db: tokens.note_use(db, names), brings=nothing)

    def sessions(self) -> dict[bytes, bytes]:
        """The hidden token of each session of the dashboard, by the digest of its secret."""
        return tokens.sessions(self.store.read)

    def begin_session(self, digest: bytes, token: bytes) -> None:
        """Keep a new session, with its token already hidden."""
        end = self.clock() + timedelta(seconds=SESSION_SECONDS)
        self.store.write("operator", lambda db: tokens.add_session(db, digest, token, end)).result()

    def end_session(self, digest: bytes) -> None:
        """End a session."""
        self.store.write("operator", lambda db: tokens.remove(db, digest)).result()


class Noun:
    """What `Tenure` sorts by noun, over one database."""

    def __init__(self, core: Core) -> None:
        self._core = core
