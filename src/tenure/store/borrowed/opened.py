"""A connection to the database of the jobs that is opened for one transaction of a handler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from tenure.store.sqlite.connection import begin_writing, connect, path_of


@contextmanager
def opened(url: str) -> Iterator[Any]:
    """Yield a connection in a transaction, which a clean end commits; an exception undoes it."""
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
