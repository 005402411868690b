"""What a task says to Tenure, and what it gets when it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from tenure import JobContext, NewJob, Unique
from tenure.contrib.django._api import InvalidTask, base, task_backends
from tenure.jobs.enqueue import Backoff, Duration

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
