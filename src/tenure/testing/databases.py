"""Which database an application uses in a test, and whether jobs run when they are added."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

from tenure.app.app import Tenure
from tenure.settings import database_url
from tenure.store import migrate_store, open_store
from tenure.store.borrowed.connections import LENT, TEST_FOLDER, Lent
from tenure.store.lent import lent_store
from tenure.testing.jobs import Jobs
from tenure.testing.runs import Run, Runs, raise_error_of
from tenure.values.names import check_kind

MEMORY = "/dev/shm"  # noqa: S108 - the folder in it has a random name


@contextmanager
def on(app: Tenure, database: str | None = None) -> Iterator[Jobs]:
    """Let an application use another database in the block: `with testing.on(app) as jobs:`.

    - `database`: its URL, as of `Tenure`. Its schema is made if it has none, and its clock is set
      right at the end. Default: None, a new SQLite file, deleted at the end.

    Yields the `Jobs` there. At the end the application has the database from before. Raises
    InvalidInput, StoreUnavailable, or SchemaMismatch.
    """
    check_kind(app, Tenure, "a Tenure application", "$.app")
    place = nullcontext(database_url(database)) if database else _new_file()
    with place as url, app.core.using(url, open_store(url)):
        jobs = Jobs(app)
        try:
            yield jobs
        finally:
            jobs._runs.reset()


@contextmanager
def _new_file() -> Iterator[str]:
    """Give the URL of a new file with the schema, in memory where the machine has such a folder."""
    memory = MEMORY if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=TEST_FOLDER, dir=memory) as folder:
        path = Path(folder) / "jobs.db"
        path.write_bytes(_template())
        yield f"sqlite:///{path}"


@functools.cache
def _template() -> bytes:
    with tempfile.TemporaryDirectory(prefix=TEST_FOLDER) as folder:
        path = Path(folder) / "jobs.db"
        migrate_store(f"sqlite:///{path}")
        return path.read_bytes()


@contextmanager
def within(app: Tenure, connection: Any) -> Iterator[Jobs]:
    """Let an application use a transaction of the test in the block.

    - `connection`: `Connection` of psycopg or sqlite3, or over one of these a `Connection`,
      `Session` or `scoped_session` of SQLAlchemy or `connections[alias]` of Django; to a database
      with the schema of the jobs. In autocommit mode, begin a transaction first.

    Whatever the application adds, reads and changes, and what `jobs` runs, is in this transaction:
    roll it back at the end, and never commit it in the block. Verbs that end in `_async` and test
    clients use other threads: sqlite3 allows that with `check_same_thread=False`. Yields the `Jobs`
    there. Raises InvalidInput for other connections, and SchemaMismatch.
    """
    store = lent_store(connection, lambda: app.core.database)
    with app.core.using(store.url, store):
        yield Jobs(app)


@contextmanager
def inline(app: Tenure) -> Iterator[None]:
    """Run each job when it is added, before the call that adds it returns.

    Jobs that a handler adds run at once too, and so do jobs that become due because another job
    has ended. A job with a delay, a retry, and a job that a limit or a pause holds back stay for
    `drain`. Jobs added in your transaction run at once under `within`, else when you drain.

    The call that adds a job raises nothing of its handler, as without this. The end of the block
    raises the first error of a handler instead, unless the block raises.
    """
    store, lent = _InlineStore(app), LENT.get(app.core.database, Lent(None))
    before, lent.after_call = lent.after_call, store.run_added
    try:
        with app.core.using(app.core.database, cast(Any, store)):
            yield
    finally:
        lent.after_call = before
    for ran in store.ran:
        raise_error_of(ran)


class _InlineStore:
    """The store of an application, which runs the jobs that a call of it has added."""

    def __init__(self, app: Tenure) -> None:
        self.ran: list[Run] = []
        self._runs = Runs(app)
        self._before = {job.id for job in Jobs(app).enqueued()}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._runs.store, name)
        return partial(self._then_run, found) if name in ("add", "write", "apply") else found

    def _then_run(self, act: Callable[..., Future[Any]], *args: Any, **options: Any) -> Any:
        future = act(*args, **options)
        if future.exception() is None:
            self.run_added()
        return future

    def run_added(self) -> None:
        self.ran += self._runs.drive(self._runs.added(self._before))

    def close(self) -> None:
        """Leave the store open: the block did not open it."""
