"""Jobs and their ledger as models, to read: the schema is Tenure's, and so is every change.

A change by the ORM is one in plain SQL: triggers refuse what the lifecycle does not allow.
"""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections, models
from django.utils import timezone

from tenure.contrib.django.databases import backends
from tenure.contrib.django.tasks import time_of
from tenure.lifecycle import Status
from tenure.values.ids import EPOCH


def alias() -> str:
    """Return the database that the models read: that of the first backend of Tenure's."""
    named = [one.database for one in backends() if one.database in connections.settings]
    return named[0] if named else DEFAULT_DB_ALIAS  # the checks say what is wrong


def _table(name: str) -> str:
    if connections[alias()].vendor == "sqlite":
        return f"tenure_{name}"
    schema = next((one.schema for one in backends()), "tenure")
    return f'"{schema}"."{name}"'  # quoted, so that Django does not change it


class Id(models.UUIDField):
    """An id of Tenure: of type `uuid`, and on SQLite its usual text."""

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        found: uuid.UUID | None = self.to_python(value)
        return str(found) if found and connection.vendor == "sqlite" else found


class Time(models.DateTimeField):
    """A time of Tenure: of type `timestamptz`, and on SQLite milliseconds since 1970."""

    def get_internal_type(self) -> str:
        return "TenureTime"  # no engine knows it: SQLite's would read a text

    def from_db_value(self, value: Any, expression: object, connection: object) -> Any:
        return time_of(value) if isinstance(value, int) else value

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        at = value if prepared else self.get_prep_value(value)
        if at is None or connection.vendor != "sqlite":
            return at
        aware = at if timezone.is_aware(at) else timezone.make_aware(at)
        return (aware - EPOCH) // timedelta(milliseconds=1)


class Stored(models.Manager[Any]):
    """Reads the database that the jobs are in, whatever the routers of the project say."""

    def get_queryset(self) -> models.QuerySet[Any]:
        return super().get_queryset().using(alias())


class Job(models.Model):
    """A job, with the fields of `tenure.Job`; `payload` and `result` are JSON."""

    id = Id(primary_key=True)
    type = models.TextField()
    queue = models.TextField()
    status = models.TextField(choices=[(status.value, status.value) for status in Status])
    priority = models.BigIntegerField()
    attempts = models.IntegerField()
    max_retries = models.BigIntegerField()
    run_at = Time()
    created_at = Time()
    started_at = Time(null=True)
    finished_at = Time(null=True)
    worker = models.TextField(null=True)
    idempotency_key = models.TextField(null=True)
    payload = models.TextField()
    result = models.TextField(null=True)
    last_error = models.TextField(null=True)

    objects = Stored()

    class Meta:
        managed = False
        db_table = _table("job")
        default_permissions = ("view", "change")

    def __str__(self) -> str:
        return f"{self.type} {self.pk}"


class Transition(models.Model):
    """A change of a job's status: an entry of the ledger."""

    seq = models.BigIntegerField(primary_key=True)
    job = models.ForeignKey(Job, models.DO_NOTHING, related_name="transitions")
    at = Time()
    source = models.TextField(null=True)
    target = models.TextField()
    event = models.TextField()
    attempt = models.IntegerField()
    actor = models.TextField(null=True)
    detail = models.TextField(null=True)
    reason = models.TextField(null=True)

    objects = Stored()

    class Meta:
        managed = False
        db_table = _table("transition")
        default_permissions = ("view",)

    def __str__(self) -> str:
        return str(self.event)
