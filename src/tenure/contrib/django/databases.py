"""The `Tenure` of each database of the settings, and the schema in it."""

from __future__ import annotations

import re
import threading
from functools import cache, partial
from typing import Any
from urllib.parse import quote, urlencode

from django.core.exceptions import ImproperlyConfigured
from django.db import connections, router

from tenure import Tenure
from tenure.app import upkeep
from tenure.contrib.django._api import task_backends
from tenure.contrib.django.joining import SiteTenure

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
    apps = {one.app: None for one in backends() if one.database == connection.alias}
    return list(apps)
