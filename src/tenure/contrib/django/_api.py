"""Django's tasks: `django.tasks` since 6.0, the package `django-tasks` before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import django

if TYPE_CHECKING or django.VERSION >= (6,):
    from django.tasks import base, exceptions, signals, task_backends
    from django.tasks.backends.base import BaseTaskBackend
    from django.tasks.exceptions import InvalidTask
    from django.utils.json import normalize_json
else:
    from django_tasks import base, exceptions, signals, task_backends
    from django_tasks.backends.base import BaseTaskBackend
    from django_tasks.exceptions import InvalidTaskError as InvalidTask
    from django_tasks.utils import normalize_json

__all__ = ["BaseTaskBackend", "InvalidTask", "base", "exceptions", "normalize_json"]
__all__ += ["signals", "task_backends"]
