"""The `Tenure` of each database of the settings, the schema in it, and the checks of the settings.

`RunTenure` is the operation of migrations that runs the steps of Tenure's own schema. The checks
say what is wrong with the settings, as `manage.py check` shows it.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Warning
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, router
from django.db.migrations.exceptions import IrreversibleError
from django.db.migrations.operations.base import Operation
from django.db.migrations.recorder import MigrationRecorder
from django.utils.module_loading import import_string

from tenure import Tenure
from tenure.app import upkeep
from tenure.contrib.django._api import base, task_backends
from tenure.contrib.django.joining import SiteTenure
from tenure.contrib.django.tasks import OF_TASKS

if TYPE_CHECKING:
    from tenure.contrib.django.backend import TenureBackend

IN_MEMORY = "sqlite:///:memory:"
"""No worker can open it, but jobs can be added and run on Django's connection."""
ENGINES = {"sqlite": "sqlite", "postgresql": "postgres"}
"""Vendor of a connection -> the engine of Tenure."""
NOT_FOR_URLS = ("client_encoding", "context", "cursor_factory", "prepare_threshold")
"""Parameters of Django's connections that are objects, or settings of its driver."""

_to_escape = re.compile(r"[\\\s]")
_lock = threading.Lock()


def tenure_of(database: str, schema: str) -> Tenure:
    """Return the only `Tenure` of this process for a database of the settings."""
    with _lock:  # two tasks that are imported at once must not make two
        return _tenure_of(database, schema)


@cache
def _tenure_of(database: str, schema: str) -> Tenure:
    from tenure.contrib.django.handlers import around, send_failed

    here = [one for one in backends() if (one.database, one.schema) == (database, schema)]
    redact = [key for one in here for key in one.options.get("redact", ())]
    wakes = {one.options.get("wake", "commit") for one in here}
    app = SiteTenure(
        database,
        partial(url_of, database, schema),
        wake="later" if wakes == {"later"} else "commit",
        database=IN_MEMORY,
        migrate="never",
        actor="django",
        redact=redact,
    )
    app.around(partial(around, app))
    app.on_failure(send_failed)
    return app


def url_of(database: str, schema: str) -> str:
    """Return the URL of a database of the settings, which may hold its password."""
    connection = connections[database]
    if connection.vendor == "sqlite":
        in_memory = connection.is_in_memory_db()  # type: ignore[attr-defined]
        return IN_MEMORY if in_memory else f"sqlite:///{connection.settings_dict['NAME']}"
    if connection.vendor not in ENGINES:
        raise ImproperlyConfigured(f"Tenure works on SQLite and PostgreSQL: not on {database!r}")
    given = connection.get_connection_params()
    parameters = {n: v for n, v in given.items() if n not in NOT_FOR_URLS and v is not None}
    if role := connection.settings_dict["OPTIONS"].get("assume_role"):
        # As SET ROLE, from the first statement on: what the login itself may do counts for nothing.
        escaped = _to_escape.sub(r"\\\g<0>", role)
        parameters["options"] = f"{parameters.get('options', '')} -c role={escaped}"
    name = quote(parameters.pop("dbname", ""), safe="")
    query = urlencode({**parameters, "schema": schema}, quote_via=quote)
    return f"postgresql:///{name}?{query}"


def backends() -> list[Any]:
    """Return the backends of the settings that are Tenure's, by their aliases."""
    from tenure.contrib.django.backend import TenureBackend

    return [one for one in task_backends.all() if isinstance(one, TenureBackend)]


def migrate(connection: Any) -> None:
    """Create or upgrade the schema on a connection of Django, if jobs belong there."""
    for app in _apps_on(connection):
        upkeep.migrate_within(app, connection)


def migration_sql(connection: Any) -> list[str]:
    """Return the SQL that makes the schemas on a connection of Django."""
    engine = ENGINES.get(connection.vendor)
    return [upkeep.migration_sql(app, engine) for app in _apps_on(connection)]


def _apps_on(connection: Any) -> list[Tenure]:
    if not router.allow_migrate(connection.alias, "tenure"):
        return []
    return list({one.app: None for one in backends() if one.database == connection.alias})


# --- migration ------------------------------------------------------------------------------------


class RunTenure(Operation):
    """Bring the schema to the version of this Tenure, on the connection of the migration.

    It changes nothing where `tenure migrate` or another migration has, nor in a database without
    jobs. It cannot be reversed, because that would delete jobs.
    """

    elidable = False

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Change nothing of the models: they are unmanaged."""

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        """Run the steps, or collect them for `sqlmigrate`."""
        if schema_editor.collect_sql:
            schema_editor.collected_sql += migration_sql(schema_editor.connection)
        else:
            migrate(schema_editor.connection)

    def database_backwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        """Raise IrreversibleError: nothing but a person deletes jobs."""
        raise IrreversibleError(
            "this migration is not reversible, because that would delete the jobs. To remove "
            "Tenure, run `migrate tenure zero --fake`, and delete its tables or its schema"
        )

    def describe(self) -> str:
        """Return what it does, for `sqlmigrate` and `migrate --plan`."""
        return "Create or upgrade Tenure's schema"


# --- checks ---------------------------------------------------------------------------------------

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
