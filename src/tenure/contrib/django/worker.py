"""The tasks of a project, as `manage.py tenure` needs them; child processes import this first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from inspect import signature
from typing import TYPE_CHECKING, Any

import django
from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.utils.log import configure_logging
from django.utils.module_loading import autodiscover_modules, import_string

from tenure import JobType, Tenure, TenureError
from tenure.contrib.django._api import InvalidTask
from tenure.contrib.django.databases import backends
from tenure.contrib.django.handlers import handler_at
from tenure.contrib.django.joining import test_databases
from tenure.contrib.django.tasks import TenureTask, declared

if TYPE_CHECKING:
    from tenure.contrib.django.backend import TenureBackend


def _set_up() -> None:
    """Set Django up in a child process, in one of a test as the test has set it up."""
    names = test_databases()
    for alias, name in names.items():
        connections.settings[alias]["NAME"] = name
    django.setup()
    if names:
        from django.test.utils import setup_test_environment

        setup_test_environment(debug=settings.DEBUG)  # among others, it sends no mail


if not apps.ready:
    _set_up()
autodiscover_modules("tasks")


def app_of(alias: str) -> Tenure | None:
    """Return the application of a backend; None if there is none.

    It has the tasks of the `tasks` modules of all installed applications, and what the OPTIONS of
    all backends with its database and schema declare.
    """
    backend = next((one for one in backends() if one.alias == alias), None)
    if backend is None:
        return None
    app: Tenure = backend.app
    served = [one for one in backends() if one.app is app]
    for one in served:
        for each in declared.values():
            with suppress(InvalidTask):  # `using` has raised it
                handler_at(one, each)
        for name, given in one.options.get("schedules", {}).items():
            try:
                _schedule(one, name, **given)
            except (ImportError, InvalidTask, TenureError, TypeError) as error:
                said = f"OPTIONS['schedules'][{name!r}] of TASKS[{one.alias!r}]: {error}"
                raise ImproperlyConfigured(said) from error

    @app.lifespan
    @contextmanager
    def prepared() -> Iterator[None]:
        if settings.LOGGING.get("root"):  # the command has set up the log in its own way
            configure_logging(settings.LOGGING_CONFIG, settings.LOGGING)
        for one in served:
            for queue, limits in one.options.get("limits", {}).items():
                app.queues.limit(queue, **limits)
        yield

    return app


def _schedule(backend: TenureBackend, name: str, task: str = "", **rules: Any) -> None:
    found = import_string(task) if "." in task else None
    if not isinstance(found, TenureTask):
        raise TypeError("task is not the path of a task")
    backend.app.schedule(name=name, **rules)(JobType(backend.app, handler_at(backend, found)))
    payload = rules.get("payload") or {}
    args = [*([None] if found.takes_context else []), *(payload.get("args") or ())]
    signature(found.func).bind(*args, **(payload.get("kwargs") or {}))  # TypeError says what lacks
