"""The Django application: its label is `tenure`."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.db.backends.base.base import NO_DB_ALIAS
from django.db.backends.signals import connection_created
from django.db.models.signals import post_migrate


class TenureConfig(AppConfig):
    """Jobs, in the admin, in migrations and in databases of tests."""

    name = "tenure.contrib.django"
    label = "tenure"
    verbose_name = "Tenure"

    def ready(self) -> None:
        """Register the checks, and what looks after databases of tests."""
        from tenure.contrib.django.databases import check_databases, check_deployment

        checks.register(check_databases, checks.Tags.database)
        checks.register(check_deployment, "tenure", deploy=True)  # not run with `database`
        post_migrate.connect(_make_without_migrations, sender=self)
        connection_created.connect(_close_before_drop)


def _make_without_migrations(using: str, **_: Any) -> None:
    """Make the schema in a database of tests without migrations."""
    from django.db import connections
    from django.db.migrations.loader import MigrationLoader

    from tenure.contrib.django.databases import migrate

    if MigrationLoader.migrations_module(TenureConfig.label)[0] is None:
        migrate(connections[using])


def _close_before_drop(connection: Any, **_: Any) -> None:
    """Close the applications where Django connects to no database, to make or drop one for tests.

    PostgreSQL neither drops nor copies a database that has a session.
    """
    if connection.alias == NO_DB_ALIAS:
        from tenure.contrib.django.databases import backends

        for backend in backends():
            backend.app.close()
