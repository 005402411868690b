"""What is wrong with the settings, as `manage.py check` shows it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Warning
from django.db import connections
from django.db.migrations.recorder import MigrationRecorder
from django.utils.module_loading import import_string

from tenure.app import upkeep
from tenure.contrib.django._api import base
from tenure.contrib.django.databases import ENGINES, backends
from tenure.contrib.django.tasks import OF_TASKS

if TYPE_CHECKING:
    from tenure.contrib.django.backend import TenureBackend

OPTIONS = ("database", "schema", "wake", "redact", "tasks", "schedules", "limits")
"""Of a backend, beside those of tasks."""
NEWEST = "0001_initial"
FULL = 2
RESETS_SAFELY = (3, 51, 3)
CAREFUL = "PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0"
"""Workers make the checkpoints, between transactions."""
CONCURRENCY = 16
"""Handlers that a worker runs at once by default, each with a connection."""


def check_databases(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Return what is wrong with the databases of the jobs, for `check --database` and `migrate`."""
    found: list[CheckMessage] = []
    for backend in {one.app: one for one in backends()}.values():
        if backend.database in (databases or ()):
            found += _database(backend, connections[backend.database])
    return found


def check_deployment(**_: Any) -> list[CheckMessage]:
    """Return what a site may want to know before it is deployed."""
    if not backends() or getattr(settings, "ASGI_APPLICATION", None):
        return []
    hint = "Run `manage.py tenure serve`, or mount the dashboard with ASGI."
    return [Info("The dashboard of the jobs is not a part of this site.", hint, id="tenure.I001")]


def check_settings(backend: TenureBackend) -> Iterator[CheckMessage]:
    """Yield what is wrong with a backend, without a query."""
    alias = backend.database
    if not apps.is_installed("tenure.contrib.django"):
        hint = "Add 'tenure.contrib.django' to INSTALLED_APPS."
        yield Error("The application of the backend is not installed.", hint, id="tenure.E001")
    of_tasks = backend.options.get("tasks", {}).values()
    unknown = {*backend.options}.difference(OPTIONS, OF_TASKS)
    for name in sorted(unknown.union(*({*one}.difference(OF_TASKS) for one in of_tasks))):
        said = f"OPTIONS of TASKS[{backend.alias!r}] has something unknown: {name!r}."
        yield Error(said, f"Known are {', '.join((*OPTIONS, *OF_TASKS))}.", id="tenure.E004")
    for path in backend.options.get("tasks", {}):
        if why := _no_task(path):
            said = f"OPTIONS['tasks'] of TASKS[{backend.alias!r}] has no task {path!r}: {why}."
            hint = "Its options count for no task. Name a task as 'shop.tasks.welcome'."
            yield Warning(said, hint, id="tenure.W006")
    if alias not in connections.settings or connections[alias].vendor not in ENGINES:
        hint = "OPTIONS['database'] is the alias of a database on SQLite or PostgreSQL."
        yield Error(f"Jobs cannot be kept in database {alias!r}.", hint, id="tenure.E002")
        return
    vendor, given = connections[alias].vendor, connections[alias].settings_dict
    options = given["OPTIONS"]
    if vendor == "sqlite" and str(options.get("transaction_mode")).upper() != "IMMEDIATE":
        said = "A transaction that reads and then adds a task can fail: `database is locked`."
        hint = f"Add 'transaction_mode': 'IMMEDIATE' to OPTIONS of DATABASES[{alias!r}]."
        yield Warning(said, hint, id="tenure.W001")
    for other, its in connections.settings.items():
        if its.get("ATOMIC_REQUESTS") and other != alias:
            said = f"Requests are atomic on {other!r}, but tasks are added on {alias!r}."
            hint = "One can be committed without the other: keep the jobs in that database."
            yield Warning(said, hint, id="tenure.W003")
    if pool := options.get("pool"):
        sizes = pool if isinstance(pool, dict) else {}
        size = sizes.get("max_size") or sizes.get("min_size", 4)
        if size < CONCURRENCY:
            said = f"The pool has {size} connections: tasks of a worker wait for one."
            hint = f"Give a max_size of {CONCURRENCY}, or workers a smaller --concurrency."
            yield Warning(said, hint, id="tenure.W004")
    if vendor != "sqlite" and given["CONN_MAX_AGE"] is None:
        said = f"A worker keeps up to {CONCURRENCY} connections to {alias!r} until it ends."
        hint = "Set CONN_MAX_AGE to a number of seconds, and CONN_HEALTH_CHECKS to True."
        yield Warning(said, hint, id="tenure.W005")


def _no_task(path: str) -> str:
    """Return why a path names no task; empty for one that does."""
    try:
        found = import_string(path)
    except Exception as error:  # `migrate` runs the checks, and needs no task
        return str(error)
    if not isinstance(found, base.Task):
        return "it is something else"
    return "" if found.module_path == path else f"its path is {found.module_path!r}"


def _database(backend: TenureBackend, connection: Any) -> Iterator[CheckMessage]:
    version, needed = upkeep.version_within(backend.app, connection)
    # `migrate` asks for these checks, too: what it is to do is no error.
    is_migrated = ("tenure", NEWEST) in MigrationRecorder(connection).applied_migrations()
    if version > needed + 1 or (is_migrated and version < needed):
        said = f"The database {backend.database!r} has schema {version} of Tenure, not {needed}."
        hint = "Run `manage.py tenure migrate`." if version < needed else "Upgrade Tenure here."
        yield Error(said, hint, id="tenure.E003")
    if connection.vendor != "sqlite":
        return
    with connection.cursor() as cursor:
        (synchronous,) = cursor.execute("PRAGMA synchronous").fetchone()
        (checkpoints,) = cursor.execute("PRAGMA wal_autocheckpoint").fetchone()
    if synchronous < FULL or (checkpoints and sqlite3.sqlite_version_info < RESETS_SAFELY):
        said = f"SQLite {sqlite3.sqlite_version} can lose jobs by a power cut or a checkpoint."
        hint = f"Add 'init_command': {CAREFUL!r} to OPTIONS of DATABASES[{backend.database!r}]."
        yield Warning(said, hint, id="tenure.W002")
