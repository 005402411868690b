"""The handlers of tasks: how a worker runs one, and what it does around each."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from functools import partial
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.core.cache import caches
from django.db import InterfaceError, OperationalError, connections, reset_queries, transaction
from django.utils import timezone

from tenure import InvalidInput, JobContext, RetryAfter, Tenure
from tenure.contrib.django import tasks
from tenure.contrib.django._api import InvalidTask, base, normalize_json, signals, task_backends
from tenure.handlers.registry import Failure, Handler

if TYPE_CHECKING:
    from tenure.contrib.django.backend import TenureBackend

Arguments = list[Any] | None
Keywords = dict[str, Any] | None
lent: list[Any] = []
"""The connections of tests in whose transactions tasks run."""
_registering = threading.Lock()
AGAIN_SECONDS = 30
"""When an attempt that found no database is repeated."""
MAX_TRIES = 10
"""Transactions that an atomic task begins at most: heartbeats may be faster than their lock."""


def handler_at(backend: TenureBackend, task: tasks.TenureTask) -> Handler:
    """Let the workers of this process run a task at a backend; return what runs it.

    Raises InvalidTask for the name of the task.
    """
    with _registering:  # of threads that use the task for the first time, one adds the handler
        type = tasks.type_of(task.module_path, backend.alias)
        if (known := backend.app.core.handlers.find(type)) is not None:
            return known
        options = {name: backend.option(task, name) for name in tasks.OF_TYPES}
        make = _async_handler if iscoroutinefunction(task.func) else _handler
        try:
            return backend.app.job(
                name=type,
                queue=task.queue_name,
                priority=-int(task.priority),
                permanent=() if backend.option(task, "retry_exceptions") else (BaseException,),
                **{name: value for name, value in options.items() if value is not None},
            )(make(task, backend.alias)).handler
        except InvalidInput as error:
            raise InvalidTask(f"{type}: {error}") from error


class _Attempt:
    """One attempt of a task, with the result that the receivers of signals see."""

    def __init__(self, task: tasks.TenureTask, alias: str, context: JobContext) -> None:
        self.context = context
        self.backend: TenureBackend = task_backends[alias]  # type: ignore[assignment]
        try:
            self.result = tasks.read_result(self.backend, context.id, task)
        except (InterfaceError, OperationalError) as error:
            raise _not_called(error) from error
        self.option = partial(self.backend.option, task)
        before = (
            [tasks.TenureContext(task_result=self.result, job=context)]
            if task.takes_context
            else []
        )
        self.call = partial(task.func, *before, *self.result.args, **self.result.kwargs)
        signals.task_started.send(type(self.backend), task_result=self.result)

    def run(self) -> Any:
        """Call the function; with `atomic`, complete the job in the transaction of its rows."""
        if not self.option("atomic"):
            return normalize_json(self.call())
        connection = connections[self.backend.database]
        durable = connection not in lent  # in a test, the task may run in a block of its caller
        tries = 0
        while True:
            tries, is_held = tries + 1, False
            try:
                with transaction.atomic(using=connection.alias, durable=durable):
                    if connection.settings_dict["OPTIONS"].get("isolation_level"):
                        self.context.hold(connection)  # or a heartbeat makes the transaction fail
                    is_held = True
                    value = normalize_json(self.call())
                    self.context.complete(connection, value)
                return value
            except (InterfaceError, OperationalError) as error:
                if is_held:
                    raise
                if tries == MAX_TRIES or not _is_stale(error):
                    raise _not_called(error) from error

    def succeed(self, value: Any) -> None:
        """Send the signal that the task is done, unless that comes too late."""
        if self.context.stopped:
            return
        object.__setattr__(self.result, "_return_value", value)
        object.__setattr__(self.result, "finished_at", timezone.now())
        object.__setattr__(self.result, "status", base.TaskResultStatus.SUCCESSFUL)
        signals.task_finished.send_robust(type(self.backend), task_result=self.result)


def send_failed(failure: Failure) -> None:
    """Send the signal that a task has failed for good, wherever it ran and however it ended."""
    path, _, alias = failure.type.partition(":")
    if not failure.final or (task := tasks.declared.get(path)) is None:
        return
    backend: TenureBackend = task_backends[alias or task.backend]  # type: ignore[assignment]
    error = failure.exception or RuntimeError(failure.error)
    trace = error.__traceback__
    with _clean():
        result = tasks.read_result(backend, failure.id, task)
        try:
            raise error
        except BaseException:  # a receiver of Django logs the exception that is handled
            signals.task_finished.send_robust(type(backend), task_result=result)
        finally:
            BaseException.with_traceback(error, trace)


def _handler(task: tasks.TenureTask, alias: str) -> Callable[..., Any]:
    def run(context: JobContext, args: Arguments = None, kwargs: Keywords = None) -> Any:
        attempt = _Attempt(task, alias, context)
        value = attempt.run()
        attempt.succeed(value)
        return value

    return _named(run, task)


def _async_handler(task: tasks.TenureTask, alias: str) -> Callable[..., Any]:
    async def run(context: JobContext, args: Arguments = None, kwargs: Keywords = None) -> Any:
        attempt = await sync_to_async(_Attempt)(task, alias, context)
        value = normalize_json(await attempt.call())
        await sync_to_async(attempt.succeed)(value)
        return value

    return _named(run, task)


def _not_called(error: Exception) -> RetryAfter:
    """Return what to raise if the database did not answer before the function was called."""
    return RetryAfter(AGAIN_SECONDS, f"the database did not answer Django: {error}")


def _is_stale(error: Exception) -> bool:
    """Whether another transaction changed a row after this one began (SQLSTATE 40001)."""
    found = error.__cause__
    return "40001" in (getattr(found, "sqlstate", None), getattr(found, "pgcode", None))


def _named(run: Callable[..., Any], task: tasks.TenureTask) -> Callable[..., Any]:
    """Name a handler as its task, where child processes look for it."""
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(run, name, getattr(task.func, name))
    return run


def around(
    app: Tenure, context: JobContext
) -> AbstractContextManager[None] | AbstractAsyncContextManager[None]:
    """Return what runs around each handler: connections are as after and before a request."""
    handler = app.core.handlers.find(context.type)
    return _clean_async() if handler is not None and handler.is_async else _clean()


@contextmanager
def _clean() -> Iterator[None]:
    borrowed = _borrow()
    _close()
    try:
        yield
    finally:
        _close()
        _give_back(borrowed)


@asynccontextmanager
async def _clean_async() -> AsyncIterator[None]:
    """Run the queries of a coroutine on a separate thread, with its connections."""
    async with ThreadSensitiveContext():
        borrowed = await sync_to_async(_borrow)()
        try:
            yield
        finally:
            await sync_to_async(_leave)(borrowed)


def _borrow() -> list[Any]:
    """Use what tests have lent on this thread too."""
    borrowed = [one for one in lent if connections[one.alias] is not one]
    for connection in borrowed:
        connection.inc_thread_sharing()
        connections[connection.alias] = connection
    return borrowed


def _give_back(borrowed: list[Any]) -> None:
    for connection in borrowed:
        del connections[connection.alias]
        connection.dec_thread_sharing()


def _leave(borrowed: list[Any]) -> None:
    _give_back(borrowed)
    for connection in _free():
        connection.close()


def _close() -> None:
    reset_queries()
    for connection in _free():
        # To open a file takes ten times as long as a short task, and leaves nothing on a server.
        if connection.vendor != "sqlite" or connection.errors_occurred:
            connection.close_if_unusable_or_obsolete()
    caches.close_all()


def _free() -> list[Any]:
    """Return the connections of this thread that are not in the transaction of a test."""
    return [one for one in connections.all(initialized_only=True) if not one.in_atomic_block]
