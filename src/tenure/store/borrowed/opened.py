"""A connection to the database of the jobs that is opened for one transaction of a handler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from msgspec import Struct

from tenure.store.sqlite.connection import begin_writing, connect, path_of


class Lent(Struct):
    """A connection in a transaction of a test, which stands for the whole database."""

    connection: Any
    after_call: Callable[[], None] = lambda: None
    """Called after each use by `Borrowed.call`."""


LENT: dict[str, Lent] = {}
"""By the URL that stands for it."""


@contextmanager
def opened(url: str) -> Iterator[Any]:
    """Yield a connection in a transaction, which a clean end commits; an exception undoes it."""
    if url in LENT:
        with savepoint(LENT[url].connection):
            yield LENT[url].connection
        return
    if url.startswith("sqlite:"):
        with closing(connect(path_of(url))) as connection:
            begin_writing(connection)
            with connection:
                yield connection
        return
    import psycopg

    from tenure.store.postgres.connection import address_of

    with psycopg.connect(address_of(url).conninfo) as session:
        yield session


@contextmanager
def savepoint(connection: Any) -> Iterator[None]:
    """Keep what the block does if it ends cleanly, in the transaction of a lent connection."""
    connection.execute("SAVEPOINT tenure_opened")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK TO SAVEPOINT tenure_opened")
        connection.execute("RELEASE SAVEPOINT tenure_opened")
        raise
    connection.execute("RELEASE SAVEPOINT tenure_opened")
