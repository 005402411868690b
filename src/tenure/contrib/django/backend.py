"""The backend of Django's tasks: adds jobs on Django's connection and reads them there."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from django.db import connections
from django.utils import timezone

from tenure import NewJob, Tenure
from tenure.contrib.django import tasks
from tenure.contrib.django._api import BaseTaskBackend, InvalidTask, base, normalize_json, signals
from tenure.contrib.django.databases import check_settings, tenure_of

if TYPE_CHECKING:
    from tenure.contrib.django.tasks import Result

DEFAULTS: Mapping[str, Any] = {"max_retries": 3}


class TenureBackend(BaseTaskBackend):
    """Adds Django's tasks as jobs of Tenure, in the transaction that is open, if one is.

    OPTIONS, all of which may be missing:

    - `database`: the alias of the database of the jobs, SQLite or PostgreSQL. Default: `default`.
    - `schema`: the schema of the tables on PostgreSQL. Default: `tenure`.
    - `wake`: `commit` (default) notifies workers at your commit, `later` lets them look, at most
      two seconds later, which is for hundreds of commits in a second.
    - `tasks`: options of single tasks by path, and any option of `TenureTask` for all.
    - `redact`: keys of payloads and results whose values the admin, the dashboard and the API hide,
      also in the jobs of other backends with this database and schema.
    - `schedules`: name -> `task`, a path, `payload` with `args` and `kwargs`, and options of
      `Tenure.schedule`, without `time_key`.
    - `limits`: queue -> options of `Tenure.queues.limit`, set when a worker starts, whatever an
      operator has set meanwhile.
    """

    task_class = tasks.TenureTask
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    @property
    def database(self) -> str:
        """The alias of the database of the jobs."""
        return str(self.options.get("database", "default"))

    @property
    def schema(self) -> str:
        """The schema of the tables on PostgreSQL."""
        return str(self.options.get("schema", "tenure"))

    @property
    def app(self) -> Tenure:
        return tenure_of(self.database, self.schema)

    def option(self, task: base.Task[..., Any], name: str) -> Any:
        """Return an option of a task: its own, otherwise that of the settings."""
        of_task = self.options.get("tasks", {}).get(task.module_path, {})
        found = (getattr(task, name, None), of_task.get(name), self.options.get(name))
        return next((value for value in found if value is not None), DEFAULTS.get(name))

    def validate_task(self, task: base.Task[..., Any]) -> None:
        """Raise InvalidTask for a task that cannot run here."""
        super().validate_task(task)
        if self.option(task, "atomic") and iscoroutinefunction(task.func):
            raise InvalidTask("an atomic task is a plain function: transactions are synchronous")

    def enqueue(  # type: ignore[override]
        self, task: base.Task[..., Any], args: Any, kwargs: Any
    ) -> Result:
        """Add a job for a task; raises InvalidTask, and what `Tenure.enqueue` does."""
        new_job = self.new_job(task, args, kwargs)
        within = self.app.within(
            connections[self.database], wake=self.options.get("wake", "commit")
        )
        (job,) = within.enqueue_many([new_job])
        fresh = job.token == 0 and job.finished_at is None
        facts = (task, job.id, job.payload, job.created_at)
        result = tasks.result_of(*facts) if fresh else self.get_result(job.id)
        signals.task_enqueued.send(type(self), task_result=result)
        return result

    def new_job(self, task: base.Task[..., Any], args: Any, kwargs: Any) -> NewJob:
        """Return the job that `enqueue` adds, not added; raises InvalidTask."""
        self.validate_task(task)
        if task.module_path not in tasks.declared:
            said = f"no worker would know {task.module_path}: write @task(backend={self.alias!r})"
            raise InvalidTask(said)
        payload = {"args": normalize_json(list(args)), "kwargs": normalize_json(dict(kwargs))}
        options: Any = {"queue": task.queue_name, "priority": -int(task.priority)}
        for name in tasks.OF_JOBS:
            if (value := self.option(task, name)) is not None:
                options[name] = value
        if (at := task.run_after) is not None:
            options["run_at"] = at if timezone.is_aware(at) else timezone.make_aware(at)
        return NewJob(tasks.type_of(task.module_path, self.alias), payload, options)

    def get_result(self, result_id: str) -> Result:
        """Return a task's result by the id of its job; raises TaskResultDoesNotExist."""
        return tasks.read_result(self, str(result_id))

    def check(self, **_: Any) -> list[Any]:
        """Return what is wrong with the settings."""
        return list(check_settings(self))
