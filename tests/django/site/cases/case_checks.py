"""The checks of the settings, with the settings that they are about."""

from __future__ import annotations

from typing import Any

import pytest
from django.conf import settings
from django.core import checks
from django.db import connection, connections
from django.test import override_settings

from tenure.contrib.django.databases import migrate

BACKEND = "tenure.contrib.django.TenureBackend"


def found(**options: Any) -> set[str]:
    """The ids of what is found with OPTIONS of the backend."""
    tasks = {"default": {"BACKEND": BACKEND, "OPTIONS": options}}
    with override_settings(TASKS=tasks, ASGI_APPLICATION="asgi.application"):
        messages = checks.run_checks(include_deployment_checks=True)
    return {message.id for message in messages if message.id.startswith("tenure.")}


def test_a_careful_site_is_quiet() -> None:
    assert found() == set()


def test_what_is_missing_is_an_error() -> None:
    assert found(database="nowhere") == {"tenure.E002"}
    assert found(max_retires=1) == found(tasks={"a.b": {"wake": "later"}}) == {"tenure.E004"}
    others = [name for name in settings.INSTALLED_APPS if name != "tenure.contrib.django"]
    with override_settings(INSTALLED_APPS=others):
        assert "tenure.E001" in found()


def test_settings_that_surprise_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = connection.settings_dict
    if connection.vendor == "sqlite":
        monkeypatch.delitem(mine["OPTIONS"], "transaction_mode")
        assert found() == {"tenure.W001"}
    monkeypatch.setitem(mine, "OPTIONS", {"pool": True, "transaction_mode": "IMMEDIATE"})
    assert found() == {"tenure.W004"}
    monkeypatch.setitem(
        mine, "OPTIONS", {"pool": {"max_size": 20}, "transaction_mode": "immediate"}
    )
    assert found() == set()
    monkeypatch.setitem(mine, "CONN_MAX_AGE", None)
    assert found() == ({"tenure.W005"} if connection.vendor == "postgresql" else set())
    monkeypatch.setitem(mine, "CONN_MAX_AGE", 60)
    assert found() == set()
    other = {**mine, "ATOMIC_REQUESTS": True}
    monkeypatch.setitem(connections.settings, "other", other)
    assert found() == {"tenure.W003"}


def test_the_dashboard_is_offered_before_a_deployment() -> None:
    messages = checks.run_checks(include_deployment_checks=True)
    assert "tenure.I001" in {message.id for message in messages}
    assert "tenure.I001" not in {message.id for message in checks.run_checks()}


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_may_lose_jobs_is_warned_of() -> None:
    def ids() -> list[str]:
        messages = checks.run_checks(tags=[checks.Tags.database], databases=["default"])
        return [message.id for message in messages if message.id.startswith("tenure.")]

    assert ids() == []
    if connection.vendor == "sqlite":
        for pragma in ("synchronous = NORMAL", "wal_autocheckpoint = 1000"):
            with connection.cursor() as cursor:
                cursor.execute(f"PRAGMA {pragma}")
            assert ids() == ["tenure.W002"]
            connection.close()


class Elsewhere:
    """A router that keeps the tables away."""

    def allow_migrate(self, *_: Any, **__: Any) -> bool:
        return False


def test_the_schema_is_made_where_the_jobs_are_alone() -> None:
    for alias, routers in (("other", []), ("default", [Elsewhere()])):
        copy = connection.copy(alias=alias)
        with override_settings(DATABASE_ROUTERS=routers):
            migrate(copy)
        assert copy.connection is None
