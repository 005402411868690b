"""The operation of migrations that runs the steps of Tenure's own schema."""

from __future__ import annotations

from typing import Any

from django.db.migrations.exceptions import IrreversibleError
from django.db.migrations.operations.base import Operation


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
        from tenure.contrib.django.databases import migrate, migration_sql

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
