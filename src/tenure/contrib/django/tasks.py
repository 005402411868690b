"""What a task says to Tenure, what it gets when it runs, and its result as Django has it."""

from __future__ import annotations

import builtins
import json
import sys
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

from django.conf import settings
from django.db import connections
from django.utils import timezone
from django.utils.module_loading import autodiscover_modules

from tenure import JobContext, NewJob, Unique
from tenure.contrib.django._api import InvalidTask, base, exceptions, task_backends
from tenure.rules.jobs import Backoff, Duration
from tenure.values import ids
from tenure.values.ids import EPOCH

if TYPE_CHECKING:
    from tenure.contrib.django.backend import TenureBackend

    Result = base.TaskResult[..., Any]

OF_JOBS = (
    *("max_retries", "timeout", "backoff", "unique"),
    *("idempotency_key", "partition", "tags"),
)
"""The fields of a task that are options of `Tenure.enqueue`."""
OF_TASKS = ("atomic", "process", "retry_exceptions", *OF_JOBS)
"""All fields that Django's own tasks have not."""
OF_TYPES = ("process", *OF_JOBS[:4])
"""Those that `@app.job` takes too."""
declared: dict[str, TenureTask] = {}
"""The tasks that this process has imported, by path, with the backend of their `@task`."""


def type_of(path: str, alias: str) -> str:
    """Return the type of a task's jobs: its path, and `path:alias` at another backend than its own.

    So the jobs in a database say which OPTIONS count for them.
    """
    return path if declared[path].backend == alias else f"{path}:{alias}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TenureTask(base.Task):  # type: ignore[type-arg]
    """A task of Django with what Tenure can do for it, all None by default.

    Give these to `@task(...)` (not in Django 6.0), to `using(...)`, or in OPTIONS: for one task as
    `{"tasks": {"shop.tasks.ship": {"atomic": True}}}`, for all as `{"max_retries": 5}`. The first
    of these places that says something counts.

    - `atomic`: run the function in `transaction.atomic()` and complete the job in the same
      transaction, so that its effect in that database is there exactly once. SQLite lets nothing
      else write meanwhile, so it has to be short there. Default: False.
    - `process`: run each attempt in a child process, so that a crash of the interpreter fails only
      that attempt. The child finds the task by its path. Default: False.
    - `retry_exceptions`: run the task again after an exception, up to `max_retries`. Default:
      False, it fails at once. It runs again in any case after the death of a worker, or if Django's
      database did not answer before the function was called.
    - `max_retries`: attempts in all. Default: 3.
    - `timeout`, `backoff`, `unique`, `idempotency_key`, `partition`, `tags`: as `Tenure.enqueue`
      has them.
    """

    atomic: bool | None = None
    process: bool | None = None
    retry_exceptions: bool | None = None
    max_retries: int | None = None
    timeout: Duration | None = None
    backoff: Backoff | None = None
    unique: Unique | Mapping[str, Any] | None = None
    idempotency_key: str | None = None
    partition: str | None = None
    tags: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Validate the task, and let the workers of this process run it."""
        from tenure.contrib.django.backend import TenureBackend
        from tenure.contrib.django.handlers import handler_at

        base.Task.__post_init__(self)
        if isinstance(backend := self.get_backend(), TenureBackend):
            handler_at(backend, declared.setdefault(self.module_path, self))

    @property
    def job_type(self) -> str:
        """The type of its jobs, as `tenure.testing` asks for it."""
        return type_of(self.module_path, self.backend)

    def new_job(self, *args: Any, **kwargs: Any) -> NewJob:
        """Return the job that `enqueue` would add, for `enqueue_many` and workflows of an `app`.

        - `args`, `kwargs`: the arguments of the task.

        A workflow takes none with an `idempotency_key`. Django sends no signal that it is added.
        Raises InvalidTask, also if the backend of the task is not Tenure's.
        """
        from tenure.contrib.django.backend import TenureBackend

        backend = self.get_backend()
        if not isinstance(backend, TenureBackend):
            raise InvalidTask(f"the backend {self.backend!r} is none of Tenure's: it has no jobs")
        return backend.new_job(self, args, kwargs)

    def using(self, **changes: Any) -> Self:
        """Return the task with other options: those of Django, and any field of this class."""
        return replace(self, **{n: value for n, value in changes.items() if value is not None})

    def handler_of(self, type: str) -> Any:
        """Return what runs jobs of a type of this task in a worker, as child processes find it."""
        from tenure.contrib.django.handlers import handler_at

        alias = type.partition(":")[2] or declared[self.module_path].backend
        backend: Any = task_backends[alias]
        return handler_at(backend, declared[self.module_path])


@dataclass(frozen=True, slots=True, kw_only=True)
class TenureContext(base.TaskContext):  # type: ignore[misc,type-arg]
    """The context of a task with `takes_context`; `job` is the `JobContext` of the attempt."""

    job: JobContext


# --- results --------------------------------------------------------------------------------------

STATUS = {
    "processing": base.TaskResultStatus.RUNNING,
    "completed": base.TaskResultStatus.SUCCESSFUL,
    "failed": base.TaskResultStatus.FAILED,
    "cancelled": base.TaskResultStatus.FAILED,
}
UNCHARGED = ("released", "interrupted", "snoozed", "suspended")
"""Events that give an attempt back."""
HERE = "tenure.contrib.django"
JOB = """
SELECT type, queue, priority, status, token, payload, result, created_at, run_at, finished_at
FROM {prefix}job WHERE id = {id}
"""
HISTORY = """
SELECT event, actor, at, target, detail, reason FROM {prefix}transition
WHERE job_id = {id} ORDER BY seq
"""


def read_result(backend: TenureBackend, job_id: str, task: Any = None) -> Result:
    """Return the result of a task, with two statements on Django's connection.

    `task` is the task of the job if that is known. Raises TaskResultDoesNotExist, also for a job
    that is no task.
    """
    if not ids.is_id(job_id):
        raise exceptions.TaskResultDoesNotExist(job_id)
    connection = connections[backend.database]
    names = {"prefix": "tenure_", "id": "%s"}
    if connection.vendor != "sqlite":
        names = {"prefix": f'"{backend.schema}".', "id": "CAST(%s AS uuid)"}
    with connection.cursor() as cursor:
        cursor.execute(JOB.format_map(names), [job_id])
        row = cursor.fetchone()
        cursor.execute(HISTORY.format_map(names), [job_id])
        history = cursor.fetchall()
    try:
        type, queue, priority, status, token, text, returned, created_at, run_at, finished_at = row
        path, _, alias = type.partition(":")
        task, payload = task or _task_at(path), json.loads(text)
        if not isinstance(task, base.Task) or not payload.keys() <= {"args", "kwargs"}:
            raise TypeError
    except TypeError:
        raise exceptions.TaskResultDoesNotExist(job_id) from None
    alias = alias or declared.get(path, task).backend
    is_deferred = not token and run_at > created_at
    task = copy(task)
    values = {
        "priority": -priority,
        "queue_name": queue,
        "backend": alias,
        "run_after": time_of(run_at) if is_deferred else None,
    }
    for name, value in values.items():  # not by `replace`: the settings may refuse it by now
        object.__setattr__(task, name, value)
    result = result_of(task, job_id, payload, created_at, status, finished_at, history)
    if status == "completed" and returned is not None:
        object.__setattr__(result, "_return_value", json.loads(returned))
    return result


def result_of(
    task: Any,
    job_id: str,
    payload: Mapping[str, Any],
    created_at: Any,
    status: str = "pending",
    finished_at: Any = None,
    history: Sequence[Sequence[Any]] = (),
) -> Result:
    """Return the result of a task whose job has these values, and this history."""
    claims: list[tuple[str, Any]] = []
    for event, actor, at, *_ in history:
        if event == "claimed":
            claims.append((str(actor), at))
        elif event in UNCHARGED:
            del claims[-1:]
    return base.TaskResult(
        task=task,
        id=job_id,
        status=STATUS.get(status, base.TaskResultStatus.READY),
        enqueued_at=time_of(created_at),
        started_at=time_of(claims[0][1]) if claims else None,
        finished_at=None if finished_at is None else time_of(finished_at),
        last_attempted_at=time_of(claims[-1][1]) if claims else None,
        args=payload.get("args") or [],
        kwargs=payload.get("kwargs") or {},
        backend=task.backend,
        errors=[error for entry in history if (error := _error(*entry))],
        worker_ids=[worker for worker, _ in claims],
    )


def _error(
    event: str, _actor: str, _at: Any, target: str, detail: str | None, reason: str | None
) -> base.TaskError | None:
    if target not in ("cancelled", "failed"):
        return None
    path, said = f"{HERE}.TaskCancelled", reason or event
    if target == "failed":
        said = detail or ""
        is_lost = event == "lease_expired" or said.startswith("the child process died")
        path = f"{HERE}.WorkerLost" if is_lost else _class_in(said)
        message, begins, frames = said.partition("\nTraceback ")
        if begins:  # as Python prints it: the exception is last
            said = f"Traceback {frames.rstrip()}\n{message}\n"
    return base.TaskError(exception_class_path=path, traceback=said)


def _class_in(detail: str) -> str:
    """Return the path of the exception that the first line of an error names."""
    name = detail.partition("\n")[0].partition(":")[0]
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        return name
    if name.startswith("timed out"):
        name = "TimeoutError"
    known = isinstance(getattr(builtins, name, None), type)
    return f"builtins.{name if known else 'Exception'}"


def _task_at(path: str) -> Any:
    """Return what a job type names, if this process has imported it or finds it among the tasks.

    A name from the database imports nothing else.
    """
    module, _, name = path.rpartition(".")
    if module not in sys.modules:
        autodiscover_modules("tasks")
    return getattr(sys.modules.get(module), name, None)


def time_of(stored: Any) -> datetime:
    """Return a time as Django has it: SQLite stores milliseconds."""
    time: datetime = EPOCH + timedelta(milliseconds=stored) if isinstance(stored, int) else stored
    if timezone.is_aware(time):
        return time.astimezone(UTC) if settings.USE_TZ else timezone.make_naive(time)
    return time
