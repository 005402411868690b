"""Django's tasks on Tenure: jobs in the transactions of your rows; `tenure[django]`.

    INSTALLED_APPS += ["tenure.contrib.django"]
    TASKS = {"default": {"BACKEND": "tenure.contrib.django.TenureBackend", "QUEUES": []}}

`app` is the `Tenure` of the default backend, for job types beside Django's tasks (`@app.job`) and
for everything else that a `Tenure` does. Nothing here opens a database before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenure import Tenure
    from tenure.contrib.django.backend import TenureBackend
    from tenure.contrib.django.tasks import TenureContext, TenureTask
    from tenure.contrib.django.web import asgi

    app: Tenure

__all__ = [
    "TaskCancelled",
    "TenureBackend",
    "TenureContext",
    "TenureTask",
    "WorkerLost",
    "app",
    "asgi",
]


_HOME = {"TenureBackend": "backend", "TenureContext": "tasks", "TenureTask": "tasks", "asgi": "web"}


class TaskCancelled(Exception):
    """The error of a task whose job was cancelled. It is never raised."""


class WorkerLost(Exception):
    """The error of an attempt whose worker died or was cut off. It is never raised."""


def __getattr__(name: str) -> object:
    """Import what needs Django's settings when it is first asked for (PEP 562)."""
    if name == "app":
        from tenure.contrib.django._api import task_backends

        backend: Any = task_backends["default"]
        return backend.app
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
