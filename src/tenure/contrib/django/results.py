"""Results of tasks, as a job and the ledger have them."""

from __future__ import annotations

import builtins
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import connections
from django.utils import timezone
from django.utils.module_loading import import_string

from tenure import Job
from tenure.contrib.django._api import (
    Task,
    TaskError,
    TaskResult,
    TaskResultDoesNotExist,
    TaskResultStatus,
)
from tenure.jobs import ids

if TYPE_CHECKING:
    from tenure.contrib.django.backend import TenureBackend

STATUS: Mapping[str, TaskResultStatus] = {
    "waiting": TaskResultStatus.READY,
    "pending": TaskResultStatus.READY,
    "processing": TaskResultStatus.RUNNING,
    "completed": TaskResultStatus.SUCCESSFUL,
    "failed": TaskResultStatus.FAILED,
    "cancelled": TaskResultStatus.FAILED,
}
UNCHARGED = ("released", "interrupted", "snoozed", "suspended")
"""Events that give an attempt back."""
OF_US = "tenure.contrib.django"
JOB = """
SELECT type, queue, priority, status, token, payload, result, created_at, run_at, finished_at
FROM {job} WHERE id = {id}
"""
LEDGER = (
    "SELECT event, actor, at, target, detail, reason FROM {ledger} WHERE job_id = {id} ORDER BY seq"
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def new_result(backend: TenureBackend, task: Task[..., Any], job: Job) -> TaskResult[..., Any]:
    """Return the result of a task that was just added."""
    payload = job.payload
    return TaskResult(
        task=task,
        id=job.id,
        status=TaskResultStatus.READY,
        enqueued_at=_time(job.created_at),
        started_at=None,
        finished_at=None,
        last_attempted_at=None,
        args=payload["args"],
        kwargs=payload["kwargs"],
        backend=backend.alias,
        errors=[],
        worker_ids=[],
    )


def read_result(
    backend: TenureBackend, job_id: str, task: Task[..., Any] | None = None
) -> TaskResult[..., Any]:
    """Return the result of a task, with two statements on Django's connection.

    `task` is the task of the job if that is known. Raises TaskResultDoesNotExist, also for a job
    that is no task.
    """
    if not ids.is_id(job_id):
        raise TaskResultDoesNotExist(job_id)
    connection = connections[backend.database]
    on_sqlite = connection.vendor == "sqlite"
    prefix = "tenure_" if on_sqlite else f'"{backend.schema}".'
    names = {"job": f"{prefix}job", "ledger": f"{prefix}transition"}
    names["id"] = "%s" if on_sqlite else "CAST(%s AS uuid)"
    with connection.cursor() as cursor:
        cursor.execute(JOB.format_map(names), [job_id])
        if (row := cursor.fetchone()) is None:
            raise TaskResultDoesNotExist(job_id)
        cursor.execute(LEDGER.format_map(names), [job_id])
        ledger = cursor.fetchall()
    type, queue, priority, status, token, text, returned, created_at, run_at, finished_at = row
    try:
        task = task or import_string(type)
        payload = json.loads(text)
        deferred = not token and run_at > created_at
        if not isinstance(task, Task) or not payload.keys() <= {"args", "kwargs"}:
            raise TypeError
    except (ImportError, TypeError):
        raise TaskResultDoesNotExist(job_id) from None
    run_after = _time(run_at) if deferred else None
    claims = _claims(ledger)
    result = TaskResult(
        task=replace(
            task, priority=-priority, queue_name=queue, backend=backend.alias, run_after=run_after
        ),
        id=job_id,
        status=STATUS[status],
        enqueued_at=_time(created_at),
        started_at=_time(claims[0][1]) if claims else None,
        finished_at=None if finished_at is None else _time(finished_at),
        last_attempted_at=_time(claims[-1][1]) if claims else None,
        args=payload.get("args", []),
        kwargs=payload.get("kwargs", {}),
        backend=backend.alias,
        errors=[error for entry in ledger if (error := _error(*entry))],
        worker_ids=[worker for worker, _ in claims],
    )
    if status == "completed" and returned is not None:
        object.__setattr__(result, "_return_value", json.loads(returned))
    return result


def _claims(ledger: Sequence[Sequence[Any]]) -> list[tuple[str, Any]]:
    """Return worker and time of each attempt that counts."""
    claims: list[tuple[str, Any]] = []
    for event, actor, at, *_ in ledger:
        if event == "claimed":
            claims.append((str(actor), at))
        elif event in UNCHARGED and claims:
            claims.pop()
    return claims


def _error(
    event: str, _actor: str, _at: Any, target: str, detail: str | None, reason: str | None
) -> TaskError | None:
    if target == "cancelled":
        return TaskError(exception_class_path=f"{OF_US}.TaskCancelled", traceback=reason or event)
    if target != "failed":
        return None
    path = f"{OF_US}.WorkerLost" if event == "lease_expired" else _class_in(detail or "")
    return TaskError(exception_class_path=path, traceback=detail or "")


def _class_in(detail: str) -> str:
    """Return the path of the exception that the first line of an error names."""
    name = detail.partition("\n")[0].partition(":")[0]
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        return name
    if name.startswith("timed out"):
        name = "TimeoutError"
    known = isinstance(getattr(builtins, name, None), type)
    return f"builtins.{name if known else 'Exception'}"


def _time(stored: Any) -> datetime:
    """Return a time as Django has it: SQLite stores milliseconds."""
    time: datetime = EPOCH + timedelta(milliseconds=stored) if isinstance(stored, int) else stored
    if timezone.is_aware(time):
        time = time.astimezone(UTC)
        return time if settings.USE_TZ else timezone.make_naive(time)
    return time
