"""The tasks of a project, as `manage.py tenure` needs them; child processes import this first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import django
from django.apps import apps
from django.conf import settings
from django.db import connections
from django.utils.log import configure_logging
from django.utils.module_loading import autodiscover_modules, import_string

from tenure import JobType, Tenure
from tenure.contrib.django._api import InvalidTask
from tenure.contrib.django.children import test_databases
from tenure.contrib.django.databases import backends
from tenure.contrib.django.handlers import handler_at
from tenure.contrib.django.tasks import declared


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
    """Return the application of a backend, with what its OPTIONS declare; None if there is none.

    It has the tasks of the `tasks` modules of all installed applications.
    """
    backend = next((one for one in backends() if one.alias == alias), None)
    if backend is None:
        return None
    app: Tenure = backend.app
    for one in backends():
        for each in declared.values() if one.app is app else ():
            with suppress(InvalidTask):  # `using` has raised it
                handler_at(one, each)
    for name, given in backend.options.get("schedules", {}).items():
        rules = dict(given)
        task = import_string(rules.pop("task"))
        app.schedule(name=name, **rules)(JobType(app, handler_at(backend, task)))

    @app.lifespan
    @contextmanager
    def prepared() -> Iterator[None]:
        if settings.LOGGING.get("root"):  # the command has set up the log in its own way
            configure_logging(settings.LOGGING_CONFIG, settings.LOGGING)
        for queue, limits in backend.options.get("limits", {}).items():
            app.queues.limit(queue, **limits)
        yield

    return app
