"""The handlers of tasks: how a worker runs one, and what it does around each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from inspect import iscoroutinefunction
from traceback import format_exception
from typing import TYPE_CHECKING, Any

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.core.cache import caches
from django.db import close_old_connections, connections, reset_queries, transaction
from django.utils import timezone

from tenure import InvalidInput, JobContext, PermanentFailure, RetryAfter, Snooze, Tenure
from tenure.contrib.django._api import (
    InvalidTask,
    TaskError,
    TaskResultStatus,
    normalize_json,
    task_finished,
    task_started,
)
from tenure.contrib.django.results import read_result
from tenure.contrib.django.tasks import OF_TYPES, TenureContext, TenureTask
from tenure.jobs.parking import Parked

if TYPE_CHECKING:
    from tenure.contrib.django.backend import TenureBackend

Arguments = list[Any] | None
Keywords = dict[str, Any] | None
NOT_THE_END = (Parked, Snooze, RetryAfter, asyncio.CancelledError)


def register(task: TenureTask) -> None:
    """Let the workers of this process run a task, once; raises InvalidTask for its name."""
    from tenure.contrib.django.backend import TenureBackend

    backend, path = task.get_backend(), task.module_path
    if not isinstance(backend, TenureBackend) or backend.app.core.handlers.defaults(path):
        return
    options = {name: backend.option(task, name) for name in OF_TYPES}
    function = _async_handler(task) if iscoroutinefunction(task.func) else _handler(task)
    try:
        backend.app.job(
            name=path,
            queue=task.queue_name,
            priority=-int(task.priority),
            permanent=() if backend.option(task, "retry_exceptions") else (BaseException,),
            **{name: value for name, value in options.items() if value is not None},
        )(function)
    except InvalidInput as error:
        raise InvalidTask(f"{path}: {error}") from error


class _Attempt:
    """One attempt of a task, with the result that the receivers of signals see."""

    def __init__(self, task: TenureTask, context: JobContext) -> None:
        self.task = task
        self.context = context
        self.backend: TenureBackend = task.get_backend()  # type: ignore[assignment]
        self.result = read_result(self.backend, context.id, task)

    @property
    def arguments(self) -> list[Any]:
        if not self.task.takes_context:
            return self.result.args
        return [TenureContext(task_result=self.result, job=self.context), *self.result.args]

    def call(self) -> Any:
        """Call the function; with `atomic`, complete the job in the transaction of its rows."""
        if not self.backend.option(self.task, "atomic"):
            return normalize_json(self.task.func(*self.arguments, **self.result.kwargs))
        with transaction.atomic(using=self.backend.database, durable=True):
            value = normalize_json(self.task.func(*self.arguments, **self.result.kwargs))
            self.context.complete(connections[self.backend.database], value)
        return value

    def ends(self, error: BaseException) -> bool:
        """Note an error in the result; return whether the task has failed for good by it."""
        context = self.context
        if context.stopped is not None or isinstance(error, NOT_THE_END):
            return False
        may_retry = self.backend.option(self.task, "retry_exceptions")
        kind = type(error)
        path = f"{kind.__module__}.{kind.__qualname__}"
        traceback = "".join(format_exception(error))
        self.result.errors.append(TaskError(exception_class_path=path, traceback=traceback))
        self._end(TaskResultStatus.FAILED)
        is_last = context.attempt >= context.max_retries
        return is_last or not may_retry or isinstance(error, PermanentFailure)

    def succeed(self, value: Any) -> None:
        """Note the value in the result."""
        object.__setattr__(self.result, "_return_value", value)
        self._end(TaskResultStatus.SUCCESSFUL)

    def _end(self, status: TaskResultStatus) -> None:
        object.__setattr__(self.result, "finished_at", timezone.now())
        object.__setattr__(self.result, "status", status)


def _handler(task: TenureTask) -> Callable[..., Any]:
    def run(context: JobContext, args: Arguments = None, kwargs: Keywords = None) -> Any:
        attempt = _Attempt(task, context)
        sender, result = type(attempt.backend), attempt.result
        task_started.send(sender, task_result=result)
        try:
            value = attempt.call()
        except BaseException as error:
            if attempt.ends(error):
                task_finished.send_robust(sender, task_result=result)
            raise
        attempt.succeed(value)
        task_finished.send_robust(sender, task_result=result)
        return value

    return _named(run, task)


def _async_handler(task: TenureTask) -> Callable[..., Any]:
    async def run(context: JobContext, args: Arguments = None, kwargs: Keywords = None) -> Any:
        attempt = await sync_to_async(_Attempt)(task, context)
        sender, result = type(attempt.backend), attempt.result
        await task_started.asend(sender, task_result=result)
        try:
            value = normalize_json(await task.func(*attempt.arguments, **result.kwargs))
        except BaseException as error:
            if attempt.ends(error):
                await task_finished.asend_robust(sender, task_result=result)
            raise
        attempt.succeed(value)
        await task_finished.asend_robust(sender, task_result=result)
        return value

    return _named(run, task)


def _named(run: Callable[..., Any], task: TenureTask) -> Callable[..., Any]:
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
    _close()
    try:
        yield
    finally:
        _close()


@asynccontextmanager
async def _clean_async() -> AsyncIterator[None]:
    """Run the queries of a coroutine on a separate thread, with its connections."""
    async with ThreadSensitiveContext():
        try:
            yield
        finally:
            await sync_to_async(connections.close_all)()


def _close() -> None:
    reset_queries()
    close_old_connections()
    caches.close_all()
