"""The options of jobs that an enqueue does not give. Internal."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from functools import partial
from math import inf

from msgspec.structs import asdict

from tenure.errors import StoreUnavailable
from tenure.jobs.enqueue import TypeOptions
from tenure.jobs.handlers import Handlers
from tenure.jobs.queue_rights import Patterns, require
from tenure.jobs.stats import TypeState
from tenure.store import Store
from tenure.store.protocol import Database
from tenure.store.tables import types
from tenure.store.work import nothing

STALE_SECONDS = 5.0
"""How long options count that were read from the database."""
PAUSE_SECONDS = 0.5
"""How long a database that never answered is not asked again."""

SEEN_AGAIN = timedelta(days=1)
MOVED = (
    "jobs of type %s went to queue %s, and go to %s from now on where no queue is given: see that "
    "workers take from both. If an old program says so, update it"
)
PLAIN_OPTIONS = TypeOptions()

OptionsByType = Mapping[str, TypeOptions]

log = logging.getLogger(__name__)


def known_types(store: Store) -> OptionsByType:
    """Read the types on the connection that enqueues use: who only enqueues has no other."""
    return store.write("operator", types.every, brings=nothing).result()


def declare(store: Store, options: OptionsByType, queues: Patterns | None) -> None:
    """Store the options that differ from the known ones, or that were stored days ago.

    Logs a warning for each type whose jobs go to another queue from now on. Raises Forbidden if
    one goes to a queue that is not among `queues`, or did.
    """
    save = partial(_save_news, options=options, queues=queues)
    store.write("operator", save, brings=nothing).result()


def _save_news(db: Database, options: OptionsByType, queues: Patterns | None) -> None:
    known, now = types.every(db), db.now()
    news = {}
    for name, new in options.items():
        old = known.get(name)
        require(queues, [new.queue] if old is None else [old.queue, new.queue])
        same = old and TypeState(**asdict(new), name=name, seen_at=old.seen_at) == old
        if not old or not same or now - old.seen_at > SEEN_AGAIN:
            news[name] = new
        if old and old.queue != new.queue:
            log.warning(MOVED, name, old.queue, new.queue)
    if news:
        types.save(db, news)


class TypeDefaults:
    """The options of types: as the handlers here say, otherwise as the database knows them.

    The first enqueue that needs the database after `STALE_SECONDS` reads all types from it. While
    it does not answer, what was read last counts. Safe to use from any thread.
    """

    def __init__(
        self,
        handlers: Handlers,
        read: Callable[[], OptionsByType],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`read` asks the database. `clock` is in seconds."""
        self._handlers = handlers
        self._read = read
        self._clock = clock
        self._found: OptionsByType | None = None
        self._error = ""
        self._due_at = -inf

    def of(self, type: str) -> TypeOptions:
        """Return the options of a type; raises StoreUnavailable if they could never be read."""
        known = self._handlers.defaults(type)
        if known is not None:
            return known
        self._look()
        if self._found is None:
            raise StoreUnavailable(self._error)
        return self._found.get(type, PLAIN_OPTIONS)

    async def look_up(self, types: Iterable[str]) -> None:
        """Ask the database, beside the event loop, what `of` of these types would ask it."""
        if self._is_due and any(self._handlers.defaults(type) is None for type in types):
            await asyncio.to_thread(self._look)

    def forget(self) -> None:
        """Begin again, perhaps with another database."""
        self._found, self._due_at = None, -inf

    @property
    def _is_due(self) -> bool:
        return self._clock() >= self._due_at

    def _look(self) -> None:
        """Ask the database if that is due. Others go on with what is known meanwhile.

        Without a lock: a signal handler may enqueue, and an interrupt may come, at any step.
        """
        if not self._is_due:
            return
        known = self._found is not None
        if known:
            self._due_at = self._clock() + STALE_SECONDS
        try:
            self._found = self._read()
            self._due_at = self._clock() + STALE_SECONDS
        except StoreUnavailable as error:
            self._error = str(error)
            self._due_at = self._clock() + (STALE_SECONDS if known else PAUSE_SECONDS)
