"""Django's tasks: `django.tasks` since 6.0, the package `django-tasks` before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import django
from django.core.exceptions import ImproperlyConfigured

if TYPE_CHECKING or django.VERSION >= (6,):
    from django.tasks import base, exceptions, signals, task_backends
    from django.tasks.backends.base import BaseTaskBackend
    from django.tasks.exceptions import InvalidTask
    from django.utils.json import normalize_json
else:
    try:
        from django_tasks import base, exceptions, signals, task_backends
    except ModuleNotFoundError as error:
        raise ImproperlyConfigured(
            "Django before 6.0 has no tasks: pip install django-tasks, and add django_tasks to "
            "INSTALLED_APPS"
        ) from error
    from django_tasks.backends.base import BaseTaskBackend
    from django_tasks.exceptions import InvalidTaskError as InvalidTask
    from django_tasks.utils import normalize_json

__all__ = ["BaseTaskBackend", "InvalidTask", "base", "exceptions", "normalize_json"]
__all__ += ["signals", "task_backends"]
