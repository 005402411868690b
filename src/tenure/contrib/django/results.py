"""Results of tasks, as a job and its history have them."""

from __future__ import annotations

import builtins
import json
import sys
from collections.abc import Mapping, Sequence
from copy import copy
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import connections
from django.utils import timezone
from django.utils.module_loading import autodiscover_modules

from tenure.contrib.django._api import base, exceptions
from tenure.contrib.django.tasks import declared
from tenure.jobs import ids
from tenure.jobs.ids import EPOCH

if TYPE_CHECKING:
    from tenure.contrib.django.backend import TenureBackend

    Result = base.TaskResult[..., Any]

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
