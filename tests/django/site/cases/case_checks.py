"""The checks of the settings, with the settings that they are about."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, connections
from django.test import override_settings
from shop.tasks import ship

from tenure.contrib.django.databases import migrate, url_of

another_name = ship
BACKEND = "tenure.contrib.django.TenureBackend"


def found(**options: Any) -> set[str]:
    """The ids of what is found with OPTIONS of the backend."""
    tasks = {"default": {"BACKEND": BACKEND, "OPTIONS": options}}
    with override_settings(TASKS=tasks, ASGI_APPLICATION="asgi.application"):
        messages = checks.run_checks(include_deployment_checks=True)
    return {message.id for message in messages if message.id.startswith("tenure.")}


@contextmanager
def unsupported() -> Iterator[None]:
    """Have a database that is neither SQLite nor PostgreSQL, as MySQL."""
    entry = {**connection.settings_dict, "ENGINE": "django.db.backends.dummy"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(connections.settings, "unsupported", entry)
        yield
        del connections["unsupported"]


def test_a_careful_site_is_quiet() -> None:
    assert found() == set()


def test_what_is_missing_is_an_error() -> None:
    assert found(database="nowhere") == {"tenure.E002"}
    of_task = {"shop.tasks.ship": {"wake": "later"}}
    assert found(max_retires=1) == found(tasks=of_task) == {"tenure.E004"}
    with unsupported():
        assert found(database="unsupported") == {"tenure.E002"}
    others = [name for name in settings.INSTALLED_APPS if name != "tenure.contrib.django"]
    with override_settings(INSTALLED_APPS=others):
        assert "tenure.E001" in found()


def test_options_for_what_is_no_task_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A misspelled path was silent, and its task ran without its options."""
    (tmp_path / "that_raises.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    for path in (
        *("shop.tasks.shipp", "shop.task.ship", "ship", "shop.tasks.Order"),
        *("cases.case_checks.another_name", "that_raises.task"),
    ):
        assert found(tasks={path: {"atomic": True}}) == {"tenure.W006"}, path
    assert found(tasks={"shop.tasks.ship": {"atomic": True}}) == set()


def test_a_database_that_tenure_does_not_know_is_named() -> None:
    with unsupported(), pytest.raises(ImproperlyConfigured, match="not on 'unsupported'"):
        url_of("unsupported", "tenure")


def test_settings_that_surprise_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = connection.settings_dict
    if connection.vendor == "sqlite":
        monkeypatch.delitem(mine["OPTIONS"], "transaction_mode")
        assert found() == {"tenure.W001"}
    monkeypatch.setitem(mine, "OPTIONS", {"pool": True, "transaction_mode": "IMMEDIATE"})
    assert found() == {"tenure.W004"}
    for pool, are_too_few in (
        ({"max_size": 15}, True),
        ({"max_size": 16}, False),
        ({"min_size": 16}, False),
        ({"timeout": 9.0}, True),
    ):
        options = {"pool": pool, "transaction_mode": "immediate"}
        monkeypatch.setitem(mine, "OPTIONS", options)
        assert found() == ({"tenure.W004"} if are_too_few else set()), pool
    monkeypatch.setitem(mine, "OPTIONS", {"transaction_mode": "IMMEDIATE"})
    monkeypatch.setitem(mine, "ATOMIC_REQUESTS", True)  # where the tasks are added, too
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
    assert of_database() == []
    if connection.vendor == "sqlite":
        checkpoint = ["tenure.W002"] if sqlite3.sqlite_version_info < (3, 51, 3) else []
        for pragma, are_found in (
            ("synchronous = NORMAL", ["tenure.W002"]),
            ("wal_autocheckpoint = 1000", checkpoint),
        ):
            with connection.cursor() as cursor:
                cursor.execute(f"PRAGMA {pragma}")
            assert of_database() == are_found
            assert of_database(None) == [], "only --database asks it"
            connection.close()


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("ahead", "are_found"), [(1, []), (2, ["tenure.E003"])], ids=["next", "later"]
)
def test_a_schema_of_a_later_release_is_an_error_unless_it_is_the_next(
    ahead: int, are_found: list[str]
) -> None:
    table = "tenure_schema" if connection.vendor == "sqlite" else "tenure.schema_version"
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {table} SET version = version + %s", [ahead])
    assert of_database() == are_found


def of_database(asked: str | None = "default") -> list[str]:
    """The ids of what is found in a database, or of what is found if none is named."""
    databases = [asked] if asked else None
    messages = checks.run_checks(tags=[checks.Tags.database], databases=databases)
    return [message.id for message in messages if message.id.startswith("tenure.")]


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
