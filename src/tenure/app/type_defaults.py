"""The options of jobs that an enqueue does not give. Internal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from math import inf

from msgspec.structs import asdict

from tenure.app.twins import answer_of
from tenure.errors import Forbidden, StoreUnavailable
from tenure.handlers.registry import Handlers
from tenure.rules.jobs import PLAIN_OPTIONS, TypeOptions
from tenure.rules.retention import DeclaredType
from tenure.rules.stats import TypeState
from tenure.rules.tokens import Patterns, covers, require
from tenure.store import Store
from tenure.store.database import Database
from tenure.store.tables import retention, types
from tenure.store.work import nothing

STALE_SECONDS = 5.0
"""How long options count that were read from the database."""

SEEN_AGAIN = timedelta(days=1)
MOVED = (
    "jobs of type %s went to queue %s, and go to %s from now on where no queue is given: see that "
    "workers take from both. If an old program says so, update it"
)

ANOTHERS = (
    "a token for other queues, or for all, has declared this type: its options stay. Jobs that are "
    "added without the handler get them only in those queues; give another name to your type"
)

OptionsByType = Mapping[str, TypeOptions]
DeclaredByType = Mapping[str, DeclaredType]

log = logging.getLogger(__name__)


def known_types(store: Store, *, waits: bool) -> Future[OptionsByType]:
    """Read the types on the connection that enqueues use: who only enqueues has no other.

    A caller who `waits` uses that on which callers add a job themselves.
    """
    read = partial(types.every, columns=types.PLAIN)
    return store.read_as_writer("operator", read, waits=waits)


def declare(store: Store, options: DeclaredByType, queues: Patterns | None) -> None:
    """Store the options that differ from the known ones, or that were stored days ago.

    How long the jobs of the types are kept belongs to them.

    The options count for jobs in `queues`. Logs a warning for each type whose jobs go to another
    queue from now on. Raises Forbidden if one goes to a queue that is not among `queues`, or if
    the known options of one count in others.
    """
    save = partial(_save_news, options=options, queues=queues)
    store.write("operator", save, brings=nothing).result()


def _save_news(db: Database, options: DeclaredByType, queues: Patterns | None) -> None:
    known, now = types.every(db), db.now()
    news, keeps = {}, dict[str, Mapping[str, float]]()
    for name, new in options.items():
        old = known.get(name)
        require(queues, [new.queue])
        said = asdict(new)
        keeps[name] = said.pop("keep", {})
        same = old and TypeState(**{**asdict(old), **said}) == old
        if old and not covers(queues, old.queues):
            if not same:
                raise Forbidden(ANOTHERS)
        elif not (old and same and old.queues == queues) or now - old.seen_at > SEEN_AGAIN:
            news[name] = new
        if old and old.queue != new.queue:
            log.warning(MOVED, name, old.queue, new.queue)
    if news:
        types.save(db, news, queues)
    if queues is None:  # a rule of a type is for its jobs in every queue
        retention.declare(db, keeps)


class TypeDefaults:
    """The options of types: as the handlers here say, otherwise as the database knows them.

    The first enqueue that needs the database after `STALE_SECONDS` asks it for all types. While it
    does not answer, what it answered last counts. Safe to use from any thread, without a lock: a
    signal handler may enqueue, and an interrupt may come, at any step.
    """

    def __init__(
        self,
        handlers: Handlers,
        ask: Callable[[bool], Future[OptionsByType]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ask` asks the database, and gets if its caller waits. `clock` is in seconds."""
        self._handlers = handlers
        self._ask = ask
        self._clock = clock
        self._found: OptionsByType | None = None
        self._due_at = -inf

    def are_due(self, types: Iterable[str]) -> bool:
        """Whether `of` of these types would ask the database."""
        return self._clock() >= self._due_at and any(
            self._handlers.defaults(type) is None for type in types
        )

    def learn(self, options: OptionsByType) -> None:
        """Note what the database answered to another reader of this process."""
        self._found, self._due_at = options, self._clock() + STALE_SECONDS

    def known(self, type: str) -> TypeOptions:
        """Return the options of a type that this process knows, without asking the database."""
        return self._handlers.defaults(type) or (self._found or {}).get(type, PLAIN_OPTIONS)

    def of(self, type: str) -> TypeOptions:
        """Return the options of a type; raises StoreUnavailable if the database never answered."""
        own = self._handlers.defaults(type)  # first: an enqueue asks for each job
        if own is not None:
            return own
        self.refresh()
        return self.known(type)

    def refresh(self) -> None:
        """Ask the database if the options are due; raises StoreUnavailable if it never answered."""
        if self._clock() >= self._due_at:
            with self._asking():
                self._found = self._ask(True).result()

    async def look_up(self, types: Iterable[str]) -> None:
        """Await what `of` of these types would wait for."""
        if self.are_due(types):
            with self._asking():
                self._found = await answer_of(self._ask(False))

    def forget(self) -> None:
        """Begin again, perhaps with another database."""
        self._found, self._due_at = None, -inf

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Ask in the block. Meanwhile other threads use what is known, or ask as well."""
        known = self._found is not None
        if known:
            self._due_at = self._clock() + STALE_SECONDS
        try:
            yield
            self._due_at = self._clock() + STALE_SECONDS
        except StoreUnavailable:
            if not known:
                raise
