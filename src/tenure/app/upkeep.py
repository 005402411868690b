"""The verbs of `Tenure` about its database: upgrade it and check it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tenure.settings import is_sqlite
from tenure.store import check_store, migrate_store, schema_of
from tenure.store import migration_sql as sql_of_migration
from tenure.store.audit import INVARIANTS
from tenure.store.borrowed import connections
from tenure.store.borrowed.connections import borrow
from tenure.store.migrate import advice, newest
from tenure.values.findings import Check, Progress, Violation, no_note, no_progress
from tenure.values.names import check_function
from tenure.values.numbers import whole

if TYPE_CHECKING:
    from tenure.app.app import Tenure

MAX_FOUND = 10_000


def migrate(app: Tenure, *, progress: Progress | None = None) -> tuple[int, int]:
    """Create or upgrade the schema of the database now.

    - `progress`: called before each step as `progress(done, total, what)`.

    Returns the version of the schema before (0: none) and after. Raises StoreUnavailable or
    SchemaMismatch.
    """
    _check_functions(progress=progress)
    before, _ = schema_of(app.database)
    return before, migrate_store(app.database, progress or no_progress)


def migration_sql(app: Tenure, engine: str | None) -> str:
    """Return the SQL of an upgrade; with an `engine`, that of a new database of it."""
    return sql_of_migration(app.database, engine)


def migrate_within(app: Tenure, connection: Any) -> tuple[int, int]:
    """Create or upgrade the schema in the transaction that is open on a connection.

    Returns the versions before and after, as `migrate` does.
    """
    url = app.database
    borrowed = borrow(connection, url, together=True)
    return borrowed.call(partial(connections.upgrade, url=url), verb="migrate_within")


def version_within(app: Tenure, connection: Any) -> tuple[int, int]:
    """Return the version of the schema on a connection (0: none) and the one that is needed."""
    borrowed = borrow(connection, app.database, together=True)
    found = borrowed.call(connections.version, verb="version_within")
    return found, newest("sqlite" if is_sqlite(app.database) else "postgres")


def is_usable(app: Tenure) -> bool:
    """Whether the database has a schema that this version uses; makes and changes nothing."""
    return not advice(*schema_of(app.database))


def check(app: Tenure) -> list[Check]:
    """Return what `tenure doctor` finds about the database. Changes nothing."""
    return check_store(app.database)


def verify(
    app: Tenure,
    limit: int = 100,
    *,
    progress: Progress | None = None,
    seen: Callable[[str], object] | None = None,
) -> list[Violation]:
    """Check the stored data against every invariant; return what violates one.

    - `limit`: at most this many violations of each invariant, 1 to 10,000. Default: 100.
    - `progress`: called before each check as `progress(done, total, what)`.
    - `seen`: called with a sentence for each limit of a queue: the largest number of jobs that ever
      ran at once, or started in the time of a rate, and how many were allowed then.

    Reads every job. Writers are not held up. An empty list is good. Raises InvalidInput.
    """
    most = whole(limit, 1, MAX_FOUND, "$.limit")
    _check_functions(progress=progress, seen=seen)
    found = app.core.store.read.violations(most, progress or no_progress, seen or no_note)
    return [Violation(*finding, INVARIANTS[finding[0]]) for finding in found]


def _check_functions(**given: object) -> None:
    for name, function in given.items():
        if function is not None:
            check_function(function, "a function", f"$.{name}")
