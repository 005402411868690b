"""The `Tenure` of a site: what adds or changes a job joins the transaction of Django that is open.

That is one of `atomic()`, of ATOMIC_REQUESTS, of a `TestCase`, or after `set_autocommit(False)`.
Without one everything is done as by any other `Tenure`. Child processes come to a project that is
set up, and to the databases of a test, because they import `WORKER` before anything else.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast

from asgiref.sync import sync_to_async
from django.db import connections

from tenure import Job, Tenure
from tenure.app.jobs import again
from tenure.app.workflows import NewWorkflow
from tenure.rules.jobs import Options, Wake

if TYPE_CHECKING:
    from tenure.app.within import Within

F = TypeVar("F", bound=Callable[..., Any])

AT_ONCE = ("tag", "from_scratch")
"""Options of verbs that no transaction of a caller can have: they act at once, as bulk actions."""


def _joins(verb: F) -> F:
    """Return a verb that is done in the transaction of Django, if one is open."""

    @functools.wraps(verb)
    def run(app: SiteTenure, *args: Any, **options: Any) -> Any:
        at_once = any(options.get(name) for name in AT_ONCE)
        if at_once or (joined := app.joined()) is None:
            return verb(app, *args, **options)
        known = {name: value for name, value in options.items() if name not in AT_ONCE}
        return getattr(joined, verb.__name__)(*args, **known)

    return cast(F, run)


def _joins_async(verb: F) -> F:
    """Return the same for an `_async` verb; its twin joins on the thread of Django's queries."""
    twin = verb.__name__.removesuffix("_async")

    @functools.wraps(verb)
    async def run(app: SiteTenure, *args: Any, **options: Any) -> Any:
        if await _is_joining(app):
            return await sync_to_async(getattr(app, twin))(*args, **options)
        return await verb(app, *args, **options)

    return cast(F, run)


async def _is_joining(app: SiteTenure) -> bool:
    """Whether the thread of Django's queries, which alone can be in `atomic()`, is in one."""
    return await sync_to_async(app.joined)() is not None


class SiteTenure(Tenure):
    """A `Tenure` for the database of an alias; calls on it and on its job types join."""

    def __init__(self, alias: str, url: Callable[[], str], *, wake: Wake, **options: Any) -> None:
        super().__init__(**options)
        self.core.database = url  # asked each time: tests give a database another name
        self._alias, self._url, self._wake = alias, url, wake

    def joined(self) -> Within | None:
        """Return what does things in the transaction that is open; None if none is."""
        connection = connections[self._alias]
        if connection.connection is None or connection.autocommit:
            return None
        if self.core.database != self._url():
            return None  # `tenure.testing` has given it another one, or this connection
        return self.within(connection, wake=self._wake)

    # Without an `enqueue`: the verbs of `Tenure` and of job types that add one job call these.
    enqueue_many = _joins(Tenure.enqueue_many)
    enqueue_many_async = _joins_async(Tenure.enqueue_many_async)
    get = _joins(Tenure.get)
    get_async = _joins_async(Tenure.get_async)
    cancel = _joins(Tenure.cancel)
    cancel_async = _joins_async(Tenure.cancel_async)
    retry = _joins(Tenure.retry)
    retry_async = _joins_async(Tenure.retry_async)

    def run_again(
        self, job_id: str, payload: Mapping[str, Any] | None = None, **options: Unpack[Options]
    ) -> Job:
        """Do what `Tenure.run_again` does, in the transaction of Django if one is open."""
        if (joined := self.joined()) is None:
            return super().run_again(job_id, payload, **options)
        new_job = again(self.core, joined.get(job_id), payload, options, joined._ties)
        return joined.enqueue_many([new_job])[0]

    run_again_async = _joins_async(Tenure.run_again_async)

    signal = _joins(Tenure.signal)
    signal_async = _joins_async(Tenure.signal_async)

    def workflow(
        self, name: str = "workflow", *, key: str | None = None, actor: str | None = None
    ) -> NewWorkflow:
        """Do what `Tenure.workflow` does; it is stored in the transaction that its end finds."""
        return SiteWorkflow(self, name, key, actor)

    # `chain`, `group` and `batch` call `workflow`.
    chain_async = _joins_async(Tenure.chain_async)
    group_async = _joins_async(Tenure.group_async)
    batch_async = _joins_async(Tenure.batch_async)


class SiteWorkflow(NewWorkflow):
    """A workflow that is stored in the transaction of Django, if one is open at its end."""

    _app: SiteTenure

    def _store(self) -> None:
        if (joined := self._app.joined()) is None:
            super()._store()
            return
        stored = joined.workflow(self._name, key=self._key, actor=self._actor)
        stored.id, stored.nodes, stored._jobs = self.id, self.nodes, self._jobs
        stored._store()
        self.id, self.created = stored.id, stored.created

    async def _store_async(self) -> None:
        if await _is_joining(self._app):
            await sync_to_async(self._store)()
        else:
            await super()._store_async()


# --- child processes ------------------------------------------------------------------------------

WORKER = "tenure.contrib.django.worker"
TEST_DATABASES = "TENURE_DJANGO_TEST_DATABASES"
"""The variable of the environment that names the databases of a test to its child processes, as a
JSON object by alias. The settings, which a child reads, name those of the site."""


def import_worker_first() -> None:
    """Let the child processes of this one import `WORKER` before anything else."""
    sys.modules["__main__"].__spec__ = find_spec(WORKER)


@contextmanager
def for_test() -> Iterator[None]:
    """Let child processes that begin in the block use the databases of the test."""
    main = sys.modules["__main__"]
    spec = main.__spec__
    import_worker_first()
    names = {alias: str(connections[alias].settings_dict["NAME"]) for alias in connections}
    os.environ[TEST_DATABASES] = json.dumps(names)
    try:
        yield
    finally:
        del os.environ[TEST_DATABASES]
        main.__spec__ = spec


def test_databases() -> dict[str, str]:
    """Return what the test of which this is a child process calls its databases, by alias."""
    names: dict[str, str] = json.loads(os.environ.get(TEST_DATABASES, "{}"))
    return names
